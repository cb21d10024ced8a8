"""What can be done to a component or a concept, and what the model answers then, beside a control.

The control of every intervention is a random direction of the same norm at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.graph import Component, components, stream_hook
from mnemo.interventions import like
from mnemo.patching import Hook, Patch, Site, next_logprobs, read_stream
from mnemo.prompts import Prompt, render
from mnemo.study_concepts import StudyConcepts, study_concepts

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.study import Study

OTHERS = 64  # facts that an ablated component's mean is taken over
SHOWN = 5  # answers of each distribution
_NODE = re.compile(r"(?:(?P<embed>embed)|MLP(?P<mlp>\d{1,4})|L(?P<layer>\d{1,4})(?:H(?P<head>\d{1,4}))?)@(?P<at>-\d+)")

Text = Annotated[str, Field(min_length=1, max_length=10_000)]
NodeName = Annotated[str, Field(max_length=60)]


class _Act(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ablate(_Act):
    """Set a component at a position to its mean over the study's other facts."""

    kind: Literal["ablate"] = "ablate"
    node: NodeName

    @property
    def text(self) -> str:
        return f"ablate {self.node}"


class PatchFrom(_Act):
    """Set a component at a position to what it is in another fact's prompt."""

    kind: Literal["patch"] = "patch"
    node: NodeName
    cue: Text

    @property
    def text(self) -> str:
        return f"patch {self.node} from {self.cue}"


class SwapConcept(_Act):
    """Add (other concept - own concept) to the state at the waypoint."""

    kind: Literal["swap"] = "swap"
    concept: Text

    @property
    def text(self) -> str:
        return f"swap the concept for {self.concept}"


Intervention = Annotated[Ablate | PatchFrom | SwapConcept, Field(discriminator="kind")]


@dataclass(frozen=True)
class Outcome:
    """What the model answers before and after some interventions, and under their control.

    Attributes:
        answers: the answers that any of the three prefers, the fact's own first.
        before, after, control: their probabilities.
        predicted: the answer that a concept swap should give, said beforehand; None without one.
        says: the first choice after the interventions.
    """

    answers: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    control: tuple[float, ...]
    predicted: str | None
    says: str


@dataclass(frozen=True)
class _Change:
    """A value at a hook and a position: set, or added where `add` says so."""

    hook: str
    position: int
    heads: slice | None
    value: Tensor
    add: bool = False


@dataclass(frozen=True)
class Place:
    """A component at a position, taken apart from its name (``L2H1@-2``, ``MLP3@-1``, ``L2@-2`` for all heads)."""

    component: Component
    head: int | None
    position: int

    @classmethod
    def named(cls, node: str, model: Model) -> Place:
        """Find a component.

        Raises:
            MnemoError: no such name, or none that writes.
        """
        match = _NODE.fullmatch(node)
        layer = int(match["mlp"] or match["layer"] or 0) if match else 0
        head = int(match["head"]) if match and match["head"] else None
        if match is None or layer >= model.n_layers or (head or 0) >= model.n_heads:
            raise MnemoError(
                f"no component {node!r}: give one that writes, such as MLP0@-2, L{model.n_layers - 1}H0@-1 or embed@-2"
            )
        kind = "embed" if match["embed"] else "mlp" if match["mlp"] else "heads"
        found = next(part for part in components(model) if part.kind == kind and part.layer == layer)
        return cls(found, head, int(match["at"]))

    @property
    def heads(self) -> slice | None:
        if self.component.kind != "heads":
            return None
        return slice(None) if self.head is None else slice(self.head, self.head + 1)


class Bench:
    """Runs interventions on the facts of one study."""

    def __init__(self, study: Study, *, seed: int = 0) -> None:
        self.study, self.model, self.seed = study, study.model, seed
        self._typed: dict[str, StudyConcepts] = {}

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
        changes = [self._change(fact_id, prompt, act) for act in acts]
        before = self._said(prompt, [])
        after = self._said(prompt, changes)
        control = self._said(prompt, self._random(prompt, changes))
        top = [int(i) for said in (before, after, control) for i in said.topk(min(SHOWN, len(said))).indices]
        tops = list(dict.fromkeys(top))[: 2 * SHOWN]
        says = self.model.tokens.pieces([int(after.argmax())])[0].strip()

        def probabilities(said: Tensor) -> tuple[float, ...]:
            return tuple(said[tops].exp().tolist())

        return Outcome(
            tuple(piece.strip() or repr(piece) for piece in self.model.tokens.pieces(tops)),
            probabilities(before),
            probabilities(after),
            probabilities(control),
            self._predicted(acts),
            says,
        )

    def attention(self, fact_id: str, node: str) -> list[float]:
        """Return how a head at its position attends to each token of the prompt; weights add up to 1."""
        place = Place.named(node, self.model)
        kept = self._values([self.study.prompt(fact_id)], [f"blocks.{place.component.layer}.attn.hook_pattern"])
        (pattern,) = kept.values()
        weights = pattern[0, place.heads or slice(None), place.position]
        return weights.mean(0).tolist()

    def reads_as(self, fact_id: str, node: str) -> list[dict[str, Any]]:
        """Return the tokens that the stream would bring, had the model ended after this node's block (logit lens).

        (nostalgebraist 2020; early layers are often illegible to it, which says nothing about their use.)
        """
        place = Place.named(node, self.model)
        after = 0 if place.component.kind == "embed" else place.component.layer + 1
        prompt = self.study.prompt(fact_id)
        state = read_stream(self.model, [prompt], [place.position])[:, after, 0]
        ((_, said),) = next_logprobs(self.model, [prompt], patch=Patch(Site(self.model.n_layers, -1), state))
        best = said[0].topk(min(SHOWN, said.shape[1]))
        pieces = self.model.tokens.pieces(best.indices.tolist())
        return [
            {"token": t.strip() or repr(t), "p": p} for t, p in zip(pieces, best.values.exp().tolist(), strict=True)
        ]

    def _change(self, fact_id: str, prompt: Prompt, act: Intervention) -> _Change:
        if isinstance(act, SwapConcept):
            step = self._known(act.concept).swap(fact_id, act.concept)
            site = self.concepts.vectors.site
            return _Change(stream_hook(self.model, site.layer), site.position, None, step, add=True)
        place = Place.named(act.node, self.model)
        if -place.position > len(prompt):
            raise MnemoError(
                f"{act.node}: the prompt has {len(prompt)} tokens, so -{len(prompt)} is its first position"
            )
        if isinstance(act, PatchFrom):
            other = render(self.study.task.recall, act.cue, self.model.tokens)
            if len(other) != len(prompt):
                raise MnemoError(
                    f"the prompt of {act.cue!r} has {len(other)} tokens and this one {len(prompt)}: choose a cue of as "
                    "many tokens"
                )
            value = self._component([other], place)[0]
        else:
            value = self._component(self._others(fact_id, len(prompt)), place).mean(0)
        return _Change(place.component.hook, place.position, place.heads, value)

    def _others(self, fact_id: str, length: int) -> list[Prompt]:
        facts = self.study.table[self.study.table["recalled"] & (self.study.table["fact_id"] != fact_id)]
        found = []
        for cue in facts["cue"]:
            prompt = render(self.study.task.recall, cue, self.model.tokens)
            if len(prompt) == length:
                found.append(prompt)
            if len(found) == OTHERS:
                break
        if not found:
            raise MnemoError(
                "no other recalled fact has a prompt of as many tokens, so there is no mean to ablate with"
            )
        return found

    def _known(self, phrase: str) -> StudyConcepts:
        """The concepts of the study, with a typed one among them."""
        if phrase in self.concepts.table.phrases:
            return self.concepts
        if phrase not in self._typed:
            self._typed[phrase] = study_concepts(self.study, also=[phrase])
        return self._typed[phrase]

    def _predicted(self, acts: Sequence[Intervention]) -> str | None:
        swaps = [act.concept for act in acts if isinstance(act, SwapConcept)]
        if not swaps:
            return None
        known = self._known(swaps[-1])
        return self.model.tokens.decode([int(known.table.answers[known.find(swaps[-1])])]).strip()

    def _random(self, prompt: Prompt, changes: Sequence[_Change]) -> list[_Change]:
        """Each change with a random direction of its norm in its stead."""
        draw = torch.Generator().manual_seed(self.seed)
        hooks = [change.hook for change in changes if not change.add]
        clean = self._values([prompt], hooks) if hooks else {}
        found = []
        for change in changes:
            start = torch.zeros_like(change.value)
            if not change.add:
                start = _at(clean[change.hook], change.position, change.heads, self.model.n_heads)[0]
            step = change.value - start
            moved = like(step.reshape(1, -1), draw).reshape(step.shape)
            found.append(_Change(change.hook, change.position, change.heads, start + moved, change.add))
        return found

    def _said(self, prompt: Prompt, changes: Sequence[_Change]) -> Float[Tensor, " vocabulary"]:
        """Log-probabilities of the next token under some changes."""
        if not changes:
            ((_, said),) = next_logprobs(self.model, [prompt])
            return said[0]

        def put(value: Tensor, hook: Any, *, change: _Change) -> Tensor:
            value = value.clone()
            here = _at(value, change.position, change.heads, self.model.n_heads)  # a view
            moved = change.value.to(here)
            here.copy_(here + moved if change.add else moved.expand_as(here))
            return value

        hooks: list[Hook] = [(change.hook, partial(put, change=change)) for change in changes]
        tokens = torch.tensor([prompt.tokens], device=self.model.device)
        with torch.no_grad():
            logits = self.model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        return logits[0, -1].float().log_softmax(-1).cpu()

    def _component(self, prompts: Sequence[Prompt], place: Place) -> Tensor:
        """What a component writes in some prompts of one length."""
        (value,) = self._values(prompts, [place.component.hook]).values()
        return _at(value, place.position, place.heads, self.model.n_heads)

    def _values(self, prompts: Sequence[Prompt], hooks: Sequence[str]) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, *, name: str) -> None:
            kept[name] = value.detach().float().cpu()

        keeping: list[Hook] = [(name, partial(keep, name=name)) for name in hooks]
        tokens = torch.tensor([prompt.tokens for prompt in prompts], device=self.model.device)
        with torch.no_grad():
            self.model.bridge.run_with_hooks(tokens, fwd_hooks=keeping)
        return kept


def _at(value: Tensor, position: int, heads: slice | None, n_heads: int) -> Tensor:
    """The part of a hook's value that an intervention is about, as a view: [batch, (head,) d]."""
    if heads is None:
        return value[:, position]
    split = value.unflatten(-1, (n_heads, -1)) if value.dim() == 3 else value
    return split[:, position, heads]
