"""Repeat a run from what it wrote, and say where the two differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mnemo.errors import InputError, MnemoError
from mnemo.extraction import extract
from mnemo.facts import Task
from mnemo.model import load_for
from mnemo.recorded import Recorded, Source, check_key, inputs_of, read_verdicts, row_name
from mnemo.records import package_versions
from mnemo.study import Study
from mnemo.textfiles import check_place, is_folder, read_json
from mnemo.tokens import shown
from mnemo.traces import Trace
from mnemo.tracing import trace

# Another batch size, chunk, number of threads or processor adds floats in another order: beyond this they differ.
ABSOLUTE, RELATIVE = 1e-4, 1e-3
NAMED = 10  # differences that are named, of as many as there are
_NODE, _EDGE = ["component", "position"], ["writer", "reader", "slot", "source", "position"]  # a row of a trace


@dataclass(frozen=True)
class Rerun:
    """How a repeated run compares with the first.

    Attributes:
        same: whether it came out the same, floats within ABSOLUTE + RELATIVE * value.
        lines: what was compared and, where they differ, the first differences, to be shown to the user.
    """

    same: bool
    lines: tuple[str, ...]


def rerun(
    folder: str | Path,
    *,
    task: str | Path | None = None,
    model: str | Path | None = None,
    facts: str | Path | None = None,
    progress: bool = True,
) -> Rerun:
    """Repeat a run with the task, model, facts, seed and options that it recorded, and compare the results.

    Nothing is written. If the task, the facts, the lexicon or the model are not those of the run any more, that is the
    difference, and nothing is run.

    Args:
        folder: what `extract`, `benchmark`, `trace` or `sweep` wrote.
        task, model, facts: where these lie now, if not where the run recorded. A hub model must be named here: a file
            alone makes nothing be fetched.
        progress: show progress bars.

    Raises:
        MnemoError: the folder holds no run, a damaged one, or one that does not say where its inputs lie.
    """
    folder = Path(folder)
    check_place(folder / "run.json")
    given = {"task": task, "model": model, "facts": facts}
    if (folder / "run.json").is_file():
        return _rerun_study(folder, given, progress=progress)
    if (folder / "graph.json").is_file():
        return _rerun_trace(folder, given)
    if (folder / "sweep.json").is_file():
        runs = sorted(path.parent for path in (folder / "runs").glob("*/run.json"))
        if not runs:
            raise InputError("this sweep has no finished run", file=folder)
        found = {run.name: _rerun_study(run, given, progress=progress) for run in runs}
        lines = tuple(f"{name}: {line}" for name, one in found.items() for line in one.lines)
        return Rerun(all(one.same for one in found.values()), lines)
    what = "holds no run.json, graph.json or sweep.json" if is_folder(folder) else "there is no such folder"
    raise InputError(f"{what}: give the folder that a run wrote", file=folder)


def _rerun_study(folder: Path, given: dict[str, str | Path | None], *, progress: bool) -> Rerun:
    file = folder / "run.json"
    recorded = Recorded.read(file)
    before = read_verdicts(folder / "verdicts.parquet").drop(columns="seconds", errors="ignore")
    known = _read_metrics(folder / "metrics.json") if recorded.kind == "benchmark" else None
    task, model, facts = inputs_of(recorded.source, given, file=file)
    loaded = load_for(task, model, dtype=recorded.dtype)
    if changed := recorded.changed(task, loaded, facts=facts):
        return Rerun(False, (f"not repeated: {changed}",))
    options: dict[str, Any] = {"seed": recorded.seed, "quick": recorded.quick, "edit": recorded.edit}
    study, metrics = _repeat(recorded.kind, task, model=loaded, facts=facts, progress=progress, **options)
    differences = list(compare(before, study.table.drop(columns="seconds"), key=["fact_id"]))
    if known is not None:
        differences += compare(known, _measured(json.loads(json.dumps(metrics))), key=["metric"])
    return _verdict(f"{len(before)} facts", differences, recorded.versions)


def _repeat(kind: str, task: Task, **options: Any) -> tuple[Study, dict[str, Any] | None]:
    if kind == "extract":
        return extract(task, **options), None
    if kind == "benchmark":
        from mnemo.scoring import benchmark

        return benchmark(task, **options)
    raise MnemoError(f"a run of kind {shown(kind)} cannot be repeated: known are extract, benchmark, trace, sweep")


def _rerun_trace(folder: Path, given: dict[str, str | Path | None]) -> Rerun:
    before = Trace.read(folder)
    tables = [(before.nodes, _NODE), (before.edges, _EDGE), (before.path_table().drop(columns="rank"), ["path"])]
    for table, key in tables:
        check_key(table, key, file=folder / "graph.json")
    task, model, facts = inputs_of(Source.model_validate(before.source), given, file=folder / "graph.json")
    loaded = load_for(task, model, dtype=before.dtype)
    if loaded.fingerprint != before.fingerprint:
        then, now = before.fingerprint[:8], loaded.fingerprint[:8]
        return Rerun(False, (f"not repeated: changed since the run: model (hash {then} then, {now} now)",))
    top = max(1, len(before.paths))
    again = trace(task, facts[before.fact_id], contrast=before.contrast_cue, model=loaded, top=top, seed=before.seed)
    said = [
        f"{name}: {getattr(before, name)!r} then, {getattr(again, name)!r} now"
        for name in ("cue", "answer", "prompt", "corrupt_prompt", "predicted")
        if getattr(before, name) != getattr(again, name)
    ]
    found = again.nodes, again.edges, again.path_table().drop(columns="rank")
    for (table, key), now in zip(tables, found, strict=True):
        said += compare(table, now, key=key)
    return _verdict(f"{len(before.paths)} paths", said, before.versions)


def _read_metrics(file: Path) -> pd.DataFrame:
    table = _measured(read_json(file))
    check_key(table, ["metric"], file=file)
    return table


def _measured(metrics: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(_leaves(metrics), columns=["metric", "value"])


def _verdict(what: str, differences: Sequence[str], versions: dict[str, str | None]) -> Rerun:
    now = package_versions()
    moved = [f"{name} {old} then, {now.get(name)} now" for name, old in versions.items() if now.get(name) != old]
    lines = [f"other versions: {', '.join(moved)}"] if moved else []
    if not differences:
        return Rerun(True, (*lines, f"the same: {what}, numbers within {ABSOLUTE:g} + {RELATIVE:g} of their size"))
    more = [f"... and {len(differences) - NAMED} more"] if len(differences) > NAMED else []
    return Rerun(False, (*lines, f"{len(differences)} differences:", *differences[:NAMED], *more))


def compare(before: pd.DataFrame, after: pd.DataFrame, *, key: list[str]) -> Iterator[str]:
    """Yield where two tables differ, a line for each value; rows are matched by `key`, in any order.

    Numbers differ where they are further apart than ABSOLUTE + RELATIVE times the first.
    """
    for column in before.columns.symmetric_difference(after.columns, sort=False):
        yield f"column {column!r} is there only {'then' if column in before else 'now'}"
    before, after = (table.set_index(key).sort_index() for table in (before, after))
    for row in before.index.symmetric_difference(after.index):
        yield f"row {row_name(row)} is there only {'then' if row in before.index else 'now'}"
    rows = before.index.intersection(after.index)
    before, after = before.loc[rows], after.loc[rows]
    for column in before.columns.intersection(after.columns):
        old, new = before[column], after[column]
        for i in np.flatnonzero(~_alike(old, new)):
            yield f"{row_name(rows[i])}, {column}: {old.iloc[i]} then, {new.iloc[i]} now"


def _alike(old: pd.Series, new: pd.Series) -> np.ndarray:
    missing = old.isna().to_numpy() & new.isna().to_numpy()
    try:
        numbers = [column.to_numpy(dtype=float, na_value=np.nan) for column in (old, new)]
    except (ValueError, TypeError):
        return missing | (old.astype(object) == new.astype(object)).to_numpy(dtype=bool, na_value=False)
    return missing | np.isclose(numbers[1], numbers[0], rtol=RELATIVE, atol=ABSOLUTE)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and texts of nested dictionaries and lists, by their place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
