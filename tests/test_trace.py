"""One object, and the same numbers on the screen, in the tables and in the files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import mnemo
from mnemo.contrasts import make_contrasts
from mnemo.errors import InputError, MnemoError
from mnemo.facts import Task
from mnemo.model import Model, load
from mnemo.plot import OPPOSES, SUPPORTS, path_map
from mnemo.report import print_trace
from mnemo.tables import read_csv
from mnemo.trace_record import TracedEdge, TracedNode, TracedPath, TracedStream, TraceStep
from mnemo.traces import Trace
from mnemo.tracing import trace

ORGANISM = Path(__file__).parent.parent / "data" / "organism"


@pytest.fixture(scope="module")
def model() -> Model:
    return load("organism")


@pytest.fixture(scope="module")
def found(model) -> Trace:
    return trace(ORGANISM, "VA==", model=model)


def test_the_shipped_organism_shows_the_planted_route(found):
    """Cue characters -> the cue's last token at the waypoint, after block 2 -> the last position."""
    assert found.conserved < 0.01
    assert found.total > 5 and found.predicted.strip() == "T"
    assert found.streams.loc[2, -2] > 0.9  # nearly everything stands at the cue's last token after block 2 ...
    assert found.streams.loc[0, [-4, -3, -2]].sum() == pytest.approx(1, abs=0.01)  # ... came from the cue ...
    assert found.streams.loc[4, -1] == pytest.approx(1, abs=0.01)  # ... and ends at the last position
    routes = found.by("position")
    assert routes["route"][0] in ("V@-4 -> ==@-2 -> is@-1", "A@-3 -> ==@-2 -> is@-1")
    planted = routes["route"].str.fullmatch(r"(V@-4 -> |A@-3 -> )?==@-2 -> is@-1")
    assert routes[planted]["share"].sum() >= 0.9 * found.covered
    assert found.covered > 0.3


def test_clean_supports_corrupt_opposes(found, model):
    """Swapping clean and corrupt swaps the sign of everything that is explained."""
    back = trace(ORGANISM, found.contrast_cue, contrast="VA==", model=model)
    assert (back.answer, back.contrast_answer) == (found.contrast_answer, found.answer)
    # metric = logit(own) - logit(other): both clean prompts win, so both totals are the same sum.
    assert back.total == pytest.approx(found.total, rel=1e-4)
    assert found.metric_clean > 0 > found.metric_corrupt


def test_asked_for_the_other_answer_every_value_turns_and_every_share_stays(found, model):
    facts = Task.read(ORGANISM).load_facts()
    one = make_contrasts(Task.read(ORGANISM), facts, tokenizer=model.tokens)[found.fact_id]
    other = trace(model, replace(one, answer=one.contrast_answer, contrast_answer=one.answer))
    assert other.total == pytest.approx(-found.total, rel=1e-4)
    assert other.paths[0].text == found.paths[0].text
    assert other.paths[0].value == pytest.approx(-found.paths[0].value, rel=1e-3)
    assert other.paths[0].share == pytest.approx(found.paths[0].share, rel=1e-3)

    def widest(drawn: Trace) -> str:
        lines = [c for c in path_map(drawn, ax=Figure().subplots()).collections if isinstance(c, LineCollection)]
        most: Any = max(lines, key=lambda c: max(np.atleast_1d(c.get_linewidth()), default=0))
        return to_hex(most.get_colors()[0]).upper()

    assert (widest(found), widest(other)) == (SUPPORTS, OPPOSES)


def test_every_way_to_ask_gives_the_same_trace(found, model):
    task = Task.read(ORGANISM)
    facts = task.load_facts()
    contrast = make_contrasts(task, facts, tokenizer=model.tokens)[found.fact_id]
    again = [
        trace(ORGANISM / "task.toml", facts.find("VA=="), model=model),
        trace(task, "VA==", contrast=found.contrast_cue, model=model),
        trace(model, contrast),
        mnemo.trace(str(ORGANISM), contrast, model=model),
    ]
    for other in again:
        assert other.total == pytest.approx(found.total, rel=1e-5)
        assert [path.text for path in other.paths[:3]] == [path.text for path in found.paths[:3]]


def test_a_study_is_traced_with_its_own_facts(tmp_path, model):
    facts = Task.read(ORGANISM).load_facts()
    some = facts.subset([fact.fact_id for fact in facts][:12])
    study = mnemo.extract(ORGANISM, model=model, facts=some, quick=True, progress=False)
    one = trace(study, some[0].cue)
    assert one.fingerprint == model.fingerprint
    assert one.contrast_id in {fact.fact_id for fact in some}


def test_groups_conserve_the_whole_and_keep_every_path(found):
    for what in ("component", "position", "layer"):
        table = found.by(what)
        assert table["value"].sum() == pytest.approx(found.total)
        assert table["share"].sum() == pytest.approx(1)
        assert table["paths"].sum() == len(found.paths)
        assert table["route"].is_unique and table["route"].iloc[-1] == "(other paths)"
    assert found.by("layer").shape[0] <= found.by("component").shape[0]
    with pytest.raises(MnemoError, match=r"component.*colour"):
        found.by("colour")


def test_nodes_edges_and_paths_are_of_one_piece(found):
    nodes = found.nodes.set_index(["component", "position"])["value"]
    assert nodes["logits", -1] == pytest.approx(found.total)
    assert nodes["embed"].sum() == pytest.approx(found.total, rel=0.01)
    into = found.edges.groupby(["reader", "position"])["value"].sum()
    allowed = 0.02 * abs(found.total)  # edges below a thousandth of the whole are left out
    for name, value in found.nodes.head(8).set_index(["component", "position"])["value"].items():
        if name[0] != "embed":
            assert abs(into[name] - value) <= allowed, name
    listed = set(found.edges[["writer", "source", "reader", "position", "slot"]].itertuples(index=False, name=None))
    for path in found.paths:
        for a, b in zip(path.steps, path.steps[1:], strict=False):
            assert (a.component, a.position, b.component, b.position, b.slot or "") in listed


# ---- files


def test_files_tables_and_graph_hold_the_same_numbers(found, tmp_path):
    found.write(tmp_path / "out")
    names = {"graph.json", "graph.graphml", "nodes.csv", "edges.csv", "paths.csv", "trace.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    again = Trace.read(tmp_path / "out")
    assert again == found == Trace.read(tmp_path / "out" / "graph.json")
    pd.testing.assert_frame_equal(again.nodes, found.nodes)
    pd.testing.assert_frame_equal(again.streams, found.streams)

    for name, table in (("nodes", found.nodes), ("edges", found.edges), ("paths", found.path_table())):
        read = pd.read_csv(tmp_path / "out" / f"{name}.csv", keep_default_na=False)
        assert list(read.columns) == list(table.columns)
        np.testing.assert_allclose(read["value"], table["value"])
        np.testing.assert_allclose(read["share"], table["share"])
    assert list(read_csv(tmp_path / "out" / "paths.csv")["path"]) == [path.text for path in found.paths]

    graph = nx.read_graphml(tmp_path / "out" / "graph.graphml")
    original = found.graph()
    assert set(graph) == set(original) and set(graph.edges) == set(original.edges)
    assert graph.graph["total"] == found.total and graph.graph["fingerprint"] == found.fingerprint
    for node in found.node_rows:
        assert graph.nodes[f"{node.component}@{node.position}"]["value"] == node.value
    summed = found.edges.groupby(["writer", "source", "reader", "position"])["share"].sum()
    for (writer, source, reader, position), share in summed.items():
        edge = graph.edges[f"{writer}@{source}", f"{reader}@{position}"]
        assert edge["share"] == pytest.approx(share)
        assert sum(edge.get(slot, 0.0) for slot in "qkv") in (0.0, pytest.approx(share))


def test_the_screen_shows_the_numbers_of_the_files(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_trace(found, tmp_path, rows=5)
    said = capsys.readouterr().out
    for path in found.paths[:5]:
        line = next(line for line in said.splitlines() if path.text in line)
        assert f"{path.value:.3f}" in line and f"{path.share:.1%}" in line
    for row in found.nodes[found.nodes["component"] != "logits"].head(5).itertuples():
        line = next(line for line in said.splitlines() if line.startswith(f"{row.component}@{row.position} "))
        assert f"{row.share:.1%}" in line
    assert f"{found.covered:.1%}" in said and f"{1 - found.covered:.1%}" in said


def test_the_figure_shows_every_token_and_draws_on_what_it_is_given(found):
    ax = path_map(found, ax=Figure(figsize=(5, 4)).subplots())
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert [label.splitlines()[0] for label in labels] == [found.token(i) for i in range(-len(found.tokens), 0)]
    assert f"{found.covered:.0%}" in ax.get_title()
    ax.figure.canvas.draw()


def damaged(**changes):
    def damage(content):
        for key, value in changes.items():
            *where, last = key.split("__")
            inner = content
            for step in where:
                inner = inner[int(step) if step.isdigit() else step]
            inner[int(last) if last.isdigit() else last] = value
        return json.dumps(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: json.dumps(content)[:-40], "JSON"),
        (lambda content: "[]", "not a trace"),
        (lambda content: "\udc80".encode("utf-8", "surrogatepass").decode("latin-1"), "not a trace"),
        (damaged(total=1.0), "total"),
        (damaged(total=float("nan")), "not a trace"),
        (damaged(format="mnemo trace 9"), "format"),
        (damaged(nodes__0__share=0.123), "share"),
        (damaged(nodes__0__component="L9H0"), "L9H0"),
        (damaged(nodes__0__component="<script>"), "nodes.0.component"),
        (damaged(nodes__0__position=-99), "-99"),
        (damaged(nodes__0__position=3), "nodes.0.position"),
        (damaged(edges__0__slot="x"), "edges.0.slot"),
        (damaged(paths__0__steps__0__component="MLP1"), "embed to logits"),
        (damaged(paths__0__steps__0__token="X"), "'X'"),
        (damaged(pieces=["a"]), "lengths"),
        (damaged(unknown=1), "unknown"),
        (damaged(n_layers=10**9), "n_layers"),  # the explorer would make room for each
    ],
)
def test_a_file_that_is_no_trace_is_refused_in_one_line(found, tmp_path, damage, says):
    file = tmp_path / "graph.json"
    file.write_text(damage(json.loads(found.model_dump_json(by_alias=True))), encoding="utf-8")
    with pytest.raises(InputError) as error:
        Trace.read(file)
    assert says in str(error.value) and str(file) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_trace_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        Trace.read(tmp_path)


numbers = st.floats(-1e6, 1e6, allow_nan=False)
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)


@st.composite
def traces(draw) -> Trace:
    length, layers, heads = draw(st.integers(1, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    clean = draw(numbers.filter(lambda x: abs(x) > 1e-3))
    pieces = tuple(draw(st.lists(words, min_size=length, max_size=length)))
    total = clean - draw(st.just(0.0))
    names = [f"MLP{i}" for i in range(layers)] + [f"L{i}H{h}" for i in range(layers) for h in range(heads)]
    positions, components = st.integers(-length, -1), st.sampled_from(names)

    def weighed(kind, **fields):
        value = draw(numbers)
        return kind(**fields, value=value, share=value / total)

    def path() -> TracedPath:
        at = sorted(draw(st.lists(positions, min_size=2, max_size=4)))
        inner = [TraceStep(component="MLP0", position=p) for p in at[1:]]
        start = TraceStep(component="embed", position=at[0], token=pieces[at[0]])
        return weighed(TracedPath, steps=(start, *inner, TraceStep(component="logits", position=-1)))

    few = range(draw(st.integers(0, 3)))
    return Trace(
        fact_id=draw(words), cue=draw(words), answer=draw(words), contrast_id=draw(words), contrast_cue=draw(words),
        contrast_answer=draw(words), prompt=draw(words), corrupt_prompt=draw(words), tokens=tuple(range(length)),
        pieces=pieces, corrupt_tokens=tuple(range(length)), corrupt_pieces=pieces, answer_token=draw(words),
        contrast_answer_token=draw(words), predicted=draw(words), metric_clean=clean, metric_corrupt=0.0, total=total,
        conserved=abs(draw(numbers)), quadrature_error=abs(draw(numbers)), quadrature_nodes=draw(st.integers(1, 99)),
        n_layers=layers, n_heads=heads, seed=draw(st.integers(0, 99)), model_name=draw(words),
        fingerprint=draw(words), versions=draw(st.dictionaries(words, st.none() | words, max_size=2)),
        nodes=tuple(weighed(TracedNode, component=draw(components), position=draw(positions)) for _ in few),
        streams=tuple(
            weighed(TracedStream, stream_layer=draw(st.integers(0, layers)), position=draw(positions)) for _ in few
        ),
        edges=tuple(
            weighed(
                TracedEdge, writer=draw(components), reader=draw(components),
                slot=draw(st.sampled_from([None, "q", "k", "v"])), source=draw(positions), position=draw(positions),
            )
            for _ in few
        ),
        paths=tuple(path() for _ in few),
    )  # fmt: skip


@given(traces())
@settings(max_examples=40)
def test_json_comes_back_as_it_was(original):
    text = original.model_dump_json(by_alias=True)
    again = Trace.model_validate_json(text)
    assert again == original and again.model_dump_json(by_alias=True) == text
    assert again.path_table()["path"].tolist() == [path.text for path in original.paths]
    assert math.isclose(again.by("position")["value"].sum(), original.total, rel_tol=1e-6, abs_tol=1e-3)
    nx.generate_graphml(again.graph())


def test_the_schema_says_what_a_trace_holds():
    properties = Trace.model_json_schema(by_alias=True)["properties"]
    assert {"nodes", "edges", "paths", "streams", "fingerprint", "versions", "total"} <= set(properties)


# ---- mistakes and the command


def test_mistakes_are_one_line(model):
    for arguments, options, says in [
        (("VA",), {}, "no fact has the cue 'VA'"),
        (("VA==",), {"contrast": "VB="}, "no fact has the cue 'VB='"),
        (("VA==",), {"contrast": "VA=="}, "own"),
        (("VA==",), {"top": 0}, "between 1 and 10000"),
        (("VA==",), {"seed": -1}, "seed"),
    ]:
        with pytest.raises(MnemoError, match=says) as error:
            trace(ORGANISM, *arguments, model=model, **options)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(MnemoError, match="give a task"):
        trace(model, "VA==")


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnemo", "trace", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_command_writes_a_trace_and_says_what_it_found(tmp_path):
    done = run(ORGANISM, "--cue", "VA==", "--top", "7", "--no-evidence", "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = Trace.read(tmp_path / "out")
    assert len(written.paths) == 7
    assert "V@-4" in done.stdout and "MLP1@-2" in done.stdout and f"{written.covered:.1%}" in done.stdout


def test_an_unknown_cue_is_one_line_and_exit_code_2(tmp_path):
    done = run(ORGANISM, "--cue", "VA=", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.strip().splitlines()) == 1
    assert "'VA='" in done.stderr and list(tmp_path.iterdir()) == []


def test_half_precision_is_traced_too(model):
    half = load("organism", dtype=torch.bfloat16)
    rough = trace(ORGANISM, "VA==", model=half, top=10)
    fine = trace(ORGANISM, "VA==", model=model, contrast=rough.contrast_cue, top=10)
    assert rough.total == pytest.approx(fine.total, rel=0.01)  # 0.002
    assert rough.streams.loc[2, -2] == pytest.approx(fine.streams.loc[2, -2], abs=0.01)  # 0.001
