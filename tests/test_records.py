"""Finished parts survive an interruption, and only that of the same run."""

from __future__ import annotations

import pandas as pd
import pytest

from mnemo.errors import InputError
from mnemo.records import Parts


def part(value):
    return pd.DataFrame({"x": [value, float("nan")], "name": ["a", None]})


def test_parts_are_made_once_and_read_back_as_they_were(tmp_path):
    parts = Parts.begin(tmp_path, "hash", resume=False)
    made = parts.get("p", lambda: part(1.5))
    again = Parts.begin(tmp_path, "hash", resume=True).get("p", lambda: pytest.fail("made twice"))
    pd.testing.assert_frame_equal(made, again)


@pytest.mark.parametrize(("inputs", "resume"), [("hash", False), ("another", True)])
def test_parts_of_another_run_are_thrown_away(tmp_path, inputs, resume):
    Parts.begin(tmp_path, "hash", resume=False).get("p", lambda: part(1.0))
    assert Parts.begin(tmp_path, inputs, resume=resume).get("p", lambda: part(2.0))["x"][0] == 2.0


def test_nothing_is_kept_of_a_part_that_failed(tmp_path):
    parts = Parts.begin(tmp_path, "hash", resume=True)
    with pytest.raises(KeyboardInterrupt):
        parts.get("p", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert parts.get("p", lambda: part(3.0))["x"][0] == 3.0


def test_a_folder_that_no_run_made_is_left_alone(tmp_path):
    theirs = tmp_path / ".mnemo-parts"
    theirs.mkdir()
    Parts.begin(tmp_path, "hash", resume=False).end()  # an empty one may be ours
    theirs.mkdir()
    (theirs / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"\.mnemo-parts: holds files but no inputs.txt"):
            Parts.begin(tmp_path, "hash", resume=resume)
    assert (theirs / "notes.txt").read_text() == "mine"


def test_without_a_folder_everything_is_made():
    parts = Parts.begin(None, "hash", resume=True)
    assert parts.get("p", lambda: part(1.0))["x"][0] == 1.0
    parts.end()
