"""Real tokenizers of every family that spells text in its own way, each small enough to check by eye."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mnemo.errors import MnemoError
from mnemo.tokens import PromptTokenizer, UnspellableError
from tests.tiny_models import byte_level_tokenizer, word_level_tokenizer

CORPUS = ["decode VA== is T", "value added tax", "She said it is a value", "tax tax VA==== ==", " ? ? !"] * 4
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def wrap(tokenizer: Tokenizer, **special: str | bool) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def framed(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """With <s> put in front and </s> behind, as Llama- and BERT-like tokenizers do."""
    ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def _trained() -> str:
    return byte_level_tokenizer(CORPUS, size=310, special=["<end>"]).to_str()


def byte_tokenizer() -> Tokenizer:
    """One of our own, to be changed as a test likes."""
    return Tokenizer.from_str(_trained())


@cache
def byte_level() -> PromptTokenizer:
    return PromptTokenizer(wrap(byte_tokenizer(), bos_token="<end>", eos_token="<end>", unk_token="<end>"))


@cache
def words() -> PromptTokenizer:
    names = ["<unk>", "<s>", "</s>", "decode", "VA==", "is", "value", "T", "a"]
    return PromptTokenizer(framed(word_level_tokenizer(names)))


@cache
def literal_spaces() -> PromptTokenizer:
    """Tokens that hold their space themselves; codes are split into characters and padding."""
    names = ["<unk>", "<s>", "</s>", "decode", " V", "A", "==", " is", " value", " added", " T", " S", "S"]
    return PromptTokenizer(framed(word_level_tokenizer(names, codes=True)))


@cache
def metaspace() -> PromptTokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, show_progress=False, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PromptTokenizer(framed(tokenizer))


@cache
def sentencepiece() -> PromptTokenizer:
    """As Llama 2: the space is put in front by a normaliser, and bytes stand in for unknown characters."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    names = ["<unk>", "<s>", "</s>", *bytes_, *"▁OncelikdéTS", "▁T", "▁S", "▁O", "on", "▁On", "ce", "▁Once"]
    merges = [("▁", "T"), ("▁", "S"), ("▁", "O"), ("▁O", "n"), ("c", "e"), ("▁On", "ce")]
    model = models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PromptTokenizer(framed(tokenizer))


FAMILIES = [byte_level, words, literal_spaces, metaspace, sentencepiece]


def spelled(tokenizer: PromptTokenizer, text: str) -> list[str]:
    return [text[start:end] for start, end in tokenizer.encode(text).offsets]


# --------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize(
    ("family", "text", "pieces"),
    [
        (byte_level, "decode VA== is", ("decode", " VA", "==", " is")),
        (words, "decode VA== is", ("<s>", "decode", "VA==", "is")),
        (literal_spaces, "decode VA== is", ("<s>", "decode", " V", "A", "==", " is")),
        (metaspace, "decode is", ("<s>", " ", "de", "c", "o", "de", " i", "s")),
        (sentencepiece, "Once é T", ("<s>", " Once", " ", "é", " T")),
    ],
)
def test_front_token_stays_and_end_token_goes(family, text, pieces):
    tokenizer = family()
    encoding = tokenizer.encode(text)
    assert tokenizer.pieces(encoding.ids) == pieces
    assert tokenizer.decode(encoding.ids) == text
    front = 1 if pieces[0] == "<s>" else 0
    assert encoding.offsets[:front] == ((0, 0),) * front
    # Every character but the spaces between words is spelled by some token, each in its place.
    covered = {i for start, end in encoding.offsets for i in range(start, end)}
    assert {i for i, c in enumerate(text) if c != " "} <= covered


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_bos_can_be_forced_or_forbidden(family):
    hf = family().hf
    text = "T" if family is words else " T"
    own = PromptTokenizer(hf).encode(text).ids
    assert own[0] == hf.bos_token_id
    assert PromptTokenizer(hf, bos=True).encode(text).ids == own
    assert PromptTokenizer(hf, bos=False).encode(text).ids == own[1:]


def test_bos_is_put_in_front_where_the_tokenizer_has_no_habit():
    hf = byte_level().hf
    plain = PromptTokenizer(hf).encode("a T")
    forced = PromptTokenizer(hf, bos=True).encode("a T")
    assert forced.ids == (hf.bos_token_id, *plain.ids)
    assert forced.offsets == ((0, 0), *plain.offsets)
    assert PromptTokenizer(hf, bos=False).encode("a T") == plain


def test_special_tokens_that_the_text_itself_holds_stay():
    tokenizer = words()
    assert tokenizer.pieces(tokenizer.encode("is </s> T </s>").ids) == ("<s>", "is", "</s>", "T", "</s>")
    assert tokenizer.pieces(tokenizer.encode("is <unk> T").ids) == ("<s>", "is", "<unk>", "T")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_text_is_the_front_alone(family):
    tokenizer = family()
    assert tokenizer.pieces(tokenizer.encode("").ids) == (() if family is byte_level else ("<s>",))


def test_a_front_token_that_is_the_end_token_too_stays():
    tokenizer = byte_tokenizer()
    end = [("<end>", tokenizer.token_to_id("<end>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=end)
    prompts = PromptTokenizer(wrap(tokenizer, bos_token="<end>", eos_token="<end>"))
    assert prompts.pieces(prompts.encode("").ids) == ("<end>",)
    assert prompts.pieces(prompts.encode(" T").ids) == ("<end>", " T")


@pytest.mark.parametrize(("family", "text"), [(sentencepiece, "é T"), (metaspace, "value")])
def test_a_space_that_the_tokenizer_adds_spells_nothing(family, text):
    tokenizer = family()
    encoding = tokenizer.encode(text)
    assert tokenizer.pieces(encoding.ids)[1] == " "
    assert encoding.offsets[1] == (0, 0)
    assert encoding.offsets[2] == (0, 1)


def test_saved_truncation_and_padding_do_not_change_a_prompt():
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    hf = wrap(tokenizer, pad_token="<end>")
    hf.model_max_length = 2
    text = "decode VA== is"
    assert PromptTokenizer(hf).encode(text) == byte_level().encode(text)


@given(TEXTS)
def test_bytes_spell_every_text(text):
    tokenizer = byte_level()
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text.replace("<end>", "")
    assert {i for start, end in encoding.offsets for i in range(start, end)} == set(range(len(text)))


@given(TEXTS)
def test_byte_fallback_spells_every_text(text):
    tokenizer = sentencepiece()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text.replace("▁", " ")


@pytest.mark.parametrize(
    ("family", "text", "piece"),
    [
        (words, "decode WA== is", "WA=="),
        (literal_spaces, "decode WA== is", " W"),
        (metaspace, "value 日本 tax", "日本"),
    ],
)
def test_text_without_a_token_is_named(family, text, piece):
    with pytest.raises(UnspellableError) as caught:
        family().encode(text)
    assert text[caught.value.start : caught.value.end] == piece
    assert repr(piece) in str(caught.value) and "\n" not in str(caught.value)


def test_text_that_a_tokenizer_drops_without_a_word_is_named():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    assert tokenizer.encode("aéb").tokens == ["a", "b"]
    with pytest.raises(UnspellableError, match="no token for 'é' in 'aéb'"):
        PromptTokenizer(wrap(tokenizer)).encode("aéb")


def test_text_that_the_library_refuses_is_named():
    bare = PromptTokenizer(wrap(Tokenizer(models.WordLevel({"a": 0}))))
    with pytest.raises(MnemoError, match="cannot spell 'b'"):
        bare.encode("b")
    with pytest.raises(UnspellableError, match=r"no token for '\\ud800'"):
        byte_level().encode("half a \ud800 character")


def test_an_unknown_token_that_only_the_parts_know_is_found():
    model = models.WordLevel({"a": 0, "[?]": 1}, unk_token="[?]")
    undeclared = wrap(Tokenizer(model))
    assert undeclared.unk_token is None
    with pytest.raises(UnspellableError, match="no token for 'b'"):
        PromptTokenizer(undeclared).encode("b")


def test_marks_that_a_normaliser_composes_are_not_lost():
    tokenizer = byte_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    composed = PromptTokenizer(wrap(tokenizer))
    assert composed.encode("e\u0301").ids == composed.encode("é").ids


def test_slow_tokenizers_and_a_missing_bos_are_refused():
    with pytest.raises(MnemoError, match="ByT5Tokenizer is a slow tokenizer"):
        PromptTokenizer(ByT5Tokenizer())
    with pytest.raises(MnemoError, match="bos=True asks for a BOS token"):
        PromptTokenizer(wrap(Tokenizer(models.BPE({"a": 0}, []))), bos=True)


def test_decoding_keeps_spaces_before_punctuation():
    tokenizer = Tokenizer(models.WordLevel({"tax": 0, "?": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    prompts = PromptTokenizer(wrap(tokenizer, clean_up_tokenization_spaces=True))
    assert prompts.decode(prompts.encode("tax ?").ids) == "tax ?"


# --------------------------------------------------------------------------------------------- pieces


def test_pieces_show_what_cannot_be_seen():
    plain = byte_level()
    assert plain.pieces(plain.encode("a\n\té value<end>").ids) == (
        *("a", "\\n", "\\t", "\\xc3", "\\xa9", " value", "<end>"),
    )
    fallback = sentencepiece()
    assert fallback.pieces(fallback.encode("T\n日").ids) == (*("<s>", " T", "\\n", "<0xE6>", "<0x97>", "<0xA5>"),)


def test_words_of_letters_that_take_several_tokens_are_told_apart():
    """The first bytes of these letters are no text by themselves, and both would read as the same sign."""
    tokenizer = byte_level()
    first = [tokenizer.encode(letter).ids for letter in ("東", "巴")]
    words = [tokenizer.word(next(id_ for id_ in ids if "\ufffd" in tokenizer.decode([id_]))) for ids in first]
    assert words[0] != words[1] and all(word.startswith("\\x") for word in words)
    (answer,) = (id_ for id_ in tokenizer.encode("T").ids if tokenizer.decode([id_]) == "T")
    assert tokenizer.word(answer) == "T"


def test_an_id_that_no_token_has_is_shown_as_one():
    # Models pad their vocabulary to a round number, so a lens can come up with such an id.
    assert byte_level().pieces([5000]) == ("<id 5000>",)


@given(TEXTS.filter(str.isascii))
def test_pieces_of_ascii_text_join_to_the_text(text):
    tokenizer = byte_level()
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert "".join(tokenizer.pieces(tokenizer.encode(text).ids)) == escaped


# --------------------------------------------------------------------------------------- continuation


@pytest.mark.parametrize(
    ("family", "text", "answer", "pieces"),
    [
        (byte_level, "decode VA== is", "T", (" T",)),
        (words, "decode VA== is", "T", ("T",)),
        (literal_spaces, "decode VA== is", "T", (" T",)),
        (literal_spaces, "decode VA== is", "value added", (" value", " added")),
        (metaspace, "decode", "is", (" i", "s")),
        (sentencepiece, "Once", "T", (" T",)),
        # One token fewer without a space, which has a token of its own here.
        (sentencepiece, "Once", "é", ("é",)),
        # An opening quote or bracket, a line break: the answer follows at once.
        (byte_level, 'She said "', "T", ("T",)),
        (byte_level, "She said (", "T", ("T",)),
        (byte_level, "decode VA==\n", "T", ("T",)),
        # The answer brings its space along, or is one.
        (byte_level, "decode VA== is", " T", (" T",)),
        (byte_level, "decode VA== is", " ", (" ",)),
        # Glued to the prompt it would change the prompt's last token, '==' to '===='.
        (byte_level, "VA==", "==", (" ==",)),
    ],
)
def test_answers_continue_their_prompt(family, text, answer, pieces):
    tokenizer = family()
    assert tokenizer.pieces(tokenizer.continuation(text, answer)) == pieces


def test_glued_pads_would_change_the_prompt():
    """The premise of the last case above."""
    tokenizer = byte_level()
    assert tokenizer.pieces(tokenizer.encode("VA==").ids)[-1] == "=="
    assert tokenizer.pieces(tokenizer.encode("VA====").ids)[-1] == "===="


def test_a_prompt_that_ends_in_a_space_says_so():
    with pytest.raises(MnemoError, match="take the space off the end of the prompt") as caught:
        byte_level().continuation("decode VA== is ", "T")
    assert "ends in the tokens [' T']" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "answer", "reason"),
    [(words, " ", "has the same tokens as the prompt"), (words, "Q", "no token for 'Q'")],
)
def test_an_answer_that_cannot_follow_says_why(family, answer, reason):
    with pytest.raises(MnemoError, match=reason) as caught:
        family().continuation("decode VA== is", answer)
    assert "\n" not in str(caught.value)


@given(TEXTS, TEXTS.filter(bool))
def test_a_continuation_leaves_the_prompt_as_it_is(text, answer):
    tokenizer = byte_level()
    try:
        ids = tokenizer.continuation(text, answer)
    except MnemoError as error:
        assert "cannot follow the prompt" in str(error)
        return
    whole = (*tokenizer.encode(text).ids, *ids)
    spellings = [tokenizer.encode(spelling).ids for spelling in (text + answer, f"{text} {answer}")]
    assert ids and whole in spellings
