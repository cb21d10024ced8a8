"""What is said of a selected node, edge or path."""

from __future__ import annotations

from typing import Any

from mnemo.errors import MnemoError
from mnemo.explorer.places import Place
from mnemo.explorer.reading import Readings
from mnemo.explorer.scene import edge_slots
from mnemo.explorer.view import View
from mnemo.trace_record import TracedPath
from mnemo.traces import Trace

MOST_EDGES = 6  # listed with a node


def describe(
    what: str, *, scene: dict[str, Any], trace: Trace, view: View, readings: Readings | None
) -> dict[str, Any]:
    """Say everything that is known of a part of a drawing.

    Args:
        what: a node (``L2H1@-2``), an edge (``MLP1@-2>logits@-1``) or a path (``path 1``).
        scene: the drawing.
        trace: what it was drawn from.
        view: how it was drawn.
        readings: reads the model's states; None without a model, and then only scores are known.

    Returns:
        `id`, `kind`, `title`, `part` (its name for interventions), `value` (logits), `share` (of the effect) and,
        depending on the kind, `tokens` (logit lens), `concepts` (nats per token over other facts), `attention`
        (weights), `edges`, `slots` (logits), `steps`.

    Raises:
        MnemoError: it is not in the drawing.
    """
    if what.startswith("path "):
        return _path(what, scene, trace, readings)
    if ">" in what:
        return _edge(what, scene, trace, view, readings)
    return _node(what, scene, readings)


def _node(what: str, scene: dict[str, Any], readings: Readings | None) -> dict[str, Any]:
    node = _found(what, scene["nodes"])
    edges = [edge for edge in scene["edges"] if what in (edge["from"], edge["to"])][:MOST_EDGES]
    found = {
        "id": what, "kind": "node", "title": what, "part": what, "value": node["value"], "share": node["share"],
        "edges": edges,
    }  # fmt: skip
    if readings is None or what.startswith("logits"):
        return found
    place, fact = Place.named(what, readings.model), scene["fact"]
    found |= {"tokens": readings.tokens(fact, [place])[0], "concepts": readings.phrases(fact, place)}
    if place.component.kind == "heads":
        found["attention"] = _attention(fact, place, scene, readings)
    return found


def _edge(what: str, scene: dict[str, Any], trace: Trace, view: View, readings: Readings | None) -> dict[str, Any]:
    edge = _found(what, scene["edges"])
    ends = edge["from"], edge["to"]
    found = {
        "id": what, "kind": "edge", "title": " → ".join(ends), "part": what, "value": edge["value"],
        "share": edge["share"], "ends": list(ends), "slots": edge_slots(trace, view, ends=ends),
    }  # fmt: skip
    if readings is None:
        return found
    sender, fact = Place.named(ends[0], readings.model), scene["fact"]
    found |= {"tokens": readings.tokens(fact, [sender])[0], "concepts": readings.phrases(fact, sender)}
    if ends[1].startswith("L"):
        found["attention"] = _attention(fact, Place.named(ends[1], readings.model), scene, readings)
    return found


def _path(what: str, scene: dict[str, Any], trace: Trace, readings: Readings | None) -> dict[str, Any]:
    number = what.removeprefix("path ")
    if not number.isdecimal() or not 1 <= int(number) <= len(scene["paths"]):
        raise MnemoError(f"{what!r} is not among the {len(scene['paths'])} paths shown")
    path = scene["paths"][int(number) - 1]
    values = {node["id"]: node["value"] for node in scene["nodes"]}
    steps: list[dict[str, Any]] = [
        {"id": node, "text": text, "value": values.get(node)}
        for node, text in zip(path["nodes"], path["text"].split(" -> "), strict=True)
    ]
    if readings is not None:
        places = [Place.named(node, readings.model) for node in path["nodes"][:-1]]
        for step, place, tokens in zip(steps, places, readings.tokens(scene["fact"], places), strict=False):
            concepts = readings.phrases(scene["fact"], place)
            step |= {"token": tokens[0]["token"], "concept": concepts[0] if concepts else None}
    traced = trace.paths[int(number) - 1]
    return {
        "id": what, "kind": "path", "title": what, "part": chain_of(traced), "value": traced.value,
        "share": traced.share, "steps": steps,
    }  # fmt: skip


def chain_of(path: TracedPath) -> str:
    """Return the name of a path for interventions (see `mnemo.explorer.places`)."""
    return ">".join(f"{s.component}{f'.{s.slot}' if s.slot else ''}@{s.position}" for s in path.steps)


def _attention(fact: str, place: Place, scene: dict[str, Any], readings: Readings) -> list[dict[str, Any]]:
    weights = readings.attention(fact, place)
    return [{"token": token["text"], "weight": w} for token, w in zip(scene["tokens"], weights, strict=True)]


def _found(what: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    row = next((row for row in rows if row["id"] == what), None)
    if row is None:
        raise MnemoError(f"{what!r} is not shown: lower the least share, or pin it")
    return row
