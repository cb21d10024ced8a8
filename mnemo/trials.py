"""Does the concept do the work? Every intervention on some facts at one site, and what the model answers.

Swaps add (other concept - own concept) to a fact's state; each has random directions of the same norm beside it. All
probabilities are of a single token at the last position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, ConceptVectors, as_long
from mnemo.patching import Patch, Site, read_stream
from mnemo.tested_facts import STAND_INS, Draws, Pairs, Swaps, TestedFacts, margin

# Random directions beside each swap: so many that a fact which every swap moves, and no direction, is beyond chance
# (UNLIKELY), after all tests are paid for; so far below FALSE_DISCOVERIES that it still is where one fact in five is
# moved. Where targets are few, that takes more of them; more than MOST never.
LEAST, MOST, UNLIKELY = 2, 64, 0.01
RIVALS = 4  # other concepts with the same answer, at the most, that a fact is swapped to
WITNESSES = 4  # facts of other concepts swapped to each of those, to see whether that works at all
RESAMPLED = 3  # other facts whose concept stands in for a fact's own, one after the other


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
        sufficient_control: the same with the vectors of other concepts, the mean over some of its targets: what the
            rest of the prompt gives away.
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
    pairs = Pairs.of(targets, tested.table)
    draw = Draws.of(tested.facts, seed)
    own, everyone = tested.own, torch.arange(len(tested.facts))
    by_cues = tested.swap(pairs, tested.between(pairs), draw=draw, random=random)
    by_prompts = tested.swap(pairs, tested.between_prompts(pairs), draw=draw, random=random)
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
        ablated=tested.place(everyone, tested.state - own, wanted=tested.answers)[1],
        ablated_control=tested.place(everyone, tested.state - noise, wanted=tested.answers)[1],
        swap_effect=swap_effect,
        cue_effect=cue_effect,
        same_concept=_same_concept(tested),
        same_answer=_same_answer(tested, draw),
        without_answer_top=_without_answer(tested, pairs),
        whole_top=_whole(tested, pairs),
    )


def trial_runs(targets: int, *, random: int) -> int:
    """Return the runs of the model that `run_trials` takes for one fact with so many targets, at the most."""
    swaps = 2 * (1 + random)  # with vectors of cues and of prompts, each beside its random directions
    effects = 2  # what the fact and what the other cue answers
    direct = without_answer = whole = 1
    final_state = 1  # which `direct` starts from
    sufficient, ablated = 1 + min(targets, STAND_INS), 2  # each with its control
    same_concept, same_answer = 1, RIVALS * (1 + WITNESSES)
    once = final_state + sufficient + ablated + same_concept + same_answer
    return (swaps + effects + direct + without_answer + whole) * targets + once


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
    pairs = Pairs.of(targets, tested.table)
    draw = Draws.of(tested.facts, seed, stream=1)
    predicted = pairs.table(pairs.wanted, empty=-1)
    by_cues, by_prompts = (  # one sort after the other: in that order each swap draws its directions
        [tested.swap(pairs, dose * step, draw=draw, random=random) for dose in doses]
        for step in (tested.between(pairs), tested.between_prompts(pairs))
    )
    return [
        DosedSwaps(dose, predicted, cues, prompts, *tested.suffice(targets, dose=dose))
        for dose, cues, prompts in zip(doses, by_cues, by_prompts, strict=True)
    ]


def dosed_runs(targets: int, *, random: int) -> int:
    """Return the runs that `run_dosed_swaps` takes for one fact with so many targets at one dose, at the most."""
    swaps, sufficient = 2 * (1 + random), 1 + min(targets, STAND_INS)  # as in `trial_runs`
    return swaps * targets + sufficient


def run_resamples(tested: TestedFacts, *, seed: int) -> Float[Tensor, " fact"]:
    """Replace each fact's concept by those of random other facts (resample ablation, as in Chan et al. 2022).

    Where `Trials.ablated` takes the concept out, which may leave a state like no other, this leaves one as other facts
    have them.

    Returns:
        the probability of the fact's answer, the mean over up to RESAMPLED other facts; NaN where none is of another
        concept.
    """
    others = resampled(tested.vectors, tested.facts, concepts=tested.concepts, seed=seed, most=RESAMPLED)
    row, column = (others >= 0).nonzero(as_tuple=True)
    step = tested.vectors.between(tested.facts[row], tested.concepts[row], other=others[row, column])
    kept = torch.full(others.shape, torch.nan)
    kept[row, column] = tested.place(row, tested.state[row] + step, wanted=tested.answers[row])[1]
    return kept.nanmean(1)


def resampled(
    vectors: ConceptVectors, facts: Int[Tensor, " fact"], *, concepts: Int[Tensor, " fact"], seed: int, most: int
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
    drawn = Draws.of(facts, seed, stream=2).uniform(torch.arange(len(facts)), len(whose))
    possible = (whose >= 0) & (whose != concepts[:, None])
    best = torch.where(possible, drawn, -1.0).topk(min(most, len(whose)), dim=1)
    return torch.where(best.values >= 0, whose[best.indices], -1)


def _effects(tested: TestedFacts, pairs: Pairs, swaps: Swaps) -> tuple[Tensor, Tensor]:
    """By how much logit(answer) - logit(predicted answer) drops under each swap, and under the whole other cue."""
    both = torch.stack([tested.answers[pairs.row], pairs.wanted], 1)
    before = pairs.table(margin(tested.ask(tested.facts[pairs.row], both)), empty=torch.nan)
    donor = tested.vectors.first_context(pairs.target)
    there = donor >= 0
    other_cue = pairs.table(margin(tested.ask(donor[there], both[there])), empty=torch.nan, chosen=there)
    return before - swaps.margin, before - other_cue


def _direct(tested: TestedFacts, pairs: Pairs) -> Int[Tensor, "fact target"]:
    """Answers when each swap's change goes straight to the final norm."""
    if tested.vectors.site.position != -1:
        return torch.full(pairs.shape, -1)
    final = read_stream(tested.model, [tested.prompts[i] for i in tested.facts.tolist()], positions=[-1])[:, -1, 0]
    straight = Patch(Site(tested.model.n_layers, -1), final[pairs.row] + tested.between(pairs))
    said = tested.ask(tested.facts[pairs.row], pairs.wanted[:, None], patch=straight)
    return pairs.table(said.top, empty=-1)


def _without_answer(tested: TestedFacts, pairs: Pairs) -> Int[Tensor, "fact target"]:
    """Answers when the directions of the answers are taken out of both vectors of each swap."""
    vectors, facts, own = tested.vectors, tested.facts[pairs.row], tested.concepts[pairs.row]
    bare, has_direction = vectors.without_answer(facts, pairs.target, answers=tested.table.answers)
    own_bare, _ = vectors.without_answer(facts, own, answers=tested.table.answers)
    left = vectors.counts[own] - (vectors.contributes[facts] == own).long()
    possible = has_direction & (left > 0) & (vectors.counts[pairs.target] > 0)
    states = (tested.state[pairs.row] + bare - own_bare)[possible]
    top, _ = tested.place(pairs.row[possible], states, wanted=pairs.wanted[possible])
    return pairs.table(top, empty=-1, chosen=possible)


def _whole(tested: TestedFacts, pairs: Pairs) -> Int[Tensor, "fact target"]:
    """Answers with the whole state of a cue that evokes the target."""
    donor = tested.vectors.first_context(pairs.target)
    there = donor >= 0
    top, _ = tested.place(pairs.row[there], tested.vectors.states[donor[there]], wanted=pairs.wanted[there])
    return pairs.table(top, empty=-1, chosen=there)


def _same_concept(tested: TestedFacts) -> Float[Tensor, " fact"]:
    """Probability of each answer when another cue of the concept stands in for the concept's vector."""
    vectors, own = tested.vectors, tested.own
    peer = vectors.other_context(tested.facts, tested.concepts)
    rows = (peer >= 0).nonzero()[:, 0]
    stand_in = vectors.states[peer[rows]] - vectors.mean - own[rows]
    kept = torch.full((len(own),), torch.nan)
    kept[rows] = tested.place(rows, tested.state[rows] + stand_in, wanted=tested.answers[rows])[1]
    return kept


def _same_answer(tested: TestedFacts, draw: Draws) -> Float[Tensor, " fact"]:
    """Probability of each answer, the mean over swaps to other concepts that have it."""
    table, vectors = tested.table, tested.vectors
    drawn = draw.uniform(torch.arange(len(tested.facts)), len(table))
    rivals = rivals_of(table, vectors.counts, answers=tested.answers, concepts=tested.concepts, drawn=drawn)
    row, place = (rivals >= 0).nonzero(as_tuple=True)
    rival = rivals[row, place]
    step = vectors.between(tested.facts[row], tested.concepts[row], other=rival)
    kept = torch.full(rivals.shape, torch.nan)
    kept[row, place] = tested.place(row, tested.state[row] + step, wanted=tested.answers[row])[1]
    # Positive control: a rival to which other facts cannot be swapped either says nothing about this one.
    witness = _witnesses(table, vectors, rival, draw.uniform(row, len(vectors.contributes)))
    there = witness >= 0
    seen, to = witness[there], rival[:, None].expand_as(witness)[there]
    moved = Patch(vectors.site, vectors.states[seen] + vectors.between(seen, vectors.contributes[seen], other=to))
    reached = torch.full(witness.shape, torch.nan)
    reached[there] = tested.ask(seen, table.answers[to][:, None], patch=moved).logprob[:, 0].exp()
    useless = ~(reached.nanmean(1) >= 0.5)  # without a witness nothing is known of it
    kept[row[useless], place[useless]] = torch.nan
    return kept.nanmean(1)


def rivals_of(
    table: ConceptTable,
    counts: Int[Tensor, " concept"],
    *,
    answers: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    drawn: Float[Tensor, "fact concept"],
) -> Int[Tensor, "fact rival"]:
    """Return up to RIVALS other concepts with each fact's answer that some cue evokes, drawn highest first; else -1."""
    possible = table.others_with(answers, concepts) & (counts > 0)
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
