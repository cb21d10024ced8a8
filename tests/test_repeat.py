"""A run can be repeated from what it wrote; and one seed gives one result, however the work is cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mnemo.extraction
import mnemo.intervening
import mnemo.patching
from mnemo.datasets import data_path
from mnemo.errors import MnemoError
from mnemo.extraction import extract
from mnemo.facts import FactSet
from mnemo.model import load
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.repeat import ABSOLUTE, RELATIVE, compare, rerun
from mnemo.study import Study
from mnemo.tracing import trace
from tests.lexicon import PHRASES

ORGANISM = data_path("organism")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config = WorldConfig(seed=5, concepts=8, cues_per_concept=2, decoys=1, idles=1, rotes=2, frees=0)
    world = build_world(config, PHRASES)
    path = tmp_path_factory.mktemp("rerun") / "study"
    model, tokenizer = compile_organism(world)
    write_folder(path, world, model=model, tokenizer=tokenizer, name="compiled")
    return path


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("out")
    study, parts = mnemo.extraction.extract_in_parts(folder, parts_in=path, quick=True, seed=3, progress=False)
    study.write(path, report=False)
    parts.end()
    return path


def test_a_run_that_is_repeated_is_the_same(out):
    found = rerun(out, progress=False)
    assert found.same and "the same: 18 facts" in found.lines[-1]


def test_another_verdict_another_number_and_a_missing_fact_are_named(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    table = pd.read_parquet(copy / "verdicts.parquet")
    table.loc[0, "verdict"] = "unsure"
    table.loc[1, "recall_probability"] += 0.01
    table.loc[2, "recall_probability"] += ABSOLUTE / 10  # of no account
    ids = list(table["fact_id"])
    table.drop(index=4).to_parquet(copy / "verdicts.parquet")
    found = rerun(copy, progress=False)
    assert not found.same
    said = "\n".join(found.lines)
    assert "3 differences:" in said and f"row {ids[4]} is there only now" in said
    assert f"{ids[0]}, verdict: unsure then, " in said and f"{ids[1]}, recall_probability: " in said


def test_inputs_that_changed_since_are_the_difference_and_nothing_is_run(out, folder, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "concepts.txt").write_text("another phrase here\n")
    FactSet.read(moved / "facts.csv").subset(["f000", "f001"]).write(tmp_path / "few.csv")
    monkeypatch.setattr("mnemo.repeat.extract", lambda *_, **__: pytest.fail("run"))
    found = rerun(out, task=moved, facts=tmp_path / "few.csv", progress=False)
    assert not found.same and "facts (hash" in found.lines[0] and "lexicon (hash" in found.lines[0]
    assert "model (hash" not in found.lines[0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "run.json").unlink(), "holds no run.json"),
        (lambda f: (f / "run.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "run.json").write_text("{}"), "not the record of a run"),
        (lambda f: (f / "verdicts.parquet").write_bytes(b"PAR1"), "cannot be read as Parquet"),
        (lambda f: (f / "verdicts.parquet").unlink(), "nothing to compare with"),
        (lambda f: _record(f, kind="magic"), "kind 'magic' cannot be repeated"),
        (lambda f: _record(f, source={"task": None}), "give --task"),
        (lambda f: _record(f, source={"task": str(f), "model": "some/model"}), "task.toml"),
        (lambda f: _record(f, source={"task": "x" * 5000}), r"column 'source.task': 'xx.* is no path that can be used"),
        (lambda f: _record(f, source={"task": str(ORGANISM), "model": "~nobodyx/m"}), "column 'source.model'"),
        (lambda f: _record(f, source={"task": str(ORGANISM), "facts": "y" * 5000}), "column 'source.facts'"),
        (lambda f: _verdicts(f, lambda table: table.drop(columns="fact_id")), "column 'fact_id': there is no such"),
        (lambda f: _verdicts(f, lambda table: table.assign(fact_id=None)), "column 'fact_id': there is no such"),
        (lambda f: _verdicts(f, lambda table: pd.concat([table, table[:1]])), "'f000' stands here twice"),
        (lambda f: _benchmark(f, '{"a.b": 1, "a": {"b": 2}}'), "'a.b' stands here twice"),
        (lambda f: _benchmark(f, "[]"), "metrics.json: expected a JSON object"),
        (lambda f: shutil.rmtree(f), "there is no such folder"),
    ],
)
def test_a_folder_that_holds_no_run_is_one_line_and_nothing_is_run(out, tmp_path, damage, says, monkeypatch):
    monkeypatch.setattr("mnemo.repeat.extract", lambda *_, **__: pytest.fail("run"))
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    damage(copy)
    with pytest.raises(MnemoError, match=says) as caught:
        rerun(copy, progress=False)
    assert len(str(caught.value).splitlines()) == 1


def _record(folder: Path, **changes: object) -> None:
    file = folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _verdicts(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(folder / "verdicts.parquet")).to_parquet(folder / "verdicts.parquet")


def _benchmark(folder: Path, metrics: str) -> None:
    (folder / "metrics.json").write_text(metrics)
    _record(folder, kind="benchmark")


def test_a_hub_model_in_a_file_makes_nothing_be_fetched(out, folder, tmp_path):
    copy, task = tmp_path / "copy", tmp_path / "task.toml"
    shutil.copytree(out, copy)
    task.write_text('name = "x"\nrecall = "decode {cue} is"\nmodel = "some/model"\n')
    shutil.copy(folder / "facts.csv", tmp_path)
    for source in (
        {"task": str(folder), "model": "some/model"},
        {"task": str(folder), "model": "gpt2"},
        {"task": str(task), "model": None},  # which leaves it to the task, and that is a file too
    ):
        _record(copy, source=source)
        with pytest.raises(MnemoError, match=f"give --model {source['model'] or 'some/model'} to fetch it"):
            rerun(copy, progress=False)


def test_a_trace_is_repeated_too(folder, tmp_path):
    cue = FactSet.read(folder / "facts.csv")[0].cue
    trace(folder, cue, model=load(folder, dtype="float64"), top=5, seed=1).write(tmp_path)
    assert rerun(tmp_path).same
    file = tmp_path / "graph.json"
    text = json.loads(file.read_text())
    assert text["dtype"] == "float64"
    file.write_text(json.dumps({name: value for name, value in text.items() if name != "dtype"}))
    assert "changed since the run: model" in rerun(tmp_path).lines[0]  # as it was saved, in float32
    assert text["source"]["task"] == str(folder / "task.toml") and text["command"]
    file.write_text(json.dumps({**text, "nodes": [text["nodes"][0], *text["nodes"]]}))
    with pytest.raises(MnemoError, match=r"graph\.json: '.* -\d+' stands here twice"):
        rerun(tmp_path)
    node = text["nodes"][1]
    node["share"], node["value"] = node["share"] * 2, node["value"] * 2
    file.write_text(json.dumps(text))
    found = rerun(tmp_path)
    assert not found.same and f"{node['component']} {node['position']}, value: " in "\n".join(found.lines)


def test_a_run_in_another_dtype_is_repeated_in_it(folder, tmp_path):
    FactSet.read(folder / "facts.csv").subset([f"f{i:03}" for i in range(6)]).write(tmp_path / "few.csv")
    options = ["--facts", str(tmp_path / "few.csv"), "--quick", "--dtype", "float64", "--device", "cpu"]
    command = [sys.executable, "-m", "mnemo", "extract", str(folder), "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["dtype"] == "float64"
    found = rerun(tmp_path / "out", progress=False)
    assert found.same and "the same: 6 facts" in found.lines[-1]


def test_tables_are_compared_by_key_and_within_the_tolerance():
    before = pd.DataFrame({"k": ["a", "b", "c"], "x": [1.0, 2.0, np.nan], "t": ["u", None, "w"], "old": 0})
    after = pd.DataFrame({"k": ["c", "b", "a"], "x": [np.nan, 2 * (1 + RELATIVE / 2), 1.1], "t": ["w", None, "v"]})
    assert list(compare(before, after, key=["k"])) == [
        "column 'old' is there only then", "a, x: 1.0 then, 1.1 now", "a, t: u then, v now",
    ]  # fmt: skip


# ---- one seed, one result


def test_chunks_change_nothing(folder, out, monkeypatch):
    monkeypatch.setattr(mnemo.intervening, "FACTS_PER_CHUNK", 5)
    _same_as(out, extract(folder, quick=True, seed=3, progress=False))


def test_batches_change_nothing_beyond_rounding(folder, out, monkeypatch):
    monkeypatch.setattr(mnemo.patching, "TOKENS_PER_BATCH", 90)  # some fifteen prompts at a time
    _same_as(out, extract(folder, quick=True, seed=3, progress=False))


def test_another_seed_draws_otherwise(folder, out):
    table = extract(folder, quick=True, seed=4, progress=False).table
    before = pd.read_parquet(out / "verdicts.parquet")
    assert list(compare(before.drop(columns="seconds"), table.drop(columns="seconds"), key=["fact_id"]))


def _same_as(out: Path, study: Study) -> None:
    before = pd.read_parquet(out / "verdicts.parquet").drop(columns="seconds")
    assert not list(compare(before, study.table.drop(columns="seconds"), key=["fact_id"]))
