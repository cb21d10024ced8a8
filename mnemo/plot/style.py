"""What all figures share: colours that everybody can tell apart, open frames, readable tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mnemo.errors import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito (2008), distinguishable under the common colour vision deficiencies.
EFFECT, CONTROL = "#0072B2", "#999999"
SUFFICIENT, NECESSARY = "#009E73", "#D55E00"
SUPPORTS, OPPOSES = "#0072B2", "#D55E00"  # of paths, also told apart by solid and dashed lines


def new_axes(width: float, height: float) -> Axes:
    """Return the axes of a new pyplot figure of this size in inches, which a notebook shows by itself."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of this size in inches that belongs to no window: a notebook shows it where it is the result."""
    from mnemo.plot.shown import ShownFigure

    return ShownFigure(figsize=(width, height), layout="constrained")


def open_frame(ax: Axes) -> None:
    """Take away the frame's upper and right side, which say nothing."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def key_below(
    ax: Axes, *, columns: int = 1, align: Literal["center", "right"] = "center", by_row: bool = False
) -> Legend:
    """Put the key under the label of the axes, where it hides no data; the distance is the same whatever the height.

    Args:
        ax: what it belongs to.
        columns: of the key.
        align: ``right`` where long names stand left of the axes, under which the key may reach.
        by_row: fill the key row by row (matplotlib goes column by column).
    """
    handles, labels = ax.get_legend_handles_labels()
    order = list(range(len(labels)))
    if by_row:
        order = [i for start in range(columns) for i in order[start::columns]]
    return ax.legend(
        [handles[i] for i in order], [labels[i] for i in order], ncol=columns, fontsize=8, frameon=False,
        loc="upper center" if align == "center" else "upper right", borderaxespad=4.8,
        bbox_to_anchor=(0.5 if align == "center" else 1, 0),
    )  # fmt: skip


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is: a `$` begins no formula, and every character has a shape."""
    return visible(text).replace("$", r"\$")


def shown_token(piece: str) -> str:
    """Return a token as figures show it: without the space before it, unless it is one."""
    return plain(piece.strip() or repr(piece))
