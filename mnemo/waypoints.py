"""Where on the strong paths may a concept be read? Candidate sites, and the one at which concepts act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, agrees, choose_targets, concept_vectors
from mnemo.concepts import ReadsConcepts
from mnemo.contrasts import Contrast
from mnemo.patching import Patch, Site, ask, read_stream
from mnemo.prompts import Prompt
from mnemo.trials import TestedFacts, run_trials
from mnemo.verdict import MOVED, UNTOUCHED, weigh

if TYPE_CHECKING:
    from mnemo.model import Model

CANDIDATES = 12  # sites tried by intervention
LEAST_SHARE = 0.2  # of the effect that must pass through a candidate
SAMPLE = 128  # facts that candidates are tried on
TARGETS = 6
# Upstream of the waypoint swaps also move facts that merely have their concept there (idle ones); downstream the
# concept is partly used up. So a site counts while its swaps have this share of the best score (the rest of the facts
# it is tried on may all be of the first sort), and among those the last one that is about as clear as the clearest.
# Where the same facts are moved at earlier clear sites (nearly all: SAME_FACTS), the concept stood there already, and
# the clearest of them counts; the last of the clearest, where they differ by chance alone (ALIKE).
STILL_WORKS, AS_CLEAR, SAME_FACTS, ALIKE = 0.5, 0.9, 0.98, 0.98

_COLUMNS = ["layer", "position", "share", "swap", "control", "leakage", "sufficiency", "score", "decided", "legible"]


@dataclass(frozen=True)
class Waypoint:
    """The site at which the concepts of a study act, and what every candidate scored.

    Attributes:
        site: where.
        candidates: a row for each site tried: `layer`, `position`, `share` (of metric(clean) - metric(corrupt) lost
            when the whole state is set to its corrupt value), `swap`, `control`, `leakage`, `sufficiency`, `score`;
            `decided`, 1 where every fact's strength is 0 or 1 and 0 where all are 0.5; `legible`, the probability per
            token of the evoked concept read from the state (NaN without a reader).
        states: the residual stream of every fact at the site.
    """

    site: Site
    candidates: pd.DataFrame
    states: Float[Tensor, "fact d"]

    @property
    def swaps_work(self) -> bool:
        """Whether concept swaps were seen to work here, the positive control for facts that they do not move."""
        score = self.candidates.loc[self.candidates["chosen"], "score"].astype(float).item()
        return score >= UNTOUCHED


def sites_at(model: Model, position: int) -> list[Site]:
    """Return the sites at one position that may be a waypoint.

    Before the first block nothing was computed, and after the last nothing is.
    """
    return [Site(layer, position) for layer in range(1, model.n_layers)]


def candidate_sites(
    model: Model, contrasts: Sequence[Contrast], scores: xr.Dataset, *, most: int = CANDIDATES
) -> dict[Site, float]:
    """Return the sites from the cue's last token on through which much of the effect passes, with its share.

    Attribution proposes (its scores are linear estimates), exact patching of the whole state decides.

    Args:
        model: the model.
        contrasts: one for each fact.
        scores: their attribution, from `attribute_nodes`.
        most: how many sites to return at the most, those with the largest shares.
    """
    cue_last = min(c.clean.last - len(c.clean) for c in contrasts)
    effect = scores["metric_clean"] - scores["metric_corrupt"]
    share = (scores["residual"].mean("fact") / effect.mean("fact")).sel(position=slice(cue_last, -1))
    proposed = share.stack(site=("stream_layer", "position")).dropna("site")
    proposed = proposed[np.argsort(-np.abs(proposed.values), kind="stable")][: 4 * most]
    sample = list(contrasts[:SAMPLE])
    exact = {
        site: _share_through(model, sample, site)
        for site in sorted(Site(int(layer), int(position)) for layer, position in proposed.site.values)
        if site in sites_at(model, site.position)
    }
    strong = {site: value for site, value in exact.items() if value >= LEAST_SHARE} or exact
    return dict(sorted(strong.items(), key=lambda pair: -pair[1])[:most])


def _share_through(model: Model, contrasts: Sequence[Contrast], site: Site) -> float:
    asked = torch.tensor([(c.answer.id, c.contrast_answer.id) for c in contrasts])
    clean, corrupt = [c.clean for c in contrasts], [c.corrupt for c in contrasts]

    def difference(prompts: Sequence[Prompt], patch: Patch | None = None) -> float:
        said = ask(model, prompts, asked, patch=patch).logprob
        return float((said[:, 0] - said[:, 1]).mean())

    states = read_stream(model, corrupt, [site.position])[:, site.layer, 0]
    before = difference(clean)
    return (before - difference(clean, Patch(site, states))) / (before - difference(corrupt))


def find_waypoint(
    model: Model,
    prompts: Sequence[Prompt],
    answers: Int[Tensor, " fact"],
    *,
    sites: dict[Site, float],
    table: ConceptTable,
    concepts: Mapping[Site, Int[Tensor, " fact"]],
    reader: ReadsConcepts | None = None,
    seed: int,
    sample: int = SAMPLE,
) -> Waypoint:
    """Try concept swaps at every candidate site and return the clearest of the last clear ones at which they work.

    A site is clear where swaps either work on a fact or do not, and where its concept can be read. The last ones are
    the last of all and those before it at which the same facts are moved. Sites at the last position count only if
    none before it is clear: the answer gathers there, and vectors of states that hold it move other facts too.

    The facts it is tried on are those that may go through their concept as far as behaviour tells: the concept, asked
    by itself, gives the fact's answer.

    Args:
        model: the model.
        prompts: recall prompts of the facts.
        answers: the answer tokens that the model gives.
        sites: candidates with the share of the effect that passes through each.
        table: the concepts of the study.
        concepts: for each site the concept that each fact is said to evoke there, -1 for none.
        reader: reads the concepts from the states, where the task allows it.
        seed: decides targets and random directions.
        sample: number of facts to try on.
    """
    positions = sorted({site.position for site in sites})
    streams = read_stream(model, prompts, positions)
    found = []
    moved: dict[Site, Float[Tensor, " fact"]] = {}
    for site, share in sites.items():
        states = streams[:, site.layer, positions.index(site.position)]
        agree = agrees(answers, concepts[site], table)
        contributes = torch.where(agree, concepts[site], -1)
        support = torch.bincount(contributes[agree], minlength=len(table))
        # Whole groups of cues, those of the best-supported concepts first, make better vectors than scattered facts.
        rows = agree.nonzero()[:, 0]
        rows = rows[torch.argsort(support[contributes[rows]], descending=True, stable=True)][:sample]
        row = {"layer": site.layer, "position": site.position, "share": share}
        if len(rows):
            evoked = contributes[rows]
            targets = choose_targets(
                table, support, answers=answers[rows], concepts=evoked, n_targets=TARGETS, seed=seed
            )
            vectors = concept_vectors(model, table, states, contributes, site=site)
            tested = TestedFacts(model, prompts, rows, answers[rows], evoked, table, vectors)
            evidence = weigh(run_trials(tested, targets, seed=seed), torch.ones(len(rows)))
            moved[site] = torch.full((len(prompts),), torch.nan)
            moved[site][rows] = torch.tensor(evidence["strength"].to_numpy() > MOVED).float()
            phrases = [table.phrases[c] for c in evoked.tolist()]
            row |= {
                "swap": evidence["swap_success"].mean(),
                "control": evidence["swap_control"].mean(),
                "leakage": evidence["leakage"].mean(),
                "sufficiency": evidence["sufficiency"].mean(),
                # A state that holds the answer itself is no waypoint, however well a swap of it works.
                "score": (evidence["strength"] * (1 - evidence["leakage"].fillna(0))).mean(),
                "decided": 1 - (4 * evidence["strength"] * (1 - evidence["strength"])).mean(),
                "legible": _legible(reader, phrases, states[rows], layer=site.layer),
            }
        found.append(row)
    candidates = pd.DataFrame(found, columns=_COLUMNS)
    site = choose_site(candidates, moved)
    candidates["chosen"] = (candidates["layer"] == site.layer) & (candidates["position"] == site.position)
    return Waypoint(site, candidates, streams[:, site.layer, positions.index(site.position)])


def choose_site(candidates: pd.DataFrame, moved: Mapping[Site, Float[Tensor, " fact"]]) -> Site:
    """Return the clearest of the last clear sites; where no swap works, the one that carries most.

    Args:
        candidates: a row for each site, as in `Waypoint`.
        moved: for each site where swaps could be tried, which facts they move: 1, 0, or NaN where untried.
    """

    def site_of(row: pd.Series) -> Site:
        return Site(int(row["layer"]), int(row["position"]))

    ranking = candidates["score"].astype(float).fillna(0.0)
    if not ranking.max() > 0:
        return site_of(candidates.loc[candidates["share"].fillna(0.0).idxmax()])
    clarity = candidates["decided"].astype(float) * candidates["legible"].astype(float).fillna(1.0)
    working = candidates.assign(clarity=clarity)[ranking >= STILL_WORKS * ranking.max()]
    clear = working[working["clarity"] >= AS_CLEAR * working["clarity"].max()]
    clear = before if len(before := clear[clear["position"] < -1]) else clear
    last = moved[site_of(clear.sort_values(["layer", "score"], kind="stable").iloc[-1])]

    def as_at_the_last(row: pd.Series) -> bool:
        both = (here := moved[site_of(row)]).isfinite() & last.isfinite()
        return bool(both.any()) and float((here == last)[both].float().mean()) >= SAME_FACTS

    alike = clear[[as_at_the_last(row) for _, row in clear.iterrows()]]
    clearest = alike[alike["clarity"] >= ALIKE * alike["clarity"].max()]
    return site_of(clearest.sort_values(["layer", "clarity"], kind="stable").iloc[-1])


def _legible(
    reader: ReadsConcepts | None, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int
) -> float:
    """The mean probability of each phrase under the state beside it; NaN where none can be spelled."""
    return float("nan") if reader is None else reader.probabilities(phrases, states, layer=layer).nanmean().item()
