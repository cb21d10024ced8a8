"""The table of `benchmarks/edits.py`, from facts made by hand."""

from __future__ import annotations

import edits
import numpy as np
import pandas as pd
import pytest

from mnemo.errors import MnemoError


def test_planted_concepts_are_checked_and_named_ones_compared_with_chance():
    facts = pd.DataFrame(
        {
            "fact_id": list("abcdef"),
            "kind": ["mnemonic", "mnemonic", "free", "free", "free", "rote"],
            "verdict": ["mnemonic", "unsure", "unsure", "unsure", "rote", "rote"],
            "concept_planted": ["own", "own", "", "", "", ""],
            "edit_concept": ["own", "rival", "own", "own", None, None],
            "evoked": ["own", "own", "own", "else", "own", None],
            "predicted": list("TTTTTR"),
            "evoked_answer": ["T", "T", "T", "S", "T", None],
            "edit_rival": [0.0, 0.0, 0.0, 0.0, 0.0, np.nan],
            "edit_candidates": [2, 2, 4, 2, 2, 0],
            "edit_elsewhere": [0.0, 1.0, 0.0, 0.0, 0.0, np.nan],
            "led": [True, True, True, True, False, False],
        }
    )
    found = {row[1]: row[2:] for row in edits.rows("name", facts)}
    assert found["mnemonic"][:2] == ["2", "1"] and found["mnemonic"][2] == "2 of 2"
    assert found["mnemonic"][4:] == ["1", "right 0.50", "0.50"]
    # Of the led free facts one names a concept with its answer, and that is the one; there were four to choose from.
    assert found["free"][2] == "2 of 3" and found["free"][5:] == ["named 1.00", "0.25"]
    assert found["rote"][2:] == ["0 of 0", "-", "0", "named -", "-"]


def test_a_run_without_edits_is_refused(compiled_study, tmp_path):
    study, _, folder = compiled_study
    study.write(tmp_path)
    with pytest.raises(MnemoError, match="nothing was edited there"):
        edits.by_kind(folder, tmp_path, quick=True)
