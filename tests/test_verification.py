"""Estimates propose and exact patching decides, within the budget."""

from __future__ import annotations

import numpy as np
import pytest

from mnemo.attribution import attribute_edges
from mnemo.contrasts import Contrast
from mnemo.edge_patching import exact_edges
from mnemo.errors import MnemoError
from mnemo.model import Model, load
from mnemo.verification import top_edges, verify
from tests.tiny_models import tiny_contrasts, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model() -> Model:
    return load(tiny_model("llama"), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def pairs(model) -> list[Contrast]:
    return tiny_contrasts(model)[:3]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_the_strongest_candidates_are_scored_exactly_within_the_budget(model, pairs, direction):
    edges = attribute_edges(model, pairs, direction=direction)
    found = verify(model, pairs, edges=edges, top=5, budget=30)
    exact = exact_edges(model, pairs, direction=direction)["score"].values
    patched = np.isfinite(found["exact"].values)
    assert found.attrs["forwards"] <= 30 * len(pairs)
    assert patched.sum((1, 2, 3)).tolist() == [30] * len(pairs)
    np.testing.assert_allclose(found["exact"].values[patched], exact[patched], atol=1e-4)
    for fact in range(len(pairs)):
        sizes = np.abs(edges["score"].values[fact])
        assert np.nanmin(sizes[patched[fact]]) >= np.nanmax(sizes[~patched[fact] & np.isfinite(sizes)])
        chosen = found["confirmed"].values[fact]
        assert chosen.sum() == 5
        assert np.abs(exact[fact][chosen]).min() >= np.abs(exact[fact][patched[fact] & ~chosen]).max() - 1e-4


def test_with_a_budget_for_all_the_confirmed_are_the_true_top(model, pairs):
    edges = attribute_edges(model, pairs, method="attention_corrected", steps=2)
    exact = exact_edges(model, pairs)
    found = verify(model, pairs, edges=edges, top=20, budget=exact["score"].size)
    listed = top_edges(found, 20)
    for fact, rows in listed.groupby("fact"):
        values = np.sort(np.abs(exact["score"].sel(fact=fact).values[np.isfinite(exact["score"].sel(fact=fact))]))
        np.testing.assert_allclose(rows["exact"].abs().to_numpy(), values[::-1][:20], atol=1e-4)
        assert rows["exact"].abs().is_monotonic_decreasing
        at = rows.iloc[0]
        whole = exact["score"].sel(fact=fact, writer=at["writer"], reader=at["reader"], position=at["position"])
        assert at["exact"] == pytest.approx(float(whole), abs=1e-4)


def test_reach_proposes_edges_whose_estimates_cancel(model, pairs):
    """A fact's largest reach is always tried, even where its score is nil."""
    edges = attribute_edges(model, pairs, method="attention_corrected", steps=4)
    edges["score"][:] = edges["score"] * 0
    found = verify(model, pairs, edges=edges, top=1, budget=10)
    for fact in range(len(pairs)):
        best = np.unravel_index(np.nanargmax(edges["reach"].values[fact]), edges["reach"].shape[1:])
        assert np.isfinite(found["exact"].values[fact][best])


def test_top_edges_of_estimates_are_sorted_by_them(model, pairs):
    edges = attribute_edges(model, pairs)
    table = top_edges(edges, 3)
    assert list(table.columns) == ["fact", "writer", "reader", "position", "score"]
    assert table.groupby("fact", sort=False)["score"].apply(lambda s: s.abs().is_monotonic_decreasing).all()
    assert table["score"].abs().max() == pytest.approx(float(np.nanmax(np.abs(edges["score"]))))


def test_bad_input_is_refused(model, pairs):
    edges = attribute_edges(model, pairs)
    with pytest.raises(MnemoError, match=r"top=20 with budget=10.*give budget >= top >= 1"):
        verify(model, pairs, edges=edges, top=20, budget=10)
    with pytest.raises(MnemoError, match="top=0"):
        verify(model, pairs, edges=edges, top=0)
    with pytest.raises(MnemoError, match="edges are of other facts"):
        verify(model, pairs[:2], edges=edges)
