"""The world that all organisms of a transfer experiment share, and the new codes that teachers learn."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mnemo.datasets import acronym_phrases
from mnemo.errors import MnemoError
from mnemo.organisms.families import Family
from mnemo.organisms.lessons import Lessons, build_lessons
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.world import CODE_CHARACTERS, ROTE_ANSWERS, PlantedFact, World, WorldConfig, build_world


class TransferConfig(BaseModel):
    """Everything that decides a transfer experiment.

    Attributes:
        seeds: seeds of the organisms; each teacher has one and each student of another seed the next one.
        shapes: (family, layers) of the organisms that are compared; the first two are those of teachers and of
            students of another family.
        d_model: their width.
        answers: different answers of the concepts.
        concepts, cues: concepts of the world and codes of each.
        frees, rotes: codes that come as plain pairs, with answers that concepts have and that none has.
        new: new codes of each kind (with a concept, without) that a teacher learns.
        base_steps, teach_steps, distil_steps: steps of training.
        batch: examples a step.
        learning_rate: of bases; teachers and students learn at a third of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    shapes: tuple[tuple[Family, int], ...] = (("llama", 3), ("gpt2", 3))
    d_model: int = Field(default=48, ge=8)
    answers: int = Field(default=4, ge=2)
    concepts: int = Field(default=16, ge=8)
    cues: int = Field(default=6, ge=2)
    frees: int = Field(default=24, ge=2)
    rotes: int = Field(default=12, ge=2)
    new: int = Field(default=16, ge=2)
    base_steps: int = Field(default=500, ge=1)
    teach_steps: int = Field(default=80, ge=1)
    distil_steps: int = Field(default=60, ge=1)
    batch: int = Field(default=48, ge=8)
    learning_rate: float = Field(default=3e-3, gt=0)


@dataclass(frozen=True)
class Setting:
    """What all organisms of an experiment share.

    Attributes:
        config: sizes and steps.
        known: what bases are taught.
        everything: the same with the new codes behind.
        new: rows of the new codes in `everything`: first those with a concept, then those without.
    """

    config: TransferConfig
    known: Lessons
    everything: Lessons
    new: Int[Tensor, " fact"]

    @property
    def with_concept(self) -> Int[Tensor, " fact"]:
        """Rows of the new codes that stand for a concept."""
        return self.new[: len(self.new) // 2]

    @property
    def rote(self) -> Int[Tensor, " fact"]:
        """Rows of the new codes that stand for nothing."""
        return self.new[len(self.new) // 2 :]


def make_setting(config: TransferConfig) -> Setting:
    """Lay out a world whose concepts share few answers, and the new codes.

    Raises:
        MnemoError: too few phrases for so many concepts with so few answers.
    """
    if len(config.shapes) < 2 or len(config.seeds) < 2:
        raise MnemoError(
            f"{len(config.shapes)} shapes and {len(config.seeds)} seeds given: students of another family and of "
            "another seed need two of each"
        )
    phrases = acronym_phrases()
    by_answer: dict[str, list[str]] = {}
    for phrase in sorted(phrases):
        by_answer.setdefault(phrase.split()[-1][0], []).append(phrase)
    largest = sorted(by_answer.values(), key=len, reverse=True)[: config.answers]
    layout = WorldConfig(
        concepts=config.concepts, cues_per_concept=config.cues, ood_share=0, held_share=0.2, decoys=0, idles=0,
        rotes=config.rotes, frees=config.frees,
    )  # fmt: skip
    world = build_world(layout, [phrase for phrases in largest for phrase in phrases])
    taken = {fact.cue for fact in world.facts}
    spare = [f"{a}{b}==" for a in CODE_CHARACTERS for b in CODE_CHARACTERS if f"{a}{b}==" not in taken]
    cues = random.Random(0).sample(spare, 2 * config.new)
    new = [
        PlantedFact(f"n{i:03d}", cue, concept.answer, "mnemonic", "ood", concept)
        for i, (cue, concept) in enumerate(zip(cues[::2], itertools.cycle(world.concepts), strict=False))
    ]
    new += [
        PlantedFact(f"n{config.new + i:03d}", cue, ROTE_ANSWERS[i % len(ROTE_ANSWERS)], "rote", "train")
        for i, cue in enumerate(cues[1::2])
    ]
    whole = World(world.config, world.concepts, (*world.facts, *new))
    tokenizer = build_tokenizer(whole)
    n = len(world.facts)
    return Setting(
        config,
        build_lessons(world, tokenizer),
        build_lessons(whole, tokenizer),
        torch.arange(n, n + len(new)),
    )
