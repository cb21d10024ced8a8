"""Curves of one fact: they pass through the numbers that its verdict rests on, and controls stay flat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mnemo.concept_vectors import ConceptVectors
from mnemo.doses import CURVES, dose_curves
from mnemo.errors import MnemoError
from mnemo.patching import Patch, Site, ask, read_stream
from mnemo.study_concepts import study_concepts
from mnemo.tested_facts import Draws
from mnemo.trials import RESAMPLED, resampled


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
    others = at(doses, "resample", 1)
    assert others["concept"].ne(row["concept"]).all() and others["predicted"].isna().all()
    drop = row["recall_probability"] - others["p_own"].iloc[:RESAMPLED].mean()
    assert drop == pytest.approx(row["resample_drop"], abs=1e-5) and drop > 0.9


def test_the_curves_of_a_fact_are_where_the_closest_look_at_it_was(compiled_study):
    study, world, _ = compiled_study
    fact_id, layer = first(world, "mnemonic"), study.waypoint.site.layer + 1
    elsewhere = replace(study, table=study.table.assign(tested_layer=float(layer)))
    doses = dose_curves(elsewhere, fact_id, doses=(1,))
    assert (doses["layer"] == layer).all()
    known, site = study_concepts(study, layer=layer), Site(layer, study.waypoint.site.position)
    prompt, swap = study.prompt(fact_id), at(doses, "swap", 1)
    state = read_stream(study.model, [prompt], positions=[site.position])[:, layer, 0]
    for phrase, says in zip(swap["concept"], swap["says"], strict=True):
        patch = Patch(site, state + known.swap(fact_id, phrase))
        top = ask(study.model, [prompt], tokens=torch.empty(1, 0).long(), patch=patch).top
        assert study.model.tokens.word(int(top)) == says


def test_other_facts_concepts_move_what_goes_through_its_concept_alone(compiled_study):
    study, world, _ = compiled_study
    kinds = study.table["fact_id"].map({fact.fact_id: fact.kind for fact in world.facts})
    drop = study.table["resample_drop"].groupby(kinds)
    assert drop.median()["mnemonic"] > 0.9 and drop.max()[["idle", "decoy"]].max() < 0.05


def test_facts_to_resample_are_drawn_alike_whatever_is_drawn_beside_them():
    contributes = torch.tensor([0, 0, 0, 1, 2, -1])
    vectors = ConceptVectors.of(torch.randn(6, 4), contributes, from_prompts=torch.randn(4, 4), site=Site(1, -1))
    facts, concepts = torch.arange(6), torch.tensor([0, 0, 0, 1, 2, 3])
    drawn = resampled(vectors, facts, concepts=concepts, seed=5, most=9)
    for own, row in zip(concepts.tolist(), drawn.tolist(), strict=True):  # all there are, in some order
        assert sorted(c for c in row if c >= 0) == sorted(c for c in [0, 0, 0, 1, 2] if c != own)
    assert torch.equal(resampled(vectors, facts[3:4], concepts=concepts[3:4], seed=5, most=9), drawn[3:4])
    assert torch.equal(resampled(vectors, facts, concepts=concepts, seed=5, most=2), drawn[:, :2])
    firsts = torch.cat([resampled(vectors, facts[3:4], concepts=concepts[3:4], seed=s, most=1) for s in range(400)])
    assert (firsts == 0).float().mean() == pytest.approx(3 / 4, abs=0.08)  # by facts, not by concepts


def test_streams_of_random_numbers_are_unlike():
    def first(fact: int, seed: int, stream: int) -> float:
        return float(Draws.of(torch.tensor([fact]), seed, stream=stream).uniform(torch.tensor([0]), 1))

    drawn = [first(f, seed, stream) for f in range(4) for seed in (0, 1, 2**31 - 1) for stream in (0, 1, 2)]
    assert len(set(drawn)) == len(drawn)


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
