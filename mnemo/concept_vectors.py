"""Along which vectors are facts moved, and to which concepts?

A concept vector is what the states of contexts that evoke a concept have in common beyond the grand mean. The trials
(`mnemo.trials`) move a fact's state along such vectors at one site and watch the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mnemo.errors import MnemoError
from mnemo.patching import Site, next_logprobs, read_stream_at
from mnemo.prompts import Prompt, render_if_spelled

if TYPE_CHECKING:
    from mnemo.model import Model

FEW = 32  # contexts of a concept of which the geometric median is taken, of more the mean
MEDIAN_STEPS = 32


@dataclass(frozen=True)
class ConceptTable:
    """The concepts of a study and what the model says when asked about each.

    Attributes:
        phrases: their texts.
        prompts: `concept_recall` about each.
        answers: the model's own answer for each, as the token that says it in a recall prompt: the prediction for a
            swap, made beforehand.
        confidence: its probability.
        said: the same as the token that says it after the concept's own prompt, which may spell it in another way.
        cue_ends: place of the cue's last token in recall prompts, from their end; None where these are unknown.
    """

    phrases: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    answers: Int[Tensor, " concept"]
    confidence: Float[Tensor, " concept"]
    said: Int[Tensor, " concept"]
    cue_ends: int | None = None

    def __len__(self) -> int:
        return len(self.phrases)

    def rows_of(self, phrases: Iterable[str | None]) -> Int[Tensor, " phrase"]:
        """Return the row of each phrase; -1 for None and for one that is not among the concepts."""
        rank: dict[str | None, int] = {phrase: i for i, phrase in enumerate(self.phrases)}
        return torch.tensor([rank.get(phrase, -1) for phrase in phrases], dtype=torch.long)

    def others_with(self, answers: Int[Tensor, " row"], concepts: Int[Tensor, " row"]) -> Bool[Tensor, "row concept"]:
        """Return which concepts have each answer, the concept beside it left out."""
        found = self.answers == answers[:, None]
        found[torch.arange(len(concepts)), concepts] = False
        return found


def ask_concepts(
    model: Model, template: str, *, phrases: Iterable[str], as_after: Prompt | None = None
) -> ConceptTable:
    """Ask the model about every phrase; phrases that its tokenizer cannot spell are left out.

    Args:
        model: the model.
        template: the task's `concept_recall`.
        phrases: what to ask about; each is asked once.
        as_after: a recall prompt. Where it does not end as the template does (one in a quote, one not), the same answer
            may be another token after it.

    Raises:
        TemplateError: the template itself cannot be used.
    """
    asked = {phrase: render_if_spelled(template, phrase, tokenizer=model.tokens) for phrase in phrases}
    prompts = {phrase: prompt for phrase, prompt in asked.items() if prompt is not None}
    answers = torch.empty(len(prompts), dtype=torch.long)
    confidence = torch.empty(len(prompts))
    for rows, logprobs in next_logprobs(model, list(prompts.values())):
        confidence[rows], answers[rows] = logprobs.exp().max(-1)
    said = answers
    if as_after is not None and any(prompt.text[-1:] != as_after.text[-1:] for prompt in prompts.values()):
        spelling = {token: _as_after(as_after, token, model) for token in set(answers.tolist())}
        answers = torch.tensor([spelling[token] for token in answers.tolist()])
    cue_ends = None if as_after is None else as_after.last - len(as_after)
    return ConceptTable(tuple(prompts), tuple(prompts.values()), answers, confidence, said, cue_ends)


def _as_after(prompt: Prompt, token: int, model: Model) -> int:
    """The token that says after a prompt what another token says elsewhere; that one itself if nothing else does."""
    try:
        return model.tokens.continuation(prompt.text, model.tokens.decode([token]).strip())[0]
    except MnemoError:
        return token


def agrees(
    answers: Int[Tensor, " fact"], concepts: Int[Tensor, " fact"], *, table: ConceptTable
) -> Bool[Tensor, " fact"]:
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
        from_prompts: per concept, the centred state of its own `concept_recall` prompt at the place that is the
            site's there (see `concept_vectors`): stands in where no context but the tested fact evokes the concept.
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
        *,
        from_prompts: Float[Tensor, "concept d"],
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
        self, facts: Int[Tensor, " row"], concepts: Int[Tensor, " row"], *, answers: Int[Tensor, " concept"]
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
        self, facts: Int[Tensor, " row"], own: Int[Tensor, " row"], *, other: Int[Tensor, " row"]
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
    *,
    states: Float[Tensor, "fact d"],
    contributes: Int[Tensor, " fact"],
    site: Site,
) -> ConceptVectors:
    """Collect the vectors of all concepts at a site.

    A concept's own prompt is read where its state is comparable with the facts': at the concept's last token where the
    site lies at the cue's, and behind it as far from the end as the site does. (At the last token of a prompt, what
    stands at a concept's is a vector of another sort: put there, it makes facts follow concepts that they do not hold,
    or leave alone those that they do.)

    Args:
        model: the model.
        table: the concepts.
        states: the facts' states at `site` in their recall prompts.
        contributes: the concept that each fact is a context of, -1 for none.
        site: where the states were read.
    """
    places = [_place_of(site, prompt, cue_ends=table.cue_ends) for prompt in table.prompts]
    prompts = read_stream_at(model, table.prompts, positions=places, layer=site.layer)
    return ConceptVectors.of(states, contributes, from_prompts=prompts - prompts.mean(0), site=site)


def _place_of(site: Site, prompt: Prompt, *, cue_ends: int | None) -> int:
    """Return the position in a concept's prompt, from its end, that is the site's in recall prompts."""
    concept_ends = prompt.last - len(prompt)
    at_cue = site.position <= (concept_ends if cue_ends is None else cue_ends)
    return concept_ends if at_cue else max(site.position, concept_ends)


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


def like(vectors: Float[Tensor, "row d"], draw: torch.Generator) -> Float[Tensor, "row d"]:
    """Return random directions, uniform on the sphere, with the norms of `vectors`."""
    return as_long(torch.randn(vectors.shape, generator=draw), vectors)


def as_long(noise: Float[Tensor, "row d"], vectors: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    """Return `noise`, each row of it as long as the vector beside it."""
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
