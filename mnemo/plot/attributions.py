"""Heat maps of what carries a fact's answer: the stream, the components, the heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from jaxtyping import Float

from mnemo.errors import MnemoError
from mnemo.plot.style import new_axes, shown_token

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mnemo.study import Study


def stream_map(study: Study, fact_id: str, *, ax: Axes | None = None) -> Axes:
    """Draw how much of a fact's answer the residual stream carries, layer by position, with the waypoint marked.

    Values are attribution scores in logits (positive supports the answer); colours are symmetric about zero.

    Raises:
        MnemoError: the study has no attribution for this fact.
    """
    scores = _scores(study, fact_id)["residual"].dropna("position", how="all")
    ax = ax or new_axes(5.2, 3.2)
    _heat_map(scores.to_numpy(), ax=ax)
    tokens = _token_axis(study, fact_id, ax=ax)
    ax.set_yticks(range(scores.sizes["stream_layer"]))
    ax.set_ylabel("residual stream after block")
    if study.waypoint is not None:
        site = study.waypoint.site
        corner = (len(tokens) + site.position - 0.5, site.layer - 0.5)
        ax.add_patch(_box(corner))
        ax.annotate("waypoint", (corner[0] + 0.5, corner[1] + 1), ha="center", va="bottom", fontsize=8)
    return ax


def component_map(study: Study, fact_id: str, *, ax: Axes | None = None) -> Axes:
    """Draw what the embedding, the heads of each block together and each MLP give to a fact's answer, by position.

    Values and colours are as in `stream_map`; rows go upwards in the order in which components write.

    Raises:
        MnemoError: the study has no attribution for this fact.
    """
    scores = _scores(study, fact_id).dropna("position", how="all")
    rows, names = [scores["embed"].to_numpy()], ["embed"]
    for layer in scores["layer"].to_numpy():
        block = scores.sel(layer=layer)
        rows += [block["heads"].sum("head").to_numpy(), block["mlp"].to_numpy()]
        names += [f"heads {layer}", f"MLP {layer}"]
    ax = ax or new_axes(5.2, max(2.6, 1.2 + 0.24 * len(rows)))
    _heat_map(np.stack(rows), ax=ax)
    _token_axis(study, fact_id, ax=ax)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylabel("component")
    return ax


def head_map(study: Study, fact_id: str, *, position: int | None = None, ax: Axes | None = None) -> Axes:
    """Draw what every head gives to a fact's answer, layer by head.

    Args:
        study: what `extract` found.
        fact_id: a fact that has an attribution.
        position: where the heads write, counted from the end (-1 is the last token); None for all positions added up.
        ax: where to draw.

    Raises:
        MnemoError: the study has no attribution for this fact, or its prompt no such position.
    """
    heads = _scores(study, fact_id)["heads"].dropna("position", how="all")
    if position is not None and position not in heads.position.to_numpy():
        raise MnemoError(f"position {position} given; count from the end, -1 to -{heads.sizes['position']}")
    at = heads.sum("position") if position is None else heads.sel(position=position)
    values = at.to_numpy()
    ax = ax or new_axes(1.8 + 0.55 * values.shape[1], 1.2 + 0.5 * values.shape[0])
    bound = _heat_map(values, ax=ax)
    if values.size <= 144:  # more numbers than these would be too small to read
        for (layer, head), value in np.ndenumerate(values):
            text = f"{round(float(value), 1) + 0.0:.1f}"  # no -0.0
            colour = "white" if abs(value) > 0.6 * bound else "black"
            ax.text(head, layer, text, ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(values.shape[1]))
    ax.set_yticks(range(values.shape[0]))
    where = "all positions added up" if position is None else f"writing at {_tokens(study, fact_id)[position]!r}"
    ax.set_xlabel(f"head ({where})")
    ax.set_ylabel("block")
    return ax


def _scores(study: Study, fact_id: str) -> xr.Dataset:
    if study.attributions is None or fact_id not in study.attributions.fact.values:
        raise MnemoError(f"fact {fact_id!r} has no attribution: it is not recalled, or has no contrast")
    return study.attributions.sel(fact=fact_id)


def _heat_map(values: Float[np.ndarray, "row column"], *, ax: Axes) -> float:
    """Draw scores in logits, colours symmetric about zero; returns the largest absolute value."""
    bound = float(np.nanmax(np.abs(values))) or 1.0
    image = ax.imshow(values, origin="lower", aspect="auto", cmap="PuOr_r", vmin=-bound, vmax=bound)
    ax.figure.colorbar(image, ax=ax, label="attribution (logits)")
    return bound


def _token_axis(study: Study, fact_id: str, *, ax: Axes) -> Sequence[str]:
    tokens = _tokens(study, fact_id)
    ax.set_xticks(range(len(tokens)), tokens, rotation=0 if len(tokens) <= 8 else 60)
    ax.set_xlabel("prompt token")
    return tokens


def _tokens(study: Study, fact_id: str) -> list[str]:
    return [shown_token(piece) for piece in study.model.tokens.pieces(study.prompt(fact_id).tokens)]


def _box(corner: tuple[float, float]):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=2)
