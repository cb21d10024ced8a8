"""What every part of a model computed in one run, and what each of them wrote to the residual stream.

A `Recording` holds the values of a run by hook, and their gradients where they were asked for. `contributions` takes
the residual stream apart: embedding, heads, MLPs and biases add up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.blocks import norm_behind, norm_behind_hooks
from mnemo.errors import MnemoError
from mnemo.graph import stream_hook, writers
from mnemo.memory import fit
from mnemo.partial_runs import LAST_ALONE, Change, Hook
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

MetricFn = Callable[[Float[Tensor, "fact position vocabulary"], "Sequence[Contrast]"], Float[Tensor, " fact"]]

# How far a value recomputed from weights may lie from the model's own, as a share of its largest entry.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass
class Recording:
    """One run of a batch of prompts of one length.

    Attributes:
        tokens: the prompts.
        values: by hook name, detached.
        logits: of the last position alone.
        metric: of each prompt, in logits.
        gradients: of the metric, by hook name.
    """

    tokens: Int[Tensor, "fact position"]
    values: dict[str, Tensor]
    logits: Float[Tensor, "fact 1 vocabulary"]
    metric: Float[Tensor, " fact"]
    gradients: dict[str, Tensor] = field(default_factory=dict)


def writer_hooks(model: Model) -> list[str]:
    """Return the hooks from which the values of all writers follow."""
    names = [stream_hook(model, 0)]
    for layer in range(model.n_layers):
        names += [*head_hooks(model, layer), f"blocks.{layer}.hook_mlp_out"]
    return names


def head_hooks(model: Model, layer: int) -> list[str]:
    """Return the hooks from which follows what the heads of a layer write."""
    behind = norm_behind_hooks(model, layer)
    more = [] if behind is None else [behind[0], f"blocks.{layer}.hook_attn_out"]
    return [f"blocks.{layer}.attn.hook_z", *more]


def values_at(
    model: Model, tokens: Int[Tensor, "prompt position"], *, names: Iterable[str]
) -> tuple[dict[str, Tensor], Float[Tensor, "prompt 1 vocabulary"]]:
    """Run the model once, without gradients: its values by hook name, and the logits of the last position.

    Raises:
        MnemoError: transformer-lens shows no such hook for this model.
    """
    values: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, *, name: str) -> None:
        values[name] = value

    names = dict.fromkeys(names)
    _require_hooks(model, names)
    hooks: list[Hook] = [(name, partial(keep, name=name)) for name in names]
    with torch.no_grad():
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=[*hooks, LAST_ALONE])
    return values, logits


def record(
    model: Model,
    tokens: Int[Tensor, "fact position"],
    *,
    names: Collection[str],
    contrasts: Sequence[Contrast],
    metric_fn: MetricFn,
    gradients: Collection[str] = (),
    changes: Mapping[str, Change] | None = None,
    backward: Callable[[Tensor, list[Tensor]], list[tuple[Tensor, ...]]] | None = None,
    watch: Mapping[str, Change] | None = None,
) -> list[Recording]:
    """Run the model once and keep values and gradients.

    Args:
        model: the model.
        tokens: prompts of one length.
        names: hooks whose values to keep.
        contrasts: what the metric is taken of, one for each prompt.
        metric_fn: see `checked_metric`.
        gradients: hooks whose gradients to keep.
        changes: by hook name, what to put in place of the value there.
        backward: given the metric's sum and the tensors, returns their gradients, several times over if it likes;
            None to differentiate once.
        watch: by hook name, what to do with the live tensor there (to register a hook on its gradient).

    Returns:
        One recording for each time that `backward` differentiated; they share their values.
    """
    changes, watch = changes or {}, watch or {}
    values: dict[str, Tensor] = {}
    live: dict[str, Tensor] = {}
    root = stream_hook(model, 0)  # weights are frozen: gradients must begin at the embedding
    wanted = dict.fromkeys([root, *names, *gradients, *changes, *watch])
    _require_hooks(model, wanted)

    def keep(value: Tensor, hook: Any, *, name: str) -> Tensor:
        if name in changes:
            value = changes[name](value)
        if name == root and gradients:
            value = value.detach().requires_grad_(True)
        if name in watch:
            value = watch[name](value)
        if name in gradients:
            # A tensor of its own: without a norm in between (OLMo 2), or with one for both (Phi), what the MLP reads is
            # the same tensor that others read, and its gradient would be theirs as well.
            value = live[name] = value.view_as(value)
        if name in names:
            values[name] = value.detach()
        return value

    with torch.set_grad_enabled(bool(gradients)):
        hooks: list[Hook] = [(name, partial(keep, name=name)) for name in wanted]
        hooks.append(LAST_ALONE)
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        metric = checked_metric(metric_fn, logits, contrasts=contrasts)
        done: list[tuple[Tensor, ...]] = [()]
        if gradients:
            missing = sorted(set(gradients) - set(live))
            if missing:
                raise MnemoError(f"{model.name} never ran {missing[0]}: this architecture lacks it")
            differentiate = backward or _once
            done = differentiate(metric.sum(), [live[name] for name in gradients])
    logits, metric = logits.detach(), metric.detach()
    return [
        Recording(tokens, values, logits, metric, dict(zip(gradients, found, strict=True)) if gradients else {})
        for found in done
    ]


def _once(metric: Tensor, tensors: list[Tensor]) -> list[tuple[Tensor, ...]]:
    return [torch.autograd.grad(metric, tensors)]


def checked_metric(
    metric_fn: MetricFn, logits: Float[Tensor, "fact position vocabulary"], *, contrasts: Sequence[Contrast]
) -> Float[Tensor, " fact"]:
    """Return the metric of each prompt.

    Raises:
        MnemoError: it is not one finite number for each fact.
    """
    found = metric_fn(logits, contrasts)
    if (got := _shape_or_kind(found)) != (len(contrasts),):
        raise MnemoError(
            f"the metric gave {got} for {len(contrasts)} facts: return one number per fact, do not average"
        )
    if not torch.isfinite(found).all():
        bad = [contrasts[i].fact.fact_id for i in (~torch.isfinite(found)).nonzero()[:3, 0].tolist()]
        raise MnemoError(f"the metric of {', '.join(bad)} is not finite: check the model's weights and dtype")
    return found


def _shape_or_kind(found: object) -> tuple[int, ...] | str:
    """The shape of a tensor; of anything else that a metric may give, what it is."""
    return tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__


def _require_hooks(model: Model, names: Collection[str]) -> None:
    absent = next((name for name in names if model.bridge.get_hook_point(name) is None), None)
    if absent is not None:
        raise MnemoError(
            f"transformer-lens shows no {absent} for {model.bridge.cfg.architecture}: attribution needs it, "
            "use a model of another architecture (GPT-2, Llama, Qwen2 ... style)"
        )


# ---- what writers write


def contributions(
    model: Model,
    values: Mapping[str, Tensor],
    *,
    some: slice = slice(None),
    positions: slice = slice(None),
) -> Float[Tensor, "fact position writer d"]:
    """Return what each writer added to the residual stream in a run, without biases.

    Args:
        model: the model.
        values: of the run, at `writer_hooks`.
        some: which writers, as they stand in `mnemo.graph.writers`.
        positions: which positions.
    """
    chosen = range(*some.indices(len(writers(model))))
    parts, embed = [], values[stream_hook(model, 0)][:, positions]
    if 0 in chosen:
        parts.append(embed[None])
    for layer in range(model.n_layers):
        first = 1 + layer * (model.n_heads + 1)
        heads = slice(max(chosen.start - first, 0), min(chosen.stop - first, model.n_heads))
        if heads.start < heads.stop:
            parts.append(_head_writes(model, values, layer, heads, positions))
        if first + model.n_heads in chosen:
            parts.append(values[f"blocks.{layer}.hook_mlp_out"][None, :, positions])
    found = torch.cat(parts) if parts else embed[None][:0]  # writers outermost, as products of heads lie in memory
    return found.movedim(0, 2)


def _head_writes(
    model: Model, values: Mapping[str, Tensor], layer: int, heads: slice, positions: slice
) -> Float[Tensor, "head fact position d"]:
    """What heads write: their values times the output projection, and what a norm on the block's output makes of it.

    In a given run such a norm (Gemma 2) multiplies each channel by a number, so what the heads write still adds up.
    """
    z = values[f"blocks.{layer}.attn.hook_z"][:, positions]
    z = z.unflatten(-1, (model.n_heads, -1)) if z.dim() == 3 else z
    results = torch.einsum("bphe,hed->hbpd", z[:, :, heads], model.bridge.blocks[layer].attn.W_O[heads].to(z))
    gain = _post_norm_gain(model, values, layer, positions)
    return results if gain is None else results * gain


def _post_norm_gain(
    model: Model, values: Mapping[str, Tensor], layer: int, positions: slice
) -> Float[Tensor, "fact position d"] | None:
    behind, norm = norm_behind_hooks(model, layer), norm_behind(model, "attention", layer=layer)
    if behind is None:
        return None
    before = values[behind[0]][:, positions].float()
    after = values[f"blocks.{layer}.hook_attn_out"][:, positions].float()
    # The norm of a constant is its weights, up to a factor that the projection takes up again.
    weight = norm(torch.ones_like(before[:1, :1]).to(model.dtype)).float()
    shape = before * weight
    size = shape.square().sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # 0 where nothing is written
    return (weight * (after * shape).sum(-1, keepdim=True) / size).to(model.dtype)


def constants(model: Model, run: Recording) -> Float[Tensor, "fact position d"]:
    """Return what the biases of all attention outputs added to the residual stream in a run.

    Biases of MLPs are counted with their MLP.
    """
    total = torch.zeros_like(run.values[stream_hook(model, 0)])
    for layer, block in enumerate(model.bridge.blocks):
        bias = getattr(block.attn, "b_O", None)
        if bias is not None:
            gain = _post_norm_gain(model, run.values, layer, slice(None))
            total = total + (bias.to(total) if gain is None else bias.to(total) * gain)
    return total


def differences(
    model: Model, base: Recording, *, other: Recording, some: slice = slice(None), positions: slice = slice(None)
) -> Float[Tensor, "fact position writer d"]:
    """Return by how much what each writer writes differs: other run minus base run."""
    if any(norm_behind_hooks(model, layer) for layer in range(model.n_layers)):  # such norms differ between the runs
        there, here = (contributions(model, run.values, some=some, positions=positions) for run in (other, base))
        return there - here
    change = {name: other.values[name] - base.values[name] for name in writer_hooks(model)}
    return contributions(model, change, some=some, positions=positions)


# ---- what a batch may hold


def facts_per_batch(model: Model, length: int, *, memory_gb: float | None = None, copies: int = 1) -> int:
    """Return how many facts of `length` tokens fit into a budget, at least one.

    Counted are a run with gradients, `copies` times, and what writers write to one position.
    """
    shape = Shape.of(model)
    written = 4 * shape.writers * shape.d_model
    return fit(copies * (shape.backward_bytes(length) + written), memory_gb=memory_gb)


def require_close(model: Model, found: Tensor, *, expected: Tensor, what: str) -> None:
    """Refuse a model in which `what` is computed otherwise than mnemo takes for granted.

    Raises:
        MnemoError: with the size of the difference.
    """
    gap = float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6))
    if not gap <= _TOLERANCE[model.dtype]:
        raise MnemoError(
            f"{model.name}: {what} off by {gap:.1g} in {model.bridge.cfg.architecture}, so its edges cannot be "
            "followed: use attribute_nodes, or a pre-norm architecture (GPT-2, Llama, Qwen2 ... style)"
        )
