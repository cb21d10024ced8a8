from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mnemo.model
from mnemo.errors import MnemoError
from mnemo.model import Model, batch_inputs
from mnemo.model_checks import ModelCheckError, self_check
from mnemo.organisms.families import new_model
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.tokens import PromptTokenizer
from tests.lexicon import PHRASES
from tests.tiny_models import FAMILIES, GROUPED, saved, tiny_model, tiny_tokenizer, word_level_tokenizer

load = functools.partial(mnemo.model.load, device="cpu")  # so that a GPU changes nothing here

PROMPTS = [[1, 40, 41], [1, 50, 60, 70, 80, 90, 100, 110, 120], [1, 300, 5, 31, 32, 33]]


def tiny(family: str = "gpt2", **settings: Any) -> Model:
    return load(tiny_model(family, **settings), tokenizer=tiny_tokenizer())


def refusal(source: Any, kind: type[MnemoError] = MnemoError, **settings: Any) -> str:
    """What `load` says when it refuses; always one line."""
    with pytest.raises(kind) as caught:
        load(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def word_tokenizer(words: str, *, decoder: Any = None) -> Any:
    """Whole words as tokens, as a made-up language would have them."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = word_level_tokenizer(words.split())
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def rewritten(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


# ---- what is loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_and_directory_give_the_model_itself(family: str, tmp_path: Path) -> None:
    hf = tiny_model(family)
    with torch.no_grad():
        expected = hf(torch.tensor([PROMPTS[1]])).logits[0]
    here, there = load(hf, tokenizer=tiny_tokenizer()), load(saved(family, tmp_path))
    for model in (here, there):
        torch.testing.assert_close(model.forward([PROMPTS[1]])[0], expected, rtol=1e-5, atol=1e-5)
        trees = [*model.bridge.modules(), *model.bridge.original_model.modules()]
        assert not any(module.training for module in trees)
        parameters = [p for module in trees for p in module._parameters.values() if p is not None]
        assert parameters and not any(p.requires_grad for p in parameters)
        assert (model.n_layers, model.n_heads, model.d_model, model.n_positions) == (2, 4, 32, 64)
        assert model.n_kv_heads == (2 if family in GROUPED else 4)
        assert (model.vocab_size, model.device.type) == (expected.shape[-1], "cpu")
        assert model.tokens.encode("decode VA== is").ids == tuple(tiny_tokenizer()("decode VA== is").input_ids)
    assert here.fingerprint == there.fingerprint
    assert here.fingerprint != tiny(family, seed=1).fingerprint


def test_fingerprint_sees_configuration_and_dtype(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    plain, half = load(folder), load(folder, dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.bridge.cfg.dtype == torch.bfloat16
    assert half.fingerprint != plain.fingerprint
    again = load(tiny_model("llama"), tokenizer=tiny_tokenizer(), dtype=torch.bfloat16)
    assert again.fingerprint == half.fingerprint
    rewritten(folder / "config.json", rms_norm_eps=1e-3)
    assert load(folder).fingerprint != plain.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_dtype_passes_its_own_check_and_fails_when_tampered(dtype: str) -> None:
    for family in ("gpt2", "gemma2"):
        model = load(tiny_model(family), tokenizer=tiny_tokenizer(), dtype=dtype)
        assert str(model.forward(PROMPTS[:1]).dtype) == f"torch.{dtype}"
        model.bridge.add_perma_hook("blocks.0.hook_resid_post", doubled)
        with pytest.raises(ModelCheckError, match="stream before block 0"):
            self_check(model)


def test_a_model_in_memory_stays_as_it_is(tmp_path: Path) -> None:
    hf = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).train()
    hf.set_attn_implementation("sdpa")
    before, names = hf.state_dict(), list(hf.state_dict())
    model = load(hf, tokenizer=tiny_tokenizer())

    assert torch.equal(model.forward(PROMPTS[:1]), model.forward(PROMPTS[:1]))  # no dropout
    assert hf.training and all(p.requires_grad for p in hf.parameters())
    assert hf.config._attn_implementation == "sdpa"
    assert list(hf.state_dict()) == names
    assert all(torch.equal(weight, before[name]) for name, weight in hf.state_dict().items())
    hf.save_pretrained(tmp_path)  # a bridged model can no longer be saved

    with torch.no_grad():
        hf.transformer.h[0].attn.c_attn.weight.mul_(1.5)
    again = load(hf, tokenizer=tiny_tokenizer())
    assert again.fingerprint != model.fingerprint
    assert not torch.allclose(again.forward(PROMPTS[:1]), tiny().forward(PROMPTS[:1]), atol=1e-3)


def test_the_tokenizer_given_stays_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    before = len(tokenizer), tokenizer.init_kwargs.copy(), tokenizer.special_tokens_map
    load(tiny_model("gpt2"), tokenizer=tokenizer)  # the bridge's own copy gets an end token
    assert (len(tokenizer), tokenizer.init_kwargs, tokenizer.special_tokens_map) == before


def test_bos_as_asked(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    assert load(folder).tokens.encode("T").ids[0] == 1
    assert load(folder, bos=False).tokens.encode("T").ids[0] != 1


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "capitals"
    saved("gpt2", study / "model")
    assert load(study).name == load(str(study / "model")).name == "capitals"
    text = repr(load(study))
    assert "capitals" in text and "GPT2LMHeadModel" in text and len(text) < 150

    monkeypatch.setattr("mnemo.datasets._ROOTS", (tmp_path,))
    assert "organism" in refusal("organism")
    study.rename(tmp_path / "organism")
    assert load("organism").name == "organism"


# ---- batches of prompts of different lengths


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2-windowed"])
def test_left_padding_changes_nothing(family: str) -> None:
    family, _, windowed = family.partition("-")
    model = tiny(family, **({"sliding_window": 4} if windowed else {}))
    together = model.forward(PROMPTS)
    for prompt, logits in zip(PROMPTS, together, strict=True):
        alone = model.forward([prompt])[0]
        torch.testing.assert_close(logits[-len(prompt) :], alone, rtol=1e-4, atol=1e-5)
    # The mask is what makes it so, and the padding token is not: else this test could not fail.
    ids, mask = batch_inputs(PROMPTS)
    assert not torch.allclose(model.bridge(ids)[0, -1], together[0, -1], atol=1e-2)
    ids, mask = batch_inputs(PROMPTS, pad=77)
    torch.testing.assert_close(model.bridge(ids, attention_mask=mask)[:, -1], together[:, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gpt2", "gpt_neox")])
def test_padding_is_hidden_in_double_precision_where_the_softmax_is_taken_in_single(family: str) -> None:
    """The lowest float64 as a mask is minus infinity there, and a row that is masked everywhere then no number."""
    model = load(tiny_model(family), tokenizer=tiny_tokenizer(), dtype="float64")
    together = model.forward(PROMPTS)
    assert together.isfinite().all()
    for prompt, logits in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(logits[-len(prompt) :], model.forward([prompt])[0], rtol=0, atol=1e-6)


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5))
def test_batch_inputs_keep_every_prompt_at_the_end(prompts: list[list[int]]) -> None:
    ids, mask = batch_inputs(prompts, pad=123)
    assert ids.shape == mask.shape == (len(prompts), max(map(len, prompts)))
    for row, real, prompt in zip(ids, mask.bool(), prompts, strict=True):
        assert row[real].tolist() == prompt == row[-len(prompt) :].tolist()
        assert (row[~real] == 123).all()


def test_forward_hooks_last_for_one_call() -> None:
    model = tiny()
    plain = model.forward(PROMPTS)

    def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
        return z * torch.tensor([0.0, 1, 1, 1])[:, None]

    assert not torch.allclose(model.forward(PROMPTS, hooks=[("blocks.0.attn.hook_z", silence)]), plain)
    assert torch.equal(model.forward(PROMPTS), plain)


def test_forward_refuses_what_it_cannot_read() -> None:
    model = tiny()
    for prompts, complaint in [([], "at least one prompt"), ([[1], []], "at least one token")]:
        with pytest.raises(MnemoError, match=complaint):
            model.forward(prompts)
    with pytest.raises(MnemoError, match=r"65 tokens.* at most 64"):
        model.forward([[1] * 65])


# ---- the self-check fails when it should


def hooks_and_flags(model: Model) -> Any:
    cfg, tree = model.bridge.cfg, model.bridge.original_model
    hooks = [(name, list(point.fwd_hooks), list(point.bwd_hooks)) for name, point in model.bridge.hook_dict.items()]
    return (
        hooks,
        [(name, len(module._forward_hooks), module.training) for name, module in tree.named_modules()],
        (cfg.use_attn_result, cfg.use_split_qkv_input, cfg.use_hook_mlp_in, model.bridge.context_level),
        [p.requires_grad for p in model.bridge.parameters()],
    )


def doubled(activation: torch.Tensor, hook: Any) -> torch.Tensor:
    return activation * 2


def moved_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
    return z.roll(1, dims=2)


@pytest.mark.parametrize(
    ("family", "hook", "change", "complaint"),
    [
        ("gpt2", "hook_embed", lambda x, hook: x * 1.1, "logits differ"),
        ("gpt2", "blocks.1.attn.hook_pattern", doubled, "attention rows of block 1"),
        ("llama", "blocks.0.hook_resid_post", doubled, "do not add up to the stream after"),
        ("gemma2", "blocks.1.ln2_post.hook_out", lambda x, hook: x * 1.01, "logits differ"),
        ("qwen2", "blocks.0.attn.hook_out", doubled, "heads and bias of block 0"),
        ("gpt_neox", "blocks.1.hook_in", doubled, "results of block 0 are not what enters block 1"),
        ("opt", "blocks.0.hook_in", doubled, "embedding and positions are not what enters block 0"),
        ("mistral", "blocks.1.attn.hook_z", moved_head, "logits differ"),
        ("llama", "blocks.0.mlp.hook_out", lambda x, hook: x * torch.nan, "off by inf"),
    ],
)
def test_tampering_is_noticed(family: str, hook: str, change: Any, complaint: str) -> None:
    model = tiny(family)
    model.bridge.set_use_attn_result(family != "opt")
    model.bridge.add_perma_hook(hook, change)
    before = hooks_and_flags(model)
    with pytest.raises(ModelCheckError, match=complaint) as caught:
        self_check(model)
    assert "\n" not in str(caught.value) and "tolerance 1e-04" in str(caught.value)
    assert hooks_and_flags(model) == before
    model.bridge.reset_hooks(including_permanent=True)
    self_check(model)


def test_self_check_leaves_no_trace() -> None:
    model = tiny("llama")
    model.bridge.set_use_split_qkv_input(True)
    model.bridge.add_hook("blocks.0.hook_resid_mid", lambda x, hook: None)
    model.bridge.train()  # without dropout in its configuration, that alone is no fault
    before = hooks_and_flags(model)
    self_check(model)
    assert hooks_and_flags(model) == before

    def broken(activation: torch.Tensor, hook: Any) -> None:
        raise KeyError("a mistake in the user's hook")

    model.bridge.add_hook("blocks.1.hook_resid_post", broken)
    before = hooks_and_flags(model)
    with pytest.raises(KeyError):
        self_check(model)
    assert hooks_and_flags(model) == before


def test_changed_weights_are_noticed() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.bridge.blocks[1].mlp.out.weight.mul_(1.1)
    with pytest.raises(ModelCheckError, match=r"logits differ.*load it again"):
        self_check(model)


def test_architectures_that_do_not_add_up() -> None:
    tokenizer = tiny_tokenizer()
    bloom = tiny_model("bloom", n_head=4)  # its attention output holds the residual stream too
    assert "heads and bias of block 0" in refusal(bloom, ModelCheckError, tokenizer=tokenizer)
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "head_dim": 8}
    sinks = tiny_model("gpt_oss", **experts)
    assert "attention rows of block 0" in refusal(sinks, ModelCheckError, tokenizer=tokenizer)
    narrow = tiny_model("opt", word_embed_proj_dim=16)  # its embedding is projected before it enters
    assert "enters block 0: off by inf" in refusal(narrow, ModelCheckError, tokenizer=tokenizer)
    assert "shows no blocks.0" in refusal(tiny_model("mamba"), ModelCheckError, tokenizer=tokenizer)
    assert load(bloom, tokenizer=tokenizer, check=False).n_layers == 2


def test_tokens_must_survive_the_round_trip() -> None:
    from tokenizers import decoders

    words = "decode VA== QQ== value added tax is T A is . means"
    model = tiny_model("gpt2")
    load(model, tokenizer=word_tokenizer(words))  # spaces come and go
    glued = word_tokenizer(words, decoder=decoders.Fuse())
    complaint = refusal(model, ModelCheckError, tokenizer=glued)
    assert "4 of 4 tokens of 'decode VA== is T' change" in complaint and "decoder" in complaint
    load(model, tokenizer=word_tokenizer("alpha beta gamma"))  # knows none of the sample texts
    load(model, tokenizer=glued, check=False)


# ---- tokenizers beside a model


def test_a_saved_custom_tokenizer_is_read_as_written(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = word_tokenizer("decode VA== is T value added tax")
    folder = saved("qwen2", tmp_path)
    words.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("VA== is").input_ids != [2, 3]  # the trap is still there
    assert load(folder).tokens.encode("VA== is").ids == (2, 3)

    rewritten(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    complaint = refusal(folder, ModelCheckError)
    assert "Qwen2Tokenizer spells 'decode VA== is T' otherwise" in complaint and "of 4 tokens differ" in complaint
    assert load(folder, tokenizer=words).tokens.encode("VA== is").ids == (2, 3)


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    small = saved("gpt2", tmp_path, vocab=300)
    last = len(tiny_tokenizer()) - 1
    for source in (small, tiny_model("gpt2", vocab=300)):
        complaint = refusal(source, tokenizer=tiny_tokenizer())
        assert f"ids up to {last}" in complaint and "only 300" in complaint
    assert tiny("gpt2", vocab=512).vocab_size == 512  # models pad their vocabulary


# ---- what is refused


def broken_directory(folder: Path, fault: str) -> None:
    """Break a good directory in one way."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "no config":
        config.unlink()
    elif fault == "adapter":
        config.rename(folder / "adapter_config.json")
    elif fault == "model and adapter":
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "m"}')
    elif fault == "not JSON":
        config.write_text('{"model_type": "gpt2",\n "n_layer": }')
    elif fault == "not UTF-8":
        config.write_bytes(b'{"model_type": "\xff"}')
    elif fault == "not an object":
        config.write_text("[]")
    elif fault == "unknown type":
        rewritten(config, model_type="perceptron")
    elif fault == "remote code":
        rewritten(config, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    elif fault == "remote tokenizer":
        rewritten(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.Mine", None]})
    elif fault == "quantised":
        rewritten(config, quantization_config={"quant_method": "gptq", "bits": 4})
    elif fault == "encoder":
        rewritten(config, architectures=["BertForMaskedLM"], model_type="bert")
    elif fault == "encoder type":
        entries = json.loads(config.read_text())
        del entries["architectures"]
        config.write_text(json.dumps(entries | {"model_type": "distilbert"}))
    elif fault == "encoder-decoder":
        rewritten(config, is_encoder_decoder=True)
    elif fault == "pickled":
        torch.save({}, folder / "pytorch_model.bin")
        weights.unlink()
    elif fault == "no weights":
        weights.unlink()
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif fault == "garbage":
        weights.write_bytes(b"\x00" * 64)
    elif fault == "missing weight":
        tensors = load_file(weights)
        del tensors["transformer.h.1.mlp.c_fc.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif fault == "other shape":
        rewritten(config, n_embd=64)
    elif fault == "panicking normaliser":
        rewritten(folder / "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    elif fault == "panicking template":
        written = json.loads((folder / "tokenizer.json").read_text())
        rewritten(folder / "tokenizer.json", post_processor={**written["post_processor"], "special_tokens": {}})
    elif fault == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif fault == "broken tokenizer":
        (folder / "tokenizer.json").write_text('{"model": 1}')


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("no config", "holds no config.json"),
        ("adapter", "LoRA adapter alone (adapter_config.json): merge"),
        ("model and adapter", "holds a LoRA adapter (adapter_config.json): merge"),
        ("not JSON", "config.json, row 2: is not JSON"),
        ("not UTF-8", "is not UTF-8"),
        ("not an object", "expected a JSON object, found list"),
        ("unknown type", "no model type 'perceptron'"),
        ("remote code", "column 'auto_map': asks for Python code"),
        ("remote tokenizer", "tokenizer_config.json, column 'auto_map'"),
        ("quantised", "config.json: the weights are quantised"),
        ("encoder", "BertForMaskedLM is no causal language model"),
        ("encoder type", "distilbert is no causal language model"),
        ("encoder-decoder", "is no causal language model"),
        ("pickled", "only pickled weights (pytorch_model.bin)"),
        ("no weights", "holds no model.safetensors, and weights"),
        ("truncated", "the model cannot be read"),
        ("garbage", "the model cannot be read"),
        (
            "missing weight",
            "missing or of another shape than config.json says (transformer.h.1.mlp.c_fc.weight)",
        ),
        ("other shape", "c_attn.bias (96,) for (192,), "),
        ("no tokenizer", "holds no tokenizer"),
        ("broken tokenizer", "the tokenizer cannot be read"),
        ("panicking normaliser", "the tokenizer cannot be read (Precompiled: Error("),
        ("panicking template", "the tokenizer cannot be read (no entry found for key)"),
    ],
)
def test_broken_directories(fault: str, complaint: str, tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path)
    broken_directory(folder, fault)
    message = refusal(folder)
    assert complaint in message and str(folder) in message and len(message) < len(str(folder)) * 2 + 320


def test_the_fix_for_pickled_weights_is_named(tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path)
    broken_directory(folder, "pickled")
    assert "save_pretrained(folder, safe_serialization=True)" in refusal(folder)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert "is a file" in refusal(file)
    assert "no such directory" in refusal(tmp_path / "nowhere")
    assert "no such directory" in refusal("./nowhere")
    assert "no such directory" in refusal(str(tmp_path / "no" / "where"))
    assert "no path that can be used" in refusal("~nobody-lives-here/model")
    assert "no path that can be used" in refusal("x" * 5000)
    assert "name is empty" in refusal(" ")


def test_models_in_memory_that_are_refused() -> None:
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    tokenizer, hf = tiny_tokenizer(), tiny_model("gpt2")
    shape: Any = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 8}
    bert = BertForMaskedLM(BertConfig(vocab_size=400, **shape))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=8, d_ff=8, num_layers=1, num_heads=2))
    assert "give load(..., tokenizer=...)" in refusal(hf)
    assert "tokenizer= is a str" in refusal(hf, tokenizer="gpt2")
    assert "was given Linear" in refusal(torch.nn.Linear(2, 2), tokenizer=tokenizer)
    assert "BertForMaskedLM is no causal" in refusal(bert, tokenizer=tokenizer)
    assert "T5ForConditionalGeneration is no causal" in refusal(t5, tokenizer=tokenizer)
    bridged = tiny()
    assert "was given TransformerBridge" in refusal(bridged.bridge, tokenizer=tokenizer)
    assert "rebuilt by a transformer-lens" in refusal(bridged.bridge.original_model, tokenizer=tokenizer)
    with torch.no_grad():
        hf.transformer.ln_f.bias[0] = torch.inf
    assert "logits are not finite in torch.float32" in refusal(hf, tokenizer=tokenizer)
    hf.config.quantization_config = {"quant_method": "gptq"}
    assert "is quantised" in refusal(hf, tokenizer=tokenizer)


def test_devices_and_dtypes_that_are_not_there(tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path)
    assert "'banana' is unknown" in refusal(folder, device="banana")
    if not torch.cuda.is_available():
        assert "needs CUDA" in refusal(folder, device="cuda")
    for dtype in ("float99", "int8", torch.int8):
        assert "float32, float16, bfloat16" in refusal(folder, dtype=dtype)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_used_where_there_is_one() -> None:
    model = mnemo.model.load(tiny_model("gemma2"), tokenizer=tiny_tokenizer())
    assert model.device.type == "cuda"
    torch.testing.assert_close(model.forward(PROMPTS)[:, -1].cpu(), tiny("gemma2").forward(PROMPTS)[:, -1])


# ---- the hub, from its cache


def test_hub_names_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, cached = "0" * 40, tmp_path / "models--someone--tiny"
    folder = saved("gpt2", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = load("someone/tiny")
    assert model.name == "someone/tiny" and model.fingerprint == load(folder).fingerprint

    assert "'someone/else' is no directory here, and the hub cannot be reached" in refusal("someone/else")
    broken_directory(folder, "remote code")
    assert "asks for Python code" in refusal("someone/tiny")
    shutil.rmtree(cached)
    assert "the hub cannot be reached" in refusal("someone/tiny")


# ---- manners


def in_new_process(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(str(mnemo.__file__)).parents[1]), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_importing_is_light() -> None:
    code = "import sys, mnemo.model; print({'transformers', 'transformer_lens'} & set(sys.modules))"
    assert in_new_process(code).stdout == "set()\n"


def test_loading_says_nothing_and_is_the_same_in_every_process(tmp_path: Path) -> None:
    folder = saved("gpt_neox", tmp_path)
    code = "import sys, mnemo.model; print(mnemo.model.load(sys.argv[1]).fingerprint)"
    done = in_new_process(code, folder)
    assert done.stderr == ""
    assert done.stdout == load(folder).fingerprint + "\n"


def test_other_peoples_logs_and_bars_are_as_before(tmp_path: Path) -> None:
    from transformers.utils import logging as chatter

    folder = saved("gpt2", tmp_path)
    broken_directory(folder, "truncated")
    logging.disable(logging.DEBUG)
    try:
        for bars in (True, False):
            (chatter.enable_progress_bar if bars else chatter.disable_progress_bar)()
            refusal(folder)
            assert chatter.is_progress_bar_enabled() == bars
            assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
        chatter.enable_progress_bar()


def test_a_vocabulary_some_of_whose_tokens_never_stand_alone_will_do(monkeypatch):
    """Codes of two tokens: the first one is spelled only where the second one follows."""
    monkeypatch.setattr("mnemo.model_checks._SPELLINGS", ("no such words in it",))
    world = build_world(WorldConfig(concepts=8, cues_per_concept=4, decoys=2, idles=2, cue_tokens=2), PHRASES)
    tokenizer = build_tokenizer(world)
    with pytest.raises(MnemoError, match="no token"):
        PromptTokenizer(tokenizer, None).encode(world.facts[0].cue.removesuffix("=="))
    hf = new_model("gpt2", vocab_size=len(tokenizer), d_model=16, layers=2, heads=2, seed=0).eval()
    assert len(mnemo.model.load(hf, tokenizer=tokenizer).tokens.encode(f"decode {world.facts[0].cue} is").ids) == 5
