"""Figures of steering against guidance. Each takes `ax=` and returns the axes it drew on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnemo.intervals import grouped_interval
from mnemo.plot import CONTROL, EFFECT, NECESSARY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHODS = {
    "steering": (EFFECT, "o", "-"),
    "guidance": (NECESSARY, "s", "--"),
    "random": (CONTROL, "x", ":"),
}  # colour, marker, line


def tradeoff(matched: pd.DataFrame, measure: str, *, label: str, ax: Axes | None = None) -> Axes:
    """Draw what each method brings at each distance from the plain model, with 95% intervals over concepts.

    Args:
        matched: `at_divergence` of every concept, with the columns ``method`` and ``concept``.
        measure: the column to draw.
        label: what it is, with its unit.
        ax: where to draw.
    """
    ax = ax or _axes(4.6, 3.2)
    for method, rows in matched.dropna(subset=[measure]).groupby("method"):
        _curve(ax, str(method), rows, x="divergence", y=measure, groups="concept")
    ax.set_xscale("log")
    ax.set_xlabel("KL(pushed || plain), nats per token")
    ax.set_ylabel(label)
    ax.legend(frameon=False, fontsize=8)
    return ax


def facts_by_kind(facts: pd.DataFrame, kind: str, *, measure: str, label: str, ax: Axes | None = None) -> Axes:
    """Draw what every method does to the facts of one kind as the dose grows, with 95% intervals over concepts.

    Args:
        facts: as `steer_facts` gives it, with the columns ``kind`` and ``concept``.
        kind: which facts.
        measure: the column to draw.
        label: what it is, with its unit.
        ax: where to draw.
    """
    ax = ax or _axes(3.0, 2.8)
    for method, rows in facts[facts["kind"] == kind].groupby("method"):
        _curve(ax, str(method), rows, x="dose", y=measure, groups="concept")
    ax.set_xscale("log", base=2)
    ax.set_title(kind, fontsize=10)
    ax.set_xlabel("dose (multiples of the vector, or weight)")
    ax.set_ylabel(label)
    return ax


def _axes(width: float, height: float) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _curve(ax: Axes, method: str, rows: pd.DataFrame, *, x: str, y: str, groups: str) -> None:
    colour, marker, line = _METHODS[method]
    points = [
        (at, grouped_interval(some[y].to_numpy(float), some[groups].to_numpy(), seed=0)) for at, some in rows.groupby(x)
    ]
    at = [float(str(place)) for place, _ in points]
    mean, low, high = (np.array([found[k] for _, found in points], dtype=float) for k in ("value", "low", "high"))
    ax.plot(at, mean, color=colour, marker=marker, linestyle=line, markersize=4, label=method)
    ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.spines[["top", "right"]].set_visible(False)
