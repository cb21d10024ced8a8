"""Transfer between organisms: the new codes, what is measured about them, and runs that were interrupted."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from mnemo.errors import MnemoError
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.training import build_corpus
from mnemo.records import Parts, inputs_hash
from mnemo.transfer import (
    Setting,
    TransferConfig,
    audit,
    make_setting,
    measure_new,
    run_transfer,
    same_concepts,
    swaps_by_layer,
    unrelated_prompts,
)
from mnemo.transfer.runs import _Run

TINY = TransferConfig(
    seeds=(0, 1), shapes=(("llama", 2), ("gpt2", 2)), d_model=16, answers=3, concepts=8, cues=2, frees=6, rotes=4,
    new=4, base_steps=2, teach_steps=2, distil_steps=2, batch=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def setting() -> Setting:
    return make_setting(TINY)


@pytest.fixture(scope="module")
def knows_all(setting: Setting):
    """An organism that recalls every code, new ones too, by routes that were written down."""
    return compile_organism(setting.everything.world)[0].eval()


def test_new_codes_are_new_and_an_answer_names_no_concept(setting: Setting) -> None:
    world, known = setting.everything.world, setting.known.world
    assert world.facts[: len(known.facts)] == known.facts
    new = [world.facts[i] for i in setting.new.tolist()]
    assert not {fact.cue for fact in new} & {fact.cue for fact in known.facts}
    assert [fact.kind for fact in new] == ["mnemonic"] * 4 + ["rote"] * 4
    answers = [concept.answer for concept in world.concepts]
    assert len(set(answers)) == 3 and min(answers.count(answer) for answer in answers) >= 2


def test_nothing_but_the_teacher_s_lessons_shows_a_new_code(setting: Setting) -> None:
    site = setting.everything.cues.site
    codes = {tuple(row) for row in setting.everything.cues.tokens[0, setting.new, site - 2 : site + 1].tolist()}

    def named(tokens: torch.Tensor) -> bool:
        return any(tuple(run) in codes for run in tokens.unfold(1, 3, 1).flatten(0, 1).tolist())

    assert named(setting.everything.cues.tokens[0])
    assert not named(unrelated_prompts(setting))
    assert not any(named(group.tokens) for group, _ in build_corpus(setting.known).groups)


def test_two_seeds_and_two_shapes_are_needed() -> None:
    with pytest.raises(MnemoError, match="1 seeds given"):
        make_setting(TINY.model_copy(update={"seeds": (0,)}))


def test_a_written_organism_measures_as_it_was_written(setting: Setting, knows_all) -> None:
    found = measure_new(setting, knows_all, layer=WAYPOINT, position=-2, seed=0)
    concept, rote = (found[found["kind"] == kind] for kind in ("concept", "rote"))
    assert concept[["recalled", "expanded", "probes", "swapped"]].to_numpy().min() == 1
    assert rote["recalled"].min() == 1
    assert rote[["expanded", "swapped"]].to_numpy().max() == 0
    assert rote["probes"].isna().all()
    lessons, row = setting.everything, 0
    rivals = [
        c
        for c, answer in enumerate(lessons.concept_answers[0].tolist())
        if answer == lessons.fact_answers[setting.new[row]] and c != lessons.concept_of[setting.new[row]]
    ]
    own = lessons.concept_answers[1:, lessons.concept_of[setting.new[row]]]
    by_hand = [(lessons.concept_answers[1:, c] == own).float().mean().item() for c in rivals]
    assert found["probes_control"][row] == pytest.approx(sum(by_hand) / len(by_hand))


def test_swaps_work_where_the_concept_was_written(setting: Setting, knows_all) -> None:
    table = swaps_by_layer(knows_all, setting.known, seed=0)
    best = table.loc[table["margin"].idxmax()]
    assert (best["layer"], best["depth"], best["position"], best["margin"]) == (WAYPOINT, WAYPOINT / 4, -2, 1)


def test_an_audit_names_a_concept_with_the_answer_that_the_outputs_give(setting: Setting, knows_all) -> None:
    guessed = audit(setting, knows_all)[: TINY.new]
    lessons = setting.everything
    assert torch.equal(lessons.concept_answers[0, guessed], lessons.fact_answers[setting.with_concept])


def test_agreement_on_concepts_beats_agreement_on_answers() -> None:
    answers = torch.tensor([7, 7, 7, 8, 8])
    concept_answers = torch.tensor([7, 7, 8, 9])
    a = torch.tensor([0, 1, 1, 2, 2])
    b = torch.tensor([0, 1, 0, 2, 3])  # the last concept does not have the fact's answer, so that fact does not count
    c = torch.tensor([-1, -1, -1, -1, -1])
    found = same_concepts([a, b, c], answers, concept_answers=concept_answers)
    assert found[["first", "second"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found["facts"].tolist() == [4, 0, 0]
    assert found["agreement"][0] == pytest.approx(3 / 4)
    # Answer 7: all ways to deal b's 0, 1, 0 to a's 0, 1, 1; answer 8 has a single way.
    dealt = [sum(x == y for x, y in zip((0, 1, 1), p, strict=True)) for p in itertools.permutations((0, 1, 0))]
    assert found["null"][0] == pytest.approx((sum(dealt) / len(dealt) + 1) / 4)
    assert math.isnan(found["agreement"][1])


def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path: Path, setting: Setting) -> None:
    whole = run_transfer(TINY, progress=False)
    parts = Parts.begin(tmp_path, inputs_hash({"transfer": TINY.model_dump()}), resume=False)
    for make in itertools.islice(_Run(setting, parts).jobs(), 6):
        make()
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / ".mnemo-parts").glob("*.parquet")}
    assert len(kept) == 6
    again = run_transfer(TINY, out=tmp_path, resume=True, progress=False)
    for name in ("depth", "pairs", "distilled"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(whole, name))
    assert not (tmp_path / ".mnemo-parts").exists()
