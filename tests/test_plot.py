"""What figures of a study draw: the numbers of the table, each fact once, and text as text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import cbook
from matplotlib.figure import Figure

from mnemo.errors import MnemoError
from mnemo.plot import (
    component_map,
    concept_trajectory,
    dose_curve,
    evidence_bars,
    faithfulness_curve,
    head_map,
    stream_map,
    swap_by_fact,
    verdict_overview,
)

TABLE = pd.DataFrame(
    {
        "verdict": ["rote", "mnemonic", "unsure", "mnemonic", "not-recalled"],
        "score": [0.1, 0.9, 0.5, 0.8, None],
        "swap_success": [0.0, 0.75, 0.4, 1.0, None],
        "swap_control": [0.1, 0.2, 0.0, 0.05, None],
    }
)


def axes():
    return Figure().subplots()


def curves_of(ax):
    """The points of each line, as lists, by the label up to a colon."""
    lines = {str(line.get_label()).split(":")[0]: line for line in ax.get_lines()}
    return {name: np.asarray(line.get_xydata()).T.tolist() for name, line in lines.items()}


def test_every_judged_fact_stands_in_the_row_of_its_verdict():
    kinds = ["decoy", "mnemonic", "free", "mnemonic", "rote"]
    ax = verdict_overview(TABLE, kinds=kinds, ax=axes())
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    points = points[~np.isnan(points).any(1)]
    rows = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
    drawn = sorted((rows[round(y)], round(float(x), 3)) for x, y in points)
    assert drawn == [("mnemonic", 0.8), ("mnemonic", 0.9), ("rote", 0.1), ("unsure", 0.5)]
    key = ax.get_legend()
    assert key is not None
    legend = [text.get_text() for text in key.get_texts()]
    assert legend == ["trained to be mnemonic (2)", "trained to be free (1)", "trained to be decoy (1)"]
    assert verdict_overview(TABLE, ax=axes()).get_legend() is None  # nobody said what they were trained to be


def test_swaps_and_controls_stand_above_each_other():
    lines = {str(line.get_label())[:6]: line for line in swap_by_fact(TABLE, ax=axes()).get_lines()}
    swap, control = lines["own co"], lines["random"]
    assert list(np.asarray(swap.get_ydata())) == [1.0, 0.75, 0.4, 0.0]
    assert list(np.asarray(control.get_ydata())) == [0.05, 0.2, 0.0, 0.1]
    assert list(np.asarray(swap.get_xdata())) == list(np.asarray(control.get_xdata())) == [0, 1, 2, 3]


def test_dose_curves_draw_the_means():
    doses = pd.DataFrame(
        {
            "curve": ["swap"] * 4 + ["same answer"] * 2,
            "dose": [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
            "p_predicted": [0.0, 1.0, 0.2, 0.6, np.nan, np.nan],
            "p_own": [1.0, 0.0, 1.0, 0.2, 1.0, 0.9],
        }
    )

    def means(watch):
        lines = dose_curve(doses, watch=watch, ax=axes()).get_lines()
        drawn = {str(line.get_label()): list(np.asarray(line.get_ydata())) for line in lines}
        return {label: heights for label, heights in drawn.items() if len(heights) == 2}

    assert means("predicted")["swap to another concept, 2 trials"] == pytest.approx([0.1, 0.8])
    own = means("own")
    assert own["swap to another concept, 2 trials"] == pytest.approx([1.0, 0.1])
    assert own["swap to a concept with the same answer (control), 1 trial"] == pytest.approx([1.0, 0.9])


def test_nothing_to_draw_is_said():
    empty = TABLE.assign(score=None, swap_success=None)
    for draw in (verdict_overview, swap_by_fact):
        with pytest.raises(MnemoError, match=r"Study\.notes says why"):
            draw(empty, ax=axes())
    with pytest.raises(MnemoError, match="2 kinds given for 5 facts"):
        verdict_overview(TABLE, kinds=["rote", "free"])
    with pytest.raises(MnemoError, match="one of"):
        dose_curve(TABLE, watch="other")


def labels(ticks):
    return [label.get_text() for label in ticks]


def test_maps_of_components_and_heads_draw_their_scores(compiled_study):
    study, _, _ = compiled_study
    fact = next(iter(study.contrasts))
    scores = study.attributions.sel(fact=fact).dropna("position", how="all")
    ax = component_map(study, fact, ax=axes())
    drawn = np.asarray(ax.get_images()[0].get_array())
    rows = dict(zip(labels(ax.get_yticklabels()), drawn, strict=True))
    assert rows["embed"] == pytest.approx(scores["embed"].to_numpy())
    assert rows["MLP 1"] == pytest.approx(scores["mlp"].sel(layer=1).to_numpy())
    assert rows["heads 2"] == pytest.approx(scores["heads"].sel(layer=2).sum("head").to_numpy())
    prompt = study.prompt(fact)
    tokens = [piece.strip() for piece in study.model.tokens.pieces(prompt.tokens)]
    assert labels(ax.get_xticklabels()) == tokens == labels(stream_map(study, fact, ax=axes()).get_xticklabels())
    assert rows["MLP 1"].argmax() == prompt.last  # where this organism's codes evoke their concept

    for position in (None, -1):
        heads = scores["heads"].sum("position") if position is None else scores["heads"].sel(position=position)
        ax = head_map(study, fact, position=position, ax=axes())
        assert np.asarray(ax.get_images()[0].get_array()) == pytest.approx(heads.to_numpy())
        assert len(ax.texts) == heads.size and not any(text.get_text() == "-0.0" for text in ax.texts)
    with pytest.raises(MnemoError, match="count from the end"):
        head_map(study, fact, position=0, ax=axes())
    with pytest.raises(MnemoError, match="no attribution"):
        head_map(study, "nobody", ax=axes())


def test_a_trajectory_draws_the_mean_over_facts_at_one_position():
    rows = [
        {
            "fact_id": fact, "position": position, "token": token, "layer": layer, "reads": 0.25 * layer + i / 2,
            "reads_control": 0.0, "swap_success": 1.0, "swap_control": 0.1 * layer,
        }
        for i, fact in enumerate(("a", "b"))
        for position, token in ((-2, "=="), (-1, " is"))
        for layer in range(3)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["position"] == -1, "swap_success"] = 0.0
    curves = curves_of(concept_trajectory(table, ax=axes()))
    assert curves["concept read from the state"][1] == pytest.approx([0.25, 0.5, 0.75])
    assert curves["… random direction (control)"][1] == pytest.approx([0.0, 0.1, 0.2])
    last = concept_trajectory(table, position=-1, ax=axes())
    assert last.get_title() == "at 'is', 2 facts"
    assert curves_of(last)["swap gives the predicted answer"] == [[0, 1, 2], [0, 0, 0]]
    with pytest.raises(MnemoError, match="of -2, -1"):
        concept_trajectory(table, position=-3, ax=axes())


def test_faithfulness_is_averaged_where_all_facts_are():
    rows = [("a", "score", 0, k, "kept", k / 4) for k in (1, 2, 4)]
    rows += [("b", "score", 0, k, "kept", k / 8) for k in (1, 2, 4, 8)]
    rows += [(fact, "random", draw, k, "kept", 0.0) for fact in "ab" for draw in (0, 1) for k in (1, 2)]
    rows += [("a", "score", 0, 1, "removed", 0.3)]
    curves = pd.DataFrame(rows, columns=["fact", "order", "draw", "edges", "setting", "share"])
    kept = curves_of(faithfulness_curve(curves, ax=axes()))
    counts, shares = kept["strongest edges first"]
    assert counts == [1, 2, 4]  # fact a has no eighth edge
    assert shares == pytest.approx([(1 / 4 + 1 / 8) / 2, 3 / 8, 3 / 4])
    assert kept["random order (control)"] == [[1, 2], [0, 0]]
    removed = curves_of(faithfulness_curve(curves, setting="removed", ax=axes()))
    assert removed["strongest edges first"] == [[1], [0.3]] and "random order (control)" not in removed
    with pytest.raises(MnemoError, match="kept, removed"):
        faithfulness_curve(curves, setting="lost", ax=axes())


def test_text_of_facts_is_drawn_as_it_is():
    names = ["swap_success", "swap_control", "sufficiency", "sufficiency_control", "ablation_drop", "ablation_control"]
    rows = pd.DataFrame([dict.fromkeys(names, 0.5)])
    ax = evidence_bars(rows, ["$x$ costs $5$"], ax=axes())
    (label,) = labels(ax.get_yticklabels())
    assert not cbook.is_math_text(label) and label.replace("\\", "") == "$x$ costs $5$"
    key = ax.get_legend()
    assert key is not None
    said = [text.get_text() for text in key.get_texts()]
    assert [text.startswith("…") for text in said] == [False] * 3 + [True] * 3  # a column of effects, one of controls


def test_a_notebook_shows_a_figure_though_nobody_imported_pyplot():
    """IPython knows figures once pyplot was imported; ours need no such luck, and nothing is shown twice."""
    code = """
import sys
from IPython.core.formatters import DisplayFormatter
from mnemo.plot.style import new_figure
figure = new_figure(2, 1)
figure.subplots().plot([0, 1])
data, _ = DisplayFormatter().format(figure)
assert "matplotlib.pyplot" not in sys.modules
assert data["image/png"].startswith(b"\\x89PNG"), data
"""
    subprocess.run([sys.executable, "-c", code], check=True)
