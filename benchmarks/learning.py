"""Teach base organisms of several seeds, and write the tables and figures of what was found.

    python benchmarks/learning.py --out out/learning            # everything; goes on where it stopped
    python benchmarks/learning.py --out out/learning --tables   # benchmarks/results/learning*.csv from what is there

Every seed is another organism: world, weights, facts drawn and shuffles. Variants of the free arm ask how the rate of
invention changes with repetition, weight decay and size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

from mnemo.files import replacing
from mnemo.learning.base import BaseConfig, make_base
from mnemo.learning.figures import figures
from mnemo.learning.runs import TABLES, LearnConfig, learn
from mnemo.learning.summary import summarised

SEEDS = (0, 1, 2, 3, 4)
RESULTS = Path(__file__).parent / "results"
MAIN = LearnConfig(runs=1)
FREE = MAIN.model_copy(update={"arms": ("free", "impossible"), "hows": ("full",), "alone": 0, "traced": 0})
# name, width of the base, how it is taught
VARIANTS = (
    ("more repetition", 64, FREE.model_copy(update={"steps": 160})),
    ("more repetition and weight decay", 64, FREE.model_copy(update={"steps": 160, "weight_decay": 10.0})),
    ("half the width", 32, FREE),
)


def run(out: Path, name: str, config: LearnConfig, *, width: int, seed: int) -> None:
    """Teach one organism, unless it was taught already; an unfinished one goes on."""
    folder = out / name / str(seed)
    if not (folder / "summary.csv").is_file():
        steps = 400 if width >= 64 else 800  # a narrow base takes longer to know what it should
        base = make_base(out / "bases" / f"{width}-{seed}", BaseConfig(seed=seed, d_model=width, steps=steps))
        learn(base, out=folder, config=config, resume=True, seed=seed)


def tables(out: Path, name: str) -> dict[str, pd.DataFrame]:
    """Return the tables of all seeds of a variant that are there."""
    folders = sorted((out / name).glob("*/summary.csv"))
    found = {table: [_read(file.parent / f"{table}.csv") for file in folders] for table in TABLES}
    return {table: pd.concat(parts, ignore_index=True) for table, parts in found.items()}


def _read(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except pd.errors.EmptyDataError:  # a table of nothing has no header
        return pd.DataFrame()


def write(out: Path) -> None:
    """Write the summary of every variant, the curves of the main one, and its figures."""
    names = [name for name in ("main", *(name for name, *_ in VARIANTS)) if (out / name).is_dir()]
    whole = pd.concat([summarised(tables(out, name)).assign(variant=name) for name in names], ignore_index=True)
    main = tables(out, "main")
    RESULTS.mkdir(exist_ok=True)
    for file, table in (("learning", whole), ("learning_curves", main["curves"])):
        with replacing(RESULTS / f"{file}.csv") as draft:
            table.to_csv(draft, index=False, float_format="%.4g")
    for name, figure in figures(main):
        with replacing(out / f"{name}.png") as draft:
            figure.savefig(draft, dpi=120, format="png")
    print(whole.to_string(float_format="%.3g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--tables", action="store_true", help="teach nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.tables:
        for seed in arguments.seeds:
            run(arguments.out, "main", MAIN, width=64, seed=seed)
        for name, width, config in VARIANTS:
            for seed in arguments.seeds:
                run(arguments.out, name, config, width=width, seed=seed)
    write(arguments.out)


if __name__ == "__main__":
    main()
