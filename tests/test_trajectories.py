"""Along the layers of a built organism, whose concepts are known to stand at one place alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mnemo.errors import MnemoError
from mnemo.organisms.compiled import WAYPOINT
from mnemo.trajectories import concept_trajectories


@pytest.fixture(scope="module")
def trajectories(compiled_study):
    study, world, _ = compiled_study
    kinds = {fact.fact_id: fact.kind for fact in world.facts}
    facts = [next(fact for fact, kind in kinds.items() if kind == wanted) for wanted in ("mnemonic", "idle")]
    return concept_trajectories(study, facts, progress=False).set_index(["fact_id", "position", "layer"]), facts


def test_a_concept_is_read_and_swapped_where_it_was_built(trajectories):
    table, (mnemonic, _) = trajectories
    at_cue = table.loc[mnemonic].loc[-2]
    assert at_cue["token"].eq("==").all() and at_cue.index.tolist() == [0, 1, 2, 3, 4]
    # Evoked by block 2; block 3 fetches it, so from then on a swap at the cue comes too late.
    assert at_cue["swap_success"].tolist() == [0, 0, 1, 0, 0] and at_cue["swap_control"].tolist() == [0] * 5
    # After block 1 the code's characters are there, from which the host's own block 2 makes the concept: it reads, and
    # nothing can be swapped yet.
    assert at_cue["reads"].round(2).tolist() == [0, 1, 1, 0, 0] and (at_cue["reads_control"] < 0.1).all()
    at_end = table.loc[mnemonic].loc[-1]["swap_success"]
    assert at_end.tolist() == [0, 0, 0, 1, 1]  # fetched by block 3, its answer said by block 4
    assert table.loc[mnemonic].loc[-1, 4]["leakage"] == 1  # past all blocks, it is the answer that is swapped


def test_an_idle_concept_is_read_and_never_moves_the_answer(trajectories):
    table, (_, idle) = trajectories
    assert table.loc[idle].loc[-2, WAYPOINT]["reads"] > 0.9
    assert table.loc[idle].loc[-2]["swap_success"].tolist() == [0] * 5


def test_a_task_that_cannot_verbalise_is_read_by_comparison(compiled_study):
    study, world, _ = compiled_study
    bare = replace(study, task=study.task.model_copy(update={"verbalise": None}))
    facts = [fact.fact_id for fact in world.facts if fact.kind == "mnemonic"][:3]
    found = concept_trajectories(bare, facts, positions=[-2], targets=2, progress=False)
    at = found[found["layer"] == WAYPOINT]
    assert (at["reads"] > 0.9).all() and (at["reads_control"] < 0.1).all()


def test_what_cannot_be_followed_is_said(compiled_study):
    study, world, _ = compiled_study
    fact = world.facts[0].fact_id
    wrong = (([], None, "no facts"), (["nobody"], None, "'nobody'"), ([fact], [0], "from the end"))
    for facts, positions, why in wrong:
        with pytest.raises(MnemoError, match=why):
            concept_trajectories(study, facts, positions=positions, progress=False)
