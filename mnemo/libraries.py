"""Calling other people's libraries: quietly, and with their errors in one line."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from mnemo.errors import MnemoError

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quietly() -> Generator[None]:
    """Hush the warnings, logs and progress bars of transformers and transformer-lens; errors still come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging as chatter

        before, bars = logging.root.manager.disable, chatter.is_progress_bar_enabled()
        try:
            logging.disable(max(before, logging.WARNING))
            chatter.disable_progress_bar()
            yield
        finally:
            logging.disable(before)
            if bars:
                chatter.enable_progress_bar()


@contextmanager
def in_one_line(what: str, *, fix: str) -> Generator[None]:
    """Say in one line what a library could not do; its own error stays as the cause."""
    try:
        yield
    except MnemoError:
        raise
    except BaseException as error:
        # Reading a broken file, these libraries raise OSError, ValueError, KeyError, RuntimeError, ...
        if not (isinstance(error, Exception) or _is_panic(error)):
            raise
        raise MnemoError(f"{what} ({first_line(error)}): {fix}") from error


def _is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a library in Rust (tokenizers), which is no `Exception` and has no module."""
    return type(error).__name__ == "PanicException"


@contextmanager
def without_panic_reports() -> Generator[None]:
    """Keep what Rust writes of a panic (a backtrace) off the terminal where the panic comes out as a `MnemoError`.

    Rust writes past Python, to the process's error stream: what else is written there meanwhile follows at the end.
    """
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as held:
        stream = os.dup(2)
        os.dup2(held.fileno(), 2)
        panic = False
        try:
            yield
        except MnemoError as error:
            panic = error.__cause__ is not None and _is_panic(error.__cause__)
            raise
        finally:
            os.dup2(stream, 2)
            os.close(stream)
            if not panic:
                held.seek(0)
                os.write(2, held.read())


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
