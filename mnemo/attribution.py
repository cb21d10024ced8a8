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
  in which it was not weigh `UNMOVED`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.activations import (
    Change,
    MetricFn,
    Recording,
    checked_metric,
    differences,
    facts_per_batch,
    record,
    run_from,
    writer_hooks,
)
from mnemo.errors import MnemoError
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
from mnemo.memory import checked_budget, fit, in_pieces
from mnemo.patching import by_length, metric, require_contrasts
from mnemo.readers import (
    attention_hooks,
    check_readers,
    input_hooks,
    output_hooks,
    reader_gradients,
    reader_hooks,
    responses,
)

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

Method = Literal["gradient", "integrated_inputs", "integrated_activations", "attention_corrected"]
Direction = Literal["noising", "denoising"]

STEPS: dict[Method, int] = {
    "gradient": 1, "integrated_inputs": 5, "integrated_activations": 5, "attention_corrected": 32
}  # fmt: skip
MOVED = 0.1  # probability that a writer is moved in the disturbed runs of `attention_corrected`
UNMOVED = 0.2  # weight of such a run for the gradient at a head or MLP that was not moved in it


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
        steps: points of integration, or runs of ``attention_corrected``; None for what `STEPS` says.
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
    plan = _plan(model, contrasts, method, direction, graddrop, steps, metric_fn, memory_gb, of="nodes")
    scores = empty_scores(model, contrasts)

    def score(batch: _Batch) -> None:
        for kind in DIMS:
            scores[kind].values[batch.rows] = np.nan  # of an attempt that memory was too small for
        if method == "attention_corrected":
            check_readers(model, batch.base)
            _corrected_nodes(plan, batch, scores)
            return
        for part, share, gradients in _node_gradients(plan, batch):
            value = (batch.other.values[part.hook] - batch.base.values[part.hook]).float()
            products = torch.stack([part.split(value * g[part.hook], model.n_heads).sum(-1) for g in gradients])
            node = plan.sign * share * plan.combined(products, part.layer if part.kind in ("heads", "mlp") else None)
            _add(scores, part, batch, node.transpose(1, 2) if part.kind == "heads" else node)

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
    plan = _plan(model, contrasts, method, direction, graddrop, steps, metric_fn, memory_gb, of="edges")
    corrected = method == "attention_corrected"
    scores = empty_edges(model, contrasts, ["score", "reach"] if corrected else ["score"])

    def score(batch: _Batch) -> None:
        check_readers(model, batch.base)
        if corrected:
            _corrected_edges(plan, batch, scores)
        else:
            found = _linear_edges(plan, batch)
            scores["score"].values[batch.rows, :, :, -batch.length :] = found.cpu().numpy()

    plan.each_batch(score)
    return plan.with_metrics(scores)


# ---- what all methods share


@dataclass
class _Batch:
    """Facts of one length, and their two runs: the one that is changed and the one that values come from."""

    rows: np.ndarray
    contrasts: list[Contrast]
    base: Recording
    other: Recording
    gradients: list[dict[str, Tensor]]  # at the base run; several with GradDrop

    @property
    def length(self) -> int:
        return self.base.tokens.shape[1]


@dataclass
class _Plan:
    """One call: its options, checked, and the metrics met so far."""

    model: Model
    contrasts: Sequence[Contrast]
    method: Method
    noising: bool
    graddrop: bool
    steps: int
    metric_fn: MetricFn
    memory_gb: float
    kept: list[str]
    gradients: list[str]
    metrics: Tensor

    @property
    def sign(self) -> float:
        """What turns metric(changed run) - metric(run) into a score."""
        return -1.0 if self.noising else 1.0

    def each_batch(self, score: Callable[[_Batch], None]) -> None:
        """Hand on facts in batches of one length that fit into the budget, with both of their runs.

        Where memory runs out, `score` is begun again with half of the batch.
        """
        copies = 1 if self.method == "gradient" else 1 + self.steps
        with tqdm(total=len(self.contrasts), desc="attribution", unit="fact", leave=False, disable=None) as bar:
            for length, rows in by_length([c.clean for c in self.contrasts]).items():
                at_once = facts_per_batch(self.model, length, memory_gb=self.memory_gb, copies=copies)

                def run(piece: slice, rows: list[int] = rows) -> None:
                    score(self.batch(rows[piece]))

                for piece, _ in in_pieces(len(rows), at_once, run):
                    bar.update(piece.stop - piece.start)

    def batch(self, rows: list[int]) -> _Batch:
        """Run facts of one length both ways and keep their metrics."""
        chosen = [self.contrasts[i] for i in rows]
        clean, corrupt = (
            torch.tensor([prompt.tokens for prompt in prompts], device=self.model.device)
            for prompts in ([c.clean for c in chosen], [c.corrupt for c in chosen])
        )
        base, other = (clean, corrupt) if self.noising else (corrupt, clean)
        there = self.run(other, chosen, gradients=())[0]
        integrated = self.method.startswith("integrated")  # gradients elsewhere than at the base run
        here = self.run(base, chosen, gradients=() if integrated else None)
        metrics = torch.stack([here[0].metric, there.metric]).to(self.metrics)
        self.metrics[:, rows] = metrics if self.noising else metrics.flip(0)
        return _Batch(np.array(rows), chosen, here[0], there, [run.gradients for run in here])

    def run(
        self,
        tokens: Int[Tensor, "fact position"],
        contrasts: Sequence[Contrast],
        *,
        gradients: Sequence[str] | None = None,
        changes: dict[str, Change] | None = None,
        keep: Sequence[str] | None = None,
    ) -> list[Recording]:
        """Record a run; with GradDrop and gradients, once for each block through which none may go."""
        wanted = self.gradients if gradients is None else gradients
        dropper = _Dropper(self.model.n_layers) if self.graddrop and wanted else None
        return record(
            self.model,
            tokens,
            self.kept if keep is None else keep,
            contrasts=contrasts,
            metric_fn=self.metric_fn,
            gradients=wanted,
            changes=changes,
            backward=dropper.backward if dropper else None,
            watch=dropper.watch() if dropper else None,
        )

    def moved(
        self,
        batch: _Batch,
        hook: str,
        share: float,
        *,
        keep: Sequence[str] = (),
        gradients: Sequence[str] | None = None,
    ) -> Recording:
        """Record the base run with one hook's value moved by a share of the way to that in the other run."""
        goal = torch.lerp(batch.base.values[hook], batch.other.values[hook], share)

        def move(value: Tensor) -> Tensor:
            return value + (goal - value.detach())  # still part of the graph

        return self.run(batch.base.tokens, batch.contrasts, changes={hook: move}, keep=keep, gradients=gradients)[0]

    def combined(self, products: Float[Tensor, "run ..."], layer: int | None) -> Tensor:
        """Combine scores from several backward runs: their mean, with GradDrop that of their sizes.

        Args:
            products: scores, with GradDrop one for each block that was blocked.
            layer: the block that they belong to, which is left out; None for none.
        """
        if not self.graddrop:
            return products.mean(0)
        others = [drop for drop in range(len(products)) if drop != layer]
        return products[others].abs().mean(0) * products[others].sum(0).sign()

    def corrected(self, products: Float[Tensor, "run ..."], layer: int | None) -> Tensor:
        """Return the score from products with the gradients of `_surroundings`."""
        return self.sign * (self.combined(products[1:], layer) if self.graddrop else products[0])

    def with_metrics(self, scores: xr.Dataset) -> xr.Dataset:
        """Add the metric of both runs and say how the scores were made."""
        scores["metric_clean"] = ("fact", self.metrics[0].numpy())
        scores["metric_corrupt"] = ("fact", self.metrics[1].numpy())
        direction = "noising" if self.noising else "denoising"
        return scores.assign_attrs(
            method=self.method, direction=direction, steps=self.steps, graddrop=int(self.graddrop)
        )


def _plan(
    model: Model,
    contrasts: Sequence[Contrast],
    method: str,
    direction: str,
    graddrop: bool,
    steps: int | None,
    metric_fn: MetricFn,
    memory_gb: float | None,
    *,
    of: Literal["nodes", "edges"],
) -> _Plan:
    """Check the options of a call and say which hooks it needs."""
    for name, value, known in (("method", method, get_args(Method)), ("direction", direction, get_args(Direction))):
        if value not in known:
            raise MnemoError(f"{name} {value!r} is unknown: use one of {', '.join(known)}")
    require_contrasts(model, contrasts)
    chosen: Method = method  # pyright: ignore[reportAssignmentType]
    steps = STEPS[chosen] if steps is None else steps
    if steps < 1:
        raise MnemoError(f"steps={steps}: give at least 1")
    if graddrop and chosen not in ("gradient", "attention_corrected"):
        raise MnemoError(f"graddrop has no meaning with method={method!r}: use gradient or attention_corrected")
    if graddrop and model.n_layers < 2:
        raise MnemoError("graddrop blocks one layer at a time, and this model has one: leave it out")
    nodes = [part.hook for part in components(model)]
    kept, gradients = [*writer_hooks(model), *input_hooks(model)], reader_hooks(model)
    if chosen == "attention_corrected":
        kept, gradients = kept + attention_hooks(model), output_hooks(model)
    elif of == "nodes":
        kept, gradients = nodes, nodes
    elif chosen == "integrated_activations":
        kept += [_written_at(part) for part in components(model)]
    return _Plan(
        model=model,
        contrasts=contrasts,
        method=chosen,
        noising=direction == "noising",
        graddrop=graddrop,
        steps=steps,
        metric_fn=metric_fn,
        memory_gb=checked_budget(memory_gb),
        kept=[*dict.fromkeys(kept)],
        gradients=[*dict.fromkeys(gradients)],
        metrics=torch.empty(2, len(contrasts)),
    )


class _Dropper:
    """Runs backward once for each block, letting no gradient through what that block writes."""

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self.blocked = -1

    def watch(self) -> dict[str, Change]:
        return {
            f"blocks.{layer}.{name}": self._gate(layer)
            for layer in range(self.n_layers)
            for name in ("hook_attn_out", "hook_mlp_out")
        }

    def _gate(self, layer: int) -> Change:
        def gate(value: Tensor) -> Tensor:
            value = value.view_as(value)  # a tensor of its own, behind which this gate alone stands
            if value.requires_grad:
                value.register_hook(lambda gradient: gradient * 0 if self.blocked == layer else None)
            return value

        return gate

    def backward(self, metric: Tensor, tensors: list[Tensor]) -> list[tuple[Tensor, ...]]:
        found = []
        for layer in range(self.n_layers):
            self.blocked, again = layer, layer < self.n_layers - 1
            found.append(torch.autograd.grad(metric, tensors, retain_graph=again))
        return found


def _midpoints(steps: int) -> list[float]:
    return [(step + 0.5) / steps for step in range(steps)]


# ---- nodes


def _node_gradients(plan: _Plan, batch: _Batch) -> Iterator[tuple[Component, float, list[dict[str, Tensor]]]]:
    """Yield gradients of each node, a part of the score each time, with the weight of that part."""
    parts = components(plan.model)
    if plan.method == "gradient":
        for part in parts:
            yield part, 1.0, batch.gradients
    elif plan.method == "integrated_inputs":
        for point in _midpoints(plan.steps):
            run = plan.moved(batch, stream_hook(plan.model, 0), point)
            for part in parts:
                yield part, 1 / plan.steps, [run.gradients]
    else:
        for part in parts:
            for point in _midpoints(plan.steps):
                yield part, 1 / plan.steps, [plan.moved(batch, part.hook, point, gradients=[part.hook]).gradients]


def _add(scores: xr.Dataset, part: Component, batch: _Batch, score: Tensor) -> None:
    """Add to the scores of one component, which are NaN so far where nothing was added."""
    values = scores[part.kind].values
    where = (batch.rows,) if part.kind == "embed" else (batch.rows, part.layer)
    where = (*where, ..., slice(-batch.length, None))
    values[where] = np.nan_to_num(values[where]) + score.cpu().numpy()


# ---- edges by gradients


def _linear_edges(plan: _Plan, batch: _Batch) -> Float[Tensor, "fact writer reader position"]:
    """Score all edges of a batch by gradients; NaN where a reader does not see a writer."""
    shape = (len(batch.rows), len(writers(plan.model)), len(readers(plan.model)), batch.length)
    total = torch.full(shape, torch.nan, device=batch.base.tokens.device)
    for runs, some in _gradient_runs(plan, batch):
        _weigh(plan, batch, runs, total, some)
    return total


def _gradient_runs(plan: _Plan, batch: _Batch) -> Iterator[tuple[list[Recording], slice]]:
    """Yield runs whose gradients are to be combined, and the writers (see `writers`) that they are for."""
    model, everything = plan.model, slice(0, seen_by(plan.model, "logits"))
    if plan.method == "gradient":
        yield [replace(batch.base, gradients=gradients) for gradients in batch.gradients], everything
        return
    groups = {stream_hook(model, 0): everything}
    if plan.method == "integrated_activations":
        parts = [part for part in components(model) if part.kind != "residual"]
        groups = {_written_at(part): part.written_by(model.n_heads) for part in parts}
    for hook, some in groups.items():
        yield [plan.moved(batch, hook, point, keep=input_hooks(model)) for point in _midpoints(plan.steps)], some


def _written_at(part: Component) -> str:
    """Return the hook of all that a component writes; heads of a layer write together."""
    return f"blocks.{part.layer}.hook_attn_out" if part.kind == "heads" else part.hook


def _weigh(plan: _Plan, batch: _Batch, runs: list[Recording], total: Tensor, some: slice) -> None:
    """Put (what some writers differ by) . (each reader's gradient) into `total`, a few positions at a time."""
    model = plan.model
    widest = (some.stop - some.start) + 4 * (3 * model.n_heads + 1)
    per_position = 4 * len(batch.rows) * model.d_model * widest
    at_once = fit(per_position, memory_gb=plan.memory_gb)
    for start in range(0, batch.length, at_once):
        positions = slice(start, min(start + at_once, batch.length))
        change = differences(model, batch.base, batch.other, some=some, positions=positions).flatten(0, 1)
        for kind, layer, columns, until in _readings(model):
            if until <= some.start:
                continue
            gradients = [reader_gradients(model, run, kind, layer, positions=positions) for run in runs]
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
        attention = slice(readers_at(model, layer, "q").start, readers_at(model, layer, "v").stop)
        yield "attention", layer, attention, seen_by(model, "q", layer)
        yield "mlp", layer, readers_at(model, layer, "mlp"), seen_by(model, "mlp", layer)
    last = len(readers(model)) - 1
    yield "logits", -1, slice(last, last + 1), seen_by(model, "logits")


# ---- edges with exact responses of their readers


def _corrected_edges(plan: _Plan, batch: _Batch, scores: xr.Dataset) -> None:
    model = plan.model
    shape = (len(batch.rows), len(writers(model)), len(readers(model)), batch.length)
    score, reach = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    for kind, layer, some, products in _responses(plan, batch, []):
        columns = readers_at(model, layer, kind) if kind != "logits" else slice(shape[2] - 1, shape[2])
        score[:, some, columns] = plan.corrected(products, None if kind == "logits" else layer).cpu()
        reach[:, some, columns] = products[1:].square().mean(0).sqrt().cpu()
    scores["score"].values[batch.rows, :, :, -batch.length :] = score.numpy()
    scores["reach"].values[batch.rows, :, :, -batch.length :] = reach.numpy()


def _corrected_nodes(plan: _Plan, batch: _Batch, scores: xr.Dataset) -> None:
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
        _add(scores, part, batch, node)


def _responses(
    plan: _Plan, batch: _Batch, streams: Sequence[str]
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
            return differences(model, batch.base, batch.other, some=some)
        names = streams[some.start - n_writers : some.stop - n_writers]
        return torch.stack([batch.other.values[n] - batch.base.values[n] for n in names], 2)

    def in_chunks(
        seen_writers: int, seen_streams: int, respond: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[slice, Tensor]]:
        for start, stop in ((0, seen_writers), (n_writers, n_writers + min(seen_streams, len(streams)))):

            def run(piece: slice, start: int = start) -> tuple[slice, Tensor]:
                some = slice(start + piece.start, start + piece.stop)
                return some, respond(change_of(some))

            for _, found in in_pieces(stop - start, at_once, run):
                yield found

    for layer in range(model.n_layers):
        for kind in ("q", "k", "v", "mlp"):

            def respond(change: Tensor, kind: str = kind, layer: int = layer) -> Tensor:
                return responses(model, batch.base, kind, layer, change, gradients)

            for some, found in in_chunks(seen_by(model, kind, layer), layer + 1, respond):
                yield kind, layer, some, found

    def read_out(change: Tensor) -> Tensor:
        return _read_out(plan, batch, change)[None].expand(runs, -1, -1, -1, -1)

    for some, found in in_chunks(seen_by(model, "logits"), model.n_layers + 1, read_out):
        yield "logits", -1, some, found


def _surroundings(plan: _Plan, batch: _Batch) -> dict[str, Float[Tensor, "run fact position ..."]]:
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


def _writers_at_once(plan: _Plan, batch: _Batch) -> int:
    model, length = plan.model, batch.length
    width = 16 * model.d_model + 6 * model.n_heads * length
    return fit(4 * len(batch.rows) * length * width, memory_gb=plan.memory_gb)


def _read_out(plan: _Plan, batch: _Batch, change: Tensor) -> Float[Tensor, "fact writer 1 position"]:
    """Return what a change of the last stream does to the metric, through the final norm itself."""
    model, n = plan.model, change.shape[2]
    stream = batch.base.values[stream_hook(model, model.n_layers)][:, -1, None] + change[:, -1]
    rows = stream.flatten(0, 1)[:, None]
    tokens = batch.base.tokens[:, -1:].repeat_interleave(n, 0)
    _, logits = run_from(model, model.n_layers, rows, tokens)
    contrasts = [c for c in batch.contrasts for _ in range(n)]
    assert logits is not None  # nothing was kept, so it ran to the end
    after = checked_metric(plan.metric_fn, logits, contrasts).view(-1, n)
    found = torch.zeros(*after.shape, 1, batch.length, device=after.device)
    found[..., 0, -1] = after - batch.base.metric[:, None]
    return found
