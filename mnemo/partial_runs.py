"""Run a part of the model: up to a block, from a block on, or all of it with another state in its stream.

What lies before a block is the same for equal prompts, whatever is put into the stream behind it. So where many states
are put into few prompts, as all interventions do, each distinct prompt runs once up to there (`logits_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.graph import stream_hook

if TYPE_CHECKING:
    from mnemo.model import Model

Change = Callable[[Tensor], Tensor]
Hook = tuple[str | Callable[..., Any], Callable[..., Any]]


def last_alone(positions: int = 1) -> Hook:
    """Return the hook that has logits made of the last positions alone.

    With a large vocabulary the logits of all positions cost a third of a small model's time.
    """
    return "unembed.hook_in", lambda value, hook: value[:, -positions:].contiguous()


LAST_ALONE = last_alone()


class _Enough(Exception):
    """Raised in a hook when what was wanted has been computed."""


BlockOutput = Literal["stream", "tuple", "unknown"]


@dataclass(frozen=True)
class _Given:
    """Stands in for the forward of a block that is skipped: gives what was given to it."""

    output: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


@contextmanager
def _starting_at(
    model: Model, layer: int, stream: Float[Tensor, "row position d"], *, output: BlockOutput | None = None
) -> Generator[None]:
    """Let the blocks before `layer` compute nothing and the last of them put out `stream`.

    (The bridge's own ``start_at_layer`` computes them all and discards what they give.)
    """
    output = output or model.block_output
    if layer and output == "unknown":
        raise MnemoError(
            f"{model.name}: blocks of {model.bridge.cfg.architecture} cannot be skipped, so no run can start behind "
            "one: use attribute_nodes, or a model of another architecture (GPT-2, Llama, Qwen2 ... style)"
        )
    give = _Given((stream, None) if output == "tuple" else stream)
    skipped = list(model.bridge.blocks)[:layer]
    before = [vars(block).get("forward") for block in skipped]
    try:
        for block in skipped:
            vars(block)["forward"] = give
        yield
    finally:
        for block, own in zip(skipped, before, strict=True):
            if own is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = own


def is_skipped(block: Any) -> bool:
    """Return whether a block computes nothing, because the run that is going on starts behind it."""
    return isinstance(vars(block).get("forward"), _Given)


@torch.no_grad()
def measure_block_output(model: Model, tokens: Int[Tensor, "row position"], *, tolerance: float) -> BlockOutput:
    """Find out what the blocks of a model put out, by skipping them and comparing with a whole run.

    Args:
        model: the model.
        tokens: two different prompts at the least.
        tolerance: how far the two runs may lie apart, as a share of the largest logit.

    Returns:
        ``stream``, the residual stream; ``tuple``, one that begins with it; ``unknown`` where neither gives what the
        whole run gives: such blocks cannot be skipped.
    """
    seen: list[bool] = []
    handle = model.bridge.blocks[0].register_forward_hook(lambda block, given, put: seen.append(isinstance(put, tuple)))
    try:
        whole = model.bridge.run_with_hooks(tokens, fwd_hooks=[LAST_ALONE])
        output: BlockOutput = "tuple" if seen[0] else "stream"
        for layer in {1, model.n_layers}:
            stream = stream_into(model, layer, tokens=tokens)
            with _starting_at(model, layer, stream, output=output):
                found = model.bridge.run_with_hooks(tokens, fwd_hooks=[LAST_ALONE])
            if not (found - whole).abs().max() <= tolerance * whole.abs().max():
                return "unknown"
    except Exception:  # whatever a family that nobody tried does when its blocks are skipped
        return "unknown"
    finally:
        handle.remove()
    return output


def run_from(
    model: Model,
    layer: int,
    *,
    stream: Float[Tensor, "row position d"],
    tokens: Int[Tensor, "row position"],
    changes: Mapping[str, Change] | None = None,
    keep: Sequence[str] = (),
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Run the model from a block on; differentiable where `stream` or a change is.

    Args:
        model: the model.
        layer: the first block to run; `n_layers` for the final norm alone.
        stream: what enters it.
        tokens: the prompts that `stream` comes from (for positions and masks).
        changes: by hook name, what to put in place of the value there.
        keep: hooks whose values are wanted. When the last of them has been seen the run ends, if there are any.

    Returns:
        the values by hook name, and the logits of the last position (None where the run ended before).
    """
    changes = changes or {}
    values: dict[str, Tensor] = {}

    def visit(value: Tensor, hook: Any, *, name: str) -> Tensor | None:
        if name in changes:
            value = changes[name](value)
        if name in keep:
            values[name] = value
            if len(values) == len(keep):
                raise _Enough
        return value

    hooks: list[Hook] = [(name, partial(visit, name=name)) for name in dict.fromkeys([*changes, *keep])]
    hooks.append(LAST_ALONE)
    if layer == 0:
        hooks.insert(0, (stream_hook(model, 0), lambda value, hook: stream))
    with _starting_at(model, layer, stream):
        try:
            logits = model.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
        except _Enough:
            return values, None
    if keep:
        absent = next(name for name in keep if name not in values)
        raise MnemoError(f"{model.name} never ran {absent}: this architecture lacks it")
    return values, logits


def stream_into(model: Model, layer: int, *, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position d"]:
    """Return the residual stream after `layer` blocks, at least one; no block behind them runs."""
    name = f"blocks.{layer - 1}.hook_resid_post"
    values: dict[str, Tensor] = {}

    def visit(value: Tensor, hook: Any) -> None:
        values[name] = value
        raise _Enough

    with suppress(_Enough):
        model.bridge.run_with_hooks(tokens, fwd_hooks=[(name, visit)])
    return values[name]


def logits_of(
    model: Model,
    tokens: Int[Tensor, "row position"],
    *,
    change: tuple[int, Change] | None = None,
    last: int = 1,
) -> Float[Tensor, "row last vocabulary"]:
    """Return the logits of the last positions.

    Args:
        model: the model.
        tokens: prompts of one length; equal ones run once where they can.
        change: after how many blocks the residual stream is changed, and how (a copy of it may be changed in place).
        last: at how many positions logits are wanted.
    """
    distinct, which = tokens.unique(dim=0, return_inverse=True)
    if change is None:
        return model.bridge.run_with_hooks(distinct, fwd_hooks=[last_alone(last)])[which]
    layer, put = change
    if layer == 0 or len(distinct) == len(tokens) or model.block_output == "unknown":
        hook: Hook = (stream_hook(model, layer), lambda value, hook: put(value.clone()))
        return model.bridge.run_with_hooks(tokens, fwd_hooks=[hook, last_alone(last)])
    stream = put(stream_into(model, layer, tokens=distinct)[which])
    with _starting_at(model, layer, stream):
        return model.bridge.run_with_hooks(tokens, fwd_hooks=[last_alone(last)])
