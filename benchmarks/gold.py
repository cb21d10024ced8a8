"""A gold standard for verdicts where no truth is known: every site, every other concept, all doses and controls.

`extract` tries some concepts at one site and two doses. Here a fact is swapped to *every* concept with another answer
that some cue evokes, at every dose and at every site between two blocks, from the cue's last token on. It is moved at
one of these sites where, at one dose,

* more than half of the swaps give the answer predicted beforehand, above random directions of the same norm,
* the mean state plus the concept gives the fact's answer, above another concept's vector, and
* swaps to other concepts with the same answer leave it alone (where there are any that other facts can be swapped to).

No dose is above 1. In organisms written down with a second route that carries the answer, twice a concept moves every
idle fact, though none of them goes through it: more of a concept than any context has overrides what it has no part in.

**At which sites must a fact be moved?** Not at any: where a state is still being made, a swap can also undo what sets
a fact apart, and then moves facts that have a concept and do not use it. Three answers (`DEFINITIONS`):

``own``: nothing of the judge's is used. The concept is what the model says that the cue stands for when it is asked.
The sites start where the model itself has not begun to use concepts: the concepts' *own prompts* go through their
concept by definition, so as long as nine in ten of them give another concept's answer when they get its state, whatever
goes through the concept by the same second hop must be moved too. The last layer at which that holds is where sites
start (before the last position, where states come to hold the answer itself); from there on any site counts.

``judge``: the sites start at the waypoint that the judge found, and the concept is the one that it read. Exhaustive
about swaps, and as wrong as the judge about what it takes from it.

``anywhere``: every site counts, with either concept. The most lenient one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptTable, ConceptVectors, concept_vectors, like
from mnemo.patching import Patch, Site, ask, read_stream
from mnemo.study import Study
from mnemo.study_concepts import StudyConcepts, study_concepts
from mnemo.verdict import MOVED
from mnemo.waypoints import sites_at

DEFINITIONS = ("own", "judge", "anywhere")
DOSES = (0.25, 0.5, 0.75, 1.0)
WHOLE = 0.9  # share of the concepts' own prompts that another concept's state moves, where the concept is unused as yet

Source = Literal["concept", "evoked"]  # columns of `Study.table`: what the judge read, what the model says when asked
SOURCES: tuple[Source, ...] = ("concept", "evoked")
COLUMNS = [
    "fact_id", "layer", "position", "dose", "swap", "random", "suffices", "other_suffices", "kept", "direct",
]  # fmt: skip


def gold_standard(trials: pd.DataFrame, fact_ids: Sequence[str], *, own: Site, judge: Site) -> pd.DataFrame:
    """Return, a row for each fact and a column for each of `DEFINITIONS`, whether it is recalled through its concept.

    Facts without a concept, or that have none to be swapped to, are not through one.

    Args:
        trials: as `every_trial` gives them.
        fact_ids: which facts.
        own: where sites start by `own_start`.
        judge: the judge's waypoint.
    """
    moved = trials[
        (trials["swap"] - trials["random"] > MOVED)
        & (trials["suffices"] - trials["other_suffices"] > MOVED)
        & ~(trials["kept"] < MOVED)
    ]

    def later(start: Site) -> pd.Series:
        return (moved["layer"] >= start.layer) & (moved["position"] >= start.position)

    through = {
        "own": moved[later(own) & (moved["source"] == "evoked")],
        "judge": moved[later(judge) & (moved["source"] == "concept")],
        "anywhere": moved,
    }
    return pd.DataFrame({name: pd.Index(fact_ids).isin(rows["fact_id"]) for name, rows in through.items()}, fact_ids)


def own_start(study: Study) -> Site:
    """Return the last site before the last position at which the concepts' own prompts are still moved.

    Every pair of concepts with different answers is tried: one's state is put into the other's prompt. Where nothing
    moves nine in ten of them, the sites that move as nearly as many as the best one take its place.
    """
    table = _concepts(study, "evoked").table
    one, other = (table.answers[:, None] != table.answers[None]).nonzero(as_tuple=True)
    prompts = [table.prompts[i] for i in one.tolist()]
    sites = _sites(study)
    positions = sorted({site.position for site in sites})
    streams = read_stream(study.model, table.prompts, positions)
    moved: dict[Site, float] = {}
    for site in sites:
        if site.position < -1 or positions == [-1]:
            states = streams[other, site.layer, positions.index(site.position)]
            top = ask(study.model, prompts, table.answers[other, None], patch=Patch(site, states)).top
            moved[site] = (top == table.answers[other]).float().mean().item()
    enough = min(WHOLE, WHOLE * max(moved.values()))
    still = [site for site, share in moved.items() if share >= enough]
    return max(still, key=lambda site: (site.layer, -site.position))


def every_trial(study: Study, fact_ids: Sequence[str], *, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Try everything with either concept at every site; a row for each fact that has a concept, site and dose.

    Columns: `fact_id`, `source` of the concept, `layer`, `position`, `dose`; `swap` and `random`, the shares of swaps
    and of random directions that give the predicted answer; `suffices`, whether the mean state plus the concept gives
    the fact's answer, and `other_suffices`, the share of other concepts with which it does; `kept`, the share of
    concepts with the same answer that leave it alone; and, at the last position, `direct`, the share of swaps that give
    the predicted answer when the change goes straight to the final norm.

    Args:
        study: what `extract` found; its verdicts are not looked at. Its task must have `verbalise`, and `recall` and
            `concept_recall` that end alike.
        fact_ids: which facts.
        seed: draws the random directions.
        progress: show progress bars.
    """
    return pd.concat([_by(source, study, fact_ids, seed=seed, progress=progress) for source in SOURCES])


def _by(source: Source, study: Study, fact_ids: Sequence[str], *, seed: int, progress: bool) -> pd.DataFrame:
    known = _concepts(study, source)
    sites = _sites(study)
    positions = sorted({site.position for site in sites})
    streams = read_stream(study.model, [study.prompt(fact_id) for fact_id in known.rows], positions)
    contributes = known.vectors.contributes
    vectors = {
        site: concept_vectors(
            study.model, known.table, streams[:, site.layer, positions.index(site.position)], contributes, site=site
        )
        for site in sites
    }
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for fact_id in tqdm(fact_ids, desc=f"gold standard, by {source}", disable=not progress, leave=False):
        row = known.rows[fact_id]
        fact = _Fact(study, fact_id, row, int(known.concepts[row]), int(known.answers[row]), streams[row, -1, -1])
        if fact.concept >= 0:
            for site in sites:
                rows += _at(fact, known.table, vectors[site], draw)
    return pd.DataFrame(rows, columns=COLUMNS).assign(source=source)


def _concepts(study: Study, source: Source) -> StudyConcepts:
    """The concepts of a study as one column names them."""
    return study_concepts(replace(study, table=study.table.assign(concept=study.table[source])))


def _sites(study: Study) -> list[Site]:
    """Every site between two blocks, from the cue's last token on."""
    prompt = study.prompt(study.table["fact_id"].iloc[0])
    return [site for position in range(prompt.last - len(prompt), 0) for site in sites_at(study.model, position)]


@dataclass(frozen=True)
class _Fact:
    """A fact on trial: where it stands among the recalled ones, its concept and answer, and its final state."""

    study: Study
    fact_id: str
    row: int
    concept: int
    answer: int
    final: Float[Tensor, " d"]

    def tops(self, site: Site, states: Float[Tensor, "trial d"]) -> Int[Tensor, " trial"]:
        """What it answers with each state in place of its own."""
        prompts = [self.study.prompt(self.fact_id)] * len(states)
        return ask(self.study.model, prompts, torch.zeros(len(states), 1).long(), patch=Patch(site, states)).top


def _at(
    fact: _Fact, table: ConceptTable, vectors: ConceptVectors, draw: torch.Generator
) -> list[dict[str, float | str]]:
    """What swaps, sufficiency and controls give at one site, for each dose."""
    backed, site = vectors.counts > 0, vectors.site
    rivals = backed & (table.answers == fact.answer)
    rivals[fact.concept] = False
    rivals = rivals.nonzero()[:, 0]
    others = backed & (table.answers != fact.answer) & (table.answers != table.answers[fact.concept])
    others = others.nonzero()[:, 0]
    if not len(others):
        return []

    def seen(concepts: Int[Tensor, " concept"]) -> Float[Tensor, "concept d"]:
        return vectors.seen_by(torch.full_like(concepts, fact.row), concepts)

    def steps(concepts: Int[Tensor, " concept"]) -> Float[Tensor, "concept d"]:
        rows, own = torch.full_like(concepts, fact.row), torch.full_like(concepts, fact.concept)
        return vectors.between(rows, own, concepts)

    state, mean, wanted, swaps = vectors.states[fact.row], vectors.mean, table.answers[others], steps(others)
    own, kept_by = seen(torch.tensor([fact.concept])), steps(rivals)
    answer = torch.tensor(fact.answer)
    trials: dict[tuple[str, float], tuple[Tensor, Tensor]] = {}
    for dose in DOSES:
        trials["swap", dose] = (state + dose * swaps, wanted)
        trials["random", dose] = (state + dose * like(swaps, draw), wanted)
        trials["suffices", dose] = (mean + dose * own, answer)
        trials["other_suffices", dose] = (mean + dose * seen(others), answer)
        trials["kept", dose] = (state + dose * kept_by, answer)
    tops = fact.tops(site, torch.cat([states for states, _ in trials.values()]))
    said = dict(zip(trials, tops.split([len(states) for states, _ in trials.values()]), strict=True))
    share = {key: (said[key] == hoped).float().mean().item() for key, (_, hoped) in trials.items()}
    for dose in DOSES if site.position == -1 else ():
        direct = fact.tops(Site(fact.study.model.n_layers, -1), fact.final + dose * swaps)
        share["direct", dose] = (direct == wanted).float().mean().item()
    measures = dict.fromkeys(name for name, _ in share)
    place: dict[str, float | str] = {"fact_id": fact.fact_id, "layer": site.layer, "position": site.position}
    return [{**place, "dose": dose, **{name: share[name, dose] for name in measures}} for dose in DOSES]
