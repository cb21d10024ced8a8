"""What all methods of attribution share: options that were checked, facts in batches, both of their runs, gradients.

See `mnemo.attribution` for the methods and the sign convention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.activations import Change, MetricFn, Recording, facts_per_batch, record, writer_hooks
from mnemo.errors import MnemoError
from mnemo.graph import Component, components
from mnemo.memory import checked_budget, in_pieces
from mnemo.patching import by_length, require_contrasts
from mnemo.readers import attention_hooks, input_hooks, output_hooks, reader_hooks

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

Method = Literal["gradient", "integrated_inputs", "integrated_activations", "attention_corrected"]
Direction = Literal["noising", "denoising"]

STEPS: dict[Method, int] = {
    "gradient": 1, "integrated_inputs": 5, "integrated_activations": 5, "attention_corrected": 32
}  # fmt: skip


def checked_direction(direction: str) -> Direction:
    """Return the direction, which may have been mistyped.

    Raises:
        MnemoError: it is neither.
    """
    if direction not in get_args(Direction):
        raise MnemoError(f"direction {direction!r} is unknown: use one of {', '.join(get_args(Direction))}")
    return direction  # pyright: ignore[reportReturnType]


@dataclass
class Batch:
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
class AttributionPlan:
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

    def each_batch(self, score: Callable[[Batch], None]) -> None:
        """Hand on facts in batches of one length that fit into the budget, with both of their runs.

        Where memory runs out, `score` is begun again with half of the batch.
        """
        copies = 1 if self.method == "gradient" else 1 + self.steps
        with tqdm(total=len(self.contrasts), desc="attribution", unit="fact", leave=False, disable=None) as bar:
            for length, rows in by_length([c.clean for c in self.contrasts]).items():
                at_once = facts_per_batch(self.model, length, memory_gb=self.memory_gb, copies=copies)

                def run(piece: slice, rows: list[int] = rows) -> None:
                    score(self.batch(rows[piece]))

                for piece, _ in in_pieces(len(rows), at_once, run=run):
                    bar.update(piece.stop - piece.start)

    def batch(self, rows: list[int]) -> Batch:
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
        return Batch(np.array(rows), chosen, here[0], there, [run.gradients for run in here])

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
            names=self.kept if keep is None else keep,
            contrasts=contrasts,
            metric_fn=self.metric_fn,
            gradients=wanted,
            changes=changes,
            backward=dropper.backward if dropper else None,
            watch=dropper.watch() if dropper else None,
        )

    def moved(
        self,
        batch: Batch,
        hook: str,
        *,
        share: float,
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


def plan_attribution(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    method: str,
    direction: str,
    graddrop: bool,
    steps: int | None,
    metric_fn: MetricFn,
    memory_gb: float | None,
    of: Literal["nodes", "edges"],
) -> AttributionPlan:
    """Check the options of a call and say which hooks it needs."""
    if method not in get_args(Method):
        raise MnemoError(f"method {method!r} is unknown: use one of {', '.join(get_args(Method))}")
    noising = checked_direction(direction) == "noising"
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
        kept += [written_at(part) for part in components(model)]
    return AttributionPlan(
        model=model,
        contrasts=contrasts,
        method=chosen,
        noising=noising,
        graddrop=graddrop,
        steps=steps,
        metric_fn=metric_fn,
        memory_gb=checked_budget(memory_gb),
        kept=[*dict.fromkeys(kept)],
        gradients=[*dict.fromkeys(gradients)],
        metrics=torch.empty(2, len(contrasts)),
    )


def written_at(part: Component) -> str:
    """Return the hook of all that a component writes; heads of a layer write together."""
    return f"blocks.{part.layer}.hook_attn_out" if part.kind == "heads" else part.hook


def add_scores(scores: xr.Dataset, part: Component, *, batch: Batch, score: Tensor) -> None:
    """Add to the scores of one component, which are NaN so far where nothing was added."""
    values = scores[part.kind].values
    where = (batch.rows,) if part.kind == "embed" else (batch.rows, part.layer)
    where = (*where, ..., slice(-batch.length, None))
    values[where] = np.nan_to_num(values[where]) + score.cpu().numpy()


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
