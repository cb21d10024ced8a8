"""How much of the effect is there when the strongest edges alone are kept, or removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnemo.errors import MnemoError
from mnemo.plot.style import CONTROL, EFFECT, NECESSARY, key_below, new_axes, open_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SETTINGS = ("kept", "removed")

# Order of the edges: label, colour, line style, marker.
_ORDERS = {
    "score": ("strongest edges first", EFFECT, "-", "o"),
    "paths": ("edges of the strongest paths first", NECESSARY, "-.", "s"),
    "random": ("random order (control)", CONTROL, "--", "x"),
}


def faithfulness_curve(curves: pd.DataFrame, *, setting: str = "kept", ax: Axes | None = None) -> Axes:
    """Draw the share of the effect against the number of edges kept (all others corrupt) or removed (others clean).

    Means over facts and draws; the range is shaded.

    Args:
        curves: as `mnemo.faithfulness` returns them.
        setting: ``kept`` or ``removed``.
        ax: where to draw.

    Raises:
        MnemoError: another setting.
    """
    if setting not in _SETTINGS:
        raise MnemoError(f"setting={setting!r} given; it must be one of {', '.join(_SETTINGS)}")
    rows = curves[curves["setting"] == setting]
    ax = ax or new_axes(5.0, 3.7)
    for level in (0, 1):
        ax.axhline(level, color="#DDDDDD", linewidth=0.8, zorder=0)
    facts = rows["fact"].nunique()
    for order, (label, colour, style, marker) in _ORDERS.items():
        shares = rows[rows["order"] == order].groupby("edges")["share"]
        if not shares.ngroups:
            continue
        # Facts have different numbers of edges in all: a mean over some of them would jump.
        whole = shares.size() == shares.size().max()
        mean, low, high = (getattr(shares, name)()[whole] for name in ("mean", "min", "max"))
        ax.fill_between(mean.index, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(mean.index, mean, color=colour, linestyle=style, marker=marker, markersize=4.5, label=label)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(f"edges {setting}")
    ax.set_ylabel("share of the effect left")
    ax.set_title(f"{facts} fact{'s' if facts > 1 else ''}", fontsize=10)
    key_below(ax)
    open_frame(ax)
    return ax
