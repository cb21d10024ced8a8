"""What there is to be seen of one fact at the waypoint: every reader, the strongest messages, every intervention."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mnemo.concept_readers import compare_readers
from mnemo.doses import dose_curves, title_of, write_doses
from mnemo.errors import InputError, MnemoError
from mnemo.files import write_text
from mnemo.messages import messages_beside_state
from mnemo.tables import write_csv

if TYPE_CHECKING:
    from mnemo.study import Study

FILES = ("readings.csv", "messages.csv", "doses.csv", "doses.png", "evidence.json")


@dataclass(frozen=True)
class FactEvidence:
    """The evidence of one fact.

    Attributes:
        study: where the fact was judged.
        fact_id: the fact.
        tables: ``readings`` (`mnemo.concept_readers.compare_readers`), ``messages``
            (`mnemo.messages.messages_beside_state`) and ``doses`` (`mnemo.doses.dose_curves`), those that could be
            made.
        notes: why the others could not.
    """

    study: Study
    fact_id: str
    tables: dict[str, pd.DataFrame]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, study: Study, fact_id: str, *, seed: int | None = None) -> FactEvidence:
        """Collect it; what cannot be had costs nothing but itself.

        Args:
            study: what `extract` found.
            fact_id: the fact.
            seed: draws targets, random directions and the facts that readings are compared with; None for that of
                the study.

        Raises:
            MnemoError: no such fact.
        """
        study[fact_id]  # an unknown id is refused in its own words
        seed = int(study.record["seed"]) if seed is None else seed
        makers: dict[str, Callable[..., pd.DataFrame]] = {
            "readings": compare_readers,
            "messages": lambda study, fact_id, *, seed: messages_beside_state(study, [fact_id], seed=seed),
            "doses": dose_curves,
        }
        tables, faults = {}, {}
        for name, make in makers.items():
            try:
                tables[name] = make(study, fact_id, seed=seed)
            except MnemoError as error:
                faults.setdefault(str(error), []).append(name)
        notes = tuple(f"no {' or '.join(names)}: {fault}" for fault, names in faults.items())
        return cls(study, fact_id, tables, notes)

    def write(self, folder: str | Path) -> None:
        """Write a .csv for each table, doses.png and evidence.json, which says where the fact was looked at.

        Files of that name that an earlier fact left there go.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        remove_evidence(folder)
        for name, table in self.tables.items():
            if name != "doses":
                write_csv(table, folder / f"{name}.csv")
        row, waypoint = self.study[self.fact_id], self.study.waypoint
        if "doses" in self.tables:
            write_doses(self.tables["doses"], folder, title=title_of(row))
        site = waypoint and {"layer": waypoint.site.layer, "position": waypoint.site.position}
        said = {"fact_id": self.fact_id, "site": site, "notes": self.notes, "run": self.study.record}
        write_text(folder / "evidence.json", json.dumps(said, indent=2) + "\n")


def remove_evidence(folder: Path) -> None:
    """Remove the evidence of an earlier fact from a folder.

    Raises:
        InputError: the folder cannot be written.
    """
    for name in FILES:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror or error})", file=folder / name) from None
