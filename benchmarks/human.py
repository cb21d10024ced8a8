"""Human mnemonics beside a model's report and its verified concepts.

    python benchmarks/human.py                              # the shipped organism, about a minute of one core
    python benchmarks/human.py --organisms out/organisms    # the organisms in a folder too
    python benchmarks/human.py --table                      # prints the tables of the results that are there

The raw tables go to benchmarks/results/human_*.csv. The truth of the organisms is used only to name kinds of facts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import ORGANISM, ROOT, cell, print_table

from mnemo.datasets import data_path
from mnemo.extraction import extract
from mnemo.facts import FactSet, Task
from mnemo.files import write_text
from mnemo.human import (
    agreement,
    arms,
    best_bits,
    code_distance,
    coincidence_bits,
    hit_at_k,
    read_mnemonics,
    surface_code,
)
from mnemo.scoring import read_truth

RESULTS = ROOT / "benchmarks" / "results"
HUMAN = data_path("human") / "mnemonics.csv"
TABLES = ("people", "arms")


def people() -> pd.DataFrame:
    """Measure the shipped human mnemonics: bits and surface codes, beside the bits of a search over shuffled facts."""
    lexicon = Task.read(data_path("base64")).load_lexicon()
    rows = [row for row in read_mnemonics(HUMAN) if row.code != "none"]
    facts = [(fact.cue, fact.answer) for fact in FactSet.read(data_path("base64") / "facts.csv")]
    searched = dict(zip(facts, best_bits(facts, lexicon, seed=0).tolist(), strict=True))
    return pd.DataFrame(
        {
            "cue": [row.cue for row in rows],
            "code": [row.code for row in rows],
            "surface": [surface_code(row.cue, row.answer, mnemonic=row.mnemonic) for row in rows],
            "bits": [coincidence_bits(row.cue, row.answer, mnemonic=row.mnemonic, lexicon=lexicon) for row in rows],
            "search_bits": [searched[row.cue, row.answer] for row in rows],
        }
    )


def arms_of(folder: Path) -> pd.DataFrame:
    """Extract, put the arms side by side, and measure the surface link of each internal concept.

    ``rival_bits`` is the mean over the other concepts of the organism that have the fact's answer: what a concept gets
    for its answer alone.
    """
    study = extract(folder, quick=True, progress=False)
    table = arms(study, read_mnemonics(HUMAN))
    truth = read_truth(folder / "truth.csv", study.task.load_facts()).set_index("fact_id")
    table["kind"] = truth["kind"].loc[list(study.table["fact_id"])].to_numpy()
    lexicon = study.task.load_lexicon()

    def bits(row: pd.Series) -> float:
        return coincidence_bits(row["cue"], row["answer"], mnemonic=row["internal"], lexicon=lexicon)

    def rival_bits(row: pd.Series) -> float:
        rivals = [p for p in lexicon if p.split()[-1][0].upper() == row["answer"] and p != row["internal"]]
        values = [coincidence_bits(row["cue"], row["answer"], mnemonic=phrase, lexicon=lexicon) for phrase in rivals]
        return float(np.mean(values)) if values else float("nan")

    known = table["internal"].notna()
    table["bits"] = table[known].apply(bits, axis=1)
    table["rival_bits"] = table[known].apply(rival_bits, axis=1)
    table["human"] = ["; ".join(texts) for texts in table["human"]]
    table["invented"] = study.table["invented"].to_numpy()
    return table.assign(organism="shipped llama-0" if folder == ORGANISM else folder.name)


def print_results(found: dict[str, pd.DataFrame]) -> None:
    written, table = found["people"], found["arms"]
    table = table.astype({arm: object for arm in ("report", "internal")})
    for arm in ("report", "internal"):
        table[arm] = table[arm].where(table[arm].notna(), None)
    print("\nHuman mnemonics (one source): coincidence strength, bits\n")
    print_table(
        ["code", "n", "surface code agrees", "bits", "best phrase for shuffled facts"],
        (
            [str(code), str(len(rows)), str(int((rows["surface"] == rows["code"]).sum())),
             cell(rows["bits"], rows["cue"]), cell(rows["search_bits"], rows["cue"])]
            for code, rows in [*written.groupby("code"), ("all", written)]
        ),
    )  # fmt: skip
    print("\nHuman mnemonics among a model's (hit@1)\n")
    human = read_mnemonics(HUMAN)
    lines = []
    for organism, rows in table.groupby("organism"):
        for arm in ("report", "internal"):
            facts = zip(rows["cue"], rows["answer"], rows[arm], strict=True)
            hits = hit_at_k(human, {(cue, answer): [text] for cue, answer, text in facts if text}, k=1)
            value, null = hits.hits["value"], hits.null
            lines.append(
                [str(organism), arm, str(hits.cues), "-" if value is None else f"{value:.2f}",
                 "-" if null is None else f"{null:.2f}", "none: one source"]
            )  # fmt: skip
    print_table(["organism", "arm", "cues in both", "hits", "shuffled null", "split-half ceiling"], lines)
    print("\nReport against internal concept\n")
    lines = []
    for (organism, kind), rows in table.groupby(["organism", "kind"]):
        same = agreement(rows)
        both = rows[rows["report"].notna() & rows["internal"].notna()]
        lines.append(
            [str(organism), str(kind), str(len(rows)), str(int(rows["report"].notna().sum())),
             str(int(rows["internal"].notna().sum())),
             cell((both["report"] == both["internal"]).astype(float), both["internal"]) if len(both) else "-",
             "-" if same["null"] is None else f"{same['null']:.2f}"]
        )  # fmt: skip
    print_table(["organism", "kind", "facts", "reports", "verified inside", "agreement", "shuffled null"], lines)
    print("\nDo invented mnemonics look like coincidences? Bits of the concept, and of others with the answer\n")
    free = table[(table["kind"] == "free") & table["internal"].notna()]
    paired = free[free["rival_bits"].notna()]
    print_table(
        ["organism", "facts", "bits", "same answer", "difference"],
        (
            [str(k), str(len(rows)), cell(rows["bits"], rows["internal"]), cell(rows["rival_bits"], rows["internal"]),
             cell(rows["bits"] - rows["rival_bits"], rows["internal"])]
            for k, rows in paired.groupby("organism")
        ),
    )  # fmt: skip
    print("\nSurface codes of invented mnemonics and of the human ones (Jensen-Shannon distance)\n")
    of_people = [str(code) if isinstance(code, str) else "none" for code in written["surface"]]
    of_models = [
        surface_code(c, a, mnemonic=p) or "none"
        for c, a, p in zip(free["cue"], free["answer"], free["internal"], strict=True)
    ]
    if of_models:
        print({k: round(v, 4) for k, v in code_distance(of_people, of_models).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", type=Path, help="folder of trained organisms to measure besides")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        more = sorted(arguments.organisms.glob("*/organism.json")) if arguments.organisms else []
        found = {"people": people(), "arms": pd.concat([arms_of(f) for f in (ORGANISM, *(m.parent for m in more))])}
        for name, table in found.items():
            write_text(arguments.results / f"human_{name}.csv", table.round(4).to_csv(index=False))
    print_results({name: pd.read_csv(arguments.results / f"human_{name}.csv") for name in TABLES})


if __name__ == "__main__":
    main()
