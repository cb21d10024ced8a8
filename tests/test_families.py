"""Every family that the README names, from a directory on disk to verdicts: tiny models with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mnemo
from mnemo.errors import MnemoError
from mnemo.gate import gate
from mnemo.study import COLUMNS
from tests.tiny_models import FAMILIES, saved, tiny_contrasts

CUES = ("VB==", "VC==", "VD==", "VE==", "VF==", "VG==")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return mnemo.load(saved(request.param, tmp_path_factory.mktemp(request.param)))


def test_edges_are_near_what_patching_them_measures(model):
    """On small steps: every edge of a model whose clean and corrupt runs are nearly the same is nearly linear."""
    contrasts = tiny_contrasts(model, CUES)[:1]
    edges = mnemo.attribute_edges(model, contrasts, method="attention_corrected")
    checked = mnemo.verify(model, contrasts, edges, top=8, budget=24)
    best = mnemo.top_edges(checked).dropna(subset="exact").head(8)
    assert len(best) == 8
    assert np.corrcoef(best["score"], best["exact"])[0, 1] > 0.9


def test_a_trace_conserves_the_effect_and_reads_the_same_in_bf16(model):
    found = mnemo.trace(model, tiny_contrasts(model, CUES)[0])
    assert found.conserved < 2e-3
    streams = found.streams.sum(axis=1)
    np.testing.assert_allclose(streams, 1, atol=5e-3)  # whatever passes, passes every boundary


def test_verdicts_are_made_of_what_the_model_says(model, tmp_path):
    task = mnemo.Task(
        name="tiny", recall="decode {cue} is", verbalise="expand {cue} is", concept_recall="decode {concept} is",
        facts="facts.csv",
    )  # fmt: skip
    asked = mnemo.FactSet(facts=tuple(mnemo.Fact(fact_id=cue, cue=cue, answer="T") for cue in CUES))
    said = gate(model, task, asked).predicted.tolist()
    pieces = [model.tokens.decode([token]) for token in said]
    facts = []
    for cue, piece in zip(CUES, pieces, strict=True):
        try:
            model.tokens.continuation(f"decode {cue} is", piece)
        except MnemoError:  # a token that is not a whole piece of text cannot be an answer
            continue
        facts.append(mnemo.Fact(fact_id=cue, cue=cue, answer=piece))
    facts = facts or list(asked.facts)
    study = mnemo.extract(task, model=model, facts=mnemo.FactSet(facts=tuple(facts)), quick=True, progress=False)
    assert list(study.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert set(study.table["verdict"]) <= {"mnemonic", "shared-intermediate", "rote", "unsure", "not-recalled"}
    recalled = study.table["recalled"]
    assert (study.table.loc[~recalled, "verdict"] == "not-recalled").all()
    score = study.table["score"].dropna().astype(float)
    assert score.between(0, 1).all()
    study.write(tmp_path / "out")
    assert (tmp_path / "out" / "verdicts.csv").is_file()


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_half_precision_gives_nearly_the_same_trace(family, tmp_path):
    full = mnemo.load(saved(family, tmp_path))
    half = mnemo.load(tmp_path, dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    contrast = tiny_contrasts(full, CUES)[0]
    one, two = mnemo.trace(full, contrast), mnemo.trace(half, contrast)
    assert two.total == pytest.approx(one.total, rel=0.15)
