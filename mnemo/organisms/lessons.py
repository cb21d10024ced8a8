"""The world as tensors: every question as token ids, and what a trained organism should answer.

All prompts about codes have one length and one *site* (the code's last token), and so have all prompts about
phrases, so the interventions of training need no padding or search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mnemo.organisms.world import Concept, World

IGNORED = -100  # torch's label for positions without a target


@dataclass(frozen=True)
class Questions:
    """One question per relation and filler, all of one length.

    Attributes:
        tokens: prompt ids; relation 0 is ``decode``, then the probes, last ``expand``.
        site: position of the filler's last token.
    """

    tokens: Int[Tensor, "relation filler position"]
    site: int

    @property
    def length(self) -> int:
        """Tokens per prompt."""
        return self.tokens.shape[-1]


@dataclass(frozen=True)
class Lessons:
    """Everything that training and measurement ask, as tensors.

    Attributes:
        world: what is taught.
        tokenizer: how it is spelled.
        cues: questions about the codes, in the order of ``world.facts``.
        phrases: questions about the concepts, in the order of ``world.concepts``.
        concept_of: index of the concept that each fact's cue evokes, -1 for none.
        fact_answers: the token that each fact's ``decode`` question is answered with.
        concept_answers: the answer of each concept for ``decode`` and for every probe.
        spelled: ids of each phrase as a continuation, followed by the end token.
    """

    world: World
    tokenizer: PreTrainedTokenizerFast
    cues: Questions
    phrases: Questions
    concept_of: Int[Tensor, " fact"]
    fact_answers: Int[Tensor, " fact"]
    concept_answers: Int[Tensor, "relation concept"]
    spelled: Int[Tensor, "concept word"]

    @property
    def n_asked(self) -> int:
        """Relations with a one-token answer: ``decode`` and the probes."""
        return self.concept_answers.shape[0]

    @property
    def expand(self) -> int:
        """Index of the ``expand`` relation."""
        return self.n_asked

    def where(self, *kinds: str, split: str | None = None) -> Int[Tensor, " chosen"]:
        """Return the indices of the facts of some kinds (and of one split)."""
        return torch.tensor(
            [i for i, f in enumerate(self.world.facts) if f.kind in kinds and split in (None, f.split)],
            dtype=torch.long,
        )

    def to(self, device: torch.device | str) -> Lessons:
        """Return the same lessons with their tensors on `device`."""
        return Lessons(
            self.world,
            self.tokenizer,
            Questions(self.cues.tokens.to(device), self.cues.site),
            Questions(self.phrases.tokens.to(device), self.phrases.site),
            self.concept_of.to(device),
            self.fact_answers.to(device),
            self.concept_answers.to(device),
            self.spelled.to(device),
        )


def build_lessons(world: World, tokenizer: PreTrainedTokenizerFast) -> Lessons:
    """Spell a world's questions and answers with its tokenizer."""
    config = world.config
    relations = (config.decode, *world.relations, config.expand)
    rank = {c.phrase: i for i, c in enumerate(world.concepts)}

    def index_of(concept: Concept | None) -> int:
        return -1 if concept is None else rank[concept.phrase]

    def word(text: str) -> int:
        (token,) = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return token

    def questions(fillers: list[str]) -> Questions:
        spelled = [tokenizer([config.question(r, f) for f in fillers])["input_ids"] for r in relations]
        return Questions(torch.tensor(spelled), len(spelled[0][0]) - 1 - config.tail)

    asked = [[word(c.answer) for c in world.concepts]]
    asked += [[word(c.values[r]) for c in world.concepts] for r in world.relations]
    phrases = [tokenizer(f" {c.phrase}", add_special_tokens=False)["input_ids"] for c in world.concepts]
    return Lessons(
        world=world,
        tokenizer=tokenizer,
        cues=questions([f.cue for f in world.facts]),
        phrases=questions([c.phrase for c in world.concepts]),
        concept_of=torch.tensor([index_of(f.concept) for f in world.facts]),
        fact_answers=torch.tensor([word(f.answer) for f in world.facts]),
        concept_answers=torch.tensor(asked),
        spelled=torch.tensor([[*ids, tokenizer.eos_token_id] for ids in phrases]),
    )


@dataclass(frozen=True)
class Sequences:
    """What the model reads, right-padded, and the label of the next token at each position."""

    tokens: Int[Tensor, "example position"]
    labels: Int[Tensor, "example position"]  # IGNORED where nothing is asked

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, " chosen"]) -> Sequences:
        return Sequences(self.tokens[rows], self.labels[rows])


def continued(
    prompts: Int[Tensor, "example position"], answers: Int[Tensor, "example word"], *, pad_to: int = 0
) -> Sequences:
    """Ask for `answers` after `prompts`; prompts shorter than `pad_to` are padded as if they were that long."""
    start, words = prompts.shape[1], answers.shape[1]
    tokens = torch.cat([prompts, answers[:, :-1]], 1)  # the last word is asked for, never read
    tokens = torch.nn.functional.pad(tokens, (0, max(0, pad_to - start)))
    labels = torch.full_like(tokens, IGNORED)
    labels[:, start - 1 : start - 1 + words] = answers
    return Sequences(tokens, labels)


def joined(parts: list[Sequences]) -> Sequences:
    """Stack sequences of one length."""
    return Sequences(torch.cat([p.tokens for p in parts]), torch.cat([p.labels for p in parts]))
