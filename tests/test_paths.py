"""Multipliers and paths against completeness, finite differences, brute force and values derived by hand."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mnemo.contrasts import Contrast, make_contrasts
from mnemo.errors import MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.graph import Writer
from mnemo.line import ROUNDING, SLOTS
from mnemo.model import Model, load
from mnemo.multipliers import Multipliers, averaged_multipliers
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.paths import Hop, edges_into, node_values, stream_values, strongest_paths
from mnemo.prompts import AnswerToken, Prompt
from mnemo.tracing import trace
from tests.lexicon import PHRASES
from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer


def contrasts(model: Model) -> list[Contrast]:
    facts = tuple(Fact(fact_id=c, cue=f"V{c}==", answer=a) for c, a in zip("ABCDEF", "TUTUTU", strict=True))
    task = Task(name="t", recall="decode {cue} is", facts="facts.csv")
    return list(make_contrasts(task, FactSet(facts=facts), tokenizer=model.tokens, seed=1).values())


@pytest.fixture(scope="module", params=FAMILIES)
def traced(request):
    """Of some contrasts the one whose metric changes most: weights are random, and shares need a whole."""
    model = load(tiny_model(request.param), tokenizer=tiny_tokenizer())
    made = [averaged_multipliers(model, contrast) for contrast in contrasts(model)]
    return model, *max(made, key=lambda pair: abs(pair[0].total))


def test_all_paths_together_are_the_measured_difference(traced):
    model, multipliers, totals = traced
    (said,) = model.forward([multipliers.contrast.clean.tokens])
    assert multipliers.predicted == int(said[-1].argmax())
    embedded = node_values(multipliers, totals)[0].sum()
    assert abs(float(embedded) - multipliers.total) <= 0.01 * abs(multipliers.total)
    # What is missing is what the quadrature of each component says that it gets wrong.
    assert math.isclose(float(embedded) + sum(totals.errors), multipliers.total, rel_tol=1e-4, abs_tol=1e-6)


def test_every_cut_through_the_model_carries_the_whole(traced):
    """The stream after any number of blocks, all positions together; after the last one only the last position."""
    _, multipliers, totals = traced
    streams = stream_values(multipliers, totals)
    np.testing.assert_allclose(streams.sum(1).cpu(), multipliers.total, atol=0.01 * abs(multipliers.total))
    assert streams[-1, :-1].abs().max() == 0


def test_each_component_sums_to_its_delta(traced):
    """For any gradient: what a head or MLP writes weighs as much as what its inputs are given."""
    model, multipliers, _ = traced
    generator = torch.Generator().manual_seed(0)
    places = [(writer, p) for writer in multipliers.writers[1:] for p in (2, multipliers.length - 1)]
    for writer, position in places:
        gradient = torch.randn(1, model.d_model, generator=generator)
        at, delta = torch.tensor([position]), multipliers.deltas[multipliers.row(writer), position]
        inputs = multipliers.deltas[: multipliers.upstream(writer)].sum(0)
        if writer.kind == "mlp":
            given = (multipliers.mlp(writer.layer, at, gradients=gradient)[0] * inputs[position]).sum()
        else:
            given = (
                multipliers.heads(writer.layer, torch.tensor([writer.head]), positions=at, gradients=gradient)[0]
                * inputs
            ).sum()
        scale = float(gradient.norm() * delta.norm())
        allowed = 1e-4 if writer.kind == "mlp" else 0.02
        assert abs(float(given - (gradient[0] * delta).sum())) <= allowed * scale + 1e-6, writer


def test_nodes_are_the_sums_of_the_edges_into_them(traced):
    # Nodes are added until the heads of each layer together are right, and their errors may cancel: one head of Qwen3
    # is off by 0.0021 of the whole (in float64 too), all heads of its layer by 0.0010. With twice the nodes no
    # component of any family is off by more than 1.1e-5.
    model, coarse, _ = traced
    multipliers = Multipliers(model, coarse.contrast, nodes=2 * coarse.nodes)
    totals = multipliers.totals()
    values = node_values(multipliers, totals)
    nodes = list(itertools.product(multipliers.writers[1:], range(multipliers.length)))
    edges = edges_into(multipliers, totals, readers=itertools.starmap(Hop, nodes), least=0.0, also=())
    into: dict[tuple[Writer | None, int], float] = {}
    for edge in edges:
        key = (edge.target.writer, edge.target.position)
        into[key] = into.get(key, 0.0) + edge.value
    allowed = 5e-5 * abs(multipliers.total)
    for writer, position in nodes:
        node = float(values[multipliers.row(writer), position])
        assert abs(into.get((writer, position), 0.0) - node) <= allowed, (writer, position)
    assert math.isclose(into[None, multipliers.length - 1], multipliers.total, abs_tol=allowed)


def test_nothing_flows_backwards_in_position_or_in_from_before_the_cue(traced):
    _, multipliers, _ = traced
    first = next(i for i, (a, b) in enumerate(pairs(multipliers.contrast)) if a != b)
    for path in strongest_paths(multipliers, top=200):
        positions = [hop.position for hop in path.hops]
        assert positions == sorted(positions) and positions[0] >= first
        assert [hop.slot is not None for hop in path.hops] == [
            hop.writer is not None and hop.writer.kind == "head" for hop in path.hops
        ]


def test_edges_that_are_asked_for_are_given_however_little_they_carry():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    multipliers, totals = averaged_multipliers(model, contrasts(model)[0])
    for reader in (Hop(Writer("head", 1, 0), multipliers.length - 1), Hop(Writer("mlp", 1), multipliers.length - 1)):
        every = edges_into(multipliers, totals, readers=[reader], least=0.0, also=())
        weak = [edge for edge in every if edge.target.writer == reader.writer][-1]
        least = 2 * abs(every[0].value)
        assert edges_into(multipliers, totals, readers=[reader], least=least, also=()) == []
        assert edges_into(multipliers, totals, readers=[reader], least=least, also=[(weak.source, weak.target)]) == [
            weak
        ]


def pairs(contrast):
    return zip(contrast.clean.tokens, contrast.corrupt.tokens, strict=True)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_queries_keys_and_values_are_told_apart_as_by_moving_each_alone(family):
    """Central differences through transformer-lens's own split inputs, averaged over the line by hand."""
    model = load(tiny_model(family), tokenizer=tiny_tokenizer())
    contrast, layer, head, position, nodes = contrasts(model)[0], 1, 2, -1, 4
    multipliers = Multipliers(model, contrast, nodes=nodes)
    generator = torch.Generator().manual_seed(0)
    gradient, length = torch.randn(model.d_model, generator=generator), multipliers.length
    found = multipliers.heads(
        layer, torch.tensor([head]), positions=torch.tensor([length - 1]), gradients=gradient[None]
    )[0]
    both = torch.tensor([contrast.corrupt.tokens, contrast.clean.tokens])
    _, cache = model.bridge.run_with_cache(both)
    corrupt, clean = cache[f"blocks.{layer}.hook_resid_pre"]
    weight = model.bridge.blocks[layer].attn.W_O[head]
    points, weights = np.polynomial.legendre.leggauss(nodes)
    model.bridge.set_use_split_qkv_input(True)
    for slot, name in enumerate(SLOTS):
        direction = torch.randn(length, model.d_model, generator=generator)

        def written(alpha: float, step: float, name: str = name, direction: torch.Tensor = direction) -> float:
            kept = []

            def move(value, hook):
                value = value.clone()
                # Under grouped-query attention a key/value head serves several heads.
                value[:, :, head * value.shape[2] // model.n_heads] += step * direction
                return value

            def keep(value, hook):
                kept.append(value.unflatten(-1, (model.n_heads, -1)) if value.dim() == 3 else value)

            hooks = [
                (f"blocks.{layer}.hook_resid_pre", lambda value, hook: (corrupt + alpha * (clean - corrupt))[None]),
                (f"blocks.{layer}.hook_{name}_input", move),
                (f"blocks.{layer}.attn.hook_z", keep),
            ]
            with torch.no_grad():
                model.bridge.run_with_hooks(both[:1], fwd_hooks=hooks)
            return float(kept[0][0, position, head] @ weight @ gradient)

        step = 1e-2
        slopes = [(written((p + 1) / 2, step) - written((p + 1) / 2, -step)) / (2 * step) for p in points]
        by_hand = float(np.dot(weights / 2, slopes))
        assert abs(float((found[slot] * direction).sum()) - by_hand) <= 0.01 * abs(by_hand) + 2e-3, name


# ---- the search


def every_path(multipliers: Multipliers) -> dict[tuple[Hop, ...], tuple[float, list[float]]]:
    """All paths by brute force, one gradient at a time, with their values and those of all their ends."""
    found = {}

    def before(writer, position, gradient, tail, ends):
        for row, source in enumerate(multipliers.writers[: multipliers.upstream(writer)]):
            for slot, at, vector in gradient:
                value = float(multipliers.deltas[row, at] @ vector)
                if value == 0:
                    continue
                here = (Hop(source, at), Hop(writer, position, slot), *tail)
                if source.layer < 0:
                    found[here] = value, ends
                else:
                    before(source, at, back(source, at, vector), here[1:], [*ends, value])

    def back(writer, position, vector):
        at = torch.tensor([position])
        if writer.kind == "mlp":
            return [(None, position, multipliers.mlp(writer.layer, at, gradients=vector[None])[0])]
        gradient = multipliers.heads(writer.layer, torch.tensor([writer.head]), positions=at, gradients=vector[None])[0]
        return [(slot, s, gradient[i, s]) for i, slot in enumerate(SLOTS) for s in range(multipliers.length)]

    last = multipliers.length - 1
    before(None, last, [(None, last, multipliers.logits())], (), [])
    return found


@pytest.mark.parametrize(("family", "layers"), [("gpt2", 1), ("gpt2", 2), ("gpt_neox", 2)])
def test_the_search_finds_what_brute_force_finds(family, layers):
    model = load(tiny_model(family, layers=layers, heads=2), tokenizer=tiny_tokenizer())
    multipliers, totals = averaged_multipliers(model, contrasts(model)[0])
    everything = every_path(multipliers)
    embedded = float(node_values(multipliers, totals)[0].sum())
    assert math.isclose(sum(value for value, _ in everything.values()), embedded, rel_tol=1e-3, abs_tol=1e-5)

    for top in (5, 50):
        found = strongest_paths(multipliers, top=top)
        assert len(found) == min(top, len(everything))
        assert [abs(path.value) for path in found] == sorted((abs(path.value) for path in found), reverse=True)
        for path in found:
            assert math.isclose(path.value, everything[path.hops][0], rel_tol=1e-3, abs_tol=1e-6)
        # A stronger path is missed only where its end, with all that cancels in it, looks weaker than what is shown.
        weakest, shown = abs(found[-1].value), {path.hops for path in found}
        for hops, (value, ends) in everything.items():
            if hops not in shown and abs(value) > weakest * 1.001:
                assert min(map(abs, ends)) <= weakest * 1.001
        best = sorted(everything, key=lambda hops: -abs(everything[hops][0]))[:top]
        assert len(shown & set(best)) >= 0.6 * len(best)

    found = strongest_paths(multipliers, top=len(everything) + 1)
    assert math.isclose(sum(path.value for path in found), embedded, rel_tol=1e-2, abs_tol=1e-5)


def test_values_by_hand_without_attention():
    """One position matters, and the norm is the identity: the embedding, straight or through one unit of the MLP.

    Coordinate 0 of the embedding goes from 0 (corrupt) to 2 (clean). Straight it adds 2 x 5 logits. The unit reads
    2 x it - 1, that is from -1 to 3, and so writes from 0 to 3: three quarters of the line's slope of 2 are passed on.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    epsilon = 1e6
    config = GPT2Config(
        vocab_size=320, n_positions=8, n_embd=4, n_layer=1, n_head=1, n_inner=2, activation_function="relu",
        layer_norm_epsilon=epsilon, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for module in hf.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(math.sqrt(epsilon))
        body: Any = hf.transformer
        body.wte.weight[10, :2] = torch.tensor([2.0, -2.0])  # a mean of 0, so that the norm takes nothing off
        body.wte.weight[12, 2:] = torch.tensor([1.0, -1.0])
        body.h[0].mlp.c_fc.weight[0, 0], body.h[0].mlp.c_fc.bias[0] = 2.0, -1.0
        body.h[0].mlp.c_proj.weight[0, 2:] = torch.tensor([1.0, -1.0])
        hf.lm_head.weight[20, 0], hf.lm_head.weight[20, 2] = 5.0, 7.0
    model = load(hf, tokenizer=tiny_tokenizer(), check=False)
    clean, corrupt = Prompt("clean", (12, 12, 10), (2, 3)), Prompt("corrupt", (12, 12, 11), (2, 3))
    fact = Fact(fact_id="f", cue="c", answer="a")
    contrast = Contrast(fact, fact, clean, corrupt, AnswerToken(20, "a", True), AnswerToken(21, "b", True))
    multipliers, totals = averaged_multipliers(model, contrast)
    assert multipliers.total == pytest.approx(10 + 21, rel=1e-3)
    paths = strongest_paths(multipliers, top=5)
    assert [[hop.name for hop in path.hops] for path in paths] == [["embed", "MLP0", "logits"], ["embed", "logits"]]
    assert [path.value for path in paths] == pytest.approx([21, 10], rel=1e-3)
    assert stream_values(multipliers, totals)[1, -1].item() == pytest.approx(31, rel=1e-3)
    # The clean prompt loses where the corrupt one wins: the same paths with the opposite sign.
    swapped = Contrast(fact, fact, corrupt, clean, contrast.answer, contrast.contrast_answer)
    backwards = strongest_paths(averaged_multipliers(model, swapped)[0], top=2)
    assert [path.value for path in backwards] == pytest.approx([-21, -10], rel=1e-3)


def test_more_nodes_are_taken_until_the_effect_is_conserved():
    model = load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    contrast = max(contrasts(model), key=lambda pair: abs(Multipliers(model, pair, nodes=4).total))
    errors = []
    for tolerance in (0.5, 1e-2, 1e-4):
        multipliers, totals = averaged_multipliers(model, contrast, tolerance=tolerance)
        errors.append(sum(map(abs, totals.errors)) / abs(multipliers.total))
        assert errors[-1] <= tolerance
    assert multipliers.nodes > 4


def test_prompts_that_differ_from_their_first_token_on_lose_nothing():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    pair = contrasts(model)[0]
    first = next(i for i, (a, b) in enumerate(pairs(pair)) if a != b)
    clean, corrupt = (Prompt("", prompt.tokens[first:], (0, 1)) for prompt in (pair.clean, pair.corrupt))
    short = Contrast(pair.fact, pair.corrupt_fact, clean, corrupt, pair.answer, pair.contrast_answer)
    multipliers, totals = averaged_multipliers(model, short)
    embedded = node_values(multipliers, totals)[0].sum()
    assert float(embedded) == pytest.approx(multipliers.total, rel=0.01)


# ---- organisms


def test_the_compiled_organism_shows_its_constructed_route(tmp_path):
    world = build_world(
        WorldConfig(seed=1, concepts=8, cues_per_concept=3, decoys=3, idles=3, rotes=4, frees=0), PHRASES
    )
    model, tokenizer = compile_organism(world)
    write_folder(tmp_path, world, model=model, tokenizer=tokenizer, name="compiled")
    planted = [fact for fact in world.facts if fact.kind == "mnemonic"]
    model = load(tmp_path / "model")
    into = {"gather": ["embed", "L0H0"], "gather too": ["embed", "L0H1"], "itself": ["embed"]}
    routes = [[*start, "MLP1", "L2H0", "MLP3", "logits"] for start in into.values()]
    for fact in planted[:3]:
        other = next(f for f in planted if f.answer != fact.answer and f.cue[0] != fact.cue[0])
        found = trace(tmp_path, fact.cue, contrast=other.cue, model=model, top=20)
        assert found.conserved < 0.002
        best = found.paths[0]
        assert [step.component for step in best.steps] in routes
        cue_last = -2
        assert [step.position for step in best.steps][-4:] == [cue_last, -1, -1, -1]
        assert best.steps[-3].slot == "v"
        assert {tuple(step.component for step in path.steps) for path in found.paths} <= set(map(tuple, routes))
        assert found.covered == pytest.approx(1, abs=0.002)
        assert found.streams.loc[WAYPOINT, cue_last] == pytest.approx(1, abs=0.002)


# ---- mistakes


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_mlp_that_looks_at_other_positions_is_refused(dtype):
    """It writes up to 1.3 times as much where there are positions before."""
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), dtype=dtype)
    pair = contrasts(model)[0]
    averaged_multipliers(model, pair)

    def grow(module, arguments, written):
        return written * torch.linspace(1, 1.3, written.shape[-2], dtype=written.dtype)[:, None]

    model.bridge.blocks[1].mlp.original_component.register_forward_hook(grow)
    with pytest.raises(MnemoError, match="the MLP of block 1 is not a function of the stream at one position"):
        averaged_multipliers(model, pair)


def test_what_rounding_explains_at_the_largest_value_is_no_other_position():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    pair, least = contrasts(model)[0], ROUNDING[torch.float32] / 2

    def add(module, arguments, written):
        return written + least * written.abs().max() * (written.shape[-2] > 1)

    model.bridge.blocks[1].mlp.original_component.register_forward_hook(add)
    averaged_multipliers(model, pair)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_stream_that_something_else_writes_to_is_refused(sign):
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())

    def write(module, arguments):
        stream, *others = arguments
        clean = torch.arange(len(stream)) == 1 if len(stream) == 2 else torch.zeros(len(stream))
        return stream + sign * clean[:, None, None], *others

    model.bridge.blocks[1].register_forward_pre_hook(write)
    with pytest.raises(MnemoError, match=r"what embedding, heads and MLPs write is off by .* of the last stream"):
        averaged_multipliers(model, contrasts(model)[0])


def test_contrasts_that_compare_nothing_are_refused():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    pair = contrasts(model)[0]
    short = Prompt("x", pair.corrupt.tokens[:-1], pair.corrupt.span)
    for clean, corrupt, says in (
        (pair.clean, pair.clean, "the same"),
        (pair.clean, short, r"has \d+ tokens and the corrupt one"),
    ):
        broken = Contrast(pair.fact, pair.corrupt_fact, clean, corrupt, pair.answer, pair.contrast_answer)
        with pytest.raises(MnemoError, match=says):
            averaged_multipliers(model, broken)
    same = Contrast(pair.fact, pair.corrupt_fact, pair.clean, pair.corrupt, pair.answer, pair.answer)
    with pytest.raises(MnemoError, match="nothing to explain"):
        averaged_multipliers(model, same)
    unlike = next(a for a, b in zip(pair.clean.tokens, pair.corrupt.tokens, strict=True) if a != b)
    embedding = next(model.bridge.parameters())
    with torch.no_grad():
        embedding[unlike] = float("nan")  # which the clean prompt alone has
    with pytest.raises(MnemoError, match="not finite"):
        averaged_multipliers(model, pair)
    with torch.no_grad():
        embedding.fill_(float("nan"))
    with pytest.raises(MnemoError, match="not finite"):
        averaged_multipliers(model, pair)


def test_an_interrupt_leaves_hooks_and_weights_as_found():
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    runs = []

    def interrupt(module, arguments, stop):
        runs.append(module)
        if len(runs) == stop:
            raise KeyboardInterrupt

    def state():
        points = model.bridge.hook_dict.values()
        return [(len(p.fwd_hooks), len(p.bwd_hooks)) for p in points], [
            (p.requires_grad, p.grad) for p in model.bridge.parameters()
        ]

    for stop in (1, 2):  # in the plain run, and in the run at the nodes
        before = state()
        runs.clear()
        handle = model.bridge.blocks[1].register_forward_pre_hook(partial(interrupt, stop=stop))
        with pytest.raises(KeyboardInterrupt):
            averaged_multipliers(model, contrasts(model)[0])
        handle.remove()
        assert state() == before
    averaged_multipliers(model, contrasts(model)[0])
    assert state() == before


def test_names_of_writers():
    assert [writer.name for writer in (Writer("embed"), Writer("head", 0, 3), Writer("mlp", 2))] == [
        "embed",
        "L0H3",
        "MLP2",
    ]
