"""Figures of learning: how long it takes, when a route appears, what is invented. Colours as in `mnemo.plot`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mnemo.learning.intervals import interval
from mnemo.learning.summary import mean_of_runs
from mnemo.plot.style import CONTROL, EFFECT, NECESSARY, SUFFICIENT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "coincident": (EFFECT, "-", "o"), "rote": (NECESSARY, "--", "s"), "free": (SUFFICIENT, "-.", "D"),
    "impossible": (CONTROL, ":", "^"),
}  # fmt: skip
BAND = "bands and bars: 95% interval over runs"


def figures(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
    """Yield the name and figure of everything that the tables of `learn` allow to draw."""
    yield "efficiency", efficiency(tables["courses"])
    yield "learning", learning_curves(tables["curves"])
    if "concept_path" in tables["curves"]:
        yield "emergence", emergence(tables["curves"])
    if not tables["first"].empty:
        yield "first_step", first_step(tables["first"])
    if "fitting" in tables["curves"]:
        yield "invention", invention(tables["curves"])


def efficiency(courses: pd.DataFrame) -> Figure:
    """Draw the steps until facts are recalled, by arm, a panel for each way of teaching; small marks are runs."""
    ways = list(courses.groupby([courses["how"], courses["batch"] > 1], sort=False))
    figure = new_figure(3.1 * len(ways), 3.3)
    for ax, ((how, many), some) in zip(_panels(figure, len(ways)), ways, strict=True):
        arms = [arm for arm in STYLES if (some["arm"] == arm).any()]
        for at, arm in enumerate(arms):
            colour, _, marker = STYLES[arm]
            runs = some[some["arm"] == arm].groupby("run")["steps_to_recall"].mean()
            mean = interval(runs.tolist())
            ax.errorbar(at, mean.value, yerr=_half(mean), color=colour, marker=marker, markersize=8, capsize=5)
            ax.plot(at + np.linspace(-0.22, 0.22, len(runs)), runs, marker, color=colour, markersize=3.5, alpha=0.5)
        ax.set_xticks(range(len(arms)), arms, rotation=30, ha="right")
        ax.set_xlim(-0.6, len(arms) - 0.4)
        ax.set_ylim(bottom=0)
        batch = f"{some['batch'].max()} facts at once" if many else "one fact at a time"
        ax.set_title(f"{'all weights' if how == 'full' else 'LoRA'}, {batch}", fontsize=10)
        ax.set_ylabel("steps until recalled")
    figure.supxlabel(f"Large marks: mean over facts and runs; small ones: each run; {BAND}", fontsize=8)
    return figure


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Draw what is recalled of the taught, the held-out and the old as teaching goes on, a row for each way."""
    hows = list(dict.fromkeys(curves["how"]))
    figure = new_figure(9.6, 2.9 * len(hows) + 0.5)
    panels = _panels(figure, 3, rows=len(hows))
    titles = (("taught", "facts taught"), ("held", "facts held out"), ("old", "what was known before"))
    for i, how in enumerate(hows):
        for ax, (name, title) in zip(panels[3 * i : 3 * i + 3], titles, strict=True):
            _lines(ax, curves[curves["how"] == how], {name: None})
            ax.set_title(f"{title} ({'all weights' if how == 'full' else 'LoRA'})", fontsize=10)
            ax.set_ylabel("share recalled")
            ax.set_ylim(-0.03, 1.03)
    _legend(figure, panels[0])
    return figure


def emergence(curves: pd.DataFrame) -> Figure:
    """Draw how the route through the concept appears: paths, swaps, mediated fraction, and the recall beside them."""
    curves = curves[curves["concept_path"].notna()]
    figure = new_figure(9.6, 6.2)
    panels = _panels(figure, 2, rows=2)
    drawn: tuple[tuple[str, str, dict[str, str | None]], ...] = (
        ("recall", "share recalled", {"taught": None}),
        (
            "paths through the concept's direction",
            "carried (logits)",
            {"concept_path": None, "control_path": "control"},
        ),
        ("swaps to another concept", "share that give its answer", {"swap_success": None, "swap_control": "control"}),
        ("concept taken out", "drop of P(answer)", {"ablation_drop": None}),
    )
    for ax, (title, label, columns) in zip(panels, drawn, strict=True):
        _lines(ax, curves, columns)
        ax.set_title(title, fontsize=10)
        ax.set_ylabel(label)
        ax.axhline(0, color="black", linewidth=0.5)
        if "(logits)" not in label:
            ax.set_ylim(-0.05, 1.05)
    _legend(figure, panels[1])
    return figure


def first_step(first: pd.DataFrame) -> Figure:
    """Draw which share of what the first step is predicted to teach flows through the concept, beside the control."""
    names = {"gradient": "along the gradient", "adam": "along its signs (Adam)"}
    shown = {"concept": "concept", "first_hop": "… first hop", "second_hop": "… second hop", "control": "control"}
    steps = [step for step in names if (first["step"] == step).any()]
    figure = new_figure(4.2 * len(steps), 3.2)
    panels = _panels(figure, len(steps))
    for ax, step in zip(panels, steps, strict=True):
        for k, arm in enumerate(a for a in STYLES if (first["arm"] == a).any()):
            colour, _, marker = STYLES[arm]
            rows = first[(first["step"] == step) & (first["arm"] == arm)]
            for at, name in enumerate(shown):
                mean = interval(rows[name].tolist())
                ax.errorbar(
                    at + 0.2 * (k - 0.5), mean.value, yerr=_half(mean), color=colour, marker=marker, capsize=4,
                    linestyle="", label=arm if at == 0 else None,
                )  # fmt: skip
        ax.axhline(0, color="black", linewidth=0.5)
        ax.set_xticks(range(len(shown)), list(shown.values()))
        ax.set_title(names[step], fontsize=10)
        ax.set_ylabel("share of the predicted change")
    _legend(figure, panels[0])
    return figure


def invention(curves: pd.DataFrame) -> Figure:
    """Draw how many cues of free facts evoke a concept with their answer, beside shuffled answers."""
    figure = new_figure(5.0, 3.4)
    (ax,) = _panels(figure, 1)
    _lines(ax, curves[curves["arm"] == "free"], {"fitting": None, "fitting_null": "answers shuffled"})
    ax.set_ylabel("share of cues that evoke\na concept with their answer")
    ax.set_ylim(bottom=0)
    _legend(figure, ax)
    return figure


OPTIMIZERS = {"sgd": (EFFECT, "-", "o"), "lion": (NECESSARY, "--", "s"), "adamw": (SUFFICIENT, "-.", "D")}


def agreement(steps: pd.DataFrame) -> Figure:
    """Draw how much the steps on one batch agree, a row for each rank; `steps` as `Updates.table`, of any runs."""
    steps = steps[steps["layer"] == -1]
    ranks = sorted(steps["rank"].unique())
    figure = new_figure(9.9, 2.8 * len(ranks) + 0.6)
    panels = _panels(figure, 3, rows=len(ranks))
    drawn = (
        ("with_previous", "update and the one before"), ("with_net", "update and the net displacement"),
        ("gradient_with_previous", "gradient and the one before"),
    )  # fmt: skip
    for i, rank in enumerate(ranks):
        for ax, (column, title) in zip(panels[3 * i : 3 * i + 3], drawn, strict=True):
            for name, (colour, dashes, marker) in OPTIMIZERS.items():
                some = steps[(steps["rank"] == rank) & (steps["optimizer"] == name)]
                means = [(at, interval(one[column].tolist())) for at, one in some.groupby("step")]
                at, values = [step for step, _ in means], [mean.value for _, mean in means]
                style: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3}
                ax.plot(at, values, label=name, **style)
                low, high = [mean.low for _, mean in means], [mean.high for _, mean in means]
                ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
            null = steps.loc[steps["rank"] == rank, "random_with_previous"]
            low, high = null.quantile(0.025), null.quantile(0.975)
            ax.axhspan(low, high, color=CONTROL, alpha=0.5, lw=0, label="random steps (95%)")
            ax.set_title(f"{title} (rank {rank})", fontsize=10)
            ax.set_ylim(-1.05, 1.05)
            ax.set_xlabel("step on the same batch")
            ax.set_ylabel("cosine")
    _legend(figure, panels[0])
    return figure


def cosine_matrices(updates: Mapping[str, Float[np.ndarray, "step step"]]) -> Figure:
    """Draw the cosine of every two steps, a panel for each name, such as that of an optimizer."""
    figure = new_figure(3.4 * len(updates) + 0.6, 3.6)
    panels = _panels(figure, len(updates))
    image = None
    for ax, (name, cosines) in zip(panels, updates.items(), strict=True):
        image = ax.imshow(cosines, cmap="PuOr_r", vmin=-1, vmax=1, origin="lower")
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("step on the same batch")
        ax.set_ylabel("step on the same batch")
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="cosine of effective updates", shrink=0.8)
    return figure


def _lines(ax: Axes, curves: pd.DataFrame, columns: Mapping[str, str | None]) -> None:
    """A line for each arm and column against the steps; columns with a name of their own are thin, as controls."""
    means = mean_of_runs(curves, list(columns))
    for (arm, name), line in means.groupby(["arm", "name"], sort=False):
        colour, dashes, marker = STYLES[str(arm)]
        control = columns[str(name)]
        label = f"{arm} ({control})" if control else str(arm)
        style: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
        if control:
            style = {"color": colour, "linestyle": (0, (1, 2)), "linewidth": 1.0}
        ax.plot(line["step"], line["value"], label=label, **style)
        ax.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.06 if control else 0.15, lw=0)
    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    ticks = [step for step in (0, 1, 3, 10, 30, 100, 300, 1000) if step <= curves["step"].max()]
    ax.set_xticks(ticks, [str(step) for step in ticks])
    ax.minorticks_off()
    ax.set_xlabel("steps of training")


def _half(mean: Any) -> Any:
    return None if np.isnan(mean.low) else [[mean.value - mean.low], [mean.high - mean.value]]


def _panels(figure: Figure, columns: int, *, rows: int = 1) -> Sequence[Axes]:
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False)).tolist()
    for ax in panels:
        ax.spines[["top", "right"]].set_visible(False)
    return panels


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncol=min(4, len(labels)), fontsize=8, frameon=False, title=BAND,
        title_fontsize=8,
    )  # fmt: skip
