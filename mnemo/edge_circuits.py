"""How much of the effect do the strongest edges carry? Circuits of edges, run on the model itself.

A circuit is a set of edges (writer, reader, position). In its run every edge that is in it shows its reader what the
writer writes in that very run, and every other edge what it wrote in the corrupt run, so that effects travel along the
circuit alone. With all edges this is the clean run, with none the corrupt one; the share of metric(clean) -
metric(corrupt) between the two is the circuit's faithfulness (Hanna et al. 2024; edges as in Conmy et al. 2023).

Two questions are asked of each ranking: does it suffice (the first k edges are *kept*, all others corrupt), and is it
needed (the first k are *removed*, all others clean)? The control takes the same edges in random order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.activations import MetricFn, Recording, checked_metric, differences, record, writer_hooks
from mnemo.blocks import mlp_stream_hook
from mnemo.edge_patching import path_edges
from mnemo.errors import MnemoError
from mnemo.graph import readers, readers_at, seen_by, stream_hook, writers
from mnemo.partial_runs import Hook
from mnemo.patching import metric, require_contrasts
from mnemo.readers import check_readers, input_hooks, normalise, project

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model
    from mnemo.traces import Trace

DRAWS = 3  # random orders of each fact
VALUES_PER_BATCH = 2**25  # what writers write at all positions, in all circuits that are run together


def faithfulness(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    edges: xr.Dataset,
    counts: Sequence[int] | None = None,
    traces: Mapping[str, Trace] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    metric_fn: MetricFn = metric,
) -> pd.DataFrame:
    """Keep, and remove, more and more edges of each fact, the strongest first, and measure what is left of the effect.

    Args:
        model: the model.
        contrasts: those that `edges` was made from.
        edges: what `attribute_edges` or `verify` returned. Edges are ranked by the size of their exact effect where it
            was measured, otherwise of their score; those that score exactly 0 carry nothing and are left out.
        counts: how many edges; None for 1, 2, 3, 4, 6, 8, 12, ... and all.
        traces: by fact_id, traces of the same contrasts: their edges are also taken in the order in which the
            strongest paths need them.
        draws: random orders of each fact.
        seed: of these.
        metric_fn: the one that `edges` was made with.

    Returns:
        a row for each run: `fact`, `order` (``score``, ``random`` or ``paths``), `draw` (of a random order, else 0),
        `edges` (how many), `setting` (``kept`` or ``removed``), `metric` in logits, and `share`: (metric -
        metric(corrupt)) / (metric(clean) - metric(corrupt)), 1 where the whole effect is there.

    Raises:
        MnemoError: `edges` of other facts, a count below 1, a fact without an effect to explain, a trace of another
            contrast; otherwise as `attribute_edges`.
    """
    require_contrasts(model, contrasts)
    names = [c.fact.fact_id for c in contrasts]
    if list(edges.fact.values) != names:
        raise MnemoError("edges are of other facts than the contrasts: give those that they were made from")
    if counts is not None and (not len(counts) or min(counts) < 1):
        raise MnemoError(f"counts={list(counts)} given: give numbers of edges, at least 1 each")
    found = []
    for contrast in tqdm(contrasts, desc="circuits", unit="fact", leave=False, disable=None):
        runner = _Runner.of(model, contrast, metric_fn)
        here = edges.sel(fact=contrast.fact.fact_id)
        trace = (traces or {}).get(contrast.fact.fact_id)
        if trace is not None and trace.contrast_id != contrast.corrupt_fact.fact_id:
            raise MnemoError(f"the trace of {trace.fact_id} is against another fact: trace the contrast itself")
        orders = _orders(model, here, trace, draws=draws, seed=seed)
        for (order, draw), ranked in orders.items():
            ks = _counts(len(ranked)) if counts is None else sorted({min(k, len(ranked)) for k in counts})
            for setting in ("kept", "removed"):
                values = runner.metrics(_absent(here, ranked, ks, removed=setting == "removed"))
                found.append(
                    pd.DataFrame(
                        {
                            "fact": contrast.fact.fact_id, "order": order, "draw": draw, "edges": ks,
                            "setting": setting, "metric": values, "share": runner.share(values),
                        }
                    )
                )  # fmt: skip
    return pd.concat(found, ignore_index=True)


def _orders(
    model: Model, edges: xr.Dataset, trace: Trace | None, *, draws: int, seed: int
) -> dict[tuple[str, int], Int[np.ndarray, " edge"]]:
    """Return the rankings to try, as flat indices into `edges`, the first edge first."""
    score = edges["score"]
    measured = score if "exact" not in edges else edges["exact"].fillna(score)
    size = np.abs(measured.to_numpy()).ravel()
    carrying = np.flatnonzero(np.nan_to_num(score.to_numpy().ravel()))
    if not len(carrying):
        raise MnemoError(f"no edge of {edges.fact.item()!r} has a score: there is nothing to rank")
    orders = {("score", 0): carrying[np.argsort(-size[carrying], kind="stable")]}
    draw = np.random.default_rng(seed)
    orders |= {("random", i): draw.permutation(carrying) for i in range(draws)}
    if trace is not None:
        orders["paths", 0] = _needed_by_paths(model, score, trace)
    return orders


def _needed_by_paths(model: Model, score: xr.DataArray, trace: Trace) -> Int[np.ndarray, " edge"]:
    place = [{label: i for i, label in enumerate(score[dim].values.tolist())} for dim in score.dims]
    found: dict[int, None] = {}
    for path in trace.paths:
        for edge in path_edges(model, path):
            where = [of[label] for of, label in zip(place, (edge.writer, edge.reader, edge.position), strict=True)]
            found[int(np.ravel_multi_index(where, score.shape))] = None
    return np.array(list(found))


def _counts(most: int) -> list[int]:
    steps = {step * 2**i for i in range(most.bit_length()) for step in (1, 3)}
    return sorted({*(k for k in steps if k <= most), most})


def _absent(
    edges: xr.Dataset, ranked: Int[np.ndarray, " edge"], counts: Sequence[int], *, removed: bool
) -> Bool[Tensor, "run writer reader position"]:
    """Return which edges are out in each run: all but the first k, or the first k alone."""
    out = np.full((len(counts), edges["score"].size), not removed)
    for row, k in zip(out, counts, strict=True):
        row[ranked[:k]] = removed
    return torch.from_numpy(out.reshape(len(counts), *edges["score"].shape))


@dataclass(frozen=True)
class _Runner:
    """Runs circuits on one contrast.

    Attributes:
        corrupt: the corrupt run, from which edges that are out take their values.
        ends: the metric of the clean and of the corrupt run.
    """

    model: Model
    contrast: Contrast
    metric_fn: MetricFn
    corrupt: Recording
    ends: tuple[float, float]

    @classmethod
    def of(cls, model: Model, contrast: Contrast, metric_fn: MetricFn) -> _Runner:
        names = list(dict.fromkeys([*writer_hooks(model), *input_hooks(model)]))
        runs = [
            record(
                model, torch.tensor([prompt.tokens], device=model.device), names=names, contrasts=[contrast],
                metric_fn=metric_fn,
            )[0]
            for prompt in (contrast.clean, contrast.corrupt)
        ]  # fmt: skip
        check_readers(model, runs[1])
        clean, corrupt = (float(run.metric) for run in runs)
        if clean == corrupt:
            raise MnemoError(f"{contrast.fact.fact_id}: clean and corrupt prompt give the same metric: nothing to keep")
        return cls(model, contrast, metric_fn, runs[1], (clean, corrupt))

    def share(self, values: Float[np.ndarray, " run"]) -> Float[np.ndarray, " run"]:
        clean, corrupt = self.ends
        return (values - corrupt) / (clean - corrupt)

    def metrics(self, absent: Bool[Tensor, "run writer reader position"]) -> Float[np.ndarray, " run"]:
        """Return the metric of each circuit, in logits."""
        per_run = len(writers(self.model)) * len(self.contrast.clean) * self.model.d_model
        return np.concatenate([self._run(some) for some in absent.split(max(1, VALUES_PER_BATCH // per_run))])

    @torch.no_grad()
    def _run(self, absent: Bool[Tensor, "run writer reader position"]) -> Float[np.ndarray, " run"]:
        circuit = _Circuit.begin(self.model, self.corrupt, absent[..., -len(self.contrast.clean) :])
        tokens = torch.tensor([self.contrast.clean.tokens] * len(absent), device=self.model.device)
        logits = self.model.bridge.run_with_hooks(tokens, fwd_hooks=circuit.hooks())
        found = checked_metric(self.metric_fn, logits[:, -1:], contrasts=[self.contrast] * len(absent))
        return found.double().cpu().numpy()


@dataclass(frozen=True, repr=False)  # transformer-lens writes out every hook, and with it what the hook is bound to
class _Circuit:
    """A batch of circuits while the model runs.

    Attributes:
        corrupt: the corrupt run, once for each circuit.
        now: what has been written so far; as in the corrupt run where nothing was yet, so that it does not differ.
        absent: which edges are out.
    """

    model: Model
    corrupt: Recording
    now: Recording
    absent: Float[Tensor, "run writer reader position"]

    @classmethod
    def begin(cls, model: Model, corrupt: Recording, absent: Bool[Tensor, "run writer reader position"]) -> _Circuit:
        def copies(value: Tensor) -> Tensor:
            return value.expand(len(absent), *value.shape[1:])

        values = {name: copies(corrupt.values[name]) for name in writer_hooks(model)}
        there = Recording(copies(corrupt.tokens), values, copies(corrupt.logits), copies(corrupt.metric))
        return cls(model, there, replace(there, values=dict(values)), absent.to(model.device, model.dtype))

    def hooks(self) -> list[Hook]:
        """Return what keeps the writers' values and shows each reader what it may see, in the order of the model."""
        streams = [stream_hook(self.model, layer) for layer in range(self.model.n_layers)]
        streams += [mlp_stream_hook(self.model, layer) for layer in range(self.model.n_layers)]
        kept = dict.fromkeys([*writer_hooks(self.model), *streams])
        found: list[Hook] = [(name, partial(self._keep, name=name)) for name in kept]
        for layer in range(self.model.n_layers):
            found += [
                (f"blocks.{layer}.attn.hook_{kind}", partial(self._attend, kind=kind, layer=layer)) for kind in "qkv"
            ]
            found.append((f"blocks.{layer}.mlp.hook_in", partial(self._think, layer=layer)))
        return [*found, (stream_hook(self.model, self.model.n_layers), self._answer)]

    def _keep(self, value: Tensor, hook: Any, *, name: str) -> None:
        self.now.values[name] = value

    def _attend(self, value: Tensor, hook: Any, *, kind: str, layer: int) -> Tensor:
        out = self._out(kind, layer, readers_at(self.model, layer, kind=kind))
        if out is None:
            return value
        stream = self.now.values[stream_hook(self.model, layer)][:, :, None] - out
        each = project(self.model, kind, layer=layer, stream=stream)  # run position reader head e
        # (A head is its own reader.)
        return torch.diagonal(each, dim1=2, dim2=3).movedim(-1, 2).reshape(value.shape)

    def _think(self, value: Tensor, hook: Any, *, layer: int) -> Tensor:
        out = self._out("mlp", layer, readers_at(self.model, layer, kind="mlp"))
        if out is None:
            return value
        stream = self.now.values[mlp_stream_hook(self.model, layer)] - out[:, :, 0]
        return normalise(self.model, "mlp", layer=layer, stream=stream).reshape(value.shape)

    def _answer(self, value: Tensor, hook: Any) -> Tensor:
        out = self._out("logits", -1, slice(len(readers(self.model)) - 1, None))
        return value if out is None else value - out[:, :, 0]

    def _out(self, kind: str, layer: int, where: slice) -> Float[Tensor, "run position reader d"] | None:
        """What readers must not see of this run: its difference from the corrupt one, over the edges that are out."""
        some = slice(0, seen_by(self.model, kind, layer=layer))
        absent = self.absent[:, some, where]
        if not absent.any():
            return None
        change = differences(self.model, self.corrupt, other=self.now, some=some)
        return torch.einsum("bpwd,bwrp->bprd", change, absent)
