"""How much is tried on each fact, and how closely: a first look at all, closer ones at those that it does not settle.

The second look is at several doses, as a fact may hold its concept in another amount than the cues that its vector is
made of. The third, at the clearest of them, has so many targets that chance in their choice hardly matters; it is for
the few facts that swaps move often and not often enough. Of several looks the closest counts. What is open even then is
looked at in later layers too, as a few facts have their concept taken up later than the others; that counts only for
facts that it shows beyond doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    doses: tuple[float, ...] = (0.5, 0.75, 1.0)
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
        """How many tests a fact may take: the first look, the second at each dose, and the third.

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
    behind: Sequence[TestedFacts] = (),
) -> pd.DataFrame:
    """Intervene on some facts at one site, as closely as each of them needs.

    Args:
        tested: the facts.
        targets: up to `effort.most_targets` concepts to swap each to, -1 for none. The first and the second look take
            the first ones, the third those behind.
        recall: probability of each fact's answer, untouched.
        effort: how much is tried.
        sites: at how many sites swaps were tried to choose this one, for which p-values pay.
        fewest: as in `Effort.directions`, of all facts of the study.
        seed: decides random directions.
        behind: the same facts at later sites, which were tried too.

    Returns:
        the evidence of `mnemo.verdict.weigh`, with `resample_drop` and, where there are doses, that of the closest look
        at each fact (`mnemo.verdict.weigh_doses`) and the layer in which that was, `dosed_layer`.
    """
    random, beside = effort.directions(fewest, sites=sites)
    evidence = weigh(run_trials(tested, targets[:, : effort.targets], seed=seed, random=random), recall)
    evidence["resample_drop"] = (recall - run_resamples(tested, seed=seed)).numpy()
    if not effort.doses:
        return evidence

    def closer(
        facts: Sequence[int], doses: Sequence[float], others: slice, seed: int, at: TestedFacts = tested
    ) -> pd.DataFrame:
        rows = torch.tensor(facts, dtype=torch.long)
        swaps = run_dosed_swaps(at.only(rows), targets[rows, others], doses=doses, seed=seed, random=beside)
        return weigh_doses(swaps).set_axis(list(facts)).assign(dosed_layer=at.vectors.site.layer)

    def with_closest(closest: pd.DataFrame) -> pd.DataFrame:
        return with_doses(evidence, closest, looks=effort.looks)

    first_ones, further_ones = slice(effort.dosed_targets), slice(effort.dosed_targets, None)
    left = np.flatnonzero(unsettled(evidence, tests=sites * effort.looks)).tolist()
    closest = closer(left, effort.doses, first_ones, seed)

    enough = ((targets[:, further_ones] >= 0).sum(1) >= effort.dosed_targets).numpy()  # fewer would say less
    still = closest.loc[np.flatnonzero(undecided(with_closest(closest), tests=sites) & enough)]
    third = [closer(list(facts.index), [float(dose)], further_ones, seed + 1) for dose, facts in still.groupby("dose")]
    closest = pd.concat([closest.drop(still.index), *third])

    for later in behind:
        left = np.flatnonzero(open_still(with_closest(closest), tests=sites)).tolist()
        there = closer(left, effort.doses, first_ones, seed + 2, later)
        settled = there[shown(with_doses(evidence.loc[left], there, looks=effort.looks), tests=sites)]
        closest = pd.concat([closest.drop(settled.index), settled])
    return with_closest(closest)


def look_runs(others: Sequence[int], *, effort: Effort, sites: int, behind: int) -> int:
    """Return the runs of the model that `look_at` takes for some facts, at the most: if each gets every look.

    Args:
        others: how many other concepts each can be swapped to.
        effort, sites: as for `look_at`.
        behind: how many later sites there are.
    """
    random, beside = effort.directions(min(filter(None, others), default=0), sites=sites)
    first = sum(RESAMPLED + trial_runs(min(n, effort.targets), random=random) for n in others)
    if not effort.doses:
        return first
    second = sum(dosed_runs(min(n, effort.dosed_targets), random=beside) for n in others)
    third = sum(dosed_runs(min(max(0, n - effort.dosed_targets), effort.open_targets), random=beside) for n in others)
    return first + (1 + behind) * len(effort.doses) * second + third
