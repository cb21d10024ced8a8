"""Spelling text as the tokens of one model, and saying which characters each token spells."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mnemo.errors import MnemoError
from mnemo.libraries import in_one_line

if TYPE_CHECKING:
    import transformers

# After these a human writes the next word without a space.
_OPENING = "([{<«‹“‘„‚¿¡\"'`"  # noqa: RUF001


def shown(text: str, *, limit: int = 60) -> str:
    """`text` as a Python string on one line, its middle left out beyond `limit` characters."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
    return repr(text)


class UnspellableError(MnemoError):
    """Text that a tokenizer cannot represent; `start` and `end` are the characters at fault."""

    def __init__(self, text: str, *, start: int, end: int) -> None:
        self.start, self.end = start, end
        super().__init__(
            f"the tokenizer has no token for {shown(text[start:end])} in {shown(text)}: "
            "use text that it can spell, or another model"
        )


@dataclass(frozen=True)
class Encoding:
    """A text as tokens.

    Attributes:
        ids: token ids, those that the tokenizer puts in front (BOS) included.
        offsets: per token the half-open span of characters it spells; empty where it spells none.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PromptTokenizer:
    """One tokenizer and the one way in which prompts are spelled with it.

    Args:
        hf: a fast transformers tokenizer; a slow one cannot say which characters a token spells.
        bos: None to begin prompts as the tokenizer does, True to make them begin with its BOS token,
            False to leave that token away.
        longest: the most tokens of a prompt that the model reads; None for any number. Texts are spelled whatever
            their length: it is `mnemo.prompts.render` that refuses longer prompts.

    Raises:
        MnemoError: the tokenizer is a slow one, or has no BOS token although `bos` asks for it.
    """

    hf: transformers.PreTrainedTokenizerBase
    bos: bool | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        if not self.hf.is_fast:
            raise MnemoError(
                f"{type(self.hf).__name__} is a slow tokenizer, which cannot say which characters a token "
                "spells: give a fast one, that is one with a tokenizer.json"
            )
        if self.bos and self._id("bos") is None:
            raise MnemoError(
                f"bos=True asks for a BOS token, but {type(self.hf).__name__} defines none: "
                "set its bos_token, or leave bos out"
            )

    def _id(self, role: str) -> int | None:
        """Id of the tokenizer's bos, eos, sep or unk token."""
        return getattr(self.hf, f"{role}_token_id")

    @property
    def _backend(self) -> Any:  # a tokenizers.Tokenizer, which only the fast classes declare
        return self.hf.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def _unknown(self) -> dict[int, str]:
        """Ids that stand for text without a token of its own, and how each is written."""
        # A tokenizer made from parts may know its unk token without having told transformers.
        names = (self.hf.unk_token, getattr(self._backend.model, "unk_token", None))
        ids = {str(name): self._backend.token_to_id(str(name)) for name in names if name is not None}
        return {id_: name for name, id_ in ids.items() if id_ is not None}

    def encode(self, text: str) -> Encoding:
        """Spell `text`: with what the tokenizer puts in front, without what it puts behind (EOS, SEP).

        Raises:
            UnspellableError: a piece of the text has no token; the error names the piece.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UnspellableError(text, start=error.start, end=error.end) from None
        found = self._spelled(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids: list[int] = found["input_ids"]
        added: list[int] = found["special_tokens_mask"]
        body = [i for i, is_added in enumerate(added) if not is_added]
        front = ids[: body[0]] if body else self._without_end(ids)
        if self.bos is not None and (bos := self._id("bos")) is not None:
            front = [bos] * self.bos + [id_ for id_ in front if id_ != bos]

        body_ids = [ids[i] for i in body]
        spans = [tuple(found["offset_mapping"][i]) for i in body]
        self._refuse_lost_text(text, body_ids, spans)
        spans = self._without_prepended_space(text, body_ids, spans)
        return Encoding((*front, *body_ids), (*((0, 0),) * len(front), *spans))

    def _spelled(self, text: str, **options: Any) -> Any:
        # tokenizers raises a plain Exception for a word without an id where no unk token is defined, and panics where
        # a pattern backtracks too far or a template names a token that it does not define.
        what = f"the tokenizer cannot spell {shown(text)}"
        with in_one_line(what, fix="use text that it can spell, mend its tokenizer.json, or give another one"):
            return self.hf(text, **options)

    def _without_end(self, ids: list[int]) -> list[int]:
        """What is put in front, where front and end meet because the text has no tokens."""
        at_end = ids and ids[-1] in (self._id("eos"), self._id("sep")) and ids != [self._id("bos")]
        return ids[:-1] if at_end else ids

    def _refuse_lost_text(self, text: str, ids: list[int], spans: list[tuple[int, int]]) -> None:
        for id_, (start, end) in zip(ids, spans, strict=True):
            # A text may spell the unk token itself: that is a token like any other.
            if id_ in self._unknown and text[start:end].strip() != self._unknown[id_]:
                raise UnspellableError(text, start=start, end=end)
        # Some tokenizers drop what they lack (BPE without unk). A normaliser may rightly take in marks,
        # spaces and control characters; letters, digits, punctuation and symbols carry the text.
        carrying = [i for i, character in enumerate(text) if unicodedata.category(character)[0] in "LNPS"]
        spelled = {i for start, end in spans for i in range(start, end)}
        if lost := [i for i in carrying if i not in spelled]:
            # Behind a dropped character the library's spans slip, so ask for each character alone.
            alone = (i for i in carrying if not self._spelled(text[i], add_special_tokens=False)["input_ids"])
            start = next(alone, lost[0])
            raise UnspellableError(text, start=start, end=start + 1)

    def _without_prepended_space(
        self, text: str, ids: list[int], spans: list[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Give the empty span to a space that the tokenizer itself put before the text.

        The library says that such a token spells the character behind the space, which is the next
        token's. Where token and first character merge ('▁Once') there is nothing to mend.
        """
        mended = list(spans)
        for i, (start, end) in enumerate(spans[:-1]):
            shares = start == spans[i + 1][0] and not text[start:end].isspace()
            if start < end and shares and self.pieces([ids[i]])[0].isspace():
                mended[i] = (start, start)
        return mended

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens are left out and spaces stay as they are."""
        return str(self.hf.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def word(self, id_: int) -> str:
        """One token as text, without white space around it; one that is part of a letter by its bytes (`'\\xe6'`)."""
        text = self.decode([id_]).strip()
        return self.pieces([id_])[0] if "\ufffd" in text else text

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """One readable string per token: `' value'`, `'<s>'`, `'\\n'` for a line break, `'\\xe6'` for a byte.

        A leading space shows wherever the token stands for one, also where decoding a text drops it.
        """
        ids = list(ids)
        names: list[str | None] = self.hf.convert_ids_to_tokens(ids)  # pyright: ignore[reportAssignmentType]
        special, decoder = set(self.hf.all_special_tokens), self._backend.decoder
        pieces = []
        for id_, name in zip(ids, names, strict=True):
            if name is None:  # models pad their vocabulary beyond the tokenizer's
                pieces.append(f"<id {id_}>")
            elif name in special or decoder is None:
                pieces.append(_escaped(name))
            else:
                # Decoders treat the first token of a text apart (they drop its space): 'x' takes that place.
                piece = decoder.decode(["x", name]).removeprefix("x")
                pieces.append(_escaped(_bytes_shown(name) if "\ufffd" in piece else piece))
        return tuple(pieces)

    def continuation(self, text: str, answer: str) -> tuple[int, ...]:
        """Ids with which `answer` continues `text`: with a space between or without.

        Only a spelling that leaves the tokens of `text` as they are can follow it. Of two such the one
        with fewer tokens is taken, of equals the one with the space, or without it where `text` ends in
        white space or an opening quote or bracket. No second space is put behind a space.

        Raises:
            MnemoError: no spelling leaves the tokens of `text` as they are, or the answer has no tokens.
        """
        prompt = self.encode(text).ids
        last = text[-1:]
        spellings = [f"{text} {answer}", text + answer]
        if last == " ":
            spellings = spellings[1:]
        elif last.isspace() or (last and last in _OPENING):
            spellings.reverse()

        found: list[tuple[int, ...]] = []
        reasons: list[str] = []
        for spelling in spellings:
            try:
                ids = self.encode(spelling).ids
            except MnemoError as error:
                reasons.append(str(error))
                continue
            if ids[: len(prompt)] == prompt and len(ids) > len(prompt):
                found.append(ids[len(prompt) :])
            else:
                reasons.append(self._how_it_ends(spelling, ids, prompt))
        if found:
            return min(found, key=len)
        advice = "take the space off the end of the prompt; " if last == " " else ""
        raise MnemoError(
            f"the answer {shown(answer)} cannot follow the prompt {shown(text)}, whose last token is "
            f"{''.join(self.pieces(prompt[-1:]))!r}: {advice}{'; '.join(reasons)}"
        )

    def _how_it_ends(self, spelling: str, ids: tuple[int, ...], prompt: tuple[int, ...]) -> str:
        if ids == prompt:
            return f"{shown(spelling)} has the same tokens as the prompt"
        pairs = zip(ids, prompt, strict=False)
        start = next((i for i, (here, there) in enumerate(pairs) if here != there), len(ids))
        return f"{shown(spelling)} ends in the tokens {list(self.pieces(ids[start:]))}"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bytes_shown(name: str) -> str:
    """A token that is no whole character, with its stray bytes as escapes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    if not all(character in byte_of for character in name):
        return name
    return bytes(byte_of[character] for character in name).decode("utf-8", "backslashreplace")
