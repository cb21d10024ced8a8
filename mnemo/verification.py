"""Estimates propose, exact patching decides: the strongest edges, confirmed within a budget of forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from mnemo.edge_patching import exact_edges
from mnemo.errors import MnemoError
from mnemo.patching import metric

if TYPE_CHECKING:
    from mnemo.activations import MetricFn
    from mnemo.contrasts import Contrast
    from mnemo.model import Model


def verify(
    model: Model,
    contrasts: Sequence[Contrast],
    *,
    edges: xr.Dataset,
    top: int = 20,
    budget: int = 150,
    metric_fn: MetricFn = metric,
) -> xr.Dataset:
    """Patch each fact's most promising edges exactly.

    Candidates are those with the largest ``reach``, where `edges` has it (method ``attention_corrected``: an edge whose
    estimates cancel is not missed), otherwise with the largest absolute ``score``.

    Args:
        model: the model.
        contrasts: those that `edges` was made from.
        edges: what `attribute_edges` returned; its direction is used.
        top: how many edges are wanted of each fact.
        budget: forward passes for each fact, one for each candidate.
        metric_fn: the one that `edges` was made with.

    Returns:
        `edges` with the variable ``exact``, NaN where nothing was patched, and ``confirmed``, True for the `top` edges
        of each fact with the largest absolute exact effect. The attribute ``forwards`` counts the runs.

    Raises:
        MnemoError: a budget below `top`, or `edges` of other facts.
    """
    if not 1 <= top <= budget:
        raise MnemoError(
            f"top={top} with budget={budget}: each candidate takes a forward pass, so give budget >= top >= 1"
        )
    names = [c.fact.fact_id for c in contrasts]
    if list(edges.fact.values) != names:
        raise MnemoError("edges are of other facts than the contrasts: give those that they were made from")
    promise = np.abs(edges["reach" if "reach" in edges else "score"].values)
    only = edges["score"].copy(data=_largest(promise, budget))
    exact = exact_edges(model, contrasts, only=only, direction=edges.attrs["direction"], metric_fn=metric_fn)
    found = np.where(only.values, exact["score"].values, np.nan)
    confirmed = _largest(np.abs(found), top)
    added = {"exact": edges["score"].copy(data=found), "confirmed": edges["score"].copy(data=confirmed)}
    return edges.assign(added).assign_attrs(forwards=exact.attrs["forwards"], budget=budget)


def top_edges(edges: xr.Dataset, k: int = 20) -> pd.DataFrame:
    """List the k strongest edges of each fact, by their exact effect where `verify` was run, otherwise by the score.

    Returns:
        a row for each edge, strongest first within each fact: ``fact``, ``writer``, ``reader``, ``position``, ``score``
        and, where there is one, ``exact`` (all in logits).
    """
    by = "exact" if "exact" in edges else "score"
    mask = _largest(np.abs(edges[by].values), k)
    where = np.nonzero(mask)
    table = pd.DataFrame({dim: edges[dim].values[axis] for dim, axis in zip(edges[by].dims, where, strict=True)})
    for name in ("score", "exact"):
        if name in edges:
            table[name] = edges[name].values[where]
    order = np.lexsort((-table[by].abs().to_numpy(), where[0]))
    return table.iloc[order].reset_index(drop=True)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Return a mask of the k largest entries of each fact; NaN and what is left out is never among them."""
    flat = np.nan_to_num(values, nan=-1.0).reshape(len(values), -1)
    k = min(k, flat.shape[1])
    chosen = np.argpartition(-flat, k - 1, axis=1)[:, :k]
    mask = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    return (mask & (flat >= 0)).reshape(values.shape)
