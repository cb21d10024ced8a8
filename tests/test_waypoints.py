"""Which site is chosen, given what candidates scored: tables made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemo.patching import Site
from mnemo.waypoints import Waypoint, _spread_over_positions, choose_site

ALL, HALF = torch.ones(100), torch.tensor([1.0, 0.0]).repeat(50)


def chosen(*rows: tuple[int, int, float, float, torch.Tensor | None]) -> tuple[int, int]:
    """The layer and position chosen of (layer, position, score, clarity, facts moved)."""
    table = pd.DataFrame(
        [
            {"layer": layer, "position": position, "share": 1.0, "score": score, "decided": clarity, "legible": np.nan}
            for layer, position, score, clarity, _ in rows
        ]
    )
    moved = {Site(layer, position): facts for layer, position, _, _, facts in rows if facts is not None}
    site = choose_site(table, moved)
    return site.layer, site.position


def test_upstream_swaps_move_more_facts_so_the_last_clear_site_counts():
    assert chosen((1, -2, 1.0, 1.0, ALL), (2, -2, 0.8, 0.95, HALF), (3, -2, 0.3, 1.0, HALF)) == (2, -2)
    assert chosen((1, -2, 1.0, 1.0, ALL), (2, -2, 0.8, 0.7, HALF)) == (1, -2)  # the later one is not clear


def test_where_the_same_facts_are_moved_before_the_concept_stood_there_already():
    assert chosen((2, -2, 0.8, 0.99, ALL), (3, -2, 0.8, 0.91, ALL)) == (2, -2)
    nearly = ALL.clone()
    nearly[:2] = 0
    assert chosen((2, -2, 0.8, 0.99, nearly), (3, -2, 0.8, 0.91, ALL)) == (2, -2)
    nearly[2] = 0
    assert chosen((2, -2, 0.8, 0.99, nearly), (3, -2, 0.8, 0.91, ALL)) == (3, -2)


def test_of_sites_that_are_equally_clear_the_last_counts():
    """Facts that the comparison does not see may be moved at the earlier one."""
    assert chosen((1, -2, 0.83, 0.94, ALL), (2, -2, 0.83, 0.93, ALL)) == (2, -2)
    assert chosen((1, -2, 0.83, 0.94, ALL), (2, -2, 0.83, 0.91, ALL)) == (1, -2)


def test_the_last_position_counts_only_where_no_other_is_clear():
    assert chosen((2, -2, 0.8, 0.95, HALF), (3, -1, 0.9, 1.0, ALL)) == (2, -2)
    assert chosen((2, -2, 0.8, 0.5, HALF), (3, -1, 0.9, 1.0, ALL)) == (3, -1)
    assert chosen((2, -1, 0.8, 0.95, HALF), (3, -1, 0.9, 1.0, ALL)) == (3, -1)  # the cue ends the prompt


def test_where_nothing_works_the_site_that_carries_most_is_shown():
    table = pd.DataFrame(
        {"layer": [1, 2], "position": [-2, -2], "share": [0.4, 0.9], "score": np.nan, "decided": np.nan,
         "legible": np.nan}
    )  # fmt: skip
    assert choose_site(table, {}) == Site(2, -2)


@pytest.mark.parametrize(
    ("score", "moved", "works"),
    [(0.9, 90, True), (0.1, 3, True), (0.1, 2, False), (0.3, 1, True), (np.nan, np.nan, False)],
)
def test_swaps_work_where_they_work_on_the_average_fact_or_on_a_few(score, moved, works):
    chosen = {"layer": 2, "position": -2, "share": 1.0, "swap": score, "score": score, "moved": moved, "chosen": True}
    other = {**chosen, "layer": 1, "score": 0.0, "moved": 50, "chosen": False}
    waypoint = Waypoint(Site(2, -2), pd.DataFrame([chosen, other]), torch.zeros(1, 1))
    assert waypoint.swaps_work is works and waypoint.tried == (2 if np.isfinite(score) else 1)


def later(position: int, *rows: tuple[int, int, float]) -> list[tuple[int, int]]:
    """The later sites at which facts are looked at, of (layer, position, swap); the waypoint is the first."""
    table = pd.DataFrame([{"layer": layer, "position": at, "swap": swap} for layer, at, swap in rows])
    table["chosen"] = table.index == 0
    waypoint = Waypoint(Site(rows[0][0], position), table, torch.zeros(1, 1))
    return [(site.layer, site.position) for site in waypoint.later]


def test_facts_are_looked_at_in_later_layers_at_which_swaps_were_tried():
    assert later(-2, (2, -2, 0.9), (1, -2, 1.0), (3, -2, 0.1), (4, -2, np.nan), (3, -1, 0.9)) == [(3, -2)]
    assert later(-2, (2, -2, 0.9), *((layer, -2, 0.8) for layer in range(3, 9))) == [(3, -2), (4, -2)]
    assert later(-1, (2, -1, 0.9), (3, -1, 0.9)) == []  # there the answer itself is moved


@given(n=st.integers(1, 40), most=st.integers(1, 20))
def test_candidates_are_spread_evenly_up_to_the_last_layer(n, most):
    sites = {Site(layer, -2): 1.0 for layer in range(1, n + 1)}
    layers = [site.layer for site in _spread_over_positions(sites, most)]
    assert layers == sorted(set(layers)) and layers[-1] == n and len(layers) == min(n, -(-3 * most // 4))
    gaps = np.diff([0, *layers])
    assert len(layers) == n or gaps[1:].max(initial=1) - gaps[1:].min(initial=n) <= 1


def test_positions_before_the_last_come_first():
    sites = {
        Site(layer, position): share for position, share in ((-3, 0.5), (-2, 0.4), (-1, 1.0)) for layer in range(1, 9)
    }
    taken = [site.position for site in _spread_over_positions(sites, 12)]
    assert taken == [-3] * 8 + [-2] * 3 + [-1]
