"""Does the concept do the work? Every intervention on some facts at one site, and what the model answers.

Swaps add (other concept - own concept) to a fact's state; each has random directions of the same norm beside it. All
probabilities are of a single token at the last position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, ConceptVectors, as_long
from mnemo.patching import Answers, Patch, Site, ask, read_stream
from mnemo.prompts import Prompt

if TYPE_CHECKING:
    from mnemo.model import Model

# Random directions beside each swap: so many that a fact which every swap moves, and no direction, is beyond chance
# (UNLIKELY), after all tests are paid for. Where targets are few, that takes more of them; more than MOST never.
LEAST, MOST, UNLIKELY = 2, 64, 0.02
RIVALS = 4  # other concepts with the same answer, at the most, that a fact is swapped to
WITNESSES = 4  # facts of other concepts swapped to each of those, to see whether that works at all
RESAMPLED = 3  # other facts whose concept stands in for a fact's own, one after the other


@dataclass(frozen=True)
class Swaps:
    """What facts answer when swapped to each of their targets, and under random directions of the same norms.

    Attributes:
        top: the answer; -1 where a fact has fewer targets.
        probability: of the answer predicted beforehand; NaN where a fact has fewer targets, as below.
        margin: log-probability of the fact's own answer less that of the predicted one, in nats.
        random_top: the answer under each random direction.
        random_probability: of the predicted answer under each.
    """

    top: Int[Tensor, "fact target"]
    probability: Float[Tensor, "fact target"]
    margin: Float[Tensor, "fact target"]
    random_top: Int[Tensor, "fact target random"]
    random_probability: Float[Tensor, "fact target random"]


@dataclass(frozen=True)
class Trials:
    """Every intervention on some facts at one site, and what the model answered.

    Attributes:
        answers: the facts' own answer tokens.
        predicted: the answer of each target, predicted beforehand; -1 where a fact has fewer.
        by_cues: swaps with vectors from the cues that evoke the concepts.
        by_prompts: swaps with vectors from the concepts' own prompts.
        direct_top: what it answers when the change of `by_cues` goes straight to the final norm, past all later
            blocks; -1 at positions other than the last, from which nothing goes straight to the answer.
        sufficient: probability of the fact's answer with the mean state plus the concept vector in place of its own.
        sufficient_control: the same with the vector of its first target: what the rest of the prompt gives away.
        ablated: probability of the fact's answer without the concept vector.
        ablated_control: the same without a random vector of that norm.
        swap_effect: drop of logit(answer) - logit(predicted answer) under the swap.
        same_concept: probability of the fact's answer when what one other cue of the same concept has of it stands in
            for what all have: must change nothing. NaN without two other cues.
        same_answer: probability of the fact's answer when swapped to another concept with that answer, the mean over
            up to RIVALS of them: must change nothing. NaN where there is none to which other facts can be swapped.
        without_answer_top: answers when the answers' own directions are taken out of a swap's vectors; -1 where the
            target's answer has no other concept, or a vector comes from concept prompts.
        whole_top: answers when the whole state is that of a cue which evokes the target; -1 where no cue does. It
            overwrites the cue, so it proves nothing.
        cue_effect: the drop of `swap_effect` when the whole prompt is that of another cue, which evokes the target;
            NaN where no cue does.
    """

    answers: Int[Tensor, " fact"]
    predicted: Int[Tensor, "fact target"]
    by_cues: Swaps
    by_prompts: Swaps
    direct_top: Int[Tensor, "fact target"]
    sufficient: Float[Tensor, " fact"]
    sufficient_control: Float[Tensor, " fact"]
    ablated: Float[Tensor, " fact"]
    ablated_control: Float[Tensor, " fact"]
    swap_effect: Float[Tensor, "fact target"]
    cue_effect: Float[Tensor, "fact target"]
    same_concept: Float[Tensor, " fact"]
    same_answer: Float[Tensor, " fact"]
    without_answer_top: Int[Tensor, "fact target"]
    whole_top: Int[Tensor, "fact target"]

    @property
    def tried(self) -> Bool[Tensor, "fact target"]:
        """Where a fact has a target."""
        return self.predicted >= 0


@dataclass(frozen=True)
class DosedSwaps:
    """The swaps of some facts at one dose.

    Attributes:
        dose: multiple of the vectors that was added.
        predicted: the answer of each target, predicted beforehand; -1 where a fact has fewer.
        by_cues, by_prompts, sufficient, sufficient_control: as in `Trials`, with that dose of the vectors.
    """

    dose: float
    predicted: Int[Tensor, "fact target"]
    by_cues: Swaps
    by_prompts: Swaps
    sufficient: Float[Tensor, " fact"]
    sufficient_control: Float[Tensor, " fact"]


def directions_beside(targets: int, *, tests: int, least: int = LEAST) -> int:
    """Return how many random directions stand beside each swap of a fact to so many targets.

    Args:
        targets: how many.
        tests: by how many the p-value will be multiplied.
        least: how many at least.
    """
    return next((n for n in range(least, MOST) if tests * smallest_p(targets, n) < UNLIKELY), MOST)


def smallest_p(targets: int, random: int) -> float:
    """Return the p-value (Fisher) where every swap succeeds, and none of so many directions beside each does."""
    return 1 / math.comb(targets * (1 + random), targets)


def run_trials(tested: TestedFacts, targets: Int[Tensor, "fact target"], *, seed: int, random: int = LEAST) -> Trials:
    """Swap, replace and remove the concept of each fact.

    Args:
        tested: the facts.
        targets: concepts to swap each to, -1 for none.
        seed: draws the random directions. Each fact has a stream of its own, so that what it gets does not depend on
            the facts that are tested with it.
        random: how many of them beside each swap.
    """
    pairs = _Pairs.of(targets, tested.table)
    draw = _Draws.of(tested.facts, seed)
    own, everyone = tested.own, torch.arange(len(tested.facts))
    by_cues = tested.swap(pairs, tested.between(pairs), draw, random=random)
    by_prompts = tested.swap(pairs, tested.between_prompts(pairs), draw, random=random)
    sufficient, sufficient_control = tested.suffice(targets)
    noise = as_long(draw.normal(everyone, own.shape[1]), own)
    swap_effect, cue_effect = _effects(tested, pairs, by_cues)
    return Trials(
        answers=tested.answers,
        predicted=pairs.table(pairs.wanted, empty=-1),
        by_cues=by_cues,
        by_prompts=by_prompts,
        direct_top=_direct(tested, pairs),
        sufficient=sufficient,
        sufficient_control=sufficient_control,
        ablated=tested.place(everyone, tested.state - own, tested.answers)[1],
        ablated_control=tested.place(everyone, tested.state - noise, tested.answers)[1],
        swap_effect=swap_effect,
        cue_effect=cue_effect,
        same_concept=_same_concept(tested),
        same_answer=_same_answer(tested, draw),
        without_answer_top=_without_answer(tested, pairs),
        whole_top=_whole(tested, pairs),
    )


def run_dosed_swaps(
    tested: TestedFacts, targets: Int[Tensor, "fact target"], *, doses: Sequence[float], seed: int, random: int = 1
) -> list[DosedSwaps]:
    """Swap each fact at several doses, with random directions of the same norm beside each swap.

    A fact may hold its concept in another amount than the contexts that its vector is made of. The swap of dose 1 then
    takes out more than is there, or leaves some of it behind.

    Args:
        tested, targets, seed, random: as for `run_trials`.
        doses: multiples of the vectors that it adds.
    """
    pairs = _Pairs.of(targets, tested.table)
    draw = _Draws.of(tested.facts, seed, stream=1)
    predicted = pairs.table(pairs.wanted, empty=-1)
    by_cues, by_prompts = (  # one sort after the other: in that order each swap draws its directions
        [tested.swap(pairs, dose * step, draw, random=random) for dose in doses]
        for step in (tested.between(pairs), tested.between_prompts(pairs))
    )
    return [
        DosedSwaps(dose, predicted, cues, prompts, *tested.suffice(targets, dose=dose))
        for dose, cues, prompts in zip(doses, by_cues, by_prompts, strict=True)
    ]


def run_resamples(tested: TestedFacts, *, seed: int) -> Float[Tensor, " fact"]:
    """Replace each fact's concept by those of random other facts (resample ablation, as in Chan et al. 2022).

    Where `Trials.ablated` takes the concept out, which may leave a state like no other, this leaves one as other facts
    have them.

    Returns:
        the probability of the fact's answer, the mean over up to RESAMPLED other facts; NaN where none is of another
        concept.
    """
    others = resampled(tested.vectors, tested.facts, tested.concepts, seed=seed, most=RESAMPLED)
    row, column = (others >= 0).nonzero(as_tuple=True)
    step = tested.vectors.between(tested.facts[row], tested.concepts[row], others[row, column])
    kept = torch.full(others.shape, torch.nan)
    kept[row, column] = tested.place(row, tested.state[row] + step, tested.answers[row])[1]
    return kept.nanmean(1)


def resampled(
    vectors: ConceptVectors, facts: Int[Tensor, " fact"], concepts: Int[Tensor, " fact"], *, seed: int, most: int
) -> Int[Tensor, "fact other"]:
    """Draw random facts of other concepts for each fact, and return their concepts; -1 where there are fewer.

    A concept that more cues evoke is drawn more often, whatever its answer. Each fact has a stream of its own.

    Args:
        vectors: concept vectors; facts that none is made of are not drawn.
        facts: rows in `vectors`.
        concepts: the concept of each.
        seed: decides the draw.
        most: how many to draw.
    """
    whose = vectors.contributes
    drawn = _Draws.of(facts, seed, stream=2).uniform(torch.arange(len(facts)), len(whose))
    possible = (whose >= 0) & (whose != concepts[:, None])
    best = torch.where(possible, drawn, -1.0).topk(min(most, len(whose)), dim=1)
    return torch.where(best.values >= 0, whose[best.indices], -1)


@dataclass(frozen=True)
class _Pairs:
    """Every fact beside each of its targets: one trial each.

    Attributes:
        shape: facts and the most targets that one has.
        row: the fact of each trial, counted among those tested.
        column: which of its targets.
        target: the concept swapped to.
        wanted: the answer predicted for it.
    """

    shape: tuple[int, int]
    row: Int[Tensor, " trial"]
    column: Int[Tensor, " trial"]
    target: Int[Tensor, " trial"]
    wanted: Int[Tensor, " trial"]

    @classmethod
    def of(cls, targets: Int[Tensor, "fact target"], table: ConceptTable) -> _Pairs:
        row, column = (targets >= 0).nonzero(as_tuple=True)
        target = targets[row, column]
        n, most = targets.shape
        return cls((n, most), row, column, target, table.answers[target])

    def table(self, values: Tensor, *, empty: float, chosen: Bool[Tensor, " trial"] | None = None) -> Tensor:
        """Put a value for each trial, or for the chosen ones, where its fact and target are."""
        chosen = torch.ones_like(self.row).bool() if chosen is None else chosen
        table = torch.full((*self.shape, *values.shape[1:]), empty, dtype=values.dtype)
        table[self.row[chosen], self.column[chosen]] = values
        return table


@dataclass(frozen=True)
class TestedFacts:
    """Facts whose state at one site can be replaced.

    Attributes:
        model: the model.
        prompts: recall prompts of all facts in `vectors`.
        facts: rows in `vectors` of those tested.
        answers: their answer tokens.
        concepts: the concept that each is thought to stand for.
        table: all concepts.
        vectors: their vectors at the site.
    """

    __test__ = False  # pytest takes classes of such a name for tests

    model: Model
    prompts: Sequence[Prompt]
    facts: Int[Tensor, " fact"]
    answers: Int[Tensor, " fact"]
    concepts: Int[Tensor, " fact"]
    table: ConceptTable
    vectors: ConceptVectors

    @property
    def state(self) -> Float[Tensor, "fact d"]:
        """The untouched states."""
        return self.vectors.states[self.facts]

    @property
    def own(self) -> Float[Tensor, "fact d"]:
        """The vectors of their concepts."""
        return self.vectors.seen_by(self.facts, self.concepts)

    def only(self, rows: Int[Tensor, " row"]) -> TestedFacts:
        """Return some of them."""
        facts, answers, concepts = self.facts[rows], self.answers[rows], self.concepts[rows]
        return replace(self, facts=facts, answers=answers, concepts=concepts)

    def ask(self, known: Tensor, wanted: Tensor, patch: Patch | None = None) -> Answers:
        """Ask facts, given by their rows in `vectors`, for the tokens beside them."""
        return ask(self.model, [self.prompts[i] for i in known.tolist()], wanted, patch=patch)

    def place(self, rows: Tensor, states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Put a state in place of a fact's own; its answer, and the probability of the one wanted."""
        said = self.ask(self.facts[rows], wanted[:, None], Patch(self.vectors.site, states))
        return said.top, said.logprob[:, 0].exp()

    def between(self, pairs: _Pairs) -> Float[Tensor, "trial d"]:
        """What takes each fact to its target, by vectors of cues."""
        return self.vectors.between(self.facts[pairs.row], self.concepts[pairs.row], pairs.target)

    def between_prompts(self, pairs: _Pairs) -> Float[Tensor, "trial d"]:
        """The same by vectors of the concepts' own prompts."""
        return self.vectors.from_prompts[pairs.target] - self.vectors.from_prompts[self.concepts[pairs.row]]

    def swap(self, pairs: _Pairs, step: Float[Tensor, "trial d"], draw: _Draws, *, random: int) -> Swaps:
        """Add a step to each state, and `random` random directions as long."""
        state = self.state[pairs.row]
        both = torch.stack([self.answers[pairs.row], pairs.wanted], 1)
        said = self.ask(self.facts[pairs.row], both, Patch(self.vectors.site, state + step))
        noise = [as_long(draw.normal(pairs.row, step.shape[1]), step) for _ in range(random)]
        control = [self.place(pairs.row, state + direction, pairs.wanted) for direction in noise]
        return Swaps(
            top=pairs.table(said.top, empty=-1),
            probability=pairs.table(said.logprob[:, 1].exp(), empty=torch.nan),
            margin=pairs.table(_margin(said), empty=torch.nan),
            random_top=pairs.table(torch.stack([top for top, _ in control], -1), empty=-1),
            random_probability=pairs.table(torch.stack([p for _, p in control], -1), empty=torch.nan),
        )

    def suffice(
        self, targets: Int[Tensor, "fact target"], *, dose: float = 1.0
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, " fact"]]:
        """Probability of each answer with the mean state plus the own concept, and plus that of the first target."""
        rows = (targets[:, 0] >= 0).nonzero()[:, 0]
        other = self.vectors.seen_by(self.facts[rows], targets[rows, 0])
        control = torch.full((len(self.facts),), torch.nan)
        control[rows] = self.place(rows, self.vectors.mean + dose * other, self.answers[rows])[1]
        everyone = torch.arange(len(self.facts))
        return self.place(everyone, self.vectors.mean + dose * self.own, self.answers)[1], control


def _effects(tested: TestedFacts, pairs: _Pairs, swaps: Swaps) -> tuple[Tensor, Tensor]:
    """By how much logit(answer) - logit(predicted answer) drops under each swap, and under the whole other cue."""
    both = torch.stack([tested.answers[pairs.row], pairs.wanted], 1)
    before = pairs.table(_margin(tested.ask(tested.facts[pairs.row], both)), empty=torch.nan)
    donor = tested.vectors.first_context(pairs.target)
    there = donor >= 0
    other_cue = pairs.table(_margin(tested.ask(donor[there], both[there])), empty=torch.nan, chosen=there)
    return before - swaps.margin, before - other_cue


def _direct(tested: TestedFacts, pairs: _Pairs) -> Int[Tensor, "fact target"]:
    """Answers when each swap's change goes straight to the final norm."""
    if tested.vectors.site.position != -1:
        return torch.full(pairs.shape, -1)
    final = read_stream(tested.model, [tested.prompts[i] for i in tested.facts.tolist()], [-1])[:, -1, 0]
    straight = Patch(Site(tested.model.n_layers, -1), final[pairs.row] + tested.between(pairs))
    said = tested.ask(tested.facts[pairs.row], pairs.wanted[:, None], straight)
    return pairs.table(said.top, empty=-1)


def _without_answer(tested: TestedFacts, pairs: _Pairs) -> Int[Tensor, "fact target"]:
    """Answers when the directions of the answers are taken out of both vectors of each swap."""
    vectors, facts, own = tested.vectors, tested.facts[pairs.row], tested.concepts[pairs.row]
    bare, has_direction = vectors.without_answer(facts, pairs.target, tested.table.answers)
    own_bare, _ = vectors.without_answer(facts, own, tested.table.answers)
    left = vectors.counts[own] - (vectors.contributes[facts] == own).long()
    possible = has_direction & (left > 0) & (vectors.counts[pairs.target] > 0)
    states = (tested.state[pairs.row] + bare - own_bare)[possible]
    top, _ = tested.place(pairs.row[possible], states, pairs.wanted[possible])
    return pairs.table(top, empty=-1, chosen=possible)


def _whole(tested: TestedFacts, pairs: _Pairs) -> Int[Tensor, "fact target"]:
    """Answers with the whole state of a cue that evokes the target."""
    donor = tested.vectors.first_context(pairs.target)
    there = donor >= 0
    top, _ = tested.place(pairs.row[there], tested.vectors.states[donor[there]], pairs.wanted[there])
    return pairs.table(top, empty=-1, chosen=there)


def _same_concept(tested: TestedFacts) -> Float[Tensor, " fact"]:
    """Probability of each answer when another cue of the concept stands in for the concept's vector."""
    vectors, own = tested.vectors, tested.own
    peer = vectors.other_context(tested.facts, tested.concepts)
    rows = (peer >= 0).nonzero()[:, 0]
    stand_in = vectors.states[peer[rows]] - vectors.mean - own[rows]
    kept = torch.full((len(own),), torch.nan)
    kept[rows] = tested.place(rows, tested.state[rows] + stand_in, tested.answers[rows])[1]
    return kept


def _same_answer(tested: TestedFacts, draw: _Draws) -> Float[Tensor, " fact"]:
    """Probability of each answer, the mean over swaps to other concepts that have it."""
    table, vectors = tested.table, tested.vectors
    drawn = draw.uniform(torch.arange(len(tested.facts)), len(table))
    rivals = rivals_of(table, vectors.counts, tested.answers, tested.concepts, drawn)
    row, place = (rivals >= 0).nonzero(as_tuple=True)
    rival = rivals[row, place]
    step = vectors.between(tested.facts[row], tested.concepts[row], rival)
    kept = torch.full(rivals.shape, torch.nan)
    kept[row, place] = tested.place(row, tested.state[row] + step, tested.answers[row])[1]
    # Positive control: a rival to which other facts cannot be swapped either says nothing about this one.
    witness = _witnesses(table, vectors, rival, draw.uniform(row, len(vectors.contributes)))
    there = witness >= 0
    seen, to = witness[there], rival[:, None].expand_as(witness)[there]
    moved = Patch(vectors.site, vectors.states[seen] + vectors.between(seen, vectors.contributes[seen], to))
    reached = torch.full(witness.shape, torch.nan)
    reached[there] = tested.ask(seen, table.answers[to][:, None], moved).logprob[:, 0].exp()
    useless = ~(reached.nanmean(1) >= 0.5)  # without a witness nothing is known of it
    kept[row[useless], place[useless]] = torch.nan
    return kept.nanmean(1)


def rivals_of(
    table: ConceptTable,
    counts: Int[Tensor, " concept"],
    answers: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    drawn: Float[Tensor, "fact concept"],
) -> Int[Tensor, "fact rival"]:
    """Return up to RIVALS other concepts with each fact's answer that some cue evokes, drawn highest first; else -1."""
    possible = (table.answers[None] == answers[:, None]) & (counts > 0)
    possible[torch.arange(len(concepts)), concepts] = False
    best = torch.where(possible, drawn, -1.0).topk(min(RIVALS, len(table)), dim=1)
    return torch.where(best.values >= 0, best.indices, -1)


def _witnesses(
    table: ConceptTable, vectors: ConceptVectors, rivals: Int[Tensor, " trial"], drawn: Float[Tensor, "trial fact"]
) -> Int[Tensor, "trial witness"]:
    """Facts with other answers than each rival's, of those that vectors are made of: those drawn highest, else -1."""
    whose = vectors.contributes
    possible = (whose >= 0) & (table.answers[whose] != table.answers[rivals][:, None])
    best = torch.where(possible, drawn, -1.0).topk(min(WITNESSES, len(whose)), dim=1)
    return torch.where(best.values >= 0, best.indices, -1)


def _margin(said: Answers) -> Float[Tensor, " row"]:
    """First minus second log-probability asked for, which is the difference of their logits."""
    return said.logprob[:, 0] - said.logprob[:, 1]


@dataclass(frozen=True)
class _Draws:
    """Random numbers for some facts, each from a stream of its own."""

    streams: tuple[torch.Generator, ...]

    @classmethod
    def of(cls, facts: Int[Tensor, " fact"], seed: int, *, stream: int = 0) -> _Draws:
        """Make the streams, `stream` being 0, 1 or 2.

        Two that differ in fact or `stream` are unlike, and so are those of all but a few pairs of seeds (below 2**31).
        """
        # (Torch reads the lowest 32 bits of a seed; no study has so many facts that they reach the highest of these.)
        pair, odd = divmod(stream, 2)
        seeds = ((pair << 31) + (seed * 1_000_003 + fact) * 2 + odd for fact in facts.tolist())
        return cls(tuple(torch.Generator().manual_seed(number) for number in seeds))

    def normal(self, rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        return self._drawn(torch.randn, rows, width)

    def uniform(self, rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        return self._drawn(torch.rand, rows, width)

    def _drawn(self, kind: Callable[..., Tensor], rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        """A row of numbers for each of `rows` (which fact, counted among these), in their order."""
        drawn = [kind(1, width, generator=self.streams[row]) for row in rows.tolist()]
        return torch.cat(drawn) if drawn else torch.empty(0, width)
