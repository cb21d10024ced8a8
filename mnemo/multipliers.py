"""What each component passes on: averaged Jacobians between a corrupt and a clean run, one component at a time.

Between its corrupt and its clean input a component is not linear, but the Jacobian averaged along the straight line
between the two is exact for that pair (the mean value theorem; component-wise integrated gradients, as in Sundararajan
et al. 2017, section 3, with the summation-to-delta of DeepLIFT, Shrikumar et al. 2017, section 3.1):

    f(clean input) - f(corrupt input) = mean of J over the line, times (clean input - corrupt input)

Chained along a path these multipliers thus conserve the effect, up to the error of the quadrature, which is measured.
A component is one of

* the logits: final norm, unembedding, the difference that the metric takes (softcaps included),
* an MLP at one position, with its norm before and, where it has one, after it; what the quadrature misses (at the
  kinks of a ReLU it converges slowly) is added along the line, the smallest change of the Jacobian that makes it
  exact for the pair (Broyden 1965, equation 2.9),
* one head at one position, as a function of the stream at all positions: queries, keys and values move together,
  rotary or ALiBi positions, masks and softcaps as the model applies them,
* a norm behind the attention (Gemma 2, OLMo 2), as a function of the sum of the heads, so that heads still add up.

Values are in logits; positive supports the answer over the contrast's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.blocks import mlp_output, mlp_stream_hook, norm_behind, norm_behind_hooks, normed_together
from mnemo.errors import MnemoError
from mnemo.graph import Writer, stream_hook, writers
from mnemo.line import ROUNDING, SLOTS, AttentionGraph, Line, by_head
from mnemo.memory import fit, in_pieces
from mnemo.partial_runs import run_from
from mnemo.patching import metric, require_comparable
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model

FIRST_NODES, MOST_NODES = 4, 128
# Sum over all components of the effect that each one's quadrature gets wrong, as a share of the whole.
TOLERANCE = 2e-3
MENDED = 2e-2  # of what the quadrature of the MLPs misses, which is mended and thus not lost


@dataclass(frozen=True, eq=False)
class Totals:
    """Multipliers of everything that follows: gradient vectors of all paths from a place to the metric together.

    Attributes:
        embed: at the embedding.
        heads: at what the heads of each layer write.
        mlp: at what the MLP of each layer writes.
        stream: at the residual stream after 0, 1, ... blocks. Every path crosses each of these once, so the effects
            at all positions after any number of blocks add up to the whole.
        errors: per layer, what the quadrature of its heads and of its MLP gets wrong, and last of the logits, in
            logits: effect of what the component writes minus the effect that its inputs are given.
        mended: per layer, what the quadrature of its MLP got wrong, in logits, before that was added.
    """

    embed: Float[Tensor, "position d"]
    heads: Float[Tensor, "layer position d"]
    mlp: Float[Tensor, "layer position d"]
    stream: Float[Tensor, "boundary position d"]
    errors: tuple[float, ...]
    mended: tuple[float, ...]


class Multipliers:
    """The averaged Jacobians of one contrast: made once, used by any number of searches.

    Attributes:
        contrast: the pair of prompts.
        metric_clean, metric_corrupt: the metric of the two runs, in logits.
        predicted: the token that the model prefers after the clean prompt.
        writers: everything that writes to the stream, in the order in which it does.
        deltas: what each writes in the clean run minus what it writes in the corrupt one.
        nodes: number of nodes of the quadrature.
    """

    def __init__(self, model: Model, contrast: Contrast, *, nodes: int) -> None:
        require_comparable(contrast)
        self.contrast, self.nodes, self._model = contrast, nodes, model
        self._line = Line(model, contrast, nodes=nodes)
        self._ends = ends = self._line.ends
        (self.metric_clean, self.metric_corrupt), self.predicted = ends.metric, ends.predicted
        self._weights = [_weights(model, layer) for layer in range(model.n_layers)]
        self._logits = self._read_out()
        self.writers, self.deltas = writers(model), self._deltas()
        first = next(i for i, (a, b) in enumerate(_pairs(contrast)) if a != b)
        self.deltas[:, :first] = 0  # nothing differs before the first token that does, but for rounding
        self._check_sum()

    @property
    def total(self) -> float:
        """metric(clean) - metric(corrupt)."""
        return self.metric_clean - self.metric_corrupt

    @property
    def length(self) -> int:
        """Tokens of each prompt."""
        return len(self.contrast.clean)

    def upstream(self, writer: Writer | None) -> int:
        """Return how many of `writers` a component reads; None stands for the logits, which read all of them."""
        if writer is None:
            return len(self.writers)
        before = 1 + writer.layer * (self._model.n_heads + 1)
        reads_heads = writer.kind == "mlp" and not self._ends.parallel[writer.layer]
        return before + (self._model.n_heads if reads_heads else 0)

    # ---- one component at a time

    def logits(self) -> Float[Tensor, " d"]:
        """Return the averaged gradient of the metric at the last position of the last stream."""
        return self._logits

    def mlp(
        self, layer: int, positions: Int[Tensor, " item"], *, gradients: Float[Tensor, "item d"]
    ) -> Float[Tensor, "item d"]:
        """Carry gradients at what an MLP writes back to the stream that it reads, at the same positions."""
        back, writer = self._mlp_quadrature(layer, positions, gradients), Writer("mlp", layer)
        moved = self.deltas[: self.upstream(writer), positions].sum(0)
        missed = (gradients * self.deltas[self.row(writer), positions]).sum(-1) - (back * moved).sum(-1)
        length = moved.square().sum(-1)
        return back + torch.where(length > 0, missed / length, 0.0)[:, None] * moved

    def _mlp_quadrature(
        self, layer: int, positions: Int[Tensor, " item"], gradients: Float[Tensor, "item d"]
    ) -> Float[Tensor, "item d"]:
        hook = mlp_stream_hook(self._model, layer)
        return self._positionwise(
            lambda stream: mlp_output(self._model, layer, stream=stream), hook, positions, gradients
        )

    def _positionwise(
        self,
        function: Callable[[Tensor], Tensor],
        reads: str,
        positions: Int[Tensor, " item"],
        gradients: Float[Tensor, "item d"],
    ) -> Float[Tensor, "item d"]:
        """Carry gradients back through a function of one position, an MLP or a norm, that reads at a hook."""
        line, ends = self._line, self._ends.values[reads][:, positions]

        def some(piece: slice) -> Tensor:
            with torch.enable_grad():
                read = Line.points(ends[:, piece], line.alpha).requires_grad_(True)  # [node, item, d]
                written = function(read)
            back = line.weight[:, None, None] * gradients[piece].to(written.dtype)
            return torch.autograd.grad(written, read, back)[0].to(gradients.dtype).sum(0)

        at_once = fit(2 * self.nodes * Shape.of(self._model).mlp_bytes, memory_gb=line.half)
        pieces = in_pieces(len(positions), at_once, run=some)
        return torch.cat([gradients[:0], *(found for _, found in pieces)])

    def heads(
        self,
        layer: int,
        heads: Int[Tensor, " item"],
        *,
        positions: Int[Tensor, " item"],
        gradients: Float[Tensor, "item d"],
    ) -> Float[Tensor, "item slot position d"]:
        """Carry gradients at what heads write back to the stream, apart for queries, keys and values.

        Args:
            layer: of all these heads.
            heads: which head.
            positions: where each writes, 0 for the first token.
            gradients: at what each writes.

        Returns:
            gradients at the stream that enters the block, at every source position; those of the query stand at the
            head's own position.
        """
        gradients = self._before_post_norm(layer, positions, gradients)

        def some(piece: slice) -> Tensor:
            given = heads[piece], positions[piece], gradients[piece]
            return self._over_nodes(layer, lambda here: self._through_heads(here, layer, *given))

        # Each takes as much again as the graph of its block, in what autograd carries back.
        at_once = fit(self._line.bytes, memory_gb=self._line.half)
        return torch.cat([found for _, found in in_pieces(len(heads), at_once, run=some)])

    def _through_heads(
        self,
        here: AttentionGraph,
        layer: int,
        heads: Int[Tensor, " item"],
        positions: Int[Tensor, " item"],
        gradients: Float[Tensor, "item d"],
    ) -> Float[Tensor, "item slot position d"]:
        """Carry gradients at what heads write, before any norm behind them, back at some nodes."""
        weights, items = self._weights[layer], torch.arange(len(heads))
        groups = heads // (here.qkv[0].shape[2] // here.qkv[1].shape[2])  # key/value head of each
        back = torch.einsum("md,mhd->mh", gradients.to(here.z.dtype), weights.o[heads])
        seed = here.z.new_zeros(len(heads), *here.z.shape)
        seed[items, :, positions, heads] = here.weight[:, None] * back[:, None]
        into = torch.autograd.grad(here.z, here.qkv, seed, retain_graph=True, is_grads_batched=True)
        read = here.stream.new_zeros(len(heads), len(SLOTS), *here.stream.shape)
        if weights.joint:  # OLMo 2 norms the queries (and keys) of all heads together: each head reads with all of them
            read[items, 0, :, positions] = torch.einsum("mnah,adh->mnd", into[0][items, :, positions], weights.q)
            read[:, 1] = torch.einsum("mnpgh,gdh->mnpd", into[1], weights.k)
        else:
            query = into[0][items, :, positions, heads]
            read[items, 0, :, positions] = torch.einsum("mnh,mdh->mnd", query, weights.q[heads])
            read[:, 1] = torch.einsum("mnph,mdh->mnpd", into[1][items, :, :, groups], weights.k[groups])
        read[:, 2] = torch.einsum("mnph,mdh->mnpd", into[2][items, :, :, groups], weights.v[groups])
        found = torch.autograd.grad(
            here.normed, here.stream, read.flatten(0, 1), retain_graph=True, is_grads_batched=True
        )[0]
        return found.to(gradients.dtype).sum(1).unflatten(0, (len(heads), len(SLOTS)))

    def _before_post_norm(
        self, layer: int, positions: Int[Tensor, " item"], gradients: Float[Tensor, "item d"]
    ) -> Float[Tensor, "item d"]:
        """Carry gradients at the stream back through the norm behind the attention, where there is one."""
        hooks = norm_behind_hooks(self._model, layer)
        if hooks is None:
            return gradients
        return self._positionwise(norm_behind(self._model, "attention", layer=layer), hooks[0], positions, gradients)

    def _over_nodes(self, layer: int, run: Callable[[AttentionGraph], Tensor]) -> Tensor:
        """Add up what a block's attention gives at all nodes, in turns."""
        return self._line.over_turns(lambda turn: run(self._line.attention(layer, turn)))

    # ---- all paths at once

    def totals(self) -> Totals:
        """Carry the metric's gradient back through all components: every path at once, none enumerated."""
        everywhere = torch.arange(self.length, device=self.deltas.device)
        now = torch.zeros_like(self.deltas[0])
        now[-1] = self.logits()
        at_heads, at_mlp, stream, mended = [], [], [now], []
        errors = [self.total - self._effect(now, self.upstream(None))]
        for layer in reversed(range(self._model.n_layers)):
            at_mlp.insert(0, now)
            through_mlp = torch.zeros_like(now)
            used = everywhere[now.abs().sum(-1) > 0]
            mlp = Writer("mlp", layer)
            through_mlp[used] = self._mlp_quadrature(layer, used, now[used])
            mended.insert(0, -self._effect(through_mlp, self.upstream(mlp)))
            through_mlp[used] = self.mlp(layer, used, gradients=now[used])
            mended[0] += self._effect(through_mlp, self.upstream(mlp))
            errors.append(
                self._effect(now, slice(self.row(mlp), self.row(mlp) + 1))
                - self._effect(through_mlp, self.upstream(mlp))
            )
            if not self._ends.parallel[layer]:
                now = now + through_mlp
            at_heads.insert(0, now)
            through_heads = self._all_heads(layer, now)
            first = self.row(Writer("head", layer, 0))
            errors.append(
                self._effect(now, slice(first, first + self._model.n_heads)) - self._effect(through_heads, first)
            )
            now = now + through_heads
            if self._ends.parallel[layer]:
                now = now + through_mlp
            stream.insert(0, now)
        return Totals(
            now, torch.stack(at_heads), torch.stack(at_mlp), torch.stack(stream), tuple(reversed(errors)), tuple(mended)
        )

    def _all_heads(self, layer: int, gradients: Float[Tensor, "position d"]) -> Float[Tensor, "position d"]:
        everywhere, weights = torch.arange(self.length, device=gradients.device), self._weights[layer]
        gradients = self._before_post_norm(layer, everywhere, gradients)

        def through(here: AttentionGraph) -> Tensor:
            back = torch.einsum("pd,ahd->pah", gradients.to(here.z.dtype), weights.o)
            into = torch.autograd.grad(here.z, here.qkv, here.weight[:, None, None, None] * back, retain_graph=True)
            projections = zip(into, (weights.q, weights.k, weights.v), strict=True)
            read = torch.stack([torch.einsum("npah,adh->npd", part, weight) for part, weight in projections]).sum(0)
            found = torch.autograd.grad(here.normed, here.stream, read, retain_graph=True)[0]
            return found.to(gradients.dtype).sum(0)

        return self._over_nodes(layer, through)

    def row(self, writer: Writer) -> int:
        """Return the place of a writer in `writers`."""
        if writer.kind == "embed":
            return 0
        heads = self._model.n_heads
        return 1 + writer.layer * (heads + 1) + (heads if writer.kind == "mlp" else writer.head)

    def _effect(self, gradients: Float[Tensor, "position d"], writers: int | slice) -> float:
        chosen = writers if isinstance(writers, slice) else slice(writers)
        return float((self.deltas[chosen] * gradients).sum())

    # ---- making them

    def _read_out(self) -> Float[Tensor, " d"]:
        """Average the gradient of the metric over all nodes, through the final norm."""
        model, line = self._model, self._line

        def gradient(turn: slice) -> Tensor:
            stream = line.between(stream_hook(model, model.n_layers), turn).requires_grad_(True)
            with torch.enable_grad():
                _, logits = run_from(model, model.n_layers, stream=stream, tokens=line.tokens(turn))
                assert logits is not None  # nothing was kept, so it ran to the end
                said = metric(logits, [self.contrast] * len(stream))
            found = torch.autograd.grad(said, stream, line.weight[turn].to(said.dtype))[0]
            return found[:, -1].to(_at_least_float(model.dtype)).sum(0)

        return line.over_turns(gradient)

    def _deltas(self) -> Float[Tensor, "writer position d"]:
        model, values, precision = self._model, self._ends.values, _at_least_float(self._model.dtype)

        def delta(name: str) -> Tensor:
            return (values[name][1] - values[name][0]).to(precision)

        deltas = [delta(stream_hook(model, 0))[None]]
        for layer in range(model.n_layers):
            z = by_head(delta(f"blocks.{layer}.attn.hook_z")[None], self._weights[layer].o.shape[1])[0]
            heads = torch.einsum("pah,ahd->apd", z, self._weights[layer].o.to(precision))
            deltas += [self._behind_post_norm(layer, heads), delta(f"blocks.{layer}.hook_mlp_out")[None]]
        return torch.cat(deltas)

    def _behind_post_norm(
        self, layer: int, heads: Float[Tensor, "head position d"]
    ) -> Float[Tensor, "head position d"]:
        """Carry what heads write forward through the norm behind the attention, where there is one."""
        hooks, line = norm_behind_hooks(self._model, layer), self._line
        if hooks is None:
            return heads
        norm = norm_behind(self._model, "attention", layer=layer)

        def ahead(turn: slice) -> Tensor:
            entering = line.between(hooks[0], turn).requires_grad_(True)
            with torch.enable_grad():
                leaving = norm(entering)
            # The derivative of a vector-Jacobian product by its vector is the Jacobian, applied forwards.
            # (Forward-mode differentiation would do, but it goes through parts of torch that are deprecated.)
            vector = torch.zeros_like(leaving, requires_grad=True)
            back = torch.autograd.grad(leaving, entering, vector, create_graph=True)[0]
            moved = [
                torch.autograd.grad(back, vector, head.to(back.dtype).expand_as(back), retain_graph=True)[0]
                for head in heads
            ]
            return torch.einsum("n,anpd->apd", line.weight[turn], torch.stack(moved)).to(heads.dtype)

        return line.over_turns(ahead)

    def _check_sum(self) -> None:
        """What the writers add up to is the last stream; else the model cannot be taken apart like this."""
        whole = self._ends.values[stream_hook(self._model, self._model.n_layers)].to(self.deltas.dtype)
        whole = whole[1] - whole[0]
        gap = float((self.deltas.sum(0) - whole).abs().max() / whole.abs().max())
        # Behind a norm of its own the heads add up as well as the quadrature does, and no better.
        behind = any(norm_behind_hooks(self._model, layer) for layer in range(self._model.n_layers))
        if not gap <= max(ROUNDING[self._model.dtype], 0.1 if behind else 0):
            raise MnemoError(
                f"{self._model.name}: what embedding, heads and MLPs write is off by {gap:.2g} of the last stream, so "
                "its paths cannot be told apart: use a pre-norm decoder (GPT-2, GPT-NeoX, Llama, Qwen2, Gemma 2, OPT)"
            )


def averaged_multipliers(
    model: Model, contrast: Contrast, *, tolerance: float = TOLERANCE
) -> tuple[Multipliers, Totals]:
    """Make the multipliers of a contrast, with as many nodes as it takes to conserve its effect.

    The number of nodes doubles until the errors of all components, as absolute values so that none hides another,
    are together at most a share `tolerance` of metric(clean) - metric(corrupt) and what had to be mended a share
    `MENDED`, or there are `MOST_NODES`.

    Args:
        model: the model.
        contrast: the pair of prompts.
        tolerance: what may be lost, as a share of the whole.

    Raises:
        MnemoError: prompts of unequal length or equal prompts, a metric that is not finite or does not change, or a
            model that is not the sum of its parts.
    """
    nodes = FIRST_NODES
    while True:
        made = Multipliers(model, contrast, nodes=nodes)
        totals = made.totals()
        lost, mended = sum(map(abs, totals.errors)), sum(map(abs, totals.mended))
        if (lost <= tolerance * abs(made.total) and mended <= MENDED * abs(made.total)) or nodes >= MOST_NODES:
            return made, totals
        del made, totals  # or their graphs would stand beside the next ones
        nodes *= 2


@dataclass(frozen=True)
class _Weights:
    """Projections of a block's heads; grouped-query attention has fewer keys and values than queries.

    `joint`: the queries of all heads go through one norm together, and the keys too.
    """

    q: Float[Tensor, "head d d_head"]
    k: Float[Tensor, "group d d_head"]
    v: Float[Tensor, "group d d_head"]
    o: Float[Tensor, "head d_head d"]
    joint: bool


def _weights(model: Model, layer: int) -> _Weights:
    attention = model.bridge.blocks[layer].attn
    joint = normed_together(model, layer, kind="q") or normed_together(model, layer, kind="k")
    return _Weights(attention.W_Q, attention.W_K, attention.W_V, attention.W_O, joint=joint)


def _at_least_float(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _pairs(contrast: Contrast) -> zip[tuple[int, int]]:
    return zip(contrast.clean.tokens, contrast.corrupt.tokens, strict=True)
