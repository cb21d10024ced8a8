"""Curves of one fact: they pass through the numbers that its verdict rests on, and controls stay flat."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mnemo.doses import CURVES, dose_curves
from mnemo.errors import MnemoError


def first(world, kind: str) -> str:
    return next(fact.fact_id for fact in world.facts if fact.kind == kind)


@pytest.fixture(scope="module")
def doses(compiled_study) -> pd.DataFrame:
    study, world, _ = compiled_study
    return dose_curves(study, first(world, "mnemonic"), doses=(0, 0.5, 1))


def at(doses: pd.DataFrame, curve: str, dose: float) -> pd.DataFrame:
    return doses[(doses["curve"] == curve) & (doses["dose"] == dose)]


def test_at_dose_zero_the_fact_is_recalled_as_it_was(compiled_study, doses):
    study, world, _ = compiled_study
    row = study[first(world, "mnemonic")]
    for curve in set(CURVES) - {"suffice", "other suffices"}:
        start = at(doses, curve, 0)
        np.testing.assert_allclose(start["p_own"], row["recall_probability"], rtol=1e-4)
        assert (start["says"] == row["answer"]).all()


def test_at_dose_one_the_curves_are_what_the_verdict_says(compiled_study, doses):
    study, world, _ = compiled_study
    row = study[first(world, "mnemonic")]
    swap, random = at(doses, "swap", 1), at(doses, "random swap", 1)
    assert (swap["says"] == swap["predicted"]).mean() == row["swap_success"] == 1
    assert max((random["says"] == random["predicted"]).mean(), row["swap_control"]) <= 0.2
    assert swap["predicted"].ne(row["answer"]).all() and swap["concept"].ne(row["concept"]).all()
    (removed,) = at(doses, "remove", 1)["p_own"]
    assert removed == pytest.approx(row["recall_probability"] - row["ablation_drop"], abs=1e-5)
    (alone,) = at(doses, "suffice", 1)["p_own"]
    assert alone == pytest.approx(row["sufficiency"], abs=1e-5)


def test_concepts_with_the_same_answer_leave_the_answer_alone(shared_answers):
    study, world, _ = shared_answers
    by_answer: dict[str, set[str]] = {}
    for fact in world.facts:
        if fact.kind == "mnemonic":
            by_answer.setdefault(fact.answer, set()).add(fact.concept.phrase)
    answer = next(answer for answer, phrases in by_answer.items() if len(phrases) > 1)
    fact = next(f for f in world.facts if f.kind == "mnemonic" and f.answer == answer)
    same = at(dose_curves(study, fact.fact_id, doses=[1]), "same answer", 1)
    assert set(same["concept"]) >= by_answer[answer] - {fact.concept.phrase}
    same = same[same["concept"].isin(by_answer[answer])]
    assert (same["says"] == answer).all() and same["predicted"].isna().all() and same["p_predicted"].isna().all()


def test_a_concept_that_is_there_and_unused_moves_nothing(compiled_study):
    study, world, _ = compiled_study
    idle = study[first(world, "idle")]
    swap = at(dose_curves(study, idle["fact_id"], doses=[1]), "swap", 1)
    assert (swap["says"] == idle["answer"]).all()


def test_one_seed_one_set_of_curves(compiled_study):
    study, world, _ = compiled_study
    one, two, other = (dose_curves(study, first(world, "mnemonic"), doses=[1], seed=seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(other)


def test_what_has_no_curves_says_why(compiled_study):
    study, world, _ = compiled_study
    with pytest.raises(MnemoError, match="no fact 'f9999'"):
        dose_curves(study, "f9999")
    for doses in ([], [0.0, float("nan")]):
        with pytest.raises(MnemoError, match="finite numbers"):
            dose_curves(study, first(world, "mnemonic"), doses=doses)
