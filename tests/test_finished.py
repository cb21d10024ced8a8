"""A finished run is a study again: the same table, place, states and evidence, or one line that says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mnemo.extraction
import mnemo.intervening
from mnemo.doses import dose_curves
from mnemo.errors import MnemoError
from mnemo.facts import FactSet
from mnemo.repeat import compare
from mnemo.study import Study
from tests.fuzz.cases import UNCHECKED, documents
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
    monkeypatch.setattr(mnemo.extraction, "find_waypoint", lambda *_, **__: pytest.fail("searched"))
    monkeypatch.setattr(mnemo.intervening, "look_at", lambda *_, **__: pytest.fail("judged"))
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
        (lambda f: _verdicts(f, lambda table: table[1:]), "'fact_id': holds other facts than its run"),
        (lambda f: _verdicts(f, lambda table: table.assign(cue=table["cue"][::-1].to_list())), "'cue': holds other fa"),
        (lambda f: _verdicts(f, lambda table: table.assign(answer=None)), "'answer': holds other facts"),
        (lambda f: _verdicts(f, lambda table: table.assign(recalled=_one_missing)), "'recalled': expected true"),
        (lambda f: _verdicts(f, lambda table: table.assign(recalled=False)), "'layer': does not agree with the site"),
        (lambda f: _verdicts(f, lambda table: table.assign(concept=5)), "'concept': expected texts"),
        (lambda f: _verdicts(f, lambda table: table.assign(concept_score="abc")), "'concept_score': expected numbers"),
        (lambda f: _verdicts(f, lambda table: table.assign(tested_layer=1.0)), r"'tested_layer': expected one of \[2"),
        (lambda f: _verdicts(f, lambda table: table.assign(swap_low="abc")), "'swap_low': expected numbers"),
        (lambda f: _verdicts(f, lambda table: table.assign(seconds=[[1]] * len(table))), "column 'seconds' holds list"),
        (lambda f: _verdicts(f, lambda table: table.drop(columns="runner_up")), "'runner_up': there is no such column"),
        (lambda f: _verdicts(f, lambda table: pd.concat([table, table])), r"\d+ rows for at most \d+ facts"),
        (lambda f: _twice(f), "'recalled': there are two columns of this name"),
        (lambda f: _record(f, notes=None), "column 'notes': not the record of a run"),
        (lambda f: _record(f, kind="learn"), "column 'kind': 'learn' judged no facts"),
        (lambda f: _record(f, facts="0" * 64 + "\n"), "column 'facts': not the record of a run"),
        (lambda f: _record(f, quick="no"), "column 'quick': not the record of a run"),
        (lambda f: (f / "sites.csv").write_bytes(b""), r"sites\.csv: cannot be read as a table"),
        (lambda f: (f / "sites.csv").write_text("layer,position\n1,-2\n"), "'share': there is no such column"),
        (lambda f: (f / "sites.csv").write_text("layer,position\n" * 100_000), "at most 1 MB are read"),
        (lambda f: (f / "sites.csv").unlink(), "'layer': does not agree with the site that sites.csv names, if"),
        (lambda f: _sites(f, lambda sites: sites.assign(chosen=True)), "sites are chosen, expected one"),
        (lambda f: _sites(f, lambda sites: sites.assign(chosen=sites["chosen"].to_numpy()[::-1])), "'layer': does not"),
        (lambda f: _sites(f, lambda sites: sites.assign(layer=0)), "'layer': expected whole numbers from 1 to 3"),
        (lambda f: _sites(f, lambda sites: sites.assign(layer=4)), "'layer': expected whole numbers from 1 to 3"),
        (lambda f: _sites(f, lambda sites: sites.assign(layer=sites["layer"] + 0.5)), "'layer': expected whole"),
        (lambda f: _sites(f, lambda sites: sites.assign(position=-99)), "'position': expected whole numbers from -"),
        (lambda f: _sites(f, lambda sites: sites.assign(position="x")), "'position': expected numbers"),
        (lambda f: _sites(f, lambda sites: sites.assign(score="x")), "'score': expected numbers"),
        (lambda f: _sites(f, lambda sites: pd.concat([sites, sites])), "stands here twice"),
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


def _one_missing(table: pd.DataFrame) -> pd.Series:
    return table["recalled"].astype("boolean").mask(table.index == 0)


def _twice(folder: Path) -> None:
    table = pq.read_table(folder / "verdicts.parquet")
    pq.write_table(table.append_column("recalled", table["recalled"]), folder / "verdicts.parquet")


@pytest.mark.parametrize("note", [b"{", b"{}", b"[]", b'{"index_columns":["nope"],"columns":[{"name":1}]}'])
def test_what_pandas_notes_about_a_table_is_not_believed(compiled_study, out, again, tmp_path, note):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    table = pq.read_table(copy / "verdicts.parquet").replace_schema_metadata({b"pandas": note})
    coded = table["fact_id"].dictionary_encode()
    table = table.set_column(0, pa.field("fact_id", coded.type), coded)
    pq.write_table(table, copy / "verdicts.parquet")
    found = Study.read(copy, model=compiled_study[0].model)
    pd.testing.assert_frame_equal(found.table, again.table)


@settings(max_examples=30, suppress_health_check=[*UNCHECKED, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_damaged_value_is_one_line_or_changes_nothing_else(compiled_study, out, again, damaged, data):
    study, _, _ = compiled_study
    name = data.draw(st.sampled_from(["run.json", "verdicts.parquet", "sites.csv"]))
    {"run.json": _damage_record, "verdicts.parquet": _damage_table, "sites.csv": _damage_site}[name](
        out / name, damaged / name, data.draw
    )
    try:
        found = Study.read(damaged, model=study.model)
    except MnemoError as error:
        assert len(str(error).splitlines()) == 1
        return
    finally:
        shutil.copy(out / name, damaged / name)
    assert found.waypoint is not None and again.waypoint is not None
    assert found.waypoint.site == again.waypoint.site and found.waypoint.tried > 0
    assert found.waypoint.swaps_work in (True, False)
    torch.testing.assert_close(found.waypoint.states, again.waypoint.states)
    assert found.recalled_facts() == again.recalled_facts() and found.readings.keys() == again.readings.keys()
    changed = [column for column in again.table if not _same(found.table.get(column), again.table[column])]
    assert len(changed) <= 1 and (not changed or name == "verdicts.parquet")
    for column in set(changed) & set(found.table):
        assert pd.api.types.is_numeric_dtype(found.table[column]) == pd.api.types.is_numeric_dtype(again.table[column])


@pytest.fixture
def damaged(out, tmp_path) -> Path:
    return shutil.copytree(out, tmp_path / "damaged")


def _same(a: pd.Series | None, b: pd.Series) -> bool:
    return a is not None and a.equals(b)


def _damage_record(good: Path, file: Path, draw: Callable[[st.SearchStrategy], Any]) -> None:
    file.write_text(json.dumps(draw(documents(json.loads(good.read_text())))))


def _damage_table(good: Path, file: Path, draw: Callable[[st.SearchStrategy], Any]) -> None:
    """Leave a column out, put one value into every row of it, or another of its kind into one row."""
    table = pq.read_table(good)
    name = draw(st.sampled_from(table.column_names))
    at, values = table.column_names.index(name), table[name].to_pylist()
    match draw(st.integers(0, 4)):
        case 0:
            table = table.drop_columns([name])
        case 1 | 2:
            value = draw(st.sampled_from([None, True, 5, 0.5, "", "abc", "a\nb", b"abc", [1, 2], {"a": 1}]))
            table = table.set_column(at, name, pa.array([value] * len(values)))
        case _:
            kind = type(next((value for value in values if value is not None), 0.0))
            other = {str: st.text(max_size=4), bool: st.booleans(), int: st.integers(-9, 9), float: st.floats()}[kind]
            values[draw(st.integers(0, len(values) - 1))] = draw(st.none() | other)
            table = table.set_column(at, name, pa.array(values, pa.from_numpy_dtype(kind) if kind is not str else None))
    pq.write_table(table, file)


def _damage_site(good: Path, file: Path, draw: Callable[[st.SearchStrategy], Any]) -> None:
    sites = pd.read_csv(good, dtype=str)
    row, column = draw(st.integers(0, len(sites) - 1)), draw(st.sampled_from(list(sites)))
    values = ["x", "", "0", "1", "2.5", "-1", "-2", "99", "inf", "1e999", "9" * 400, "True", "true", '"', "'=1"]
    sites.loc[row, column] = draw(st.sampled_from(values) | st.text(st.characters(codec="utf-8"), max_size=4))
    sites.to_csv(file, index=False)
