"""A concept that is read wrongly: the one that the model names is tried in its place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

import mnemo.extraction
from mnemo.concept_readers import reader_for
from mnemo.concepts import Reading, ReadsConcepts
from mnemo.extraction import extract
from mnemo.looks import Effort
from mnemo.messages import messages_beside_state
from mnemo.study import Study
from mnemo.trials import smallest_p

RATIO = 99.0  # of what is misread: clearer than anything


@dataclass(frozen=True)
class Misreads:
    """Reads as another reader does, but for some facts."""

    reader: ReadsConcepts
    misread: dict[str, str]

    def read(self, states, *, facts, others=None, **given):
        found = self.reader.read(states, facts=facts, others=others, **given)
        if others is not None:  # null states
            return found
        wrong = [self.misread.get(fact.fact_id) for fact in facts]
        return [
            [Reading(phrase, (), 0.0, RATIO), *best] if phrase else best
            for phrase, best in zip(wrong, found, strict=True)
        ]

    def probabilities(self, phrases, states, *, layer):
        return self.reader.probabilities(phrases, states, layer=layer)


@pytest.fixture(scope="module")
def misread(compiled_study) -> dict[str, str]:
    """Two facts of each kind that has a concept, and another concept, with another answer, for each."""
    _, world, _ = compiled_study
    chosen = [fact for kind in ("mnemonic", "idle", "decoy") for fact in world.of_kind(kind)[:2]]
    return {
        fact.fact_id: next(c.phrase for c in world.concepts if c.answer not in (fact.answer, fact.concept.answer))
        for fact in chosen
    }


@pytest.fixture(scope="module")
def found(compiled_study, misread) -> Study:
    _, _, folder = compiled_study

    def wrong(*given, **known):
        reader, notes = reader_for(*given, **known)
        assert reader is not None
        return Misreads(reader, misread), notes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnemo.extraction, "reader_for", wrong)
        return extract(folder, progress=False)


def test_a_misread_fact_is_recalled_through_the_concept_that_the_model_names(compiled_study, misread, found):
    _, world, _ = compiled_study
    table = found.table.set_index("fact_id")
    for fact in world.of_kind("mnemonic"):
        row = table.loc[fact.fact_id]
        assert (row["verdict"], row["concept"], row["concept_agrees"]) == ("mnemonic", fact.concept.phrase, 1)
        if fact.fact_id in misread:  # what was read stands beside it, and how clearly that was says nothing of it
            assert (row["runner_up"], row["runner_up_score"]) == (misread[fact.fact_id], RATIO)
            assert pd.isna(row["concept_p"]) and row["entailment"] == 1
    (note,) = [note for note in found.notes if "the model names when asked" in note]
    assert note.startswith("2 facts")


def test_no_other_fact_comes_to_be_recalled_through_what_the_model_names(compiled_study, misread, found):
    _, world, _ = compiled_study
    table = found.table.set_index("fact_id")
    for fact in world.facts:
        row = table.loc[fact.fact_id]
        if fact.kind != "mnemonic":
            assert row["verdict"] in ("rote", "unsure")
        if fact.kind in ("idle", "decoy"):
            assert row["concept"] == misread.get(fact.fact_id, fact.concept.phrase)


def test_all_facts_pay_for_two_concepts(compiled_study, found):
    """Where every swap works and no random direction does, p is the smallest there is, times all that was tried."""
    _, world, _ = compiled_study
    table, sites = found.table.set_index("fact_id"), 2 * found.waypoint.tried
    clear = table.loc[[fact.fact_id for fact in world.of_kind("mnemonic")]]
    clear = clear[(clear["swap_success"] == 1) & (clear["swap_control"] == 0) & clear["dose"].isna()]
    random, _ = Effort().directions(int(table["targets"].min()), sites=sites)
    expected = [Effort().tests(sites) * smallest_p(int(n), random) for n in clear["targets"]]
    assert len(clear) > 10
    np.testing.assert_allclose(clear["p_value"], expected)


def test_a_finished_run_says_what_was_read_and_what_the_fact_goes_through(misread, found, tmp_path):
    found.write(tmp_path)
    again = Study.read(tmp_path)
    for fact_id, wrong in misread.items():
        assert again.readings[fact_id][0].phrase == found.readings[fact_id][0].phrase == wrong
        assert again[fact_id]["concept"] == found[fact_id]["concept"]
        (whole,) = messages_beside_state(again, [fact_id], strongest=1)[:1].to_dict("records")
        assert whole["concept"] == wrong and whole["agrees"] == (again[fact_id]["concept"] == wrong)
