"""Are circuits of edges what they say? Against the clean, the corrupt and singly patched runs, and built organisms."""

from __future__ import annotations

import pytest
import xarray as xr

from mnemo.attribution import attribute_edges
from mnemo.edge_circuits import faithfulness
from mnemo.edge_patching import Edge, exact_edges, path_edges
from mnemo.errors import MnemoError
from mnemo.model import load
from mnemo.tracing import trace
from tests.tiny_models import tiny_contrasts, tiny_model, tiny_tokenizer


def made(family):
    model = load(tiny_model(family), tokenizer=tiny_tokenizer())
    return model, tiny_contrasts(model)[:2]


# Post-norms and grouped heads, learned positions, MLPs that see their own block's heads or not.
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_all_edges_are_the_clean_run_and_none_the_corrupt_one(family):
    model, contrasts = made(family)
    edges = attribute_edges(model, contrasts)
    found = faithfulness(model, contrasts, edges=edges, draws=1)
    most = found.groupby(["fact", "order", "setting"])["edges"].transform("max")
    whole = found[found["edges"] == most].set_index(["fact", "setting"])
    for name in edges.fact.values.tolist():
        clean, corrupt = (float(edges[f"metric_{run}"].sel(fact=name)) for run in ("clean", "corrupt"))
        assert whole.loc[(name, "kept"), "metric"].to_numpy() == pytest.approx(clean, abs=1e-4)
        assert whole.loc[(name, "removed"), "metric"].to_numpy() == pytest.approx(corrupt, abs=1e-4)
    expected = [float(setting == "kept") for _, setting in whole.index]
    assert whole["share"].to_numpy() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_one_removed_edge_is_one_patched_edge(family):
    model, contrasts = made(family)
    edges = attribute_edges(model, contrasts)
    strongest = abs(edges["score"]).fillna(0).argmax(["writer", "reader", "position"])
    only = xr.zeros_like(edges["score"], dtype=bool)
    for i, name in enumerate(edges.fact.values):
        only.loc[{"fact": name}][{dim: int(at[i]) for dim, at in strongest.items()}] = True
    exact = exact_edges(model, contrasts, only=only)["score"].max(["writer", "reader", "position"])
    found = faithfulness(model, contrasts, edges=edges, counts=[1], draws=0)
    removed = found[found["setting"] == "removed"].set_index("fact")["metric"]
    for name in edges.fact.values.tolist():
        assert float(edges["metric_clean"].sel(fact=name)) - removed[name] == pytest.approx(
            float(exact.sel(fact=name)), abs=1e-4
        )


def test_a_built_route_of_seven_edges_is_found_and_nothing_less_will_do(compiled_study):
    # Two characters of the code are gathered, evoke a concept, which is carried to the end and becomes the answer.
    study, world, _ = compiled_study
    planted = [fact.fact_id for fact in world.facts if fact.kind == "mnemonic"]
    pairs = [study.contrasts[fact] for fact in planted]
    contrast = next(
        pair for pair in pairs
        if pair.corrupt_fact.fact_id in planted and not {*pair.fact.cue[:2]} & {*pair.corrupt_fact.cue[:2]}
    )  # fmt: skip
    edges = attribute_edges(study.model, [contrast], method="integrated_inputs")
    found = faithfulness(
        study.model,
        [contrast],
        edges=edges,
        counts=[6, 7],
        traces={contrast.fact.fact_id: trace(study, contrast, top=2)},
    )
    share = found.groupby(["order", "setting", "edges"])["share"].mean()
    for order in ("score", "paths"):  # short of one, it says the other answer, or (a half) nothing at all
        assert share[order, "kept", 6] <= 0.51 and share[order, "kept", 7] == pytest.approx(1, abs=0.01)
        assert share[order, "removed", 7] == pytest.approx(0, abs=0.01)
    assert share["random", "kept", 6] <= 0.51


def test_the_edges_of_a_path_are_named_as_they_are_patched(compiled_study):
    study, _, _ = compiled_study
    for path in trace(study, next(iter(study.contrasts.values())), top=5).paths:
        edges = path_edges(study.model, path)
        assert [edge.position for edge in edges] == [step.position for step in path.steps[:-1]]
        assert edges[0].writer == "embed" and edges[-1].reader == "logits"


def test_a_path_through_grouped_heads_names_the_shared_key():
    from mnemo.trace_record import TracedPath, TraceStep

    model = load(tiny_model("llama"), tokenizer=tiny_tokenizer())  # 4 heads, 2 of keys and values
    steps = (
        TraceStep(component="embed", position=-3, token="V"),
        TraceStep(component="L0H3", position=-2, slot="v"),
        TraceStep(component="MLP0", position=-2),
        TraceStep(component="L1H2", position=-2, slot="q"),
        TraceStep(component="logits", position=-1),
    )
    assert path_edges(model, TracedPath(steps=steps, value=1.0, share=1.0)) == [
        Edge("embed", "v0.1", -3),
        Edge("h0.3", "mlp0", -2),
        Edge("mlp0", "q1.2", -2),
        Edge("h1.2", "logits", -2),
    ]


def test_what_cannot_be_run_is_said():
    model, contrasts = made("gpt2")
    edges = attribute_edges(model, contrasts)
    with pytest.raises(MnemoError, match="of other facts"):
        faithfulness(model, contrasts[:1], edges=edges)
    other = trace(model, contrasts[0], top=1).model_copy(update={"contrast_id": "nobody"})
    with pytest.raises(MnemoError, match="against another fact"):
        faithfulness(model, contrasts, edges=edges, traces={other.fact_id: other})
    for counts in ([], [0, 3]):
        with pytest.raises(MnemoError, match="at least 1"):
            faithfulness(model, contrasts, edges=edges, counts=counts)
    blank = edges.assign(score=0.0 * edges["score"])
    with pytest.raises(MnemoError, match="nothing to rank"):
        faithfulness(model, contrasts, edges=blank)
