"""Where a concept is followed, and what is measured there, against brute force and built-in truth."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemo.facts import Fact, FactSet
from mnemo.learning.arms import survey
from mnemo.learning.emergence import Watch, checkpoints, choose_site, through_directions
from mnemo.learning.teach import TeachConfig, teach
from mnemo.organisms.compiled import WAYPOINT


@given(st.integers(1, 3000))
def test_checkpoints_double_from_the_beginning_to_the_end(steps):
    found = checkpoints(steps)
    assert found[0] == 0 and found[-1] == steps and found == sorted(set(found))
    assert all(later <= 2 * step for step, later in itertools.pairwise(found[1:]))


def test_the_site_is_where_the_route_was_built(compiled_study):
    """In a compiled organism concepts stand at the code's last token after block WAYPOINT; the next carries it on."""
    study, world, _ = compiled_study
    facts = tuple(Fact(fact_id=f.fact_id, cue=f.cue, answer=f.answer) for f in world.facts)
    wrong = Fact(fact_id="unknown", cue=world.facts[0].cue, answer=world.facts[1].answer)
    assert wrong.answer != world.facts[0].answer
    known = survey(study.model, study.task, facts=FactSet(facts=(*facts, wrong)))
    site, candidates = choose_site(study.model, known)
    assert (site.layer, site.position) == (WAYPOINT, known.said.prompts[0].last - len(known.said.prompts[0]))
    there = candidates[(candidates["layer"] == site.layer) & (candidates["position"] == site.position)].iloc[0]
    assert there["ready"] > 0.9 and there["first_control"] < 0.2 and there["second_control"] < 0.2
    carried = (candidates["layer"] == WAYPOINT + 1) & (candidates["position"] == -1)
    assert candidates.loc[~carried, "ready"].drop(there.name).max() < 0.01


def test_the_directions_of_a_basis_carry_all_that_goes_through_the_site(pupil):
    lesson, _ = pupil.lesson("coincident", 6)
    watch = Watch(pupil.survey, pupil.model.tokens.hf, pupil.site, lesson, traced=2)
    pair = watch.pairs(pupil.hf)[0]
    basis = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0))).Q
    contrast = watch._contrast(pupil.model, pair)
    found = through_directions(pupil.model, contrast, site=pupil.site, directions={str(i): basis[i] for i in range(48)})
    assert sum(found[f"{i}_path"] for i in range(48)) == pytest.approx(found["site_path"], rel=1e-3)
    assert found["0_path"] == pytest.approx(found["0_delta"] * found["0_gradient"])
    with torch.no_grad():
        difference = [
            (lambda said: said[contrast.answer.id] - said[contrast.contrast_answer.id])(
                pupil.hf(torch.tensor([prompt.tokens])).logits[0, -1]
            )
            for prompt in (contrast.clean, contrast.corrupt)
        ]
    assert found["total"] == pytest.approx((difference[0] - difference[1]).item(), abs=1e-3)


def test_a_route_appears_as_coincident_facts_are_learned_and_not_as_rote_ones_are(pupil):
    """Over four draws of these lessons the strength rose by 0.22 to 0.27, and by 0.01 to 0.02.

    With half as many facts no measure of a route tells the arms apart in every draw.
    """
    rose = {}
    for arm in ("coincident", "rote"):
        lesson, _ = pupil.lesson(arm, 24)
        watch = Watch(pupil.survey, pupil.model.tokens.hf, pupil.site, lesson, traced=3)
        before = watch(pupil.hf)
        after = watch(teach(pupil.hf, lesson, config=TeachConfig(steps=20, learning_rate=5e-4)).model)
        assert list(before["fact_id"]) == list(lesson.fact_ids)
        assert after["recalled"].mean() > 0.8 > before["recalled"].mean()
        assert before["concept_path"].notna().sum() == 3
        rose[arm] = (after["strength"] - before["strength"]).mean()
    assert rose["coincident"] > 0.15
    assert abs(rose["rote"]) < 0.05


def test_pairs_differ_in_concept_and_answer_and_their_directions_leave_both_facts_out(pupil):
    lesson, _ = pupil.lesson("coincident", 10)
    watch = Watch(pupil.survey, pupil.model.tokens.hf, pupil.site, lesson, traced=10)
    pairs = watch.pairs(pupil.hf)
    assert len(pairs) == 10
    for pair in pairs:
        assert lesson.concepts[pair.clean] != lesson.concepts[pair.corrupt]
        assert lesson.answers[pair.clean] != lesson.answers[pair.corrupt]
        assert pair.concept.norm() == pytest.approx(1) and pair.control.norm() == pytest.approx(1)
    again = watch.pairs(pupil.hf)
    assert all(torch.equal(a.concept, b.concept) for a, b in zip(pairs, again, strict=True))
