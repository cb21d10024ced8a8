"""Where families keep the parts of a block: its norms, its MLP, what its attention reads with.

GPT-2 and Llama have a norm before attention and one before the MLP; Phi has one for both; Gemma 2 and 3 have norms
behind the two as well, OLMo 2 has those alone. OPT has no module for its MLP. Everything that follows a component back
or forward asks here, so that a family that differs is told apart in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from mnemo.graph import stream_hook

if TYPE_CHECKING:
    from mnemo.model import Model

Part = Literal["attention", "mlp"]
_BEFORE: dict[Part, tuple[str, ...]] = {"attention": ("ln1",), "mlp": ("ln2", "ln1")}
_BEHIND: dict[Part, str] = {"attention": "ln1_post", "mlp": "ln2_post"}


def part_of(kind: str) -> Part:
    """Return the part of a block that readers of a kind (``q``, ``k``, ``v``, ``attention`` or ``mlp``) belong to."""
    return "mlp" if kind == "mlp" else "attention"


def norm_before(model: Model, part: Part, *, layer: int) -> Any:
    """Return the module by which a part normalises the stream, without hooks; None where it reads the stream itself."""
    block: Any = model.bridge.blocks[layer]
    norm = next((getattr(block, name) for name in _BEFORE[part] if hasattr(block, name)), None)
    return None if norm is None else norm.original_component


def norm_behind(model: Model, part: Part, *, layer: int) -> Any:
    """Return the module through which a part writes to the stream, without hooks; None where it writes directly."""
    norm = getattr(model.bridge.blocks[layer], _BEHIND[part], None)
    return None if norm is None else norm.original_component


def norm_behind_hooks(model: Model, layer: int) -> tuple[str, str] | None:
    """Return the hooks before and behind the norm behind the attention; None where there is none."""
    if norm_behind(model, "attention", layer=layer) is None:
        return None
    name = f"blocks.{layer}.{_BEHIND['attention']}.hook_"
    return f"{name}in", f"{name}out"


def normed_hook(model: Model, layer: int) -> str | None:
    """Return the hook behind the norm before the attention; None where there is none."""
    return None if norm_before(model, "attention", layer=layer) is None else f"blocks.{layer}.ln1.hook_out"


def mlp_stream_hook(model: Model, layer: int) -> str:
    """Return the name of the hook that holds the stream that an MLP reads, before any norm."""
    if hasattr(model.bridge.blocks[layer], "ln2"):
        return f"blocks.{layer}.ln2.hook_in"
    # A parallel block without a second norm (GPT-J, Phi) reads where the attention does; one without any norm before
    # its parts (OLMo 2) reads what the attention has added to.
    parallel = model.bridge.cfg.parallel_attn_mlp
    return stream_hook(model, layer) if parallel else f"blocks.{layer}.hook_resid_mid"


def normalise(model: Model, part: Part, *, layer: int, stream: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
    """Apply the norm through which a part sees the stream."""
    norm = norm_before(model, part, layer=layer)
    return stream if norm is None else norm(stream)


def mlp_output(model: Model, layer: int, *, stream: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
    """Return what an MLP writes, its norms included, where it reads `stream`: the model's own modules, no hooks."""
    block: Any = model.bridge.blocks[layer]
    value = normalise(model, "mlp", layer=layer, stream=stream).reshape(-1, 1, stream.shape[-1])
    if block.mlp.name is None:  # OPT: no module of its own, its layers stand in the block
        hidden = getattr(block.mlp, "in").original_component(value)
        value = block.mlp.out.original_component(block.original_component.activation_fn(hidden))
    else:
        value = block.mlp.original_component(value)
    value = value[0] if isinstance(value, tuple) else value
    norm = norm_behind(model, "mlp", layer=layer)
    return (value if norm is None else norm(value)).view(stream.shape)


def normed_together(model: Model, layer: int, *, kind: str) -> bool:
    """Return whether one norm takes in the queries (or keys: `kind` is ``q`` or ``k``) of all heads (OLMo 2).

    Moving those of one head then moves those of the others.
    """
    attention: Any = model.bridge.blocks[layer].attn
    norm = getattr(getattr(attention, f"{kind}_norm", None), "original_component", None)
    weight = getattr(norm, "weight", None)
    return weight is not None and weight.numel() > getattr(attention, f"W_{kind.upper()}").shape[-1]
