"""Records that people write as TOML: task.toml and sweep.toml. Every mistake has the row of its key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

from mnemo.checked import Name, Record, RefusedError
from mnemo.errors import InputError
from mnemo.textfiles import read_text, row_after
from mnemo.tokens import shown

MAX_BYTES = 2**20
_LONGEST_NAME, _LONGEST_PATH = 255, 2000  # bytes; file systems take no longer names, and most four thousand in all
R = TypeVar("R", bound=Record)


def _inside(value: str) -> str:
    """A path that stays in its folder, by its text (links are the folder owner's own affair)."""
    path = PureWindowsPath(value)  # knows both separators, drives and shares
    if path.anchor or ".." in path.parts:
        raise ValueError(
            f"{value!r} leaves the study folder: give a path relative to it and without '..', "
            "or the file itself where a command takes one"
        )
    if len(value.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in path.parts):
        raise ValueError(f"{shown(value)} is longer than a path can be")
    return value


Inside = Annotated[Name, AfterValidator(_inside)]


def read_record(kind: type[R], file: Path) -> R:
    """Read a TOML file as a record, which is told the folder that holds it as `folder`.

    Raises:
        InputError: with file, row and key: no such file, larger than 1 MB, not TOML, or a key that the record refuses.
    """
    text = read_text(file, most=MAX_BYTES)
    values = _parsed(text, file)
    try:
        if "folder" in values:
            raise RefusedError("no such key: the folder is the one that holds the file", "folder")
        return kind(**values, folder=file.parent)
    except RefusedError as error:
        key = re.search(rf"^[ \t\[]*{re.escape(error.column or '')}[ \t]*[]=.]", text, re.MULTILINE)
        row = row_after(text[: key.start()]) if error.column and key else None
        raise InputError(error.problem, file=file, row=row, column=error.column) from None


def _parsed(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError("not TOML that is needed here: brackets nested too deep", file=file) from None
    except ValueError as error:  # TOMLDecodeError, and the integers that Python finds too long
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        raise InputError(
            f'not TOML: {error}: a text goes in double quotes, as in recall = "decode {{cue}} is"',
            file=file,
            row=int(place[1]) if place else None,
        ) from None
