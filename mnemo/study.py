"""What an extraction found, to be asked about one fact, written to a folder and read back from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from mnemo.concepts import Reading
from mnemo.contrasts import Contrast
from mnemo.errors import MnemoError
from mnemo.facts import Fact, Task
from mnemo.files import replacing, write_text
from mnemo.prompts import Prompt, render
from mnemo.tables import write_csv
from mnemo.waypoints import Waypoint

if TYPE_CHECKING:
    from mnemo.model import Model

COLUMNS = (
    "fact_id", "cue", "answer", "predicted", "recalled", "verdict", "score", "p_value", "q_value", "concept",
    "concept_score", "layer", "position", "swap_success", "swap_control", "ablation_drop", "leakage",
    "mediated_fraction", "top_path", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What `extract` found.

    Attributes:
        task: the task.
        model: the model.
        table: a row for each fact: `COLUMNS`, further evidence, and the columns of the facts file (one named
            like a column of ours as `name_given`).
        contrasts: what each recalled fact is compared with, by fact_id, where there is something of equal length.
        attributions: node scores of the recalled facts that have a contrast; None where none has, or the study was read
            back.
        waypoint: where concepts act, with every candidate tried; None where nothing could be tried.
        readings: phrases read at the waypoint, best first, by fact_id; of a study that was read back the best two.
        notes: what could not be tested, and why.
        record: versions, seed, hashes and command.
    """

    task: Task
    model: Model
    table: pd.DataFrame
    contrasts: dict[str, Contrast]
    attributions: xr.Dataset | None
    waypoint: Waypoint | None
    readings: dict[str, list[Reading]]
    notes: tuple[str, ...]
    record: dict[str, Any] = field(repr=False)

    def __getitem__(self, fact_id: str) -> pd.Series:
        """Return the row of one fact."""
        rows = self.table[self.table["fact_id"] == fact_id]
        if rows.empty:
            raise MnemoError(f"no fact {fact_id!r} in this study; the first ids are {list(self.table['fact_id'][:3])}")
        return rows.iloc[0]

    def fact(self, fact_id: str) -> Fact:
        """Return one fact as it was asked."""
        row = self[fact_id]
        return Fact(fact_id=fact_id, cue=row["cue"], answer=row["answer"])

    def recalled_facts(self, fact_ids: Sequence[str] = ()) -> dict[str, Fact]:
        """Return the recalled facts by fact_id, in the order of the states at the waypoint.

        Args:
            fact_ids: facts that must be among them.

        Raises:
            MnemoError: one of these is unknown or not recalled.
        """
        rows = self.table.loc[self.table["recalled"].astype(bool), ["fact_id", "cue", "answer"]]
        found = {str(i): Fact(fact_id=i, cue=cue, answer=answer) for i, cue, answer in rows.itertuples(index=False)}
        for fact_id in fact_ids:
            self[fact_id]  # an unknown id is refused in its own words
            if fact_id not in found:
                raise MnemoError(f"fact {fact_id!r} is not recalled, so nothing was read of it")
        return found

    def prompt(self, fact_id: str) -> Prompt:
        """Return the recall prompt of one fact."""
        return render(self.task.recall, self[fact_id]["cue"], tokenizer=self.model.tokens)

    def report(self, folder: str | Path, *, truth: pd.DataFrame | None = None) -> None:
        """Write report.html and report.md, one page each that needs no code to be read, and the figures in them.

        Args:
            folder: where to.
            truth: what the facts were trained to be, as `mnemo.scoring.read_truth` gives it, to be shown beside what
                was found; None where nobody knows.
        """
        from mnemo.summary import write_report

        write_report(self, Path(folder), truth=truth)

    def write(self, folder: str | Path, *, truth: pd.DataFrame | None = None, report: bool = True) -> None:
        """Write verdicts.csv, verdicts.parquet, run.json, the report and, if there is a waypoint, sites.csv.

        A sites.csv that an earlier study left there goes, since it says nothing about this one.

        Args:
            folder: where to.
            truth: for the report, as in `report`.
            report: False to leave the report out, whose figures take seconds.
        """
        folder = Path(folder)
        write_csv(self.table, folder / "verdicts.csv")
        with replacing(folder / "verdicts.parquet") as draft:
            self.table.to_parquet(draft, index=False)
        if self.waypoint is None:
            (folder / "sites.csv").unlink(missing_ok=True)
        else:
            write_csv(self.waypoint.candidates, folder / "sites.csv")
        write_text(folder / "run.json", json.dumps({**self.record, "notes": self.notes}, indent=2) + "\n")
        if report:
            self.report(folder, truth=truth)

    @classmethod
    def read(
        cls,
        folder: str | Path,
        *,
        task: str | Path | None = None,
        model: Model | str | Path | None = None,
        facts: str | Path | None = None,
        device: str | None = None,
    ) -> Study:
        """Read back what `extract` or `benchmark` wrote into a folder; nothing is judged again.

        Args:
            folder: the folder.
            task, facts: where these lie now, if not where the run recorded.
            model: a loaded model, or where it lies now. A hub model must be named.
            device: where to compute; None for CUDA where there is one, else the CPU.

        Raises:
            MnemoError: no run, a damaged one, or inputs that are not those of the run, in one line.
        """
        from mnemo.finished import read_study

        return read_study(folder, task=task, model=model, facts=facts, device=device)
