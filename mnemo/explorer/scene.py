"""A trace as a drawing: where each node stands and how large it is. Plain data that any front end can draw."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mnemo.explorer.view import View
from mnemo.trace_record import TraceStep

if TYPE_CHECKING:
    from mnemo.patching import Site
    from mnemo.traces import Trace

# Pixels. A band holds the heads of a layer and, a row above, its MLP.
ROW, PAD, GAP, MARK, FOLD = 38, 19, 6, 28, 20
EMBED, HEAD, MARGIN, LEAST_COLUMN, LETTER = 44, 30, 74, 76, 8
MOST_NODES, MOST_EDGES = 400, 600
LONGEST_TOKEN = 16  # characters of a token that is drawn
LONGEST_TITLE = 120
_HEAD = re.compile(r"(L\d+)H\d+")


def make_scene(trace: Trace, view: View, *, waypoint: Site | None = None, concept: str | None = None) -> dict[str, Any]:
    """Lay out the circuit of one fact: tokens along the bottom, layers upwards.

    Layers in which nothing is strong enough to be shown are folded into one narrow band.

    Args:
        trace: the fact's.
        view: what to show of it.
        waypoint: where its concept was read, to be marked.
        concept: what was read there.

    Returns:
        sizes and `nodes` (id, x, y, r, share, value, label), `edges` (id, from, to, share, value), `paths` (text,
        share, nodes), `tokens` (text, x, cue), `bands` (text, y, height) and the `waypoint` mark. Values are in
        logits, shares are of metric(clean) - metric(corrupt).
    """
    paths = trace.paths[: view.top]
    values = _summed((f"{_named(n.component, view)}@{n.position}", n.value) for n in trace.node_rows)
    routes = [[_node(step, view) for step in path.steps] for path in paths]
    cue = _cue_positions(trace)
    shown = _shown(values, routes, view, least=view.least_share * abs(trace.total)) | {f"embed@{at}" for at in cue}
    levels = _levels(shown, trace.n_layers, waypoint)
    pieces = [shortened(trace.token(position), LONGEST_TOKEN) for position in range(-len(trace.tokens), 0)]
    rows = _rows(shown)
    columns, width = _columns(rows, pieces)
    places = _places(rows, columns, levels)
    largest = max((abs(values.get(node, 0.0)) for node in shown if not node.startswith("logits")), default=1.0) or 1.0
    return {
        "title": shortened(f"{trace.cue} → {f'{concept} → ' if concept else ''}{trace.answer}", LONGEST_TITLE),
        "answer": shortened(trace.answer, LONGEST_TOKEN),
        "contrast": shortened(f"{trace.contrast_cue} → {trace.contrast_answer}", LONGEST_TITLE),
        "total": trace.total,
        "width": width,
        "height": levels.top,
        "nodes": [
            {
                "id": node,
                **places[node],
                "r": round(4 + 9 * min(1.0, abs(values.get(node, 0.0)) / largest) ** 0.5, 2),
                "value": values.get(node, 0.0),
                "share": values.get(node, 0.0) / trace.total,
                "pinned": node in view.pinned,
                "token": pieces[_position(node)],
                "label": _label(node),
            }
            for node in sorted(shown, key=lambda node: (_position(node), _row(node), _natural(node)))
        ],
        "edges": _edges(trace, view, shown, {link for route in routes for link in pairwise(route)}),
        "paths": [
            {"text": path.text, "share": path.share, "nodes": route} for path, route in zip(paths, routes, strict=True)
        ],
        "covered": sum(path.share for path in paths),
        "tokens": [
            {"text": piece, "x": columns[position], "cue": position in cue}
            for position, piece in enumerate(pieces, start=-len(pieces))
        ],
        "bands": [
            {"text": text, "y": levels.top - high, "height": high - low, "folded": high - low == FOLD}
            for text, low, high in levels.bands
        ],
        "waypoint": None
        if waypoint is None or waypoint.position not in columns
        else {
            "x": columns[waypoint.position],
            "y": levels.top - levels.mark,
            "text": shortened(concept, 40) if concept else "no concept read",
        },
    }


def shortened(text: str, longest: int) -> str:
    """Return a text, its end left out where it is longer than `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def edge_sums(trace: Trace, view: View) -> dict[tuple[str, str], float]:
    """Return what each edge carries (logits), by the nodes at its ends, q, k and v together."""
    return _summed(
        ((f"{_named(e.writer, view)}@{e.source}", f"{_named(e.reader, view)}@{e.position}"), e.value)
        for e in trace.edge_rows
    )


def edge_slots(trace: Trace, view: View, *, ends: tuple[str, str]) -> dict[str, float]:
    """Return what an edge into a head carries (logits) by how it is read: as query, key or value."""
    return _summed(
        (e.slot, e.value)
        for e in trace.edge_rows
        if e.slot and ends == (f"{_named(e.writer, view)}@{e.source}", f"{_named(e.reader, view)}@{e.position}")
    )


def _shown(values: dict[str, float], routes: list[list[str]], view: View, *, least: float) -> set[str]:
    strong = {
        node
        for node, value in values.items()
        if abs(value) >= least or node in view.pinned or node.startswith("logits")
    }
    strong |= {node for route in routes for node in route}
    return set(sorted(strong, key=lambda node: (-abs(values.get(node, 0.0)), node))[:MOST_NODES])


def _edges(trace: Trace, view: View, shown: set[str], links: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """The edges between shown nodes that are strong or on a listed path, the strongest first."""
    least = view.least_share * abs(trace.total)
    found = [
        (ends, value)
        for ends, value in sorted(edge_sums(trace, view).items(), key=lambda edge: -abs(edge[1]))
        if ends[0] in shown and ends[1] in shown and (abs(value) >= least or ends in links)
    ][:MOST_EDGES]
    return [
        {"id": f"{a}>{b}", "from": a, "to": b, "value": value, "share": value / trace.total} for (a, b), value in found
    ]


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


# ---- where things stand


@dataclass
class _Levels:
    """Heights above the lower edge: of heads and MLPs by layer, of the mark, the logits and the upper edge."""

    heads: dict[int, float] = field(default_factory=dict)
    mlps: dict[int, float] = field(default_factory=dict)
    bands: list[tuple[str, float, float]] = field(default_factory=list)
    mark: float = 0.0
    logits: float = 0.0
    top: float = 0.0

    def of(self, node: str) -> float:
        name = node.partition("@")[0]
        if name in ("embed", "logits"):
            return EMBED if name == "embed" else self.logits
        return (self.mlps if name.startswith("MLP") else self.heads)[_natural(name)[0]]


def _levels(shown: set[str], n_layers: int, waypoint: Site | None) -> _Levels:
    used = {_natural(node)[0] for node in shown if not node.startswith(("embed", "logits"))}
    levels, here, folded = _Levels(), EMBED + PAD, []

    def fold() -> float:
        if not folded:
            return here
        which = f"layer {folded[0]}" if len(folded) == 1 else f"layers {folded[0]} to {folded[-1]}"
        levels.bands.append((f"{which}: nothing above the least share", here, here + FOLD))
        folded.clear()
        return here + FOLD + GAP

    for layer in range(n_layers + 1):
        if waypoint is not None and waypoint.layer == layer:
            here = fold()
            levels.mark = here + (MARK - GAP) / 2
            here += MARK
        if layer in used:
            here = fold()
            levels.heads[layer], levels.mlps[layer] = here + PAD, here + PAD + ROW
            levels.bands.append((f"layer {layer}", here, here + 2 * PAD + ROW))
            here += 2 * PAD + ROW + GAP
        elif layer < n_layers:
            folded.append(layer)
    here = fold()
    levels.logits = here + PAD
    levels.top = levels.logits + ROW
    return levels


def _row(node: str) -> tuple[str, bool, int]:
    """What nodes of one row have in common."""
    name = node.partition("@")[0]
    return name.rstrip("0123456789H")[:3], name.startswith("MLP"), (_natural(name) or [0])[0]


def _rows(shown: set[str]) -> dict[tuple[int, Any], list[str]]:
    """The nodes that stand side by side, from left to right, by position and row."""
    rows: dict[tuple[int, Any], list[str]] = defaultdict(list)
    for node in sorted(shown, key=_natural):
        rows[_position(node), _row(node)].append(node)
    return dict(rows)


def _columns(rows: dict[tuple[int, Any], list[str]], pieces: list[str]) -> tuple[dict[int, float], float]:
    """The middle of each position's column, wide enough for its token and the heads that stand side by side in it."""
    columns, x = {}, float(MARGIN)
    for position, piece in enumerate(pieces, start=-len(pieces)):
        widest = max((len(row) for (at, _), row in rows.items() if at == position), default=1)
        width = max(LEAST_COLUMN, HEAD * widest + 16, LETTER * len(piece) + 16)
        columns[position] = x + width / 2
        x += width
    return columns, x + 24


def _places(
    rows: dict[tuple[int, Any], list[str]], columns: dict[int, float], levels: _Levels
) -> dict[str, dict[str, float]]:
    return {
        node: {"x": columns[position] + (i - (len(row) - 1) / 2) * HEAD, "y": levels.top - levels.of(node)}
        for (position, _), row in rows.items()
        for i, node in enumerate(row)
    }


def _position(node: str) -> int:
    return int(node.rpartition("@")[2])


def _label(node: str) -> str:
    """What is written beside a node whose band says the layer."""
    name = node.partition("@")[0]
    if name in ("embed", "logits"):
        return ""
    return "MLP" if name.startswith("MLP") else f"H{_natural(name)[1]}" if "H" in name else "heads"


def _natural(node: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", node.partition("@")[0])]
