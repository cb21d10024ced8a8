"""A gold standard for verdicts where no truth is known: every site, every other concept, all doses and controls.

`extract` tries some concepts, at the waypoint and in the next layers. Here a fact is swapped to *every* concept with
another answer that some cue evokes, at every dose and at every site between two blocks, from the cue's last token on.
It is moved at one of these sites where, at one dose,

* more than half of the swaps give the answer predicted beforehand, above random directions of the same norm,
* the mean state plus the concept gives the fact's answer, above another concept's vector, and
* swaps to other concepts with the same answer leave it alone (where there are any that other facts can be swapped to).

No dose is above 1. In organisms written down with a second route that carries the answer, twice a concept moves every
idle fact, though none of them goes through it: more of a concept than any context has overrides what it has no part in.

**At which sites must a fact be moved?** Not at any: where a state is still being made, a swap can also undo what sets
a fact apart, and then moves facts that have a concept and do not use it. Five answers (`DEFINITIONS`):

``own``: nothing of the judge's is used. The concept is what the model says that the cue stands for when it is asked.
The sites start where the model itself has not begun to use concepts: the concepts' *own prompts* go through their
concept by definition, so as long as nine in ten of them give another concept's answer when they get its state, whatever
goes through the concept by the same second hop must be moved too. The last layer at which that holds is where sites
start (before the last position, where states come to hold the answer itself); from there on any site counts.

``own, either``: the same sites, with that concept or the one that the judge read: asked, a model may name another
concept than the one that a fact goes through.

``own, inner``: of these, the sites before the last position alone (all, where the cue ends the prompt).

``judge``: the sites start at the waypoint that the judge found, and the concept is the one that it read. Exhaustive
about swaps, and as wrong as the judge about what it takes from it.

``anywhere``: every site counts, with either concept. The most lenient one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.prompts import Prompt

DEFINITIONS = ("own", "own, either", "own, inner", "judge", "anywhere")
DOSES = (0.25, 0.5, 0.75, 1.0)
WHOLE = 0.9  # share of the concepts' own prompts that another concept's state moves, where the concept is unused as yet

Source = Literal["concept", "evoked"]  # columns of `Study.table`: what the judge read, what the model says when asked
SOURCES: tuple[Source, ...] = ("concept", "evoked")
COLUMNS = [
    "fact_id", "source", "layer", "position", "dose", "swap", "random", "other_suffices", "kept", "direct",
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
        (trials["swap"] - trials["random"] > MOVED) & (1 - trials["other_suffices"] > MOVED) & ~(trials["kept"] < MOVED)
    ]

    def later(start: Site) -> pd.Series:
        return (moved["layer"] >= start.layer) & (moved["position"] >= start.position)

    through = {
        "own": moved[later(own) & (moved["source"] == "evoked")],
        "own, either": moved[later(own)],
        "own, inner": moved[later(own) & ((moved["position"] < -1) | (own.position == -1))],
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
    streams = read_stream(study.model, table.prompts, positions=positions)
    moved: dict[Site, float] = {}
    for site in sites:
        if site.position < -1 or positions == [-1]:
            states = streams[other, site.layer, positions.index(site.position)]
            top = ask(study.model, prompts, tokens=table.answers[other, None], patch=Patch(site, states)).top
            moved[site] = (top == table.answers[other]).float().mean().item()
    enough = min(WHOLE, WHOLE * max(moved.values()))
    still = [site for site, share in moved.items() if share >= enough]
    return max(still, key=lambda site: (site.layer, -site.position))


def every_trial(study: Study, fact_ids: Sequence[str], *, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Try every fact with either concept at every site and dose; what cannot count any more is not tried further.

    Returns:
        a row for each fact, concept, site and dose at which the mean state plus the concept gives the fact's answer and
        more than half of the swaps the predicted one: `fact_id`, `source` of the concept, `layer`, `position`, `dose`;
        `swap` and `random`, the shares of swaps and of random directions that give the predicted answer;
        `other_suffices`, the share of other concepts that give the fact's answer; `kept`, the share of concepts with
        the same answer that leave it alone; and, at the last position, `direct`, the share of swaps that give the
        predicted answer when the change goes straight to the final norm.

    Args:
        study: what `extract` found; its verdicts are not looked at. Its task must have `verbalise`, and `recall` and
            `concept_recall` that end alike.
        fact_ids: which facts.
        seed: draws the random directions.
        progress: show progress bars.
    """
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for source in SOURCES:
        known, sites = _concepts(study, source), _sites(study)
        positions = sorted({site.position for site in sites})
        streams = read_stream(study.model, [study.prompt(fact_id) for fact_id in known.rows], positions=positions)
        for site in tqdm(sites, desc=f"gold standard, by {source}", disable=not progress, leave=False):
            states = streams[:, site.layer, positions.index(site.position)]
            vectors = concept_vectors(
                study.model, known.table, states=states, contributes=known.vectors.contributes, site=site
            )
            for fact_id in fact_ids:
                row = known.rows[fact_id]
                if known.concepts[row] >= 0:
                    fact = _Fact.of(study, fact_id, row, int(known.concepts[row]), int(known.answers[row]))
                    rows += [{"source": source, **found} for found in _at(fact, known.table, vectors, draw)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _concepts(study: Study, source: Source) -> StudyConcepts:
    """The concepts of a study as one column names them."""
    return study_concepts(replace(study, table=study.table.assign(concept=study.table[source])))


def _sites(study: Study) -> list[Site]:
    """Every site between two blocks, from the cue's last token on."""
    prompt = study.prompt(study.table["fact_id"].iloc[0])
    return [site for position in range(prompt.last - len(prompt), 0) for site in sites_at(study.model, position)]


@dataclass(frozen=True)
class _Fact:
    """A fact on trial: where it stands among the recalled ones, its concept, its answer and all its states."""

    model: Model
    fact_id: str
    row: int
    concept: int
    answer: int
    prompt: Prompt
    stream: Float[Tensor, "layer position d"]

    @classmethod
    def of(cls, study: Study, fact_id: str, row: int, concept: int, answer: int) -> _Fact:
        prompt = study.prompt(fact_id)
        stream = read_stream(study.model, [prompt], positions=range(-len(prompt), 0))[0]
        return cls(study.model, fact_id, row, concept, answer, prompt, stream)

    def tops(self, site: Site, states: Float[Tensor, "trial d"]) -> Int[Tensor, " trial"]:
        """What it answers with each state in place of its own."""
        nothing = torch.empty(len(states), 0).long()
        return ask(self.model, [self.prompt] * len(states), tokens=nothing, patch=Patch(site, states)).top


def _at(fact: _Fact, table: ConceptTable, vectors: ConceptVectors, draw: torch.Generator) -> list[dict[str, Any]]:
    """What swaps and their controls give at one site, for each dose at which they may count."""
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
        return vectors.between(rows, own, other=concepts)

    def share(tried: dict[float, Tensor], wanted: Tensor, at: Site = site) -> dict[float, float]:
        """How often states give the wanted answers, for each dose; NaN where there is nothing to be tried."""
        if not any(map(len, tried.values())):
            return dict.fromkeys(tried, math.nan)
        tops = fact.tops(at, torch.cat(list(tried.values()))).split([len(states) for states in tried.values()])
        return {dose: (top == wanted).float().mean().item() for dose, top in zip(tried, tops, strict=True)}

    state, mean, answer = vectors.states[fact.row], vectors.mean, torch.tensor(fact.answer)
    mine, theirs, swaps, kept_by = seen(torch.tensor([fact.concept])), seen(others), steps(others), steps(rivals)
    wanted, final = table.answers[others], Site(fact.model.n_layers, -1)
    suffices = share({dose: mean + dose * mine for dose in DOSES}, answer)
    swap = share({dose: state + dose * swaps for dose, given in suffices.items() if given}, wanted)
    left = [dose for dose, came in swap.items() if came > MOVED]
    beside = {
        "random": share({dose: state + dose * like(swaps, draw) for dose in left}, wanted),
        "other_suffices": share({dose: mean + dose * theirs for dose in left}, answer),
        "kept": share({dose: state + dose * kept_by for dose in left}, answer),
    }
    if site.position == final.position:
        last = fact.stream[final.layer, final.position]
        beside["direct"] = share({dose: last + dose * swaps for dose in left}, wanted, final)
    place = {"fact_id": fact.fact_id, "layer": site.layer, "position": site.position}
    return [
        {**place, "dose": dose, "swap": swap[dose], **{name: shares[dose] for name, shares in beside.items()}}
        for dose in left
    ]
