"""Do pyproject.toml, constraints.txt, environment.yml and the Makefile tell the same story?"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import mnemo

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PIN_LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
# Torch brings these on machines where its build is one for CUDA.
CUDA = re.compile(r"nvidia-|cuda-|triton")


def core_requirements() -> list[Requirement]:
    return [Requirement(text) for text in PROJECT["dependencies"]]


def all_requirements() -> list[Requirement]:
    """Return the core's and every extra's, without the references of one extra to others."""
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [requirement for text in texts if (requirement := Requirement(text)).name != PROJECT["name"]]


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in PIN_LINES)


# --- pyproject.toml and constraints.txt


def test_pyproject_holds_lower_bounds_only() -> None:
    known_broken = {("transformer-lens", "<5")}
    for requirement in all_requirements():
        bounds = {str(bound) for bound in requirement.specifier}
        lower = {bound for bound in bounds if bound.startswith(">=")}
        assert len(lower) == 1, f"{requirement} needs one lower bound"
        assert {(requirement.name, bound) for bound in bounds - lower} <= known_broken


def test_every_constraint_is_a_plain_pin() -> None:
    """No local versions (+cpu), hosts, paths, markers or CUDA packages; one pin a package, in order."""
    for line in PIN_LINES:
        assert re.fullmatch(r"[a-z0-9-]+==\d[a-z0-9.]*", line), line
        assert not CUDA.match(line), f"{line}: the machine chooses the build of torch"
    names = [line.split("==")[0] for line in PIN_LINES]
    assert names == sorted(set(names))


@pytest.mark.parametrize("requirement", all_requirements(), ids=str)
def test_every_dependency_has_a_pin_in_its_range(requirement: Requirement) -> None:
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} has no pin"
    assert requirement.specifier.contains(pin, prereleases=True)


def closure(environments: Sequence[Mapping[str, str]]) -> set[str]:
    """Return the names of all that mnemo with every extra needs in any of some environments.

    A package that is not installed, as it is for another platform, counts but is not followed.
    """
    seen: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(r.name), extra) for r in all_requirements() for extra in ("", *r.extras)]
    while todo:
        name, extra = node = todo.pop()
        if node in seen or CUDA.match(name):
            continue
        seen.add(node)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            applies = need.marker is None or any(
                need.marker.evaluate({**environment, "extra": extra}) for environment in environments
            )
            if applies:
                todo += [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
    return {name for name, _ in seen}


def test_the_pins_are_the_whole_closure_and_no_more() -> None:
    here = {variable: str(value) for variable, value in default_environment().items()}
    installed = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    if missing := closure([here]) - installed:
        pytest.skip(f"needs the environment that make builds; not installed here: {sorted(missing)}")

    supported = [
        {
            **here,
            "sys_platform": sys_platform,
            "platform_system": platform_system,
            "python_version": f"3.{minor}",
            "python_full_version": f"3.{minor}.0",
        }
        for sys_platform, platform_system in (("linux", "Linux"), ("darwin", "Darwin"))
        for minor in range(11, 15)
    ]
    assert closure(supported) == set(pins())


def imported(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the top-level name of every absolute import below `folder`, wherever in a file it stands."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], file) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0], file


# Parts of the package that an extra makes complete; they are imported when they are first used.
WITH_EXTRAS = {"mnemo/cluster": "cluster", "mnemo/human.py": "human", "mnemo/learning": "learning"}


def may_import(file: str) -> list[Requirement]:
    """Return what the code of a file may take for granted."""
    if not file.startswith("mnemo/"):
        return all_requirements()
    extras = [extra for part, extra in WITH_EXTRAS.items() if file.startswith(part)]
    return [*core_requirements(), *(Requirement(need) for extra in extras for need in EXTRAS[extra])]


@pytest.mark.parametrize("folder", ["mnemo", "tests", "benchmarks", "notebooks"])
def test_what_is_imported_is_declared(folder: str) -> None:
    """A package that only another package needs may be gone with the next release of that one."""
    own = {"mnemo", "tests", *(script.stem for script in (ROOT / "benchmarks").glob("*.py"))}
    distributions = importlib.metadata.packages_distributions()
    for module, file in imported(ROOT / folder):
        if module in sys.stdlib_module_names or module in own:
            continue
        declared = {canonicalize_name(need.name) for need in may_import(file.relative_to(ROOT).as_posix())}
        origins = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert origins & declared, f"{file.relative_to(ROOT)} imports {module}, which no dependency names"


# --- environment.yml


def test_environment_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]

    python, pip, nested = environment["dependencies"]
    assert Requirement(python).name == "python"
    assert Requirement(python).specifier == SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip"

    constraint, editable = nested["pip"]
    assert constraint == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", editable)
    assert extras is not None
    assert set(extras[1].split(",")) <= set(EXTRAS)


def test_dev_is_every_other_extra() -> None:
    (dev,) = map(Requirement, EXTRAS["dev"])
    assert dev.name == PROJECT["name"]
    assert dev.extras == set(EXTRAS) - {"dev"}


# --- what is installed


def test_version_and_command_are_those_of_the_package() -> None:
    assert getattr(mnemo, "__version__", PROJECT["version"]) == PROJECT["version"]
    for target in PROJECT["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def build_wheel(out: Path, *, kind: str) -> list[str]:
    """Build a wheel of this checkout and return the names of the files in it."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", f"wheel:{kind}", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_a_wheel_has_the_data_inside_the_package(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    names = build_wheel(tmp_path, kind="standard")
    data = {f"mnemo/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "data").glob("*/*.csv")}
    assert data and data <= set(names)
    assert "mnemo/errors.py" in names
    assert {name.split("/")[0] for name in names} == {"mnemo", f"mnemo-{PROJECT['version']}.dist-info"}


def test_an_editable_install_copies_nothing(tmp_path: Path) -> None:
    """A copy of data/ in site-packages would go stale unseen."""
    pytest.importorskip("hatchling")
    names = [name for name in build_wheel(tmp_path, kind="editable") if ".dist-info/" not in name]
    assert names == ["_mnemo.pth"]


# --- the Makefile

# Stands in for hatchling, which an offline pip could not fetch: a wheel with no modules in it.
BACKEND = """
import zipfile
def build_editable(out, config_settings=None, metadata_directory=None):
    name = "empty-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{out}/{name}", "w") as wheel:
        metadata = "Metadata-Version: 2.1\\nName: empty\\nVersion: 1\\nProvides-Extra: dev\\n"
        wheel.writestr("empty-1.dist-info/METADATA", metadata)
        wheel.writestr("empty-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n")
        wheel.writestr("empty-1.dist-info/RECORD", "")
    return name
"""
STAMP = Path(".venv/installed")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a person would: not as the child of the make that runs the tests."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", *arguments],
        cwd=folder,
        env=environment | {"PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with the real Makefile and nothing to install."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (tmp_path / "constraints.txt").touch()
    return tmp_path


def test_help_names_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    named = re.findall(r"^make (\w+) +\S", make(ROOT, "help").stdout, flags=re.MULTILINE)
    assert sorted(named) == sorted(phony[1].split())
    assert {"clean", "demo", "docs", "help", "lab", "lint", "test", "coverage", "mutants", "release"} == set(named)


def test_least_versions_are_those_of_pyproject() -> None:
    least = dict(re.findall(r"^(\w+)_MIN := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    torch = next(r for r in core_requirements() if r.name == "torch")
    assert f">={least.pop('PYTHON')}" == PROJECT["requires-python"]
    assert f">={least.pop('TORCH')}" == str(torch.specifier)
    assert not least


def test_an_old_python_is_refused_in_one_line(checkout: Path) -> None:
    run = make(checkout, "PYTHON_MIN=9.9", "demo")
    said, by_make = run.stderr.splitlines()
    assert said.startswith("mnemo needs Python 9.9 or newer")
    assert "try make PYTHON=" in said
    assert by_make.startswith("make:")
    assert not (checkout / ".venv").exists()


def test_an_environment_is_made_once_updated_in_place_and_never_trusted_half_made(checkout: Path) -> None:
    def installs() -> bool:
        return "pip install" in make(checkout, "--dry-run", "demo").stdout

    # Half made: no stamp.
    leftover = checkout / ".venv/lib/half-installed"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    assert installs()
    done = make(checkout, str(STAMP))
    assert done.returncode == 0, done.stderr
    assert not leftover.exists()
    assert not installs()

    # A dependency file changes: what is there is kept and brought up to date.
    kept = checkout / ".venv/kept"
    kept.touch()
    os.utime(checkout / STAMP, (0, 0))
    assert installs()
    assert make(checkout, str(STAMP)).returncode == 0
    assert kept.exists()
    assert not installs()

    # An install that fails leaves no stamp.
    os.utime(checkout / STAMP, (0, 0))
    (checkout / "constraints.txt").write_text("not a requirement\n")
    assert make(checkout, str(STAMP)).returncode == 2
    assert not (checkout / STAMP).exists()

    # The checkout was copied: .venv still points to the old place.
    (checkout / STAMP).write_text("/somewhere/else\n")
    assert installs()
