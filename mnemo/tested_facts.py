"""Facts whose state at one site can be replaced, and what the model answers then: what every trial is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, ConceptVectors, as_long
from mnemo.patching import Answers, Patch, ask
from mnemo.prompts import Prompt

if TYPE_CHECKING:
    from mnemo.model import Model

STAND_INS = 4  # other concepts put in place of a fact's own, at the most; one alone may happen to give its answer


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
class Pairs:
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
    def of(cls, targets: Int[Tensor, "fact target"], table: ConceptTable) -> Pairs:
        """Put facts beside their targets, -1 for none, and these beside the answers that `table` predicts."""
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
class Draws:
    """Random numbers for some facts, each from a stream of its own."""

    streams: tuple[torch.Generator, ...]

    @classmethod
    def of(cls, facts: Int[Tensor, " fact"], seed: int, *, stream: int = 0) -> Draws:
        """Make the streams, `stream` being 0, 1 or 2.

        Two that differ in fact or `stream` are unlike, and so are those of all but a few pairs of seeds (below 2**31).
        """
        # (Torch reads the lowest 32 bits of a seed; no study has so many facts that they reach the highest of these.)
        pair, odd = divmod(stream, 2)
        seeds = ((pair << 31) + (seed * 1_000_003 + fact) * 2 + odd for fact in facts.tolist())
        return cls(tuple(torch.Generator().manual_seed(number) for number in seeds))

    def normal(self, rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        """Draw standard normal numbers for each of `rows` (which fact, counted among these), in their order."""
        return self._drawn(torch.randn, rows, width)

    def uniform(self, rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        """Draw numbers between 0 and 1 in the same way."""
        return self._drawn(torch.rand, rows, width)

    def _drawn(self, kind: Callable[..., Tensor], rows: Int[Tensor, " row"], width: int) -> Float[Tensor, "row width"]:
        drawn = [kind(1, width, generator=self.streams[row]) for row in rows.tolist()]
        return torch.cat(drawn) if drawn else torch.empty(0, width)


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

    def ask(self, known: Tensor, wanted: Tensor, *, patch: Patch | None = None) -> Answers:
        """Ask facts, given by their rows in `vectors`, for the tokens beside them."""
        return ask(self.model, [self.prompts[i] for i in known.tolist()], tokens=wanted, patch=patch)

    def place(self, rows: Tensor, states: Tensor, *, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Put a state in place of a fact's own; its answer, and the probability of the one wanted."""
        said = self.ask(self.facts[rows], wanted[:, None], patch=Patch(self.vectors.site, states))
        return said.top, said.logprob[:, 0].exp()

    def between(self, pairs: Pairs) -> Float[Tensor, "trial d"]:
        """What takes each fact to its target, by vectors of cues."""
        return self.vectors.between(self.facts[pairs.row], self.concepts[pairs.row], other=pairs.target)

    def between_prompts(self, pairs: Pairs) -> Float[Tensor, "trial d"]:
        """The same by vectors of the concepts' own prompts."""
        return self.vectors.from_prompts[pairs.target] - self.vectors.from_prompts[self.concepts[pairs.row]]

    def swap(self, pairs: Pairs, step: Float[Tensor, "trial d"], *, draw: Draws, random: int) -> Swaps:
        """Add a step to each state, and `random` random directions as long."""
        state = self.state[pairs.row]
        both = torch.stack([self.answers[pairs.row], pairs.wanted], 1)
        said = self.ask(self.facts[pairs.row], both, patch=Patch(self.vectors.site, state + step))
        noise = [as_long(draw.normal(pairs.row, step.shape[1]), step) for _ in range(random)]
        control = [self.place(pairs.row, state + direction, wanted=pairs.wanted) for direction in noise]
        return Swaps(
            top=pairs.table(said.top, empty=-1),
            probability=pairs.table(said.logprob[:, 1].exp(), empty=torch.nan),
            margin=pairs.table(margin(said), empty=torch.nan),
            random_top=pairs.table(torch.stack([top for top, _ in control], -1), empty=-1),
            random_probability=pairs.table(torch.stack([p for _, p in control], -1), empty=torch.nan),
        )

    def suffice(
        self, targets: Int[Tensor, "fact target"], *, dose: float = 1.0
    ) -> tuple[Float[Tensor, " fact"], Float[Tensor, " fact"]]:
        """Probability of each answer with the mean state plus the own concept, and plus other concepts: the mean over
        up to STAND_INS of its targets, NaN without any.
        """
        some = targets[:, :STAND_INS]
        row, place = (some >= 0).nonzero(as_tuple=True)
        others = self.vectors.seen_by(self.facts[row], some[row, place])
        control = torch.full(some.shape, torch.nan)
        control[row, place] = self.place(row, self.vectors.mean + dose * others, wanted=self.answers[row])[1]
        everyone = torch.arange(len(self.facts))
        return self.place(everyone, self.vectors.mean + dose * self.own, wanted=self.answers)[1], control.nanmean(1)


def margin(said: Answers) -> Float[Tensor, " row"]:
    """First minus second log-probability asked for, which is the difference of their logits."""
    return said.logprob[:, 0] - said.logprob[:, 1]
