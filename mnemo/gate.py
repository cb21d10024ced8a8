"""Which facts does the model recall at all? The others are never judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.patching import ask
from mnemo.prompts import Prompt, question_and_answer

if TYPE_CHECKING:
    from mnemo.model import Model


@dataclass(frozen=True)
class Recalled:
    """The facts of a study as prompts, and what the model says to each.

    Attributes:
        facts, prompts: all facts in order.
        answers: answer tokens; the first one where an answer takes several.
        whole: whether the answer is that one token.
        predicted: the model's first choice.
        probability: of the answer; NaN where the model gives no finite one.
    """

    facts: tuple[Fact, ...]
    prompts: tuple[Prompt, ...]
    answers: Int[Tensor, " fact"]
    whole: Bool[Tensor, " fact"]
    predicted: Int[Tensor, " fact"]
    probability: Float[Tensor, " fact"]

    @property
    def recalled(self) -> Bool[Tensor, " fact"]:
        """Whether the answer is the first choice."""
        return (self.predicted == self.answers) & self.probability.isfinite()

    def only(self, rows: Int[Tensor, " row"]) -> Recalled:
        """Return the same about some of the facts."""
        return Recalled(
            tuple(self.facts[i] for i in rows.tolist()),
            tuple(self.prompts[i] for i in rows.tolist()),
            self.answers[rows],
            self.whole[rows],
            self.predicted[rows],
            self.probability[rows],
        )


def gate(model: Model, task: Task, facts: FactSet) -> Recalled:
    """Ask the model every fact: what it does not recall is never judged.

    Raises:
        InputError: a prompt or an answer cannot be spelled (with the place of the fact or template).
        MnemoError: the model gives no finite probability for any fact.
    """
    asked = [question_and_answer(task, fact, facts=facts, tokenizer=model.tokens) for fact in facts]
    prompts, tokens = tuple(prompt for prompt, _ in asked), [token for _, token in asked]
    answers = torch.tensor([token.id for token in tokens])
    said = ask(model, prompts, answers[:, None])
    if not torch.isfinite(said.logprob).any():
        raise MnemoError(
            f"the model gives no finite probability for any of the {len(asked)} facts: check its weights and dtype"
        )
    return Recalled(
        tuple(facts), prompts, answers, torch.tensor([token.whole for token in tokens]), said.top,
        said.logprob[:, 0].exp(),
    )  # fmt: skip
