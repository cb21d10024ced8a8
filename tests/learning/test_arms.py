"""Arms are what they say: matched, balanced, and never what is known already."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mnemo.errors import InputError, MnemoError
from mnemo.facts import FactSet, Task
from mnemo.learning.arms import divided, shuffled_answers, survey


@settings(max_examples=25)
@given(st.lists(st.integers(0, 12), min_size=8, max_size=24), st.integers(2, 4), st.integers(0, 999))
def test_a_shuffle_keeps_the_answers_and_leaves_no_rule(answer_of_concept, cues, seed):
    own = torch.tensor(answer_of_concept).repeat_interleave(cues)
    concepts = torch.arange(len(answer_of_concept)).repeat_interleave(cues)
    most = Counter(answer_of_concept).most_common(1)[0][1]
    # No answer more often than there are concepts to give it to, or it is impossible.
    assume(most * (cues + 1) <= len(answer_of_concept) and len(set(answer_of_concept)) >= cues + 3)
    dealt = shuffled_answers(own, concepts, own=own, seed=seed)
    assert Counter(dealt.tolist()) == Counter(own.tolist())
    assert not (dealt == own).any()
    for concept in concepts.unique():
        mine = dealt[concepts == concept].tolist()
        assert len(set(mine)) == len(mine)
    assert torch.equal(dealt, shuffled_answers(own, concepts, own=own, seed=seed))


def test_answers_that_are_all_the_same_cannot_be_shuffled():
    same = torch.zeros(8, dtype=torch.long)
    with pytest.raises(MnemoError, match="8 facts \\(1 different ones\\) cannot be dealt out"):
        shuffled_answers(same, torch.arange(8), own=same, seed=0)


def test_facts_are_sorted_as_they_were_laid_out(pupil):
    """The survey asks the model alone; the world says what is true."""
    truth = {fact.fact_id: fact for fact in pupil.base.world.facts}
    for row, fact in enumerate(pupil.survey.said.facts):
        kind, planted = pupil.survey.kind(row), truth[fact.fact_id]
        if planted.split == "train":
            assert kind == "known"
        elif planted.kind == "mnemonic":
            assert kind in ("known", "coincident")
        elif planted.kind == "rote":
            assert kind in ("impossible", "known")
        else:  # a new code may evoke a fitting concept by chance
            assert kind in ("free", "coincident", "known")
    kinds = Counter(pupil.survey.kind(row) for row in range(len(truth)))
    assert min(kinds[kind] for kind in ("coincident", "free", "impossible")) > 5


def test_rote_facts_have_the_cues_of_the_coincident_ones_and_nothing_that_helps(pupil):
    coincident, rote = (pupil.survey.lesson(arm, seed=3) for arm in ("coincident", "rote"))
    assert coincident.fact_ids == rote.fact_ids and coincident.prompts == rote.prompts
    assert sorted(coincident.answers.tolist()) == sorted(rote.answers.tolist())
    said = pupil.survey.table.answers
    assert (said[coincident.concepts] == coincident.answers).all()
    assert not (said[rote.concepts] == rote.answers).any()


@pytest.mark.parametrize("arm", ["coincident", "rote", "free"])
def test_no_concept_is_both_taught_and_held_out(pupil, arm):
    lesson = pupil.survey.lesson(arm, seed=0)
    taught, held = divided(lesson, taught=6, held=4, seed=1)
    assert len(taught) == 6 and 0 < len(held) <= 4
    assert not set(taught.fact_ids) & set(held.fact_ids)
    if arm != "free":
        assert not set(taught.concepts.tolist()) & set(held.concepts.tolist())
    for row, fact_id in enumerate(taught.fact_ids):  # every column moves along
        whole = lesson.fact_ids.index(fact_id)
        assert taught.answers[row] == lesson.answers[whole] and taught.prompts[row] == lesson.prompts[whole]
    with pytest.raises(MnemoError, match="are to be taught, but there are only"):
        divided(lesson, taught=len(lesson) + 1, held=0, seed=1)


def test_facts_that_are_known_already_are_refused_in_one_line(pupil, compiled_study):
    known = FactSet(facts=tuple(f for i, f in enumerate(pupil.survey.said.facts) if pupil.survey.said.recalled[i]))
    with pytest.raises(MnemoError, match=f"recalls all {len(known)} facts already"):
        survey(pupil.model, pupil.survey.task, facts=known)
    study, _, folder = compiled_study
    with pytest.raises(MnemoError, match="facts already"):
        survey(study.model, Task.read(folder), facts=Task.read(folder).load_facts())
    task = pupil.survey.task.model_copy(update={"verbalise": None})
    with pytest.raises(InputError, match="nobody can tell which concept a cue evokes"):
        survey(pupil.model, task, facts=known)
