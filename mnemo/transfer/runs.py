"""The experiment: which organisms are trained, compared and taught by which, with what is finished kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mnemo.files import replacing
from mnemo.organisms.families import Family
from mnemo.organisms.measure import expansion, recall
from mnemo.records import Parts, inputs_hash
from mnemo.transfer.measures import audit, measure_new, same_concepts, swaps_by_layer
from mnemo.transfer.setting import Setting, TransferConfig, make_setting
from mnemo.transfer.training import Arm, blank_model, distil, teach, train_base

Start = Literal["same", "seed", "family"]
# What each student learns from and begins as, the most telling first. Two are none: the teacher, and bases untaught.
STUDENTS: tuple[tuple[Arm | Literal["teacher", "none"], Start], ...] = (
    ("teacher", "same"), ("answers", "same"), ("answers", "seed"), ("unrelated", "same"), ("unrelated", "seed"),
    ("none", "same"), ("answers", "family"), ("unrelated", "family"), ("labels", "same"), ("none", "seed"),
    ("none", "family"),
)  # fmt: skip


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
            return train_base(self.setting, family, layers=layers, seed=seed)

        return self._model(f"base-{family}-{layers}-{seed}", make, family, layers)

    def teacher(self, k: int) -> PreTrainedModel:
        """Return the teacher of the k-th seed."""
        seed, (family, layers) = self.config.seeds[k], self.config.shapes[0]

        def make() -> PreTrainedModel:
            return teach(self.setting, self.base(family, layers, seed), seed=seed)

        return self._model(f"teacher-{seed}", make, family, layers)

    def _model(self, name: str, make: Callable[[], PreTrainedModel], family: Family, layers: int) -> PreTrainedModel:
        """Return a model from memory, from the parts' folder, or made now and kept there."""
        if name in self._held:
            return self._held[name]
        file = None if self.parts.folder is None else self.parts.folder / f"{name}.safetensors"
        if file is not None and file.is_file():
            model = blank_model(self.setting, family, layers=layers, seed=0)
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
        table = same_concepts(evoked, known.fact_answers[free], concept_answers=known.concept_answers[0])
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
                model = distil(self.setting, teacher, start=base, arm=arm, seed=seed)
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
