"""Many extractions over processes or machines: models x tasks x seeds x checkpoints, on dask.distributed.

plan (what is to be run)  ->  work (one run, on a worker)  ->  dispatch (all runs, from here)  ->  results (one table)
"""

from mnemo.cluster.dispatch import run_sweep
from mnemo.cluster.plan import Run, Sweep, plan_runs

__all__ = ["Run", "Sweep", "plan_runs", "run_sweep"]
