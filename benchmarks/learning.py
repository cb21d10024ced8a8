"""Teach base organisms of several seeds, and write the tables and figures of what was found.

    python benchmarks/learning.py --out out/learning            # everything; goes on where it stopped
    python benchmarks/learning.py --out out/learning --tables   # benchmarks/results/learning*.csv from what is there

Every seed is another organism: world, weights, facts drawn and shuffles. Variants of the free arm ask how the rate of
invention changes with repetition, weight decay, size and the number of fitting concepts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
LONG = FREE.model_copy(update={"steps": 160})


@dataclass(frozen=True)
class Variant:
    """A way to teach bases of one kind.

    Attributes:
        name: what it is called; the folder of its runs.
        config: how it is taught.
        bases: what its bases are called.
        base: how they differ from the default.
    """

    name: str
    config: LearnConfig
    bases: str = "64"
    base: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("main", MAIN),
    Variant("more repetition", LONG),
    Variant("more repetition and weight decay", LONG.model_copy(update={"weight_decay": 10.0})),
    # A narrow base takes longer to know what it should, and so does one with more to know.
    Variant("half the width", FREE, "32", {"d_model": 32, "steps": 800}),
    Variant("one concept for each answer", FREE, "64-one", {"concepts": 26}),
    Variant("four concepts for each answer", FREE, "64-four", {"concepts": 104, "steps": 800}),
)


def run(out: Path, variant: Variant, *, seed: int) -> None:
    """Teach one organism, unless it was taught already; an unfinished one goes on."""
    folder = out / variant.name / str(seed)
    if not (folder / "summary.csv").is_file():
        config = BaseConfig.model_validate({"seed": seed, **variant.base})
        learn(
            make_base(out / "bases" / f"{variant.bases}-{seed}", config),
            out=folder,
            config=variant.config,
            resume=True,
            seed=seed,
        )


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
    names = [variant.name for variant in VARIANTS if (out / variant.name).is_dir()]
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
        for variant in VARIANTS:
            for seed in arguments.seeds:
                run(arguments.out, variant, seed=seed)
    write(arguments.out)


if __name__ == "__main__":
    main()
