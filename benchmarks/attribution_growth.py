"""Measure how the time of edge attribution grows with the number of facts, the length of prompts and the depth.

    OMP_NUM_THREADS=1 python benchmarks/attribution_growth.py --figure out/growth.png

GPT-2's configuration with 4 heads, width 128 and 1,000 tokens, random weights. One quantity varies at a time, the
others stay at 8 facts, 16 tokens and 4 layers. Times are of the processor, on one thread, medians of `--repetitions`
runs. The exponent is the slope of log(seconds) against log(size): 1 means that twice the size takes twice the time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from pathlib import Path

import numpy as np
import torch
from attribution_speed import seconds
from cases import print_table, random_contrasts, random_gpt2

from mnemo.attribution import attribute_edges

SIZES = {"facts": (1, 4, 16, 64, 256), "length": (8, 16, 32, 64, 128), "layers": (4, 8, 12, 16, 24)}
USUAL = {"facts": 8, "length": 16, "layers": 4}


def measure(size: dict[str, int], repetitions: int) -> float:
    """Return the median time of one attribution of all edges, in seconds."""
    model = random_gpt2(n_layer=size["layers"], n_head=4, n_embd=128, vocab_size=1000, n_positions=128)
    contrasts = random_contrasts(model, size["facts"], size["length"])
    attribute_edges(model, contrasts[:1])  # warms up
    return statistics.median(seconds(attribute_edges, model, contrasts) for _ in range(repetitions))


def exponent(sizes: tuple[int, ...], times: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def draw(found: dict[str, list[float]], file: Path) -> None:
    """Draw time against size on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, times) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        axes.loglog(SIZES[name], times, "o-", color="#0072b2")
        axes.set(xlabel=name, ylabel="seconds", title=f"exponent {exponent(SIZES[name], times):.2f}")
        axes.set_xticks(SIZES[name], [str(size) for size in SIZES[name]])
        axes.minorticks_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="where to put the plot")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, medians of {options.repetitions} runs\n")
    found = {
        name: [measure(USUAL | {name: size}, options.repetitions) for size in sizes] for name, sizes in SIZES.items()
    }
    rows = [
        [name, str(size), f"{time:.3f}", f"{1000 * time / (size if name == 'facts' else USUAL['facts']):.1f}"]
        for name, times in found.items()
        for size, time in zip(SIZES[name], times, strict=True)
    ]
    print_table(["varied", "size", "seconds", "ms per fact"], rows)
    print()
    for name, times in found.items():
        print(f"{name}: exponent {exponent(SIZES[name], times):.2f}")
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
