"""A base organism: it knows concepts, and what codes stand for, but not one of the code facts that it will be taught.

It is trained by plain language modelling, with no intervention on any state, on

* what codes stand for (``expand VA== is value added tax``), for every code that evokes a concept,
* concepts: their answer (``decode value added tax is T``), their other questions, and their own words,
* the other questions about some codes, the *probed* ones: a model that never composed a code with a question has no
  second hop to reuse,
* background codes that evoke nothing, each with an answer to ``decode``, all answers equally often. So every answer,
  also those that no concept has, is one that the model gives to such questions, and a prior explains nothing.

``decode`` is never asked of a code that evokes a concept, nor anything of the new codes. The study folder holds all of
them as facts: what there is to learn, and what is known already.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from tqdm.auto import tqdm

from mnemo.checked import Record
from mnemo.datasets import acronym_phrases
from mnemo.errors import InputError
from mnemo.files import write_text
from mnemo.organisms.families import Family, new_model
from mnemo.organisms.folder import write_folder
from mnemo.organisms.lessons import Lessons, build_lessons
from mnemo.organisms.measure import expansion, recall
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.training import TrainingConfig, train
from mnemo.organisms.world import ROTE_ANSWERS, PlantedFact, World, WorldConfig, build_world
from mnemo.textfiles import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CARD = "base.json"


class BaseConfig(Record):
    """Everything that decides a base organism.

    Attributes:
        family: architecture.
        seed: of the world, the initial weights and every draw.
        d_model, layers, heads: size.
        concepts: number of concepts.
        cues_per_concept: codes that evoke each.
        probed: share of those codes that are asked other questions than what they stand for.
        background: codes that evoke nothing and are taught, for each answer.
        new: codes that the base never reads, for each answer.
        steps, batch, learning_rate: of AdamW.
    """

    family: Family = "gpt2"
    seed: int = Field(default=0, ge=0)
    d_model: int = Field(default=64, ge=8)
    layers: int = Field(default=4, ge=2)
    heads: int = Field(default=4, ge=1)
    concepts: int = Field(default=52, ge=8)
    cues_per_concept: int = Field(default=3, ge=1)
    probed: float = Field(default=0.25, gt=0, lt=1)
    background: int = Field(default=1, ge=1)
    new: int = Field(default=2, ge=0)
    steps: int = Field(default=400, ge=1)
    batch: int = Field(default=96, ge=8)
    learning_rate: float = Field(default=3e-3, gt=0)


@dataclass(frozen=True)
class Base:
    """A base organism in memory.

    Attributes:
        config: what made it.
        world: everything, the facts still to be learned included: mnemonic facts (``held`` where the code is probed,
            ``ood`` where the base only knows what it stands for), the background (rote and free facts, ``train``) and
            the new codes (rote and free, ``ood``).
        lessons: what it was taught and asked: all but the new codes.
        tokenizer, model: as transformers knows them.
    """

    config: BaseConfig
    world: World
    lessons: Lessons
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel

    def card(self) -> dict[str, Any]:
        """Return what base.json holds: the configuration, and what is known."""
        evoking = self.lessons.where("mnemonic")
        evoked = expansion(self.model, self.lessons)
        known = recall(self.model, self.lessons)
        with torch.no_grad():
            phrases = self.lessons.phrases.tokens[: self.lessons.n_asked]
            said = torch.stack([self.model(tokens).logits[:, -1].argmax(-1) for tokens in phrases])
        return {
            "config": self.config.model_dump(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "measured": {
                "codes expand to their concept": float((evoked == self.lessons.concept_of)[evoking].float().mean()),
                "concepts give their answer": float((said == self.lessons.concept_answers)[0].float().mean()),
                "concepts answer other questions": float((said == self.lessons.concept_answers)[1:].float().mean()),
                "background recalled": (known["rote"] + known["free"]) / 2,
                "code facts known by chance": {s: known[f"mnemonic {s}"] for s in ("held", "ood")},
            },
        }

    def write(self, folder: str | Path) -> None:
        """Write the base as a study folder with truth.csv and, last, base.json."""
        folder = Path(folder)
        name = f"base organism ({self.config.family}, seed {self.config.seed})"
        write_folder(folder, self.world, model=self.model, tokenizer=self.tokenizer, name=name)
        write_text(folder / CARD, json.dumps(self.card(), indent=2) + "\n")


def train_base(config: BaseConfig, *, progress: bool = True) -> Base:
    """Train a base organism (half a minute on one core for the default size).

    Raises:
        MnemoError: the lexicon has fewer phrases than concepts are asked for.
    """
    world = base_world(config)
    tokenizer = build_tokenizer(world)
    taught = tuple(f for f in world.facts if not _is_new(f))
    lessons = build_lessons(World(world.config, world.concepts, taught), tokenizer)
    model = new_model(
        config.family,
        vocab_size=len(tokenizer),
        d_model=config.d_model,
        layers=config.layers,
        heads=config.heads,
        seed=config.seed,
    )
    plain = TrainingConfig.without_interventions(
        steps=config.steps, batch=config.batch, learning_rate=config.learning_rate, warmup=min(100, config.steps)
    )
    with tqdm(total=config.steps, desc="base organism", unit="step", disable=not progress) as bar:

        def after_step(_step: int, _loss: torch.Tensor) -> None:
            bar.update()

        train(model, lessons, config=plain, seed=config.seed, after_step=after_step)
    return Base(config, world, lessons, tokenizer, model)


def make_base(folder: str | Path, config: BaseConfig, *, progress: bool = True) -> Path:
    """Train a base organism into a study folder, unless the same one lies there already; return the folder.

    Raises:
        InputError: the folder holds something else.
    """
    folder = Path(folder)
    if (folder / CARD).is_file():
        if read_json(folder / CARD).get("config") != json.loads(config.model_dump_json()):
            raise InputError(
                "a base organism of another configuration: remove it or choose another folder", file=folder
            )
        return folder
    if (folder / "task.toml").exists():
        raise InputError("holds another study: remove it or choose another folder", file=folder)
    train_base(config, progress=progress).write(folder)
    return folder


def base_world(config: BaseConfig) -> World:
    """Lay out what a base organism knows and what there is to learn."""
    per_answer = config.background + config.new
    world = build_world(
        WorldConfig(
            seed=config.seed, concepts=config.concepts, cues_per_concept=config.cues_per_concept, ood_share=0,
            held_share=0, decoys=0, idles=0, rotes=per_answer * len(ROTE_ANSWERS), frees=per_answer * 26,
        ),
        acronym_phrases(),
    )  # fmt: skip
    return World(world.config, world.concepts, tuple(_dealt(world.facts, config)))


def _dealt(facts: Iterable[PlantedFact], config: BaseConfig) -> Iterable[PlantedFact]:
    """Give each fact its split; of codes that evoke nothing, each answer has as many as the configuration says."""
    met: Counter[str] = Counter()
    every = round(1 / config.probed)
    evoking = 0
    for fact in facts:
        if fact.kind == "mnemonic":
            yield replace(fact, split="held" if evoking % every == 0 else "ood")
            evoking += 1
            continue
        met[fact.answer] += 1
        if met[fact.answer] <= config.background + config.new:
            yield replace(fact, split="train" if met[fact.answer] <= config.background else "ood")


def _is_new(fact: PlantedFact) -> bool:
    return fact.kind != "mnemonic" and fact.split == "ood"
