"""Which components and which edges carry the answer? Estimates of activation and edge patching, per fact and position.

Sign convention: every score says by how much the clean value supports the answer over the contrast's answer, in logits.

* *noising* (the default) starts from the clean run: score = metric(clean) - metric(clean with the node, or what one
  reader sees of one writer, set to its corrupt value).
* *denoising* starts from the corrupt run: score = metric(corrupt with the clean value put in) - metric(corrupt).

The two differ where routes are redundant (noising finds none of them alone) or need each other (denoising does not).

Methods, for both nodes and edges:

* ``gradient``: (difference of the values) . gradient at the run that is changed: attribution patching (Nanda 2023) and
  edge attribution patching (Syed et al. 2023). Two forward passes and one backward. Blind where softmax saturates.
* ``integrated_inputs``: the gradient averaged along the straight line between the embeddings of the two runs (EAP-IG:
  Hanna et al. 2024), at the midpoints of `steps` equal parts. Both directions are the same number.
* ``integrated_activations``: for each writer (the heads of a layer together) the gradient averaged while its value, at
  all positions, goes from one run's to the other's. All edges of it add up to what patching it does.
* ``attention_corrected``: the reader's own response is exact (the new attention pattern of a changed query or key as in
  AtP*, Kramar et al. 2024, section 3.1; values, MLPs and the final norm too), and what follows is linear. Its gradient
  is the mean over `steps` runs, the first of them undisturbed, in the others each writer at each position is moved with
  probability `MOVED`, by a share between 0 and 1, towards its value in the other run. Gradients right at a saturated
  softmax say little; those from its surroundings say more, most of all where the reader itself was moved, so that runs
  in which it was not weigh `UNMOVED` (both in `mnemo.corrected_attribution`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mnemo.activations import (
    MetricFn,
    Recording,
    differences,
)
from mnemo.attribution_runs import AttributionPlan, Batch, Direction, Method, add_scores, plan_attribution, written_at
from mnemo.corrected_attribution import corrected_edges, corrected_nodes
from mnemo.graph import (
    DIMS,
    Component,
    components,
    empty_edges,
    empty_scores,
    readers,
    readers_at,
    seen_by,
    stream_hook,
    writers,
)
from mnemo.memory import fit
from mnemo.patching import metric
from mnemo.readers import (
    check_readers,
    input_hooks,
    reader_gradients,
)

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model


def attribute_nodes(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    method: Method = "gradient",
    direction: Direction = "noising",
    graddrop: bool = False,
    steps: int | None = None,
    metric_fn: MetricFn = metric,
    memory_gb: float | None = None,
) -> xr.Dataset:
    """Estimate what patching every node at every position does.

    With the gradient alone a score is exact where the metric is linear in the node. With ``attention_corrected`` it is
    the sum over the node's edges.

    Args:
        model: the model.
        contrasts: one clean and corrupt prompt for each fact, of any lengths.
        method: see the module.
        direction: see the module.
        graddrop: against effects that cancel: with ``gradient`` or ``attention_corrected``, mean of the absolute scores
            over runs backward in which one block at a time lets no gradient through (AtP*, section 3.2), with the sign
            of their sum.
        steps: points of integration, or runs of ``attention_corrected``; None for what `attribution_runs.STEPS` says.
        metric_fn: what is explained: from the logits [fact, 1, vocabulary] of the last position and the contrasts, one
            number for each fact.
        memory_gb: what may be held at once; decides how many facts are run together, never the result. None for the
            budget that holds (see `mnemo.memory`).

    Returns:
        a dataset in logits with the variables ``embed`` (fact, position), ``heads`` (fact, layer, head, position),
        ``mlp`` (fact, layer, position) and ``residual`` (fact, stream_layer, position), and ``metric_clean`` and
        ``metric_corrupt`` (fact). Positions count from the end; NaN before a prompt's first token.

    Raises:
        MnemoError: no contrasts, or one whose prompts differ in length or do not differ at all; a model in training
            mode or without the hooks; a metric that is not one finite number for each fact.
    """
    plan = plan_attribution(
        model,
        contrasts,
        method=method,
        direction=direction,
        graddrop=graddrop,
        steps=steps,
        metric_fn=metric_fn,
        memory_gb=memory_gb,
        of="nodes",
    )
    scores = empty_scores(model, contrasts)

    def score(batch: Batch) -> None:
        for kind in DIMS:
            scores[kind].values[batch.rows] = np.nan  # of an attempt that memory was too small for
        if method == "attention_corrected":
            check_readers(model, batch.base)
            corrected_nodes(plan, batch, scores=scores)
            return
        for part, share, gradients in _node_gradients(plan, batch):
            value = (batch.other.values[part.hook] - batch.base.values[part.hook]).float()
            products = torch.stack([part.split(value * g[part.hook], model.n_heads).sum(-1) for g in gradients])
            node = plan.sign * share * plan.combined(products, part.layer if part.kind in ("heads", "mlp") else None)
            add_scores(scores, part, batch=batch, score=node.transpose(1, 2) if part.kind == "heads" else node)

    plan.each_batch(score)
    return plan.with_metrics(scores)


def attribute_edges(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    method: Method = "gradient",
    direction: Direction = "noising",
    graddrop: bool = False,
    steps: int | None = None,
    metric_fn: MetricFn = metric,
    memory_gb: float | None = None,
) -> xr.Dataset:
    """Estimate what every edge carries: the effect of one reader alone seeing one writer's other value at one position.

    Args:
        model: the model.
        contrasts: one clean and corrupt prompt for each fact, of any lengths.
        method: see the module.
        direction: see the module.
        graddrop: see `attribute_nodes`; the block of the reader is never the one that is blocked.
        steps: see `attribute_nodes`.
        metric_fn: see `attribute_nodes`.
        memory_gb: as in `attribute_nodes`, besides the result.

    Returns:
        a dataset in logits with the variable ``score`` (fact, writer, reader, position), NaN where a reader does not
        see a writer and before a prompt's first token, and ``metric_clean`` and ``metric_corrupt`` (fact). Labels are
        those of `mnemo.graph.empty_edges`. With ``attention_corrected`` also ``reach``: the root mean square of the
        score over the runs, that is how large the effect may be, by which `mnemo.verify` proposes candidates.

    Raises:
        MnemoError: as `attribute_nodes`, and for an architecture whose readers cannot be told apart.
    """
    plan = plan_attribution(
        model,
        contrasts,
        method=method,
        direction=direction,
        graddrop=graddrop,
        steps=steps,
        metric_fn=metric_fn,
        memory_gb=memory_gb,
        of="edges",
    )
    corrected = method == "attention_corrected"
    scores = empty_edges(model, contrasts, variables=["score", "reach"] if corrected else ["score"])

    def score(batch: Batch) -> None:
        check_readers(model, batch.base)
        if corrected:
            corrected_edges(plan, batch, scores=scores)
        else:
            found = _linear_edges(plan, batch)
            scores["score"].values[batch.rows, :, :, -batch.length :] = found.cpu().numpy()

    plan.each_batch(score)
    return plan.with_metrics(scores)


def _midpoints(steps: int) -> list[float]:
    return [(step + 0.5) / steps for step in range(steps)]


# ---- nodes


def _node_gradients(plan: AttributionPlan, batch: Batch) -> Iterator[tuple[Component, float, list[dict[str, Tensor]]]]:
    """Yield gradients of each node, a part of the score each time, with the weight of that part."""
    parts = components(plan.model)
    if plan.method == "gradient":
        for part in parts:
            yield part, 1.0, batch.gradients
    elif plan.method == "integrated_inputs":
        for point in _midpoints(plan.steps):
            run = plan.moved(batch, stream_hook(plan.model, 0), share=point)
            for part in parts:
                yield part, 1 / plan.steps, [run.gradients]
    else:
        for part in parts:
            for point in _midpoints(plan.steps):
                yield part, 1 / plan.steps, [plan.moved(batch, part.hook, share=point, gradients=[part.hook]).gradients]


# ---- edges by gradients


def _linear_edges(plan: AttributionPlan, batch: Batch) -> Float[Tensor, "fact writer reader position"]:
    """Score all edges of a batch by gradients; NaN where a reader does not see a writer."""
    shape = (len(batch.rows), len(writers(plan.model)), len(readers(plan.model)), batch.length)
    total = torch.full(shape, torch.nan, device=batch.base.tokens.device)
    for runs, some in _gradient_runs(plan, batch):
        _weigh(plan, batch, runs, total, some)
    return total


def _gradient_runs(plan: AttributionPlan, batch: Batch) -> Iterator[tuple[list[Recording], slice]]:
    """Yield runs whose gradients are to be combined, and the writers (see `writers`) that they are for."""
    model, everything = plan.model, slice(0, seen_by(plan.model, "logits"))
    if plan.method == "gradient":
        yield [replace(batch.base, gradients=gradients) for gradients in batch.gradients], everything
        return
    groups = {stream_hook(model, 0): everything}
    if plan.method == "integrated_activations":
        parts = [part for part in components(model) if part.kind != "residual"]
        groups = {written_at(part): part.written_by(model.n_heads) for part in parts}
    for hook, some in groups.items():
        yield [plan.moved(batch, hook, share=point, keep=input_hooks(model)) for point in _midpoints(plan.steps)], some


def _weigh(plan: AttributionPlan, batch: Batch, runs: list[Recording], total: Tensor, some: slice) -> None:
    """Put (what some writers differ by) . (each reader's gradient) into `total`, a few positions at a time."""
    model = plan.model
    widest = (some.stop - some.start) + 4 * (3 * model.n_heads + 1)
    per_position = 4 * len(batch.rows) * model.d_model * widest
    at_once = fit(per_position, memory_gb=plan.memory_gb)
    for start in range(0, batch.length, at_once):
        positions = slice(start, min(start + at_once, batch.length))
        change = differences(model, batch.base, other=batch.other, some=some, positions=positions).flatten(0, 1)
        for kind, layer, columns, until in _readings(model):
            if until <= some.start:
                continue
            gradients = [reader_gradients(model, run, kind=kind, layer=layer, positions=positions) for run in runs]
            if not plan.graddrop:  # the product is linear: once for all runs
                gradients = [sum(gradients[1:], gradients[0]) / len(gradients)]
            products = []
            for gradient in gradients:
                gradient = gradient.flatten(0, 1).to(change).transpose(1, 2)
                product = torch.bmm(change[:, : until - some.start], gradient)
                products.append(product.unflatten(0, (len(batch.rows), -1)).permute(0, 2, 3, 1))
            score = plan.sign * plan.combined(torch.stack(products), None if kind == "logits" else layer)
            total[:, some.start : min(until, some.stop), columns, positions] = score.float()


def _readings(model: Model) -> Iterator[tuple[str, int, slice, int]]:
    """Yield the readers as `reader_gradients` gives them: kind, layer, where they stand, how many writers they see."""
    for layer in range(model.n_layers):
        attention = slice(readers_at(model, layer, kind="q").start, readers_at(model, layer, kind="v").stop)
        yield "attention", layer, attention, seen_by(model, "q", layer=layer)
        yield "mlp", layer, readers_at(model, layer, kind="mlp"), seen_by(model, "mlp", layer=layer)
    last = len(readers(model)) - 1
    yield "logits", -1, slice(last, last + 1), seen_by(model, "logits")
