"""Exact edges and paths against transformer-lens's own seams, and exact responses against running the attention."""

from __future__ import annotations

from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from mnemo.activations import differences, record, writer_hooks
from mnemo.attribution import attribute_edges
from mnemo.edge_patching import Edge, exact_edges, exact_path
from mnemo.errors import MnemoError
from mnemo.graph import readers, readers_at, seen_by, stream_hook
from mnemo.model import Model, load
from mnemo.partial_runs import run_from
from mnemo.patching import metric
from mnemo.readers import attention_hooks, input_hooks, output_hooks, project, responses, seen
from tests.tiny_models import tiny_contrasts, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama", "gemma2"])
def model(request) -> Model:
    return load(tiny_model(request.param), tokenizer=tiny_tokenizer())


def recorded(model: Model, pairs: list[Any], side: str):
    tokens = torch.tensor([getattr(pair, side).tokens for pair in pairs])
    names = [*writer_hooks(model), *input_hooks(model), *attention_hooks(model), *output_hooks(model)]
    return record(model, tokens, names=[*dict.fromkeys(names)], contrasts=pairs, metric_fn=metric)[0]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_edges_are_what_moving_one_input_of_one_reader_does(family, direction):
    """Through hooks that transformer-lens puts before the norm of each reader alone; mnemo's do without them."""
    model = load(tiny_model(family), tokenizer=tiny_tokenizer())
    pairs = tiny_contrasts(model)[:1]
    exact = exact_edges(model, pairs, direction=direction)["score"]
    base, other = (recorded(model, pairs, side) for side in ("clean", "corrupt"))
    base, other = (base, other) if direction == "noising" else (other, base)
    change = differences(model, base, other=other)
    chosen = np.random.default_rng(0).permutation(np.argwhere(np.isfinite(exact.values[0])))[:60]
    model.bridge.set_use_split_qkv_input(True)
    model.bridge.set_use_hook_mlp_in(True)
    try:
        for writer, reader, position in chosen:
            part = readers(model)[reader]
            inputs = {"mlp": "hook_mlp_in", "logits": "hook_resid_post"}.get(part.kind, f"attn.hook_{part.kind}_input")
            layer = model.n_layers - 1 if part.kind == "logits" else part.layer

            def move(value, hook, part=part, writer=writer, position=position):
                value = value.clone()
                spot = (0, position) if part.kind in ("mlp", "logits") else (0, position, part.head)
                value[spot] += change[0, position, writer]
                return value

            logits = model.bridge.run_with_hooks(base.tokens, fwd_hooks=[(f"blocks.{layer}.{inputs}", move)])
            effect = float(metric(logits, pairs) - base.metric)
            expected = -effect if direction == "noising" else effect
            assert exact.values[0, writer, reader, position] == pytest.approx(expected, abs=1e-4)
    finally:
        model.bridge.set_use_split_qkv_input(False)
        model.bridge.set_use_hook_mlp_in(False)


def test_edges_to_the_logits_are_their_corrected_estimates_and_paths_of_one_edge(model):
    pairs = tiny_contrasts(model)[:2]
    exact = exact_edges(model, pairs)["score"].sel(reader="logits", position=-1)
    estimate = attribute_edges(model, pairs, method="attention_corrected", steps=1)["score"]
    np.testing.assert_allclose(estimate.sel(reader="logits", position=-1).values, exact.values, atol=1e-4)
    path = exact_path(model, pairs, path=[Edge("mlp0", "logits", -1)])
    np.testing.assert_allclose(path.numpy(), exact.sel(writer="mlp0").values, atol=1e-4)


def test_batches_of_any_size_and_a_choice_of_edges_give_the_same(model, monkeypatch):
    pairs = tiny_contrasts(model)[:2]
    whole = exact_edges(model, pairs)
    assert whole.attrs["forwards"] < np.isfinite(whole["score"].values).sum()  # what cannot matter is not run
    only = whole["score"].copy(data=np.zeros(whole["score"].shape, dtype=bool))
    only.values[:, 0, ::3, -3:] = True
    monkeypatch.setattr("mnemo.edge_patching.TOKENS_PER_BATCH", 20)
    few = exact_edges(model, pairs, only=only)["score"].values
    assert np.array_equal(np.isfinite(few), only.values & np.isfinite(whole["score"].values))
    kept = np.isfinite(few)
    np.testing.assert_allclose(few[kept], whole["score"].values[kept], atol=1e-4)


@pytest.mark.parametrize(
    ("family", "projection"),
    [("gpt2", "attn.c_proj"), ("gpt_neox", "attention.dense"), ("llama", "attn.o_proj"), ("gemma2", "attn.o_proj")],
)
def test_heads_whose_output_is_projected_to_nothing_have_no_edges_and_spoil_none(family, projection):
    """Such a block's MLP reads the very stream that its attention reads, and is no parallel block for that."""
    hf, silent = tiny_model(family), [f"h0.{head}" for head in range(4)]
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if ".0." in name and f"{projection}." in name:
                weight.zero_()
    model = load(hf, tokenizer=tiny_tokenizer())
    pairs = tiny_contrasts(model)[:2]
    exact = exact_edges(model, pairs)["score"]
    estimate = attribute_edges(model, pairs, method="attention_corrected", steps=1)["score"]
    for edges in (exact, estimate, attribute_edges(model, pairs)["score"]):
        assert np.array_equal(np.isfinite(edges), np.isfinite(exact))
        assert np.abs(edges.sel(writer=silent)).max() < 1e-4
        assert np.abs(edges.sel(writer="embed")).max() > 0.01
    np.testing.assert_allclose(
        estimate.sel(reader="logits", position=-1).values, exact.sel(reader="logits", position=-1).values, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["q", "k", "v", "mlp"])
def test_exact_responses_are_those_of_the_block_itself(model, kind):
    """One reader's input moved at one position, the block run on from there, and its output weighed."""
    pairs = tiny_contrasts(model)[:2]
    base, other = (recorded(model, pairs, side) for side in ("clean", "corrupt"))
    layer = model.n_layers - 1
    change = differences(model, base, other=other, some=slice(0, seen_by(model, kind, layer=layer)))
    generator = torch.Generator().manual_seed(0)
    out = f"blocks.{layer}." + ("hook_mlp_out" if kind == "mlp" else "attn.hook_z")
    gradients = {out: torch.randn(2, *base.values[out].shape, generator=generator)}
    found = responses(model, base, kind=kind, layer=layer, change=change, gradients=gradients)
    columns = readers_at(model, layer, kind=kind)
    assert found.shape == (2, 2, change.shape[2], columns.stop - columns.start, change.shape[1])
    stream, position, writer, head = seen(model, base, kind=kind, layer=layer), 2, 1, -1
    if kind == "mlp":
        moved = stream[:, position] + change[:, position, writer]
        put, spot = (f"blocks.{layer}.ln2.hook_in", moved), (slice(None), position)
    else:
        moved = project(model, kind, layer=layer, stream=stream[:, position] + change[:, position, writer])[:, head]
        put, spot = (f"blocks.{layer}.attn.hook_{kind}", moved), (slice(None), position, head)

    def move(value):
        value = value.clone()
        heads = model.n_heads if kind == "q" else model.n_kv_heads
        (value if kind == "mlp" else value.view(*value.shape[:2], heads, -1))[spot] = put[1]
        return value

    entering = base.values[stream_hook(model, layer)]
    after, _ = run_from(model, layer, stream=entering, tokens=base.tokens, changes={put[0]: move}, keep=[out])
    expected = ((after[out] - base.values[out]) * gradients[out]).flatten(2).sum(-1)
    torch.testing.assert_close(found[:, :, writer, head, position], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_path_through_a_head_is_what_the_head_writes_more(model, direction):
    """embed -> v of a head in the last block -> logits, put together from hooks of the bridge alone."""
    pairs = tiny_contrasts(model)[:2]
    layer, head, source = model.n_layers - 1, 1, -2
    own = head // (model.n_heads // model.n_kv_heads)
    path = [Edge("embed", f"v{layer}.{own}", source), Edge(f"h{layer}.{head}", "logits", -1)]
    found = exact_path(model, pairs, path=path, direction=direction)
    base, other = (recorded(model, pairs, side) for side in ("clean", "corrupt"))
    base, other = (base, other) if direction == "noising" else (other, base)
    step = differences(model, base, other=other, some=slice(0, 1))[:, source, 0]
    value = project(model, "v", layer=layer, stream=base.values[stream_hook(model, layer)][:, source] + step)[:, own]
    before = base.values[f"blocks.{layer}.attn.hook_v"].view(*base.tokens.shape, model.n_kv_heads, -1)[:, source, own]
    share = base.values[f"blocks.{layer}.attn.hook_pattern"][:, head, -1, source]
    written = (share[:, None] * (value - before)) @ model.bridge.blocks[layer].attn.W_O[head]
    if model.bridge.cfg.architecture == "Gemma2ForCausalLM":
        pytest.skip("the norm behind its heads mixes what they write")
    _, logits = run_from(
        model,
        model.n_layers,
        stream=(base.values[stream_hook(model, model.n_layers)][:, -1] + written)[:, None],
        tokens=base.tokens[:, -1:],
    )
    assert logits is not None
    change = metric(logits, pairs) - base.metric
    torch.testing.assert_close(found, -change if direction == "noising" else change, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([], "the path is empty"),
        ([Edge("h9.9", "logits", -1)], "'h9.9' is no writer"),
        ([Edge("embed", "q7.0", -1)], "'q7.0' is no reader"),
        ([Edge("embed", "logits", -99)], "position -99 is out of range: count from the end, -1 to -"),
        ([Edge("embed", "logits", 0)], "position 0 is out of range"),
        ([Edge("mlp1", "q0.0", -1)], "q0.0 does not see mlp1"),
        ([Edge("embed", "mlp0", -1)], "end it at the logits at -1"),
        ([Edge("embed", "logits", -2)], "end it at the logits at -1"),
        ([Edge("embed", "mlp0", -2), Edge("mlp0", "logits", -1)], "nothing gets to mlp0 at -1"),
        ([Edge("embed", "v0.0", -1), Edge("h0.3", "logits", -1)], "the path is broken there"),
    ],
)
def test_paths_that_are_none_are_refused(path, message):
    model = load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    with pytest.raises(MnemoError, match=message):
        exact_path(model, tiny_contrasts(model)[:1], path=path)


def test_mistyped_directions_are_refused_wherever_one_is_given(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests: annotations check nothing
    model = load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    pairs: Any = tiny_contrasts(model)[:1]
    typo: Any = {"direction": "denoise"}
    for call in (
        lambda: exact_path(model, pairs, path=[Edge("mlp0", "logits", -1)], **typo),
        lambda: exact_edges(model, pairs, **typo),
        lambda: attribute_edges(model, pairs, **typo),
    ):
        with pytest.raises(MnemoError, match=r"^direction 'denoise' is unknown: use one of noising, denoising$"):
            call()


def test_choices_of_edges_that_are_not_there_are_refused(model):
    pairs = tiny_contrasts(model)[:2]
    only = attribute_edges(model, pairs)["score"] > 0
    for given, message in (
        (only.isel(fact=0, drop=True), "has the dimensions"),
        (only.assign_coords(fact=[pairs[0].fact.fact_id, "strange"]), "names the fact 'strange'"),
        (only.assign_coords(position=np.arange(only.sizes["position"])), "names the position 0"),
    ):
        with pytest.raises(MnemoError, match=message):
            exact_edges(model, pairs, only=given)
