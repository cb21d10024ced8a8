"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mnemo.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
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
