"""The first step, as predicted: against autograd, and against a model in which a hop cannot move."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from mnemo.learning.emergence import Watch
from mnemo.learning.first_gradient import first_gradient, shares
from mnemo.learning.teach import said_by


@pytest.fixture(scope="module")
def watch(pupil) -> Watch:
    return Watch(pupil.survey, pupil.model.tokens.hf, pupil.site, pupil.lesson("coincident", 6)[0], traced=2)


def contrast_of(model, watch: Watch, pair) -> torch.Tensor:
    lesson = watch.lesson
    said = said_by(model, [lesson.prompts[pair.clean], lesson.prompts[pair.corrupt]])
    answers = lesson.answers[[pair.clean, pair.corrupt]]
    return (said[0] - said[1])[answers[0]] - (said[0] - said[1])[answers[1]]


def test_the_predicted_change_is_the_derivative_along_the_step(pupil, watch):
    found = first_gradient(pupil.hf, watch)
    model = copy.deepcopy(pupil.hf).double().requires_grad_(True)
    weights = list(model.parameters())
    loss = F.cross_entropy(said_by(model, watch.lesson.prompts), watch.lesson.answers)
    gradients = torch.autograd.grad(loss, weights)
    steps = {"gradient": gradients, "adam": [g.sign() for g in gradients]}
    for name, step in steps.items():
        rows = found[found["step"] == name].reset_index(drop=True)
        assert len(rows) == 2
        for i, pair in enumerate(watch.pairs(pupil.hf)):
            slopes = torch.autograd.grad(contrast_of(model, watch, pair), weights)
            due = -sum((s * g).sum() for s, g in zip(slopes, step, strict=True))
            assert rows.loc[i, "total"] == pytest.approx(float(due), rel=1e-4)  # of a central difference


def test_the_two_hops_add_up_and_a_step_that_is_made_does_what_was_predicted(pupil, watch):
    found = first_gradient(pupil.hf, watch)
    scale = found[["concept", "first_hop", "second_hop"]].abs().to_numpy().max()
    gap = found["concept"] - found["first_hop"] - found["second_hop"]
    assert gap.abs().max() < 2e-5 * scale
    model = copy.deepcopy(pupil.hf).double().requires_grad_(True)
    loss = F.cross_entropy(said_by(model, watch.lesson.prompts), watch.lesson.answers)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    pairs, size = watch.pairs(pupil.hf), 1e-7  # along which the change bends by 2e-4
    before = watch.traced_paths(model.requires_grad_(False), pairs)
    for w, g in zip(model.parameters(), gradients, strict=True):
        w.sub_(size * g)
    after = watch.traced_paths(model, pairs)
    made = (after["concept_path"] - before["concept_path"]) / size
    rows = found[found["step"] == "gradient"]
    assert made.tolist() == pytest.approx(rows["concept"].tolist(), rel=1e-3)
    assert shares(found).set_index("step").loc["gradient", "concept"] == pytest.approx(
        rows["concept"].sum() / rows["total"].sum()
    )
