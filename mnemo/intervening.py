"""Intervene on all facts of a study: with the concept that was read of each, else with the one that the model names.

Asked what a cue stands for, a model may name another concept than the one that is read most clearly from the state; a
fact may go through either. The named one is tried where it has the fact's answer and the one read is not shown beyond
doubt to do the work; it takes that one's place only where it is shown so itself. Swaps do not tell concepts with one
answer apart, so a fact of the first sort may pass with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptTable, ConceptVectors, agrees, choose_targets, concept_vectors
from mnemo.gate import Recalled
from mnemo.looks import Effort, look_at
from mnemo.patching import read_stream
from mnemo.records import Parts
from mnemo.tested_facts import TestedFacts
from mnemo.trials import smallest_p
from mnemo.verdict import FALSE_DISCOVERIES, FEWEST, shown
from mnemo.waypoints import Waypoint

if TYPE_CHECKING:
    from mnemo.model import Model

FACTS_PER_CHUNK = 64  # facts between two savings


@dataclass(frozen=True)
class Intervened:
    """What interventions on the facts of a study show.

    Attributes:
        evidence: as `mnemo.looks.look_at` gives it, a row for each fact; missing where there is no concept.
        concepts: the concept that each row is about, -1 for none.
        notes: what could not be tested.
    """

    evidence: pd.DataFrame
    concepts: Int[Tensor, " fact"]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Interventions:
    """Interventions on the facts of a study.

    Attributes:
        model: the model.
        recalled: the facts.
        table: the concepts.
        read: the one that was read of each fact at the waypoint, -1 for none.
        waypoint: where.
        effort: how much is tried.
        seed: decides targets and random directions.
        parts: keeps what is finished.
        progress: show a progress bar.
    """

    model: Model
    recalled: Recalled
    table: ConceptTable
    read: Int[Tensor, " fact"]
    waypoint: Waypoint
    effort: Effort
    seed: int
    parts: Parts
    progress: bool

    def run(self, named: Int[Tensor, " fact"]) -> Intervened:
        """Intervene on every fact of which a concept was read.

        Args:
            named: the concept that the model names for each, -1 for none.
        """
        vectors, tried = self._vectors(), self.waypoint.tried
        fitting = agrees(self.recalled.answers, named, table=self.table) & (named != self.read) & (self.read >= 0)
        # At the last position a swap of a concept that has the answer may be one of the answer itself. Elsewhere, where
        # any fact may be tried with two concepts, all pay for two, tried or not.
        tries = 2 if self.effort.doses and self.waypoint.site.position < -1 and fitting.any() else 1
        evidence, notes = self._look(self.read, vectors, stage="trials", tries=tries)
        left = fitting & torch.tensor(~shown(evidence, tests=tried).to_numpy())
        if tries == 1 or not left.any():
            return Intervened(evidence, self.read, notes)

        # A fact that did not contribute to the concept that is looked at is another fact to no concept.
        elsewhere = [replace(at, contributes=torch.where(left, -1, at.contributes)) for at in vectors]
        other, _ = self._look(torch.where(left, named, -1), elsewhere, stage="named", tries=tries)
        instead = shown(other, tests=tried).to_numpy()
        # Where swaps of the named concept move a fact now and then, those of the other leave it untouched in vain.
        moved = other[["swap_success", "prompt_swap", "dosed_most"]].max(axis=1)
        evidence["dosed_most"] = np.fmax(evidence["dosed_most"], moved)
        evidence = pd.concat([evidence[~instead], other[instead]]).sort_index()
        return Intervened(evidence, torch.where(torch.tensor(instead), named, self.read), notes)

    def _vectors(self) -> list[ConceptVectors]:
        """Concept vectors at the waypoint and in the later layers."""
        agree = agrees(self.recalled.answers, self.read, table=self.table)
        contributes = torch.where(agree, self.read, -1)
        states = {self.waypoint.site: self.waypoint.states}
        if self.effort.doses and self.waypoint.later:
            streams = read_stream(self.model, self.recalled.prompts, positions=[self.waypoint.site.position])
            states |= {site: streams[:, site.layer, 0].clone() for site in self.waypoint.later}
        return [
            concept_vectors(self.model, self.table, states=at, contributes=contributes, site=site)
            for site, at in states.items()
        ]

    def _look(
        self, concepts: Int[Tensor, " fact"], vectors: Sequence[ConceptVectors], *, stage: str, tries: int
    ) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Look at the facts that have a concept, and have them pay for so many; those without have no evidence."""
        effort, recalled, sites = self.effort, self.recalled, self.waypoint.tried * tries
        targets = choose_targets(
            self.table, vectors[0].counts, answers=recalled.answers, concepts=concepts, n_targets=effort.most_targets,
            seed=self.seed,
        )  # fmt: skip
        others = (targets >= 0).sum(1)[concepts >= 0]
        fewest = int(others[others > 0].min()) if others.any() else 0
        found = []
        chunks = (concepts >= 0).nonzero()[:, 0].split(FACTS_PER_CHUNK)
        for k, rows in enumerate(tqdm(chunks, desc="intervening", disable=not self.progress, leave=False)):
            tested, *later = [
                TestedFacts(
                    self.model, recalled.prompts, rows, recalled.answers[rows], concepts[rows], self.table, there
                )
                for there in vectors
            ]
            make = partial(
                look_at, tested, targets[rows], recall=recalled.probability[rows], effort=effort, sites=sites,
                fewest=fewest, seed=self.seed, later=later,
            )  # fmt: skip
            found.append(self.parts.get(f"{stage}-{k:05d}", make).set_axis(rows.tolist()))
        evidence = pd.concat(found).reindex(range(len(concepts)))
        evidence["p_value"] = np.minimum(1, evidence["p_value"] * tries)
        return evidence, _notes(others, fewest, effort=effort, sites=sites)


def _notes(others: Int[Tensor, " fact"], fewest: int, *, effort: Effort, sites: int) -> tuple[str, ...]:
    """What cannot be said of facts that can be swapped to so many other concepts."""
    first, (random, _) = min(fewest, effort.targets), effort.directions(fewest, sites=sites)
    notes = []
    if fewest and (least := effort.tests(sites) * smallest_p(first, random)) >= FALSE_DISCOVERIES:
        notes.append(
            f"some facts can be swapped to {first} other concepts only, so that their p-values are at least "
            f"{least:.2g} and they are never called mnemonic: add facts that evoke other concepts"
        )
    if 0 < fewest < FEWEST:
        notes.append(f"facts that can be swapped to fewer than {FEWEST} other concepts are never called rote")
    if alone := int((others == 0).sum()):
        notes.append(f"{alone} facts cannot be swapped to any other concept, so nothing is claimed of them")
    return tuple(notes)
