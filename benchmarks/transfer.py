"""Do organisms of several seeds and families find the same mnemonics, and do mnemonics pass from teacher to student?

    python benchmarks/transfer.py             # trains everything, in about 4 minutes of one core
    python benchmarks/transfer.py --resume    # goes on with an interrupted run, to the same numbers
    python benchmarks/transfer.py --table     # prints the tables of the results that are there

The raw tables go to benchmarks/results/transfer_*.csv; the intervals are over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from cases import ROOT, cell, print_table

from mnemo.files import write_text
from mnemo.transfer import Transfer, TransferConfig, run_transfer
from mnemo.verdict import MOVED

RESULTS = ROOT / "benchmarks" / "results"
TABLES = ("depth", "pairs", "distilled")


def read_results(folder: Path) -> Transfer:
    """Read the tables of a finished run."""
    if missing := [name for name in TABLES if not (folder / f"transfer_{name}.csv").is_file()]:
        raise SystemExit(f"{folder / f'transfer_{missing[0]}.csv'}: not there yet; run this without --table")
    return Transfer(*(pd.read_csv(folder / f"transfer_{name}.csv") for name in TABLES))


def write_results(found: Transfer, folder: Path) -> None:
    for name in TABLES:
        write_text(folder / f"transfer_{name}.csv", getattr(found, name).round(4).to_csv(index=False))


def print_results(found: Transfer) -> None:
    print("\nWhere swaps move mnemonic facts most above rote ones, by seed\n")
    best = found.depth.loc[found.depth.groupby(["organism", "seed"])["margin"].idxmax()]
    columns = ("depth", "position", "mnemonic", "free", "rote", "margin", "held")
    print_table(
        ["organism", "blocks (by seed)", *columns],
        (
            [str(name), " ".join(map(str, rows["layer"])), *(cell(rows[c], rows["seed"]) for c in columns)]
            for name, rows in best.groupby("organism")
        ),
    )
    print("\nThe same concept for the same free fact, pairs of organisms\n")
    whose = found.pairs["first"].str.rsplit("-", n=1).str[0] + " / " + found.pairs["second"].str.rsplit("-", n=1).str[0]
    print_table(
        ["related", "pair", "pairs", "facts", "agreement", "null: same answer"],
        (
            [*map(str, name), str(len(rows)), f"{rows['facts'].mean():.1f}",
             cell(rows["agreement"], rows["first"]), cell(rows["null"], rows["first"])]
            for name, rows in found.pairs.assign(pair=whose).groupby(["related", "pair"])
        ),
    )  # fmt: skip
    print("\nWhat students make of codes that the teacher recalls through a concept\n")
    measures = ("recalled", "expanded", "probes", "probes_control", "swapped", "audited")
    known = taught(found.distilled)
    order = {"teacher": 0, "none": 1, "answers": 2, "labels": 3, "unrelated": 4}
    groups = sorted(known.groupby(["arm", "start"]), key=lambda group: (order[str(group[0][0])], str(group[0][1])))
    print_table(
        ["learns from", "begins as", "codes", *measures],
        ([*map(str, name), str(len(rows)), *(cell(rows[m], rows["seed"]) for m in measures)] for name, rows in groups),
    )
    print("\nPlain pairs (rote codes)\n")
    rote = found.distilled[found.distilled["kind"] == "rote"]
    groups = sorted(rote.groupby(["arm", "start"]), key=lambda group: (order[str(group[0][0])], str(group[0][1])))
    print_table(
        ["learns from", "begins as", "recalled"],
        ([*map(str, name), cell(rows["recalled"], rows["seed"])] for name, rows in groups),
    )


def taught(distilled: pd.DataFrame) -> pd.DataFrame:
    """Keep the codes with a concept that the teacher of that seed recalls, and whose swaps mostly move its answer."""
    rows = distilled[distilled["kind"] == "concept"].copy()
    rows["code"] = rows.groupby(["seed", "arm", "start"]).cumcount()
    teacher = rows[rows["arm"] == "teacher"].set_index(["seed", "code"])
    through = (teacher["recalled"] == 1) & (teacher["swapped"] > MOVED)
    return rows[through.reindex(pd.MultiIndex.from_frame(rows[["seed", "code"]])).to_numpy(bool)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "transfer", help="where finished parts are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        write_results(run_transfer(TransferConfig(), out=arguments.out, resume=arguments.resume), arguments.results)
    print_results(read_results(arguments.results))


if __name__ == "__main__":
    main()
