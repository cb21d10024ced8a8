"""A spreadsheet runs nothing of what mnemo writes, and mnemo reads back the very text."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnemo
from mnemo.tables import mean_of_known, numbers, read_csv, write_csv

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
nasty = st.tuples(st.sampled_from(["", "'", "''", *FORMULA]), texts).map("".join)


@given(st.lists(nasty, min_size=1, max_size=5), st.floats(-1e6, 1e6))
def test_every_text_is_read_back_and_no_cell_is_a_formula(tmp_path_factory, values, number):
    file = tmp_path_factory.mktemp("t") / "t.csv"
    table = pd.DataFrame({"cue": values, "score": number})
    write_csv(table, file)
    pd.testing.assert_frame_equal(read_csv(file), table.astype({"cue": "str"}), check_dtype=False)
    with file.open(encoding="utf-8", newline="") as lines:
        _, *rows = csv.reader(lines)
    for cue, score in rows:
        assert not cue.startswith(FORMULA) or float(cue) is not None  # what a number says is a number
        assert float(score) == pytest.approx(number)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("+A==", "'+A=="),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("＝1", "'＝1"),  # noqa: RUF001
        ("'=x", "''=x"),
        ("-1", "-1"),
        ("+2.5e3", "+2.5e3"),
        ("VA==", "VA=="),
        ("'tis", "'tis"),
        ("f000", "f000"),
    ],
)
def test_only_what_a_spreadsheet_would_run_is_changed(tmp_path, text, written):
    write_csv(pd.DataFrame({"fact_id": ["f1"], "cue": [text]}), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as lines:
        assert list(csv.reader(lines))[1] == ["f1", written]
    assert read_csv(tmp_path / "t.csv")["cue"].tolist() == [text]


def test_names_of_columns_come_from_files_too(tmp_path):
    table = pd.DataFrame({"fact_id": ["a"], "=cmd()": ["x"]})
    write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().startswith("fact_id,'=cmd()")
    assert list(read_csv(tmp_path / "t.csv").columns) == ["fact_id", "=cmd()"]


@pytest.mark.parametrize("cue", ["+A==", "+A==\r"])
def test_floats_are_spelled_as_asked_and_texts_stay_safe(tmp_path, cue):
    write_csv(pd.DataFrame({"cue": [cue], "score": [1 / 3]}), tmp_path / "t.csv", float_format="%.6g")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as lines:
        assert list(csv.reader(lines)) == [["cue", "score"], [f"'{cue}", "0.333333"]]


def test_no_table_is_written_in_another_way():
    package = Path(mnemo.__file__).parent
    assert [file.name for file in package.rglob("*.py") if ".to_csv(" in file.read_text()] == ["tables.py"]


def test_what_is_missing_stays_missing(tmp_path):
    write_csv(pd.DataFrame({"cue": ["NA", None], "score": [None, 0.5]}), tmp_path / "t.csv")
    read = read_csv(tmp_path / "t.csv")
    assert read["cue"][0] == "NA" and pd.isna(read["cue"][1]) and pd.isna(read["score"][0])


def test_what_a_column_leaves_open_is_no_number_and_counts_in_no_mean():
    table = pd.DataFrame({"share": [0.5, None, 1.0], "recalled": [True, False, True], "none": [None] * 3})
    assert numbers(table, "share", missing=0.0).tolist() == [0.5, 0.0, 1.0]
    assert numbers(table, "recalled").tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(numbers(table, "none")).all() and np.isnan(numbers(table, "unknown")).all()
    assert mean_of_known(numbers(table, "share")) == 0.75
    assert mean_of_known(numbers(table, "none")) is None
