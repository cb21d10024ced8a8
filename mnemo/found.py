"""What the steps of an extraction have found so far, and the study that this makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from mnemo.concepts import Reading
from mnemo.contrasts import Contrast
from mnemo.facts import Fact, Task
from mnemo.gate import Recalled
from mnemo.study import COLUMNS, Study
from mnemo.tokens import PromptTokenizer
from mnemo.waypoints import Waypoint

if TYPE_CHECKING:
    from mnemo.model import Model


# Evidence that not every run has; where it is missing, no column of the facts file may be taken for it.
OPTIONAL = (
    "tested_layer",
    "dose",
    "edit_concept",
    "edit_share",
    "edit_rival",
    "edit_q",
    "edit_elsewhere",
    "edit_follows",
)


@dataclass(frozen=True)
class Found:
    """What the steps have found so far; what is found by a step that could not be taken stays empty.

    Attributes:
        said: the gate.
        contrasts, attributions: of the recalled facts.
        waypoint: as in `Study`.
        readings: phrases read there of each recalled fact, best first.
        evidence: a row for each recalled fact, with its `fact_id`.
        notes: what could not be tested, and why.
    """

    said: Recalled
    contrasts: Sequence[Contrast] = ()
    attributions: xr.Dataset | None = None
    waypoint: Waypoint | None = None
    readings: Sequence[list[Reading]] = ()
    evidence: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def noting(self, *notes: str) -> Found:
        """Return the same with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def study(self, task: Task, model: Model, *, record: dict[str, Any]) -> Study:
        """Return what was found as a study, of this task and model and with this record."""
        judged = [fact.fact_id for fact, known in zip(self.said.facts, self.said.recalled, strict=True) if known]
        return Study(
            task=task,
            model=model,
            table=self.table(model.tokens),
            contrasts={contrast.fact.fact_id: contrast for contrast in self.contrasts},
            attributions=self.attributions,
            waypoint=self.waypoint,
            readings=dict(zip(judged, self.readings, strict=True)) if self.readings else {},
            notes=self.notes,
            record=record,
        )

    def table(self, tokens: PromptTokenizer) -> pd.DataFrame:
        """Return a row for each fact, with every column that a study has."""
        facts, recalled = self.said.facts, [bool(known) for known in self.said.recalled]
        table = pd.DataFrame(
            {
                "fact_id": [fact.fact_id for fact in facts],
                "cue": [fact.cue for fact in facts],
                "answer": [fact.answer for fact in facts],
                "predicted": [tokens.word(i) for i in self.said.predicted.tolist()],
                "recalled": recalled,
                "recall_probability": self.said.probability.numpy(),
            }
        )
        if self.evidence is not None:
            table = table.merge(self.evidence, on="fact_id", how="left")
        untested = pd.Series(["unsure" if known else "not-recalled" for known in recalled])
        table["verdict"] = table["verdict"].fillna(untested) if "verdict" in table else untested
        for column in COLUMNS:
            if column not in table:
                table[column] = None
        more = [column for column in table if column not in COLUMNS]
        return table[[*COLUMNS, *more]].join(_given(facts, [*table.columns, *OPTIONAL]))


def _given(facts: Sequence[Fact], taken: Sequence[str] | pd.Index) -> pd.DataFrame:
    """The extra columns of the facts file; one named like a column of ours goes on as `name_given`."""
    given = pd.DataFrame([fact.extra for fact in facts])
    names: dict[str, str] = {}
    for column in given:
        name = str(column)
        while name in taken or (name != column and name in given):
            name += "_given"
        names[str(column)] = name
    return given.rename(columns=names)
