"""Attribution against exact patching, autograd-free finite differences and conservation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import torch

from mnemo.activations import record
from mnemo.attribution import attribute_edges, attribute_nodes
from mnemo.attribution_runs import Direction, Method
from mnemo.contrasts import Contrast
from mnemo.edge_patching import exact_edges
from mnemo.errors import MnemoError
from mnemo.facts import Fact
from mnemo.graph import components
from mnemo.model import Model, load
from mnemo.patching import exact_nodes, metric
from mnemo.prompts import AnswerToken, Prompt
from tests.tiny_models import tiny_contrasts as contrasts
from tests.tiny_models import tiny_model, tiny_tokenizer

FAMILIES = ("gpt2", "llama", "gpt_neox")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    return load(tiny_model(request.param), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def gpt2() -> Model:
    """For what does not hang on the architecture."""
    return load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())


def test_attribution_correlates_with_exact_patching_and_has_its_sign(model):
    pairs = contrasts(model)
    estimate, exact = attribute_nodes(model, pairs), exact_nodes(model, pairs)
    # Of the embedding, with all the network behind it, a first-order estimate can say less.
    for kind, least, slope in (("heads", 0.8, 0.4), ("mlp", 0.8, 0.4), ("residual", 0.8, 0.4), ("embed", 0.5, 0.2)):
        x, y = estimate[kind].values.ravel(), exact[kind].values.ravel()
        assert np.array_equal(np.isnan(x), np.isnan(y))
        x, y = x[~np.isnan(x)], y[~np.isnan(y)]
        assert np.corrcoef(x, y)[0, 1] > least, kind
        assert np.polyfit(y, x, 1)[0] > slope, kind  # same sign, comparable size


def test_attribution_is_the_derivative_of_exact_patching(model):
    """Move a node a small step towards its corrupt value: the metric falls by that share of the score."""
    pairs = contrasts(model)[:2]
    scores = attribute_nodes(model, pairs)
    clean = torch.tensor([c.clean.tokens for c in pairs])
    corrupt = torch.tensor([c.corrupt.tokens for c in pairs])
    step, layer, head, position = 1e-2, 1, 2, -2
    name = next(p.hook for p in components(model) if p.kind == "heads" and p.layer == layer)
    other = []
    model.bridge.run_with_hooks(corrupt, fwd_hooks=[(name, lambda v, hook: other.append(v.clone()))])

    def nudge(sign):
        def put(value, hook):
            value = value.clone()
            here, there = (v.unflatten(-1, (model.n_heads, -1)) if v.dim() == 3 else v for v in (value, other[0]))
            here[:, position, head] += sign * step * (there - here)[:, position, head]
            return value

        with torch.no_grad():
            return metric(model.bridge.run_with_hooks(clean, fwd_hooks=[(name, put)]), pairs)

    slope = (nudge(-1) - nudge(+1)) / (2 * step)
    found = scores["heads"].sel(layer=layer, head=head, position=position).values
    np.testing.assert_allclose(found, slope.numpy(), rtol=2e-2, atol=2e-4)


def test_whole_stream_at_every_position_carries_the_whole_effect(model):
    """The last stream at the last position is linear up to the final norm: patching it exactly undoes everything."""
    pairs = contrasts(model)
    exact = exact_nodes(model, pairs)
    scores = attribute_nodes(model, pairs)
    effect = (scores["metric_clean"] - scores["metric_corrupt"]).values
    top = exact["residual"].sel(stream_layer=model.n_layers, position=-1).values
    np.testing.assert_allclose(top, effect, atol=1e-4)


def test_facts_of_different_lengths_are_aligned_at_the_end_and_scored_as_alone():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    pairs = contrasts(model, ["1", "2", "771", "772"])
    lengths = [len(c.clean) for c in pairs]
    assert lengths[0] < lengths[2]
    together = attribute_nodes(model, pairs)
    for i in (0, 2):
        alone = attribute_nodes(model, [pairs[i]])
        got = together["heads"].isel(fact=i, position=slice(-lengths[i], None)).values
        np.testing.assert_allclose(got, alone["heads"].values[0], atol=1e-5)
    assert np.isnan(together["heads"].isel(fact=0, position=0)).all()


@pytest.mark.parametrize("method", get_args(Method))
def test_edges_of_facts_of_different_lengths_are_those_of_each_alone(method):
    model = load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    pairs = contrasts(model, ["1", "2", "771", "772"])
    together = attribute_edges(model, pairs, method=method, steps=4)["score"]
    for i in (0, 2):
        length = len(pairs[i].clean)
        alone = attribute_edges(model, [pairs[i]], method=method, steps=4)["score"].values[0]
        np.testing.assert_allclose(together.values[i][..., -length:], alone, atol=1e-5)
        assert np.isnan(together.values[i][..., :-length]).all()


# ---- against transformer-lens


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_nodes_and_edges_are_those_of_transformer_lens(family):
    """transformer-lens denoises and averages over facts; its edges need as many key as query heads, and not OPT's."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    model = load(tiny_model(family), tokenizer=tiny_tokenizer())
    pairs = contrasts(model, ["VB==", "VC=="])
    nodes = attribute_nodes(model, pairs, direction="denoising")
    edges = attribute_edges(model, pairs, direction="denoising")["score"]
    compared, length = 0, len(pairs[0].clean)
    for index, pair in enumerate(pairs):
        clean, corrupt = (torch.tensor([prompt.tokens]) for prompt in (pair.clean, pair.corrupt))
        with model.bridge.hooks(fwd_hooks=[("hook_embed", lambda v, hook: v.detach().requires_grad_(True))]):
            theirs = attribution_patch(
                model.bridge,
                clean,
                corrupt,
                lambda logits, pair=pair: metric(logits, [pair])[0],
                EdgeAttributionConfig("edge"),
            )
        largest = max(map(abs, theirs.edge_scores.values()))
        for (writer, reader), expected in theirs.edge_scores.items():
            found = edges.values[index, _row(edges, "writer", writer), _row(edges, "reader", reader), reader.position]
            assert found == pytest.approx(expected, abs=1e-5 * largest)
            compared += 1
        for node, expected in theirs.node_scores.items():
            where = {"embed": (), "attn_head_out": (node.layer, node.head), "mlp_out": (node.layer,)}[node.kind]
            kind = {"embed": "embed", "attn_head_out": "heads", "mlp_out": "mlp"}[node.kind]
            found = nodes[kind].values[(index, *where, node.position)]
            assert found == pytest.approx(expected, abs=1e-5 * max(map(abs, theirs.node_scores.values())))
    seen = np.isfinite(edges.values[0]).any(-1).sum()
    assert compared == len(pairs) * (seen * length)


def _row(edges, side, node) -> int:
    """Where one of transformer-lens's nodes stands among the writers or readers."""
    kind = {"attn_head_out": "h", "mlp_out": "mlp", "mlp_in": "mlp"}.get(node.kind, node.kind.removesuffix("_input"))
    label = kind if node.kind in ("embed", "logits") else f"{kind}{node.layer}"
    return list(edges[side].values).index(label if node.head is None else f"{label}.{node.head}")


# ---- sign


@pytest.fixture(scope="module")
def linear() -> tuple[Model, list[Contrast]]:
    """A model whose embedding alone writes, so that every number can be worked out on paper.

    Token a is (1, 1, -1, -1), token c (1, -1, 1, -1): of mean 0 and variance 1, so the final norm leaves them as they
    are. The answer is unembedded by k = 2a - c, the contrast's answer by 0. As a.a = c.c = 4 and a.c = 0, the metric is
    k.a = 8 where a stands last and k.c = -4 where c does. The norm's Jacobian at x takes out the mean and what lies
    along x: the gradient at a is -c, at c it is 2a.
    """
    hf = tiny_model("gpt2", d_model=4, heads=1, layers=2, tie_word_embeddings=False)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            weight.fill_(1.0 if "ln" in name and name.endswith("weight") else 0.0)
        a, c = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])
        hf.transformer.wte.weight[10], hf.transformer.wte.weight[11] = a, c
        hf.lm_head.weight[20] = 2 * a - c
    model = load(hf, tokenizer=tiny_tokenizer(), check=False)
    fact = Fact(fact_id="f", cue="c", answer="a")
    clean, corrupt = (Prompt("", (12, last), (1, 2)) for last in (10, 11))
    return model, [Contrast(fact, fact, clean, corrupt, AnswerToken(20, "", True), AnswerToken(21, "", True))]


@pytest.mark.parametrize(
    ("method", "direction", "expected"),
    [
        ("gradient", "noising", 4),  # -(c - a).(-c)
        ("gradient", "denoising", 8),  # (a - c).2a
        ("attention_corrected", "noising", 12),  # the final norm is not made linear
        ("attention_corrected", "denoising", 12),
    ],
)
def test_signs_and_directions_of_a_case_worked_out_by_hand(linear, method, direction, expected):
    model, pairs = linear
    options: dict[str, Any] = {"method": method, "direction": direction, "steps": 1}
    nodes, edges = attribute_nodes(model, pairs, **options), attribute_edges(model, pairs, **options)
    assert (nodes.metric_clean.item(), nodes.metric_corrupt.item()) == pytest.approx((8, -4), abs=1e-3)
    assert nodes.attrs["direction"] == direction
    assert nodes["embed"].values[0].tolist() == pytest.approx([0, expected], abs=1e-3)
    direct = edges["score"].sel(writer="embed", reader="logits").values[0]
    assert direct.tolist() == pytest.approx([0, expected], abs=1e-3)
    others = edges["score"].drop_sel(reader="logits").values
    np.testing.assert_allclose(others[np.isfinite(others)], 0, atol=1e-4)
    exact = exact_edges(model, pairs, direction=direction)["score"].sel(writer="embed", reader="logits").values[0]
    assert exact.tolist() == pytest.approx([0, 12], abs=1e-3)


# ---- what a method promises


def test_integrated_gradients_of_the_embedding_add_up_to_the_metrics_difference(model):
    pairs = contrasts(model)[:3]
    scores = attribute_nodes(model, pairs, method="integrated_inputs", steps=100)
    effect = (scores["metric_clean"] - scores["metric_corrupt"]).values
    np.testing.assert_allclose(scores["embed"].sum("position").values, effect, rtol=0.02, atol=0.02)


def test_both_directions_of_integrated_inputs_are_the_same(model):
    pairs = contrasts(model)[:2]
    there, back = (
        attribute_edges(model, pairs, method="integrated_inputs", direction=direction, steps=3)["score"].values
        for direction in get_args(Direction)
    )
    np.testing.assert_allclose(there, back, atol=1e-4 * np.nanmax(np.abs(there)))


def test_integrated_activations_of_a_writer_add_up_to_what_patching_it_everywhere_does(model):
    pairs = contrasts(model)[:2]
    edges = attribute_edges(model, pairs, method="integrated_activations", steps=60)
    clean, corrupt = (torch.tensor([getattr(c, side).tokens for c in pairs]) for side in ("clean", "corrupt"))
    for hook, labels in (
        ("blocks.0.hook_mlp_out", ["mlp0"]),
        ("blocks.0.hook_attn_out", [f"h0.{head}" for head in range(model.n_heads)]),
    ):
        other: list[torch.Tensor] = []
        model.bridge.run_with_hooks(corrupt, fwd_hooks=[(hook, lambda v, hook, other=other: other.append(v))])
        patched = model.bridge.run_with_hooks(clean, fwd_hooks=[(hook, lambda v, hook, other=other: other[0])])
        expected = edges["metric_clean"].values - metric(patched, pairs).numpy()
        found = edges["score"].sel(writer=labels).sum(["writer", "reader", "position"]).values
        np.testing.assert_allclose(found, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("method", ["gradient", "integrated_inputs", "integrated_activations"])
def test_edges_of_a_writer_add_up_to_its_node(model, method):
    """What a writer does it does through its readers: with the same gradients the sum is exact."""
    pairs = contrasts(model)[:2]
    nodes, edges = (attribute(model, pairs, method=method, steps=3) for attribute in (attribute_nodes, attribute_edges))
    edges = edges["score"].sum("reader")
    np.testing.assert_allclose(edges.sel(writer="embed").values, nodes["embed"].values, atol=1e-4)
    for layer in range(model.n_layers):
        np.testing.assert_allclose(
            edges.sel(writer=f"mlp{layer}").values, nodes["mlp"].sel(layer=layer).values, atol=1e-4
        )
        heads = edges.sel(writer=[f"h{layer}.{head}" for head in range(model.n_heads)]).values
        np.testing.assert_allclose(heads, nodes["heads"].sel(layer=layer).values, atol=1e-4)


def test_graddrop_of_two_blocks_leaves_the_lower_one_its_direct_effect(model):
    """With block 1 shut, block 0 acts on the logits' reader and within itself; block 1 loses nothing above it."""
    pairs = contrasts(model)[:2]
    plain, dropped = (attribute_nodes(model, pairs, graddrop=graddrop) for graddrop in (False, True))
    direct = attribute_edges(model, pairs)["score"].sel(reader="logits")
    np.testing.assert_allclose(dropped["mlp"].sel(layer=0).values, direct.sel(writer="mlp0").values, atol=1e-4)
    labels = [f"h0.{head}" for head in range(model.n_heads)]
    within = attribute_edges(model, pairs, graddrop=True)["score"].sel(writer=labels, reader="mlp0").fillna(0).values
    heads = direct.sel(writer=labels).values + within
    np.testing.assert_allclose(dropped["heads"].sel(layer=0).values, heads, atol=1e-4)
    np.testing.assert_allclose(dropped["mlp"].sel(layer=1).values, plain["mlp"].sel(layer=1).values, atol=1e-4)


def test_graddrop_is_the_mean_over_the_blocks_that_are_shut():
    """No block stands between the highest MLP and the logits, so its score is the same whichever other one is shut."""
    model = load(tiny_model("gpt2", layers=4), tokenizer=tiny_tokenizer())
    pairs = contrasts(model)[:2]
    plain, dropped = (
        attribute_nodes(model, pairs, graddrop=graddrop)["mlp"].sel(layer=3).values for graddrop in (False, True)
    )
    assert abs(plain).max() > 1e-3
    np.testing.assert_allclose(dropped, plain, atol=1e-5)


def test_the_first_stream_is_the_embedding_to_all_that_read_it(model):
    """A stream is corrected as one writer; of the embedding both kinds of node say the same."""
    scores = attribute_nodes(model, contrasts(model)[:2], method="attention_corrected", steps=2)
    found = scores["residual"].sel(stream_layer=0).values
    assert np.nanmax(abs(found)) > 1e-2
    np.testing.assert_allclose(found, scores["embed"].values, atol=1e-4)


def test_graddrop_of_corrected_edges_leaves_out_the_run_in_which_their_own_block_is_shut():
    """Where block 1 writes next to nothing, shutting it changes nothing, and shutting block 0 would halve its edges."""
    hf = tiny_model("gpt2")
    with torch.no_grad():
        for part in (hf.transformer.h[1].attn.c_proj, hf.transformer.h[1].mlp.c_proj):
            part.weight.mul_(1e-4)
            part.bias.mul_(1e-4)
    model = load(hf, tokenizer=tiny_tokenizer())
    pairs = contrasts(model)[:2]
    plain, dropped = (
        attribute_edges(model, pairs, method="attention_corrected", steps=1, graddrop=graddrop)["score"]
        for graddrop in (False, True)
    )
    lower = [label for label in plain.reader.values if label in ("q0.0", "k0.1", "v0.2", "mlp0")]
    plain, dropped = (score.sel(reader=lower).fillna(0).values for score in (plain, dropped))
    assert len(lower) == 4 and abs(plain).max() > 0.02
    np.testing.assert_allclose(dropped, plain, atol=1e-4)


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("attribute", [attribute_nodes, attribute_edges])
def test_the_budget_of_memory_changes_no_result(attribute, method):
    model = load(tiny_model("qwen2"), tokenizer=tiny_tokenizer())
    pairs = contrasts(model)[:3]
    free, tight = (attribute(model, pairs, method=method, steps=2, memory_gb=gb) for gb in (2.0, 1e-6))
    for name in free.data_vars:
        np.testing.assert_allclose(tight[name].values, free[name].values, atol=2e-5, rtol=1e-4)


# ---- the model stays as it was


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize(
    "call",
    [
        partial(attribute_nodes, method="integrated_inputs"),
        partial(attribute_edges, method="integrated_activations"),
        partial(attribute_edges, method="attention_corrected", graddrop=True, steps=2),
        exact_edges,
    ],
)
def test_hooks_and_flags_are_left_as_found_when_a_call_is_cut_off(gpt2, call, at, failure):
    """Cut off in a forward pass (by a hook of the user, which stays) at the first, second or third run."""
    before = _state(gpt2)
    runs = []

    def cut(value, hook):
        runs.append(None)
        if len(runs) > at:
            raise failure

    with gpt2.bridge.hooks(fwd_hooks=[("ln_final.hook_normalized", cut)]):
        during = _state(gpt2)
        with pytest.raises(type(failure)):
            call(gpt2, contrasts(gpt2)[:2])
        assert _state(gpt2) == during
    assert _state(gpt2) == before


def _state(model: Model) -> dict[str, Any]:
    bridge = model.bridge
    return {
        "hooks": {name: (list(p.fwd_hooks), list(p.bwd_hooks)) for name, p in bridge.hook_dict.items()},
        "torch": {name: len(m._forward_hooks) + len(m._backward_hooks) for name, m in bridge.named_modules()},
        "flags": {name: getattr(bridge.cfg, name) for name in dir(bridge.cfg) if name.startswith("use_")},
        "modes": [module.training for module in bridge.modules()],
        "gradients": [(p.requires_grad, p.grad is None) for p in bridge.parameters()],
        "forwards": ["forward" in vars(block) for block in bridge.blocks],
        "grad": torch.is_grad_enabled(),
    }


def test_weights_get_no_gradient_and_no_hook_stays(model):
    attribute_nodes(model, contrasts(model))
    assert all(p.grad is None and not p.requires_grad for p in model.bridge.parameters())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in model.bridge.hook_dict.values())


# ---- bad input


CALLS = [attribute_nodes, attribute_edges, exact_nodes, exact_edges]


@pytest.mark.parametrize("call", CALLS)
def test_contrasts_that_cannot_be_compared_are_refused(gpt2, call):
    first, second = contrasts(gpt2)[:2]
    shorter = contrasts(gpt2, ["1", "2"])[0]
    for given, message in (
        ([], "no contrasts given"),
        ([replace(first, corrupt=shorter.corrupt)], r"has \d+ tokens and the corrupt one"),
        ([second, replace(first, corrupt=first.clean)], f"{first.fact.fact_id}: clean and corrupt prompt are the same"),
        ([replace(first, contrast_answer=first.answer)], "are the same token"),
    ):
        with pytest.raises(MnemoError, match=message):
            call(gpt2, given)


@pytest.mark.parametrize("call", CALLS)
def test_a_model_in_training_mode_is_refused(call):
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    pairs = contrasts(model)
    model.bridge.train()
    with pytest.raises(MnemoError, match=r"training mode.*model\.bridge\.eval\(\)"):
        call(model, pairs)


@pytest.mark.parametrize("call", CALLS)
def test_a_quantised_model_is_refused(call):
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    pairs = contrasts(model)
    quantised = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    model.bridge.blocks[0].register_parameter("quantised", quantised)
    with pytest.raises(MnemoError, match=r"quantised weights.*load the full model"):
        call(model, pairs)


@pytest.mark.parametrize("call", [attribute_nodes, attribute_edges, exact_edges])
@pytest.mark.parametrize(
    ("metric_fn", "message"),
    [
        (lambda logits, pairs: metric(logits, pairs).mean(), r"gave \(\) for 5 facts.*do not average"),
        (lambda logits, pairs: logits[:, -1], "one number per fact"),
        (lambda logits, pairs: 0.0, "gave float"),
        (lambda logits, pairs: metric(logits, pairs) * float("nan"), "VB==, VC==, VD== is not finite"),
    ],
)
def test_a_metric_that_is_not_one_finite_number_per_fact_is_refused(gpt2, call, metric_fn, message):
    with pytest.raises(MnemoError, match=message):
        call(gpt2, contrasts(gpt2), metric_fn=metric_fn)


@pytest.mark.parametrize("attribute", [attribute_nodes, attribute_edges])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0: give at least 1"),
        ({"memory_gb": 0.0}, "memory_gb=0.0: give the gigabytes"),
        ({"method": "integrated_inputs", "graddrop": True}, "graddrop has no meaning"),
    ],
)
def test_options_without_a_meaning_are_refused(gpt2, attribute, options, message):
    with pytest.raises(MnemoError, match=message):
        attribute(gpt2, contrasts(gpt2), **options)


@pytest.mark.parametrize("attribute", [attribute_nodes, attribute_edges])
def test_graddrop_needs_two_blocks(attribute):
    model = load(tiny_model("gpt2", layers=1), tokenizer=tiny_tokenizer())
    with pytest.raises(MnemoError, match="this model has one: leave it out"):
        attribute(model, contrasts(model), graddrop=True)


def test_hooks_that_an_architecture_lacks_are_named(gpt2):
    pairs = contrasts(gpt2)[:1]
    tokens = torch.tensor([pairs[0].clean.tokens])
    with pytest.raises(MnemoError, match=r"shows no blocks\.9\.attn\.hook_z.*use a model of another architecture"):
        record(gpt2, tokens, names=["blocks.9.attn.hook_z"], contrasts=pairs, metric_fn=metric)


def test_a_metric_that_is_not_finite_is_refused_with_the_fact():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    with torch.no_grad():
        next(model.bridge.parameters()).fill_(float("nan"))
    with pytest.raises(MnemoError, match="not finite"):
        attribute_nodes(model, contrasts(model))
