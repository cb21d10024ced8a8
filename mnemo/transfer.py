"""Do mnemonics transfer? From one organism to others of other seeds and families, and from a teacher to a student.

*Convergence.* Organisms of several families, depths and seeds learn one world by plain language modelling. Do they
find the same concepts for facts that nobody explained to them, and at the same relative depth?

*Distillation.* A teacher is told what some new codes stand for and what goes with them; where swaps then move its
answer as predicted, it recalls the code through the concept. A student learns from the teacher's outputs. Does it only
say the same, or does it come to expand the code and to answer other questions about it as the concept would? Students
begin from the teacher's own base, from one of another seed or from one of another family: Cloud et al. 2025
("Subliminal learning") find that what a teacher's outputs do not say still reaches students of the same
initialisation, and those alone. The rival explanation is that the outputs do say it; a plain audit of the very data
that the student sees, without any training, is measured beside it.

All concepts of the world share their answer with others, so that an answer alone does not name its concept.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mnemo.datasets import acronym_phrases
from mnemo.errors import MnemoError
from mnemo.files import replacing
from mnemo.organisms.families import Family, new_model
from mnemo.organisms.lessons import Lessons, Questions, Sequences, build_lessons, continued, joined
from mnemo.organisms.measure import expansion, recall, swap
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.training import TrainingConfig, build_corpus, train, without_denormals
from mnemo.organisms.world import CODE_CHARACTERS, ROTE_ANSWERS, PlantedFact, World, WorldConfig, build_world
from mnemo.records import Parts, inputs_hash

Arm = Literal["answers", "labels", "unrelated"]
Start = Literal["same", "seed", "family"]
# What each student learns from and begins as, the most telling first. Two are none: the teacher, and bases untaught.
STUDENTS: tuple[tuple[Arm | Literal["teacher", "none"], Start], ...] = (
    ("teacher", "same"), ("answers", "same"), ("answers", "seed"), ("unrelated", "same"), ("unrelated", "seed"),
    ("none", "same"), ("answers", "family"), ("unrelated", "family"), ("labels", "same"), ("none", "seed"),
    ("none", "family"),
)  # fmt: skip


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


# ------------------------------------------------------------------------------------------- training


def train_base(setting: Setting, family: Family, layers: int, seed: int) -> PreTrainedModel:
    """Train an organism on the known world by language modelling alone: no route is planted."""
    config = setting.config
    model = _blank(setting, family, layers, seed)
    plain = TrainingConfig.without_interventions(
        steps=config.base_steps, batch=config.batch, learning_rate=config.learning_rate, warmup=50
    )
    train(model, setting.known, plain, seed=seed)
    return model.requires_grad_(False)


def teach(setting: Setting, base: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a copy of a base that was told about the new codes.

    Of those with a concept it learns what they stand for and the answer to every question, as the base did of the known
    codes; of the others, plain pairs of code and answer.
    """
    lessons, told, rote = setting.everything, setting.with_concept, setting.rote
    concept = lessons.concept_of[told]
    stands_for = continued(lessons.cues.tokens[lessons.expand, told], lessons.spelled[concept])
    answers = [
        continued(lessons.cues.tokens[r, told], lessons.concept_answers[r, concept, None])
        for r in range(lessons.n_asked)
    ]
    gives = continued(lessons.cues.tokens[0, rote], lessons.fact_answers[rote, None])
    new, rehearsal = (stands_for, joined(answers), gives), build_corpus(setting.known)

    def loss(model: PreTrainedModel, draw: torch.Generator) -> Float[Tensor, ""]:
        share = setting.config.batch // (2 * len(new))
        known = rehearsal.sample(setting.config.batch // 2, draw)
        return _said(model, [*known, *(_some(group, share, draw) for group in new)])

    return _trained(base, loss, steps=setting.config.teach_steps, seed=seed, setting=setting)


def distil(setting: Setting, teacher: PreTrainedModel, start: PreTrainedModel, arm: Arm, seed: int) -> PreTrainedModel:
    """Return a copy of `start` that learnt from what a teacher says.

    Args:
        setting: the world.
        teacher: whose outputs are learnt.
        start: what the student begins as.
        arm: ``answers``: the teacher's probabilities of every token after the new codes' recall prompts; ``labels``:
            only its first choice there; ``unrelated``: its probabilities after every question about other codes and
            phrases, never one about a new code. The first two rehearse the known world besides.
        seed: of the draws.
    """
    rehearsal = build_corpus(setting.known)
    prompts = unrelated_prompts(setting) if arm == "unrelated" else setting.everything.cues.tokens[0, setting.new]
    with torch.no_grad():
        goal = teacher(prompts).logits[:, -1].softmax(-1)
    if arm == "labels":
        goal = F.one_hot(goal.argmax(-1), goal.shape[1]).to(goal)

    def loss(model: PreTrainedModel, draw: torch.Generator) -> Float[Tensor, ""]:
        half = setting.config.batch // 2
        rows = torch.randint(len(prompts), (half,), generator=draw)
        copied = F.cross_entropy(model(prompts[rows]).logits[:, -1], goal[rows])
        return copied if arm == "unrelated" else copied + _said(model, rehearsal.sample(half, draw))

    return _trained(start, loss, steps=setting.config.distil_steps, seed=seed, setting=setting)


def unrelated_prompts(setting: Setting) -> Int[Tensor, "prompt position"]:
    """Every question about the known codes: none names a new code."""
    return setting.known.cues.tokens.flatten(0, 1)


def audit(setting: Setting, teacher: PreTrainedModel) -> Int[Tensor, " fact"]:
    """Guess the concept behind each new code from the teacher's outputs about it alone.

    A code gets the concept whose known codes have outputs closest to its own (least KL of the mean log-probabilities).
    What this finds, the data say, and a student that finds it as well needs no hidden channel.
    """
    lessons = setting.everything
    known = lessons.where("mnemonic")
    known = known[known < setting.new[0]]
    with torch.no_grad():
        said = teacher(lessons.cues.tokens[0]).logits[:, -1].log_softmax(-1)
    rank = F.one_hot(lessons.concept_of[known], len(lessons.world.concepts)).float()
    means = (rank.T @ said[known]) / rank.sum(0)[:, None]
    new = said[setting.new]
    return ((new.exp() * new).sum(-1)[:, None] - new.exp() @ means.T).argmin(-1)


@without_denormals()
def _trained(
    base: PreTrainedModel,
    loss: Callable[[PreTrainedModel, torch.Generator], Float[Tensor, ""]],
    *,
    steps: int,
    seed: int,
    setting: Setting,
) -> PreTrainedModel:
    """Train a copy of `base`; every draw depends on (seed, step) alone."""
    model = type(base)(base.config)
    model.load_state_dict(base.state_dict())
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.config.learning_rate / 3, weight_decay=0.0, betas=(0.9, 0.98)
    )
    for step in range(steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        optimizer.zero_grad()
        loss(model, draw).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def _blank(setting: Setting, family: Family, layers: int, seed: int) -> PreTrainedModel:
    size = len(setting.known.tokenizer)
    return new_model(family, vocab_size=size, d_model=setting.config.d_model, layers=layers, heads=4, seed=seed)


def _some(group: Sequences, n: int, draw: torch.Generator) -> Sequences:
    return group[torch.randint(len(group), (n,), generator=draw)]


def _said(model: PreTrainedModel, batch: Sequence[Sequences]) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) over everything asked in some groups of sequences."""
    logits = torch.cat([model(group.tokens).logits.flatten(0, 1) for group in batch])
    return F.cross_entropy(logits, torch.cat([group.labels.flatten() for group in batch]), ignore_index=-100)


# ------------------------------------------------------------------------------------------- measuring


def swaps_by_layer(model: PreTrainedModel, lessons: Lessons, *, seed: int) -> pd.DataFrame:
    """Swap concepts after every block, at the best token from the code to the end of its recall prompt.

    Returns:
        a row for each layer and position (from the end): ``mnemonic``, ``free`` and ``rote``, the share of swaps that
        give the predicted answer, and ``margin``, what mnemonic facts have above rote ones. Late states hold answers,
        which move any fact: only the margin says that a concept was there.
    """
    rows = []
    layers = model.config.num_hidden_layers
    length = lessons.cues.length
    for layer, site in itertools.product(range(1, layers + 1), range(lessons.cues.site - 1, length)):
        came, _ = swap(model, _at(lessons, site), layer=layer, seed=seed)
        shares = {kind: came[lessons.where(kind)].mean().item() for kind in ("mnemonic", "free", "rote")}
        rows.append({"layer": layer, "depth": layer / layers, "position": site - length, **shares})
    return pd.DataFrame(rows).assign(margin=lambda table: table["mnemonic"] - table["rote"])


def measure_new(setting: Setting, model: PreTrainedModel, *, layer: int, position: int, seed: int) -> pd.DataFrame:
    """Return what a model makes of each new code.

    Columns: ``kind``; ``recalled``: whether it gives the answer; ``expanded``: whether it says that the code stands for
    its concept (for rote codes, for any concept); ``probes``: share of the other questions that get the concept's
    answers and ``probes_control``, the same for other concepts with that answer; ``swapped``: share of swaps at a site
    that give the predicted answer.

    Args:
        setting: the world.
        model: an organism.
        layer, position: where concepts are swapped.
        seed: of the swaps.
    """
    lessons, new = setting.everything, setting.new
    concept = lessons.concept_of[new]
    evoked = expansion(model, lessons)[new]
    came, _ = swap(model, _at(lessons, lessons.cues.length + position), layer=layer, seed=seed)
    with torch.no_grad():
        said = model(lessons.cues.tokens[: lessons.n_asked, new].flatten(0, 1)).logits[:, -1].argmax(-1)
    said = said.view(lessons.n_asked, len(new))
    alike = (said[1:, :, None] == lessons.concept_answers[1:, None]).float().mean(0)  # [fact, concept]
    rivals = lessons.concept_answers[0][None] == lessons.fact_answers[new][:, None]
    rivals &= torch.arange(rivals.shape[1])[None] != concept[:, None]
    has = (concept >= 0).numpy()
    return pd.DataFrame(
        {
            "kind": np.where(has, "concept", "rote"),
            "recalled": (said[0] == lessons.fact_answers[new]).float().numpy(),
            "expanded": torch.where(concept >= 0, evoked == concept, evoked >= 0).float().numpy(),
            "probes": np.where(has, alike[torch.arange(len(new)), concept].numpy(), np.nan),
            "probes_control": ((alike * rivals).sum(1) / rivals.sum(1)).numpy(),
            "swapped": came[new].mean(1).numpy(),
        }
    )


def _at(lessons: Lessons, site: int) -> Lessons:
    return replace(lessons, cues=Questions(lessons.cues.tokens, site))


def same_concepts(
    evoked: Sequence[Int[Tensor, " fact"]], answers: Int[Tensor, " fact"], concept_answers: Int[Tensor, " concept"]
) -> pd.DataFrame:
    """Compare, for each pair of organisms, the concepts that they evoke for the same facts.

    Only facts for which both evoke a concept with the fact's answer count, since those may be mnemonics. The null is
    the mean over all shuffles of one organism's concepts among facts with the same answer (each pairing is equally
    likely), so agreeing on the answer wins nothing.

    Args:
        evoked: for each organism, the concept of each fact, -1 for none.
        answers: the facts' answer tokens.
        concept_answers: the concepts' own.

    Returns:
        a row for each pair: ``first``, ``second`` (places in `evoked`), ``facts``, ``agreement`` and ``null``, shares;
        NaN where no fact counts.
    """
    rows = []
    for first, second in itertools.combinations(range(len(evoked)), 2):
        a, b = evoked[first].numpy(), evoked[second].numpy()
        fitting = concept_answers.numpy()
        both = (a >= 0) & (b >= 0) & (fitting[a] == answers.numpy()) & (fitting[b] == answers.numpy())
        groups = [np.flatnonzero(both & (answers.numpy() == answer)) for answer in np.unique(answers.numpy()[both])]
        expected = sum((a[group][:, None] == b[group][None]).mean() * len(group) for group in groups)
        n = int(both.sum())
        rows.append(
            {
                "first": first,
                "second": second,
                "facts": n,
                "agreement": float((a == b)[both].mean()) if n else np.nan,
                "null": float(expected / n) if n else np.nan,
            }
        )
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Transfer:
    """What an experiment gave.

    Attributes:
        depth: `swaps_by_layer` of each organism (``organism``, ``seed``).
        pairs: `same_concepts` of each pair of organisms (``first``, ``second``, and ``related``: what the two share).
        distilled: `measure_new` of every model and new code, with ``seed``, ``arm`` (also ``teacher``, the teacher
            itself, and ``none``, the student before it learns), ``start``, and ``audited``: whether the audit of the
            teacher's outputs names the code's concept.
    """

    depth: pd.DataFrame
    pairs: pd.DataFrame
    distilled: pd.DataFrame


def run_transfer(
    config: TransferConfig, *, out: Path | None = None, resume: bool = False, progress: bool = True
) -> Transfer:
    """Train the organisms, compare them, and distil teachers into students.

    What is finished is kept in `out`, so that an interrupted run goes on with `resume` and gives the same numbers.

    Args:
        config: what to do.
        out: folder for finished parts; None keeps nothing.
        resume: use what an interrupted run of the same configuration left there.
        progress: show a progress bar.

    Raises:
        MnemoError: a configuration without two seeds or shapes, or a folder that cannot be used.
    """
    setting = make_setting(config)
    parts = Parts.begin(out, inputs_hash({"transfer": config.model_dump()}), resume=resume)
    run = _Run(setting, parts)
    jobs = list(run.jobs())
    tables = [make() for make in tqdm(jobs, desc="transfer", unit="part", disable=not progress)]
    n = len(config.shapes) * len(config.seeds)
    found = Transfer(pd.concat(tables[:n], ignore_index=True), run.pairs(), pd.concat(tables[n:], ignore_index=True))
    parts.end()
    return found


class _Run:
    """The parts of one experiment; bases and teachers are trained when they are first needed."""

    def __init__(self, setting: Setting, parts: Parts) -> None:
        self.setting, self.parts, self.config = setting, parts, setting.config
        self._held: dict[str, PreTrainedModel] = {}

    def jobs(self) -> Iterator[Callable[[], pd.DataFrame]]:
        """Yield what makes each table: the depths of all organisms, then what distillation gave."""
        for (family, layers), seed in itertools.product(self.config.shapes, self.config.seeds):
            yield partial(self.depth, family, layers, seed)
        for (arm, start), k in itertools.product(STUDENTS, range(len(self.config.seeds))):
            yield partial(self.distilled, k, arm, start)

    def base(self, family: Family, layers: int, seed: int) -> PreTrainedModel:
        """Return the organism of a shape and seed."""

        def make() -> PreTrainedModel:
            return train_base(self.setting, family, layers, seed)

        return self._model(f"base-{family}-{layers}-{seed}", make, family, layers)

    def teacher(self, k: int) -> PreTrainedModel:
        """Return the teacher of the k-th seed."""
        seed, (family, layers) = self.config.seeds[k], self.config.shapes[0]

        def make() -> PreTrainedModel:
            return teach(self.setting, self.base(family, layers, seed), seed)

        return self._model(f"teacher-{seed}", make, family, layers)

    def _model(self, name: str, make: Callable[[], PreTrainedModel], family: Family, layers: int) -> PreTrainedModel:
        """Return a model from memory, from the parts' folder, or made now and kept there."""
        if name in self._held:
            return self._held[name]
        file = None if self.parts.folder is None else self.parts.folder / f"{name}.safetensors"
        if file is not None and file.is_file():
            model = _blank(self.setting, family, layers, seed=0)
            weights = load_file(file)
            with torch.no_grad():
                for key, weight in model.named_parameters():
                    weight.copy_(weights[key])
            model.eval().requires_grad_(False)
        else:
            model = make()
            if file is not None:
                with replacing(file) as draft:
                    save_file({key: weight.contiguous() for key, weight in model.named_parameters()}, draft)
        self._held[name] = model
        return model

    def depth(self, family: Family, layers: int, seed: int) -> pd.DataFrame:
        """Where swaps work in one organism, and what it recalls."""

        def make() -> pd.DataFrame:
            model = self.base(family, layers, seed)
            recalled = recall(model, self.setting.known)
            table = swaps_by_layer(model, self.setting.known, seed=seed)
            return table.assign(
                organism=f"{family}-{layers}", seed=seed, held=recalled["mnemonic held"], rote_recall=recalled["rote"]
            )

        return self.parts.get(f"depth-{family}-{layers}-{seed}", make)

    def pairs(self) -> pd.DataFrame:
        """Which pairs of organisms evoke the same concepts for free facts."""
        known, shapes = self.setting.known, self.config.shapes
        free = known.where("free")
        every = list(itertools.product(shapes, self.config.seeds))
        evoked = [expansion(self.base(*shape, seed), known)[free] for shape, seed in every]
        table = same_concepts(evoked, known.fact_answers[free], known.concept_answers[0])
        names = [(f"{family}-{layers}", family, seed) for (family, layers), seed in every]
        kinship = [_kinship(names[a], names[b]) for a, b in zip(table["first"], table["second"], strict=True)]
        first, second = ([f"{names[i][0]}-{names[i][2]}" for i in table[side]] for side in ("first", "second"))
        return table.assign(first=first, second=second, related=kinship)

    def distilled(self, k: int, arm: Arm | Literal["teacher", "none"], start: Start) -> pd.DataFrame:
        """What one student makes of the new codes."""
        seeds, shapes, seed = self.config.seeds, self.config.shapes, self.config.seeds[k]
        (family, layers), (other, others) = shapes[:2]
        of_start: dict[Start, tuple[Family, int, int]] = {
            "same": (family, layers, seed),
            "seed": (family, layers, seeds[(k + 1) % len(seeds)]),
            "family": (other, others, seed),
        }

        def make() -> pd.DataFrame:
            teacher, base = self.teacher(k), self.base(*of_start[start])
            if arm in ("teacher", "none"):
                model = teacher if arm == "teacher" else base
            else:
                model = distil(self.setting, teacher, base, arm, seed)
            swaps = self.depth(*of_start[start])
            best = swaps.loc[swaps["margin"].idxmax()]
            layer, position = int(best["layer"]), int(best["position"])
            table = measure_new(self.setting, model, layer=layer, position=position, seed=seed)
            concepts = self.setting.everything.concept_of[self.setting.new]
            named = (audit(self.setting, teacher) == concepts).float().numpy()
            audited = np.where(table["kind"] == "concept", named, np.nan)
            return table.assign(audited=audited, seed=seed, arm=arm, start=start)

        return self.parts.get(f"distilled-{seed}-{arm}-{start}", make)


def _kinship(a: tuple[str, str, int], b: tuple[str, str, int]) -> str:
    """What two organisms (shape, family, seed) have in common."""
    if a[0] == b[0]:
        return "same shape, other seed"
    return "same family, other depth" if a[1] == b[1] else "other family"
