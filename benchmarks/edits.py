"""Which facts follow when a concept is taught another answer? By what they were trained to be, beside verdicts.

    python benchmarks/edits.py FOLDER ... --out DIR          # extract with --edit; runs that DIR holds are read
    python benchmarks/edits.py FOLDER ... --out DIR --quick

Swaps need a concept that can be read at the waypoint, and cannot tell concepts with one answer apart. Edits can: of the
concepts that have a fact's answer, which one takes the fact along? A fact is *led* by that concept if it follows its
edits more than those of the next one by over half of the edits, at q < 0.05 (`mnemo.verdict.led_by_edits`); idle and
decoy facts are the controls (their answers are those of concepts that they do not go through; no concept has those of
rote facts), and *elsewhere*: facts led by a concept that has another answer, through which they cannot go.
Where a concept was planted, *right* says how often it is the one; where none was and the model names a concept with the
fact's answer, *named* says how often it is that one, beside chance (one among the concepts with that answer).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import cell, print_table, with_kinds

from mnemo.errors import MnemoError
from mnemo.extraction import extract
from mnemo.invented import THROUGH_A_CONCEPT
from mnemo.study import Study
from mnemo.tables import mean_of_known
from mnemo.verdict import led_by_edits


def by_kind(folder: Path, run: Path, *, quick: bool) -> pd.DataFrame:
    """Return a row for each recalled fact of a study folder, with its `kind` and whether it is `led` by edits."""
    if (run / "run.json").is_file():
        study = Study.read(run, task=folder)
    else:
        study = extract(folder, out=run, edit=True, quick=quick, resume=True, progress=False)
    if "edit_rival" not in study.table:
        raise MnemoError(f"{run}: nothing was edited there: " + "; ".join(study.notes or ["give another --out"]))
    recalled = study.table[study.table["recalled"]]
    return with_kinds(recalled, study, folder).assign(led=led_by_edits)


def rows(name: str, facts: pd.DataFrame) -> Iterator[list[str]]:
    """Return a row of the table for each kind of fact."""
    for kind, some in facts.groupby("kind"):
        groups = some["concept_planted"].where(some["concept_planted"] != "", some["edit_concept"])
        groups = groups.where(groups.notna(), some["fact_id"])
        tested, led = some["edit_rival"].notna(), some["led"]
        through = some["verdict"].isin(THROUGH_A_CONCEPT)
        planted = bool((some["concept_planted"] != "").any())
        right = some["edit_concept"] == (some["concept_planted"] if planted else some["evoked"])
        compared = led if planted else led & (some["evoked_answer"] == some["predicted"])
        chance = mean_of_known(1 / some.loc[compared, "edit_candidates"].to_numpy(float))
        yield [
            name,
            str(kind),
            str(len(some)),
            f"{through.sum()}",
            f"{led.sum()} of {tested.sum()}",
            cell(led.astype(float).where(tested, np.nan), groups),
            f"{int(some['edit_elsewhere'].sum())}",
            f"{'right' if planted else 'named'} {cell(right.astype(float).where(compared, np.nan), groups)}",
            "-" if chance is None else f"{chance:.2f}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", metavar="FOLDER", help="study folders")
    parser.add_argument("--out", type=Path, required=True, help="where runs are, or go to, by the names of the folders")
    parser.add_argument("--quick", action="store_true", help="extract with fewer interventions and edits")
    args = parser.parse_args()
    header = [
        "organism", "facts", "recalled", "through a concept, by verdict", "led", "share", "elsewhere", "by which",
        "by chance",
    ]  # fmt: skip
    try:
        found = {
            name: by_kind(folder, args.out / name, quick=args.quick)
            for folder in args.studies
            for name in [folder.resolve().name]
        }
    except MnemoError as error:
        parser.exit(2, f"{error}\n")
    print_table(header, (row for name, facts in found.items() for row in rows(name, facts)))


if __name__ == "__main__":
    logging.getLogger("mnemo").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main()
