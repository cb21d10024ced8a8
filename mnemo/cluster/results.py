"""One table of all verdicts and one of all runs, put together from the folders of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mnemo.cluster.manifest import RUNS
from mnemo.cluster.plan import Run
from mnemo.cluster.work import Outcome
from mnemo.files import replacing
from mnemo.study import COLUMNS
from mnemo.tables import write_csv

VERDICTS, TABLE = "verdicts.parquet", "runs.csv"
_TEXT = ("fact_id", "cue", "answer", "predicted", "verdict", "concept", "top_path", "invented")
_KINDS = {name: pa.string() for name in _TEXT} | {"recalled": pa.bool_(), "layer": pa.int64(), "position": pa.int64()}
_RUN = {"run": pa.string(), "task": pa.string(), "model": pa.string(), "checkpoint": pa.string(), "seed": pa.int64()}
SCHEMA = pa.schema({**_RUN, **{name: _KINDS.get(name, pa.float64()) for name in (*COLUMNS, "invented")}})


def write_results(runs: Sequence[Run], outcomes: Sequence[Outcome], *, out: Path) -> pd.DataFrame:
    """Write verdicts.parquet (one run in memory at a time) and runs.csv; returns what is in the latter.

    Raises:
        InputError: they cannot be written.
    """
    ended = {outcome.name: outcome for outcome in outcomes}
    done = [run for run in runs if ended[run.name].error is None]
    with replacing(out / VERDICTS) as draft, pq.ParquetWriter(draft, SCHEMA) as writer:
        for run in done:
            writer.write_table(_verdicts(run, out))
    table = pd.DataFrame([{**run.about(), **asdict(ended[run.name])} for run in runs]).drop(columns=["model_files"])
    write_csv(table, out / TABLE)
    return table


def _verdicts(run: Run, out: Path) -> pa.Table:
    table = pq.read_table(out / RUNS / run.name / VERDICTS)
    about = {"run": run.name, "task": run.task, "model": run.model, "checkpoint": run.checkpoint, "seed": run.seed}
    columns = [pa.array([about[name]] * table.num_rows, SCHEMA.field(name).type) for name in _RUN]
    columns += [table.column(name).cast(SCHEMA.field(name).type) for name in SCHEMA.names[len(_RUN) :]]
    return pa.table(columns, schema=SCHEMA)
