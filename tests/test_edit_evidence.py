"""What follows from edits: shares, chance and harm, on answers made by hand or drawn at random."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from mnemo.edit_evidence import Edits
from mnemo.editing import _other_answers


def by_hand(said: list[list[int]], new: list[list[int]], **changes) -> Edits:
    """One fact with answer 0 and five concepts, of which two have it, all edited each time; answers are 0 to 3."""
    ones = torch.ones(len(said), 5, dtype=torch.bool)
    given = {"edited": ones, "taken": ones, "spared": -1.0, **changes}
    return Edits(
        answers=torch.tensor([0]), known=torch.tensor([0, 0, 1, 2, 3]), new=torch.tensor(new), said=torch.tensor(said),
        **given,
    )  # fmt: skip


NEW = [[1, 2, 2, 3, 2], [2, 3, 2, 3, 2], [3, 1, 2, 3, 2], [1, 3, 2, 1, 0]]


def test_shares_and_chance_are_those_of_a_draw_among_the_other_answers():
    found = by_hand([[1], [2], [3], [3]], NEW).led().iloc[0]  # thrice the first concept's, once the second's
    assert (found["concept"], found["share"], found["rival"], found["candidates"]) == (0, 0.75, 0.25, 2)
    # Four answers occur, so each of the other three is drawn with 1/3; two concepts were looked at.
    assert found["p_value"] == found["q_value"] == pytest.approx(2 * (4 * (1 / 3) ** 3 * (2 / 3) + (1 / 3) ** 4))


def test_elsewhere_new_answers_that_are_the_facts_own_are_left_out():
    found = by_hand([[2], [2], [3], [1]], NEW).led(elsewhere=True).iloc[0]
    # The concept with answer 1 was hit twice of four, the one with 2 twice of four, the one with 3 twice of three.
    assert (found["concept"], found["share"], found["rival"], found["candidates"]) == (4, pytest.approx(2 / 3), 0.5, 3)
    assert found["p_value"] == min(1, 3 * (3 * 0.5**2 * 0.5 + 0.5**3))


def test_whether_a_concept_took_what_was_drawn_does_not_count():
    """That is seen afterwards and may hang together with what was drawn; an edit of which nothing is known is none."""
    some = by_hand([[1], [2], [3], [3]], NEW, taken=torch.zeros(4, 5, dtype=torch.bool))
    assert some.led().iloc[0]["share"] == 0.75 and some.follows(torch.tensor([0])).isnan().all()
    untouched = by_hand([[1]], NEW[:1], edited=torch.zeros(1, 5, dtype=torch.bool)).led().iloc[0]
    assert untouched["concept"] == -1 and untouched["candidates"] == 0
    assert np.isnan(untouched[["share", "rival", "p_value", "q_value"]].astype(float)).all()


def test_a_candidate_that_was_tested_once_does_not_outdo_one_that_was_followed_often():
    edited = torch.ones(4, 5, dtype=torch.bool)
    edited[1:, 1] = False
    found = by_hand([[2], [2], [3], [1]], NEW, edited=edited).led().iloc[0]  # the second once of once
    assert (found["concept"], found["share"], found["rival"]) == (0, 0.75, 1.0)


def test_a_fact_goes_astray_when_it_says_what_no_concept_with_its_answer_was_taught():
    edits = by_hand([[0], [1], [3], [2]], [[1, 2, 2, 3, 2], [2, 3, 1, 3, 2], [3, 1, 2, 3, 2], [1, 2, 2, 1, 0]])
    assert edits.astray[:, 0].tolist() == [False, True, False, False]
    half = torch.tensor([True, False, True, True, True]).expand(4, 5)
    assert by_hand([[0], [1], [3], [2]], NEW, edited=half).astray[:, 0].tolist() == [False, True, False, True]


def test_facts_that_follow_a_concept_nobody_knows_are_no_harm():
    draw = np.random.default_rng(0)
    known = np.repeat(np.arange(6), 3)
    answers = draw.integers(0, 6, 200)
    route = np.array([draw.choice(np.flatnonzero(known == a)) for a in answers])
    halves = [draw.permutation(18) < 9 for _ in range(6)]
    edited = torch.from_numpy(np.stack(list(itertools.chain.from_iterable((half, ~half) for half in halves))))
    new = np.stack([_other_answers(known, draw) for _ in halves]).repeat(2, 0)
    said = np.where(edited[:, route] & torch.tensor(draw.random(200) < 0.5), new[:, route], answers)
    own, theirs, taught = torch.from_numpy(answers), torch.from_numpy(known), torch.from_numpy(new)
    edits = Edits(own, theirs, taught, edited, edited, torch.from_numpy(said), spared=0.9)
    assert edits.harmless.all()
    found = edits.led()
    led = (found["share"] > 0.99).to_numpy()
    assert 80 < led.sum() < 120 and (found["concept"].to_numpy()[led] == route[led]).all()
    assert (found["q_value"][led] < 0.01).all() and (found["share"][~led] < 0.9).all()
    noise = np.where(draw.random(said.shape) < 0.2, draw.integers(6, 9, said.shape), said)
    spoilt = replace(edits, said=torch.from_numpy(noise))
    assert not spoilt.harmless.any() and spoilt.led()["share"].isna().all()


@pytest.mark.parametrize("letters", [4, 12])
def test_facts_that_no_edit_means_anything_to_pass_as_often_as_chance_allows(letters):
    """A model that leans towards some answers, in which concepts take what they lean to anyway."""
    draw, facts, rounds = np.random.default_rng(letters), 2000, 6
    known = np.repeat(np.arange(letters), 3)
    new = np.stack([_other_answers(known, draw) for _ in range(rounds)])
    leaning = 1 / np.arange(1, letters + 1)
    leaning /= leaning.sum()
    answers, said = draw.choice(letters, facts, p=leaning), draw.choice(letters, (rounds, facts), p=leaning)
    taken = torch.from_numpy(draw.random(new.shape) < np.where(new < letters // 2, 0.9, 0.2))
    own, theirs, taught = torch.from_numpy(answers), torch.from_numpy(known), torch.from_numpy(new)
    edits = Edits(own, theirs, taught, torch.ones_like(taken), taken, torch.from_numpy(said), spared=-1.0)
    for elsewhere in (False, True):
        p = edits.led(elsewhere=elsewhere)["p_value"]
        for level in (0.01, 0.05, 0.2):
            assert (p <= level).mean() <= level + 3 * (level / facts) ** 0.5
    assert edits.led()["q_value"].min() > 0.05


def test_many_facts_are_looked_at_a_part_at_a_time(monkeypatch):
    draw = np.random.default_rng(1)
    known = np.repeat(np.arange(5), 2)
    new = np.stack([_other_answers(known, draw) for _ in range(3)])
    ones = torch.ones(3, 10, dtype=torch.bool)
    own, theirs, taught = (torch.from_numpy(values) for values in (draw.integers(0, 5, 50), known, new))
    said = torch.from_numpy(draw.integers(0, 5, (3, 50)))
    edits = Edits(own, theirs, taught, ones, ones, said, spared=-1.0)
    whole = edits.table(torch.arange(50) % 10, [f"c{i}" for i in range(10)])
    monkeypatch.setattr("mnemo.edit_evidence.FACTS_AT_ONCE", 7)
    assert edits.table(torch.arange(50) % 10, [f"c{i}" for i in range(10)]).equals(whole)
