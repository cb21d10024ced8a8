"""Nobody sees half a file."""

from __future__ import annotations

import pytest

from mnemo.errors import InputError
from mnemo.files import remove_drafts, replacing, write_text


def test_a_failed_write_leaves_what_was_there_and_no_trace(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "before")
    with pytest.raises(ZeroDivisionError), replacing(file) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_folders_are_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("x")
    with replacing(folder) as draft:
        draft.mkdir()
        (draft / "new").write_text("y")
        assert (folder / "old").exists()
    assert [f.name for f in folder.iterdir()] == ["new"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "x")


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "folder", "y")
    assert (tmp_path / "folder" / "kept").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]


def test_only_what_killed_writers_of_a_path_left_is_removed(tmp_path):
    mine = [tmp_path / name for name in ("runs.csv", ".notes.tmp", ".runs.csv.old.tmp", f".other.csv.{'0' * 32}.tmp")]
    left = [tmp_path / f".runs.csv.{'0' * 32}.tmp", tmp_path / f".runs.csv.{'a' * 32}.tmp" / "part"]
    for file in (*mine, *left):
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    remove_drafts(tmp_path / "runs.csv")
    remove_drafts(tmp_path / "nowhere" / "runs.csv")
    assert sorted(tmp_path.iterdir()) == sorted(mine)
