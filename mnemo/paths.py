"""The strongest paths from the tokens of a prompt to the metric, and what flows through every component.

metric(clean) - metric(corrupt) is the sum, over all paths from the embedding of a token through heads and MLPs to the
logits, of the chained multipliers times the difference of the embeddings. There are far too many paths to list. But
what all paths with a common end carry together is one dot product: the gradient at the first component of that end,
carried back through its multipliers alone, times what this component writes. So the search grows paths from the
logits backwards, always at the strongest open end (best first).

A path's value counts as large by its size, whatever its sign. An open end whose paths cancel may hide a strong one:
the search opens ends down to the size of the weakest path that it returns, not below.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mnemo.graph import Writer
from mnemo.line import SLOTS, Slot
from mnemo.multipliers import Multipliers, Totals
from mnemo.shape import GROWN

BATCH, BATCH_PER_PATH = 32, GROWN  # open ends that are grown together; for few paths fewer: most are in vain
ROUNDING = 1e-6  # a value below this share of the whole is rounding


@dataclass(frozen=True)
class Hop:
    """A component on a path, at a position.

    Attributes:
        writer: the component; None for the logits.
        position: where it writes, 0 for the first token.
        slot: for a head, how it reads the component before: as ``q``, ``k`` or ``v``.
    """

    writer: Writer | None
    position: int
    slot: Slot | None = None

    @property
    def name(self) -> str:
        return "logits" if self.writer is None else self.writer.name


@dataclass(frozen=True)
class Path:
    """A path from an embedding to the logits and what it carries of metric(clean) - metric(corrupt), in logits."""

    hops: tuple[Hop, ...]
    value: float


@dataclass(frozen=True)
class Edge:
    """What all paths over one edge carry together, in logits: from `source` into the reader at `target`."""

    source: Hop
    target: Hop
    value: float


def strongest_paths(multipliers: Multipliers, *, top: int) -> list[Path]:
    """Return the strongest complete paths by best-first search, the largest absolute value first.

    Args:
        multipliers: the averaged Jacobians of one contrast.
        top: how many paths.
    """
    ends = [_logits_end(multipliers)]
    order = itertools.count()  # breaks ties, so that equal values never compare anything else
    queue: list[tuple[float, int, int, int]] = []  # -|value|, tie, end, rank in it
    complete: list[tuple[float, int, Path]] = []  # a heap of the strongest so far, weakest first
    floor = ROUNDING * abs(multipliers.total)
    batch = min(BATCH, BATCH_PER_PATH * top)

    def offer(end: int, rank: int) -> None:
        if rank < len(ends[end].sizes) and ends[end].sizes[rank] > floor:
            heapq.heappush(queue, (-float(ends[end].sizes[rank]), next(order), end, rank))

    offer(0, 0)
    while True:
        opened: list[tuple[Hop, tuple[Hop, ...], Tensor]] = []
        while queue and len(opened) < batch:
            size, _, end, rank = queue[0]
            if len(complete) == top and -size <= complete[0][0]:
                break
            heapq.heappop(queue)
            offer(end, rank + 1)
            hop, value, slot, gradient = ends[end].child(rank)
            tail = (Hop(ends[end].hop.writer, ends[end].hop.position, slot), *ends[end].tail)
            if hop.writer is not None and hop.writer.kind == "embed":
                found = (-size, next(order), Path((hop, *tail), value))
                (heapq.heappush if len(complete) < top else heapq.heappushpop)(complete, found)
            else:
                opened.append((hop, tail, gradient))
        if not opened:
            return [path for _, _, path in sorted(complete, key=lambda entry: (-entry[0], entry[1]))]
        for end in _grow(multipliers, opened):
            ends.append(end)
            offer(len(ends) - 1, 0)


class _End:
    """The end of a path from one component to the logits, with everything that could come before it.

    Args:
        hop: the component at which the end begins.
        tail: what follows it.
        gradients: at the stream that it reads; positions from `start` on.
        values: of all paths with this end that come from a writer at a position into a slot.
        start: first position of `gradients` and `values`.
        slots: names of the slots.
    """

    def __init__(
        self,
        multipliers: Multipliers,
        hop: Hop,
        tail: tuple[Hop, ...],
        gradients: Float[Tensor, "slot position d"],
        values: Float[np.ndarray, "slot position writer"],
        *,
        start: int,
        slots: Sequence[Slot | None],
    ) -> None:
        self.hop, self.tail, self._gradients, self._start, self._slots = hop, tail, gradients, start, slots
        self._writers, self._row = multipliers.writers, multipliers.row
        sizes = np.abs(values).ravel()
        self._order = np.argsort(-sizes, kind="stable")
        self.sizes, self._values = sizes[self._order], values

    def child(self, rank: int) -> tuple[Hop, float, Slot | None, Tensor]:
        """Return the component that comes before at this rank, the value, the slot and the gradient at it."""
        slot, position, writer = np.unravel_index(self._order[rank], self._values.shape)
        hop = Hop(self._writers[int(writer)], self._start + int(position))
        return hop, float(self._values[slot, position, writer]), self._slots[slot], self._gradients[slot, position]

    def edges(self, least: float, also: Iterable[tuple[Hop, Hop]]) -> Iterator[Edge]:
        """Yield the edges into the component that have at least some size, and those of `also`."""
        found = set()
        for rank in range(int((self.sizes >= max(least, np.finfo(np.float32).tiny)).sum())):
            source, value, slot, _ = self.child(rank)
            target = Hop(self.hop.writer, self.hop.position, slot)
            found.add((source, target))
            yield Edge(source, target, value)
        for source, target in also:
            if (source, target) not in found and source.writer is not None:
                place = self._slots.index(target.slot), source.position - self._start, self._row(source.writer)
                yield Edge(source, target, float(self._values[place]))


def _logits_end(multipliers: Multipliers) -> _End:
    last = multipliers.length - 1
    gradient = multipliers.logits()
    values = (multipliers.deltas[:, -1] @ gradient)[None, None].cpu().numpy()
    return _End(multipliers, Hop(None, last), (), gradient[None, None], values, start=last, slots=(None,))


def _grow(
    multipliers: Multipliers, opened: Sequence[tuple[Hop, tuple[Hop, ...], Float[Tensor, " d"]]]
) -> Iterator[_End]:
    """Carry the gradients of open ends back through their first components, those of one kind and layer together."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, (hop, _, _) in enumerate(opened):
        assert hop.writer is not None
        groups.setdefault((hop.writer.layer, hop.writer.kind == "mlp"), []).append(i)
    for rows in groups.values():
        chosen = [opened[i] for i in rows]
        hops, gradients = [hop for hop, _, _ in chosen], torch.stack([gradient for _, _, gradient in chosen])
        through = _back(multipliers, hops, gradients)
        for (hop, tail, _), (back, values, start, slots) in zip(chosen, through, strict=True):
            yield _End(multipliers, hop, tail, back, values, start=start, slots=slots)


def _back(
    multipliers: Multipliers, hops: Sequence[Hop], gradients: Float[Tensor, "item d"]
) -> Iterator[tuple[Tensor, np.ndarray, int, tuple[Slot | None, ...]]]:
    """Carry gradients at some heads, or MLPs, of one layer back to the stream, and weigh all writers with them.

    Yields, for each: gradients [slot, position, d], values [slot, position, writer], the first position, the slots.
    """
    writer = hops[0].writer
    assert writer is not None
    positions = torch.tensor([hop.position for hop in hops], device=gradients.device)
    deltas = multipliers.deltas[: multipliers.upstream(writer)]
    if writer.kind == "mlp":
        back = multipliers.mlp(writer.layer, positions, gradients=gradients)
        values = torch.einsum("md,wmd->mw", back, deltas[:, positions]).cpu().numpy()
        for i, hop in enumerate(hops):
            yield back[i, None, None], values[i, None, None], hop.position, (None,)
        return
    heads = torch.tensor([hop.writer.head for hop in hops if hop.writer is not None], device=gradients.device)
    back = multipliers.heads(writer.layer, heads, positions=positions, gradients=gradients)
    values = torch.einsum("mspd,wpd->mspw", back, deltas).cpu().numpy()
    for i in range(len(hops)):
        yield back[i], values[i], 0, SLOTS


def node_values(multipliers: Multipliers, totals: Totals) -> Float[Tensor, "writer position"]:
    """Return what all paths through each component at each position carry together, in logits."""
    found = [(multipliers.deltas[0] * totals.embed).sum(-1)[None]]
    for i, writer in enumerate(multipliers.writers[1:], start=1):
        at = totals.mlp if writer.kind == "mlp" else totals.heads
        found.append((multipliers.deltas[i] * at[writer.layer]).sum(-1)[None])
    return torch.cat(found)


def stream_values(multipliers: Multipliers, totals: Totals) -> Float[Tensor, "boundary position"]:
    """Return what all paths through the residual stream after 0, 1, ... blocks carry together, in logits."""
    blocks = len(totals.mlp)
    per_block = (len(multipliers.writers) - 1) // blocks
    found = [
        (multipliers.deltas[: 1 + after * per_block].sum(0) * totals.stream[after]).sum(-1)
        for after in range(blocks + 1)
    ]
    return torch.stack(found)


def edges_into(
    multipliers: Multipliers, totals: Totals, *, readers: Iterable[Hop], least: float, also: Collection[tuple[Hop, Hop]]
) -> list[Edge]:
    """Return the edges into some components, those of the strongest values first.

    Args:
        multipliers: the averaged Jacobians of one contrast.
        totals: from the same.
        readers: heads and MLPs at positions, without slots; the logits are always among them.
        least: the smallest absolute value of interest, in logits.
        also: edges wanted whatever they carry, as pairs of a source without slot and a target with its slot.
    """
    groups: dict[tuple[int, bool], list[Hop]] = {}
    for hop in dict.fromkeys(readers):
        if hop.writer is not None and hop.writer.kind != "embed":
            groups.setdefault((hop.writer.layer, hop.writer.kind == "mlp"), []).append(hop)
    wanted: dict[tuple[Writer | None, int], list[tuple[Hop, Hop]]] = {}
    for source, target in also:
        wanted.setdefault((target.writer, target.position), []).append((source, target))
    ends = [_logits_end(multipliers)]
    for (layer, is_mlp), hops in groups.items():
        at = (totals.mlp if is_mlp else totals.heads)[layer]
        for start in range(0, len(hops), BATCH):
            some = hops[start : start + BATCH]
            ends += _grow(multipliers, [(hop, (), at[hop.position]) for hop in some])
    found = (edge for end in ends for edge in end.edges(least, wanted.get((end.hop.writer, end.hop.position), ())))
    return sorted(found, key=lambda edge: -abs(edge.value))
