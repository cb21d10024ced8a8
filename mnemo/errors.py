"""What mnemo says when something it was given cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

# Control characters but the line feed, line and paragraph separators, marks of direction, halves of characters.
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class MnemoError(ValueError):
    """A mistake that the user can mend: one line with what was given, what was expected and the fix."""


class InputError(MnemoError):
    """A mistake in a file, with the place where it stands.

    Args:
        problem: what is wrong and how to mend it, in one line.
        file: the file that holds the mistake.
        row: line number in that file as an editor counts it (1 is the first line).
        column: name of the column or key.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        place = [str(file)] if file is not None else []
        place += [f"row {row}"] if row is not None else []
        place += [f"column {column!r}"] if column is not None else []
        super().__init__(f"{', '.join(place)}: {problem}" if place else problem)


def visible(text: str) -> str:
    """`text` with the characters that steer a terminal (escapes, cursor, writing direction) written out."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question to put behind an error, naming the known words that are close; empty where none is."""
    close = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
