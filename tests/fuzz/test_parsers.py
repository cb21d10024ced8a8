"""No file, however broken or hostile, makes mnemo do anything but take it or say in one line why not.

Here are a few cases for each parser; `python tests/fuzz/run.py` does a hundred thousand.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemo.errors import InputError, MnemoError
from mnemo.explorer.view import SavedView
from mnemo.facts import FactSet, Task
from mnemo.model import load
from mnemo.records import Parts
from mnemo.textfiles import read_text
from tests.fuzz.cases import UNCHECKED, documents, texts_near
from tests.fuzz.parsers import PARSERS, refuses_well

FEW = settings(max_examples=15, suppress_health_check=UNCHECKED)


@pytest.mark.parametrize("name", PARSERS)
@FEW
@given(data=st.data())
def test_texts_near_a_good_one_are_taken_or_refused_in_one_line(name, data):
    refuses_well(PARSERS[name], data.draw(texts_near(PARSERS[name].examples)))


@pytest.mark.parametrize("name", [name for name, parser in PARSERS.items() if parser.document])
@FEW
@given(data=st.data())
def test_documents_with_other_values_are_taken_or_refused_in_one_line(name, data):
    document = data.draw(documents(PARSERS[name].document or {}))
    refuses_well(PARSERS[name], PARSERS[name].spell(document).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("name", PARSERS)
def test_the_examples_are_ones_that_are_taken(name):
    assert all(refuses_well(PARSERS[name], example.encode()) for example in PARSERS[name].examples)


# ---- what grows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lambda: "fact_id,cue,answer," + ",".join(f"c{i}" for i in range(2000)) + "\n", "2003 columns"),
        (lambda: "[" * 100_000, "TOML"),
        (lambda: '{"a":' * 100_000, "JSON"),
        (lambda: "a = " + "[" * 100_000, "TOML"),
        (lambda: "a = " + "9" * 100_000, "TOML"),
        (lambda: "\n".join(f"a{i} = 1" for i in range(200_000)), "at most 1 MB are read"),
    ],
)
def test_what_would_grow_without_end_is_refused(tmp_path, text, says):
    (tmp_path / "task.toml").write_text(text())
    (tmp_path / "facts.csv").write_text(text())
    refused = []
    for read in (lambda: Task.read(tmp_path), lambda: FactSet.read(tmp_path / "facts.csv")):
        with pytest.raises(MnemoError) as caught:
            read()
        refused.append(str(caught.value))
    with pytest.raises(MnemoError) as caught:
        SavedView.parse(text())
    assert any(says in line for line in [*refused, str(caught.value)])


def test_more_facts_than_memory_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mnemo.facts.MAX_FACTS", 3)
    (tmp_path / "f.csv").write_text("fact_id,cue,answer\n" + "".join(f"{i},a,b\n" for i in range(4)))
    with pytest.raises(InputError, match="row 5: more than 3 facts"):
        FactSet.read(tmp_path / "f.csv")


# ---- files that are none


def test_links_in_circles_devices_and_pipes_are_no_files(tmp_path):
    (tmp_path / "facts.csv").symlink_to(tmp_path / "facts.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    for name in ("facts.csv", "zero.csv", "pipe.csv", "gone.csv", "x" * 5000):
        with pytest.raises(InputError, match=r"no such file|cannot be read"):
            FactSet.read(tmp_path / name)


def test_a_file_that_is_longer_than_it_says_is_not_read_to_its_end(tmp_path):
    assert Path("/proc/self/maps").stat().st_size == 0
    with pytest.raises(InputError, match="at most 0 MB are read"):
        read_text(Path("/proc/self/maps"), most=16)


def test_results_never_go_through_a_link_into_another_folder(tmp_path):
    theirs, out = tmp_path / "theirs", tmp_path / "out"
    theirs.mkdir()
    out.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    (out / ".mnemo-parts").symlink_to(theirs)
    with pytest.raises(InputError, match="no run of mnemo made it"):
        Parts.begin(out, "hash", resume=False)
    assert (theirs / "thesis.txt").read_text() == "mine" and len(list(theirs.iterdir())) == 1


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "C:/x", "\\\\host\\x", "..\\x", "//host/x"])
@pytest.mark.parametrize("key", ["facts", "concepts", "model"])
def test_a_task_never_leads_out_of_its_folder(tmp_path, key, path):
    (tmp_path / "task.toml").write_text(f"name = 'x'\nrecall = 'decode {{cue}}'\n{key} = '{path}'\n")
    with pytest.raises(InputError, match="leaves the study folder"):
        Task.read(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_never_run(tmp_path, file):
    from tests.tiny_models import saved

    folder = saved("gpt2", tmp_path / "m")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    with pytest.raises(MnemoError, match="asks for Python code"):
        load(folder)


def test_cues_that_are_code_elsewhere_are_text_in_figures_tables_and_on_the_terminal(tmp_path, capsys):
    from mnemo.report import print_trace
    from mnemo.tables import read_csv
    from mnemo.traces import Trace
    from mnemo.tracing import trace
    from tests.tiny_models import tiny_contrasts, tiny_model, tiny_tokenizer

    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    (contrast, *_) = tiny_contrasts(model, ("=$\\a{$\x1b[2J<b>", "=$\\b{$\x1b[3J<b>"))
    found = trace(model, contrast, top=5)
    found.write(tmp_path)
    assert (tmp_path / "trace.png").stat().st_size > 0
    assert Trace.read(tmp_path).cue == contrast.fact.cue
    for name, table, column in (("nodes", found.nodes, "token"), ("paths", found.path_table(), "path")):
        assert list(read_csv(tmp_path / f"{name}.csv")[column]) == list(table[column])
        cells = (tmp_path / f"{name}.csv").read_text().replace('"', "").splitlines()
        assert not [cell for line in cells for cell in line.split(",") if cell.startswith(("=", "@"))]
    print_trace(found, tmp_path)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\\x1b[2J<b>" in said


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/x.safetensors", "weights.bin", "a/b.safetensors"])
def test_a_model_s_weights_lie_in_its_folder(tmp_path, name):
    from tests.tiny_models import saved

    folder = saved("gpt2", tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(InputError, match=r"index.json, column 'weight_map': should name the \.safetensors file"):
        load(folder)


# ---- the network


def test_an_extraction_opens_no_connection(compiled_study, monkeypatch, tmp_path):
    from mnemo.extraction import extract

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for constant in ("huggingface_hub.constants.HF_HUB_OFFLINE", "transformers.utils.hub._is_offline_mode"):
        monkeypatch.setattr(constant, False, raising=False)
    for call in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, call, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _, _, folder = compiled_study
    facts = FactSet.read(folder / "facts.csv")
    study = extract(folder, facts=facts.subset([fact.fact_id for fact in facts][:6]), quick=True, progress=False)
    assert study.table["recalled"].any()


def test_the_driver_counts_what_it_ran(tmp_path):
    pytest.importorskip("atheris")
    run = [sys.executable, str(Path(__file__).parent / "run.py"), "--cases", "60", "--only", "lexicon"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lexicon" in done.stdout and "60 cases, 0 escaped" in done.stdout
