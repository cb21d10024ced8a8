"""Edge and path patching by intervention: the ground truth for `attribute_edges`, at one forward pass per edge.

An edge is patched by letting one reader alone see another value of one writer at one position; everything else follows.
Runs start at the reader's block, since nothing before it changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.activations import (
    MetricFn,
    Recording,
    checked_metric,
    contributions,
    differences,
    head_hooks,
    record,
    writer_hooks,
)
from mnemo.attribution_runs import Direction, checked_direction
from mnemo.errors import MnemoError
from mnemo.graph import Reader, Writer, empty_edges, readers, seen_by, stream_hook, writers
from mnemo.memory import fit, in_pieces
from mnemo.partial_runs import Change, run_from
from mnemo.patching import metric, over_batches, require_contrasts
from mnemo.readers import behind_reader, check_readers, input_hooks, put, seen
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model
    from mnemo.trace_record import TracedPath

TOKENS_PER_BATCH = 8192


def exact_edges(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    only: xr.DataArray | None = None,
    direction: Direction = "noising",
    metric_fn: MetricFn = metric,
) -> xr.Dataset:
    """Patch edges one by one, each in a run of its own; many runs in one batch.

    Args:
        model: the model.
        contrasts: one clean and corrupt prompt for each fact, of any lengths.
        only: True at the edges to patch, with the labels of `attribute_edges`; None for all that there are.
        direction: see `mnemo.attribution`; so is the sign.
        metric_fn: see `mnemo.attribution.attribute_nodes`.

    Returns:
        a dataset in logits with the variable ``score`` (fact, writer, reader, position), NaN where nothing was
        patched, and ``metric_clean`` and ``metric_corrupt`` (fact). Its attribute ``forwards`` counts the runs. Edges
        that cannot reach the last position are 0 without one.

    Raises:
        MnemoError: as `mnemo.attribution.attribute_edges`; `only` at a fact or position that is not there.
    """
    noising = checked_direction(direction) == "noising"
    require_contrasts(model, contrasts)
    scores = empty_edges(model, contrasts, variables=["score"])
    wanted = _wanted(scores, only)
    metrics = torch.empty(2, len(contrasts))
    sign = -1.0 if noising else 1.0
    with tqdm(total=int(wanted.sum()), desc="exact edges", unit="edge", leave=False, disable=None) as bar:

        def patch_all(rows: Tensor, clean: Tensor) -> int:
            chosen = [contrasts[i] for i in rows.tolist()]
            corrupt = torch.tensor([c.corrupt.tokens for c in chosen], device=model.device)
            runs = [_record(model, tokens, chosen, metric_fn) for tokens in (clean, corrupt)]
            metrics[:, rows] = torch.stack([run.metric for run in runs]).to(metrics)
            base, other = runs if noising else runs[::-1]
            check_readers(model, base)
            values = scores["score"].values
            here = wanted[rows.numpy()][..., -clean.shape[1] :]
            found, forwards = np.full(here.shape, np.nan, dtype=np.float32), 0
            for index in _by_layer(model, here):
                effect, run = _patched(model, base, other, index, chosen, metric_fn)
                found[tuple(index)] = sign * effect.cpu().numpy()
                forwards += run
                bar.update(index.shape[1])
            values[rows.numpy(), :, :, -clean.shape[1] :] = found
            return forwards

        done = over_batches(model, [c.clean for c in contrasts], run=patch_all, bytes_each=Shape.of(model).pair_bytes)
        forwards = sum(run for _, run in done)
    scores["metric_clean"], scores["metric_corrupt"] = ("fact", metrics[0].numpy()), ("fact", metrics[1].numpy())
    return scores.assign_attrs(method="exact", direction=direction, forwards=forwards)


def _record(model: Model, tokens: Tensor, contrasts: Sequence[Contrast], metric_fn: MetricFn) -> Recording:
    names = [*dict.fromkeys([*writer_hooks(model), *input_hooks(model), *_projected(model)])]
    return record(model, tokens, names=names, contrasts=contrasts, metric_fn=metric_fn)[0]


def _projected(model: Model) -> list[str]:
    return [f"blocks.{layer}.attn.hook_{kind}" for layer in range(model.n_layers) for kind in "kv"]


def _wanted(scores: xr.Dataset, only: xr.DataArray | None) -> np.ndarray:
    """Return a mask over fact, writer, reader and position; positions before a prompt are left to the caller."""
    everything = np.ones(scores["score"].shape, dtype=bool)
    if only is None:
        return everything
    dims = scores["score"].dims
    if set(only.dims) != set(dims):
        raise MnemoError(f"only= has the dimensions {only.dims}: give {dims}, as attribute_edges returns them")
    for dim in dims:
        strange = np.setdiff1d(only[dim].values, scores[dim].values).tolist()
        if strange:
            raise MnemoError(
                f"only= names the {dim} {strange[0]!r}, which is not there: {_range_of(scores[dim].values)}"
            )
    where = np.ix_(*(np.searchsorted(scores[d].values, only[d].values, sorter=_order(scores[d])) for d in dims))
    everything[:] = False
    everything[tuple(_order(scores[d])[axis] for d, axis in zip(dims, where, strict=True))] = only.transpose(
        *dims
    ).values
    return everything


def _order(labels: xr.DataArray) -> np.ndarray:
    return np.argsort(labels.values, kind="stable")


def _range_of(values: np.ndarray) -> str:
    labels = values.tolist()
    return f"there are {len(values)}, from {labels[0]!r} to {labels[-1]!r}"


def _by_layer(model: Model, wanted: np.ndarray) -> Iterator[Int[np.ndarray, "4 edge"]]:
    """Yield the edges wanted (fact, writer, reader, position) by the block at which their readers stand."""
    parts = readers(model)
    visible = np.array([seen_by(model, reader.kind, layer=reader.layer) for reader in parts])
    allowed = wanted & (np.arange(wanted.shape[1])[:, None] < visible)[None, :, :, None]
    layers = np.array([model.n_layers if reader.kind == "logits" else reader.layer for reader in parts])
    for layer in range(model.n_layers + 1):
        index = np.stack(np.nonzero(allowed & (layers == layer)[None, None, :, None]))
        if index.shape[1]:
            yield index


def _patched(
    model: Model,
    base: Recording,
    other: Recording,
    index: Int[np.ndarray, "4 edge"],
    contrasts: Sequence[Contrast],
    metric_fn: MetricFn,
) -> tuple[Float[Tensor, " edge"], int]:
    """Return what patching edges of readers at one block does to the metric, and how many runs that took."""
    parts = readers(model)
    length = base.tokens.shape[1]
    layer = model.n_layers if parts[index[2, 0]].kind == "logits" else parts[index[2, 0]].layer
    effect = torch.zeros(index.shape[1], device=base.metric.device)
    # Only the last position is read, and above the last block's keys and values nothing moves between positions.
    local = np.array([parts[r].kind in ("q", "mlp", "logits") and layer >= model.n_layers - 1 for r in index[2]])
    moving = np.nonzero(~local | (index[3] == length - 1))[0]
    tokens = 1 if layer == model.n_layers else length
    at_once = max(1, min(TOKENS_PER_BATCH // tokens, fit(Shape.of(model).forward_bytes(tokens))))
    change = differences(model, base, other=other)

    def patch(piece: slice) -> None:
        edges = moving[piece]
        fact, writer, reader, position = (torch.from_numpy(axis).to(base.tokens.device) for axis in index[:, edges])
        step = change[fact, position, writer]
        stream = base.values[stream_hook(model, layer)][fact]
        chosen = [contrasts[i] for i in fact.tolist()]
        if layer == model.n_layers:
            patched, inputs, changes = (stream[:, -1] + step)[:, None], base.tokens[fact, -1:], {}
        else:
            patched, inputs = stream, base.tokens[fact]
            changes = _changes(model, base, layer, [parts[r] for r in reader.tolist()], fact, position, step)
        _, logits = run_from(model, layer, stream=patched, tokens=inputs, changes=changes)
        assert logits is not None  # nothing was kept, so it ran to the end
        after = checked_metric(metric_fn, logits, contrasts=chosen)
        effect[torch.from_numpy(edges).to(effect.device)] = (after - base.metric[fact]).to(effect)

    for _ in in_pieces(len(moving), at_once, run=patch):
        pass
    return effect, len(moving)


def _changes(
    model: Model,
    base: Recording,
    layer: int,
    parts: Sequence[Reader],
    fact: Int[Tensor, " row"],
    position: Int[Tensor, " row"],
    step: Float[Tensor, "row d"],
) -> dict[str, Change]:
    """Return what to put at the hooks behind the readers of a block: in each row one reader's input is moved."""
    changes: dict[str, Change] = {}
    for kind in ("q", "k", "v", "mlp"):
        rows = [row for row, part in enumerate(parts) if part.kind == kind]
        if not rows:
            continue
        row = torch.tensor(rows, device=step.device)
        head = torch.tensor([parts[i].head for i in rows], device=step.device)
        stream = seen(model, base, kind=kind, layer=layer)[fact[row], position[row]] + step[row]
        name, new = behind_reader(model, kind, layer=layer, stream=stream)
        shape, spots = (len(parts), base.tokens.shape[1], *new.shape[1:]), (row, position[row])
        if kind != "mlp":
            spots, new = (*spots, head), new[torch.arange(len(rows), device=head.device), head]
        changes[name] = partial(put, shape=shape, spots=spots, new=new)
    return changes


# ---- paths


@dataclass(frozen=True)
class Edge:
    """One edge: what `writer` wrote at `position` (from the end, negative), as `reader` alone sees it.

    Labels are those of `mnemo.graph`, such as ``h1.2`` and ``mlp3``.
    """

    writer: str
    reader: str
    position: int


def path_edges(model: Model, path: TracedPath) -> list[Edge]:
    """Return the edges of a traced path, as `exact_path` takes them.

    Where heads share keys and values (grouped queries), the edge goes to the key or value head that the path's head
    uses, and thus to all heads of its group.
    """
    group = model.n_heads // model.n_kv_heads
    found = []
    for before, after in pairwise(path.steps):
        if before.component == "embed":
            writer = "embed"
        else:
            writer = f"mlp{before.layer}" if before.head is None else f"h{before.layer}.{before.head}"
        if after.component == "logits":
            reader = "logits"
        elif after.head is None:
            reader = f"mlp{after.layer}"
        else:
            reader = f"{after.slot}{after.layer}.{after.head if after.slot == 'q' else after.head // group}"
        found.append(Edge(writer, reader, before.position))  # everything is read where it was written
    return found


def exact_path(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    path: Sequence[Edge],
    direction: Direction = "noising",
    metric_fn: MetricFn = metric,
) -> Float[Tensor, " fact"]:
    """Patch one path: a writer's other value travels along a chain of edges, and along nothing else.

    Each component on the way is run with its input changed by the one before it alone (path patching: Goldowsky-Dill
    et al. 2023). One pass through a part of the model for each edge.

    Args:
        model: the model.
        contrasts: one clean and corrupt prompt for each fact, of any lengths.
        path: edges, each beginning with the writer that the one before ends at, the last at the logits. A head carries
            what its k or v reads to any later position, all else stays at its own.
        direction: see `mnemo.attribution`; so is the sign.
        metric_fn: see `mnemo.attribution.attribute_nodes`.

    Returns:
        the effect for each fact, in logits.

    Raises:
        MnemoError: edges that are not there or do not follow one another; otherwise as `exact_edges`.
    """
    noising = checked_direction(direction) == "noising"
    require_contrasts(model, contrasts)
    hops = _hops(model, contrasts, path)
    effect = torch.empty(len(contrasts))

    def follow(rows: Tensor, clean: Tensor) -> Tensor:
        chosen = [contrasts[i] for i in rows.tolist()]
        corrupt = torch.tensor([c.corrupt.tokens for c in chosen], device=model.device)
        pair = (clean, corrupt) if noising else (corrupt, clean)
        base, other = (_record(model, tokens, chosen, metric_fn) for tokens in pair)
        check_readers(model, base)
        first = writers(model).index(hops[0][0])
        step = differences(model, base, other=other, some=slice(first, first + 1))[:, path[0].position, 0]
        for (_, reader, position), following in itertools.pairwise(hops):
            step = _passed_on(model, base, reader, position, step, following)
        stream = (base.values[stream_hook(model, model.n_layers)][:, -1] + step)[:, None]
        _, logits = run_from(model, model.n_layers, stream=stream, tokens=base.tokens[:, -1:])
        assert logits is not None  # nothing was kept, so it ran to the end
        change = checked_metric(metric_fn, logits, contrasts=chosen) - base.metric
        return -change if noising else change

    for rows, change in over_batches(model, [c.clean for c in contrasts], run=follow):
        effect[rows] = change.to(effect)
    return effect


def _hops(model: Model, contrasts: Sequence[Contrast], path: Sequence[Edge]) -> list[tuple[Writer, Reader, int]]:
    """Find the parts that a path names, and see that each edge follows from the one before."""
    if not path:
        raise MnemoError("the path is empty: give at least an edge to the logits")
    starts = {part.label: part for part in writers(model)}
    ends = {part.label: part for part in readers(model)}
    shortest = min(len(c.clean) for c in contrasts)
    hops: list[tuple[Writer, Reader, int]] = []
    for edge in path:
        for label, known, side in ((edge.writer, starts, "writer"), (edge.reader, ends, "reader")):
            if label not in known:
                raise MnemoError(f"{label!r} is no {side} of {model.name}: see mnemo.graph.{side}s(model)")
        writer, reader = starts[edge.writer], ends[edge.reader]
        if not -shortest <= edge.position < 0:
            raise MnemoError(f"position {edge.position} is out of range: count from the end, -1 to {-shortest}")
        if writers(model).index(writer) >= seen_by(model, reader.kind, layer=reader.layer):
            raise MnemoError(f"{edge.reader} does not see {edge.writer}, which writes after it: give an earlier writer")
        if hops:
            _require_following(model, hops[-1], writer, edge.position)
        hops.append((writer, reader, edge.position))
    if hops[-1][1].kind != "logits" or hops[-1][2] != -1:
        raise MnemoError(f"the path ends at {path[-1].reader} at {path[-1].position}: end it at the logits at -1")
    return hops


def _require_following(model: Model, before: tuple[Writer, Reader, int], writer: Writer, position: int) -> None:
    _, reader, at = before
    if reader.kind == "mlp":
        follows = writer == Writer("mlp", reader.layer)
    else:
        own = writer.head // (model.n_heads // model.n_kv_heads) if reader.kind in "kv" else writer.head
        follows = (writer.kind, writer.layer, own) == ("head", reader.layer, reader.head)
    if not follows:
        raise MnemoError(f"{writer.label} does not put out what {reader.label} reads: the path is broken there")
    if not (position >= at if reader.kind in "kv" else position == at):
        raise MnemoError(f"{reader.label} reads at {at}, from where nothing gets to {writer.label} at {position}")


def _passed_on(
    model: Model,
    base: Recording,
    reader: Reader,
    position: int,
    step: Float[Tensor, "fact d"],
    following: tuple[Writer, Reader, int],
) -> Float[Tensor, "fact d"]:
    """Return what a component writes more at the next edge's position, its input at one reader moved by `step`."""
    writer, _, at = following
    layer, length = reader.layer, base.tokens.shape[1]
    rows = torch.arange(len(step), device=step.device)
    where = torch.full_like(rows, length + position)
    changes = _changes(model, base, layer, [reader] * len(rows), rows, where, step)
    names = [f"blocks.{layer}.hook_mlp_out"]
    if writer.kind == "head":
        names = head_hooks(model, layer)
    values, _ = run_from(
        model, layer, stream=base.values[stream_hook(model, layer)], tokens=base.tokens, changes=changes, keep=names
    )
    index = writers(model).index(writer)
    some, positions = slice(index, index + 1), slice(length + at, length + at + 1)
    there, here = (
        contributions(model, one, some=some, positions=positions) for one in ({**base.values, **values}, base.values)
    )
    return (there - here)[:, 0, 0]
