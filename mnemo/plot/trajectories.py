"""Where along the layers a concept can be read, and where swapping it moves the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnemo.errors import MnemoError
from mnemo.plot.style import CONTROL, EFFECT, SUFFICIENT, key_below, new_axes, open_frame, shown_token

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Column, label, colour, line style, width. Curves often lie on each other: the first ones show beneath the rest.
_CURVES = (
    ("reads", "concept read from the state: P per token", SUFFICIENT, "-", 6.0),
    ("reads_control", "… from states of other concepts (control)", SUFFICIENT, ":", 2.0),
    ("swap_success", "swap gives the predicted answer: share", EFFECT, "-", 2.5),
    ("swap_control", "… random direction (control)", CONTROL, "--", 1.2),
)


def concept_trajectory(trajectories: pd.DataFrame, *, position: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw how well a concept reads and how often its swap works after every block, as means over the facts.

    The range over the facts is shaded, for the two curves that are no controls.

    Args:
        trajectories: as `mnemo.trajectories.concept_trajectories` returns them.
        position: which of the positions in it, counted from the end; None for the first.
        ax: where to draw.

    Raises:
        MnemoError: no such position.
    """
    positions = trajectories["position"].drop_duplicates().tolist()
    chosen = positions[0] if position is None else position
    if chosen not in positions:
        raise MnemoError(f"position {position} given; the trajectories are of {', '.join(map(str, positions))}")
    rows = trajectories[trajectories["position"] == chosen]
    by_layer = rows.groupby("layer")
    ax = ax or new_axes(5.0, 3.9)
    for column, label, colour, style, width in _CURVES:
        values = by_layer[column]
        mean = values.mean()
        if not column.endswith("control"):
            ax.fill_between(mean.index, values.min(), values.max(), color=colour, alpha=0.15, linewidth=0)
        faint = 0.5 if width > 5 else 1.0
        ax.plot(mean.index, mean, color=colour, linestyle=style, linewidth=width, label=label, alpha=faint)
    layers = sorted(rows["layer"].unique())
    step = 1 + len(layers) // 13
    ax.set_xticks(layers[::step], ["embed" if layer == 0 else str(layer) for layer in layers[::step]])
    ax.set_ylim(-0.04, 1.04)
    ax.set_xlabel("residual stream after block")
    ax.set_ylabel("probability, or share of trials")
    tokens, facts = rows["token"].unique(), rows["fact_id"].nunique()
    where = f"{shown_token(tokens[0])!r}" if len(tokens) == 1 else f"position {chosen}"
    ax.set_title(f"at {where}, {facts} fact{'s' if facts > 1 else ''}", fontsize=10)
    key_below(ax)
    open_frame(ax)
    return ax
