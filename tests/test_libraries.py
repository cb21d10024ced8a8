"""Errors of other people's libraries in one line; what is no error of theirs comes through."""

from __future__ import annotations

import os

import pytest
from tokenizers import Regex, pre_tokenizers

from mnemo.errors import MnemoError
from mnemo.libraries import in_one_line, without_panic_reports
from mnemo.tokens import PromptTokenizer
from tests.tiny_models import byte_level_tokenizer


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MnemoError])
def test_what_no_library_means_as_an_error_comes_through(error):
    with pytest.raises(error), without_panic_reports(), in_one_line("no", fix="yes"):
        raise error("mine")


def test_a_panic_in_rust_is_one_line(capfd):
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_tokenizer(["a b"], size=300)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?:a+a+)+b"), "isolated")  # tries every way to cut a row of a
    tokens = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert len(tokens.encode("aab").ids) == 3
    says = r"cannot spell 'a+' \(Onig: .*retry-limit-in-match over\): use"
    with pytest.raises(MnemoError, match=says) as told, without_panic_reports():
        tokens.encode("a" * 40)
    assert "\n" not in str(told.value) and capfd.readouterr().err == ""


def test_what_is_written_to_the_error_stream_meanwhile_is_not_lost(capfd):
    with without_panic_reports():
        os.write(2, b"a warning\n")
    with pytest.raises(MnemoError), without_panic_reports(), in_one_line("no", fix="yes"):
        os.write(2, b"its reason\n")
        raise ValueError
    assert capfd.readouterr().err == "a warning\nits reason\n"
