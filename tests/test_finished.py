"""A finished run is a study again: the same table, place, states and evidence, or one line that says why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import mnemo.study
from mnemo.doses import dose_curves
from mnemo.errors import MnemoError
from mnemo.facts import FactSet
from mnemo.repeat import compare
from mnemo.study import Study
from tests.test_repeat import _record, _verdicts


@pytest.fixture(scope="module")
def out(compiled_study, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "out"
    compiled_study[0].write(path, report=False)
    return path


@pytest.fixture(scope="module")
def again(out) -> Study:
    return Study.read(out)


def test_what_is_read_back_is_what_was_found_and_nothing_is_judged(compiled_study, out, monkeypatch):
    study, _, _ = compiled_study
    monkeypatch.setattr(mnemo.study, "find_waypoint", lambda *_, **__: pytest.fail("searched"))
    monkeypatch.setattr(mnemo.study, "run_trials", lambda *_, **__: pytest.fail("judged"))
    again = Study.read(out)
    assert not list(compare(study.table, again.table, key=["fact_id"]))
    assert again.waypoint is not None
    assert (again.waypoint.site, again.notes, again.record) == (study.waypoint.site, study.notes, study.record)
    assert again.waypoint.swaps_work == study.waypoint.swaps_work and again.waypoint.tried == study.waypoint.tried
    torch.testing.assert_close(again.waypoint.states, study.waypoint.states, atol=1e-5, rtol=1e-5)
    assert {i: c.corrupt_fact.fact_id for i, c in again.contrasts.items()} == {
        i: c.corrupt_fact.fact_id for i, c in study.contrasts.items()
    }
    for fact_id, readings in study.readings.items():
        assert [(r.phrase, r.ratio) for r in again.readings[fact_id]] == [(r.phrase, r.ratio) for r in readings[:2]]


def test_the_curves_of_a_fact_are_those_of_the_run(compiled_study, again):
    study, world, _ = compiled_study
    fact_id = world.of_kind("mnemonic")[0].fact_id
    then, now = (dose_curves(s, fact_id, doses=[1]) for s in (study, again))
    np.testing.assert_allclose(then["p_own"], now["p_own"], atol=1e-5)
    assert then["says"].equals(now["says"])


def test_a_moved_study_folder_is_read_where_it_lies_now(compiled_study, out, tmp_path):
    _, _, folder = compiled_study
    copy, moved = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(out, copy)
    shutil.copytree(folder, moved)
    _record(copy, source={name: str(tmp_path / "gone" / name) for name in ("task", "facts", "model")})
    assert Study.read(copy, task=moved).waypoint is not None
    with pytest.raises(MnemoError, match="gone"):
        Study.read(copy)
    (moved / "concepts.txt").write_text("another phrase here\n")
    facts = FactSet.read(moved / "facts.csv")
    facts.subset([fact.fact_id for fact in facts][1:]).write(moved / "facts.csv")
    with pytest.raises(MnemoError, match=r"no run of these inputs: changed since the run: facts \(hash .*lexicon"):
        Study.read(copy, task=moved)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "run.json").unlink(), "holds no run.json: give the folder that extract"),
        (shutil.rmtree, "there is no such folder"),
        (lambda f: _record(f, seed=-1), "column 'seed': not the record of a run"),
        (lambda f: _record(f, model="0" * 64), r"changed since the run: model \(hash 00000000 then"),
        (lambda f: _verdicts(f, lambda table: table.drop(columns="swap_success")), "'swap_success': there is no such"),
        (
            lambda f: _verdicts(f, lambda table: table.assign(recalled="no")),
            "'recalled': expected true and false",
        ),
        (lambda f: _verdicts(f, lambda table: table[1:]), "holds other facts than its run"),
        (lambda f: (f / "sites.csv").write_bytes(b""), r"sites\.csv: cannot be read as a table"),
        (lambda f: (f / "sites.csv").write_text("layer,position\n1,-2\n"), "'share': there is no such column"),
        (lambda f: _sites(f, lambda sites: sites.assign(chosen=True)), "no single site of a model"),
        (lambda f: _sites(f, lambda sites: sites.assign(layer=99)), "no single site of a model"),
        (lambda f: _sites(f, lambda sites: sites.assign(position="x")), "no single site of a model"),
    ],
)
def test_a_damaged_run_is_one_line(compiled_study, out, tmp_path, damage, says):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    damage(copy)
    with pytest.raises(MnemoError, match=says) as caught:
        Study.read(copy, model=compiled_study[0].model)
    assert len(str(caught.value).splitlines()) == 1


def _sites(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(folder / "sites.csv")).to_csv(folder / "sites.csv", index=False)
