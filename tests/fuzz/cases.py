"""Cases that are nearly right: texts with something changed, and documents with a value replaced."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck
from hypothesis import strategies as st

UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)

_SPECIAL = (
    *("\0", "\r", "\n", "\t", "\ufeff", "\u202e", "\x1b[2J", "\U0001d518", "\\ud800"),
    *('"', "'", '"""', ",", "=", "#", "[", "]", "{", "}", "{cue}", "{concept}", "..", "/", "\\"),
    *("<script>", "=1+1", "1e999", "-0", "9" * 400, "nan", "true", "null"),
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(_SPECIAL)
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def texts_near(draw: Any, examples: tuple[str, ...]) -> bytes:
    """One of the examples with up to four pieces put in, taken out or doubled; now and then no text at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    text = draw(st.sampled_from(examples))
    for _ in range(draw(st.integers(0, 4))):
        a, b = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        middle = draw(st.sampled_from(_SPECIAL) | st.text(max_size=5) | st.just(text[a:b] * 2) | st.just(""))
        text = text[:a] + middle + (text[b:] if draw(st.booleans()) else text[a:])
    return text.encode("utf-8", "surrogatepass")


@st.composite
def documents(draw: Any, document: dict[str, Any]) -> Any:
    """The document with up to three of its values replaced, left out or given another name.

    In every second one all values stay of their type: most of those are taken, and go on behind the parser.
    """
    typed = draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        document = _changed(draw, document, typed=typed)
    return document


def _alike(value: Any) -> st.SearchStrategy[Any]:
    """Other values of the same type; bool before int, which it is one of."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(-2, 9) | st.integers()
    if isinstance(value, float):
        return st.floats(-2, 2) | st.floats()
    if isinstance(value, str):
        return st.text(max_size=8) | st.sampled_from(_SPECIAL) | st.just(value + value) | st.just(value[:-1])
    return VALUES if value is None else st.just(value)


def _changed(draw: Any, value: Any, *, typed: bool) -> Any:
    deeper = isinstance(value, dict | list) and len(value) > 0 and (typed or draw(st.integers(0, 5)) > 0)
    if not deeper:
        return draw(_alike(value) if typed else VALUES)
    if isinstance(value, list):
        i = draw(st.integers(0, len(value) - 1))
        return [
            *value[:i],
            *([_changed(draw, value[i], typed=typed)] * draw(st.integers(int(typed), 2))),
            *value[i + 1 :],
        ]
    key = draw(st.sampled_from(sorted(value, key=str)))
    rest = {name: inner for name, inner in value.items() if name != key}
    match draw(st.integers(2 * typed, 9)):
        case 0:
            return rest
        case 1:
            return {**rest, draw(st.text(max_size=6)): value[key]}
        case _:
            return {**rest, key: _changed(draw, value[key], typed=typed)}
