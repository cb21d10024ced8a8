"""Intervals over a handful of runs: Student's t, since a bootstrap of five values is too narrow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean over runs with its 95% interval; NaN bounds where one run alone is there."""

    value: float
    low: float
    high: float
    runs: int


def interval(values: Iterable[float]) -> Interval:
    """Return the mean of one value per run; values that are not finite are left out."""
    known = np.array([*values], dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan, 0)
    half = np.nan
    if len(known) > 1:
        half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return Interval(float(known.mean()), float(known.mean() - half), float(known.mean() + half), len(known))


def ratio_interval(above: Iterable[float], below: Iterable[float]) -> Interval:
    """Return the geometric mean over runs of above / below; the interval is that of the logarithm."""
    logs = interval(np.log(np.array([*above], dtype=float) / np.array([*below], dtype=float)).tolist())
    value, low, high = np.exp(logs[:3]).tolist()
    return Interval(value, low, high, logs.runs)
