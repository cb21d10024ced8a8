"""Attribution with the exact response of each reader, and gradients from the surroundings of the run: for what follows.

The method ``attention_corrected`` of `mnemo.attribution`, which says what it is made of.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mnemo.activations import checked_metric, differences
from mnemo.attribution_runs import AttributionPlan, Batch, add_scores
from mnemo.graph import components, readers, readers_at, seen_by, stream_hook, writers
from mnemo.memory import fit, in_pieces
from mnemo.partial_runs import Change, run_from
from mnemo.readers import responses

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

MOVED = 0.1  # probability that a writer is moved in the disturbed runs of `attention_corrected`
UNMOVED = 0.2  # weight of such a run for the gradient at a head or MLP that was not moved in it


def corrected_edges(plan: AttributionPlan, batch: Batch, *, scores: xr.Dataset) -> None:
    model = plan.model
    shape = (len(batch.rows), len(writers(model)), len(readers(model)), batch.length)
    score, reach = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    for kind, layer, some, products in _responses(plan, batch, []):
        columns = readers_at(model, layer, kind=kind) if kind != "logits" else slice(shape[2] - 1, shape[2])
        score[:, some, columns] = plan.corrected(products, None if kind == "logits" else layer).cpu()
        reach[:, some, columns] = products[1:].square().mean(0).sqrt().cpu()
    scores["score"].values[batch.rows, :, :, -batch.length :] = score.numpy()
    scores["reach"].values[batch.rows, :, :, -batch.length :] = reach.numpy()


def corrected_nodes(plan: AttributionPlan, batch: Batch, *, scores: xr.Dataset) -> None:
    """Sum over each node's edges; a stream is treated as one writer to all readers above it."""
    model = plan.model
    n_writers, length = len(writers(model)), batch.length
    total = torch.zeros(len(batch.rows), n_writers + model.n_layers + 1, length)
    streams = [stream_hook(model, layer) for layer in range(model.n_layers + 1)]
    for kind, layer, some, products in _responses(plan, batch, streams):
        total[:, some] += plan.corrected(products, None if kind == "logits" else layer).sum(2).cpu()
    for part in components(model):
        if part.kind == "residual":
            node = total[:, n_writers + part.layer]
        else:
            node = total[:, part.written_by(model.n_heads)]
            node = node if part.kind == "heads" else node[:, 0]
        add_scores(scores, part, batch=batch, score=node)


def _responses(
    plan: AttributionPlan, batch: Batch, streams: Sequence[str]
) -> Iterator[tuple[str, int, slice, Float[Tensor, "run fact writer reader position"]]]:
    """Yield effects of exact responses: kind and layer of the readers, which writers, and the effect in each run.

    Writers are those of the graph and, after them, whole streams, as far as they enter the reader's block or one below.
    """
    model, n_writers = plan.model, len(writers(plan.model))
    gradients = _surroundings(plan, batch)
    runs = len(next(iter(gradients.values())))
    at_once = _writers_at_once(plan, batch)

    def change_of(some: slice) -> Tensor:
        if some.start < n_writers:
            return differences(model, batch.base, other=batch.other, some=some)
        names = streams[some.start - n_writers : some.stop - n_writers]
        return torch.stack([batch.other.values[n] - batch.base.values[n] for n in names], 2)

    def in_chunks(
        seen_writers: int, seen_streams: int, respond: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[slice, Tensor]]:
        for start, stop in ((0, seen_writers), (n_writers, n_writers + min(seen_streams, len(streams)))):

            def run(piece: slice, start: int = start) -> tuple[slice, Tensor]:
                some = slice(start + piece.start, start + piece.stop)
                return some, respond(change_of(some))

            for _, found in in_pieces(stop - start, at_once, run=run):
                yield found

    for layer in range(model.n_layers):
        for kind in ("q", "k", "v", "mlp"):

            def respond(change: Tensor, kind: str = kind, layer: int = layer) -> Tensor:
                return responses(model, batch.base, kind=kind, layer=layer, change=change, gradients=gradients)

            for some, found in in_chunks(seen_by(model, kind, layer=layer), layer + 1, respond):
                yield kind, layer, some, found

    def read_out(change: Tensor) -> Tensor:
        return _read_out(plan, batch, change)[None].expand(runs, -1, -1, -1, -1)

    for some, found in in_chunks(seen_by(model, "logits"), model.n_layers + 1, read_out):
        yield "logits", -1, some, found


def _surroundings(plan: AttributionPlan, batch: Batch) -> dict[str, Float[Tensor, "run fact position ..."]]:
    """Gradients by what heads and MLPs put out: their mean, then that at the base run and at runs disturbed around it.

    A fact's disturbances depend on its name and the run's number alone, not on the facts that it is run with.
    """
    model, n = plan.model, len(batch.rows)
    base, other = batch.base.values, batch.other.values
    parts = [part for part in components(model) if part.kind != "residual"]
    runs = {name: torch.stack([one[name] for one in batch.gradients]) for name in batch.gradients[0]}
    extra = 0 if plan.graddrop else plan.steps - 1
    weights = {name: torch.ones((len(batch.gradients), 1, 1, 1)) for name in runs}
    if extra:  # all disturbed runs in one batch, run by run
        drawn = [_shares(model, contrast, step) for step in range(1, extra + 1) for contrast in batch.contrasts]
        shares = torch.stack(drawn).unflatten(0, (extra, n)).to(model.device)  # run, fact, position, writer
        changes: dict[str, Change] = {}
        for part in parts:
            share = shares[..., part.written_by(model.n_heads)]
            away = (other[part.hook] - base[part.hook]).reshape(*share.shape[1:], -1)
            changes[part.hook] = partial(_moved, by=away * share[..., None].to(away))
            weight = torch.where(share > 0, 1.0, UNMOVED)
            weights[part.hook] = torch.cat([torch.ones_like(weight[:1]), weight])
        tokens, contrasts = batch.base.tokens.repeat(extra, 1), batch.contrasts * extra
        found = plan.run(tokens, contrasts, changes=changes, keep=[])[0].gradients
        runs = {name: torch.cat([run, found[name].unflatten(0, (extra, n))]) for name, run in runs.items()}
    gradients = {}
    for name, run in runs.items():
        weight = weights[name].to(run)
        parted = run.reshape(*run.shape[:3], weight.shape[3], -1)  # heads apart
        mean = torch.einsum("kbphd,kbph->bphd", parted, weight.expand(parted.shape[:4])) / weight.sum(0)[..., None]
        gradients[name] = torch.cat([mean.reshape(run.shape[1:])[None], run])
    return gradients


def _moved(value: Tensor, by: Tensor) -> Tensor:
    return value + by.reshape(value.shape)


def _shares(model: Model, contrast: Contrast, step: int) -> Float[Tensor, "position writer"]:
    """Draw by how much each writer is moved at each position: mostly not at all."""
    rng = np.random.default_rng([zlib.crc32(contrast.fact.fact_id.encode()), step])
    shape = (len(contrast.clean.tokens), len(writers(model)))
    return torch.from_numpy(np.where(rng.random(shape) < MOVED, rng.random(shape), 0.0).astype(np.float32))


def _writers_at_once(plan: AttributionPlan, batch: Batch) -> int:
    model, length = plan.model, batch.length
    width = 16 * model.d_model + 6 * model.n_heads * length
    return fit(4 * len(batch.rows) * length * width, memory_gb=plan.memory_gb)


def _read_out(plan: AttributionPlan, batch: Batch, change: Tensor) -> Float[Tensor, "fact writer 1 position"]:
    """Return what a change of the last stream does to the metric, through the final norm itself."""
    model, n = plan.model, change.shape[2]
    stream = batch.base.values[stream_hook(model, model.n_layers)][:, -1, None] + change[:, -1]
    rows = stream.flatten(0, 1)[:, None]
    tokens = batch.base.tokens[:, -1:].repeat_interleave(n, 0)
    _, logits = run_from(model, model.n_layers, stream=rows, tokens=tokens)
    contrasts = [c for c in batch.contrasts for _ in range(n)]
    assert logits is not None  # nothing was kept, so it ran to the end
    after = checked_metric(plan.metric_fn, logits, contrasts=contrasts).view(-1, n)
    found = torch.zeros(*after.shape, 1, batch.length, device=after.device)
    found[..., 0, -1] = after - batch.base.metric[:, None]
    return found
