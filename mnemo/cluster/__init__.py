"""Many extractions over processes or machines: models x tasks x seeds x checkpoints, on dask.distributed.

plan (what is to be run)  ->  work (one run, on a worker)  ->  dispatch (all runs, from here)  ->  results (one table)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnemo.cluster.plan import Run, Sweep, plan_runs

if TYPE_CHECKING:
    from mnemo.cluster.dispatch import run_sweep

__all__ = ["Run", "Sweep", "plan_runs", "run_sweep"]


def __getattr__(name: str) -> Any:
    # Workers lock files with fcntl, which not every system has: what only plans and prints does without.
    if name != "run_sweep":
        raise AttributeError(f"module 'mnemo.cluster' has no attribute {name!r}")
    from mnemo.cluster.dispatch import run_sweep

    return run_sweep
