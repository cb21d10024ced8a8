"""One fact's evidence from a finished run: it stands where the run stands, and judges nothing again."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

import mnemo.model
from mnemo.cli import main
from mnemo.errors import InputError
from mnemo.fact_evidence import FILES, FactEvidence
from mnemo.records import run_record
from mnemo.tables import read_csv


def mnemo_with(monkeypatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["mnemo", *map(str, arguments)])
    main()


def run(monkeypatch, *arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        mnemo_with(monkeypatch, *arguments)
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def out(compiled_study, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "out"
    compiled_study[0].write(path, report=False)
    return path


def test_the_command_stands_where_the_run_stands_and_extracts_nothing(compiled_study, out, monkeypatch, capsys):
    study, world, folder = compiled_study
    fact = world.of_kind("mnemonic")[0]
    monkeypatch.setattr("mnemo.extraction.extract", lambda *_, **__: pytest.fail("extracted"))
    assert run(monkeypatch, "trace", folder, "--cue", fact.cue, "--run", out, "--top", "3") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"after block {study.waypoint.site.layer}," in said and "by the quick run in" in said
    assert "verdict there: mnemonic" in said and "Jacobian lens" in said and "whole state" in said
    written = out / "trace"
    assert {file.name for file in written.iterdir()} > set(FILES)
    place = json.loads((written / "evidence.json").read_text())
    assert place["site"] == {"layer": study.waypoint.site.layer, "position": study.waypoint.site.position}
    assert place["run"]["inputs"] == study.record["inputs"] and place["notes"] == []
    messages = read_csv(written / "messages.csv")
    assert messages["writer"][0] == "whole state" and messages["concept"][0] == fact.concept.phrase


def test_a_run_of_other_inputs_is_refused_in_one_line(compiled_study, out, tmp_path, monkeypatch, capsys):
    _, world, folder = compiled_study
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "concepts.txt").write_text("another phrase here\n")
    assert run(monkeypatch, "trace", moved, "--cue", world.facts[0].cue, "--run", out) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "is no run of these inputs: changed since the run: lexicon (hash" in said.err


def test_a_run_with_a_model_and_dtype_of_its_own_is_read_on_any_device(compiled_study, tmp_path, monkeypatch, capsys):
    study, world, folder = compiled_study
    other = tmp_path / "other"
    shutil.copytree(folder / "model", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: weight + 1e-2 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    model = mnemo.model.load(other, dtype="bfloat16", device="cpu")
    facts = study.task.load_facts()
    record = run_record(study.task, model, facts=facts, kind="extract", seed=0, quick=True, edit=False)
    replace(study, model=model, record=record).write(tmp_path / "out", report=False)
    monkeypatch.setattr("mnemo.tracing.trace", lambda *_, model, **__: pytest.fail(f"read, {model.dtype_name}"))
    asked = ("trace", folder, "--cue", world.facts[0].cue, "--run", tmp_path / "out")
    for options in ((), ("--device", "cpu"), ("--dtype", "bfloat16"), ("--model", other)):
        with pytest.raises(pytest.fail.Exception, match="read, bfloat16"):
            mnemo_with(monkeypatch, *asked, *options)
    for options in (("--dtype", "float32"), ("--model", folder)):
        assert run(monkeypatch, *asked, *options) == 2
        assert "changed since the run: model (hash" in capsys.readouterr().err


def test_a_trace_alone_leaves_no_evidence_of_an_earlier_fact(compiled_study, out, tmp_path, monkeypatch, capsys):
    _, world, folder = compiled_study
    for name in FILES:
        (tmp_path / name).write_text("of another fact")
    asked = ("trace", folder, "--cue", world.facts[0].cue, "--run", out, "--top", "3", "--out", tmp_path)
    assert run(monkeypatch, *asked, "--no-evidence") == 0
    assert "graph.json" in capsys.readouterr().out.replace("\n", "")  # a line may break anywhere in a path
    left = {file.name for file in tmp_path.iterdir()}
    assert "graph.json" in left and not left & set(FILES)


def test_the_seed_is_that_of_the_study_if_none_is_given(compiled_study, monkeypatch):
    study, _, _ = compiled_study
    monkeypatch.setattr("mnemo.fact_evidence.compare_readers", lambda *_, seed: pd.DataFrame({"seed": [seed]}))
    blind = replace(study, waypoint=None, record={**study.record, "seed": 5})
    for options, seed in (({}, 5), ({"seed": 7}, 7)):
        found = FactEvidence.of(blind, study.table["fact_id"][0], **options)
        assert list(found.tables["readings"]["seed"]) == [seed]


def test_a_folder_may_be_a_text_and_a_file_is_refused_in_one_line(compiled_study, tmp_path):
    study, _, _ = compiled_study
    found = FactEvidence.of(replace(study, waypoint=None), study.table["fact_id"][0])
    found.write(str(tmp_path / "new"))
    file = tmp_path / "new" / "evidence.json"
    assert file.is_file()
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\)"):
        found.write(file)


def test_what_cannot_be_had_costs_nothing_but_itself_and_old_files_go(compiled_study, tmp_path):
    study, _, _ = compiled_study
    fact_id = study.table["fact_id"][0]
    blind = replace(study, waypoint=None)
    (tmp_path / "doses.csv").write_text("of another fact")
    found = FactEvidence.of(blind, fact_id)
    assert found.tables == {} and {note.split(":")[0] for note in found.notes} == {
        "no readings", "no messages", "no doses",
    }  # fmt: skip
    found.write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["evidence.json"]
    assert json.loads((tmp_path / "evidence.json").read_text())["site"] is None
