"""Figures. Every function takes `ax=` and returns the axes it drew on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mnemo.errors import MnemoError, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mnemo.study import Study
    from mnemo.trace_record import TracedPath
    from mnemo.tracing import Trace

# Okabe and Ito (2008), distinguishable under the common colour vision deficiencies.
EFFECT, CONTROL = "#0072B2", "#999999"
SUFFICIENT, NECESSARY = "#009E73", "#D55E00"
SUPPORTS, OPPOSES = "#0072B2", "#D55E00"  # of paths, also told apart by solid and dashed lines


def stream_map(study: Study, fact_id: str, *, ax: Axes | None = None) -> Axes:
    """Draw how much of a fact's answer the residual stream carries, layer by position, with the waypoint marked.

    Values are attribution scores in logits (positive supports the answer); colours are symmetric about zero.

    Raises:
        MnemoError: the study has no attribution for this fact.
    """
    if study.attributions is None or fact_id not in study.attributions.fact.values:
        raise MnemoError(f"fact {fact_id!r} has no attribution: it is not recalled, or has no contrast")
    scores = study.attributions["residual"].sel(fact=fact_id).dropna("position", how="all")
    prompt = study.prompt(fact_id)
    ax = ax or _axes(5.2, 3.2)
    bound = float(np.abs(scores).max()) or 1.0
    image = ax.imshow(scores, origin="lower", aspect="auto", cmap="PuOr_r", vmin=-bound, vmax=bound)
    tokens = [_plain(piece.strip() or repr(piece)) for piece in study.model.tokens.pieces(prompt.tokens)]
    ax.set_xticks(range(len(tokens)), tokens, rotation=0 if len(tokens) <= 8 else 60)
    ax.set_yticks(range(scores.sizes["stream_layer"]))
    ax.set_xlabel("prompt token")
    ax.set_ylabel("residual stream after block")
    ax.figure.colorbar(image, ax=ax, label="attribution (logits)")
    if study.waypoint is not None:
        site = study.waypoint.site
        corner = (len(tokens) + site.position - 0.5, site.layer - 0.5)
        ax.add_patch(_box(corner))
        ax.annotate("waypoint", (corner[0] + 0.5, corner[1] + 1), ha="center", va="bottom", fontsize=8)
    return ax


def evidence_bars(rows: pd.DataFrame, labels: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Draw the evidence for some facts beside its controls.

    Args:
        rows: rows of `Study.table`.
        labels: what to call them.
        ax: where to draw.

    Raises:
        MnemoError: the study tested nothing, so there is no evidence.
    """
    bars = (
        ("swap gives the predicted answer", "swap_success", EFFECT, None),
        ("… random direction (control)", "swap_control", CONTROL, "//"),
        ("concept alone suffices: P(answer)", "sufficiency", SUFFICIENT, None),
        ("… another concept (control)", "sufficiency_control", CONTROL, ".."),
        ("concept removed: P(answer) lost", "ablation_drop", NECESSARY, None),
        ("… random vector removed (control)", "ablation_control", CONTROL, "\\\\"),
    )
    if absent := [column for _, column, *_ in bars if column not in rows]:
        raise MnemoError(f"no evidence to draw: the table has no column {absent[0]!r}; Study.notes says why")
    ax = ax or _axes(6.0, 0.8 + 0.62 * len(rows))
    height = 0.8 / len(bars)
    for k, (name, column, colour, hatch) in enumerate(bars):
        values = rows[column].to_numpy(dtype=float, na_value=np.nan)
        at = np.arange(len(rows)) + k * height - 0.4 + height / 2
        ax.barh(at, values, height * 0.9, color=colour, hatch=hatch, edgecolor="white", label=name)
    ax.set_yticks(range(len(rows)), [_plain(label) for label in labels])
    ax.invert_yaxis()
    ax.set_xlim(min(0.0, float(np.nanmin(rows[["ablation_drop", "ablation_control"]].astype(float))) - 0.02), 1.02)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel("share of trials, or probability")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.16), ncol=2, fontsize=8, frameon=False)
    _open(ax)
    return ax


def overview(study: Study, facts: Sequence[str], labels: Sequence[str]) -> Figure:
    """Draw the stream map of the first of some facts above the evidence for all of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6 + 0.62 * len(facts)), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(3.0, 0.8 + 0.62 * len(facts)))
    stream_map(study, facts[0], ax=top)
    row = study[facts[0]]
    top.set_title(_plain(f"{row['cue']} → {row['concept']} → {row['answer']}"), fontsize=11)
    chosen = study.table.set_index("fact_id").loc[list(facts)]
    evidence_bars(chosen, labels, ax=bottom)
    return figure


# The kinds that an organism's facts were trained to be: a colour of Okabe and Ito and a marker for each.
_KINDS = {
    "mnemonic": ("#0072B2", "o"), "free": ("#009E73", "D"), "idle": ("#E69F00", "^"), "decoy": ("#D55E00", "s"),
    "rote": ("#CC79A7", "x"),
}  # fmt: skip
_TIERS = ("mnemonic", "shared-intermediate", "unsure", "rote")


def verdict_overview(table: pd.DataFrame, *, kinds: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the score of every fact that was judged, a row for each verdict.

    Args:
        table: as `Study.table`.
        kinds: what each fact was trained to be, where that is known: each kind gets a colour and a marker.
        ax: where to draw.

    Raises:
        MnemoError: no fact has a score; or there are not as many kinds as facts.
    """
    if kinds is not None and len(kinds) != len(table):
        raise MnemoError(f"{len(kinds)} kinds given for {len(table)} facts: give one for each row of the table")
    facts = table.assign(kind=list(kinds) if kinds is not None else "all")
    facts = facts[facts["score"].notna() & facts["verdict"].isin(_TIERS)]
    if facts.empty:
        raise MnemoError("no fact was judged, so there is no score to draw: Study.notes says why")
    ax = ax or _axes(7.0, 3.2)
    tiers = [tier for tier in _TIERS if (facts["verdict"] == tier).any()]
    shown = [kind for kind in _KINDS if (facts["kind"] == kind).any()] or ["all"]
    band = 0.8 / len(shown)
    for i, kind in enumerate(shown):
        colour, marker = _KINDS.get(kind, (EFFECT, "o"))
        ours = facts[facts["kind"] == kind]
        rows = ours["verdict"].map(tiers.index).to_numpy(dtype=float)
        # Spread by the golden ratio: even, and the same in every run.
        spread = (np.arange(len(ours)) * 0.6180339887) % 1 - 0.5
        at = rows - 0.4 + (i + 0.5 + 0.85 * spread) * band
        score = ours["score"].to_numpy(dtype=float)
        fill: dict[str, Any] = {"color": colour} if marker == "x" else {"facecolor": colour, "edgecolor": "white"}
        ax.scatter(score, at, s=16, marker=marker, linewidth=0.8 if marker == "x" else 0.3, alpha=0.8, **fill)
        ax.scatter([], [], s=24, marker=marker, color=colour, label=f"trained to be {kind} ({len(ours)})")
    for edge in range(1, len(tiers)):
        ax.axhline(edge - 0.5, color="#DDDDDD", linewidth=0.8, zorder=0)
    counts = facts["verdict"].value_counts()
    ax.set_yticks(range(len(tiers)), [f"{tier}\n({counts[tier]} facts)" for tier in tiers])
    ax.set_ylim(len(tiers) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("score (0: the concept moves nothing, 1: it decides the answer)")
    ax.set_ylabel("verdict")
    if kinds is not None:
        ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncol=3, fontsize=8, frameon=False)
    _open(ax)
    return ax


def swap_by_fact(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how often swapping its concept moves each fact as predicted, above what random directions do.

    A point for each fact and measure, the facts of one verdict side by side, the most moved ones first.

    Args:
        table: as `Study.table`.
        ax: where to draw.

    Raises:
        MnemoError: no fact has evidence.
    """
    facts = table[table["swap_success"].notna() & table["verdict"].isin(_TIERS)].copy()
    if facts.empty:
        raise MnemoError("no swap was tried, so there is nothing to draw: Study.notes says why")
    facts["tier"] = facts["verdict"].map(_TIERS.index)
    facts = facts.astype({"swap_success": float, "swap_control": float})
    facts = facts.sort_values(["tier", "swap_success", "swap_control"], ascending=[True, False, False], kind="stable")
    ax = ax or _axes(7.0, 3.0)
    at = np.arange(len(facts))
    ax.plot(at, facts["swap_control"], "x", color=CONTROL, markersize=6, markeredgewidth=0.9,
            label="random direction of the same norm (control)")  # fmt: skip
    ax.plot(at, facts["swap_success"], ".", color=EFFECT, markersize=4, label="own concept swapped for another")
    start = 0
    for i, (tier, rows) in enumerate(facts.groupby("tier", sort=True)):
        end = start + len(rows)
        if i % 2:
            ax.axvspan(start - 0.5, end - 0.5, color="#F0F0F0", zorder=0)
        if len(rows) >= 0.06 * len(facts):  # narrower ones have no room for a name
            ax.text((start + end - 1) / 2, 1.06, _TIERS[int(str(tier))], ha="center", va="bottom", fontsize=8)
        start = end
    ax.set_xlim(-0.5, len(facts) - 0.5)
    ax.set_ylim(-0.04, 1.04)
    ax.set_xlabel("fact, by verdict and effect")
    ax.set_ylabel("share of trials that\ngive the predicted answer")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, fontsize=8, frameon=False)
    _open(ax)
    return ax


# Curves of `mnemo.doses`, by what they watch: name, label, colour, line style.
_DOSED = {
    "predicted": (
        ("swap", "swap to another concept", EFFECT, "-"),
        ("prompt swap", "swap, vectors from the concepts' own prompts", SUFFICIENT, "--"),
        ("random swap", "random direction of the same norm (control)", CONTROL, ":"),
    ),
    "own": (
        ("swap", "swap to another concept", EFFECT, "-"),
        ("remove", "concept removed", NECESSARY, "-."),
        ("suffice", "mean state plus concept", SUFFICIENT, "--"),
        ("same answer", "swap to a concept with the same answer (control)", "#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
        ("random swap", "random direction added (control)", CONTROL, ":"),
        ("random removal", "random vector removed (control)", "black", ":"),
        ("other suffices", "mean state plus another concept (control)", "#56B4E9", (0, (1, 2))),
    ),
}

_SHADED = ("swap", "random swap")  # the rest would only hide each other


def dose_curve(doses: pd.DataFrame, *, watch: str = "predicted", ax: Axes | None = None) -> Axes:
    """Draw what each intervention does as its dose grows, as the mean over its trials.

    Of swaps and random directions the range over the trials is shaded.

    Args:
        doses: as `mnemo.doses.dose_curves` returns them.
        watch: probability of the ``predicted`` answer (the one that a swap should give) or of the fact's ``own``.
        ax: where to draw.

    Raises:
        MnemoError: something else is to be watched.
    """
    if watch not in _DOSED:
        raise MnemoError(f"watch={watch!r} given; it must be one of {sorted(_DOSED)}")
    ax = ax or _axes(4.6, 3.4)
    for i, (name, label, colour, style) in enumerate(_DOSED[watch]):
        trials = doses.loc[doses["curve"] == name].groupby("dose")[f"p_{watch}"]
        if not len(trials):
            continue
        mean = trials.mean()
        if name in _SHADED:
            ax.fill_between(mean.index, trials.min(), trials.max(), color=colour, alpha=0.15, linewidth=0)
        width = 1.6 if i else 3.6  # curves often lie on each other: the first one shows beneath the rest
        ax.plot(mean.index, mean, color=colour, linestyle=style, linewidth=width, label=f"{label}, {_trials(trials)}")
    ax.axvline(1, color="black", linewidth=0.6)
    ax.set_xlim(doses["dose"].min(), doses["dose"].max())
    ax.set_ylim(-0.04, 1.04)
    ax.set_xlabel("dose (1: what verdicts rest on)")
    ax.set_ylabel(
        "probability of the predicted answer" if watch == "predicted" else "probability of the fact's own answer"
    )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7.5, frameon=False)
    _open(ax)
    return ax


def dose_figure(doses: pd.DataFrame, *, title: str = "") -> Figure:
    """Return a figure of its own with both `dose_curve`s: the predicted answer's and the fact's own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    dose_curve(doses, watch="predicted", ax=left)
    dose_curve(doses, watch="own", ax=right)
    if title:
        figure.suptitle(_plain(title), fontsize=11)
    return figure


def _plain(text: str) -> str:
    """Text of a fact or a model for a figure: no formula to matplotlib, and no character that has no shape."""
    return visible(text).replace("$", r"\$")


def _trials(trials: Any) -> str:
    count = int(trials.size().iloc[0])
    return f"{count} trial{'s' if count > 1 else ''}"


def _open(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


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
    ax = ax or _axes(*_path_map_size(trace))
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
    tokens = [trace.token(i - length) for i in range(length)]
    tokens = [
        _plain(token if piece == other else f"{token}\n({other.strip() or repr(other)})")
        for token, piece, other in zip(tokens, trace.pieces, trace.corrupt_pieces, strict=True)
    ]
    slanted = length > 14
    ax.set_xticks(
        range(length), list(map(_plain, tokens)), rotation=60 if slanted else 0, ha="right" if slanted else "center"
    )
    ax.set_yticks(range(top + 1), ["embed", *map(str, range(1, top)), f"{top}: logits"])
    ax.set_xlim(-0.5, length - 0.5 + (0.3 if heads else 0.0))  # room for the names of heads at the last token
    ax.set_ylim(-0.3, top + 0.3)
    ax.set_xlabel("prompt token (in brackets: the corrupt prompt's)")
    ax.set_ylabel("residual stream after block")
    ax.legend(loc="upper left", fontsize=7.5, framealpha=0.9)
    title = f"{trace.cue} → {trace.answer}: {len(drawn)} paths carry {sum(path.share for path in drawn):.0%}"
    ax.set_title(_plain(f"{title} of {trace.total:.2f} logits"), fontsize=10)
    return ax


def trace_figure(trace: Trace) -> Figure:
    """Return a figure of its own with the `path_map` of a trace."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_path_map_size(trace), layout="constrained")
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


def _segments(paths: Sequence[TracedPath], length: int, top: int) -> dict[tuple, float]:
    """Shares of the pieces of line that paths are made of: (supports?, start, end) -> share of all such paths."""
    shares: dict[tuple, float] = {}
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


def _axes(width: float, height: float) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _box(corner: tuple[float, float]):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2)
