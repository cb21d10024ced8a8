"""The strongest paths of a trace over layers and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mnemo.plot.style import OPPOSES, SUPPORTS, new_axes, new_figure, plain, shown_token

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mnemo.trace_record import TracedPath
    from mnemo.traces import Trace

_Segment = tuple[bool, tuple[float, float], tuple[float, float]]  # whether it supports the answer, start, end


def path_map(trace: Trace, *, ax: Axes | None = None, paths: int = 50) -> Axes:
    """Draw the strongest paths over the layers (upwards) and tokens (sideways) of a fact's prompt.

    Lines go up the residual stream and, where a head carries something, over to the position that it writes to.
    What several paths share is drawn once, as wide as their shares together: solid blue where it supports the answer,
    dashed orange where it opposes it. The grey behind says what share of everything (shown or not) the stream at a
    token carries after each block.

    Args:
        trace: what to draw.
        ax: where to draw.
        paths: how many of its paths to draw, the strongest.
    """
    from matplotlib.collections import LineCollection

    drawn = trace.paths[:paths]
    length, top = len(trace.tokens), trace.n_layers
    ax = ax or new_axes(*_path_map_size(trace))
    streams = trace.streams.to_numpy(dtype=float)
    extent = (-0.5, length - 0.5, -0.5, top + 0.5)
    shades = np.abs(streams).clip(0, 1)
    ax.imshow(shades, origin="lower", aspect="auto", cmap="Greys", vmin=0, vmax=2.5, extent=extent, zorder=0)
    segments = _segments(drawn, length, top)
    widest = max((abs(share) for share in segments.values()), default=1.0)
    kinds = ((True, SUPPORTS, "solid", 0.0), (False, OPPOSES, (0, (1.6, 0.8)), 0.07))
    for positive, colour, style, aside in kinds:  # opposing lines run beside the others, not over them
        chosen = [(line, share) for (sign, *line), share in segments.items() if sign == positive]
        # Strong lines on top; nothing thinner than a hair, so that a weak path can still be followed.
        chosen.sort(key=lambda pair: abs(pair[1]))
        widths = [0.4 + 7.0 * abs(share) / widest for _, share in chosen]
        lines = LineCollection(
            [[(x + aside, y) for x, y in line] for line, _ in chosen],
            linewidths=widths,
            colors=colour,
            linestyles=style,
            zorder=2,
            alpha=0.8,
        )
        lines.set_capstyle("round" if positive else "butt")
        ax.add_collection(lines)
    mlps = _mlp_marks(drawn, length)
    if mlps:
        x, y = zip(*mlps, strict=True)
        ax.scatter(x, y, s=26, marker="s", facecolor="white", edgecolor="black", linewidth=0.8, zorder=3, label="MLP")
    heads = _head_marks(drawn, length)
    for (x, y), names in heads.items():
        ax.annotate(
            _short(names), (x, y), xytext=(5, 0), textcoords="offset points",
            ha="left", va="center", fontsize=6.5, zorder=4,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    if heads:
        x, y = zip(*heads, strict=True)
        ax.scatter(x, y, s=22, marker="o", facecolor="white", edgecolor="black", linewidth=0.8, zorder=3, label="heads")
    ax.plot([], [], color=SUPPORTS, linewidth=3, label="supports the answer")
    ax.plot([], [], color=OPPOSES, linewidth=3, linestyle=(0, (1.6, 0.8)), label="opposes it")
    tokens = [
        shown_token(piece) + (f"\n({shown_token(other)})" if piece != other else "")
        for piece, other in zip(trace.pieces, trace.corrupt_pieces, strict=True)
    ]
    slanted = length > 14
    ax.set_xticks(range(length), tokens, rotation=60 if slanted else 0, ha="right" if slanted else "center")
    ax.set_yticks(range(top + 1), ["embed", *map(str, range(1, top)), f"{top}: logits"])
    ax.set_xlim(-0.5, length - 0.5 + (0.3 if heads else 0.0))  # room for the names of heads at the last token
    ax.set_ylim(-0.3, top + 0.3)
    ax.set_xlabel("prompt token (in brackets: the corrupt prompt's)")
    ax.set_ylabel("residual stream after block")
    ax.legend(loc="upper left", fontsize=7.5, framealpha=0.9)
    carried = f"{len(drawn)} paths carry {sum(path.share for path in drawn):.0%} of {trace.total:.2f} logits"
    ax.set_title(f"{plain(trace.cue)} → {plain(trace.answer)}: {carried}", fontsize=10)
    return ax


def trace_figure(trace: Trace) -> Figure:
    """Return a figure of its own with the `path_map` of a trace."""
    figure = new_figure(*_path_map_size(trace))
    path_map(trace, ax=figure.subplots())
    return figure


def _path_map_size(trace: Trace) -> tuple[float, float]:
    return max(6.4, min(2.0 + 0.75 * len(trace.tokens), 24.0)), max(4.2, min(2.4 + 0.55 * trace.n_layers, 20.0))


_AT_HEADS, _AT_MLP = 0.4, 0.75  # heights within a block


def _corners(path: TracedPath, length: int, top: int) -> list[tuple[float, float]]:
    """The points that a path's line goes through."""
    x = length + path.steps[0].position
    corners = [(float(x), 0.0)]
    for step in path.steps[1:-1]:
        layer, x = float(step.layer or 0), float(length + step.position)
        if step.head is None:
            corners.append((x, layer + _AT_MLP))
        else:
            corners += [(corners[-1][0], layer), (x, layer + _AT_HEADS)]
    return [*corners, (corners[-1][0], float(top))]


def _segments(paths: Sequence[TracedPath], length: int, top: int) -> dict[_Segment, float]:
    """Shares of the pieces of line that paths are made of: (supports?, start, end) -> share of all such paths."""
    shares: dict[_Segment, float] = {}
    for path in paths:
        corners = _corners(path, length, top)
        for (x0, y0), (x1, y1) in pairwise(corners):
            # The stream is cut at every corner that there can be, so that paths which leave it share what is before.
            cuts = [y for layer in range(top + 1) for y in (layer, layer + _AT_HEADS, layer + _AT_MLP) if y0 < y < y1]
            ends = [(x0, y0), *([(x0, y) for y in cuts] if x0 == x1 else []), (x1, y1)]
            for start, end in pairwise(ends):
                if start != end:
                    key = (path.value > 0, start, end)
                    shares[key] = shares.get(key, 0.0) + path.share
    return shares


def _mlp_marks(paths: Sequence[TracedPath], length: int) -> list[tuple[float, float]]:
    steps = [step for path in paths for step in path.steps[1:-1] if step.head is None]
    return list(dict.fromkeys((length + step.position, (step.layer or 0) + _AT_MLP) for step in steps))


def _head_marks(paths: Sequence[TracedPath], length: int) -> dict[tuple[float, float], list[str]]:
    """The heads that paths go through, by where they write; those of the strongest paths first."""
    marks: dict[tuple[float, float], list[str]] = {}
    for path in paths:
        for step in path.steps[1:-1]:
            if step.head is not None:
                names = marks.setdefault((length + step.position, (step.layer or 0) + _AT_HEADS), [])
                names.extend([] if f"H{step.head}" in names else [f"H{step.head}"])
    return marks


def _short(names: Sequence[str]) -> str:
    return " ".join(names[:4]) + (f" +{len(names) - 4}" if len(names) > 4 else "")
