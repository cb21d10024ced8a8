"""A concept that is read wrongly: the one that the model names is tried in its place."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pytest

import mnemo.extraction
from mnemo.concept_readers import reader_for
from mnemo.concepts import Reading, ReadsConcepts
from mnemo.extraction import extract

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
def table(compiled_study, misread) -> tuple[pd.DataFrame, tuple[str, ...]]:
    _, _, folder = compiled_study

    def wrong(*given, **known):
        reader, notes = reader_for(*given, **known)
        assert reader is not None
        return Misreads(reader, misread), notes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnemo.extraction, "reader_for", wrong)
        found = extract(folder, progress=False)
    return found.table.set_index("fact_id"), found.notes


def test_a_misread_fact_is_recalled_through_the_concept_that_the_model_names(compiled_study, misread, table):
    _, world, _ = compiled_study
    found, notes = table
    for fact in world.of_kind("mnemonic"):
        row = found.loc[fact.fact_id]
        assert (row["verdict"], row["concept"], row["concept_agrees"]) == ("mnemonic", fact.concept.phrase, 1)
        if fact.fact_id in misread:  # what was read stands beside it, and how clearly that was says nothing of it
            assert (row["runner_up"], row["runner_up_score"]) == (misread[fact.fact_id], RATIO)
            assert pd.isna(row["concept_p"]) and row["entailment"] == 1
    (note,) = [note for note in notes if "the model names when asked" in note]
    assert note.startswith("2 facts")


def test_no_other_fact_comes_to_be_recalled_through_what_the_model_names(compiled_study, misread, table):
    _, world, _ = compiled_study
    found, _ = table
    for fact in world.facts:
        row = found.loc[fact.fact_id]
        if fact.kind != "mnemonic":
            assert row["verdict"] in ("rote", "unsure")
        if fact.kind in ("idle", "decoy"):
            assert row["concept"] == misread.get(fact.fact_id, fact.concept.phrase)


def test_a_fact_pays_for_both_concepts(compiled_study, misread, table):
    """The p-value of a misread fact is twice that of the same look at a fact that was read rightly."""
    _, world, _ = compiled_study
    found, _ = table
    facts = world.of_kind("mnemonic")
    other = min(found.loc[fact.fact_id, "p_value"] for fact in facts if fact.fact_id not in misread)
    for fact in facts:
        if fact.fact_id in misread:
            assert found.loc[fact.fact_id, "p_value"] == pytest.approx(2 * other)
