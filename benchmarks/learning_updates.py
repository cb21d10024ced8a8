"""Train base organisms on one batch again and again, and write how much the steps agree.

    python benchmarks/learning_updates.py --out out/learning

Ranks x optimizers x seeds; the learning rate of each is found by search. Writes benchmarks/results/learning_updates.csv
(means over steps, of all weights or those of one block, with intervals over seeds) and figures into --out. What is
there already is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from learning import RESULTS, SEEDS
from tqdm.auto import tqdm

from mnemo.facts import Task
from mnemo.files import replacing
from mnemo.learning.arms import divided, survey
from mnemo.learning.base import BaseConfig, make_base
from mnemo.learning.figures import agreement, cosine_matrices
from mnemo.learning.intervals import interval
from mnemo.learning.updates import FollowConfig, Updates, follow
from mnemo.model import load
from mnemo.model_source import read_model

RANKS, OPTIMIZERS, FACTS = (4, 16), ("sgd", "lion", "adamw"), 16
MEANS = (
    "with_previous", "with_first", "with_net", "gradient_with_previous", "gradient_with_first", "with_own_gradient",
    "random_with_previous", "null", "learning_rate",
)  # fmt: skip


def one(out: Path, *, rank: int, optimizer: str, seed: int) -> tuple[Updates, pd.DataFrame]:
    """Follow one batch of coincident facts."""
    folder = make_base(out / "bases" / f"64-{seed}", BaseConfig(seed=seed))
    model, task = load(folder), Task.read(folder)
    lesson = survey(model, task, facts=task.load_facts()).lesson("coincident", seed=seed)
    batch, _ = divided(lesson, taught=FACTS, held=0, seed=seed)
    config = FollowConfig.model_validate({"rank": rank, "optimizer": optimizer, "seed": seed})
    found = follow(read_model(folder / "model", None), batch, config=config)
    return found, found.table().merge(found.singles, on="step", how="left")


def summary(steps: pd.DataFrame) -> pd.DataFrame:
    """Return means over steps with their intervals over seeds."""
    rows = []
    columns = (*MEANS, "with_batch", "with_others", "expected")
    by_seed = steps.groupby(["rank", "optimizer", "layer", "seed"])[list(columns)].mean()
    for (rank, optimizer, layer), some in by_seed.groupby(level=[0, 1, 2], sort=False):
        for name in columns:
            if some[name].notna().any() and (layer == -1 or name in MEANS[:7]):
                found = interval(some[name].tolist())._asdict()
                rows.append({"rank": rank, "optimizer": optimizer, "layer": layer, "measure": name, **found})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    out = arguments.out
    torch.set_num_threads(1)
    done, matrices = [], {}
    runs = [(seed, rank, optimizer) for seed in arguments.seeds for rank in RANKS for optimizer in OPTIMIZERS]
    for seed, rank, optimizer in tqdm(runs, desc="following"):
        file = out / "updates" / f"{rank}-{optimizer}-{seed}.parquet"
        if not file.is_file() or seed == arguments.seeds[0]:  # the matrices of the first seed are drawn
            found, table = one(out, rank=rank, optimizer=optimizer, seed=seed)
            with replacing(file) as draft:
                table.to_parquet(draft, index=False)
            if rank == RANKS[0]:
                matrices[f"{optimizer}, rank {rank}"] = found.cosines()
        done.append(pd.read_parquet(file))
    steps = pd.concat(done, ignore_index=True)
    RESULTS.mkdir(exist_ok=True)
    with replacing(RESULTS / "learning_updates.csv") as draft:
        summary(steps).to_csv(draft, index=False, float_format="%.4g")
    for name, figure in (("agreement", agreement(steps)), ("cosine_matrices", cosine_matrices(matrices))):
        with replacing(out / f"{name}.png") as draft:
            figure.savefig(draft, dpi=120, format="png")
    print(summary(steps)[lambda table: table["layer"] == -1].to_string(float_format="%.3g"))


if __name__ == "__main__":
    main()
