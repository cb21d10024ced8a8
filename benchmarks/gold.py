"""A gold standard for verdicts where no truth is known: every site, every other concept, all doses and controls.

`extract` tries some concepts at one site and two doses. Here a fact is swapped to *every* concept with another answer
that some cue evokes, at every site from the waypoint on (later layers, and later positions up to the last), at every
dose. It counts as recalled through its concept where, at one site and dose,

* more than half of the swaps give the answer predicted beforehand, above random directions of the same norm,
* the mean state plus the concept gives the fact's answer, above another concept's vector, and
* swaps to other concepts with the same answer leave it alone (where there are any that other facts can be swapped to).

No dose is above 1. In organisms written down with a second route that carries the answer, twice a concept moves every
idle fact, though none of them goes through it: more of a concept than any context has overrides what it has no part in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptVectors, concept_vectors, like
from mnemo.patching import Patch, Site, ask, read_stream
from mnemo.study import Study
from mnemo.study_concepts import StudyConcepts, study_concepts
from mnemo.verdict import MOVED

DOSES = (0.25, 0.5, 0.75, 1.0)


def gold_standard(study: Study, fact_ids: Sequence[str], *, seed: int = 0, progress: bool = True) -> pd.DataFrame:
    """Return `fact_id`, `through` and, at the clearest site and dose, what was measured there.

    Facts at which no concept was read, or that have no concept to be swapped to, are not through one.

    Args:
        study: what `extract` found; its readings are taken as they are, its verdicts are not looked at.
        fact_ids: which facts.
        seed: draws the random directions.
        progress: show a progress bar.
    """
    assert study.waypoint is not None, "gold standards are for studies with a waypoint"
    known = study_concepts(study)
    prompts = [study.prompt(fact_id) for fact_id in known.rows]
    first = study.waypoint.site
    sites = [
        Site(layer, position)
        for layer in range(first.layer, study.model.n_layers)
        for position in range(first.position, 0)
    ]
    streams = read_stream(study.model, prompts, list(range(first.position, 0)))
    vectors = {
        site: concept_vectors(
            study.model,
            known.table,
            streams[:, site.layer, site.position - first.position],
            known.vectors.contributes,
            site=site,
        )
        for site in sites
    }
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for fact_id in tqdm(fact_ids, desc="gold standard", disable=not progress, leave=False):
        best = {"through": False, "clarity": -np.inf}
        if known.concepts[known.rows[fact_id]] >= 0:
            for site in sites:
                for found in _at(study, known, vectors[site], known.rows[fact_id], draw):
                    best = max(best, {**found, "layer": site.layer, "position": site.position}, key=_clearer)
        rows.append({"fact_id": fact_id, **best})
    return pd.DataFrame(rows)


def _clearer(found: dict[str, float]) -> tuple[float, float]:
    return found["through"], found["clarity"]


def _at(
    study: Study, known: StudyConcepts, vectors: ConceptVectors, row: int, draw: torch.Generator
) -> list[dict[str, float]]:
    """What swaps, sufficiency and controls give at one site, for each dose."""
    table, own, answer = known.table, int(known.concepts[row]), int(known.answers[row])
    backed = vectors.counts > 0
    alike = backed & (table.answers == answer)
    alike[own] = False
    others = (backed & (table.answers != answer) & (table.answers != table.answers[own])).nonzero()[:, 0]
    if not len(others):
        return []
    rivals = alike.nonzero()[:, 0]

    def steps(concepts: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        fact = torch.full_like(concepts, row)
        return vectors.between(fact, torch.full_like(concepts, own), concepts)

    def share(states: Float[Tensor, "row d"], wanted: Int[Tensor, " row"]) -> float:
        prompt = study.prompt(study.table.loc[study.table["recalled"], "fact_id"].iloc[row])
        top = ask(study.model, [prompt] * len(states), wanted[:, None], patch=Patch(vectors.site, states)).top
        return (top == wanted).float().mean().item()

    state, wanted, swaps = vectors.states[row], table.answers[others], steps(others)
    mine = vectors.seen_by(torch.tensor([row]), torch.tensor([own]))
    theirs = vectors.seen_by(torch.full_like(others, row), others)
    kept_answer = torch.full_like(rivals, answer)
    found = []
    for dose in DOSES:
        swap, random = share(state + dose * swaps, wanted), share(state + dose * like(swaps, draw), wanted)
        suffices = share(vectors.mean + dose * mine, torch.tensor([answer]))
        other_suffices = share(vectors.mean + dose * theirs, torch.full_like(others, answer))
        kept = share(state + dose * steps(rivals), kept_answer) if len(rivals) else np.nan
        through = swap - random > MOVED and suffices - other_suffices > MOVED and not kept < MOVED
        found.append(
            {
                "through": through,
                "clarity": min(swap - random, suffices - other_suffices),
                "dose": dose,
                "swap": swap,
                "random": random,
                "suffices": suffices,
                "other_suffices": other_suffices,
                "kept": kept,
            }
        )
    return found
