"""What each intervention on a fact does as its dose grows, beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mnemo.errors import MnemoError
from mnemo.plot.style import CONTROL, EFFECT, NECESSARY, SUFFICIENT, key_below, new_axes, new_figure, open_frame, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        ("resample", "concept of a random other fact in its place", "#E69F00", (0, (3, 1))),
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
    ax = ax or new_axes(5.0, 3.8)
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
    ax.set_ylabel("P(predicted answer)" if watch == "predicted" else "P(fact's own answer)")
    key_below(ax)
    open_frame(ax)
    return ax


def dose_figure(doses: pd.DataFrame, *, title: str = "") -> Figure:
    """Return a figure of its own with both `dose_curve`s: the predicted answer's and the fact's own."""
    figure = new_figure(9.2, 4.8)
    left, right = figure.subplots(1, 2)
    dose_curve(doses, watch="predicted", ax=left)
    dose_curve(doses, watch="own", ax=right)
    if title:
        figure.suptitle(plain(title), fontsize=11)
    return figure


def _trials(trials: Any) -> str:
    count = int(trials.size().iloc[0])
    return f"{count} trial{'s' if count > 1 else ''}"
