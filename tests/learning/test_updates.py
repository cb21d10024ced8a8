"""Cosines of effective updates against dense weights, and the search for a learning rate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mnemo.errors import MnemoError
from mnemo.learning import updates
from mnemo.learning.arms import Questions
from mnemo.learning.updates import (
    FollowConfig,
    LowRank,
    Updates,
    follow,
    layer_of,
    search_rate,
    step_of,
    tangent,
    with_net,
)


def factors(seed: int, n: int, out: int, rank: int, into: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((n, rank, into), (n, out, rank), (n, rank, into), (n, out, rank))
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)


sizes = st.tuples(st.integers(0, 99), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 9))


@settings(max_examples=30)
@given(sizes)
def test_inner_products_are_the_same_from_factors_and_from_matrices(size):
    a, b, *_ = factors(*size)
    matrices = LowRank(b, a)
    due = torch.einsum("iab,jab->ij", b @ a, b @ a)
    for found in (matrices.gram_of_factors(), matrices.gram_of_matrices(), matrices.gram()):
        torch.testing.assert_close(found, due)


@settings(max_examples=30)
@given(sizes, st.floats(0.1, 3))
def test_an_effective_step_is_the_difference_of_the_products_and_blind_to_the_gauge(size, scale):
    a, b, da, db = factors(*size)
    rank = size[3]
    due = scale * ((b + db) @ (a + da) - b @ a)
    torch.testing.assert_close(step_of(a, b, change_a=da, change_b=db, scale=scale).dense(), due)
    gauge = torch.linalg.qr(factors(7, 1, rank, rank, rank)[1][0]).Q * 3
    inverse = torch.linalg.inv(gauge)
    other = step_of(inverse @ a, b @ gauge, change_a=inverse @ da, change_b=db @ gauge, scale=scale)
    torch.testing.assert_close(other.gram(), step_of(a, b, change_a=da, change_b=db, scale=scale).gram())
    small = 1e-7
    near = step_of(a, b, change_a=small * da, change_b=small * db, scale=scale).dense() / small
    torch.testing.assert_close(near, tangent(a, b, change_a=da, change_b=db, scale=scale).dense(), atol=1e-5, rtol=1e-5)


def test_the_net_displacement_is_the_sum_of_the_steps():
    steps = torch.randn(5, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    due = F.cosine_similarity(steps, steps.sum(0)[None])
    assert with_net(steps @ steps.T) == pytest.approx(due.numpy())


@pytest.fixture(scope="module")
def batch(pupil):
    return pupil.lesson("coincident", 6)[0]


@pytest.fixture(scope="module")
def followed(pupil, batch) -> Updates:
    return follow(pupil.hf, batch, config=FollowConfig(rank=2, steps=5, learning_rate=0.02, seed=4))


def test_cosines_are_those_of_the_weights_that_changed(pupil, batch, followed):
    """Plain gradient descent on the factors by hand, and the merged weights after each step."""
    model = updates._pupil(pupil.hf, followed.config)
    pairs = updates._factors(model)
    products = []
    for _ in range(6):
        products.append({n: (s * b @ a).detach().double().flatten() for n, (a, b, s) in pairs.items()})
        loss = updates._loss(model, batch)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(0.02 * p.grad)
    dense = {n: torch.stack([p[n] for p in products]).diff(dim=0) for n in pairs}
    whole = torch.cat(list(dense.values()), 1)
    due = F.cosine_similarity(whole[:, None], whole[None], dim=-1)
    assert followed.cosines() == pytest.approx(due.numpy(), abs=1e-3)
    one = torch.cat([change for name, change in dense.items() if layer_of(name) == 1], 1)
    due = F.cosine_similarity(one[:, None], one[None], dim=-1)
    assert followed.cosines(layer=1) == pytest.approx(due.numpy(), abs=1e-3)
    table = followed.table()
    all_layers = table[table["layer"] == -1]
    assert all_layers["with_net"].tolist() == pytest.approx(
        F.cosine_similarity(whole, whole.sum(0)[None]).tolist(), abs=1e-3
    )
    assert all_layers["null"].iloc[0] == pytest.approx(whole.shape[1] ** -0.5)


def test_a_small_step_of_plain_descent_goes_along_its_gradient(pupil, batch):
    found = follow(pupil.hf, batch, config=FollowConfig(rank=2, steps=3, learning_rate=1e-4))
    assert found.agreement == pytest.approx([1, 1, 1], abs=1e-3)
    assert found.cosines()[0, 1] == pytest.approx(found.cosines("gradients")[0, 1], abs=1e-3)
    assert abs(found.cosines("random")[0, 1]) < 0.3


def test_single_facts_make_up_the_gradient_of_the_batch(followed):
    singles = followed.singles
    assert singles["step"].tolist() == [0, 2, 4]
    assert (singles["with_batch"] > singles["with_others"]).all()
    assert singles["with_batch"].between(-1, 1).all()


def test_the_rate_found_does_not_raise_the_loss_and_a_higher_one_does(pupil, batch):
    config = FollowConfig(rank=2, trial=5)
    rate = search_rate(pupil.hf, batch, config=config)
    kept = np.diff(updates._trial(pupil.hf, batch, config, rate))
    above = np.diff(updates._trial(pupil.hf, batch, config, 1.2 * rate))
    assert (kept <= 0).all() and kept.sum() < -0.05
    assert (above > 0).any() or not np.isfinite(above).all()


def test_a_batch_on_which_no_rate_helps_is_one_line(pupil, batch, monkeypatch):
    monkeypatch.setattr(updates, "HIGHEST", 1e-4)  # the first few rates say it all
    known = copy.deepcopy(pupil.hf)
    with torch.no_grad():
        known.transformer.ln_f.weight.zero_()  # says the same to everything, whatever its blocks do
        known.transformer.ln_f.bias.zero_()
    with pytest.raises(
        MnemoError, match=r"no learning rate up to .* lowers the loss on the batch .* does not know yet"
    ):
        search_rate(known, batch, config=FollowConfig(trial=2))
    with torch.no_grad():
        known.transformer.ln_f.bias.fill_(float("nan"))
    with pytest.raises(MnemoError, match="raises the loss on the batch already"):
        search_rate(known, batch, config=FollowConfig(trial=2))
    with pytest.raises(MnemoError, match="no number after"):
        follow(known, Questions(batch.prompts, batch.answers), config=FollowConfig(learning_rate=0.1, steps=2))


@pytest.mark.parametrize("optimizer", ["lion", "adamw"])
def test_every_optimizer_lowers_the_loss(pupil, batch, optimizer):
    found = follow(pupil.hf, batch, config=FollowConfig(rank=2, steps=4, optimizer=optimizer, learning_rate=2e-3))
    assert found.losses[-1] < found.losses[0]
    assert len(found.losses) == 5
