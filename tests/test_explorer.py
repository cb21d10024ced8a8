"""The explorer without a browser: what interventions do, what is drawn, and that nothing typed does harm."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemo.errors import InputError, MnemoError
from mnemo.explorer import Session, explore
from mnemo.explorer.interventions import Ablate, Bench, PatchFrom, Place, SwapConcept
from mnemo.explorer.snapshot import page
from mnemo.explorer.view import SavedView, View
from mnemo.patching import exact_nodes
from mnemo.tracing import trace


@pytest.fixture(scope="module")
def fact(compiled_study):
    _, world, _ = compiled_study
    return next(f for f in world.facts if f.kind == "mnemonic")


@pytest.fixture
def session(compiled_study, fact):
    return Session(compiled_study[0], fact.fact_id)


def other_concept(world, fact):
    return next(f for f in world.facts if f.kind == "mnemonic" and f.answer != fact.answer)


def test_a_swap_gives_the_answer_predicted_beforehand_and_its_control_does_not(session, compiled_study, fact):
    _, world, _ = compiled_study
    other = other_concept(world, fact)
    session.do({"do": "swap", "concept": other.concept.phrase})
    assert (session.error, session.outcome.says, session.outcome.predicted) == ("", other.answer, other.answer)
    at = session.outcome.answers.index(other.answer)
    assert session.outcome.after[at] > 0.9 and session.outcome.control[at] < 0.5
    assert session.outcome.before[session.outcome.answers.index(fact.answer)] > 0.9


def test_patching_every_component_is_activation_patching(compiled_study, fact):
    """The change of the logit difference under PatchFrom is what `exact_nodes` measures, node by node."""
    study, _, _ = compiled_study
    contrast = study.contrasts[fact.fact_id]
    exact = exact_nodes(study.model, [contrast])
    bench = Bench(study)
    for layer, position in ((0, -2), (1, -2), (2, -1), (3, -1)):
        for name, value in (
            (f"MLP{layer}", exact["mlp"].sel(layer=layer, position=position)),
            (f"L{layer}H0", exact["heads"].sel(layer=layer, head=0, position=position)),
        ):
            change = bench._change(
                fact.fact_id, contrast.clean, PatchFrom(node=f"{name}@{position}", cue=contrast.corrupt_fact.cue)
            )
            said = [bench._said(contrast.clean, []), bench._said(contrast.clean, [change])]
            metric = [float(s[contrast.answer.id] - s[contrast.contrast_answer.id]) for s in said]
            assert metric[0] - metric[1] == pytest.approx(value.item(), abs=2e-3), name


def test_ablation_sets_the_mean_over_other_facts(compiled_study, fact):
    study, _, _ = compiled_study
    bench, node = Bench(study), "MLP0@-2"
    prompt = study.prompt(fact.fact_id)
    change = bench._change(fact.fact_id, prompt, Ablate(node=node))
    place = Place.named(node, study.model)
    values = [
        bench._component([study.prompt(other)], place)[0]
        for other in study.table.loc[study.table["recalled"], "fact_id"]
        if other != fact.fact_id
    ][:64]
    torch.testing.assert_close(change.value, torch.stack(values).mean(0), rtol=1e-4, atol=1e-5)


def test_the_control_moves_as_far_as_the_intervention(compiled_study, fact):
    study, world, _ = compiled_study
    bench, prompt = Bench(study), study.prompt(fact.fact_id)
    acts = [SwapConcept(concept=other_concept(world, fact).concept.phrase), Ablate(node="L1H0@-2")]
    changes = [bench._change(fact.fact_id, prompt, act) for act in acts]
    control = bench._random(prompt, changes)
    assert control[0].value.norm() == pytest.approx(changes[0].value.norm().item(), rel=1e-4)
    clean = bench._component([prompt], Place.named("L1H0@-2", study.model))[0]
    steps = [(change.value - clean).norm().item() for change in (changes[1], control[1])]
    assert steps[0] == pytest.approx(steps[1], rel=1e-4, abs=1e-6)


def test_interventions_add_up_are_logged_undone_and_repeatable(session, compiled_study, fact):
    _, world, _ = compiled_study
    other = other_concept(world, fact)
    session.do({"do": "swap", "concept": other.concept.phrase})
    alone = session.outcome
    session.do({"do": "ablate", "node": "MLP0@-1"})
    assert session.state()["log"] == [f"swap the concept for {other.concept.phrase}", "ablate MLP0@-1"]
    code = session.code()
    assert f"session.swap(concept={other.concept.phrase!r})" in code and "session.ablate(node='MLP0@-1')" in code
    lines = [line for line in code.splitlines() if line.startswith("session.")]
    again = Session(compiled_study[0], fact.fact_id)
    for line in lines:
        exec(line, {"session": again})
    assert again.outcome == session.outcome
    session.do({"do": "undo"})
    assert session.outcome == alone
    session.do({"do": "undo"})
    assert session.outcome is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"do": "fly"}, "no action 'fly'"),
        ({}, "no action None"),
        ({"do": "ablate", "node": "MLP99@-1"}, "no component"),
        ({"do": "ablate", "node": "logits@-1"}, "no component"),
        ({"do": "ablate", "node": "MLP0@-99"}, "tokens"),
        ({"do": "ablate"}, "node"),
        ({"do": "swap", "concept": "words that no tokenizer here can spell"}, "cannot be asked about"),
        ({"do": "swap", "concept": "x" * 10_001}, "10000"),
        ({"do": "patch", "node": "MLP0@-2", "cue": "<img src=x onerror=alert(1)>"}, ""),
        ({"do": "fact", "fact": "nobody"}, "no fact 'nobody'"),
        ({"do": "select", "what": "MLP7@-7"}, "is not shown"),
        ({"do": "select", "what": "path 999"}, "path 999"),
        ({"do": "show", "least_share": 7}, "least_share"),
        ({"do": "show", "fact": "f"}, "no setting"),
        ({"do": "load", "text": "{}"}, "not a saved view"),
        ({"do": "load", "text": "["}, "not a saved view"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_changes_nothing(session, message, says):
    before = session.view, session.acts
    session.do(message)
    assert session.error and says in session.error and "\n" not in session.error
    assert (session.view, session.acts) == before


@given(
    text=st.text(max_size=200)
    | st.dictionaries(st.text(max_size=8), st.integers() | st.text(), max_size=4).map(json.dumps)
)
def test_a_saved_view_is_data(text):
    with pytest.raises(InputError):
        SavedView.parse(text)


def test_views_come_back_as_they_were_saved(session, compiled_study, fact):
    _, world, _ = compiled_study
    session.do({"do": "show", "least_share": 0.05, "group": "layer"})
    session.do({"do": "swap", "concept": other_concept(world, fact).concept.phrase})
    session.do({"do": "pin", "node": "MLP0@-1"})
    session.do({"do": "save"})
    text = session.state()["files"]["mnemo-view.json"]
    again = Session(compiled_study[0])
    again.do({"do": "load", "text": text})
    assert again.error == "" and again.view == session.view and again.acts == session.acts
    assert again.outcome == session.outcome
    with pytest.raises(InputError, match="at most"):
        SavedView.parse(" " * 2**21)


def test_a_scene_shows_what_is_strong_and_what_is_pinned(session):
    def ids():
        return {node["id"] for node in session.state()["scenes"][0]["nodes"]}

    session.do({"do": "show", "least_share": 0.5, "top": 1})
    few = ids()
    session.do({"do": "show", "least_share": 0.0})
    many = ids()
    assert few < many
    weak = sorted(many - few)[0]
    session.do({"do": "show", "least_share": 0.5})
    session.do({"do": "pin", "node": weak})
    assert ids() == few | {weak}


def test_grouping_by_layer_keeps_the_sums(session):
    scene = {
        g: session.do({"do": "show", "least_share": 0.0, "group": g}) or session.state()["scenes"][0]
        for g in ("head", "layer")
    }
    heads = {node["id"]: node["value"] for node in scene["head"]["nodes"]}
    for node in scene["layer"]["nodes"]:
        if node["id"].startswith("L") and "H" not in node["id"]:
            layer, at = node["id"].split("@")
            mine = [v for name, v in heads.items() if name.startswith(f"{layer}H") and name.endswith(f"@{at}")]
            assert node["value"] == pytest.approx(sum(mine), abs=1e-4)


def test_nodes_stand_apart_and_the_waypoint_between_its_blocks(session):
    session.do({"do": "show", "least_share": 0.0})
    scene = session.state()["scenes"][0]
    places = [(node["x"], node["y"]) for node in scene["nodes"]]
    assert len(set(places)) == len(places)
    nearest = min(abs(x - u) + abs(y - v) for i, (x, y) in enumerate(places) for u, v in places[:i])
    assert nearest >= 20
    heights = {node["id"]: node["y"] for node in scene["nodes"]}
    site = session.study.waypoint.site
    below, above = heights.get(f"MLP{site.layer - 1}@-2"), heights.get(f"L{site.layer}H0@-2")
    assert below is None or scene["waypoint"]["y"] < below
    assert above is None or scene["waypoint"]["y"] > above


def test_attention_adds_up_and_readings_are_those_of_the_study(session, compiled_study, fact):
    study, _, _ = compiled_study
    session.do({"do": "show", "least_share": 0.0})
    session.do({"do": "select", "what": "L0H0@-2"})
    detail = session.state()["detail"]
    assert sum(row["weight"] for row in detail["attention"]) == pytest.approx(1, abs=1e-4)
    assert detail["concepts"][0]["phrase"] == study.readings[fact.fact_id][0].phrase


def test_a_snapshot_holds_hostile_text_as_data(session):
    state = session.state()
    state["scenes"][0]["title"] = "</script><img src=x onerror=alert(1)>"
    text = page(state)
    assert text.count("</script>") == 2 and "<img" not in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text


def test_a_trace_alone_can_be_looked_at(compiled_study, fact):
    study, _, _ = compiled_study
    found = trace(study, study.contrasts[fact.fact_id])
    session = Session(found)
    session.do({"do": "select", "what": "path 1"})
    assert session.error == "" and not session.state()["live"]
    session.do({"do": "ablate", "node": "MLP0@-2"})
    assert "no model" in session.error


def test_the_widget_answers_messages_and_the_classic_one_its_buttons(compiled_study, fact):
    study, world, _ = compiled_study
    widget = explore(study, fact.fact_id)
    widget._receive(widget, {"do": "swap", "concept": other_concept(world, fact).concept.phrase}, [])
    assert widget.state["outcome"]["says"] == other_concept(world, fact).answer
    widget._receive(widget, "nonsense", [])
    assert "no action" in widget.state["error"]
    classic = explore(study, fact.cue, classic=True)
    concept, swap, undo = classic.children[2].children
    concept.value = other_concept(world, fact).concept.phrase
    swap.click()
    images = [image.value for image in classic.children[-1].children]
    assert all(bytes(image).startswith(b"\x89PNG") for image in images)
    assert classic.children[3].value.startswith("swap the concept")
    undo.click()
    assert classic.children[3].value == "no interventions"


def test_a_fact_that_is_not_there_is_refused(compiled_study):
    with pytest.raises(MnemoError, match="no fact"):
        explore(compiled_study[0], "nobody")


def test_a_view_has_no_other_fields():
    with pytest.raises(MnemoError, match="least_share"):
        View(fact="f").changed(least_share=float("nan"))
