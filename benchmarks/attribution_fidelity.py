"""Compare estimates of edges with exact edge patching: every edge, fact and position.

    OMP_NUM_THREADS=1 python benchmarks/attribution_fidelity.py
    OMP_NUM_THREADS=1 python benchmarks/attribution_fidelity.py --cases init --seeds 3

Random models are of GPT-2's configuration with 4 layers, 4 heads, width 128 and 1,000 tokens; prompts have 12 random
tokens, 3 of which differ between clean and corrupt, or all. Weights are those of a fresh model (`init`), or three times
those, norms included (`x3`). Trained weights: the shipped organism, and stories260K if its study folder is there.

Pearson: between estimate and exact effect, over all edges. Recall: which share of each fact's true top 20 edges is
among the estimate's top 20, and among those that `verify` confirms with `budget` exact runs. Cost: processor time of
attribution and verification together, as a share of that of patching every edge, and the same in passes (a step forward
and back counts three).
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from cases import ORGANISM, print_table, random_contrasts, random_gpt2, study

from mnemo.attribution import attribute_edges
from mnemo.attribution_runs import STEPS, Method
from mnemo.contrasts import Contrast
from mnemo.edge_patching import exact_edges
from mnemo.model import Model
from mnemo.verification import verify

TOP, LENGTH = 20, 12
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 1000, "n_positions": 64}
CASES = ("init", "x3", "x3 all differ", "organism", "stories260K")
PEARSON = {"init": 0.97, "x3": 0.80, "x3 all differ": 0.80}  # bars for `attention_corrected`
RECALL, COST = 0.95, 0.05
# What is tried: the method, its steps, and the runs that `verify` may use for each fact.
TRIED: tuple[tuple[Method, int, int], ...] = (
    ("gradient", 1, 150),
    ("integrated_inputs", 5, 150),
    ("integrated_activations", 5, 150),
    ("attention_corrected", STEPS["attention_corrected"], 150),
    ("attention_corrected", 16, 120),
    ("attention_corrected", 8, 80),
)
HEADER = ("model", "method", "steps", "budget", "Pearson", "bar", "recall", "verified", "bar", "time", "passes", "bar")


def case(name: str, seed: int, facts: int, stories: Path | None) -> tuple[Model, list[Contrast]]:
    """Return the model and the contrasts of one case."""
    if name == "organism":
        return study(ORGANISM, max(1, facts // 2))
    if stories is not None and name == "stories260K":
        return study(stories, max(1, facts // 2))
    model = random_gpt2(scale=1.0 if name == "init" else 3.0, seed=seed, **SHAPE)
    changed = LENGTH if name == "x3 all differ" else 3
    return model, random_contrasts(model, facts, LENGTH, changed=changed)


def timed(call: Any, *arguments: Any, **options: Any) -> tuple[xr.Dataset, float]:
    start = time.process_time()
    return call(*arguments, **options), time.process_time() - start


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of each fact's `TOP` largest exact effects that are among as many in `found`, the mean."""
    shares = []
    for estimated, true in zip(found, exact, strict=True):
        tops = (set(np.argsort(-np.nan_to_num(np.abs(x)).ravel(), kind="stable")[:TOP]) for x in (estimated, true))
        shares.append(len(set.intersection(*tops)) / TOP)
    return float(np.mean(shares))


def rows(name: str, seed: int, model: Model, contrasts: Sequence[Contrast]) -> Iterator[list[str]]:
    """Yield a row for each method."""
    attribute_edges(model, contrasts[:1])  # warms up
    exact, whole = timed(exact_edges, model, contrasts)
    true, seen = exact["score"].values, np.isfinite(exact["score"].values)
    for method, steps, budget in TRIED:
        edges, estimating = timed(attribute_edges, model, contrasts, method=method, steps=steps)
        checked, checking = timed(verify, model, contrasts, edges, top=TOP, budget=budget)
        pearson = float(np.corrcoef(edges["score"].values[seen], true[seen])[0, 1])
        verified = recall(np.where(checked["confirmed"].values, checked["exact"].values, 0.0), true)
        cost = (estimating + checking) / whole
        passes = (len(contrasts) * (2 + 3 * steps) + checked.attrs["forwards"]) / exact.attrs["forwards"]
        bar = PEARSON.get(name) if (method, steps, budget) == TRIED[3] else None
        barred = method == "attention_corrected" and name in PEARSON
        yield [
            f"{name}, seed {seed}" if name in PEARSON else name, method, str(steps), str(budget),
            _marked(pearson, bar is not None and pearson < bar), "" if bar is None else f">= {bar:.2f}",
            f"{recall(edges['score'].values, true):.3f}", _marked(verified, barred and verified < RECALL),
            f">= {RECALL}" if barred else "", f"{cost:.1%}", f"{passes:.1%}{' !' if barred and passes > COST else ''}",
            f"<= {COST:.0%}" if barred else "",
        ]  # fmt: skip


def _marked(value: float, missed: bool) -> str:
    return f"{value:.3f}{' !' if missed else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--seeds", type=int, default=1, help="of the random models, from 0 on")
    parser.add_argument("--facts", type=int, default=8, help="facts of random models; half as many of trained ones")
    parser.add_argument("--stories", type=Path, help="study folder of another trained model, such as stories260K")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    def table() -> Iterator[list[str]]:
        for name in options.cases:
            if name == "stories260K" and options.stories is None:
                continue
            for seed in range(options.seeds if name in PEARSON else 1):
                yield from rows(name, seed, *case(name, seed, options.facts, options.stories))

    print(f"torch {torch.__version__}, one thread, top {TOP}; values that miss their bar are marked with !\n")
    print_table(HEADER, table())


if __name__ == "__main__":
    main()
