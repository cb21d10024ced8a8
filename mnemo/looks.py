"""How much is tried on each fact, and how closely: a first look at all, closer ones at those that it does not settle.

The second look is at several doses, as a fact may hold its concept in another amount than the cues that its vector is
made of. The third, at the clearest of them, has so many targets that chance in their choice hardly matters; it is for
the few facts that swaps move often and not often enough. Of several looks the closest counts.

A few facts have their concept taken up later than the others. So those that are open even then are looked at in later
layers as well: the doses again, and then those other targets at the dose at which the fact moved. Where that shows a
fact beyond doubt, all its evidence is that of the later layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.trials import (
    RESAMPLED,
    directions_beside,
    dosed_runs,
    run_dosed_swaps,
    run_resamples,
    run_trials,
    trial_runs,
)
from mnemo.verdict import SORTS, open_still, shown, undecided, unsettled, weigh, weigh_doses, with_doses

if TYPE_CHECKING:
    from mnemo.tested_facts import TestedFacts


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        targets: other concepts that each fact is swapped to.
        doses: multiples of the concept vectors, for a closer look at facts that the first one does not settle. None
            above 1: twice a concept moves facts with another route as well, to which the concept says nothing.
        dosed_targets: other concepts that those are swapped to.
        open_targets: further ones for a third look, at the clearest of those doses, at facts that are open even then.
        sites: candidates for the waypoint.
        sample: facts that each of those is tried on.
        paths: facts whose strongest path is traced.
        edit_rounds: how often concepts are taught new answers, where they are.
    """

    targets: int = 8
    doses: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    dosed_targets: int = 16
    open_targets: int = 48
    sites: int = 12
    sample: int = 128
    paths: int = 1024
    edit_rounds: int = 8

    @property
    def most_targets(self) -> int:
        """To how many other concepts a fact may be swapped."""
        return max(self.targets, self.dosed_targets + self.open_targets) if self.doses else self.targets

    @property
    def looks(self) -> int:
        """How many tests a fact may take in one layer: the first look, the second at each dose, and the third.

        The third is one test, as other targets than its own chose its dose.
        """
        return 1 + len(self.doses) + 1 if self.doses else 1

    def tests(self, sites: int) -> int:
        """By how many a p-value of either sort of vectors is multiplied, after so many sites were tried."""
        return SORTS * self.looks * sites

    def directions(self, fewest: int, *, sites: int) -> tuple[int, int]:
        """How many random directions stand beside each swap, in the first look and in closer ones.

        Args:
            fewest: to how many other concepts any fact can be swapped, of those that can be swapped to any.
            sites: at how many sites swaps were tried.
        """
        first, closer = min(fewest, self.targets), min(fewest, self.dosed_targets)
        tests = self.tests(sites)
        return directions_beside(first, tests=tests), directions_beside(closer, tests=tests, least=1)


QUICK = Effort(targets=4, doses=(), sites=4, sample=64, paths=32, edit_rounds=4)


def look_at(
    tested: TestedFacts,
    targets: Int[Tensor, "fact target"],
    *,
    recall: Float[Tensor, " fact"],
    effort: Effort,
    sites: int,
    fewest: int,
    seed: int,
    later: Sequence[TestedFacts] = (),
) -> pd.DataFrame:
    """Intervene on some facts at the waypoint and, where that leaves them open, in later layers.

    Args:
        tested: the facts at the waypoint.
        targets: up to `effort.most_targets` concepts to swap each to, -1 for none. Looks at several doses take the
            first ones, looks at one dose that these chose the further ones.
        recall: probability of each fact's answer, untouched.
        effort: how much is tried.
        sites: at how many sites swaps were tried to choose this one, for which p-values pay; the later ones are among
            them.
        fewest: as in `Effort.directions`, of all facts of the study.
        seed: decides random directions.
        later: the same facts in later layers.

    Returns:
        the evidence of `mnemo.verdict.weigh`, with `resample_drop`, the layer in which it was found, `tested_layer`,
        and, where there are doses, that of the closest look at each fact (`mnemo.verdict.weigh_doses`).
    """
    random, beside = effort.directions(fewest, sites=sites)
    looks = _Looks(tested, targets, recall, effort, random, beside, seed)
    evidence = looks.first(np.arange(len(tested.facts)))
    if not effort.doses:
        return evidence

    closest = looks.second(np.flatnonzero(unsettled(evidence, tests=sites * effort.looks)))
    open_ = undecided(with_doses(evidence, closest, looks=effort.looks), tests=sites)
    third = looks.third(closest.loc[np.flatnonzero(open_)])
    closest = pd.concat([closest.drop(third.index), third])

    for k, there in enumerate(later, start=1):
        looks = replace(looks, tested=there, seed=seed + 2 * k)
        open_ = open_still(with_doses(evidence, closest, looks=effort.looks), tests=sites)
        moved = _settled(evidence, looks.second(np.flatnonzero(open_)), looks=effort.looks, sites=sites)
        settled = _settled(evidence, looks.third(moved), looks=effort.looks, sites=sites)
        first = looks.first(settled.index.to_numpy(int)).assign(p_value=1.0)  # that of the closest look alone counts
        evidence = pd.concat([evidence.drop(settled.index), first]).sort_index()
        closest = pd.concat([closest.drop(settled.index), settled])
    return with_doses(evidence, closest, looks=effort.looks)


def _settled(evidence: pd.DataFrame, closer: pd.DataFrame, *, looks: int, sites: int) -> pd.DataFrame:
    """Return those rows of a closer look that show by themselves that a fact goes through its concept."""
    alone = with_doses(evidence.loc[closer.index].assign(p_value=1.0), closer, looks=looks)
    return closer[shown(alone, tests=sites)]


@dataclass(frozen=True)
class _Looks:
    """Looks at some facts, named by their rows, in one layer; arguments as in `look_at`."""

    tested: TestedFacts
    targets: Int[Tensor, "fact target"]
    recall: Float[Tensor, " fact"]
    effort: Effort
    random: int
    beside: int
    seed: int

    def first(self, facts: Int[np.ndarray, " row"]) -> pd.DataFrame:
        """Every intervention."""
        rows = torch.tensor(facts)
        tested, recall = self.tested.only(rows), self.recall[rows]
        trials = run_trials(tested, self.targets[rows, : self.effort.targets], seed=self.seed, random=self.random)
        evidence = weigh(trials, recall)
        evidence["resample_drop"] = (recall - run_resamples(tested, seed=self.seed)).numpy()
        return evidence.assign(tested_layer=tested.vectors.site.layer).set_axis(facts)

    def second(self, facts: Int[np.ndarray, " row"]) -> pd.DataFrame:
        """Swaps at all doses."""
        return self._closer(facts, self.effort.doses, self.targets[:, : self.effort.dosed_targets], seed=self.seed)

    def third(self, second: pd.DataFrame) -> pd.DataFrame:
        """Swaps at the dose that the second look found, to the further targets of those facts that have enough."""
        further = self.targets[:, self.effort.dosed_targets :]
        enough = ((further >= 0).sum(1) >= self.effort.dosed_targets).numpy()  # fewer would say less than the second
        by_dose = second[enough[second.index]].groupby("dose")
        found = [
            self._closer(facts.index.to_numpy(int), [float(dose)], further, seed=self.seed + 1)
            for dose, facts in by_dose
        ]
        return pd.concat([second.head(0), *found])

    def _closer(
        self, facts: Int[np.ndarray, " row"], doses: Sequence[float], targets: Int[Tensor, "fact target"], *, seed: int
    ) -> pd.DataFrame:
        rows = torch.tensor(facts)
        swaps = run_dosed_swaps(self.tested.only(rows), targets[rows], doses=doses, seed=seed, random=self.beside)
        return weigh_doses(swaps).set_axis(facts)


def look_runs(others: Sequence[int], *, effort: Effort, sites: int, later: int) -> int:
    """Return the runs of the model that `look_at` takes for some facts, at the most: if each gets every look.

    Args:
        others: how many other concepts each can be swapped to.
        effort, sites: as for `look_at`.
        later: how many later layers there are.
    """
    random, beside = effort.directions(min(filter(None, others), default=0), sites=sites)
    first = sum(RESAMPLED + trial_runs(min(n, effort.targets), random=random) for n in others)
    if not effort.doses:
        return first
    second = len(effort.doses) * sum(dosed_runs(min(n, effort.dosed_targets), random=beside) for n in others)
    third = sum(dosed_runs(min(max(0, n - effort.dosed_targets), effort.open_targets), random=beside) for n in others)
    return (1 + later) * (first + second + third)
