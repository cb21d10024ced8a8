"""The straight line between a corrupt and a clean run: its two ends, points between them, graphs of blocks at these.

Multipliers (`mnemo.multipliers`) are averages along this line. The average is a Gauss-Legendre quadrature: a weighted
sum over nodes, so nodes can be taken in turns. There are as few turns as the memory budget allows, and twice as many
from where memory runs out all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.activations import values_at
from mnemo.blocks import mlp_output, mlp_stream_hook, norm_behind_hooks, normed_hook
from mnemo.errors import MnemoError
from mnemo.graph import stream_hook
from mnemo.memory import NoMemoryError, attempt, fit, in_pieces
from mnemo.partial_runs import run_from
from mnemo.patching import metric
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

Slot = Literal["q", "k", "v"]  # how a head reads: as query, key or value
SLOTS: tuple[Slot, ...] = ("q", "k", "v")
# Relative rounding that is allowed where what should be equal is computed in two ways.
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


class Ends:
    """The corrupt and the clean run: what stands at every place that a multiplier is made from, in that order.

    Attributes:
        values: by hook name, [run, position, ...].
        metric: of the clean and of the corrupt run, in logits.
        predicted: the token that the model prefers after the clean prompt.
        parallel: by layer, whether the MLP reads the stream that the attention reads.
    """

    def __init__(self, model: Model, contrast: Contrast) -> None:
        names = [stream_hook(model, layer) for layer in range(model.n_layers + 1)]
        for layer in range(model.n_layers):
            block = f"blocks.{layer}."
            names += [mlp_stream_hook(model, layer), f"{block}hook_mlp_out", f"{block}attn.hook_z"]
            names += [behind[0]] if (behind := norm_behind_hooks(model, layer)) is not None else []
        both = torch.tensor([contrast.corrupt.tokens, contrast.clean.tokens], device=model.device)
        self.values: dict[str, Float[Tensor, "run position ..."]]
        self.values, logits = _values_of_both(model, both, names)
        corrupt, clean = metric(logits, [contrast, contrast]).tolist()
        self.metric, self.predicted = (clean, corrupt), int(logits[1, -1].argmax())
        self.parallel = [
            torch.equal(self.values[mlp_stream_hook(model, layer)], self.values[stream_hook(model, layer)])
            for layer in range(model.n_layers)
        ]
        name = contrast.fact.fact_id
        if not (np.isfinite(clean) and np.isfinite(corrupt)):
            raise MnemoError(f"the metric of {name!r} is not finite: check the model's weights and dtype")
        if clean == corrupt:
            raise MnemoError(
                f"the metric of {name!r} is {clean:.4g} in both prompts, so there is nothing to explain: choose "
                "another contrast"
            )
        self._check_mlps(model)

    def _check_mlps(self, model: Model) -> None:
        for layer in range(model.n_layers):
            read, written = (
                self.values[name] for name in (mlp_stream_hook(model, layer), f"blocks.{layer}.hook_mlp_out")
            )
            with torch.no_grad():
                again = mlp_output(model, layer, stream=read).view_as(written)
            gap = float((again - written).abs().max() / written.abs().max().clamp(min=1e-30))
            if not gap <= ROUNDING[model.dtype]:
                raise MnemoError(
                    f"{model.name}: the MLP of block {layer} is not a function of the stream at one position (off by "
                    f"{gap:.2g}): paths cannot be traced through {model.bridge.cfg.architecture}"
                )


def _values_of_both(
    model: Model, both: Int[Tensor, "run position"], names: list[str]
) -> tuple[dict[str, Float[Tensor, "run position ..."]], Tensor]:
    """Run both prompts at once, or one after the other where there is no memory for that."""
    runs = [found for _, found in in_pieces(2, 2, run=lambda piece: values_at(model, both[piece], names=names))]
    if len(runs) == 1:
        return runs[0]
    (first, said), (second, also) = runs
    return {name: torch.cat([first.pop(name), second.pop(name)]) for name in list(first)}, torch.cat([said, also])


@dataclass(frozen=True, eq=False)
class AttentionGraph:
    """The attention of one block at some nodes, cut into pieces that autograd runs through alone.

    Attributes:
        weight: of each of these nodes in the quadrature.
        stream: what enters the block.
        normed: what the queries, keys and values are made from.
        qkv: queries, keys and values, roots of the piece that ends in `z`.
        z: what the heads have attended to, before the output projection.
    """

    weight: Float[Tensor, " node"]
    stream: Float[Tensor, "node position d"]
    normed: Float[Tensor, "node position d"]
    qkv: tuple[Tensor, Tensor, Tensor]
    z: Float[Tensor, "node position head d_head"]


class Line:
    """The nodes of a quadrature between the two runs of a contrast.

    Args:
        model: the model.
        contrast: the pair of prompts.
        nodes: how many.

    Attributes:
        ends: the two runs.
        nodes: how many nodes there are.
        at_once: how many are taken in one turn.
        half: gigabytes, half of what a trace may hold: graphs of blocks, and what is carried back, have one half each.

    Raises:
        MnemoError: a metric that is not finite or does not change, or an MLP that reads several positions.
    """

    def __init__(self, model: Model, contrast: Contrast, *, nodes: int) -> None:
        self.ends, self.nodes, self._model, self._contrast = Ends(model, contrast), nodes, model, contrast
        points, weights = np.polynomial.legendre.leggauss(nodes)
        self.alpha = torch.tensor((points + 1) / 2, device=model.device).to(model.dtype)
        self.weight = torch.tensor(weights / 2, device=model.device).to(model.dtype)
        self._node_bytes = Shape.of(model).attention_bytes(len(contrast.clean))
        self.half = Shape.of(model).trace_room(len(contrast.clean)) / 2
        self.at_once = min(nodes, fit(self._node_bytes, memory_gb=self.half))
        self._most_kept = fit(self.bytes, memory_gb=self.half)
        self._kept: dict[tuple[int, int, int], AttentionGraph] = {}

    @property
    def bytes(self) -> int:
        """What the graph of one block's attention takes in one turn."""
        return self._node_bytes * self.at_once

    def over_turns(self, run: Callable[[slice], Tensor]) -> Tensor:
        """Add up what `run` gives for the nodes of all turns, one turn after the other.

        Where memory runs out, first the graphs of other blocks go and are not kept any more; then half as many nodes
        are taken at once, here and later.

        Args:
            run: given the nodes of a turn. It must not mind being begun again.

        Raises:
            NoMemoryError: there is not memory enough for one node.
        """
        pieces = in_pieces(self.nodes, self.at_once, run=partial(self._turn, run))
        return reduce(torch.add, (found for _, found in pieces))

    def _turn(self, run: Callable[[slice], Tensor], turn: slice) -> Tensor:
        alone = not self._kept
        done, found, problem = attempt(run, turn)
        if done:
            return found
        self._kept.clear()
        self._most_kept = 1
        if alone:
            self.at_once = max(1, (turn.stop - turn.start) // 2)
            raise NoMemoryError(problem)
        return self._turn(run, turn)

    def between(self, name: str, turn: slice) -> Float[Tensor, "node ..."]:
        """Return the points on the line at a hook, those of one turn."""
        return self.points(self.ends.values[name], self.alpha[turn])

    @staticmethod
    def points(ends: Float[Tensor, "run ..."], alpha: Float[Tensor, " node"]) -> Float[Tensor, "node ..."]:
        """Return points on the line from the corrupt run's value to the clean run's."""
        corrupt, clean = ends.unbind()
        return corrupt + alpha.view(-1, *[1] * corrupt.dim()) * (clean - corrupt)

    def tokens(self, turn: slice) -> Int[Tensor, "node position"]:
        """Return the clean prompt once for every node of a turn."""
        tokens = torch.tensor(self._contrast.clean.tokens, device=self._model.device)
        return tokens.expand(turn.stop - turn.start, -1)

    def attention(self, layer: int, turn: slice) -> AttentionGraph:
        """Return a block's graph: made when it is first asked for, kept while there is room for it."""
        key = layer, turn.start, turn.stop
        found = self._kept.pop(key, None)
        if found is None:
            while len(self._kept) >= self._most_kept:
                del self._kept[next(iter(self._kept))]  # the one that was used least recently
            found = self._attention_at(layer, turn)
        self._kept[key] = found
        return found

    def _attention_at(self, layer: int, turn: slice) -> AttentionGraph:
        """Run the attention of a block at the nodes of a turn, its input replaced."""
        model, cuts, attention = self._model, {}, self._model.bridge.blocks[layer].attn
        block = f"blocks.{layer}."
        normed, z = normed_hook(model, layer), f"{block}attn.hook_z"
        stream = self.between(stream_hook(model, layer), turn).requires_grad_(True)

        def root(value: Tensor, *, name: str) -> Tensor:
            cuts[name] = value.detach().requires_grad_(True)
            return cuts[name]

        def cut(value: Tensor, *, name: str) -> Tensor:
            cuts[name] = value
            return value.detach()

        does = {f"{block}attn.hook_{slot}": root for slot in SLOTS} | {z: cut}
        does |= {normed: cut} if normed is not None else {}
        with torch.enable_grad():
            changes = {name: partial(do, name=name) for name, do in does.items()}
            run_from(model, layer, stream=stream, tokens=self.tokens(turn), changes=changes, keep=[z])
            entering = stream.clone() if normed is None else cuts[normed]  # without a norm: the stream itself
        q, k, v = (by_head(cuts[f"{block}attn.hook_{slot}"], attention.W_Q.shape[2]) for slot in SLOTS)
        return AttentionGraph(
            weight=self.weight[turn],
            stream=stream,
            normed=entering,
            qkv=(q, k, v),
            z=by_head(cuts[z], attention.W_O.shape[1]),
        )


def by_head(value: Tensor, d_head: int) -> Float[Tensor, "node position head d_head"]:
    """Return a value apart for every head, where a family keeps those of all heads together."""
    return value.unflatten(-1, (-1, d_head)) if value.dim() == 3 else value
