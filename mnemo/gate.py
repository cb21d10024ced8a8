"""Which facts does the model recall at all? The others are never judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.patching import ask, next_logprobs
from mnemo.prompts import AnswerToken, Prompt, question_and_answer

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
        goes_on: whether the other tokens of an answer are the model's first choices too, each after those before it.
        probability: of the answer token; NaN where the model gives no finite one.
    """

    facts: tuple[Fact, ...]
    prompts: tuple[Prompt, ...]
    answers: Int[Tensor, " fact"]
    whole: Bool[Tensor, " fact"]
    predicted: Int[Tensor, " fact"]
    goes_on: Bool[Tensor, " fact"]
    probability: Float[Tensor, " fact"]

    @property
    def recalled(self) -> Bool[Tensor, " fact"]:
        """Whether the answer, all of it, is the first choice."""
        return (self.predicted == self.answers) & self.goes_on & self.probability.isfinite()

    def only(self, rows: Int[Tensor, " row"]) -> Recalled:
        """Return the same about some of the facts."""
        return Recalled(
            tuple(self.facts[i] for i in rows.tolist()),
            tuple(self.prompts[i] for i in rows.tolist()),
            self.answers[rows],
            self.whole[rows],
            self.predicted[rows],
            self.goes_on[rows],
            self.probability[rows],
        )


def gate(model: Model, task: Task, *, facts: FactSet) -> Recalled:
    """Ask the model every fact: what it does not recall is never judged.

    Raises:
        InputError: a prompt or an answer cannot be spelled (with the place of the fact or template).
        MnemoError: the model gives no finite probability for any fact.
    """
    asked = [question_and_answer(task, fact, facts=facts, tokenizer=model.tokens) for fact in facts]
    prompts, tokens = tuple(prompt for prompt, _ in asked), [token for _, token in asked]
    answers = torch.tensor([token.id for token in tokens])
    said = ask(model, prompts, tokens=answers[:, None])
    if not torch.isfinite(said.logprob).any():
        raise MnemoError(
            f"the model gives no finite probability for any of the {len(asked)} facts: check its weights and dtype"
        )
    return Recalled(
        tuple(facts), prompts, answers, torch.tensor([token.whole for token in tokens]), said.top,
        _goes_on(model, facts, prompts, tokens), said.logprob[:, 0].exp(),
    )  # fmt: skip


def _goes_on(
    model: Model, facts: FactSet, prompts: Sequence[Prompt], answers: Sequence[AnswerToken]
) -> Bool[Tensor, " fact"]:
    """Whether the model chooses every further token of answers that take several."""
    begun: list[Prompt] = []
    wanted: list[tuple[int, int]] = []  # fact and token
    for i, (fact, prompt, answer) in enumerate(zip(facts, prompts, answers, strict=True)):
        if not answer.whole:
            ids = tuple(model.tokens.continuation(prompt.text, fact.answer))
            begun += [replace(prompt, tokens=prompt.tokens + ids[:k]) for k in range(1, len(ids))]
            wanted += [(i, token) for token in ids[1:]]
    goes_on = torch.ones(len(prompts), dtype=torch.bool)
    for rows, said in next_logprobs(model, begun):
        for row, top in zip(rows.tolist(), said.argmax(-1).tolist(), strict=True):
            fact, token = wanted[row]
            goes_on[fact] &= top == token
    return goes_on
