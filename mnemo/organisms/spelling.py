"""The tokenizer of an organism: a closed vocabulary in which text and tokens are one-to-one.

Codes split into characters and padding (``' V' 'A' '=='``), phrases into words (``' value' ' added' ' tax'``).
A token keeps the space before it, so that decoding is plain concatenation and spans are exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnemo.organisms.world import CODE_CHARACTERS, World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, UNKNOWN = "<bos>", "<eos>", "<unk>"

# What one token of a code may be, by the number of tokens that a code takes (WorldConfig.cue_tokens).
_CODE_TOKEN = {
    1: r" ?[A-Za-z0-9+/]{2}==",
    2: r" ?[A-Za-z0-9+/]{2}(?===)|==",
    3: r" ?[A-Za-z0-9+/](?=[A-Za-z0-9+/]?==)|==",
}
_WORD = r" ?[A-Za-z0-9-]+"


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a world, which begins every text with ``<bos>``.

    The vocabulary holds the words of all prompts, phrases, answers and probe values of the world, and, for
    split codes, every code character with and without a space before it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(f"{_CODE_TOKEN[world.config.cue_tokens]}|{_WORD}"), behavior="isolated")
    texts = _all_texts(world)
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    if world.config.cue_tokens == 3:
        pieces |= {space + c for c in CODE_CHARACTERS for space in ("", " ")}
    vocabulary = [BOS, EOS, UNKNOWN, *sorted(pieces)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    # `name_or_path` and `add_bos_token` are what transformer-lens looks for before it calls a hub.
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        pad_token=EOS,
        add_bos_token=True,
        name_or_path="organism",
        clean_up_tokenization_spaces=False,
    )


def _all_texts(world: World) -> list[str]:
    """Every text that the organism is trained on or asked, answers included."""
    ask = world.config.question
    relations = (world.config.decode, world.config.expand, *world.relations)
    texts = []
    for filler in [f.cue for f in world.facts] + [c.phrase for c in world.concepts]:
        texts += [ask(relation, filler) for relation in relations]
    texts += [f" {f.answer}" for f in world.facts]
    for concept in world.concepts:
        texts += [f" {concept.phrase}", *(f" {value}" for value in concept.values.values())]
    return texts
