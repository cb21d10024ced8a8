"""How closely each fact is looked at, on an organism to half of whose concepts no swap leads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch

from mnemo.concept_vectors import choose_targets
from mnemo.extraction import extract
from mnemo.forwards import counted_forwards
from mnemo.looks import Effort, look_at, look_runs
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.study import Study
from mnemo.study_concepts import study_concepts
from mnemo.tested_facts import STAND_INS, TestedFacts
from mnemo.trials import directions_beside, run_dosed_swaps, run_trials
from mnemo.verdict import open_still, shown, undecided, unsettled, weigh, weigh_doses, with_doses
from tests.lexicon import PHRASES

EFFORT = Effort(targets=4, doses=(0.75, 1.0), dosed_targets=4, open_targets=4)
SITES, FEWEST = 3, 4


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("half")
    world = build_world(
        WorldConfig(concepts=12, cues_per_concept=2, decoys=2, idles=2, rotes=2, frees=0, seed=5), PHRASES
    )
    model, tokenizer = compile_organism(world)
    write_folder(folder, world, model=model, tokenizer=tokenizer, name="half")
    return extract(folder, quick=True, progress=False)


def facts_in(study: Study, layer: int | None = None) -> TestedFacts:
    known = study_concepts(study, layer=layer)
    facts = (known.concepts >= 0).nonzero()[:, 0]
    prompts = [study.prompt(fact_id) for fact_id in known.rows]
    return TestedFacts(
        study.model, prompts, facts, known.answers[facts], known.concepts[facts], known.table, known.vectors
    )


@pytest.fixture(scope="module")
def tested(study) -> TestedFacts:
    """Facts that swaps move now and then, as every second concept has no vector, and a few that they never move."""
    whole = facts_in(study)
    gone = (torch.arange(len(whole.table)) % 2 == 1)[:, None]
    spoiled = {name: getattr(whole.vectors, name).masked_fill(gone, 0.0) for name in ("vectors", "from_prompts")}
    return replace(whole, vectors=replace(whole.vectors, **spoiled))


@pytest.fixture(scope="module")
def targets(tested) -> torch.Tensor:
    chosen = choose_targets(
        tested.table, tested.vectors.counts, answers=tested.answers, concepts=tested.concepts,
        n_targets=EFFORT.most_targets, seed=0,
    )  # fmt: skip
    chosen[::3, 6:] = -1  # every third fact has hardly more targets than the second look takes
    return chosen


@pytest.fixture(scope="module")
def found(tested, targets) -> pd.DataFrame:
    recall = torch.ones(len(tested.facts))
    return look_at(tested, targets, recall=recall, effort=EFFORT, sites=SITES, fewest=FEWEST, seed=0)


def test_each_fact_is_looked_at_as_closely_as_it_needs(tested, targets, found):
    """Fact by fact: the third look is for those that the second leaves open, at its dose and with other targets."""
    tests, seen = EFFORT.tests(SITES), set()
    for row in range(len(tested.facts)):
        one, mine, only = tested.only(torch.tensor([row])), targets[[row]], found.iloc[[row]].reset_index(drop=True)
        trials = run_trials(one, mine[:, :4], seed=0, random=directions_beside(4, tests=tests))
        first = weigh(trials, torch.ones(1))
        if not unsettled(first, tests=SITES * EFFORT.looks)[0]:
            assert only["dose"].isna()[0]
            continue

        def closer(doses, others, seed, one=one):
            beside = directions_beside(4, tests=tests, least=1)
            return weigh_doses(run_dosed_swaps(one, others, doses=doses, seed=seed, random=beside))

        closest = closer(EFFORT.doses, mine[:, :4], 0)
        open_ = undecided(with_doses(first, closest, looks=EFFORT.looks), tests=SITES)[0]
        if open_ and mine[0, 7] >= 0:
            closest = closer([closest["dose"][0]], mine[:, 4:], 1)
        seen.add((bool(open_), bool(mine[0, 7] >= 0)))
        expected = with_doses(first, closest, looks=EFFORT.looks)
        pd.testing.assert_frame_equal(only[expected.columns], expected, check_dtype=False, atol=1e-5)
    assert {(True, True), (True, False), (False, True)} <= seen


@pytest.mark.parametrize("most", [3, 8])
def test_no_looks_take_more_runs_than_was_said(tested, targets, most):
    """Few concepts to swap to take more random directions, in the closer looks too."""
    few = targets.masked_fill(torch.arange(targets.shape[1]) >= most, -1)
    others = (few >= 0).sum(1)
    recall, fewest = torch.ones(len(others)), int(others.min())
    with counted_forwards(tested.model) as count:
        look_at(tested, few, recall=recall, effort=EFFORT, sites=SITES, fewest=fewest, seed=0)
    said = look_runs(others.tolist(), effort=EFFORT, sites=SITES, later=0)
    assert count.prompts <= said <= 3 * count.prompts


def test_what_is_open_is_looked_at_in_later_layers_which_count_if_they_settle_it(study, targets):
    """In the first layer the concept is half there, in the second all of it, and in the third swaps do nothing."""
    tested, good, useless = (facts_in(study, layer) for layer in (1, 2, 3))
    recall, tests = torch.ones(len(tested.facts)), EFFORT.tests(SITES)
    look = partial(look_at, tested, targets, recall=recall, effort=EFFORT, sites=SITES, fewest=FEWEST, seed=0)
    found, again = look(), look(later=[useless, good])
    open_, settled = open_still(found, tests=SITES), (again["tested_layer"] == 2).to_numpy()
    assert (found["tested_layer"] == 1).all() and settled.any()
    pd.testing.assert_frame_equal(again[~settled], found[~settled])

    enough = (targets >= 0).all(1).numpy()
    assert (open_ & ~enough).any()
    for row in range(len(found)):
        one, mine = good.only(torch.tensor([row])), targets[[row]]
        beside = directions_beside(4, tests=tests, least=1)
        dosed = partial(run_dosed_swaps, one, random=beside)
        second = weigh_doses(dosed(targets=mine[:, :4], doses=EFFORT.doses, seed=4))
        third = weigh_doses(dosed(targets=mine[:, 4:], doses=[second["dose"][0]], seed=5))
        first = weigh(run_trials(one, mine[:, :4], seed=4, random=directions_beside(4, tests=tests)), torch.ones(1))
        both = [with_doses(first.assign(p_value=1.0), each, looks=EFFORT.looks) for each in (second, third)]
        assert settled[row] == (open_[row] and enough[row] and all(shown(each, tests=SITES)[0] for each in both))
        if settled[row]:  # all its evidence is of that layer, and its p-value that of the look which decides
            pd.testing.assert_frame_equal(
                again.loc[[row], list(both[1])].reset_index(drop=True), both[1], check_dtype=False, atol=1e-5
            )


def test_a_stand_in_is_the_mean_over_some_other_concepts(tested, targets):
    """Against one at a time."""
    own, others = tested.suffice(targets, dose=0.75)
    vectors = tested.vectors
    for row in range(0, len(own), 5):
        fact, said = tested.facts[[row]], []
        for concept in [tested.concepts[row], *targets[row, :STAND_INS]]:
            state = vectors.mean + 0.75 * vectors.seen_by(fact, concept[None])
            said.append(tested.place(torch.tensor([row]), state, wanted=tested.answers[[row]])[1].item())
        assert own[row].item() == pytest.approx(said[0], abs=1e-5)
        assert others[row].item() == pytest.approx(sum(said[1:]) / STAND_INS, abs=1e-5)
    assert tested.suffice(torch.full_like(targets, -1))[1].isnan().all()


def test_without_doses_there_is_one_look(tested, targets):
    quick = Effort(targets=4, doses=())
    assert (quick.looks, quick.most_targets) == (1, 4)
    found = look_at(
        tested, targets, recall=torch.ones(len(tested.facts)), effort=quick, sites=SITES, fewest=FEWEST, seed=0
    )
    assert "dose" not in found
    assert EFFORT.looks == 4  # the first, two doses, and the third
