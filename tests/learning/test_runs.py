"""A whole run: it goes on where it stopped, with the same numbers, and says what is wrong in one line."""

from __future__ import annotations

import pandas as pd
import pytest

from mnemo import cli
from mnemo.learning import runs
from mnemo.learning.runs import TABLES, LearnConfig, learn
from mnemo.learning.summary import _at_equal_surprisal, summarised
from mnemo.records import Parts

TINY = LearnConfig(runs=2, taught=4, held=2, alone=1, steps=3, traced=1)


def test_an_interrupted_run_ends_with_the_numbers_of_an_undisturbed_one(base_folder, tmp_path, monkeypatch):
    whole = learn(base_folder, out=tmp_path / "whole", config=TINY, progress=False)
    get, made = Parts.get, []

    def interrupted(self, name, make):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(name)
        return get(self, name, make)

    monkeypatch.setattr(Parts, "get", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(base_folder, out=tmp_path / "twice", config=TINY, progress=False)
    monkeypatch.setattr(Parts, "get", get)
    assert not (tmp_path / "twice" / "summary.csv").exists()
    first = pd.read_parquet(tmp_path / "twice" / ".mnemo-parts" / f"{made[0]}.parquet")
    resumed = learn(base_folder, out=tmp_path / "twice", config=TINY, resume=True, progress=False)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(resumed, name), getattr(whole, name))
    pd.testing.assert_frame_equal(resumed.courses.head(len(first)), first)
    assert (tmp_path / "twice" / "courses.csv").read_bytes() == (tmp_path / "whole" / "courses.csv").read_bytes()
    assert not (tmp_path / "twice" / ".mnemo-parts").exists()

    courses = whole.courses
    assert set(courses["arm"]) == {"coincident", "rote", "free", "impossible"}
    assert (courses["examples_to_recall"] == courses["steps_to_recall"] * courses["batch"]).all()
    assert set(whole.curves["step"]) == {0, 1, 2, 3}
    written = {file.name for file in (tmp_path / "whole").iterdir()}
    assert {"efficiency.png", "emergence.png", "learning.png", "summary.csv", "run.json"} <= written
    assert whole.record["site"]["candidates"]


def test_what_stands_in_the_summary_is_what_the_tables_say():
    rows = [
        {"run": run, "how": "full", "batch": 4, "arm": arm, "fact_id": str(i), "surprisal": 1.0 + i, "recalled": True,
         "steps_to_recall": times * (i + 1), "examples_to_recall": 4 * times * (i + 1), "old": 0.5}
        for run in range(3) for arm, times in (("coincident", 2), ("rote", 6)) for i in range(4)
    ]  # fmt: skip
    curves = pd.DataFrame(
        [{"run": run, "how": "full", "arm": "rote", "step": step, "taught": 1.0, "held": 0.25 * run, "old": 1.0}
         for run in range(3) for step in (0, 3)]
    )  # fmt: skip
    empty = pd.DataFrame()
    summary = summarised({"courses": pd.DataFrame(rows), "curves": curves, "first": empty, "choices": empty})
    found = summary.set_index(["measure", "what"])["value"]
    assert found["times the steps", "rote / coincident"] == pytest.approx(3)
    assert found["times the steps at equal surprisal", "rote / coincident"] == pytest.approx(3)
    assert found["steps to recall", "coincident"] == pytest.approx(5)
    assert found["held out recalled", "rote"] == pytest.approx(0.25)


def test_a_difference_that_surprisal_explains_is_gone_at_equal_surprisal():
    courses = pd.DataFrame(
        {"arm": ["a"] * 4 + ["b"] * 4, "surprisal": [1.0, 2, 3, 4, 3, 4, 5, 6],
         "steps_to_recall": [2, 4, 8, 16, 8, 16, 32, 64]}
    )  # fmt: skip
    assert _at_equal_surprisal(courses, "b", "a") == pytest.approx(0, abs=1e-9)


def test_the_command_says_in_one_line_that_everything_is_known(compiled_study, tmp_path, monkeypatch, capsys):
    _, _, folder = compiled_study
    monkeypatch.setattr("sys.argv", ["mnemo", "learn", str(folder), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("mnemo: the model recalls all") and "Traceback" not in error[-1]


def test_the_command_writes_what_it_says(base_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "QUICK", TINY.model_copy(update={"runs": 1, "hows": ("full",), "traced": 0}))
    monkeypatch.setattr("sys.argv", ["mnemo", "learn", str(base_folder), "--quick", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert "times the steps" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.csv").is_file() and (tmp_path / "out" / "learning.png").is_file()
