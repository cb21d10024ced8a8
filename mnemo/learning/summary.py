"""The answers in numbers: each effect with its control and its interval over runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mnemo.learning.intervals import Interval, interval, ratio_interval
from mnemo.learning.invention import GUESSES, score_guesses

COLUMNS = ("measure", "how", "batch", "what", "value", "low", "high", "runs")
VERSUS = (("rote", "coincident"), ("impossible", "free"))  # which arm should take longer than which


def summarised(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return a row for each number: `COLUMNS`; bounds are those of a 95% interval over runs.

    Measures: ``steps to recall`` (mean over facts; one fact at a time where batch is 1), ``surprisal before``, ``times
    the steps`` (the ratio of two arms), ``... at equal surprisal`` (the same for facts that were equally surprising
    before: exp of the arm's coefficient in a regression of log steps on arm and surprisal), ``recalled``, ``held out
    recalled`` and ``old kept`` in the end; what `Watch` measures before and after; the shares of `first_gradient`; how
    many cues evoke a concept that fits, and how often each guess names it.
    """
    rows = [*_courses(tables["courses"]), *_curves(tables["curves"]), *_first(tables["first"])]
    rows += _choices(tables["choices"])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(measure: str, what: str, found: Interval, how: str = "", batch: int | str = "") -> dict[str, Any]:
    return {"measure": measure, "how": how, "batch": batch, "what": what, **found._asdict()}


def _courses(courses: pd.DataFrame) -> Iterator[dict[str, Any]]:
    courses = courses.assign(kind=np.where(courses["batch"] > 1, "many", "one"))
    for (how, kind), some in courses.groupby(["how", "kind"], sort=False):
        batch = 1 if kind == "one" else int(some["batch"].max())
        means = some.groupby(["run", "arm"])[["steps_to_recall", "surprisal", "recalled", "old"]].mean().unstack("arm")
        names = (
            ("steps to recall", "steps_to_recall"), ("surprisal before", "surprisal"), ("recalled", "recalled"),
            ("old kept", "old"),
        )  # fmt: skip
        for measure, column in names:
            for arm in means[column]:
                yield _row(measure, str(arm), interval(means[column][arm]), str(how), batch)
        for slow, fast in VERSUS:
            if not {slow, fast} <= set(some["arm"]):
                continue
            steps, pair = means["steps_to_recall"], f"{slow} / {fast}"
            yield _row("times the steps", pair, ratio_interval(steps[slow], steps[fast]), str(how), batch)
            equal = [_at_equal_surprisal(one, slow, fast) for _, one in some.groupby("run")]
            equal = ratio_interval(np.exp(equal).tolist(), [1.0] * len(equal))
            yield _row("times the steps at equal surprisal", pair, equal, str(how), batch)


def _at_equal_surprisal(courses: pd.DataFrame, slow: str, fast: str) -> float:
    both = courses[courses["arm"].isin([slow, fast])]
    inputs = np.column_stack([np.ones(len(both)), both["arm"] == slow, both["surprisal"]]).astype(float)
    return float(np.linalg.lstsq(inputs, np.log(both["steps_to_recall"].clip(lower=1)), rcond=None)[0][1])


def _curves(curves: pd.DataFrame) -> Iterator[dict[str, Any]]:
    ends = (("before", curves["step"].min()), ("after", curves["step"].max()))
    watched = (
        "swap_success", "swap_control", "mediated_fraction", "ablation_drop", "concept_path", "control_path", "total",
        "fitting", "fitting_null",
    )  # fmt: skip
    for (how, arm), some in curves.groupby(["how", "arm"], sort=False):
        yield _row("held out recalled", str(arm), interval(some.loc[some["step"] == ends[1][1], "held"]), str(how))
        for name in watched:
            for when, step in ends:
                values = some.loc[some["step"] == step].get(name)
                if values is not None and values.notna().any():
                    yield _row(f"{name} {when}", str(arm), interval(values), str(how))


def _first(first: pd.DataFrame) -> Iterator[dict[str, Any]]:
    if first.empty:
        return
    for (step, arm), some in first.groupby(["step", "arm"], sort=False):
        for share in ("concept", "first_hop", "second_hop", "control"):
            yield _row(f"first step: {share}", f"{arm}, {step}", interval(some[share]))


def _choices(choices: pd.DataFrame) -> Iterator[dict[str, Any]]:
    if choices.empty:
        return
    scored = [
        score_guesses(one, one[one["chosen"]].set_index("fact_id")["concept"]) for _, one in choices.groupby("run")
    ]
    scores = pd.concat(scored)
    for guess in GUESSES:
        mine = scores[scores["guess"] == guess]
        yield _row("guess right", guess, interval(mine["right"]))
    yield _row("guess right", "chance", interval(scores[scores["guess"] == GUESSES[0]]["chance"]))
    yield _row("facts with a choice", "", interval(scores[scores["guess"] == GUESSES[0]]["facts"]))


SHOWN = ("steps to recall", "times the steps", "times the steps at equal surprisal", "held out recalled", "old kept")


def print_learned(summary: pd.DataFrame, folder: Path) -> None:
    """Print the numbers that most ask for; summary.csv has all."""
    console = Console()
    listing = Table(title="95% intervals over runs", title_justify="left")
    for column in ("", "taught", "facts at once", "arm", "value", "interval"):
        listing.add_column(column)
    for _, row in summary[summary["measure"].isin(SHOWN)].iterrows():
        bounds = f"{row['low']:.2f} to {row['high']:.2f}" if np.isfinite(row["low"]) else "one run"
        words = (row["measure"], row["how"], row["batch"], row["what"])
        listing.add_row(*(escape(str(word)) for word in words), f"{row['value']:.2f}", bounds)
    console.print(listing)
    console.print(f"written: {escape(str(folder / 'summary.csv'))}, the tables and figures beside it")


def mean_of_runs(curves: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return, for each arm and step, the mean and the 95% interval over runs of some columns.

    Columns of the result: `arm`, `step`, and `name`, `value`, `low`, `high`.
    """
    rows = []
    for (arm, step), some in curves.groupby(["arm", "step"], sort=False):
        for name in columns:
            if name in some and some[name].notna().any():
                rows.append({"arm": arm, "step": step, "name": name, **interval(some[name].tolist())._asdict()})
    return pd.DataFrame(rows, columns=["arm", "step", "name", "value", "low", "high", "runs"])
