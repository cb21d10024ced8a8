"""What figures of a study draw: the numbers of the table, each fact once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from mnemo.errors import MnemoError
from mnemo.plot import dose_curve, swap_by_fact, verdict_overview

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
