"""Where on the strong paths may a concept be read? Candidate sites, and the one at which concepts act."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from mnemo.tested_facts import TestedFacts
from mnemo.trials import run_trials
from mnemo.verdict import MOVED, UNTOUCHED, weigh

if TYPE_CHECKING:
    from mnemo.model import Model

LEAST_SHARE = 0.2  # of the effect that must pass through a candidate
POSITIONS, PATCHED = 8, 96  # at most so many positions, and sites in all, at which the whole state is patched
SAMPLE = 128  # facts whose whole state is patched
TARGETS = 6
SEEN = 3  # facts that must be moved by swaps, where the mean over all facts does not show it, to say that swaps work
# Upstream of the waypoint swaps also move facts that merely have their concept there (idle ones); downstream the
# concept is partly used up. So a site counts while its swaps have this share of the best score (the rest of the facts
# it is tried on may all be of the first sort), and among those the last one that is about as clear as the clearest.
# Where the same facts are moved at earlier clear sites (nearly all: SAME_FACTS), the concept stood there already, and
# the clearest of them counts; the last of the clearest, where they differ by chance alone (ALIKE).
STILL_WORKS, AS_CLEAR, SAME_FACTS, ALIKE = 0.5, 0.9, 0.98, 0.98
LATER = 2  # layers behind it, at the most, in which facts are looked at that the waypoint leaves open

CANDIDATE_COLUMNS = [
    "layer", "position", "share", "swap", "control", "leakage", "sufficiency", "score", "moved", "decided", "legible",
]  # fmt: skip


@dataclass(frozen=True)
class Waypoint:
    """The site at which the concepts of a study act, and what every candidate scored.

    Attributes:
        site: where.
        candidates: a row for each site tried: `layer`, `position`, `share` (of metric(clean) - metric(corrupt) lost
            when the whole state is set to its corrupt value), `swap`, `control`, `leakage`, `sufficiency`, `score`;
            `moved`, how many facts swaps move; `decided`, 1 where every fact's strength is 0 or 1 and 0 where all are
            0.5; `legible`, the probability per token of the evoked concept read from the state (NaN where none can be
            spelled).
        states: the residual stream of every fact at the site.
    """

    site: Site
    candidates: pd.DataFrame
    states: Float[Tensor, "fact d"]

    @property
    def swaps_work(self) -> bool:
        """Whether concept swaps were seen to work here, the positive control for facts that they do not move.

        They were if they work on the average fact, or on a few facts: mnemonics may be rare.
        """
        (chosen,) = self.candidates[self.candidates["chosen"]].to_dict("records")
        return float(chosen["score"]) >= UNTOUCHED or float(chosen["moved"]) >= SEEN

    @property
    def later(self) -> list[Site]:
        """The next layers at its position, of those in which swaps were tried.

        A few facts have their concept taken up later than the others. None at the last position, where swaps come to
        move the answer itself.
        """
        if self.site.position == -1:
            return []
        tried = self.candidates[self.candidates["swap"].notna() & (self.candidates["position"] == self.site.position)]
        layers = sorted(int(layer) for layer in tried["layer"] if layer > self.site.layer)
        return [Site(layer, self.site.position) for layer in layers[:LATER]]

    @property
    def tried(self) -> int:
        """At how many sites swaps could be tried; 1 at the least."""
        return max(1, int(self.candidates["swap"].notna().sum()))


def sites_at(model: Model, position: int) -> list[Site]:
    """Return the sites at one position that may be a waypoint.

    Before the first block nothing was computed, and after the last nothing is.
    """
    return [Site(layer, position) for layer in range(1, model.n_layers)]


def candidate_sites(
    model: Model, contrasts: Sequence[Contrast], *, scores: xr.Dataset, most: int, seed: int
) -> dict[Site, float]:
    """Return sites from the cue's last token on through which much of the effect passes, with its share.

    Attribution says at which positions to look (its scores are linear estimates), exact patching of the whole state
    decides. Where there are too many sites, they are spread evenly over the layers, up to the last one through which
    the effect of the cue still passes: it passes whole through every early layer.

    Args:
        model: the model.
        contrasts: one for each fact.
        scores: their attribution, from `attribute_nodes`.
        most: how many sites to return at the most.
        seed: draws the facts that are patched, where there are many.
    """
    cue_last = min(c.clean.last - len(c.clean) for c in contrasts)
    effect = scores["metric_clean"] - scores["metric_corrupt"]
    share = (scores["residual"].mean("fact") / effect.mean("fact")).sel(position=slice(cue_last, -1))
    largest = abs(share).max("stream_layer")
    order = sorted(range(cue_last, 0), key=lambda at: -float(largest.sel(position=at).fillna(0)))
    positions = sorted(order[:POSITIONS])
    proposed = [site for at in positions for site in _spread(sites_at(model, at), PATCHED // len(positions))]
    drawn = np.random.default_rng(seed).permutation(len(contrasts))[:SAMPLE]
    exact = _shares_through(model, [contrasts[i] for i in sorted(drawn.tolist())], proposed)
    strong = {site: value for site, value in exact.items() if value >= LEAST_SHARE} or exact
    chosen = {site: strong[site] for site in _spread_over_positions(strong, most)}
    return dict(sorted(chosen.items(), key=lambda pair: -pair[1]))


def _spread_over_positions(sites: Mapping[Site, float], most: int) -> list[Site]:
    """Choose sites evenly over layers: three in four at the position through which most passes, and so on."""
    by_position: dict[int, list[Site]] = {}
    for site in sorted(sites):
        by_position.setdefault(site.position, []).append(site)
    chosen: list[Site] = []
    # (The last position comes last: the answer gathers there, and it counts only if no site before it is clear.)
    for position in sorted(by_position, key=lambda at: (at == -1, -max(sites[site] for site in by_position[at]))):
        left = most - len(chosen)
        chosen += _spread(by_position[position], -(-3 * left // 4))
    return chosen


def _spread(sites: Sequence[Site], most: int) -> list[Site]:
    """Choose at most so many of some sites, evenly spread, the last one among them."""
    if len(sites) <= most:
        return list(sites)
    return [sites[-1 - round(i * len(sites) / most)] for i in range(most)][::-1]


def _shares_through(model: Model, contrasts: Sequence[Contrast], sites: Sequence[Site]) -> dict[Site, float]:
    """The share of metric(clean) - metric(corrupt) that is lost when the whole state at a site is the corrupt one."""
    asked = torch.tensor([(c.answer.id, c.contrast_answer.id) for c in contrasts])
    clean, corrupt = [c.clean for c in contrasts], [c.corrupt for c in contrasts]
    positions = sorted({site.position for site in sites})
    streams = read_stream(model, corrupt, positions=positions)

    def difference(prompts: Sequence[Prompt], patch: Patch | None = None) -> float:
        said = ask(model, prompts, tokens=asked, patch=patch).logprob
        return float((said[:, 0] - said[:, 1]).mean())

    before, after = difference(clean), difference(corrupt)

    def share(site: Site) -> float:
        states = streams[:, site.layer, positions.index(site.position)]
        return (before - difference(clean, Patch(site, states))) / (before - after)

    return {site: share(site) for site in sites}


def find_waypoint(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    answers: Int[Tensor, " fact"],
    sites: dict[Site, float],
    evoked_at: Callable[[Site], tuple[ConceptTable, Int[Tensor, " fact"]]],
    reader: ReadsConcepts,
    seed: int,
    sample: int,
) -> Waypoint:
    """Try concept swaps at candidate sites and return the clearest of the last clear ones at which they work.

    A site is clear where swaps either work on a fact or do not, and where its concept can be read. The last ones are
    the last of all and those before it at which the same facts are moved. Sites at the last position count only if
    none before it is clear: the answer gathers there, and vectors of states that hold it move other facts too. In deep
    models candidates are some layers apart; then the layers between the one found and the next are searched by halves.

    The facts it is tried on are those that may go through their concept as far as behaviour tells: the concept, asked
    by itself, gives the fact's answer.

    Args:
        model: the model.
        prompts: recall prompts of the facts.
        answers: the answer tokens that the model gives.
        sites: candidates with the share of the effect that passes through each.
        evoked_at: says for a site which concepts there are, and which of them each fact evokes, -1 for none.
        reader: reads the concepts from the states.
        seed: decides targets and random directions.
        sample: number of facts to try on.
    """
    positions = sorted({site.position for site in sites})
    streams = read_stream(model, prompts, positions=positions)
    found: list[dict[str, float]] = []
    moved: dict[Site, Float[Tensor, " fact"]] = {}

    def attempt(site: Site, share: float) -> None:
        row: dict[str, float] = {"layer": site.layer, "position": site.position, "share": share}
        found.append(row)
        states, (table, concepts) = streams[:, site.layer, positions.index(site.position)], evoked_at(site)
        agree = agrees(answers, concepts, table=table)
        contributes = torch.where(agree, concepts, -1)
        support = torch.bincount(contributes[agree], minlength=len(table))
        # Whole groups of cues, those of the best-supported concepts first, make better vectors than scattered facts.
        rows = agree.nonzero()[:, 0]
        rows = rows[torch.argsort(support[contributes[rows]], descending=True, stable=True)][:sample]
        if not len(rows):
            return
        evoked = contributes[rows]
        targets = choose_targets(table, support, answers=answers[rows], concepts=evoked, n_targets=TARGETS, seed=seed)
        vectors = concept_vectors(model, table, states=states, contributes=contributes, site=site)
        tested = TestedFacts(model, prompts, rows, answers[rows], evoked, table, vectors)
        evidence = weigh(run_trials(tested, targets, seed=seed), torch.ones(len(rows)))
        moved[site] = torch.full((len(prompts),), torch.nan)
        moved[site][rows] = torch.tensor(evidence["strength"].to_numpy() > MOVED).float()
        phrases = [table.phrases[c] for c in evoked.tolist()]
        # A state that holds the answer itself is no waypoint, however well a swap of it works.
        not_leaked = evidence["strength"] * (1 - evidence["leakage"].fillna(0))
        row |= {
            "swap": evidence["swap_success"].mean(),
            "control": evidence["swap_control"].mean(),
            "leakage": evidence["leakage"].mean(),
            "sufficiency": evidence["sufficiency"].mean(),
            "score": not_leaked.mean(),
            "moved": (not_leaked > MOVED).sum(),
            "decided": 1 - (4 * evidence["strength"] * (1 - evidence["strength"])).mean(),
            "legible": reader.probabilities(phrases, states[rows], layer=site.layer).nanmean().item(),
        }

    for site, share in sites.items():
        attempt(site, share)
    while True:
        candidates = pd.DataFrame(found, columns=CANDIDATE_COLUMNS)
        site = choose_site(candidates, moved)
        if (halfway := _halfway(model, site, candidates)) is None:
            break
        attempt(halfway, float("nan"))
    candidates["chosen"] = (candidates["layer"] == site.layer) & (candidates["position"] == site.position)
    return Waypoint(site, candidates, streams[:, site.layer, positions.index(site.position)])


def _halfway(model: Model, site: Site, candidates: pd.DataFrame) -> Site | None:
    """Return the site halfway between one and the next that was tried at its position; None where they are adjacent."""
    tried = set(candidates.loc[candidates["position"] == site.position, "layer"].astype(int))
    above = min((layer for layer in tried if layer > site.layer), default=model.n_layers)
    return Site((site.layer + above) // 2, site.position) if above - site.layer > 1 else None


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
