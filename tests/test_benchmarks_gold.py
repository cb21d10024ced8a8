"""The gold standard: where its sites start, what it tries, and what counts, on an organism written down by hand."""

from __future__ import annotations

import gold
import pandas as pd

from mnemo.organisms.compiled import WAYPOINT
from mnemo.patching import Site

SITE = Site(WAYPOINT, -2)


def test_sites_start_where_the_concept_is_last_unused(compiled_study):
    study, _, _ = compiled_study
    assert gold.own_start(study) == SITE


def test_it_finds_what_goes_through_its_concept_and_nothing_else(compiled_study):
    study, world, _ = compiled_study
    chosen = [world.of_kind(kind)[0] for kind in ("mnemonic", "idle", "decoy", "rote")]
    ids = [fact.fact_id for fact in chosen]
    trials = gold.every_trial(study, ids, progress=False)
    found = gold.gold_standard(trials, ids, own=gold.own_start(study), judge=SITE)
    assert found["own"].tolist() == found["judge"].tolist() == [True, False, False, False]


def test_each_definition_counts_its_own_sites_and_concepts():
    good = {"dose": 1.0, "swap": 0.9, "random": 0.1, "other_suffices": 0.1, "kept": 1.0, "direct": float("nan")}
    rows = {
        "all": {"source": "evoked", "layer": 2, "position": -1},
        "upstream": {"source": "evoked", "layer": 1, "position": -2},
        "read": {"source": "concept", "layer": 2, "position": -2},
        "between": {"source": "evoked", "layer": 2, "position": -2},
        "no rival": {"source": "evoked", "layer": 3, "position": -1, "kept": float("nan")},
        "rival": {"source": "evoked", "layer": 3, "position": -1, "kept": 0.4},
        "pushed": {"source": "evoked", "layer": 3, "position": -1, "random": 0.5},
        "given away": {"source": "evoked", "layer": 3, "position": -1, "other_suffices": 0.5},
    }
    trials = pd.DataFrame([{"fact_id": name, **good, **row} for name, row in rows.items()])
    found = gold.gold_standard(trials, [*rows, "untried"], own=Site(2, -2), judge=Site(1, -2))
    assert set(found.index[found["own"]]) == {"all", "between", "no rival"}
    assert set(found.index[found["own, either"]]) == {"all", "between", "no rival", "read"}
    assert set(found.index[found["own, inner"]]) == {"between", "read"}
    assert set(found.index[found["judge"]]) == {"read"}
    assert set(found.index[found["anywhere"]]) == {"all", "between", "no rival", "read", "upstream"}
