"""Text from files cannot steer a terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mnemo.errors import visible
from mnemo.report import plain


def test_codes_of_a_terminal_are_written_out():
    assert visible("\x1b[2J\x07a\x9bb\u202ec\r") == "\\x1b[2J\\x07a\\x9bb\\u202ec\\r"
    assert visible("é ∑ 漢字 ‍👩‍🚀\n") == "é ∑ 漢字 ‍👩‍🚀\n"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_puts_a_code_on_the_console(text):
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor", width=500).print(plain(text), highlight=False)
    assert not set(out.getvalue()) & {chr(c) for c in (*range(10), *range(11, 32), *range(127, 160))}
