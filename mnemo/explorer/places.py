"""Parts of a model by the names that the drawing gives them: a component at a position, or a chain of components.

``L2H1@-2`` is a head, ``L2@-2`` all heads of its layer, ``MLP3@-1`` an MLP, ``embed@-4`` a token. A chain
``MLP0@-2>MLP1@-2`` is an edge; one that ends at ``logits@-1``, and says as what each head reads
(``embed@-4>L0H1.v@-2>MLP0@-2>logits@-1``), is a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.graph import Component, components, seen_by
from mnemo.tokens import shown

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.prompts import Prompt

LOGITS = "logits@-1"
_NODE = re.compile(
    r"(?:(?P<embed>embed)|MLP(?P<mlp>\d{1,4})|L(?P<layer>\d{1,4})(?:H(?P<head>\d{1,4}))?(?:\.(?P<slot>[qkv]))?)"
    r"@(?P<at>-\d{1,6})"
)


@dataclass(frozen=True)
class Place:
    """A component at a position.

    Attributes:
        component: the tensor that holds it.
        head: which head; None for all of the layer, and for what is no head.
        position: from the end of the prompt, negative.
        slot: as what a head reads what comes before it in a chain; None for all that it can.
    """

    component: Component
    head: int | None
    position: int
    slot: str | None = None

    @classmethod
    def named(cls, node: str, model: Model) -> Place:
        """Find a component.

        Raises:
            MnemoError: no such name, or none that writes.
        """
        match = _NODE.fullmatch(node)
        layer = int(match["mlp"] or match["layer"] or 0) if match else 0
        head = int(match["head"]) if match and match["head"] else None
        if match is None or int(match["at"]) == 0 or layer >= model.n_layers or (head or 0) >= model.n_heads:
            raise MnemoError(
                f"no component {shown(node)}: give one that writes, such as MLP0@-2, L{model.n_layers - 1}H0@-1 or "
                "embed@-2"
            )
        kind = "embed" if match["embed"] else "mlp" if match["mlp"] else "heads"
        found = next(part for part in components(model) if part.kind == kind and part.layer == layer)
        return cls(found, head, int(match["at"]), match["slot"])

    @property
    def heads(self) -> slice | None:
        """Which heads of the component; None where it has none."""
        if self.component.kind != "heads":
            return None
        return slice(None) if self.head is None else slice(self.head, self.head + 1)

    @property
    def stream_layer(self) -> int:
        """How many blocks have run when what it wrote can be read off the stream with everything else of its block."""
        return 0 if self.component.kind == "embed" else self.component.layer + 1

    def writers(self, n_heads: int) -> slice:
        """Return where it stands in `mnemo.graph.writers`."""
        mine = self.component.written_by(n_heads)
        return mine if self.head is None else slice(mine.start + self.head, mine.start + self.head + 1)

    def within(self, prompt: Prompt) -> Place:
        """Return this place if a prompt has its position.

        Raises:
            MnemoError: the prompt is shorter.
        """
        if -self.position > len(prompt):
            raise MnemoError(
                f"position {self.position} asked for: the prompt has {len(prompt)} tokens, so -{len(prompt)} is its "
                "first position"
            )
        return self


@dataclass(frozen=True)
class Change:
    """A value at a hook and a position: set, or added where `add` says so; one for all runs, or one for each."""

    hook: str
    position: int
    heads: slice | None
    value: Tensor
    add: bool = False


@dataclass(frozen=True)
class Chain:
    """Components of which each reads what the one before it wrote.

    Attributes:
        first: the component whose value is changed.
        rest: those that the change passes through.
        to_logits: whether the last one's value goes to the logits alone, and not wherever it is read.
    """

    first: Place
    rest: tuple[Place, ...]
    to_logits: bool

    @classmethod
    def named(cls, part: str, model: Model, *, prompt: Prompt) -> Chain:
        """Find a node, an edge or a path in a prompt.

        Raises:
            MnemoError: no such component, or one that does not read the one before it.
        """
        names = part.split(">")
        to_logits = len(names) > 1 and names[-1] == LOGITS
        places = tuple(Place.named(name, model).within(prompt) for name in (names[:-1] if to_logits else names))
        for name, (sender, reader) in zip(names[1:], pairwise(places), strict=False):
            if not _reads(model, sender, reader):
                raise MnemoError(f"{name} does not read what is before it in {shown(part)}: an edge is missing there")
        if to_logits and places[-1].position != -1:
            raise MnemoError(f"the logits are read at -1 and {shown(part)} comes from elsewhere: end it at -1")
        return cls(places[0], places[1:], to_logits)


def slots_between(sender: Place, reader: Place) -> tuple[str, ...]:
    """Return as what a component reads another one: ``mlp``, or those of ``q``, ``k`` and ``v`` that reach it."""
    if reader.component.kind == "mlp":
        return ("mlp",) if sender.position == reader.position else ()
    if reader.component.kind != "heads" or sender.position > reader.position:
        return ()
    there = ("q", "k", "v") if sender.position == reader.position else ("k", "v")
    return tuple(slot for slot in there if reader.slot in (None, slot))


def _reads(model: Model, sender: Place, reader: Place) -> bool:
    kinds = slots_between(sender, reader)
    last = sender.writers(model.n_heads).stop - 1
    return bool(kinds) and all(last < seen_by(model, kind, layer=reader.component.layer) for kind in kinds)
