"""The components of a decoder that attribution and patching speak of, and the tensors that hold them.

Two views of one graph. A `Component` is a tensor that holds nodes; `attribute_nodes` scores those. A `Writer` adds a
value to the residual stream and a `Reader` takes its input from it; an edge is one of each at one position. Writers are
ordered as they write, so what a reader sees is always a first part of them (`seen_by`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from torch import Tensor

from mnemo.errors import MnemoError

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

Kind = Literal["embed", "heads", "mlp", "residual"]
DIMS: dict[Kind, tuple[str, ...]] = {
    "embed": ("fact", "position"),
    "heads": ("fact", "layer", "head", "position"),
    "mlp": ("fact", "layer", "position"),
    "residual": ("fact", "stream_layer", "position"),
}


@dataclass(frozen=True)
class Component:
    """One tensor of the model that holds components: all heads of a layer, an MLP, the embedding, a stream.

    Attributes:
        kind: what it holds; ``residual`` is the whole stream after `layer` blocks, the others write to it.
        layer: index of the block, for ``residual`` the number of blocks that have run; 0 for ``embed``.
        hook: name of the hook. For heads the values before the output projection ([b, p, head, d_head]):
            patching or differentiating there is the same as at the head's result, and needs no extra memory.
    """

    kind: Kind
    layer: int
    hook: str

    def split(self, value: Tensor, n_heads: int) -> Tensor:
        """Return the tensor with one axis for heads where the component is several heads."""
        return value.unflatten(-1, (n_heads, -1)) if self.kind == "heads" and value.dim() == 3 else value

    def written_by(self, n_heads: int) -> slice:
        """Return where its writers stand in `writers`; nothing of the sort for ``residual``."""
        first = 1 + self.layer * (n_heads + 1)
        mlp = first + n_heads
        return {"embed": slice(0, 1), "heads": slice(first, mlp), "mlp": slice(mlp, mlp + 1)}[self.kind]

    def at(self, *, position: int, head: int | None = None) -> dict[str, int]:
        """Return the labels of one node of this component in a dataset made by `empty_scores`."""
        labels = {"position": position}
        if self.kind == "residual":
            labels["stream_layer"] = self.layer
        elif self.kind != "embed":
            labels["layer"] = self.layer
        if head is not None:
            labels["head"] = head
        return labels


@dataclass(frozen=True)
class Writer:
    """One part that adds to the residual stream: the embedding (with learned positions), a head, an MLP.

    Biases write too, but the same value in every run, so they cancel from every difference and are no part of an edge.
    """

    kind: Literal["embed", "head", "mlp"]
    layer: int = -1
    head: int = -1

    @property
    def label(self) -> str:
        """``embed``, ``h1.2`` (head 2 of layer 1) or ``mlp1``."""
        return {"embed": "embed", "head": f"h{self.layer}.{self.head}", "mlp": f"mlp{self.layer}"}[self.kind]

    @property
    def name(self) -> str:
        """The name that traces show: ``embed``, ``L1H2`` or ``MLP1``."""
        return {"embed": "embed", "head": f"L{self.layer}H{self.head}", "mlp": f"MLP{self.layer}"}[self.kind]


@dataclass(frozen=True)
class Reader:
    """One part that takes its input from the residual stream, through a norm of its own.

    Heads read three times. Under grouped-query attention `head` of a ``k`` or ``v`` is that of a key/value head, which
    several query heads share. ``logits`` is what the final norm reads; only its last position moves the metric.
    """

    kind: Literal["q", "k", "v", "mlp", "logits"]
    layer: int = -1
    head: int = -1

    @property
    def label(self) -> str:
        """``q1.2`` (head 2 of layer 1), ``k1.0``, ``v1.0``, ``mlp1`` or ``logits``."""
        return {"mlp": f"mlp{self.layer}", "logits": "logits"}.get(self.kind, f"{self.kind}{self.layer}.{self.head}")


def writers(model: Model) -> tuple[Writer, ...]:
    """List the writers of a model in the order in which they write: embedding, then heads and MLP of each layer."""
    found = [Writer("embed")]
    for layer in range(model.n_layers):
        found += [Writer("head", layer, head) for head in range(model.n_heads)]
        found.append(Writer("mlp", layer))
    return tuple(found)


def readers(model: Model) -> tuple[Reader, ...]:
    """List the readers of a model: q, k and v of each head and the MLP, layer by layer, and the logits."""
    found = []
    for layer in range(model.n_layers):
        found += [Reader("q", layer, head) for head in range(model.n_heads)]
        found += [Reader(kind, layer, head) for kind in ("k", "v") for head in range(model.n_kv_heads)]
        found.append(Reader("mlp", layer))
    return (*found, Reader("logits"))


def readers_at(model: Model, layer: int, *, kind: str) -> slice:
    """Return where the readers of one kind (``q``, ``k``, ``v`` or ``mlp``) of a layer stand in `readers`."""
    queries, keys = model.n_heads, model.n_kv_heads
    start = layer * (queries + 2 * keys + 1)
    offset, count = {
        "q": (0, queries),
        "k": (queries, keys),
        "v": (queries + keys, keys),
        "mlp": (queries + 2 * keys, 1),
    }[kind]
    return slice(start + offset, start + offset + count)


def seen_by(model: Model, kind: str, *, layer: int = -1) -> int:
    """Return how many writers, from the first on, a reader sees; the MLP of a parallel block none of its heads."""
    per_layer = model.n_heads + 1
    if kind == "logits":
        return 1 + model.n_layers * per_layer
    before = 1 + layer * per_layer
    return before + model.n_heads if kind == "mlp" and not model.bridge.cfg.parallel_attn_mlp else before


def stream_hook(model: Model, layer: int) -> str:
    """Return the name of the hook that holds the residual stream after `layer` blocks.

    Raises:
        MnemoError: no such layer.
    """
    if not 0 <= layer <= model.n_layers:
        raise MnemoError(f"layer {layer} asked for, but this model has 0 (embedding) to {model.n_layers}")
    if layer < model.n_layers:
        return f"blocks.{layer}.hook_resid_pre"
    return f"blocks.{layer - 1}.hook_resid_post"


def components(model: Model) -> tuple[Component, ...]:
    """List the components of a model: the embedding, each layer's heads and MLP, each layer's stream."""
    found = [Component("embed", 0, stream_hook(model, 0))]
    for layer in range(model.n_layers):
        found.append(Component("heads", layer, f"blocks.{layer}.attn.hook_z"))
        found.append(Component("mlp", layer, f"blocks.{layer}.hook_mlp_out"))
    found += [Component("residual", layer, stream_hook(model, layer)) for layer in range(model.n_layers + 1)]
    return tuple(found)


def empty_scores(model: Model, contrasts: Sequence[Contrast]) -> xr.Dataset:
    """Return scores full of NaN, labelled by fact, layer, head and position from the end of the prompt.

    Facts have prompts of different lengths; they are aligned at the end, and what lies before a prompt's first
    token stays NaN.
    """
    longest = max(len(c.clean.tokens) for c in contrasts)
    coords = {
        "fact": [c.fact.fact_id for c in contrasts],
        "layer": np.arange(model.n_layers),
        "stream_layer": np.arange(model.n_layers + 1),
        "head": np.arange(model.n_heads),
        "position": np.arange(-longest, 0),
    }
    sizes = {name: len(values) for name, values in coords.items()}
    variables = {
        kind: (dims, np.full([sizes[d] for d in dims], np.nan, dtype=np.float32)) for kind, dims in DIMS.items()
    }
    return xr.Dataset(variables, coords=coords, attrs={"units": "logits"})


def empty_edges(model: Model, contrasts: Sequence[Contrast], *, variables: Sequence[str]) -> xr.Dataset:
    """Return scores full of NaN with the dimensions fact, writer, reader and position (from the end of the prompt).

    Beside their labels, writers and readers carry ``writer_kind``, ``writer_layer``, ``writer_head`` and so on; -1
    stands where there is none. What a reader does not see, and what lies before a prompt's first token, stays NaN.
    """
    longest = max(len(c.clean.tokens) for c in contrasts)
    sides = {"writer": writers(model), "reader": readers(model)}
    coords: dict[str, Any] = {"fact": [c.fact.fact_id for c in contrasts], "position": np.arange(-longest, 0)}
    for side, parts in sides.items():
        coords[side] = [part.label for part in parts]
        for name in ("kind", "layer", "head"):
            coords[f"{side}_{name}"] = (side, [getattr(part, name) for part in parts])
    dims = ("fact", "writer", "reader", "position")
    shape = [len(coords[dim]) for dim in dims]
    values = {name: (dims, np.full(shape, np.nan, dtype=np.float32)) for name in variables}
    return xr.Dataset(values, coords=coords, attrs={"units": "logits"})
