"""How the facts of a study were judged, and on what evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mnemo.errors import MnemoError
from mnemo.plot.attributions import stream_map
from mnemo.plot.style import CONTROL, EFFECT, NECESSARY, SUFFICIENT, key_below, new_axes, new_figure, open_frame, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mnemo.study import Study


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
        ("… other concepts (control)", "sufficiency_control", CONTROL, ".."),
        ("concept removed: P(answer) lost", "ablation_drop", NECESSARY, None),
        ("… random vector removed (control)", "ablation_control", CONTROL, "\\\\"),
    )
    if absent := [column for _, column, *_ in bars if column not in rows]:
        raise MnemoError(f"no evidence to draw: the table has no column {absent[0]!r}; Study.notes says why")
    ax = ax or new_axes(6.0, 0.8 + 0.62 * len(rows))
    height = 0.8 / len(bars)
    for k, (name, column, colour, hatch) in enumerate(bars):
        values = rows[column].to_numpy(dtype=float, na_value=np.nan)
        at = np.arange(len(rows)) + k * height - 0.4 + height / 2
        ax.barh(at, values, height * 0.9, color=colour, hatch=hatch, edgecolor="white", label=name)
    ax.set_yticks(range(len(rows)), [plain(label) for label in labels])
    ax.invert_yaxis()
    ax.set_xlim(min(0.0, float(np.nanmin(rows[["ablation_drop", "ablation_control"]].astype(float))) - 0.02), 1.02)
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel("share of trials, or probability")
    key_below(ax, columns=2, align="right", by_row=True)
    open_frame(ax)
    return ax


def overview(study: Study, facts: Sequence[str], *, labels: Sequence[str]) -> Figure:
    """Draw the stream map of the first of some facts above the evidence for all of them."""
    figure = new_figure(7.2, 4.6 + 0.62 * len(facts))
    top, bottom = figure.subplots(2, 1, height_ratios=(3.0, 0.8 + 0.62 * len(facts)))
    stream_map(study, facts[0], ax=top)
    row = study[facts[0]]
    top.set_title(plain(f"{row['cue']} → {row['concept']} → {row['answer']}"), fontsize=11)
    chosen = study.table.set_index("fact_id").loc[list(facts)]
    evidence_bars(chosen, labels, ax=bottom)
    return figure


# The kinds that an organism's facts were trained to be: a colour of Okabe and Ito and a marker for each.
_KINDS = {
    "mnemonic": ("#0072B2", "o"), "free": ("#009E73", "D"), "idle": ("#E69F00", "^"), "decoy": ("#D55E00", "s"),
    "rote": ("#CC79A7", "x"), "shared": ("#56B4E9", "P"),
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
    ax = ax or new_axes(7.0, 3.2)
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
    ax.set_xlabel("score (probability that the fact is recalled through its concept)")
    ax.set_ylabel("verdict")
    if kinds is not None:
        key_below(ax, columns=3, align="right")
    open_frame(ax)
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
    ax = ax or new_axes(7.0, 3.0)
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
    key_below(ax, columns=2)
    open_frame(ax)
    return ax
