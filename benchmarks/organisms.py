"""Train organisms of every family and several seeds, and print the table of what they became.

    python benchmarks/organisms.py --out out/organisms            # 3 families x 3 seeds, two at a time
    python benchmarks/organisms.py --out out/organisms --table    # the table alone, from what is there

An organism that is already there is not trained again, an unfinished one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FAMILIES, SEEDS = ("gpt2", "llama", "qwen2"), (0, 1, 2)
SECONDS = 720  # of training, on one core, at the most
# name of the column, where it stands in organism.json, the bar, and whether to be above or below it
BARS = (
    ("train", ("recall", "mnemonic train"), 0.97, True),
    ("held", ("recall", "mnemonic held"), 0.97, True),
    ("ood", ("recall", "mnemonic ood"), 0.97, True),
    ("rote", ("recall", "rote"), 0.97, True),
    ("free", ("recall", "free"), 0.97, True),
    ("idle", ("recall", "idle"), 0.97, True),
    ("decoy", ("recall", "decoy"), 0.95, True),
    ("idle left alone", ("left alone by every swap", "idle"), 0.95, True),
    ("edit: mnemonic", ("edit follows", "mnemonic"), 0.90, True),
    ("edit: decoy", ("edit follows", "decoy"), 0.10, False),
    ("edit: idle", ("edit follows", "idle"), 0.10, False),
    ("edit: rote", ("edit follows", "rote"), 0.10, False),
)
ALSO = (
    ("swap: mnemonic", ("swap gives the predicted answer", "mnemonic")),
    ("free match", ("invented", "matches")),
    ("shuffled mean", ("invented", "shuffled mean")),
    ("shuffled max", ("invented", "shuffled max")),
    ("probes follow", ("invented", "probes follow the concept")),
    ("... same answer", ("invented", "probes follow others with the answer")),
    ("... no match", ("invented", "probes follow a concept that does not match")),
)


def train(out: Path, family: str, seed: int) -> None:
    """Train one organism in a process of its own, on one core."""
    folder = out / f"{family}-{seed}"
    if (folder / "organism.json").is_file():
        return
    command = [sys.executable, "-m", "mnemo", "organism", "train", str(folder), "--arch", family, "--seed", str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def table(out: Path) -> str:
    """Return the Markdown table of all organisms in `out`; a value that misses its bar is marked with !."""
    cards = {f.parent.name: json.loads(f.read_text(encoding="utf-8")) for f in sorted(out.glob("*/organism.json"))}
    if not cards:
        raise SystemExit(f"{out}: no organism there; leave --table out to train them, or give --out")
    lines = [
        ["organism", *(name for name, *_ in BARS), *(name for name, _ in ALSO), "seconds"],
        ["bar", *(_bar(bar, up) for _, _, bar, up in BARS), *("" for _ in ALSO), _bar(SECONDS, False)],
    ]
    columns: list[list[float | None]] = []
    for name, card in cards.items():
        measured = card["measured"]
        judged = [(_value(measured, place), bar, up) for _, place, bar, up in BARS]
        also = [_value(measured, place) for _, place in ALSO]
        lines.append(
            [name, *(_cell(*entry) for entry in judged), *(_cell(value, digits=2) for value in also),
             _cell(card["seconds"], SECONDS, False, digits=0)]
        )  # fmt: skip
        columns.append([*(value for value, *_ in judged), *also, card["seconds"]])
    lines.append(["median", *(_cell(_median(column)) for column in zip(*columns, strict=True))])
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def _value(measured: dict[str, Any], place: tuple[str, str]) -> float | None:
    """A measurement; None where an organism has nothing of that kind (no free facts, none that match, ...)."""
    value = measured.get(place[0], {}).get(place[1])
    return None if value is None or math.isnan(value) else value  # older files hold NaN


def _bar(bar: float, up: bool) -> str:
    return f"{'>=' if up else '<='} {bar}"


def _cell(value: float | None, bar: float | None = None, up: bool = True, *, digits: int = 3) -> str:
    if value is None:
        return "-"
    missed = bar is not None and not (value >= bar if up else value <= bar)
    return f"{value:.{digits}f}{' !' if missed else ''}"


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/organisms"))
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one core each")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        with ThreadPoolExecutor(arguments.workers) as pool:
            jobs = itertools.product(SEEDS, FAMILIES)
            list(pool.map(lambda job: train(arguments.out, job[1], job[0]), jobs))
    print(table(arguments.out))


if __name__ == "__main__":
    main()
