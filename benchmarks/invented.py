"""Do models invent mnemonics that nobody planted? Organisms trained on plain text alone, judged and counted.

    python benchmarks/invented.py --workers 2                 # train, judge, print the tables
    python benchmarks/invented.py --table                     # the tables alone, from what was judged so far
    python benchmarks/invented.py --study FOLDER ...          # these study folders instead, such as a natural model's

Nothing of the routes is trained: no interchange, no alignment, no immunity, no edits; next-token prediction on the
facts is all. Free facts have an answer that some concepts have, and no concept. Every count stands beside shuffled
answers, every share has a 95% interval over concepts, and verdicts are compared with the gold standard of
`benchmarks/gold.py`. Organisms that are there are not trained again; unfinished ones go on.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from gold import DEFINITIONS, every_trial, gold_standard, own_start
from verdicts import markdown

from mnemo.extraction import extract
from mnemo.files import replacing, write_text
from mnemo.intervals import grouped_interval
from mnemo.invented import THROUGH_A_CONCEPT, count_invented, strongest_first
from mnemo.organisms.build import OrganismConfig, train_organism
from mnemo.scoring import NEGATIVES, read_truth, with_truth
from mnemo.study import Study
from mnemo.verdict import swaps_in_words

WORLD = {"concepts": 48, "cues_per_concept": 4, "decoys": 0, "idles": 0, "rotes": 32, "frees": 64}
UNPLANTED = {"align": 0, "interchange": 0, "immune": 0, "edited": 0, "legible": 0}
STEPS = 1500
EXAMPLES = 3
PLANTED = 8  # facts of each kind whose truth is known that gold standards are checked on


@dataclass(frozen=True)
class Case:
    """An organism without any planting."""

    family: str
    seed: int
    d_model: int = 96
    weight_decay: float = 0.1

    @property
    def name(self) -> str:
        return f"{self.family}-width{self.d_model}-decay{self.weight_decay}-{self.seed}"

    @property
    def config(self) -> OrganismConfig:
        training = {**UNPLANTED, "steps": STEPS, "weight_decay": self.weight_decay}
        values = {"family": self.family, "seed": self.seed, "d_model": self.d_model, "training": training}
        return OrganismConfig.checked({**values, "world": {**WORLD, "seed": self.seed}})


CASES = [
    *(Case(family, seed) for seed in range(5) for family in ("gpt2", "llama")),
    *(Case("gpt2", seed, d_model=width) for seed in range(2) for width in (48, 144)),
    *(Case("gpt2", seed, weight_decay=decay) for seed in range(2) for decay in (0.0, 0.5)),
]


def run(case: Case, organisms: Path, out: Path) -> None:
    """Train an organism if need be, and judge it."""
    folder = organisms / case.name
    if not (folder / "task.toml").is_file() or (folder / "checkpoint").is_dir():
        train_organism(folder, case.config, progress=False)
    judge(folder, out, name=case.name)


def judge(folder: Path, out: Path, *, name: str) -> None:
    """Extract, count and compare with the gold standard; what was found goes to `out`/NAME.json and NAME.parquet."""
    study = extract(folder, progress=False)
    table, planted = study.table, {}
    truth = folder / "truth.csv"
    if truth.is_file():
        merged = with_truth(table, read_truth(truth, study.task.load_facts()))
        table = merged[merged["kind"] == "free"]
        of_kind = merged[merged["recalled"]].groupby("kind")["fact_id"]
        planted = {kind: list(ids)[:PLANTED] for kind, ids in of_kind if kind in NEGATIVES or kind == "mnemonic"}
    free = table[table["recalled"]]
    card: dict[str, Any] = {"asked": len(table), "notes": list(study.notes), "waypoint": None}
    if study.waypoint is not None:
        site = study.waypoint.site
        card["waypoint"] = [site.layer, site.position, float(study.waypoint.candidates["score"].max())]
        if study.task.verbalise and len(free):
            card |= against_gold(study, free, planted, trials_in=out / f"{name}.parquet")
    shown = strongest_first(free).head(EXAMPLES)
    columns = ["cue", "answer", "concept", "invented", "score", "entailment", "swap_success", "swap_control"]
    columns += ["prompt_swap", "prompt_control"]
    dosed = (
        "layer",
        "tested_layer",
        "dose",
        "dosed_swap",
        "dosed_control",
        "dosed_prompt_swap",
        "dosed_prompt_control",
    )
    columns += [column for column in dosed if column in shown]
    card |= {"counts": count_invented(free), "examples": shown[columns].to_dict("records")}
    card["verdicts"] = free["verdict"].value_counts().to_dict()
    write_text(out / f"{name}.json", json.dumps(card, indent=2, default=float) + "\n")


def against_gold(study: Study, free: pd.DataFrame, planted: dict[str, list[str]], *, trials_in: Path) -> dict[str, Any]:
    """Compare verdicts on free facts with each gold standard, and those with what is known of planted facts.

    Args:
        study: what `extract` found.
        free: rows of its table.
        planted: ids of facts of each kind whose truth is known.
        trials_in: file for the trials of the gold standard.
    """
    assert study.waypoint is not None
    verdicts = free.set_index("fact_id")["verdict"]
    by_kind = {"free": list(verdicts.index), **planted}
    asked = [fact_id for ids in by_kind.values() for fact_id in ids]
    trials, own = every_trial(study, asked, progress=False), own_start(study)
    with replacing(trials_in) as draft:
        trials.to_parquet(draft, index=False)
    gold = gold_standard(trials, asked, own=own, judge=study.waypoint.site)
    agree = gold.loc[verdicts.index].eq(verdicts.isin(THROUGH_A_CONCEPT), axis=0)
    groups = free["concept"].where(free["concept"].notna(), free["fact_id"]).to_numpy()

    def compare(definition: str) -> dict[str, Any]:
        return {
            "agree": grouped_interval(agree[definition].to_numpy(float), groups, seed=0),
            "through": {kind: [int(gold.loc[ids, definition].sum()), len(ids)] for kind, ids in by_kind.items()},
        }

    return {"gold_start": [own.layer, own.position], "gold": {name: compare(name) for name in DEFINITIONS}}


def tables(out: Path) -> str:
    """Return Markdown tables of everything judged so far."""
    cards = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("*.json"))}
    if not cards:
        raise SystemExit(f"{out}: nothing was judged there; leave --table out, or give --out")
    header = [
        "organism", "free facts recalled", "name a concept with their answer", "shuffled (max)",
        "recalled through it", "shuffled", "invented", "unsure", "look-alike",
    ]  # fmt: skip
    rows = []
    for name, card in cards.items():
        counts, kinds = card["counts"], card["counts"].get("kinds", {})
        null, null_through = counts.get("null", {}), counts.get("verdicts_null", {})
        rows.append(
            [
                name,
                f"{counts['facts']} of {card['asked']}",
                _share(counts.get("matches_interval")),
                f"{null.get('mean', float('nan')):.2f} ({null.get('max', float('nan')):.2f})",
                _share(counts.get("verdicts_share")),
                f"{null_through.get('mean', float('nan')):.3f}",
                *(str(kinds.get(kind, "-")) for kind in ("invented", "unsure", "look-alike")),
            ]
        )
    examples = [
        f"- {name}: {e['cue']} -> *{e['concept']}* -> {e['answer']} ({e['invented']}; swaps (random) "
        f"{swaps_in_words(pd.Series(e))}; other questions {_number(e['entailment'])})"
        for name, card in cards.items()
        for e in card["examples"]
    ]
    return "\n".join([markdown(header, rows), "", *_gold_tables(cards), "The clearest of each:", "", *examples])


def _gold_tables(cards: dict[str, dict[str, Any]]) -> list[str]:
    """How far verdicts on free facts agree with each gold standard, and what each says of planted facts."""
    judged = {name: card for name, card in cards.items() if "gold" in card}
    header = ["verdicts on free facts agree", *DEFINITIONS, "own: sites start at", "judge: sites start at"]
    rows = [
        [
            name,
            *(_share(card["gold"][definition]["agree"]) for definition in DEFINITIONS),
            *(f"block {start[0]}, position {start[1]}" for start in (card["gold_start"], card["waypoint"])),
        ]
        for name, card in judged.items()
    ]

    def called(definition: str, kind: str) -> str:
        found = [card["gold"][definition]["through"].get(kind, [0, 0]) for card in judged.values()]
        return f"{sum(count for count, _ in found)} of {sum(of for _, of in found)}"

    kinds = ["mnemonic", *NEGATIVES, "free"]
    check = [[definition, *(called(definition, kind) for kind in kinds)] for definition in DEFINITIONS]
    return [markdown(header, rows), "", markdown(["called through their concept", *kinds], check), ""]


def _share(interval: dict[str, float | None] | None) -> str:
    if interval is None or interval["value"] is None:
        return "-"
    if interval["low"] is None:
        return f"{interval['value']:.2f}"
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", type=Path, default=Path("out/unplanted"), help="study folders, made if need be")
    parser.add_argument("--out", type=Path, default=Path("out/invented"))
    parser.add_argument("--workers", type=int, default=2, help="organisms at a time, one core each")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[case.name for case in CASES])
    parser.add_argument("--study", type=Path, nargs="+", help="judge these study folders, and train nothing")
    parser.add_argument("--table", action="store_true", help="judge nothing")
    arguments = parser.parse_args()
    if arguments.study:
        for folder in arguments.study:
            judge(folder, arguments.out, name=folder.resolve().name)
    elif not arguments.table:
        cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
        work(partial(run, organisms=arguments.organisms, out=arguments.out), cases, arguments.workers)
    print(tables(arguments.out))


def work(task: Any, cases: Iterable[Case], workers: int) -> None:
    """Run a task on every case, one core each."""
    with ProcessPoolExecutor(workers, initializer=_begin) as pool:
        list(pool.map(task, cases))


def _begin() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
