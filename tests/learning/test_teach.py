"""Teaching changes a copy, counts steps as it says, and merges what LoRA learned."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mnemo.errors import MnemoError
from mnemo.learning.arms import Questions
from mnemo.learning.teach import Course, TeachConfig, said_by, share_recalled, teach


def test_steps_are_counted_until_the_first_recall():
    recalled = torch.tensor([[True, False, False, False], [False, True, False, False], [True, True, True, False]])
    course = Course(recalled.float(), recalled, torch.zeros(3), None)  # pyright: ignore[reportArgumentType]
    assert course.steps_to_recall.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("how", "rate"), [("full", 5e-4), ("lora", 3e-3)])
def test_facts_are_learned_by_a_copy(pupil, how, rate):
    lesson, _ = pupil.lesson("rote", 6)
    before = {name: weight.clone() for name, weight in pupil.hf.state_dict().items()}
    seen = []
    torch.manual_seed(0)
    config = TeachConfig(how=how, steps=25, learning_rate=rate)
    course = teach(
        pupil.hf,
        lesson,
        config=config,
        watch=lambda step, model: seen.append((step, share_recalled(model, lesson))),
        at=[0, 25],
    )
    assert all(torch.equal(weight, before[name]) for name, weight in pupil.hf.state_dict().items())
    assert [step for step, _ in seen] == [0, 25]
    assert seen[0][1] < 0.5 and seen[1][1] == course.recalled[-1].float().mean() > 0.8
    assert share_recalled(course.model, lesson) == seen[1][1]  # merged: a plain model of the same weights' names
    assert set(course.model.state_dict()) == set(before)
    said = said_by(pupil.hf, lesson.prompts)
    assert course.loss[0] == pytest.approx(F.cross_entropy(said, lesson.answers).item(), abs=1e-5)


def test_a_lesson_that_is_learned_may_end_early(pupil):
    lesson, _ = pupil.lesson("coincident", 2)
    whole = teach(pupil.hf, lesson, config=TeachConfig(steps=30, learning_rate=5e-4))
    short = teach(pupil.hf, lesson, config=TeachConfig(steps=30, learning_rate=5e-4), until_recalled=True)
    assert len(short.recalled) == 1 + whole.recalled.all(1).int().argmax() < 31
    torch.testing.assert_close(short.probability, whole.probability[: len(short.recalled)])


def test_prompts_of_several_lengths_keep_their_order(pupil):
    prompts = (*pupil.survey.said.prompts[:3], *pupil.survey.table.prompts[:3], *pupil.survey.said.prompts[3:5])
    mixed = said_by(pupil.hf, (prompts[3], prompts[0], *prompts[1:3], *prompts[4:]))
    alone = torch.cat([said_by(pupil.hf, [prompt]) for prompt in prompts])
    torch.testing.assert_close(mixed, alone[[3, 0, 1, 2, 4, 5, 6, 7]])


def test_a_loss_that_is_no_number_is_one_line(pupil):
    lesson, _ = pupil.lesson("rote", 4)
    with pytest.raises(MnemoError, match=r"no number after .* steps: give a smaller learning rate"):
        teach(pupil.hf, lesson, config=TeachConfig(steps=4, learning_rate=1e30))
    with pytest.raises(MnemoError, match="learning_rate"):
        TeachConfig(learning_rate=0)
    assert torch.isnan(torch.tensor(share_recalled(pupil.hf, Questions((), torch.tensor([], dtype=torch.long)))))
