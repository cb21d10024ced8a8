# Every target works as the first command after a clone: it needs Python, pip and make, and makes .venv
# itself. Settings: PYTHON (which Python .venv is made from), WORKERS (tests at a time).

PYTHON ?= python3
WORKERS ?= 2
PYTHON_MIN := 3.11
TORCH_MIN := 2.9

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
NOTEBOOKS := $(if $(wildcard notebooks/*.ipynb),--nbmake notebooks)

.DEFAULT_GOAL := help
.PHONY: demo test lab docs lint coverage mutants release clean help

demo: $(STAMP) ## show, on the bundled organism, a fact that is recalled through a concept
	@$(BIN)/mnemo demo

test: $(STAMP) ## run the tests, and the notebooks as tests
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadfile tests $(NOTEBOOKS)

lab: $(STAMP) ## open the first notebook in JupyterLab
	@$(BIN)/jupyter-lab notebooks/01_quickstart.ipynb

docs: $(STAMP) ## build the documentation into site/ (open site/index.html)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(STAMP) ## check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

coverage: $(STAMP) ## run the tests and fail unless they reach 90% of the lines of mnemo/
	@$(BIN)/coverage erase
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -q -n $(WORKERS) --dist loadfile tests
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

mutants: $(STAMP) ## change the core mathematics here and there and see whether its tests notice (hours)
	@$(BIN)/python benchmarks/mutation.py

release: $(STAMP) ## build the wheel, install it into a fresh environment and run the demo from there
	@$(BIN)/python benchmarks/release.py

clean: ## remove .venv, caches and builds (results in out/ stay)
	@rm -rf $(VENV) build dist site .hypothesis .pytest_cache .ruff_cache .coverage
	@find . -name __pycache__ -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/make \1@\2/p' Makefile | awk -F@ '{printf "%-12s %s\n", $$1, $$2}'

# The stamp is written last and holds the place of the checkout. A stamp that is missing (an install was
# interrupted) or names another place (the checkout was copied or moved) means a .venv not to be trusted:
# it is made anew. A sound .venv is updated in place when a dependency file changes.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

define check_python
import sys
need, have = "$(PYTHON_MIN)", ".".join(map(str, sys.version_info[:3]))
if sys.version_info[:2] < tuple(map(int, need.split("."))):
    sys.exit("mnemo needs Python %s or newer, $(PYTHON) is %s: try make PYTHON=python%s" % (need, have, need))
endef

define check_torch
import torch
have = tuple(map(int, torch.__version__.split(".")[:2]))
raise SystemExit(have < tuple(map(int, "$(TORCH_MIN)".split("."))))
endef
export check_python check_torch

# A machine whose Python can import torch already, often a build chosen for its GPU, keeps it: .venv then
# sees the packages outside it, and the pin of torch is left out, and that of setuptools, on which some
# releases of torch put a bound. All other pins are installed into .venv and come first.
$(STAMP): pyproject.toml constraints.txt
	@test "$$(cat $@ 2>/dev/null)" = '$(CURDIR)' || { \
	    $(PYTHON) -c "$$check_python" && \
	    echo 'Making $(VENV) (a few minutes, once)' && \
	    $(PYTHON) -m venv --clear --without-pip --system-site-packages $(VENV) && \
	    if $(BIN)/python -c "$$check_torch" 2>/dev/null; then site=--system-site-packages; else site=; fi && \
	    $(PYTHON) -m venv --clear $$site $(VENV); }
	@rm -f $@
	@if grep -q 'system-site-packages = true' $(VENV)/pyvenv.cfg; \
	    then grep -vE '^(torch|setuptools)==' constraints.txt; else cat constraints.txt; \
	    fi > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet) \
	    --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@echo '$(CURDIR)' > $@
