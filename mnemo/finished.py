"""A finished run as a study again: its verdicts and its waypoint from the files, the model from where it lies."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mnemo.concepts import Reading
from mnemo.contrasts import Contrast, make_contrasts
from mnemo.errors import InputError, MnemoError
from mnemo.facts import FactSet, Task
from mnemo.model import Model, load_as
from mnemo.patching import Site, read_stream
from mnemo.prompts import render
from mnemo.recorded import Recorded, inputs_of, read_verdicts
from mnemo.study import COLUMNS, Study, load_model
from mnemo.tables import read_csv
from mnemo.textfiles import is_folder, read_json
from mnemo.waypoints import CANDIDATE_COLUMNS, Waypoint


def read_study(
    folder: str | Path,
    *,
    task: str | Path | None = None,
    model: Model | str | Path | None = None,
    facts: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Study:
    """Read back what `extract` or `benchmark` wrote; nothing is judged again.

    The states at the waypoint are read from the model anew, one forward for each recalled fact.

    Args:
        folder: what the run wrote.
        task, facts: where these lie now, if not where the run recorded.
        model: a loaded model, or where it lies now. A hub model must be named: a file alone makes nothing be fetched.
        device, dtype: as for `mnemo.load`, for a model that is not loaded yet; None for the dtype of the run.

    Returns:
        the study. It has no attributions, and of its readings the best two of each fact, as they stand in its table.

    Raises:
        InputError: the folder holds no run or a damaged one.
        MnemoError: task, facts, lexicon or model are not those of the run, by their hashes.
    """
    folder = Path(folder)
    file = folder / "run.json"
    if not file.is_file():
        what = "holds no run.json" if is_folder(folder) else "there is no such folder"
        raise InputError(f"{what}: give the folder that extract or benchmark wrote", file=folder)
    recorded = Recorded.read(file)
    table = _verdicts(folder / "verdicts.parquet")
    place = (model.source or model.name) if isinstance(model, Model) else model
    given = {"task": task, "model": place, "facts": facts}
    read, source, chosen = inputs_of(recorded.source, given, file)
    if isinstance(model, Model):
        loaded = model
    else:
        loaded = load_model(read, load_as(read, source, device=device, dtype=dtype or recorded.dtype))
    if changed := recorded.changed(read, loaded, chosen):
        raise MnemoError(f"{folder} is no run of these inputs: {changed}")
    if list(table["fact_id"]) != [fact.fact_id for fact in chosen]:
        raise InputError(
            "holds other facts than its run was about: run extract again", file=folder / "verdicts.parquet"
        )
    record = read_json(file)
    notes = tuple(map(str, record.pop("notes", ())))
    recalled = chosen.subset(table.loc[table["recalled"], "fact_id"]) if table["recalled"].any() else None
    waypoint = None if recalled is None else _waypoint(folder / "sites.csv", read, loaded, recalled)
    contrasts = {} if recalled is None else _contrasts(read, recalled, loaded, seed=recorded.seed)
    readings = {} if waypoint is None else _readings(table)
    return Study(read, loaded, table, contrasts, None, waypoint, readings, notes, record)


def _verdicts(file: Path) -> pd.DataFrame:
    table = read_verdicts(file)
    for column in COLUMNS:
        if column not in table:
            raise InputError("there is no such column: run extract again", file=file, column=column)
    if not pd.api.types.is_bool_dtype(table["recalled"]):
        raise InputError("expected true and false alone: run extract again", file=file, column="recalled")
    return table


def _contrasts(task: Task, recalled: FactSet, model: Model, *, seed: int) -> dict[str, Contrast]:
    try:
        return make_contrasts(task, recalled, model.tokens, seed=seed)
    except MnemoError:  # no two can be compared, as a note of the run says
        return {}


def _waypoint(file: Path, task: Task, model: Model, recalled: FactSet) -> Waypoint | None:
    """The waypoint that sites.csv names, with the states of the recalled facts; None where there is no such file."""
    if not file.is_file():
        return None
    try:
        candidates = read_csv(file)
    except (OSError, ValueError) as error:  # pandas' errors are of these kinds
        raise InputError(f"cannot be read as a table ({' '.join(str(error).split())[:80]})", file=file) from None
    missing = [column for column in (*CANDIDATE_COLUMNS, "chosen") if column not in candidates]
    if missing:
        raise InputError("there is no such column: run extract again", file=file, column=missing[0])
    candidates["chosen"] = candidates["chosen"].astype(str) == "True"
    chosen = candidates[candidates["chosen"]]
    places = chosen[["layer", "position"]].apply(pd.to_numeric, errors="coerce").to_numpy()
    prompts = [render(task.recall, fact.cue, model.tokens) for fact in recalled]
    shortest = min(len(prompt) for prompt in prompts)
    if len(places) != 1 or not 0 <= places[0][0] <= model.n_layers or not -shortest <= places[0][1] < 0:
        problem = f"no single site of a model of {model.n_layers} blocks is chosen here: run extract again"
        raise InputError(problem, file=file, column="chosen")
    site = Site(*(int(number) for number in places[0]))
    return Waypoint(site, candidates, read_stream(model, prompts, [site.position])[:, site.layer, 0])


def _readings(table: pd.DataFrame) -> dict[str, list[Reading]]:
    """The best two readings of each recalled fact; what they consist of was not recorded."""
    pairs = (("concept", "concept_score"), ("runner_up", "runner_up_score"))
    return {
        row["fact_id"]: [
            Reading(row[phrase], (), float("nan"), float(row[ratio]))
            for phrase, ratio in pairs
            if isinstance(row.get(phrase), str)
        ]
        for _, row in table[table["recalled"]].iterrows()
    }
