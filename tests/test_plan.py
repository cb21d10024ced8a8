"""Plans: made from a configuration alone, and no run takes more."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

import mnemo
from mnemo.errors import InputError, MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.forwards import counted_forwards
from mnemo.model import checked_dtype, load
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.plan import PROCESS_GB, plan, read_shape
from mnemo.report import print_plan
from mnemo.shape import Shape
from mnemo.trials import LEAST, run_trials
from tests.lexicon import PHRASES
from tests.tiny_models import FAMILIES, recalled_facts, saved, tiny_model, tiny_tokenizer

LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128256,
    "dtype": "bfloat16",
}  # fmt: skip
TASK = Task(name="t", recall="decode {cue} is", verbalise="expand {cue} is", facts="facts.csv")
FACTS = FactSet(facts=tuple(Fact(fact_id=str(i), cue=f"V{i}==", answer="T") for i in range(50)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_read_from_a_configuration_is_that_of_the_model(family, tmp_path):
    hf = tiny_model(family)
    hf.config.save_pretrained(tmp_path)
    shape, parameters = read_shape(tmp_path)
    model = load(hf, tokenizer=tiny_tokenizer(), check=False)
    assert shape == Shape.of(model)
    assert (shape.layers, shape.heads, shape.kv_heads) == (model.n_layers, model.n_heads, model.n_kv_heads)
    assert (shape.d_model, shape.vocab) == (model.d_model, model.vocab_size)
    assert shape.d_head == model.bridge.blocks[0].attn.W_Q.shape[-1]
    widths = {size for name, weight in hf.named_parameters() if "norm" not in name for size in weight.shape}
    assert shape.d_mlp in widths and shape.d_mlp != shape.d_model
    assert parameters == sum(weight.numel() for weight in hf.parameters())


def test_a_model_that_fits_nowhere_is_planned_for_within_the_budget(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    tight, roomy = (plan(TASK, model=tmp_path / "config.json", facts=FACTS, memory_gb=gb) for gb in (2.0, 200.0))
    assert tight.parameters == 70_553_706_496  # as published
    assert tight.model_gb == pytest.approx(2 * 70.553706496)
    assert not tight.exact
    for stage in tight.stages:
        assert stage.at_once == 1 or stage.memory_gb - tight.model_gb - PROCESS_GB <= 2.0 + 1e-6, stage
    assert roomy.memory_gb > tight.memory_gb
    at_once = {stage.name: stage.at_once for stage in roomy.stages}
    assert all(stage.at_once <= at_once[stage.name] for stage in tight.stages)
    assert sum(s.seconds for s in roomy.stages) < sum(s.seconds for s in tight.stages) * 1.5


@pytest.mark.parametrize("lexicon", [0, 400])
def test_no_run_takes_more_forwards_than_planned(lexicon, tmp_path):
    """With a lexicon and no `verbalise`, the lexicon's own prompts are most of what is run."""
    folder = saved("llama", tmp_path)  # recalls all six: its answers are whole pieces of text
    model = load(folder)
    task, facts = recalled_facts(model, ("VB==", "VC==", "VD==", "VE==", "VF==", "VG=="))
    if lexicon:
        words = [f"{a}{b} {c}" for a in "abcdefgh" for b in "abcdefghij" for c in "klmno"]
        (tmp_path / "concepts.txt").write_text("\n".join(words[:lexicon]) + "\n", encoding="utf-8")
        given = {"verbalise": None, "concepts": "concepts.txt", "facts": str(tmp_path / "facts.csv")}
        task = task.model_copy(update={**given, "folder": tmp_path})
    expected = plan(task, model=folder, facts=facts, quick=True)
    assert expected.exact and expected.length == 7  # <bos>, decode, ...: as the tokenizer has them
    rows = 0

    def count(module, args):
        nonlocal rows
        rows += args[0].shape[0]

    handle = model.bridge.blocks[0].register_forward_pre_hook(count)
    try:
        mnemo.extract(task, model=model, facts=facts, quick=True, progress=False)
    finally:
        handle.remove()
    assert max(len(facts), 2 * lexicon) < rows <= sum(stage.forwards for stage in expected.stages)


def test_few_concepts_to_swap_to_take_more_random_directions_than_the_swaps_they_lack(tmp_path, monkeypatch):
    config = WorldConfig(seed=3, concepts=8, cues_per_concept=4, decoys=0, idles=0, rotes=0, frees=0)
    world = build_world(config, PHRASES)
    model, tokenizer = compile_organism(world)
    write_folder(tmp_path, world, model=model, tokenizer=tokenizer, name="compiled")
    truth = pd.read_csv(tmp_path / "truth.csv")
    few = truth["concept"].isin(truth["concept"].unique()[:3])
    facts = FactSet.read(tmp_path / "facts.csv").subset(truth.loc[few, "fact_id"])
    model = load(tmp_path / "model", check=False)
    rows, beside = [], []

    def counted(tested, targets, *, seed, random):
        with counted_forwards(model) as count:
            found = run_trials(tested, targets, seed=seed, random=random)
        rows.append(count.prompts)
        beside.append(random)
        return found

    monkeypatch.setattr("mnemo.looks.run_trials", counted)
    mnemo.extract(tmp_path, model=model, facts=facts, quick=True, progress=False)
    stages = {stage.name: stage for stage in plan(tmp_path, facts=facts, quick=True).stages}
    assert min(beside) > 2 * LEAST
    assert sum(rows) <= stages["intervene"].forwards <= 3 * sum(rows)


def test_a_model_is_planned_for_in_the_dtype_that_it_would_be_loaded_in(tmp_path):
    folder = saved("llama", tmp_path)
    for dtype, size in ((None, 4), ("bfloat16", 2), (torch.float64, 8)):
        expected, model = plan(TASK, model=folder, facts=FACTS, dtype=dtype), load(folder, dtype=dtype, check=False)
        assert expected.model_gb == expected.parameters * size / 1e9
        assert read_shape(folder, checked_dtype(dtype))[0] == Shape.of(model)
    with pytest.raises(MnemoError, match="dtype 'int8' is not one to compute in"):
        plan(TASK, model=folder, facts=FACTS, dtype="int8")


def test_what_cannot_be_planned_is_refused_in_one_line(tmp_path):
    with pytest.raises(MnemoError, match=r"holds no config.json"):
        plan(TASK, model=tmp_path, facts=FACTS)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_70B, "hidden_size": "wide"}))
    with pytest.raises(MnemoError, match=r"no model follows from its configuration .* check its config.json") as told:
        plan(TASK, model=tmp_path, facts=FACTS)
    assert "\n" not in str(told.value)
    with pytest.raises(MnemoError, match="the task names no model"):
        plan(TASK, facts=FACTS)


@pytest.mark.parametrize(
    ("kind", "key", "size"),
    [
        ("llama", "num_hidden_layers", 100_000_000),
        ("llama", "num_hidden_layers", 0),
        ("gpt2", "n_layer", -3),
        ("gpt2", "num_hidden_layers", 10**100),  # the name that transformers has for it is taken as well
        ("gpt2", "n_embd", 10**9),
        ("qwen2", "num_attention_heads", 10**9),
        ("qwen2", "vocab_size", 10**12),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_made_of_them(kind, key, size, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, key: size}))
    with pytest.raises(InputError, match=rf"config.json, column '{key}': .* where a model has from 1 to [\d,]+$"):
        plan(TASK, model=tmp_path, facts=FACTS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # one of them would fail, the other would go on
def test_a_prompt_longer_than_the_model_reads_is_refused_with_its_row_before_and_in_a_run(family, tmp_path, capsys):
    folder = saved(family, tmp_path / "model")
    (tmp_path / "facts.csv").write_text(f"fact_id,cue,answer\na,VA==,T\nb,{'V?' * 40},T\n")
    (tmp_path / "task.toml").write_text('name = "long"\nrecall = "decode {cue} is"\nmodel = "model"\n')
    for run in (plan, mnemo.extract, lambda task: mnemo.trace(task, "VA==")):
        with pytest.raises(InputError, match=r"facts.csv, row 3, column 'cue': .* but the model reads at most 64"):
            run(tmp_path)
    (folder / "tokenizer.json").unlink()  # a guess is no reason to refuse
    guessed = plan(tmp_path, facts=FactSet(facts=(Fact(fact_id="b", cue="V" * 300, answer="T"),)))
    print_plan(guessed)
    assert not guessed.exact and guessed.length > 64
    assert "the model reads at most 64 tokens: longer prompts are refused" in capsys.readouterr().out
