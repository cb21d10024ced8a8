"""Contrastive pairs of prompts, and the steering vector that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.patching import read_stream_at_span
from mnemo.prompts import Prompt, render
from mnemo.tokens import shown

if TYPE_CHECKING:
    from mnemo.model import Model


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of one length: one that evokes what is steered towards, one that evokes something else.

    Attributes:
        positive: the prompt steered towards.
        negative: the prompt steered away from, with as many tokens, so that states are compared place by place.

    Raises:
        MnemoError: the prompts differ in length.
    """

    positive: Prompt
    negative: Prompt

    def __post_init__(self) -> None:
        if len(self.positive) != len(self.negative):
            raise MnemoError(
                f"a contrastive pair needs prompts of equal length: {shown(self.positive.text)} has "
                f"{len(self.positive)} tokens and {shown(self.negative.text)} has {len(self.negative)}; reword one"
            )


def text_pair(model: Model, positive: str, *, negative: str) -> PromptPair:
    """Make a pair of any two texts; their states are compared at the last token.

    Raises:
        MnemoError: the texts differ in length, or the tokenizer cannot spell one.
    """

    def prompt(text: str) -> Prompt:
        ids = model.tokens.encode(text).ids
        return Prompt(text, ids, (len(ids) - 1, len(ids)))

    return PromptPair(prompt(positive), prompt(negative))


def concept_pairs(model: Model, template: str, *, concept: str, others: Sequence[str]) -> list[PromptPair]:
    """Pair the prompt about a concept with that about each of some others.

    Args:
        model: the model.
        template: text with {concept}, such as a task's `concept_recall`.
        concept: what is steered towards.
        others: what it is contrasted with; the concept itself among them is passed over.

    Raises:
        MnemoError: no other concept is given, or one has another length than the concept.
    """
    positive = render(template, concept, tokenizer=model.tokens)
    pairs = [
        PromptPair(positive, render(template, other, tokenizer=model.tokens)) for other in others if other != concept
    ]
    if not pairs:
        raise MnemoError(f"nothing to contrast {shown(concept)} with: give at least one other concept")
    return pairs


def steering_vector(model: Model, pairs: Sequence[PromptPair], *, layer: int) -> Float[Tensor, " d"]:
    """Return the mean difference of the pairs' states after `layer` blocks, each at the last token of its span.

    (Contrastive activation addition: Rimsky et al. 2024, section 3; one pair: Turner et al. 2023.)

    Raises:
        MnemoError: there are no pairs.
    """
    if not pairs:
        raise MnemoError("no contrastive pairs given: a steering vector needs at least one")
    positive = read_stream_at_span(model, [pair.positive for pair in pairs], layer=layer)
    return (positive - read_stream_at_span(model, [pair.negative for pair in pairs], layer=layer)).mean(0)
