"""One fact's evidence from a finished run: it stands where the run stands, and judges nothing again."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mnemo.cli import main
from mnemo.fact_evidence import FILES, FactEvidence
from mnemo.tables import read_csv


def run(monkeypatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["mnemo", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def out(compiled_study, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "out"
    compiled_study[0].write(path, report=False)
    return path


def test_the_command_stands_where_the_run_stands_and_extracts_nothing(compiled_study, out, monkeypatch, capsys):
    study, world, folder = compiled_study
    fact = world.of_kind("mnemonic")[0]
    monkeypatch.setattr("mnemo.study.extract", lambda *_, **__: pytest.fail("extracted"))
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
