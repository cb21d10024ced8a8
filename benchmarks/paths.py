"""Trace one fact in many models and print what is conserved, what the top paths carry and how long it takes.

    OMP_NUM_THREADS=1 python benchmarks/paths.py                # shipped organism, tiny families, GPT-2-small shape
    OMP_NUM_THREADS=1 python benchmarks/paths.py out/organisms/gpt2-0 another/study    # these study folders too

Conservation error: how far all paths together are from metric(clean) - metric(corrupt), as a share of it, the largest
over the facts. Quadrature error: what the components' averages got wrong before those of the MLPs were mended, absolute
values added up. Times are medians over the facts (seconds, one thread): `multipliers` are made once for a contrast,
`paths` is the search for the top 50, `trace` everything (nodes, edges and paths as tables).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tiny models of the tests

from mnemo.contrasts import Contrast, make_contrasts
from mnemo.facts import Fact, FactSet, Task
from mnemo.model import Model, load
from mnemo.multipliers import averaged_multipliers
from mnemo.paths import node_values, strongest_paths
from mnemo.prompts import AnswerToken, Prompt
from mnemo.tracing import trace_from
from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer

TOP = 50
HEADER = (
    "model", "facts", "effect (logits)", "nodes", "conservation error", "bar", "quadrature error", "top 50 carry",
    "multipliers", "paths", "bar", "trace",
)  # fmt: skip


def study(folder: Path, facts: int) -> tuple[str, Model, list[Contrast], float | None]:
    """Return facts of a study folder, evenly spread."""
    task = Task.read(folder)
    model = load(task.model_path or folder)
    found = list(make_contrasts(task, task.load_facts(), tokenizer=model.tokens).values())
    return folder.name, model, found[:: max(1, len(found) // facts)][:facts], None


def tiny(family: str, facts: int) -> tuple[str, Model, list[Contrast], float | None]:
    """Return a model with random weights from the tests."""
    model = load(tiny_model(family), tokenizer=tiny_tokenizer())
    cues = "ABCDEFGHIJ"[: max(2, facts)]
    pairs = tuple(Fact(fact_id=c, cue=f"V{c}==", answer="TU"[i % 2]) for i, c in enumerate(cues))
    task = Task(name="tiny", recall="decode {cue} is", facts="facts.csv")
    return (
        f"tiny {family}",
        model,
        list(make_contrasts(task, FactSet(facts=pairs), tokenizer=model.tokens).values()),
        None,
    )


def small(facts: int) -> tuple[str, Model, list[Contrast], float | None]:
    """Return GPT-2 small with random weights and prompts of 16 random tokens, three of which differ."""
    torch.manual_seed(0)
    model = load(GPT2LMHeadModel(GPT2Config()).eval(), tokenizer=tiny_tokenizer(), check=False)
    fact = Fact(fact_id="random", cue="c", answer="a")
    contrasts = []
    for seed in range(facts):
        generator = torch.Generator().manual_seed(seed)
        clean, ids = (torch.randint(10, 50_000, (n,), generator=generator) for n in (16, 5))
        corrupt = clean.clone()
        corrupt[4:7] = ids[:3]
        before, after = (Prompt("random", tuple(tokens.tolist()), (4, 7)) for tokens in (clean, corrupt))
        answer, other = (AnswerToken(int(i), "", True) for i in ids[3:])
        contrasts.append(Contrast(fact, fact, before, after, answer, other))
    return "GPT-2 small, random", model, contrasts, 3.0


def measure(name: str, model: Model, contrasts: Sequence[Contrast], bar: float | None) -> list[str]:
    """Return the row of one model."""
    rows = []
    for contrast in [contrasts[0], *contrasts]:  # the first one warms up
        start = time.perf_counter()
        multipliers, totals = averaged_multipliers(model, contrast)
        made = time.perf_counter()
        paths = strongest_paths(multipliers, top=TOP)
        searched = time.perf_counter()
        trace_from(model, multipliers, totals=totals, top=TOP)
        total, embedded = multipliers.total, float(node_values(multipliers, totals)[0].sum())
        rows.append(
            (
                abs(total), multipliers.nodes, abs(embedded - total) / abs(total),
                sum(map(abs, totals.errors + totals.mended)) / abs(total), sum(path.value for path in paths) / total,
                made - start, searched - made, time.perf_counter() - searched + made - start,
            )
        )  # fmt: skip
    effect, nodes, conserved, quadrature, covered, *seconds = zip(*rows[1:], strict=True)
    multipliers_s, paths_s, trace_s = map(statistics.median, seconds)
    return [
        name, str(len(contrasts)), f"{statistics.median(effect):.3g}", f"{min(nodes)}-{max(nodes)}",
        f"{max(conserved):.1e}{'' if max(conserved) <= 0.01 else ' !'}", "<= 1e-2", f"{max(quadrature):.1e}",
        f"{statistics.median(covered):.0%}", f"{multipliers_s:.3f}",
        f"{paths_s:.3f}{'' if bar is None or paths_s <= bar else ' !'}", "" if bar is None else f"<= {bar:g}",
        f"{trace_s:.3f}",
    ]  # fmt: skip


def cases(folders: Sequence[Path], facts: int) -> Iterator[tuple[str, Model, list[Contrast], float | None]]:
    shipped, model, contrasts, _ = study(Path(__file__).parent.parent / "data" / "organism", facts)
    yield f"shipped {shipped}", model, contrasts, 0.1
    yield from (tiny(family, facts) for family in FAMILIES)
    yield small(min(facts, 5))
    yield from (study(folder, facts) for folder in folders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="further study folders with a model")
    parser.add_argument("--facts", type=int, default=10, help="facts of each model")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread; values that miss their bar are marked with !\n")
    for line in (HEADER, ["---"] * len(HEADER)):
        print("| " + " | ".join(line) + " |")
    for case in cases(arguments.folders, arguments.facts):
        print("| " + " | ".join(measure(*case)) + " |", flush=True)


if __name__ == "__main__":
    main()
