"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mnemo.errors import InputError

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary name beside `path`; what is written there takes its place when the block succeeds.

    Works for files and for whole folders. After an error, or an interrupt, `path` is as it was before.

    Raises:
        InputError: the place cannot be written.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            if path.is_dir() and draft.is_dir():
                shutil.rmtree(path)
            os.replace(draft, path)  # refuses to put a file where a folder is
        finally:
            if draft.is_dir():
                shutil.rmtree(draft)
            else:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=path) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, all of it or none.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def is_draft(path: Path) -> bool:
    """Whether `path` is a temporary name of `replacing`: beside a writer that was killed, one may stay behind."""
    return _DRAFT.fullmatch(path.name) is not None


def remove_drafts(path: Path) -> None:
    """Remove what writers of `path` that were killed left half-written; nobody may be writing it now."""
    if not path.parent.is_dir():
        return
    for draft in path.parent.iterdir():
        if is_draft(draft) and draft.name.startswith(f".{path.name}."):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits.

    Raises:
        InputError: it is no file, or cannot be read.
    """
    try:
        if not path.is_file():  # a pipe or a device might never end
            raise InputError("is no file", file=path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=path) from error
