"""What can be done to a component or a concept, and what the model answers then, beside a control.

The control of every intervention are random directions of the same norm at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mnemo.activations import values_at
from mnemo.concept_vectors import ConceptTable, ask_concepts, like
from mnemo.errors import MnemoError
from mnemo.explorer.places import Chain, Change, Place
from mnemo.explorer.routes import along, clean_run
from mnemo.graph import stream_hook
from mnemo.partial_runs import Hook
from mnemo.patching import read_stream_at_span
from mnemo.prompts import Prompt, render
from mnemo.study_concepts import StudyConcepts, study_concepts
from mnemo.tokens import shown

if TYPE_CHECKING:
    from mnemo.activations import Recording
    from mnemo.contrasts import Contrast
    from mnemo.study import Study

OTHERS = 64  # facts that an ablated component's mean is taken over
DRAWS = 16  # random directions that a control is the mean over
SHOWN = 5  # answers of each distribution
MOST_SHOWN = 8  # of the three together
NEGLIGIBLE = 0.005  # an answer that is less likely in all three is not shown

Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Part = Annotated[str, Field(min_length=1, max_length=2000)]  # a node, an edge or a path: see mnemo.explorer.places


class _Act(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ablate(_Act):
    """Set a component at a position to its mean over the study's other facts.

    Of an edge or a path: what its first component writes is changed so for the components of the chain alone.
    """

    kind: Literal["ablate"] = "ablate"
    part: Part

    @property
    def text(self) -> str:
        return f"ablate {_arrows(self.part)}"


class PatchFrom(_Act):
    """Set a component at a position to what it is in another fact's prompt; of a chain, as `Ablate` does."""

    kind: Literal["patch"] = "patch"
    part: Part
    cue: Text

    @property
    def text(self) -> str:
        return f"patch {_arrows(self.part)} from {self.cue}"


class SwapConcept(_Act):
    """Add (other concept - own concept) to the state at the waypoint."""

    kind: Literal["swap"] = "swap"
    concept: Text

    @property
    def text(self) -> str:
        return f"swap the concept for {self.concept}"


def _arrows(part: str) -> str:
    return part.replace(">", " → ")


Intervention = Annotated[Ablate | PatchFrom | SwapConcept, Field(discriminator="kind")]


@dataclass(frozen=True)
class Outcome:
    """What the model answers before and after some interventions, and under their control.

    Attributes:
        answers: the answers that any of the three prefers, the likeliest before first.
        before, after, control: their probabilities; the control's are means over `DRAWS` random directions.
        predicted: the answer that a concept swap should give, said beforehand; None without one.
        said: the first choice before the interventions.
        says: the first choice after them.
        control_moved: share of the random directions under which the first choice is another one than before.
    """

    answers: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    control: tuple[float, ...]
    predicted: str | None
    said: str
    says: str
    control_moved: float


class Bench:
    """Runs interventions on the facts of one study."""

    def __init__(self, study: Study, *, seed: int = 0) -> None:
        self.study, self.model, self.seed = study, study.model, seed
        self._typed: dict[str, ConceptTable] = {}
        self._clean: dict[str, Recording] = {}
        self._others: dict[int, list[tuple[str, Prompt]]] = {}

    @cached_property
    def concepts(self) -> StudyConcepts:
        """The concepts of the study."""
        return study_concepts(self.study)

    def run(self, fact_id: str, acts: Sequence[Intervention]) -> Outcome:
        """Apply interventions together to one fact's prompt.

        Raises:
            MnemoError: an intervention that cannot be made, and why.
        """
        prompt = self.study.prompt(fact_id)
        changes = [self.change(fact_id, prompt, act=act) for act in acts]
        before = self.said(prompt, [])[0]
        after = self.said(prompt, changes)[0]
        controls = self.said(prompt, self.controls(prompt, changes), copies=DRAWS)
        control = controls.exp().mean(0).log()
        tops = self._likely((before, after, control))
        pieces = self.model.tokens.pieces([*tops, int(before.argmax()), int(after.argmax())])
        *answers, said, says = (piece.strip() or repr(piece) for piece in pieces)

        def probabilities(said: Tensor) -> tuple[float, ...]:
            return tuple(said[tops].exp().tolist())

        return Outcome(
            answers=tuple(answers),
            before=probabilities(before),
            after=probabilities(after),
            control=probabilities(control),
            predicted=self._predicted(acts),
            said=said,
            says=says,
            control_moved=float((controls.argmax(-1) != before.argmax()).float().mean()),
        )

    def change(self, fact_id: str, prompt: Prompt, *, act: Intervention) -> Change:
        """Return what an intervention puts where.

        Raises:
            MnemoError: it cannot be made, and why.
        """
        if isinstance(act, SwapConcept):
            site = self.concepts.vectors.site
            step = self._swap(fact_id, act.concept)
            return Change(stream_hook(self.model, site.layer), site.position, None, step, add=True)
        chain = Chain.named(act.part, self.model, prompt=prompt)
        if isinstance(act, PatchFrom):
            other = render(self.study.task.recall, act.cue, tokenizer=self.model.tokens)
            if len(other) != len(prompt):
                raise MnemoError(
                    f"the prompt of {shown(act.cue)} has {len(other)} tokens and this one {len(prompt)}: choose a cue "
                    "of as many tokens"
                )
            others = [other]
        else:
            others = list(self.others(fact_id, len(prompt)).values())
        if chain.rest or chain.to_logits:
            contrast = self._contrast(fact_id)
            return along(self.model, contrast, base=self._clean_run(fact_id, contrast), chain=chain, others=others)
        place = chain.first
        value = self.component(others, place).mean(0)
        return Change(place.component.hook, place.position, place.heads, value)

    def controls(self, prompt: Prompt, changes: Sequence[Change]) -> list[Change]:
        """Return each change with `DRAWS` random directions of its norm in its stead."""
        draw = torch.Generator().manual_seed(self.seed)
        hooks = [change.hook for change in changes if not change.add]
        clean = self.values([prompt], hooks) if hooks else {}
        found = []
        for change in changes:
            start = torch.zeros_like(change.value)
            if not change.add:
                start = at(clean[change.hook], change.position, heads=change.heads, n_heads=self.model.n_heads)[0]
            step = change.value - start
            moved = like(step.reshape(1, -1).expand(DRAWS, -1), draw).reshape(DRAWS, *step.shape)
            found.append(Change(change.hook, change.position, change.heads, start + moved, change.add))
        return found

    def said(self, prompt: Prompt, changes: Sequence[Change], *, copies: int = 1) -> Float[Tensor, "copy vocabulary"]:
        """Return log-probabilities of the next token under some changes, in as many copies of the prompt."""

        def put(value: Tensor, hook: Any, *, change: Change) -> Tensor:
            value = value.clone()
            here = at(value, change.position, heads=change.heads, n_heads=self.model.n_heads)  # a view
            moved = change.value.to(here)
            here.copy_(here + moved if change.add else moved.expand_as(here))
            return value

        hooks: list[Hook] = [(change.hook, partial(put, change=change)) for change in changes]
        tokens = torch.tensor([prompt.tokens] * copies, device=self.model.device)
        with torch.no_grad():
            logits = self.model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        return logits[:, -1].float().log_softmax(-1).cpu()

    def others(self, fact_id: str, length: int) -> dict[str, Prompt]:
        """Return the prompts of up to `OTHERS` other recalled facts with as many tokens, by fact_id.

        Raises:
            MnemoError: there is none.
        """
        if length not in self._others:
            facts = self.study.table[self.study.table["recalled"]]
            prompts = (
                (row.fact_id, render(self.study.task.recall, row.cue, tokenizer=self.model.tokens))
                for row in facts.itertuples()
            )
            alike = ((str(name), prompt) for name, prompt in prompts if len(prompt) == length)
            self._others[length] = [found for found, _ in zip(alike, range(OTHERS + 1), strict=False)]
        found = dict([pair for pair in self._others[length] if pair[0] != fact_id][:OTHERS])
        if not found:
            raise MnemoError(
                "no other recalled fact has a prompt of as many tokens, so there is no mean to ablate with"
            )
        return found

    def component(self, prompts: Sequence[Prompt], place: Place) -> Tensor:
        """Return what a component writes in some prompts of one length."""
        (value,) = self.values(prompts, [place.component.hook]).values()
        return at(value, place.position, heads=place.heads, n_heads=self.model.n_heads)

    def values(self, prompts: Sequence[Prompt], hooks: Sequence[str]) -> dict[str, Tensor]:
        """Return the values at some hooks in prompts of one length."""
        tokens = torch.tensor([prompt.tokens for prompt in prompts], device=self.model.device)
        values, _ = values_at(self.model, tokens, names=hooks)
        return {name: value.float().cpu() for name, value in values.items()}

    def _likely(self, said: Sequence[Float[Tensor, " vocabulary"]]) -> list[int]:
        """The tokens worth showing: the likeliest of each distribution, unless all three have them negligible."""
        tops = [int(i) for one in said for i in one.topk(min(SHOWN, len(one))).indices]
        most = torch.stack(list(said)).max(0).values.exp()
        return [i for i in dict.fromkeys(tops) if most[i] >= NEGLIGIBLE][:MOST_SHOWN]

    def _clean_run(self, fact_id: str, contrast: Contrast) -> Recording:
        """What edges and paths of a fact start from, kept until those of another fact are asked for."""
        if fact_id not in self._clean:
            self._clean = {fact_id: clean_run(self.model, contrast)}
        return self._clean[fact_id]

    def _contrast(self, fact_id: str) -> Contrast:
        if fact_id not in self.study.contrasts:
            raise MnemoError(f"the fact {fact_id!r} has no contrast of equal length, so it has no edges to change")
        return self.study.contrasts[fact_id]

    def _swap(self, fact_id: str, phrase: str) -> Float[Tensor, " d"]:
        """What takes the state at the waypoint from the fact's own concept to another, of the study's or not.

        One that is not has no cues, so both ends come from concept prompts, as in `ConceptVectors.between`.
        """
        known = self.concepts
        if phrase in known.table.phrases:
            return known.swap(fact_id, phrase)
        own = int(known.concepts[known.rows[fact_id]]) if fact_id in known.rows else -1
        if own < 0:
            raise MnemoError(f"no concept was read for fact {fact_id!r}, so there is none to swap")
        ends = (self._typed_concept(phrase).prompts[0], known.table.prompts[own])
        other, mine = read_stream_at_span(self.model, ends, layer=known.vectors.site.layer)
        return other - mine

    def _typed_concept(self, phrase: str) -> ConceptTable:
        """A concept that is not the study's, and the answer that the model gives for it."""
        if phrase not in self._typed:
            table = ask_concepts(self.model, self.study.task.concept_recall or "", phrases=[phrase])
            if not len(table):
                raise MnemoError(
                    f"the concept {shown(phrase)} cannot be asked about: the tokenizer of this model cannot spell it"
                )
            self._typed[phrase] = table
        return self._typed[phrase]

    def _predicted(self, acts: Sequence[Intervention]) -> str | None:
        swaps = [act.concept for act in acts if isinstance(act, SwapConcept)]
        if not swaps:
            return None
        known = self.concepts.table
        table = known if swaps[-1] in known.phrases else self._typed_concept(swaps[-1])
        return self.model.tokens.word(int(table.answers[table.phrases.index(swaps[-1])]))


def at(value: Tensor, position: int, *, heads: slice | None, n_heads: int) -> Tensor:
    """Return the part of a hook's value that an intervention is about, as a view: [batch, (head,) d]."""
    if heads is None:
        return value[:, position]
    split = value.unflatten(-1, (n_heads, -1)) if value.dim() == 3 else value
    return split[:, position, heads]
