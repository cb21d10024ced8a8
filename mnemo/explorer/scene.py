"""A trace as a drawing: where each node stands and how large it is. Plain data that any front end can draw."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mnemo.explorer.view import View
from mnemo.trace_record import TraceStep

if TYPE_CHECKING:
    from mnemo.patching import Site
    from mnemo.tracing import Trace

ROW, HEAD, MARGIN, LEAST_COLUMN = 38, 28, 64, 76  # pixels
MOST_NODES, MOST_EDGES = 400, 600
TOP_ROW = 1_000_000  # of the logits
_HEAD = re.compile(r"(L\d+)H\d+")


def make_scene(trace: Trace, view: View, *, waypoint: Site | None = None, concept: str | None = None) -> dict[str, Any]:
    """Lay out the circuit of one fact: tokens along the bottom, layers upwards.

    Args:
        trace: the fact's.
        view: what to show of it.
        waypoint: where its concept was read, to be marked.
        concept: what was read there.

    Returns:
        sizes and `nodes` (id, x, y, r, share, value, label), `edges` (id, from, to, share, value), `paths` (text,
        share, nodes), `tokens` (text, x, cue), `layers` (label, y), the `waypoint` mark. Values are in logits, shares
        are of metric(clean) - metric(corrupt).
    """
    paths = trace.paths[: view.top]
    values = _summed((f"{_named(n.component, view)}@{n.position}", n.value) for n in trace.node_rows)
    on_paths = {_node(step, view) for path in paths for step in path.steps}
    cue = _cue_positions(trace)
    shown = {
        node
        for node, value in values.items()
        if abs(value / trace.total) >= view.least_share or node in view.pinned or node.startswith("logits")
    } | on_paths
    shown |= {f"embed@{position}" for position in cue}
    shown = set(sorted(shown, key=lambda node: -abs(values.get(node, 0.0)))[:MOST_NODES])

    edges = _summed(
        ((f"{_named(e.writer, view)}@{e.source}", f"{_named(e.reader, view)}@{e.position}"), e.value)
        for e in trace.edge_rows
    )
    strong = [
        (ends, value)
        for ends, value in sorted(edges.items(), key=lambda edge: -abs(edge[1]))
        if ends[0] in shown and ends[1] in shown and abs(value / trace.total) >= view.least_share
    ][:MOST_EDGES]

    columns, width = _columns(shown, len(trace.tokens))
    height = ROW * (2 * trace.n_layers + 3.5)
    largest = max((abs(values.get(node, 0.0)) for node in shown if not node.startswith("logits")), default=1.0) or 1.0
    return {
        "title": f"{trace.cue} → {f'{concept} → ' if concept else ''}{trace.answer}",
        "answer": trace.answer,
        "total": trace.total,
        "width": width,
        "height": height,
        "nodes": [
            {
                "id": node,
                **_place(node, shown, columns, height),
                "r": round(4 + 9 * min(1.0, abs(values.get(node, 0.0)) / largest) ** 0.5, 2),
                "value": values.get(node, 0.0),
                "share": values.get(node, 0.0) / trace.total,
                "pinned": node in view.pinned,
                "token": trace.token(int(node.rpartition("@")[2])),
            }
            for node in sorted(shown)
        ],
        "edges": [
            {"id": f"{a}>{b}", "from": a, "to": b, "value": value, "share": value / trace.total}
            for (a, b), value in strong
        ],
        "paths": [
            {"text": path.text, "share": path.share, "nodes": [_node(step, view) for step in path.steps]}
            for path in paths
        ],
        "covered": sum(path.share for path in paths),
        "tokens": [
            {"text": trace.token(position), "x": columns[position], "cue": position in cue}
            for position in range(-len(trace.tokens), 0)
        ],
        "layers": [{"text": f"layer {layer}", "y": height - ROW * (2 * layer + 3)} for layer in range(trace.n_layers)],
        "waypoint": None
        if waypoint is None
        else {
            "x": columns.get(waypoint.position, 0),
            "y": height - ROW * (2 * waypoint.layer + 2),  # above the MLP of the block before
            "text": concept or "waypoint",
        },
    }


def _named(component: str, view: View) -> str:
    return _HEAD.sub(r"\1", component) if view.group == "layer" else component


def _node(step: TraceStep, view: View) -> str:
    return f"{_named(step.component, view)}@{step.position}"


def _summed(items: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    sums: dict[Any, float] = defaultdict(float)
    for key, value in items:
        sums[key] += value
    return dict(sums)


def _cue_positions(trace: Trace) -> set[int]:
    """Where the clean prompt differs from the corrupt one: the tokens of the cue that matter."""
    pairs = zip(trace.tokens, trace.corrupt_tokens, strict=True)
    return {i - len(trace.tokens) for i, (clean, corrupt) in enumerate(pairs) if clean != corrupt}


def _row(node: str) -> int:
    name = node.partition("@")[0]
    if name in ("embed", "logits"):
        return 0 if name == "embed" else TOP_ROW
    layer = int(re.findall(r"\d+", name)[0])
    return 2 * layer + (2 if name.startswith("MLP") else 1)


def _columns(shown: set[str], length: int) -> tuple[dict[int, float], float]:
    """The middle of each position's column, wide enough for the heads that stand side by side in it."""
    crowd: dict[tuple[int, int], int] = defaultdict(int)
    for node in shown:
        crowd[int(node.rpartition("@")[2]), _row(node)] += 1
    columns, x = {}, float(MARGIN)
    for position in range(-length, 0):
        widest = max((n for (at, _), n in crowd.items() if at == position), default=1)
        width = max(LEAST_COLUMN, HEAD * widest + 14)
        columns[position] = x + width / 2
        x += width
    return columns, x + 24


def _place(node: str, shown: set[str], columns: dict[int, float], height: float) -> dict[str, float]:
    position, row = int(node.rpartition("@")[2]), _row(node)
    peers = sorted(
        (other for other in shown if int(other.rpartition("@")[2]) == position and _row(other) == row), key=_natural
    )
    offset = (peers.index(node) - (len(peers) - 1) / 2) * HEAD
    level = height / ROW - 1 if row == TOP_ROW else row + 1.5
    return {"x": columns[position] + offset, "y": height - ROW * level}


def _natural(node: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", node)]
