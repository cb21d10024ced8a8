"""Rates of invention and guesses about it, against values derived by hand and finite differences."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from mnemo.learning.invention import _gradient_at, evoked, guesses, rate, score_guesses
from mnemo.patching import Patch, ask, read_stream


def test_guesses_are_scored_against_chance_and_ties_share():
    guessed = pd.DataFrame(
        [("a", 0, 3.0, 1, 0.0), ("a", 1, 1.0, 1, 2.0),
         ("b", 2, 0.1, 5, 0.0), ("b", 3, 0.2, 0, 0.0), ("b", 4, 0.0, 0, 1.0),
         ("c", 5, 1.0, 1, 1.0), ("d", 6, 1.0, 1, 1.0), ("d", 7, 0.0, 1, 0.0)],
        columns=["fact_id", "concept", "nearest", "used", "gradient"],
    )  # fmt: skip
    # c has one fitting concept, so no choice; d came to evoke a concept that does not fit
    found = score_guesses(guessed, pd.Series({"a": 0, "b": 2, "c": 5, "d": 9})).set_index("guess")
    assert (found["facts"] == 2).all()
    assert found["chance"].tolist() == pytest.approx([(1 / 2 + 1 / 3) / 2] * 3)
    assert found["right"].to_dict() == pytest.approx({"nearest": 0.5, "used": 0.75, "gradient": 0.0})


def test_a_rate_counts_what_fits(pupil):
    table = pupil.survey.table
    lesson = pupil.survey.lesson("free", seed=0)
    fitting = torch.stack([(table.answers == answer).int().argmax() for answer in lesson.answers])
    none = torch.full_like(fitting, -1)
    assert rate(fitting, lesson.answers, survey=pupil.survey, seed=0)[0] == 1
    assert rate(none, lesson.answers, survey=pupil.survey, seed=0) == (0, 0)
    half = torch.where(torch.arange(len(fitting)) % 2 == 0, fitting, -1)
    found, null = rate(half, lesson.answers, survey=pupil.survey, seed=0)
    assert found == pytest.approx((len(half) + 1) // 2 / len(half)) and null < found / 2


def test_what_cues_evoke_is_what_the_survey_found(pupil):
    lesson = pupil.survey.lesson("coincident", seed=0)
    assert torch.equal(evoked(pupil.model, pupil.survey, lesson=lesson), lesson.concepts)


def test_the_pull_on_a_state_is_the_derivative_of_its_surprisal(pupil):
    lesson, _ = pupil.lesson("free", 4)
    pull = _gradient_at(pupil.model, lesson, pupil.site)
    states = read_stream(pupil.model, lesson.prompts, positions=[pupil.site.position])[:, pupil.site.layer, 0]
    step = F.normalize(torch.randn(states.shape, generator=torch.Generator().manual_seed(1)), dim=-1)
    ahead, behind = (
        -ask(
            pupil.model, lesson.prompts, tokens=lesson.answers[:, None], patch=Patch(pupil.site, states + e * step)
        ).logprob
        for e in (3e-2, -3e-2)
    )
    torch.testing.assert_close((pull * step).sum(-1), ((ahead - behind) / 6e-2)[:, 0], rtol=0.05, atol=2e-3)


def test_every_fitting_concept_is_an_option(pupil):
    lesson, _ = pupil.lesson("free", 6)
    options = guesses(pupil.model, pupil.survey, lesson=lesson, site=pupil.site)
    answers = dict(zip(lesson.fact_ids, lesson.answers.tolist(), strict=True))
    for fact_id, mine in options.groupby("fact_id"):
        assert sorted(mine["concept"]) == (pupil.survey.table.answers == answers[fact_id]).nonzero()[:, 0].tolist()
    assert set(options["fact_id"]) == set(lesson.fact_ids)
    assert options["nearest"].between(-1.001, 1.001).all()
