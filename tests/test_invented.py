"""Real inventions, look-alikes and chance, on tables whose counts are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemo.invented import as_marked, count_invented, mark_invented, strongest_first


def facts(**columns) -> pd.DataFrame:
    n = max(len(values) for values in columns.values() if isinstance(values, list))
    table = {
        "fact_id": [f"f{i}" for i in range(n)],
        "verdict": "mnemonic",
        "score": 1.0,
        "concept": None,
        "predicted": "A",
        "evoked_answer": "A",
        "entailment": 1.0,
        "entailment_control": 0.0,
    }
    return pd.DataFrame({**table, **columns}, index=range(n))


def test_look_alikes_are_told_apart_by_what_other_questions_say():
    table = facts(
        verdict=["mnemonic", "shared-intermediate", "mnemonic", "mnemonic", "mnemonic", "rote", "unsure"],
        entailment=[1.0, 0.75, 0.5, 0.6, 1.0, 1.0, 1.0],
        entailment_control=[0.1, 0.25 - 0.01, 0.5, 0.2, np.nan, 0.0, 0.0],
    )
    expected = ["invented", "invented", "look-alike", "unsure", "unsure", None, None]
    assert list(mark_invented(table)) == expected
    free = np.array([False, True, True, True, True, True, True])
    assert list(mark_invented(table, free)) == ["planted", *expected[1:]]
    assert list(mark_invented(table, np.zeros(7, bool))) == ["planted"] * 5 + [None] * 2


def test_a_fact_that_loses_its_answer_to_a_concept_that_has_it_is_no_sure_invention():
    table = facts(same_answer=[1.0, 0.1, np.nan, 0.1], entailment=[1.0, 1.0, 1.0, 0.0])
    assert list(mark_invented(table)) == ["invented", "unsure", "invented", "look-alike"]


def test_without_probes_nothing_is_called_invented():
    table = facts(verdict=["mnemonic", "rote"]).drop(columns=["entailment", "entailment_control"])
    assert list(mark_invented(table)) == ["unsure", None]


def test_an_edit_stands_in_for_questions_and_speaks_against_a_look_alike():
    table = facts(
        entailment=[np.nan, np.nan, np.nan, 0.1, 0.1, 0.4, np.nan],
        edit_follows=[1.0, 1.0, 0.0, 1.0, 0.0, 1.0, np.nan],
        edit_control=[0.1, 0.6, 0.0, 0.0, 0.0, 0.0, np.nan],
    )
    expected = ["invented", "unsure", "unsure", "unsure", "look-alike", "unsure", "unsure"]
    assert list(mark_invented(table)) == expected
    assert mark_invented(table.assign(same_answer=0.1))[0] == "unsure"
    unasked = table.drop(columns=["entailment", "entailment_control"])
    assert list(mark_invented(unasked)[:3]) == ["invented", "unsure", "unsure"]


def edited(**columns) -> pd.DataFrame:
    given = {"concept": "own", "evoked": "own", "edit_concept": "own", "edit_share": 1.0, "edit_rival": 0.0}
    return facts(**{**given, "edit_candidates": 2, "edit_q": 0.01, **columns})


def test_edits_show_a_concept_where_swaps_do_not():
    table = edited(
        verdict=["unsure", "rote", "unsure", "mnemonic", "mnemonic", "unsure"],
        concept=[None, "read", "own", "own", "read", None],
        edit_share=[1.0, 0.9, 0.4, 1.0, 1.0, np.nan],
        edit_rival=[0.2, 0.1, 0.0, 0.0, 0.0, np.nan],
    )
    expected = ["by-edit", "by-edit", None, "invented", "unsure", None]  # the last but one follows another concept
    assert list(mark_invented(table)) == expected
    free = np.array([True, False, True, True, False, True])
    assert list(mark_invented(table, free)) == ["by-edit", "planted", None, "invented", "planted", None]
    between = edited(entailment=[0.4, 0.4, 0.1, 0.4], edit_share=[1.0, 0.4, 1.0, 1.0], same_answer=[1.0, 1.0, 1.0, 0.1])
    assert list(mark_invented(between.assign(edit_follows=1.0, edit_control=0.0))) == [
        "invented", "unsure", "unsure", "unsure",
    ]  # fmt: skip
    marked = table.assign(invented=expected)
    assert list(strongest_first(marked)["fact_id"]) == ["f3", "f0", "f1", "f4"]
    shown = [as_marked(row) for _, row in strongest_first(marked).iterrows()]
    assert [row["concept"] for row in shown] == ["own", "own", "own", "read"]
    assert [row["score"] for row in shown] == pytest.approx([1, np.nan, np.nan, 1], nan_ok=True)  # of what was read


def test_facts_led_by_edits_are_counted_beside_what_the_model_names():
    found = count_invented(
        edited(
            verdict="unsure",
            evoked=["own", "own", "other", "own", "own"],
            edit_share=[1.0, 1.0, 1.0, 0.2, np.nan],
            edit_rival=[0.0, 0.0, 0.0, 0.0, np.nan],
            edit_candidates=[2, 4, 2, 2, 1],
            edit_elsewhere=[0.0, 0.0, 1.0, 0.0, np.nan],
            evoked_answer=["A", "A", "B", "A", "A"],
        )
    )
    assert found["kinds"] == {"invented": 0, "by-edit": 3, "unsure": 0, "look-alike": 0}
    edits = found["edits"]
    assert (edits["tested"], edits["led"]) == (4, 3) and edits["led_share"]["value"] == 0.75
    assert (edits["elsewhere"], edits["fitting"]) == (1, 2)  # of the third the model names one with another answer
    assert edits["named"]["value"] == 1 and edits["named_by_chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_the_clearest_inventions_come_first_and_planted_ones_not_at_all():
    table = facts(
        invented=["look-alike", "planted", "invented", None, "unsure", "invented"],
        entailment=[0.1, 1.0, 0.7, 0.0, 0.4, 0.9],
    )
    assert list(strongest_first(table)["fact_id"]) == ["f5", "f2", "f4", "f0"]
    assert list(strongest_first(table).columns) == list(table.columns)


def test_matches_are_counted_against_shuffled_answers():
    letters = list("ABCDE") * 4
    found = count_invented(
        facts(
            predicted=letters,
            evoked_answer=letters,
            verdict=["mnemonic"] * 8 + ["rote"] * 12,
            entailment=[0.75] * 20,
            entailment_control=[0.0] * 4 + [0.7] * 16,
        )
    )
    assert found["matches"] == 1 and found["verdicts"] == 8
    assert found["null"]["mean"] == pytest.approx(0.2, abs=0.03)  # each letter is a fifth of the answers
    assert found["verdicts_share"]["value"] == pytest.approx(8 / 20)
    assert found["verdicts_null"]["mean"] == pytest.approx(0.2 * 8 / 20, abs=0.02)
    assert found["p_value"] == found["verdicts_p_value"] == pytest.approx(1 / 1001)
    assert found["kinds"] == {"invented": 4, "by-edit": 0, "unsure": 0, "look-alike": 4}
    assert found["invented_share"]["value"] == pytest.approx(4 / 20)
    assert found["entailment_gap"]["value"] == pytest.approx((4 * 0.75 + 4 * 0.05) / 8)
    assert found["entailment"]["matching"]["entailment"] == 0.75
    assert found["entailment"]["other"]["entailment"] is None


def test_concepts_by_chance_are_not_significant():
    draw = np.random.default_rng(1)
    found = count_invented(facts(predicted=list(draw.choice(list("ABCD"), 200)), evoked_answer=["A"] * 200))
    assert found["p_value"] == 1  # one concept for all: shuffling changes nothing


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(0, 5))
def test_intervals_hold_their_value_and_are_wider_for_whole_concepts(matching, seed):
    n = len(matching)
    said = ["A" if match else "B" for match in matching]
    alone = count_invented(facts(evoked_answer=said), seed=seed)["matches_interval"]
    assert alone["low"] <= alone["value"] <= alone["high"]
    assert alone["value"] == pytest.approx(sum(matching) / n)
    halves = count_invented(facts(evoked_answer=["A"] * n + ["B"] * n, concept=["one"] * n + ["two"] * n), seed=seed)
    assert (halves["matches_interval"]["low"], halves["matches_interval"]["high"]) == (0, 1)


def test_what_was_not_looked_for_is_not_counted():
    assert count_invented(facts(verdict=["rote"])[:0]) == {"facts": 0}
    assert count_invented(facts(verdict=["unsure"]).drop(columns="evoked_answer")) == {"facts": 1}
