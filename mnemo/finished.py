"""A finished run as a study again: its verdicts and its waypoint from the files, the model from where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mnemo.concepts import Reading
from mnemo.contrasts import Contrast, make_contrasts
from mnemo.errors import InputError, MnemoError
from mnemo.facts import FactSet, Task
from mnemo.model import Model, load_for
from mnemo.patching import Site, read_stream
from mnemo.prompts import Prompt, render
from mnemo.recorded import Recorded, check_key, inputs_of, read_verdicts
from mnemo.study import COLUMNS, Study
from mnemo.tables import read_csv
from mnemo.textfiles import is_folder, read_json, read_text
from mnemo.tokens import shown
from mnemo.waypoints import CANDIDATE_COLUMNS, Waypoint

_KINDS = ("extract", "benchmark")  # runs that judge facts
_TEXTS = (
    *("fact_id", "cue", "answer", "predicted", "verdict", "concept", "top_path"),
    *("evoked", "evoked_answer", "runner_up", "invented", "edit_concept"),
)
_PLACE = ["layer", "position"]
_MOST_BYTES = 2**20  # of sites.csv, which has a row of a hundred bytes for each of some dozen sites


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
    if recorded.kind not in _KINDS:
        problem = f"{shown(recorded.kind)} judged no facts: give the folder that {' or '.join(_KINDS)} wrote"
        raise InputError(problem, file=file, column="kind")
    place = (model.source or model.name) if isinstance(model, Model) else model
    given = {"task": task, "model": place, "facts": facts}
    read, source, chosen = inputs_of(recorded.source, given, file=file)
    there = model if isinstance(model, Model) else source
    loaded = load_for(read, there, device=device, dtype=dtype or recorded.dtype)
    if changed := recorded.changed(read, loaded, facts=chosen):
        raise MnemoError(f"{folder} is no run of these inputs: {changed}")
    table = _verdicts(folder / "verdicts.parquet", chosen)
    recalled = chosen.subset(table.loc[table["recalled"], "fact_id"]) if table["recalled"].any() else None
    prompts = [render(read.recall, fact.cue, tokenizer=loaded.tokens) for fact in recalled or ()]
    waypoint = _waypoint(folder / "sites.csv", loaded, prompts) if prompts else None
    _check_places(table, waypoint, prompts, folder / "verdicts.parquet")
    contrasts = {} if recalled is None else _contrasts(read, recalled, loaded, seed=recorded.seed)
    readings = {} if waypoint is None else _readings(table)
    record = {name: value for name, value in read_json(file).items() if name != "notes"}
    return Study(read, loaded, table, contrasts, None, waypoint, readings, recorded.notes, record)


def _verdicts(file: Path, facts: FactSet) -> pd.DataFrame:
    """The table of a run about these facts; a column of numbers is one even where all are missing."""
    table = read_verdicts(file, most=len(facts))
    if missing := [column for column in (*COLUMNS, *_runner_up(table)) if column not in table]:
        raise InputError("there is no such column: run extract again", file=file, column=missing[0])
    for column in ("fact_id", "cue", "answer"):
        if list(table[column]) != [getattr(fact, column) for fact in facts]:
            raise InputError("holds other facts than its run was about: run extract again", file=file, column=column)
    if not pd.api.types.is_bool_dtype(table["recalled"]):
        raise InputError("expected true and false alone: run extract again", file=file, column="recalled")
    for column, kind in _kinds(table, facts).items():
        missing = bool(table[column].isna().all())
        if kind == "texts":
            right = table[column].dropna().map(lambda value: isinstance(value, str)).all()
        else:
            right = missing or pd.api.types.is_numeric_dtype(table[column])
        if not right:
            raise InputError(f"expected {kind}: run extract again", file=file, column=column)
        if missing and kind == "numbers":
            table[column] = float("nan")
    return table


def _kinds(table: pd.DataFrame, facts: FactSet) -> dict[str, str]:
    """Say what each column holds: some of ours texts, those of the facts file what stands there, the others numbers."""
    names = {name for fact in facts for name in fact.extra}
    given = {tuple(fact.extra.get(name) for fact in facts) for name in names}

    def is_text(column: str) -> bool:
        return column in _TEXTS or tuple(None if pd.isna(value) else value for value in table[column]) in given

    return {str(column): "texts" if is_text(str(column)) else "numbers" for column in table}


def _runner_up(table: pd.DataFrame) -> tuple[str, ...]:
    """Columns that stand in a table both or neither."""
    pair = ("runner_up", "runner_up_score")
    return pair if any(column in table for column in pair) else ()


def _contrasts(task: Task, recalled: FactSet, model: Model, *, seed: int) -> dict[str, Contrast]:
    try:
        return make_contrasts(task, recalled, tokenizer=model.tokens, seed=seed)
    except MnemoError:  # no two can be compared, as a note of the run says
        return {}


def _waypoint(file: Path, model: Model, prompts: Sequence[Prompt]) -> Waypoint | None:
    """The waypoint that sites.csv names, with the states of the recalled facts; None where there is no such file."""
    if not file.exists():
        return None
    candidates = _candidates(file)
    low, high = np.array([1, -min(len(prompt) for prompt in prompts)]), np.array([model.n_layers - 1, -1])
    places = candidates[_PLACE].to_numpy(dtype=float)
    wrong = ~((places == np.floor(places)) & (low <= places) & (places <= high)).all(axis=0)
    for i in np.flatnonzero(wrong):
        problem = f"expected whole numbers from {low[i]} to {high[i]}: run extract again"
        raise InputError(problem, file=file, column=_PLACE[i])
    candidates = candidates.astype(dict.fromkeys(_PLACE, int))
    check_key(candidates, _PLACE, file=file)
    chosen = candidates.loc[candidates["chosen"], _PLACE].to_numpy()
    if len(chosen) != 1:
        raise InputError(f"{len(chosen)} sites are chosen, expected one: run extract again", file=file, column="chosen")
    site = Site(*chosen[0].tolist())
    return Waypoint(site, candidates, read_stream(model, prompts, positions=[site.position])[:, site.layer, 0])


def _candidates(file: Path) -> pd.DataFrame:
    """The rows of sites.csv, with numbers where numbers belong."""
    read_text(file, most=_MOST_BYTES)  # which refuses what is none
    try:
        candidates = read_csv(file)
    except ValueError as error:  # pandas' errors are of this kind
        raise InputError(f"cannot be read as a table ({' '.join(str(error).split())[:80]})", file=file) from None
    for column in (*CANDIDATE_COLUMNS, "chosen"):
        if column not in candidates:
            raise InputError("there is no such column: run extract again", file=file, column=column)
    for column in CANDIDATE_COLUMNS:
        try:
            candidates[column] = pd.to_numeric(candidates[column])
        except (ValueError, TypeError, OverflowError):
            raise InputError("expected numbers: run extract again", file=file, column=column) from None
    return candidates.assign(chosen=candidates["chosen"].astype(str) == "True")


def _check_places(table: pd.DataFrame, waypoint: Waypoint | None, prompts: Sequence[Prompt], file: Path) -> None:
    """Refuse a table that says of its facts that they were read elsewhere than at the waypoint."""
    expected = np.full((len(table), 2), np.nan)
    if waypoint is not None:
        layer, position = waypoint.site.layer, waypoint.site.position
        expected[table["recalled"]] = [(layer, len(prompt) + position) for prompt in prompts]
    for column, places in zip(_PLACE, expected.T, strict=True):
        if not np.array_equal(table[column].to_numpy(dtype=float), places, equal_nan=True):
            problem = "does not agree with the site that sites.csv names, if there is one: run extract again"
            raise InputError(problem, file=file, column=column)
    layers = [] if waypoint is None else [site.layer for site in (waypoint.site, *waypoint.later)]
    if "tested_layer" in table and not table["tested_layer"].dropna().isin(layers).all():
        problem = f"expected one of {layers}, the layers of sites.csv in which facts are tested: run extract again"
        raise InputError(problem, file=file, column="tested_layer")


def _readings(table: pd.DataFrame) -> dict[str, list[Reading]]:
    """The best two readings of each recalled fact; what they consist of was not recorded.

    (A concept that the model named may not have been read at all, or less clearly than the other one.)
    """
    pairs = (("concept", "concept_score"), ("runner_up", "runner_up_score"))
    return {
        row["fact_id"]: sorted(
            (
                Reading(row[phrase], (), float("nan"), float(row[ratio]))
                for phrase, ratio in pairs
                if isinstance(row.get(phrase), str) and not pd.isna(row[ratio])
            ),
            key=lambda reading: -reading.ratio,
        )
        for _, row in table[table["recalled"]].iterrows()
    }
