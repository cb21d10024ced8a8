"""Lets the reference show docstring entries that speak of several names at once.

`sums, counts: per concept, ...` is one entry to a reader and none to the parser, which expects one for each name: the
first name keeps the text, and the others point to it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ENTRY = re.compile(
    r"^(?P<indent> +)(?P<first>\w+)(?P<others>(?:, \w+)+): (?P<text>\S.*(?:\n(?P=indent) +\S.*)*)", flags=re.MULTILINE
)


class SharedNames(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ENTRY.sub(_apart, obj.docstring.value)


def _apart(entry: re.Match[str]) -> str:
    """Give each name an entry of its own."""
    indent, first = entry["indent"], entry["first"]
    others = entry["others"].removeprefix(", ").split(", ")
    return "\n".join([f"{indent}{first}: {entry['text']}", *(f"{indent}{name}: see `{first}`." for name in others)])
