"""Does the concept do the work? Concept vectors, and the states that test them.

A concept vector is what the states of contexts that evoke a concept have in common beyond the grand mean. The tests
move a fact's state along such vectors at one site and watch the answer; each has a control of the same size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mnemo.errors import MnemoError
from mnemo.patching import Answers, Patch, Site, ask, next_logprobs, read_stream, read_stream_at_span
from mnemo.prompts import Prompt, TemplateError, render

if TYPE_CHECKING:
    from mnemo.model import Model

RANDOM_PER_TARGET = 2  # random directions beside each swap
RIVALS = 4  # other concepts with the same answer, at the most, that a fact is swapped to
FEW = 32  # contexts of a concept of which the geometric median is taken, of more the mean
MEDIAN_STEPS = 32
WITNESSES = 4  # facts of other concepts swapped to each of those, to see whether that works at all


@dataclass(frozen=True)
class ConceptTable:
    """The concepts of a study and what the model says when asked about each.

    Attributes:
        phrases: their texts.
        prompts: `concept_recall` about each.
        answers: the model's own answer token for each: the prediction for a swap, made beforehand.
        confidence: its probability.
    """

    phrases: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    answers: Int[Tensor, " concept"]
    confidence: Float[Tensor, " concept"]

    def __len__(self) -> int:
        return len(self.phrases)


def ask_concepts(model: Model, template: str, phrases: Iterable[str]) -> ConceptTable:
    """Ask the model about every phrase; phrases that its tokenizer cannot spell are left out.

    Args:
        model: the model.
        template: the task's `concept_recall`.
        phrases: what to ask about; each is asked once.

    Raises:
        TemplateError: the template itself cannot be used.
    """
    prompts: dict[str, Prompt] = {}
    for phrase in phrases:
        try:
            prompts[phrase] = render(template, phrase, model.tokens)
        except TemplateError:
            raise
        except MnemoError:
            continue
    answers = torch.empty(len(prompts), dtype=torch.long)
    confidence = torch.empty(len(prompts))
    for rows, said in next_logprobs(model, list(prompts.values())):
        confidence[rows], answers[rows] = said.exp().max(-1)
    return ConceptTable(tuple(prompts), tuple(prompts.values()), answers, confidence)


def agrees(answers: Int[Tensor, " fact"], concepts: Int[Tensor, " fact"], table: ConceptTable) -> Bool[Tensor, " fact"]:
    """Return whether each fact's concept (-1 for none), asked by itself, gives the fact's answer."""
    result = concepts >= 0
    result[result.clone()] = table.answers[concepts[result]] == answers[result]
    return result


@dataclass(frozen=True)
class ConceptVectors:
    """Concept vectors at one site, each as seen by a fact that must not contribute to it.

    Attributes:
        site: where.
        mean: grand mean of the facts' states.
        vectors, counts: per concept, the middle of the centred states of the contexts that evoke it, and their number.
        left_out: per fact, the same of its own concept without it (0 where it contributes to none or alone).
        from_prompts: per concept, the centred state of its own `concept_recall` prompt at the concept's last token:
            stands in where no context but the tested fact evokes the concept.
        contributes: concept that each fact's state is counted under, -1 for none.
        states: the facts' own states.
    """

    site: Site
    mean: Float[Tensor, " d"]
    vectors: Float[Tensor, "concept d"]
    left_out: Float[Tensor, "fact d"]
    counts: Int[Tensor, " concept"]
    from_prompts: Float[Tensor, "concept d"]
    contributes: Int[Tensor, " fact"]
    states: Float[Tensor, "fact d"]

    @classmethod
    def of(
        cls,
        states: Float[Tensor, "fact d"],
        contributes: Int[Tensor, " fact"],
        from_prompts: Float[Tensor, "concept d"],
        *,
        site: Site,
    ) -> ConceptVectors:
        """Make the vectors of states, given which concept each is a context of."""
        mean = states.mean(0)
        vectors, left_out = torch.zeros_like(from_prompts), torch.zeros_like(states)
        counts = torch.bincount(contributes[contributes >= 0], minlength=len(from_prompts))
        for concept in counts.nonzero()[:, 0].tolist():
            rows = (contributes == concept).nonzero()[:, 0]
            mine = states[rows] - mean
            if len(rows) > FEW:
                vectors[concept] = mine.mean(0)
                left_out[rows] = (mine.sum(0) - mine) / (len(rows) - 1)
                continue
            vectors[concept] = geometric_median(mine[None])[0]
            if len(rows) > 1:
                others = ~torch.eye(len(rows), dtype=torch.bool)
                left_out[rows] = geometric_median(torch.stack([mine[chosen] for chosen in others]))
        return cls(site, mean, vectors, left_out, counts, from_prompts, contributes, states)

    def seen_by(self, facts: Int[Tensor, " row"], concepts: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Return the vector of each concept with the state of the fact beside it left out."""
        own = self.contributes[facts] == concepts
        others = torch.where(own[:, None], self.left_out[facts], self.vectors[concepts])
        return torch.where((self.counts[concepts] > own.long())[:, None], others, self.from_prompts[concepts])

    def first_context(self, concepts: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Return the first fact that each concept's vector is made of, -1 where there is none."""
        found = (self.contributes[None] == concepts[:, None]).long()
        return torch.where(found.any(1), found.argmax(1), -1)

    def other_context(self, facts: Int[Tensor, " row"], concepts: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Return a fact other than each, one of at least two others that its concept's vector is made of; else -1.

        (Of a single other one the vector *is* the context, and nothing would change.)
        """
        others = (self.contributes[None] == concepts[:, None]) & (torch.arange(len(self.states)) != facts[:, None])
        return torch.where(others.sum(1) > 1, others.long().argmax(1), -1)

    def without_answer(
        self, facts: Int[Tensor, " row"], concepts: Int[Tensor, " row"], answers: Int[Tensor, " concept"]
    ) -> tuple[Float[Tensor, "row d"], Bool[Tensor, " row"]]:
        """Return each vector without its answer's own direction, and whether there is one to take out.

        The direction is what the vectors of *other* concepts with the same answer have in common: their mean. A vector
        that stands for the answer alone has nothing left.
        """
        vectors = self.seen_by(facts, concepts)
        peers = (answers[None] == answers[concepts][:, None]) & (self.counts > 0)
        peers[torch.arange(len(concepts)), concepts] = False
        # (The tested fact adds to its own concept alone: no peer of itself nor, with another answer, of a target.)
        direction = normalize(peers.float() @ self.vectors, dim=-1)
        along = (vectors * direction).sum(-1, keepdim=True)
        return vectors - along * direction, peers.any(1)

    def between(
        self, facts: Int[Tensor, " row"], own: Int[Tensor, " row"], other: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d"]:
        """Return what takes each fact from its own concept to another.

        Both ends are of one sort: where either has no context but the fact itself, both come from concept prompts,
        lest what sets cues apart from phrases counts as a difference of concepts.
        """
        left = self.counts[own] - (self.contributes[facts] == own).long()
        alike = ((left > 0) & (self.counts[other] > 0))[:, None]
        prompts = self.from_prompts[other] - self.from_prompts[own]
        return torch.where(alike, self.seen_by(facts, other) - self.seen_by(facts, own), prompts)


def concept_vectors(
    model: Model,
    table: ConceptTable,
    states: Float[Tensor, "fact d"],
    contributes: Int[Tensor, " fact"],
    *,
    site: Site,
) -> ConceptVectors:
    """Collect the vectors of all concepts at a site.

    Args:
        model: the model.
        table: the concepts.
        states: the facts' states at `site` in their recall prompts.
        contributes: the concept that each fact is a context of, -1 for none.
        site: where the states were read.
    """
    prompts = read_stream_at_span(model, table.prompts, layer=site.layer)
    return ConceptVectors.of(states, contributes, prompts - prompts.mean(0), site=site)


def geometric_median(points: Float[Tensor, "group point d"]) -> Float[Tensor, "group d"]:
    """Return the point of each group with the smallest sum of distances to its points (Weiszfeld 1937).

    A cue that evokes a concept may have a state unlike all others', for what else it does (an idle cue brings its
    answer by itself). It would tip the mean of a few states, and hardly moves this.
    """
    middle = points.mean(1)
    for _ in range(MEDIAN_STEPS):
        distance = (points - middle[:, None]).norm(dim=-1, keepdim=True)
        weight = 1 / distance.clamp(min=1e-6 * float(distance.max().clamp(min=1e-30)))
        middle = (weight * points).sum(1) / weight.sum(1)
    return middle


@dataclass(frozen=True)
class Trials:
    """Every intervention on some facts at one site, and what the model answered.

    Swaps add (other concept - own concept); their control is a random direction of the same norm. All
    probabilities are of a single token at the last position.

    Attributes:
        answers: the facts' own answer tokens.
        targets: concepts swapped to, -1 where a fact has fewer.
        predicted: the answer of each target, predicted beforehand.
        swap_top: what the model answered.
        swap_probability: probability of the predicted answer.
        direct_top: what it answers when the swap's change goes straight to the final norm, past all later blocks; -1
            at positions other than the last, from which nothing goes straight to the answer.
        random_top: answers under random directions, RANDOM_PER_TARGET for each target.
        random_probability: probability of the predicted answer under random directions.
        sufficient: probability of the fact's answer with the mean state plus the concept vector in place of its own.
        sufficient_control: the same with the vector of its first target: what the rest of the prompt gives away.
        ablated: probability of the fact's answer without the concept vector.
        ablated_control: the same without a random vector of that norm.
        from_prompt_top, from_prompt_probability: as for swaps, when the vectors come from the concepts' own prompts.
        prompt_random_top, prompt_random_probability: under random directions of the norm of those.
        swap_effect: drop of logit(answer) - logit(predicted answer) under the swap.
        same_concept: probability of the fact's answer when what one other cue of the same concept has of it stands in
            for what all have: must change nothing. NaN without two other cues.
        same_answer: probability of the fact's answer when swapped to another concept with that answer, the mean over
            up to RIVALS of them: must change nothing. NaN where there is none to which other facts can be swapped.
        without_answer_top: answers when the answers' own directions are taken out of a swap's vectors; -1 where the
            target's answer has no other concept, or a vector comes from concept prompts.
        whole_top: answers when the whole state is that of a cue which evokes the target; -1 where no cue does. It
            overwrites the cue, so it proves nothing.
        cue_effect: the same drop when the whole prompt is that of another cue, which evokes the target; NaN where no
            cue does.
    """

    answers: Int[Tensor, " fact"]
    targets: Int[Tensor, "fact target"]
    predicted: Int[Tensor, "fact target"]
    swap_top: Int[Tensor, "fact target"]
    swap_probability: Float[Tensor, "fact target"]
    direct_top: Int[Tensor, "fact target"]
    random_top: Int[Tensor, "fact target random"]
    random_probability: Float[Tensor, "fact target random"]
    sufficient: Float[Tensor, " fact"]
    sufficient_control: Float[Tensor, " fact"]
    ablated: Float[Tensor, " fact"]
    ablated_control: Float[Tensor, " fact"]
    from_prompt_top: Int[Tensor, "fact target"]
    from_prompt_probability: Float[Tensor, "fact target"]
    prompt_random_top: Int[Tensor, "fact target random"]
    prompt_random_probability: Float[Tensor, "fact target random"]
    swap_effect: Float[Tensor, "fact target"]
    cue_effect: Float[Tensor, "fact target"]
    same_concept: Float[Tensor, " fact"]
    same_answer: Float[Tensor, " fact"]
    without_answer_top: Int[Tensor, "fact target"]
    whole_top: Int[Tensor, "fact target"]

    @property
    def tried(self) -> Bool[Tensor, "fact target"]:
        """Where a fact has a target."""
        return self.targets >= 0


def run_trials(
    model: Model,
    prompts: Sequence[Prompt],
    answers: Int[Tensor, " fact"],
    *,
    facts: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    targets: Int[Tensor, "fact target"],
    table: ConceptTable,
    vectors: ConceptVectors,
    seed: int,
) -> Trials:
    """Swap, replace and remove the concept of each fact.

    Args:
        model: the model.
        prompts: recall prompts of all facts in `vectors`.
        answers: answer tokens of the facts tested.
        facts: their rows in `vectors`.
        concepts: the concept that each is thought to stand for.
        targets: concepts to swap to, -1 for none.
        table: all concepts.
        vectors: their vectors at the site.
        seed: draws the random directions. Each fact has a stream of its own, so that what it gets does not depend on
            the facts that are tested with it.
    """
    n, n_targets = targets.shape
    draw = _Draws.of(facts, seed)
    own = vectors.seen_by(facts, concepts)
    state = vectors.states[facts]
    row, column = (targets >= 0).nonzero(as_tuple=True)
    target = targets[row, column]
    predicted = torch.where(targets >= 0, table.answers[targets], -1)
    step = vectors.between(facts[row], concepts[row], target)

    def asked(rows: Tensor, wanted: Tensor, patch: Patch | None) -> Answers:
        return ask(model, [prompts[i] for i in rows.tolist()], wanted, patch=patch)

    def run(rows: Tensor, states: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        said = asked(facts[rows], wanted[:, None], Patch(vectors.site, states))
        return said.top, said.logprob[:, 0].exp()

    def placed(values: Tensor, *, empty: float) -> Tensor:
        table = torch.full((n, n_targets), empty, dtype=values.dtype)
        table[row, column] = values
        return table

    def table_of(top: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        return placed(top, empty=-1), placed(probability, empty=torch.nan)

    both = torch.stack([answers[row], table.answers[target]], 1)
    swapped = asked(facts[row], both, Patch(vectors.site, state[row] + step))
    swap_top, swap_probability = table_of(swapped.top, swapped.logprob[:, 1].exp())
    before = asked(facts, torch.cat([answers[:, None], predicted.clamp(min=0)], 1), None).logprob
    clean = (before[:, :1] - before[:, 1:])[row, column]
    donor = vectors.first_context(target)
    other_cue = torch.full_like(clean, torch.nan)
    other_cue[donor >= 0] = _difference(asked(donor[donor >= 0], both[donor >= 0], None))
    prompt_step = vectors.from_prompts[target] - vectors.from_prompts[concepts[row]]
    from_prompt_top, from_prompt_probability = table_of(*run(row, state[row] + prompt_step, table.answers[target]))

    def random_like(steps: Tensor) -> tuple[Tensor, Tensor]:
        found = [
            table_of(*run(row, state[row] + _as_long(draw.normal(row, steps.shape[1]), steps), table.answers[target]))
            for _ in range(RANDOM_PER_TARGET)
        ]
        return torch.stack([top for top, _ in found], -1), torch.stack([probability for _, probability in found], -1)

    random_top, random_probability = random_like(step)
    prompt_random_top, prompt_random_probability = random_like(prompt_step)
    direct_top = torch.full((n, n_targets), -1)
    if vectors.site.position == -1:
        final = read_stream(model, [prompts[i] for i in facts.tolist()], [-1])[:, -1, 0]
        straight = Patch(Site(model.n_layers, -1), final[row] + step)
        direct_top[row, column] = asked(facts[row], both, straight).top
    bare, has_direction = vectors.without_answer(facts[row], target, table.answers)
    own_bare, _ = vectors.without_answer(facts[row], concepts[row], table.answers)
    left = vectors.counts[concepts[row]] - (vectors.contributes[facts[row]] == concepts[row]).long()
    possible = has_direction & (left > 0) & (vectors.counts[target] > 0)
    without_answer_top = torch.full((n, n_targets), -1)
    without_answer_top[row[possible], column[possible]], _ = run(
        row[possible], (state[row] + bare - own_bare)[possible], table.answers[target[possible]]
    )
    whole_top = torch.full((n, n_targets), -1)
    there = donor >= 0
    whole_top[row[there], column[there]], _ = run(
        row[there], vectors.states[donor[there]], table.answers[target[there]]
    )
    everyone = torch.arange(n)
    with_target = targets[:, 0] >= 0
    sufficient_control = torch.full((n,), torch.nan)
    other = vectors.seen_by(facts[with_target], targets[with_target, 0])
    sufficient_control[with_target] = run(everyone[with_target], vectors.mean + other, answers[with_target])[1]
    same_concept = torch.full((n,), torch.nan)
    peer = vectors.other_context(facts, concepts)
    some = peer >= 0
    stand_in = vectors.states[peer[some]] - vectors.mean - own[some]
    same_concept[some] = run(everyone[some], state[some] + stand_in, answers[some])[1]
    rivals = _same_answer(table, vectors.counts, answers, concepts, draw.uniform(everyone, len(table)))
    which, place = (rivals >= 0).nonzero(as_tuple=True)
    step_aside = vectors.between(facts[which], concepts[which], rivals[which, place])
    kept = torch.full(rivals.shape, torch.nan)
    kept[which, place] = run(which, state[which] + step_aside, answers[which])[1]
    # Positive control: a rival to which other facts cannot be swapped either says nothing about this one.
    witness = _witnesses(table, vectors, rivals[which, place], draw.uniform(which, len(vectors.contributes)))
    rival = rivals[which, place, None].expand_as(witness).flatten()
    moved = vectors.between(witness.flatten(), vectors.contributes[witness.flatten()], rival)
    there = Patch(vectors.site, vectors.states[witness.flatten()] + moved)
    reached = asked(witness.flatten(), table.answers[rival][:, None], there).logprob[:, 0].exp()
    useless = reached.view(witness.shape).mean(1) < 0.5
    kept[which[useless], place[useless]] = torch.nan
    return Trials(
        answers=answers,
        targets=targets,
        predicted=predicted,
        swap_top=swap_top,
        swap_probability=swap_probability,
        direct_top=direct_top,
        random_top=random_top,
        random_probability=random_probability,
        sufficient=run(everyone, vectors.mean + own, answers)[1],
        sufficient_control=sufficient_control,
        ablated=run(everyone, state - own, answers)[1],
        ablated_control=run(everyone, state - _as_long(draw.normal(everyone, own.shape[1]), own), answers)[1],
        from_prompt_top=from_prompt_top,
        from_prompt_probability=from_prompt_probability,
        prompt_random_top=prompt_random_top,
        prompt_random_probability=prompt_random_probability,
        swap_effect=placed(clean - _difference(swapped), empty=torch.nan),
        cue_effect=placed(clean - other_cue, empty=torch.nan),
        same_concept=same_concept,
        same_answer=kept.nanmean(1),
        without_answer_top=without_answer_top,
        whole_top=whole_top,
    )


def _same_answer(
    table: ConceptTable,
    counts: Int[Tensor, " concept"],
    answers: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    drawn: Float[Tensor, "fact concept"],
) -> Int[Tensor, "fact rival"]:
    """Up to RIVALS other concepts with each fact's answer that some cue evokes, those drawn highest; -1 beyond them."""
    possible = (table.answers[None] == answers[:, None]) & (counts > 0)
    possible[torch.arange(len(concepts)), concepts] = False
    best = torch.where(possible, drawn, -1.0).topk(min(RIVALS, len(table)), dim=1)
    return torch.where(best.values >= 0, best.indices, -1)


def _witnesses(
    table: ConceptTable, vectors: ConceptVectors, rivals: Int[Tensor, " trial"], drawn: Float[Tensor, "trial fact"]
) -> Int[Tensor, "trial witness"]:
    """Facts with other answers than each rival's, of those that concept vectors are made of: those drawn highest."""
    whose = vectors.contributes
    possible = (whose >= 0) & (table.answers[whose] != table.answers[rivals][:, None])
    return torch.where(possible, drawn, -1.0).topk(min(WITNESSES, len(whose)), dim=1).indices


@dataclass(frozen=True)
class _Draws:
    """Random numbers for some facts, each from a stream of its own."""

    streams: tuple[torch.Generator, ...]

    @classmethod
    def of(cls, facts: Int[Tensor, " fact"], seed: int) -> _Draws:
        return cls(tuple(torch.Generator().manual_seed(seed * 1_000_003 + fact) for fact in facts.tolist()))

    def normal(self, rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        return self._drawn(torch.randn, rows, width)

    def uniform(self, rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        return self._drawn(torch.rand, rows, width)

    def _drawn(self, kind: Callable[..., Tensor], rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        """A row of numbers for each of `rows` (which fact, counted among these), in their order."""
        drawn = [kind(1, width, generator=self.streams[row]) for row in rows.tolist()]
        return torch.cat(drawn) if drawn else torch.empty(0, width)


def _difference(said: Answers) -> Float[Tensor, " row"]:
    """First minus second log-probability asked for, which is the difference of their logits."""
    return said.logprob[:, 0] - said.logprob[:, 1]


def like(vectors: Float[Tensor, "row d"], draw: torch.Generator) -> Float[Tensor, "row d"]:
    """Return random directions, uniform on the sphere, with the norms of `vectors`."""
    return _as_long(torch.randn(vectors.shape, generator=draw), vectors)


def _as_long(noise: Float[Tensor, "row d"], vectors: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return noise * (vectors.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))


def choose_targets(
    table: ConceptTable,
    support: Int[Tensor, " concept"],
    *,
    answers: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    n_targets: int,
    seed: int,
) -> Int[Tensor, "fact target"]:
    """Choose other concepts to swap each fact to: while they last, one of each answer.

    The answer is neither the fact's nor that of its own concept, between which and the target nothing would change.

    Args:
        table: all concepts.
        support: how many cues speak for each concept; only concepts with the most reliable vectors (at least
            half of the median support of those with any) are swapped to.
        answers: each fact's answer token.
        concepts: each fact's own concept.
        n_targets: how many to choose; -1 fills up where there are not enough.
        seed: decides the draw.
    """
    rng = np.random.default_rng(seed)
    backed = support[support > 0]
    least = max(1.0, backed.float().median().item() / 2) if len(backed) else 0.0
    pool = (support >= least).nonzero()[:, 0].tolist()
    predicted = table.answers.tolist()
    chosen = np.full((len(answers), n_targets), -1)
    for i, (answer, own) in enumerate(zip(answers.tolist(), concepts.tolist(), strict=True)):
        same = {answer, predicted[own] if own >= 0 else answer}
        order = [c for c in map(int, rng.permutation(pool)) if c != own and predicted[c] not in same]
        met: Counter[int] = Counter()
        rounds = []  # one concept for every answer first, then a second one, ...
        for c in order:
            rounds.append(met[predicted[c]])
            met[predicted[c]] += 1
        best = [c for _, c in sorted(zip(rounds, order, strict=True), key=lambda pair: pair[0])][:n_targets]
        chosen[i, : len(best)] = best
    return torch.from_numpy(chosen)
