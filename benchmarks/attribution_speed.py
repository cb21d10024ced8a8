"""Time attribution against plain passes of the same model, and against transformer-lens's edge attribution.

    OMP_NUM_THREADS=1 python benchmarks/attribution_speed.py

GPT-2-small shape with random weights. The unit is two plain forward passes and one backward pass (to the embedding: the
weights are frozen) of the same bridge over all facts in one batch. Each repetition runs the unit and then everything
else once, in one process, on one thread; times are of the processor, so that other load on the machine counts for
nothing. Ratios are taken within a repetition; their median is printed. What is slow and has no bar of its own
(`--slow` repetitions) is compared with as many of the others.

Memory: the peak of the resident set during the first run of each, above what it was with the model alone (Linux).
"""

from __future__ import annotations

import argparse
import logging
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import print_table, random_contrasts, random_gpt2

from mnemo.attribution import attribute_edges, attribute_nodes
from mnemo.contrasts import Contrast
from mnemo.graph import stream_hook
from mnemo.model import Model
from mnemo.patching import metric

UNIT = "2 forwards, 1 backward"
EDGES = "edges"
CORRECTED = "edges, attention_corrected"
THEIRS = "edges of transformer-lens"
BARS = {"nodes": 1.15, EDGES: 1.5, "edges, IG(5)": 6.0}  # as multiples of the unit
FASTER = 20.0  # edges than transformer-lens's
MEMORY = 2.5  # peak of the edges, as a multiple of the unit's


def plain_passes(model: Model, contrasts: Sequence[Contrast]) -> None:
    """Run clean and corrupt prompts forward and the metric of the clean ones back to the embedding."""

    def root(value: torch.Tensor, hook: Any) -> torch.Tensor:
        embedded.append(value.detach().requires_grad_(True))
        return embedded[0]

    embedded: list[torch.Tensor] = []
    clean, corrupt = tokens_of(contrasts)
    with torch.no_grad():
        model.bridge(corrupt)
    logits = model.bridge.run_with_hooks(clean, fwd_hooks=[(stream_hook(model, 0), root)])
    torch.autograd.grad(metric(logits, contrasts).sum(), embedded)


def transformer_lens_edges(model: Model, contrasts: Sequence[Contrast]) -> None:
    """Run the edge attribution that transformer-lens ships, pair by pair, as their metrics differ."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    edges = EdgeAttributionConfig(granularity="edge")
    root = ("hook_embed", lambda value, hook: value.detach().requires_grad_(True))  # weights are frozen
    with model.bridge.hooks(fwd_hooks=[root]):
        for contrast in contrasts:
            attribution_patch(model.bridge, *tokens_of([contrast]), partial(_metric_of, [contrast]), edges)


def _metric_of(contrasts: Sequence[Contrast], logits: torch.Tensor) -> torch.Tensor:
    return metric(logits, contrasts)[0]


def tokens_of(contrasts: Sequence[Contrast]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([c.clean.tokens for c in contrasts]), torch.tensor([c.corrupt.tokens for c in contrasts])


QUICK: dict[str, Callable[..., Any]] = {
    UNIT: plain_passes,
    "nodes": attribute_nodes,
    EDGES: attribute_edges,
    "edges, IG(5)": partial(attribute_edges, method="integrated_inputs", steps=5),
}
SLOW: dict[str, Callable[..., Any]] = {
    CORRECTED: partial(attribute_edges, method="attention_corrected"),
    THEIRS: transformer_lens_edges,
}


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def resident_mb(which: str) -> float:
    """Return a size of this process: ``VmRSS`` for what is resident now, ``VmHWM`` for the most since `forget_peak`."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return float(found[1]) / 1024 if found else float("nan")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=8)
    parser.add_argument("--length", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--slow", type=int, default=1, help="repetitions of what is slow; 0 to leave it out")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model = random_gpt2()
    contrasts = random_contrasts(model, options.facts, options.length)
    plain_passes(model, contrasts[:1])  # what torch and transformers keep for themselves is none of a call's
    alone, peaks = resident_mb("VmRSS"), {}
    for name, call in QUICK.items():
        forget_peak()
        call(model, contrasts)
        peaks[name] = resident_mb("VmHWM") - alone
    times: dict[str, list[float]] = {name: [] for name in (QUICK | SLOW)}
    for repetition in range(options.repetitions):
        for name, call in (QUICK | (SLOW if repetition < options.slow else {})).items():
            times[name].append(seconds(call, model, contrasts))

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=False))

    print(f"torch {torch.__version__}, one thread, {options.facts} facts of {options.length} tokens, GPT-2-small shape")
    print(f"medians of {options.repetitions} paired runs; values that miss their bar are marked with !\n")
    rows = []
    for name in [name for name, runs in times.items() if runs]:
        multiple, bar = ratio(name, UNIT), BARS.get(name)
        row = [name, str(len(times[name])), f"{statistics.median(times[name]):.2f}", marked(multiple, bar), shown(bar)]
        if name in peaks:
            bar = MEMORY if name == EDGES else None
            row += [f"{peaks[name]:.0f}", marked(peaks[name] / peaks[UNIT], bar), shown(bar)]
        rows.append(row + [""] * (8 - len(row)))
    print_table(["", "runs", "seconds", "of the unit", "bar", "peak MB", "of the unit's", "bar"], rows)
    if times[THEIRS]:
        faster = ratio(THEIRS, EDGES)
        missed = "" if faster >= FASTER else " !"
        print(f"\nEdges are {faster:.0f}{missed} times faster than those of transformer-lens (bar: {FASTER:g}).")


def marked(value: float, bar: float | None) -> str:
    return f"{value:.2f}{' !' if bar is not None and value > bar else ''}"


def shown(bar: float | None) -> str:
    return "" if bar is None else f"<= {bar:g}"


if __name__ == "__main__":
    main()
