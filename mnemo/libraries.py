"""Calling other people's libraries: quietly, and with their errors in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from mnemo.errors import MnemoError


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
    except Exception as error:
        # Reading a broken file, these libraries raise OSError, ValueError, KeyError, RuntimeError, ...
        raise MnemoError(f"{what} ({first_line(error)}): {fix}") from error


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
