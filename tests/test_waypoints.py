"""Which site is chosen, given what candidates scored: tables made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from mnemo.patching import Site
from mnemo.waypoints import choose_site

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
