"""Measure every model family on a tiny model with random weights and print the table of `families.md`.

    OMP_NUM_THREADS=1 python benchmarks/families.py                     # all families, a few minutes
    OMP_NUM_THREADS=1 python benchmarks/families.py --families opt phi

Each model is saved as a Hugging Face directory with its tokenizer and loaded from there. Columns: whether heads share
keys and values (GQA); the largest difference from the logits of transformers' own model, alone and behind left padding;
correlation of attributed with exactly patched edges over all edges of two facts (`gradient`, `attention_corrected`);
conservation error of a trace, as a share of the effect, in float32, bfloat16 and float16; verdicts of a quick
extraction of six facts whose answers are what the model says; how many of them the same extraction in bfloat16 and in
float16 recalls as float32 does, and how many of those get the same verdict.

    OMP_NUM_THREADS=1 python benchmarks/families.py --organism          # the shipped organism in every dtype

The shipped organism's facts, all or `--facts` of them, extracted with `--quick` in each dtype beside float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tiny models of the tests

from cases import print_table

import mnemo
from mnemo.datasets import data_path
from mnemo.facts import FactSet
from mnemo.libraries import quietly
from mnemo.model import Model
from tests.tiny_models import FAMILIES, GROUPED, recalled_facts, saved, tiny_contrasts

CUES = ("VB==", "VC==", "VD==", "VE==", "VF==", "VG==")
PROMPTS = [[1, 60, 70, 80, 90, 100], [1, 75, 85]]
HEADER = (
    "family", "GQA", "logit gap", "left padding", "gradient", "attention_corrected", "conservation", "bfloat16",
    "float16", "verdicts", "same recall and verdict in bfloat16", "float16",
)  # fmt: skip
ORGANISM = (
    "dtype", "same recall", "same concept", "same verdict", "score apart, mean", "most", "missing where float32 is not",
)  # fmt: skip


def logit_gaps(folder: Path, model: Model) -> tuple[float, float]:
    """Return the largest difference of logits from transformers' own, of prompts alone and padded to one length."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    together, alone, padded = model.forward(PROMPTS), 0.0, 0.0
    for prompt, behind in zip(PROMPTS, together, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0]
        alone = max(alone, float((model.forward([prompt])[0] - expected).abs().max()))
        padded = max(padded, float((behind[-len(prompt) :] - expected).abs().max()))
    return alone, padded


def correlations(model: Model) -> list[float]:
    """Return how well each method's edges agree with exact patching."""
    pairs = tiny_contrasts(model, CUES)[:2]
    exact = mnemo.exact_edges(model, pairs)["score"].values
    found = []
    for method in ("gradient", "attention_corrected"):
        scores = mnemo.attribute_edges(model, pairs, method=method)["score"].values
        known = np.isfinite(exact) & np.isfinite(scores)
        found.append(float(np.corrcoef(scores[known], exact[known])[0, 1]))
    return found


def conserved(folder: Path, dtype: str) -> float:
    """Return the conservation error of a trace."""
    model = mnemo.load(folder, dtype=dtype, device="cpu")
    return mnemo.trace(model, tiny_contrasts(model, CUES)[0]).conserved


def verdicts(folder: Path, model: Model) -> tuple[str, ...]:
    """Return the verdicts of a quick extraction, counted, and how many of them bfloat16 and float16 give as well."""
    task, facts = recalled_facts(model, CUES)
    full = mnemo.extract(task, model=model, facts=facts, quick=True, progress=False).table
    counts = ", ".join(f"{count} {verdict}" for verdict, count in full["verdict"].value_counts().items())
    same: list[str] = []
    for dtype in ("bfloat16", "float16"):
        loaded = mnemo.load(folder, dtype=dtype, device="cpu")
        half = mnemo.extract(task, model=loaded, facts=facts, quick=True, progress=False).table
        recall = half["recalled"] == full["recalled"]
        same.append(f"{recall.sum()}, {(recall & (half['verdict'] == full['verdict'])).sum()} of {len(full)}")
    return counts, *same


def rows(families: list[str]) -> Iterator[tuple[str, ...]]:
    for family in families:
        with tempfile.TemporaryDirectory() as place, quietly():
            folder = saved(family, Path(place))
            model = mnemo.load(folder, device="cpu")
            alone, padded = logit_gaps(folder, model)
            gradient, corrected = correlations(model)
            errors = [conserved(folder, dtype) for dtype in ("float32", "bfloat16", "float16")]
            yield (
                family, "yes" if family in GROUPED else "no", f"{alone:.0e}", f"{padded:.0e}", f"{gradient:.3f}",
                f"{corrected:.3f}", *(f"{error:.1e}" for error in errors), *verdicts(folder, model),
            )  # fmt: skip


def organism_rows(facts: int | None) -> Iterator[tuple[str, ...]]:
    """Yield how quick extractions of the shipped organism in half precision compare with that in float32."""
    folder = data_path("organism")
    known = FactSet.read(folder / "facts.csv")
    chosen = known.subset([fact.fact_id for fact in known][:facts])

    def extracted(dtype: str) -> pd.DataFrame:
        model = mnemo.load(folder, dtype=dtype, device="cpu")
        return mnemo.extract(folder, model=model, facts=chosen, quick=True, progress=False).table

    full = extracted("float32")
    for dtype in ("bfloat16", "float16"):
        half = extracted(dtype)
        apart = (half["score"].astype(float) - full["score"].astype(float)).abs()
        yield (
            dtype, f"{(half['recalled'] == full['recalled']).sum()} of {len(full)}",
            f"{(half['concept'] == full['concept']).sum()}", f"{(half['verdict'] == full['verdict']).sum()}",
            f"{apart.mean():.4f}", f"{apart.max():.2f}", f"{(half.isna() & full.notna()).to_numpy().sum()}",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--organism", action="store_true")
    parser.add_argument("--facts", type=int)
    given = parser.parse_args()
    if given.organism:
        print_table(ORGANISM, organism_rows(given.facts))
    else:
        print_table(HEADER, rows(given.families))


if __name__ == "__main__":
    main()
