"""Measure every model family on a tiny model with random weights and print the table of `families.md`.

    OMP_NUM_THREADS=1 python benchmarks/families.py                     # all families, a few minutes
    OMP_NUM_THREADS=1 python benchmarks/families.py --families opt phi

Each model is saved as a Hugging Face directory with its tokenizer and loaded from there. Columns: whether heads share
keys and values (GQA); the largest difference from the logits of transformers' own model, alone and behind left padding;
correlation of attributed with exactly patched edges over all edges of two facts (`gradient`, `attention_corrected`);
conservation error of a trace, as a share of the effect, in float32, bfloat16 and float16; verdicts of a quick
extraction of six facts whose answers are what the model says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tiny models of the tests

from cases import print_table

import mnemo
from mnemo.libraries import quietly
from mnemo.model import Model
from tests.tiny_models import FAMILIES, GROUPED, recalled_facts, saved, tiny_contrasts

CUES = ("VB==", "VC==", "VD==", "VE==", "VF==", "VG==")
PROMPTS = [[1, 60, 70, 80, 90, 100], [1, 75, 85]]
HEADER = (
    "family", "GQA", "logit gap", "left padding", "gradient", "attention_corrected", "conservation", "bfloat16",
    "float16", "verdicts",
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


def verdicts(model: Model) -> str:
    """Return the verdicts of a quick extraction, counted."""
    task, facts = recalled_facts(model, CUES)
    study = mnemo.extract(task, model=model, facts=facts, quick=True, progress=False)
    counts = study.table["verdict"].value_counts()
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


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
                f"{corrected:.3f}", *(f"{error:.1e}" for error in errors), verdicts(model),
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    print_table(HEADER, rows(parser.parse_args().families))


if __name__ == "__main__":
    main()
