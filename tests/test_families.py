"""Every family that the README names, from a directory on disk to verdicts: tiny models with random weights."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import mnemo
from mnemo.datasets import data_path
from mnemo.errors import MnemoError
from mnemo.facts import FactSet, Task
from mnemo.graph import DIMS
from mnemo.model import Model
from mnemo.patching import exact_nodes
from mnemo.study import COLUMNS
from tests.tiny_models import FAMILIES, recalled_facts, saved, tiny_contrasts, tiny_model, tiny_tokenizer

CUES = ("VB==", "VC==", "VD==", "VE==", "VF==", "VG==")
SMALL_STEP = 3e-4  # how far cues lie apart, as a share of how far tokens do


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder):
    return mnemo.load(folder)


@cache
def nearly_linear(family: str) -> Model:
    """A model for which the letters of `CUES` are nearly the same token, so that a gradient says it all."""
    hf = tiny_model(family).double()
    letters = tiny_tokenizer().convert_tokens_to_ids([cue[1] for cue in CUES])
    with torch.no_grad():
        rows = hf.get_input_embeddings().weight[letters]
        hf.get_input_embeddings().weight[letters] = rows.mean(0) + SMALL_STEP * (rows - rows.mean(0))
    return mnemo.load(hf, tokenizer=tiny_tokenizer())


def test_logits_are_those_of_the_hugging_face_model_alone_and_behind_padding(folder, model):
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    prompts = [[1, 60, 70, 80, 90, 100], [1, 75, 85]]
    together = model.forward(prompts)
    for prompt, ours in zip(prompts, together, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt])).logits[0]
        torch.testing.assert_close(ours[-len(prompt) :], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_what_patching_measures_where_steps_are_small(family):
    """Nodes and all edges, of both methods: what is not linear is of the order of the step."""
    model = nearly_linear(family)
    contrasts = tiny_contrasts(model, CUES)[:1]
    exact = mnemo.exact_edges(model, contrasts)["score"].values
    largest = np.nanmax(np.abs(exact))
    for method in ("gradient", "attention_corrected"):
        found = mnemo.attribute_edges(model, contrasts, method=method, steps=2)["score"].values
        np.testing.assert_allclose(found, exact, rtol=0, atol=0.01 * largest, err_msg=method)
    patched, nodes = exact_nodes(model, contrasts), mnemo.attribute_nodes(model, contrasts)
    largest = max(float(np.abs(patched[kind]).max()) for kind in DIMS)
    for kind in DIMS:
        np.testing.assert_allclose(nodes[kind], patched[kind], rtol=0, atol=0.01 * largest, err_msg=kind)


def test_a_trace_conserves_the_effect_at_every_boundary(model):
    found = mnemo.trace(model, tiny_contrasts(model, CUES)[0])
    assert found.conserved < 2e-3
    np.testing.assert_allclose(found.streams.sum(axis=1), 1, atol=5e-3)  # what passes, passes every boundary


def test_verdicts_are_made_of_what_the_model_says(model, tmp_path):
    task, facts = recalled_facts(model, CUES)
    study = mnemo.extract(task, model=model, facts=facts, quick=True, progress=False)
    assert list(study.table.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert set(study.table["verdict"]) <= {"mnemonic", "shared-intermediate", "rote", "unsure", "not-recalled"}
    recalled = study.table["recalled"]
    assert (study.table.loc[~recalled, "verdict"] == "not-recalled").all()
    score = study.table["score"].dropna().astype(float)
    assert score.between(0, 1).all()
    study.write(tmp_path / "out")
    assert (tmp_path / "out" / "verdicts.csv").is_file()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_half_precision_gives_nearly_the_same_trace(family, dtype, tmp_path):
    full = mnemo.load(saved(family, tmp_path))
    half = mnemo.load(tmp_path, dtype=dtype)
    assert half.dtype == getattr(torch, dtype)
    # Of some contrasts the one whose metric changes most: it is a difference of four logits, each of them rounded.
    one, contrast = max(
        ((mnemo.trace(full, contrast), contrast) for contrast in tiny_contrasts(full, CUES)[:3]),
        key=lambda traced: abs(traced[0].total),
    )
    two, rounding = mnemo.trace(half, contrast), torch.finfo(half.dtype).eps
    logits = full.forward([contrast.clean.tokens, contrast.corrupt.tokens])[:, -1]
    assert abs(two.total - one.total) < 2 * rounding * float(logits.abs().max())  # 11 families: at most 0.9
    assert two.conserved < 5 * rounding  # 11 families: at most 4.1


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bfloat16"), ("gemma2", "float16")])
def test_half_precision_says_of_every_fact_what_float32_says(family, dtype, tmp_path):
    """The table is whole; cues differ in length, so that most prompts stand behind padding."""
    full, half = mnemo.load(saved(family, tmp_path), check=False), mnemo.load(tmp_path, dtype=dtype)
    task, facts = recalled_facts(full, (*CUES[:2], "VHQQ==", "decode"))
    assert len({len(full.tokens.encode(fact.cue).ids) for fact in facts}) > 1
    expected, found = (
        mnemo.extract(task, model=model, facts=facts, quick=True, progress=False).table for model in (full, half)
    )
    assert list(found["fact_id"]) == [fact.fact_id for fact in facts]
    same = found["recalled"] == expected["recalled"]
    assert same.sum() >= len(facts) - 1  # 11 families: five of six at the least (benchmarks/families.md)
    assert (found["verdict"] == expected["verdict"])[same].all()
    # Where weights are random, one fact less that is recalled may leave no contrasts or concepts, or another waypoint.
    hang_on_place = ["leakage", "mediated_fraction", "whole_swap", "resample_drop", "top_path", "top_path_share"]
    missing = (found[same].isna() & expected[same].notna()).drop(columns=hang_on_place)
    assert not missing.to_numpy().any(), list(missing.columns[missing.any()])


def test_verdicts_of_a_model_that_recalls_are_the_same_in_bfloat16():
    folder = data_path("organism")
    truth = pd.read_csv(folder / "truth.csv")
    few = truth["concept"].isin(truth.loc[truth["kind"] == "mnemonic", "concept"].unique()[:5])
    facts = FactSet.read(folder / "facts.csv").subset(truth.loc[few, "fact_id"])
    task = Task.read(folder).model_copy(update={"probes": ()})  # which take a third of the time
    full, half = (
        mnemo.extract(
            task, model=mnemo.load(folder, dtype=dtype, check=False), facts=facts, quick=True, progress=False
        ).table
        for dtype in ("float32", "bfloat16")
    )
    assert len(full) > 15 and set(full["verdict"]) >= {"mnemonic", "rote"}
    assert (half["recalled"] == full["recalled"]).all()
    agree = half["verdict"] == full["verdict"]
    assert agree.mean() >= 0.95  # measured: all of these, and of all 608
    apart = (half["score"].astype(float) - full["score"].astype(float)).abs()
    assert apart.max() < 0.1  # measured: 0.08 of all 608
    settled = [column for column in COLUMNS if column not in ("seconds", "top_path")]
    assert not (half[settled].isna() & full[settled].notna()).to_numpy().any()


def test_a_model_spread_over_devices_is_refused_at_load_and_one_on_a_single_device_is_not(tmp_path):
    folder = saved("llama", tmp_path)
    on_disk = {"model.layers.1": "disk"}
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    spread = AutoModelForCausalLM.from_pretrained(
        folder, device_map={part: on_disk.get(part, "cpu") for part in parts}, offload_folder=str(tmp_path / "offload")
    )
    with pytest.raises(MnemoError, match=r"LlamaForCausalLM is spread over cpu, disk .* load it without device_map"):
        mnemo.load(spread, tokenizer=tiny_tokenizer())
    whole = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    assert mnemo.load(whole, tokenizer=tiny_tokenizer()).fingerprint == mnemo.load(folder).fingerprint
