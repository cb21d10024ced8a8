"""A mean and how sure it is, where values come in groups that rise and fall together."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

RESAMPLES = 1000


def grouped_interval(values: Float[np.ndarray, " value"], groups: np.ndarray, *, seed: int) -> dict[str, float | None]:
    """Return the mean of the finite values and its 95% percentile interval over resampled groups.

    Args:
        values: what is averaged.
        groups: which group (concept, seed, ...) each value belongs to.
        seed: of the resampling.

    Returns:
        ``value``, ``low`` and ``high``; None where there is none: no finite value, or one group, which says nothing
        about others.
    """
    known = np.isfinite(values)
    if not known.any():
        return {"value": None, "low": None, "high": None}
    by_group = pd.Series(values[known]).groupby(groups[known], sort=False)
    sums, sizes = by_group.sum().to_numpy(), by_group.size().to_numpy()
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return {"value": mean, "low": None, "high": None}
    resampled = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"value": mean, "low": float(resampled.low), "high": float(resampled.high)}
