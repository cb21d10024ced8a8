"""The explorer without a browser: what interventions do, what is drawn, and that nothing typed does harm."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mnemo.extraction
from mnemo.edge_patching import Edge, exact_edges, exact_path
from mnemo.errors import InputError, MnemoError
from mnemo.explorer import Session, explore
from mnemo.explorer.circuits import Circuits
from mnemo.explorer.classic import ClassicExplorer
from mnemo.explorer.details import chain_of
from mnemo.explorer.interventions import DRAWS, Ablate, Bench, PatchFrom, SwapConcept
from mnemo.explorer.places import Place
from mnemo.explorer.reading import Readings
from mnemo.explorer.snapshot import page
from mnemo.explorer.view import SavedView, View
from mnemo.patching import exact_nodes
from mnemo.tracing import trace

HOSTILE = "</script><img src=x onerror=alert(1)>$\\frac{1}{0}$"


@pytest.fixture(scope="module")
def fact(compiled_study):
    _, world, _ = compiled_study
    return next(f for f in world.facts if f.kind == "mnemonic")


@pytest.fixture(scope="module")
def other(compiled_study, fact):
    """A fact with another answer, and so another concept."""
    _, world, _ = compiled_study
    return next(f for f in world.facts if f.kind == "mnemonic" and f.answer != fact.answer)


@pytest.fixture(scope="module")
def opened(compiled_study, fact):
    """A session, opened once: it keeps traces and readings."""
    return Session(compiled_study[0], fact.fact_id)


@pytest.fixture
def session(opened, fact):
    """The session as it was when it was opened."""
    opened.load(SavedView(view=View(fact=fact.fact_id)).model_dump_json())
    return opened


def lost(bench, fact_id, act):
    """By how much an intervention lowers logit(answer) - logit(contrast answer)."""
    contrast = bench.study.contrasts[fact_id]
    change = bench.change(fact_id, contrast.clean, act=act)
    before, after = (bench.said(contrast.clean, changes)[0] for changes in ([], [change]))
    metric = [float(said[contrast.answer.id] - said[contrast.contrast_answer.id]) for said in (before, after)]
    return metric[0] - metric[1]


# ---- interventions


def test_a_swap_gives_the_answer_predicted_beforehand_and_its_control_does_not(session, fact, other):
    session.do({"do": "swap", "concept": f"  {other.concept.phrase} "})
    said = session.outcome
    assert (session.error, said.said, said.says, said.predicted) == ("", fact.answer, other.answer, other.answer)
    place = said.answers.index(other.answer)
    assert said.after[place] > 0.9 and said.control[place] < 0.5
    assert said.before[said.answers.index(fact.answer)] > 0.9


def test_patching_every_component_is_activation_patching(compiled_study, fact):
    """The change of the logit difference under PatchFrom is what `exact_nodes` measures, node by node."""
    study, _, _ = compiled_study
    contrast = study.contrasts[fact.fact_id]
    exact = exact_nodes(study.model, [contrast])
    bench, cue = Bench(study), contrast.corrupt_fact.cue
    for layer, position in ((0, -2), (1, -2), (2, -1), (3, -1)):
        for name, value in (
            (f"MLP{layer}@{position}", exact["mlp"].sel(layer=layer, position=position)),
            (f"L{layer}H0@{position}", exact["heads"].sel(layer=layer, head=0, position=position)),
        ):
            found = lost(bench, fact.fact_id, PatchFrom(part=name, cue=cue))
            assert found == pytest.approx(value.item(), abs=2e-3), name


def test_patching_an_edge_is_edge_patching(compiled_study, fact):
    """An edge into an MLP has one slot, so it must be what `exact_edges` measures."""
    study, _, _ = compiled_study
    contrast = study.contrasts[fact.fact_id]
    exact = exact_edges(study.model, [contrast])["score"].isel(fact=0)
    bench, cue = Bench(study), contrast.corrupt_fact.cue
    tried = 0
    for writer, label in (("embed", "embed"), ("MLP0", "mlp0"), ("L0H0", "h0.0"), ("L1H0", "h1.0")):
        for layer in range(1, study.model.n_layers):
            if writer == "L1H0" and layer < 2:
                continue
            value = exact.sel(writer=label, reader=f"mlp{layer}", position=-2).item()
            found = lost(bench, fact.fact_id, PatchFrom(part=f"{writer}@-2>MLP{layer}@-2", cue=cue))
            assert found == pytest.approx(value, abs=2e-3), (writer, layer)
            tried += abs(value) > 0.1
    assert tried  # zeros alone would say nothing


def test_patching_a_path_is_path_patching(session, compiled_study, fact):
    study, _, _ = compiled_study
    contrast = study.contrasts[fact.fact_id]
    bench = Bench(study)
    traced = trace(study, contrast, top=3)
    for path in traced.paths:
        edges = [_edge(before, after) for before, after in pairwise(path.steps)]
        exact = exact_path(study.model, [contrast], path=edges).item()
        act = PatchFrom(part=chain_of(path), cue=contrast.corrupt_fact.cue)
        assert lost(bench, fact.fact_id, act) == pytest.approx(exact, abs=2e-3)
    session.do({"do": "select", "what": "path 1"})
    assert session.detail["part"] == chain_of(traced.paths[0])


def _edge(before, after):
    writer = "embed" if before.component == "embed" else _label(before)
    if after.component == "logits":
        return Edge(writer, "logits", -1)
    if after.slot:
        return Edge(writer, f"{after.slot}{after.layer}.{after.head}", before.position)
    return Edge(writer, _label(after), before.position)


def _label(step):
    return f"mlp{step.layer}" if step.head is None else f"h{step.layer}.{step.head}"


def test_an_edge_to_the_logits_and_a_whole_layer_of_heads_are_the_sums_they_stand_for(compiled_study, fact):
    """The final norm is the only thing that is not linear on the way, and it is the same for both ways of adding."""
    study, _, _ = compiled_study
    bench, prompt = Bench(study), study.prompt(fact.fact_id)
    cue, last = study.contrasts[fact.fact_id].corrupt_fact.cue, study.model.n_layers - 1
    parts = [f"L{last}H{head}@-1>logits@-1" for head in range(study.model.n_heads)]
    each = [bench.change(fact.fact_id, prompt, act=PatchFrom(part=part, cue=cue)).value for part in parts]
    whole = bench.change(fact.fact_id, prompt, act=PatchFrom(part=f"L{last}@-1>logits@-1", cue=cue))
    torch.testing.assert_close(whole.value, torch.stack(each).sum(0), rtol=1e-4, atol=1e-5)


def test_ablation_sets_the_mean_over_other_facts(compiled_study, fact):
    study, _, _ = compiled_study
    bench, node = Bench(study), "MLP0@-2"
    change = bench.change(fact.fact_id, study.prompt(fact.fact_id), act=Ablate(part=node))
    place = Place.named(node, study.model)
    values = [
        bench.component([study.prompt(name)], place)[0]
        for name in study.table.loc[study.table["recalled"], "fact_id"]
        if name != fact.fact_id
    ][:64]
    torch.testing.assert_close(change.value, torch.stack(values).mean(0), rtol=1e-4, atol=1e-5)


def test_controls_move_as_far_as_the_intervention_and_each_elsewhere(compiled_study, fact, other):
    study, _, _ = compiled_study
    bench, prompt = Bench(study), study.prompt(fact.fact_id)
    acts = [SwapConcept(concept=other.concept.phrase), Ablate(part="L1H0@-2")]
    changes = [bench.change(fact.fact_id, prompt, act=act) for act in acts]
    controls = bench.controls(prompt, changes)
    assert [len(control.value) for control in controls] == [DRAWS, DRAWS]
    torch.testing.assert_close(controls[0].value.norm(dim=-1), changes[0].value.norm().expand(DRAWS))
    clean = bench.component([prompt], Place.named("L1H0@-2", study.model))[0]
    steps = (controls[1].value - clean).flatten(1).norm(dim=-1)
    torch.testing.assert_close(steps, (changes[1].value - clean).norm().expand(DRAWS), rtol=1e-4, atol=1e-6)
    alike = torch.nn.functional.cosine_similarity(controls[0].value[:1], controls[0].value[1:])
    assert alike.abs().max() < 0.9


def test_a_typed_concept_moves_as_one_of_the_study_does_from_its_prompt(session, compiled_study, fact, other):
    """A concept whose cues are left out of the study is known by its prompt alone, and still brings its answer."""
    study, _, _ = compiled_study
    table = study.table.copy()
    table.loc[table["concept"] == other.concept.phrase, "concept"] = None
    bench = Bench(replace(study, table=table))
    assert other.concept.phrase not in bench.concepts.table.phrases
    outcome = bench.run(fact.fact_id, [SwapConcept(concept=other.concept.phrase)])
    assert (outcome.says, outcome.predicted) == (other.answer, other.answer)


def test_interventions_add_up_are_logged_and_undone(session, other):
    session.do({"do": "swap", "concept": other.concept.phrase})
    alone = session.outcome
    session.do({"do": "ablate", "part": "MLP0@-1"})
    session.do({"do": "ablate", "part": "MLP0@-2>MLP1@-2"})
    log = [f"swap the concept for {other.concept.phrase}", "ablate MLP0@-1", "ablate MLP0@-2 → MLP1@-2"]
    assert session.state()["log"] == log
    session.do({"do": "undo"})
    session.do({"do": "undo"})
    assert session.outcome == alone
    session.do({"do": "clear"})
    assert session.outcome is None and session.state()["code"] == ""


def test_the_exported_code_gives_the_same_numbers(session, compiled_study, other, monkeypatch, capsys):
    """It is run as it stands. `extract` alone is not computed again: it gives the study if asked for the same one."""
    study, _, folder = compiled_study

    def extract(source, **options):
        assert (source, options) == (str(folder), {"quick": True})
        return study

    monkeypatch.setattr(mnemo.extraction, "extract", extract)
    monkeypatch.setattr(mnemo, "extract", extract, raising=False)
    session.do({"do": "swap", "concept": other.concept.phrase})
    session.do({"do": "ablate", "part": "MLP0@-2>MLP1@-2"})
    session.do({"do": "patch", "part": "L1H0@-2", "cue": other.cue})
    code = session.state()["code"]
    ast.parse(code)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["session"].outcome == session.outcome
    assert capsys.readouterr().out.strip() == repr(session.outcome)
    with pytest.raises(AssertionError, match="not the same"):
        exec(code.replace(study.record["inputs"], "0" * 64), {})


# ---- mistakes


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"do": "fly"}, "no action 'fly'"),
        ({}, "no action None"),
        ({"do": "ablate", "part": "MLP99@-1"}, "no component"),
        ({"do": "ablate", "part": "logits@-1"}, "no component"),
        ({"do": "ablate", "part": "MLP0@-0"}, "no component"),
        ({"do": "ablate", "part": "MLP0@-99"}, "tokens"),
        ({"do": "ablate", "part": "MLP1@-2>MLP0@-2"}, "does not read"),
        ({"do": "ablate", "part": "MLP0@-1>L1H0@-2"}, "does not read"),
        ({"do": "ablate", "part": "MLP0@-2>L1H0.q@-1"}, "does not read"),
        ({"do": "ablate", "part": "MLP0@-2>logits@-1"}, "read at -1"),
        ({"do": "ablate", "part": "MLP0@-2>" * 400}, "2000"),
        ({"do": "ablate"}, "part"),
        ({"do": "swap", "concept": "words that no tokenizer here can spell"}, "cannot be asked about"),
        ({"do": "swap", "concept": "x" * 10_000}, "cannot be asked about"),
        ({"do": "swap", "concept": "x" * 10_001}, "10000"),
        ({"do": "patch", "part": "MLP0@-2", "cue": HOSTILE}, ""),
        ({"do": "fact", "fact": "nobody"}, "no fact 'nobody'"),
        ({"do": "fact", "fact": "x" * 10_000}, "no fact"),
        ({"do": "select", "what": "MLP7@-7"}, "is not shown"),
        ({"do": "select", "what": "MLP0@-2>MLP7@-7"}, "is not shown"),
        ({"do": "select", "what": "path 999"}, "path 999"),
        ({"do": "show", "least_share": 7}, "least_share"),
        ({"do": "show", "fact": "f"}, "no setting"),
        ({"do": "load", "text": "{}"}, "not a saved view"),
        ({"do": "load", "text": "["}, "not a saved view"),
        (
            {"do": "load", "text": json.dumps({"format": "mnemo view 1", "view": {"fact": "a"}, "\x1e\nx": 0})},
            "x1e x: Extra",
        ),
        ({"do": "load", "text": '{"view": {"fact": "nobody"}}'}, "no fact"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_changes_nothing(session, message, says):
    before = session.view, session.scenes, session.acts, session.outcomes
    session.do(message)
    assert session.error and says in session.error and "\n" not in session.error and len(session.error) < 500
    assert (session.view, session.scenes, session.acts, session.outcomes) == before


@given(
    text=st.text(max_size=200)
    | st.dictionaries(st.text(max_size=8), st.integers() | st.text(), max_size=4).map(json.dumps)
)
def test_a_saved_view_is_data(text):
    with pytest.raises(InputError):
        SavedView.parse(text)


def test_a_fact_that_is_not_there_is_refused(compiled_study):
    with pytest.raises(MnemoError, match="no fact"):
        explore(compiled_study[0], "nobody")


def test_a_view_has_no_other_fields():
    with pytest.raises(MnemoError, match="least_share"):
        View(fact="f").changed(least_share=float("nan"))


# ---- what is drawn


def test_views_come_back_as_they_were_saved(session, other):
    session.do({"do": "show", "least_share": 0.05, "group": "layer"})
    session.do({"do": "beside", "fact": other.cue})
    session.do({"do": "swap", "concept": other.concept.phrase})
    session.do({"do": "pin", "node": "MLP0@-1"})
    session.do({"do": "select", "what": "MLP0@-1"})
    session.do({"do": "save"})
    text = session.state()["files"]["mnemo-view.json"]
    shown = session.view, session.acts, session.outcomes, session.scenes, session.detail
    session.do({"do": "fact", "fact": other.fact_id})
    session.do({"do": "show", "least_share": 0.2, "group": "head"})
    session.do({"do": "load", "text": text})
    assert session.error == ""
    assert (session.view, session.acts, session.outcomes, session.scenes, session.detail) == shown
    with pytest.raises(InputError, match="at most"):
        SavedView.parse(" " * 2**21)


def test_a_saved_graph_is_read_by_networkx(session):
    session.do({"do": "save"})
    (saved,) = SavedView.parse(session.state()["files"]["mnemo-view.json"]).graphs
    graph = nx.node_link_graph(saved, edges="edges")
    scene = session.scenes[0]
    assert graph.number_of_nodes() == len(scene["nodes"]) and graph.number_of_edges() == len(scene["edges"])
    for node in scene["nodes"]:
        assert graph.nodes[node["id"]]["value"] == node["value"]
    edge = scene["edges"][0]
    assert graph.edges[edge["from"], edge["to"]]["share"] == edge["share"]


def test_a_scene_shows_what_is_strong_and_what_is_pinned(session):
    def ids():
        return {node["id"] for node in session.scenes[0]["nodes"]}

    session.do({"do": "show", "least_share": 0.5, "top": 1})
    few = ids()
    session.do({"do": "show", "least_share": 0.0})
    many = ids()
    assert few < many
    weak = sorted(many - few)[0]
    session.do({"do": "select", "what": weak})
    session.do({"do": "show", "least_share": 0.5})
    assert session.view.selected is None  # it went with the rest
    session.do({"do": "pin", "node": weak})
    assert ids() == few | {weak}
    session.do({"do": "pin", "node": weak})
    assert ids() == few


def test_every_step_of_a_listed_path_is_drawn(session):
    session.do({"do": "show", "least_share": 0.5, "top": 50})
    scene = session.scenes[0]
    nodes = {node["id"] for node in scene["nodes"]}
    edges = {edge["id"] for edge in scene["edges"]}
    links = {f"{a}>{b}" for path in scene["paths"] for a, b in pairwise(path["nodes"])}
    assert {node for path in scene["paths"] for node in path["nodes"]} <= nodes
    assert links <= edges


def test_grouping_by_layer_keeps_the_sums(session):
    scene = {
        g: session.do({"do": "show", "least_share": 0.0, "group": g}) or session.scenes[0] for g in ("head", "layer")
    }
    heads = {node["id"]: node["value"] for node in scene["head"]["nodes"]}
    grouped = [node for node in scene["layer"]["nodes"] if node["id"].startswith("L")]
    assert grouped and not any("H" in node["id"] for node in grouped)
    for node in grouped:
        layer, place = node["id"].split("@")
        mine = [v for name, v in heads.items() if name.startswith(f"{layer}H") and name.endswith(f"@{place}")]
        assert node["value"] == pytest.approx(sum(mine), abs=1e-4)


@pytest.mark.parametrize("least_share", [0.0, 0.02, 0.6])
def test_nodes_stand_apart_and_in_the_band_of_their_layer(session, least_share):
    session.do({"do": "show", "least_share": least_share, "top": 1 if least_share > 0.5 else 10})
    scene = session.scenes[0]
    places = [(node["x"], node["y"]) for node in scene["nodes"]]
    nearest = min(abs(x - u) + abs(y - v) for i, (x, y) in enumerate(places) for u, v in places[:i])
    assert nearest >= 28  # two of the largest
    bands = {band["text"]: band for band in scene["bands"] if not band["folded"]}
    for node in scene["nodes"]:
        layer = node["id"].split("@")[0].strip("MLP").partition("H")[0]
        if layer.isdecimal():
            band = bands[f"layer {layer}"]
            assert band["y"] + node["r"] <= node["y"] <= band["y"] + band["height"] - node["r"]
    edges = sorted((band["y"], band["y"] + band["height"]) for band in scene["bands"])
    assert all(below[0] >= above[1] for above, below in pairwise(edges))
    layer, mark = session.study.waypoint.site.layer, scene["waypoint"]
    for text, band in bands.items():  # the mark stands between the blocks before it and after it
        number = int(text.split()[1])
        assert mark["y"] + 10 <= band["y"] if number < layer else mark["y"] - 10 >= band["y"] + band["height"]


def test_layers_with_nothing_to_show_are_folded(session):
    session.do({"do": "show", "least_share": 0.9, "top": 1})
    scene = session.scenes[0]
    named = {node["id"].split("@")[0] for node in scene["nodes"]}
    for band in scene["bands"]:
        layers = [int(word) for word in band["text"].replace(":", " ").split() if word.isdecimal()]
        empty = not any(name.strip("MLP").partition("H")[0] == str(layer) for name in named for layer in layers)
        assert band["folded"] == empty


# ---- what is said of it


def test_a_node_is_described_by_scores_attention_and_what_it_reads_as(session, compiled_study, fact):
    study, _, _ = compiled_study
    session.do({"do": "show", "least_share": 0.0})
    site = study.waypoint.site
    session.do({"do": "select", "what": f"MLP{site.layer - 1}@{site.position}"})
    detail = session.detail
    assert detail["concepts"][0]["phrase"] == study.readings[fact.fact_id][0].phrase == fact.concept.phrase
    assert detail["share"] * session.scenes[0]["total"] == pytest.approx(detail["value"])
    session.do({"do": "select", "what": "L0H0@-2"})
    assert sum(row["weight"] for row in session.detail["attention"]) == pytest.approx(1, abs=1e-4)
    assert [row["token"] for row in session.detail["attention"]] == [t["text"] for t in session.scenes[0]["tokens"]]


def test_the_last_state_reads_as_what_the_model_says(session):
    """The lens after the last block at the last token is no lens: it is the model's own answer."""
    session.do({"do": "show", "least_share": 0.0})
    session.do({"do": "select", "what": f"MLP{session.study.model.n_layers - 1}@-1"})
    bench = Bench(session.study)
    said = bench.said(session.study.prompt(session.view.fact), [])[0].exp()
    (token,) = session.study.model.tokens.pieces([int(said.argmax())])
    assert session.detail["tokens"][0]["token"] == token.strip()
    assert session.detail["tokens"][0]["p"] == pytest.approx(said.max().item(), abs=1e-4)


@pytest.mark.parametrize("asked", [True, False])
def test_concepts_are_read_as_the_study_read_them(compiled_study, asked):
    """What is read for a click, one fact against some others, agrees with what was read of all facts together.

    So it does where the task has no verbalise template and the phrases of its lexicon are compared.
    """
    study, world, _ = compiled_study
    if not asked:
        study = replace(study, task=study.task.model_copy(update={"verbalise": None}))
    readings, site = Readings(Bench(study)), study.waypoint.site
    planted = [f.fact_id for f in world.facts if f.kind == "mnemonic"][:4]
    found = [readings._read(name, site)[0].phrase for name in planted]
    assert found == [study.readings[name][0].phrase for name in planted]


def test_where_a_lens_is_all_that_reads_the_explorer_reads_with_it(compiled_study, fact):
    study, _, _ = compiled_study
    bare = replace(study, task=study.task.model_copy(update={"verbalise": None, "concepts": None}))
    (token, *_) = Readings(Bench(bare))._read(fact.fact_id, study.waypoint.site)
    assert " " not in token.phrase  # of the concept's three words


def test_an_edge_says_how_it_is_read_and_a_path_what_each_step_carries(session, compiled_study, fact):
    session.do({"do": "show", "least_share": 0.0, "top": 5})
    scene = session.scenes[0]
    edge = next(edge for edge in scene["edges"] if edge["to"].startswith("L"))
    session.do({"do": "select", "what": edge["id"]})
    assert sum(session.detail["slots"].values()) == pytest.approx(edge["value"], abs=1e-4)
    assert set(session.detail["slots"]) <= {"q", "k", "v"} and session.detail["attention"]
    session.do({"do": "select", "what": "path 2"})
    detail = session.detail
    assert [step["id"] for step in detail["steps"]] == scene["paths"][1]["nodes"]
    assert detail["value"] == pytest.approx(detail["share"] * scene["total"])


# ---- two facts, two models, a trace alone


def test_two_facts_stand_side_by_side_and_both_answer(session, fact, other):
    session.do({"do": "beside", "fact": other.fact_id})
    assert [scene["fact"] for scene in session.scenes] == [fact.fact_id, other.fact_id]
    session.do({"do": "swap", "concept": other.concept.phrase})
    first, second = session.outcomes
    assert (first.said, first.says) == (fact.answer, other.answer)
    assert (second.said, second.says) == (other.answer, other.answer)  # it was that concept already
    session.do({"do": "beside", "fact": None})
    assert len(session.scenes) == len(session.outcomes) == 1


def test_two_models_stand_side_by_side_and_what_one_cannot_is_said_there(compiled_study, fact, other):
    study, _, _ = compiled_study
    twins = Session(study, fact.fact_id, other=study)
    twins.do({"do": "swap", "concept": other.concept.phrase})
    assert twins.outcomes[0] == twins.outcomes[1]
    assert all(f"model {i}" in scene["title"] for i, scene in enumerate(twins.scenes, start=1))
    without = replace(study, contrasts={name: c for name, c in study.contrasts.items() if name != fact.fact_id})
    half = Session(study, fact.fact_id, other=without)
    assert "has no contrast" in half.scenes[1]["missing"]
    half.do({"do": "ablate", "part": "MLP0@-2>MLP1@-2"})
    assert half.error == "" and half.outcome is not None and "no contrast" in str(half.outcomes[1])
    assert half.state()["outcomes"][1]["error"] == half.outcomes[1]


def test_a_trace_alone_can_be_looked_at(compiled_study, fact):
    study, _, _ = compiled_study
    found = trace(study, study.contrasts[fact.fact_id])
    session = Session(found)
    session.do({"do": "select", "what": "path 1"})
    assert session.error == "" and not session.state()["live"] and session.detail["steps"]
    session.do({"do": "ablate", "part": "MLP0@-2"})
    assert "no model" in session.error
    session.do({"do": "snapshot"})
    assert session.error == ""
    with pytest.raises(MnemoError, match="two studies"):
        Circuits(found, study)


# ---- hostile text


def test_hostile_facts_are_listed_drawn_and_exported_as_text(compiled_study, fact):
    study, _, _ = compiled_study
    table = study.table.copy()
    mine = table["fact_id"] == fact.fact_id
    table.loc[mine, "cue"], table.loc[mine, "concept"] = HOSTILE, "x" * 10_000
    hostile = replace(study, table=table)
    contrast = study.contrasts[fact.fact_id]
    named = replace(contrast, fact=contrast.fact.model_copy(update={"cue": HOSTILE}))
    hostile = replace(hostile, contrasts={**study.contrasts, fact.fact_id: named})
    session = Session(hostile, fact.fact_id)
    listed = session.catalog()
    assert all(len(str(value)) <= 200 for row in listed["facts"] for value in row.values())
    assert all(len(phrase) <= 200 for phrase in listed["concepts"])
    assert HOSTILE[:20] in session.scenes[0]["title"] and len(session.scenes[0]["title"]) <= 120
    text = page(session.state(), session.scenes, details={})
    assert text.count("</script>") == 2 and "<img" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    json.dumps([listed, session.scenes, session.state()], allow_nan=False)
    classic = ClassicExplorer(session)  # dollars are no formula
    assert bytes(classic.circuit.value).startswith(b"\x89PNG")


# ---- front ends


def test_the_widget_answers_messages(compiled_study, fact, other):
    widget = explore(compiled_study[0], fact.fact_id)
    widget._receive(widget, {"do": "swap", "concept": other.concept.phrase}, [])
    assert widget.state["outcomes"][0]["says"] == other.answer
    drawn = widget.scenes
    widget._receive(widget, {"do": "select", "what": "path 1"}, [])
    assert widget.scenes is drawn  # what did not change is not sent again
    assert widget.state["detail"]["id"] == "path 1"
    widget._receive(widget, "nonsense", [])
    assert "no action" in widget.state["error"]


def test_the_classic_front_end_does_the_same_by_buttons(compiled_study, fact, other):
    study, _, _ = compiled_study
    classic = explore(study, fact.cue, classic=True)
    everything = len(classic.fact.options)
    classic.verdict.value = "rote"
    assert 1 <= len(classic.fact.options) < everything and classic.fact.value == fact.fact_id
    classic.verdict.value, classic.search.value = "any", other.cue
    assert other.fact_id in [value for _, value in classic.fact.options]
    classic.concept.value = other.concept.phrase
    classic.swap.click()
    assert classic.message.value == f"swap the concept for {other.concept.phrase}"
    assert classic.session.outcomes[0].says == other.answer  # pyright: ignore[reportAttributeAccessIssue]
    assert all(bytes(image.value).startswith(b"\x89PNG") for image in (classic.circuit, classic.answers))
    classic.part.value = "MLP1@-2"
    assert "logits" in classic.reading.value
    classic.ablate.click()
    assert classic.message.value.endswith("; ablate MLP1@-2")
    classic.undo.click()
    classic.undo.click()
    assert classic.message.value == "no interventions" and classic.answers.value == b""
    classic.cue.value = "no such cue"
    classic.patch.click()
    assert "no such cue" in classic.message.value or "spell" in classic.message.value
    classic.fact.value = other.fact_id
    assert classic.session.view.fact == other.fact_id
    classic.group.value = "layer"
    assert classic.session.view.group == "layer"
