"""Which reader a task gets, down to the last resort, and every reader beside the others."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

import mnemo
from mnemo.concept_readers import LISTED, _readers, compare_readers, reader_for
from mnemo.concepts import Bank, PromptReader
from mnemo.errors import MnemoError
from mnemo.lenses import Lens
from mnemo.memory import memory_budget


def test_the_first_reader_that_the_texts_of_a_task_allow(compiled_study):
    study, _, _ = compiled_study
    facts = list(study.recalled_facts().values())[:4]
    plain = {"verbalise": None}
    tasks = {
        PromptReader: {},
        Bank: plain,
        Lens: plain | {"concepts": None},  # its tokenizer cannot spell the prompt that repeats words
    }
    notes = [""]
    for kind, change in tasks.items():
        reader, notes = reader_for(study.model, study.task.model_copy(update=change), facts=facts)
        assert type(reader) is kind, notes
    assert "read as single tokens" in notes[-1] and "unsure, not rote" in notes[-1]


def test_the_logit_lens_reads_where_the_other_would_take_too_long_or_too_much(compiled_study, monkeypatch):
    study, _, _ = compiled_study
    facts = list(study.recalled_facts().values())[:4]
    task = study.task.model_copy(update={"verbalise": None, "concepts": None})
    with memory_budget(1e-6):
        reader, notes = reader_for(study.model, task, facts=facts)
    assert isinstance(reader, Lens) and reader.jacobian is None
    assert "with the logit lens (" in notes[-1] and "give a larger --memory-gb" in notes[-1]
    monkeypatch.setattr("mnemo.concept_readers.WIDE", 1)
    reader, notes = reader_for(study.model, task, facts=facts)
    assert isinstance(reader, Lens) and reader.jacobian is None
    assert "wider than 1" in notes[-1] and "unsure, not rote" in notes[-1]


def test_with_nothing_but_a_lens_words_are_read_and_nothing_is_claimed_of_concepts_that_it_cannot_read(compiled_study):
    """The concepts of this organism have three tokens, so what a lens reads moves nothing: no fact is called rote."""
    study, _, _ = compiled_study
    task = study.task.model_copy(update={"verbalise": None, "concepts": None})
    some = task.load_facts().subset(list(study.table["fact_id"][:12]))
    found = mnemo.extract(task, model=study.model, facts=some, quick=True, progress=False)
    assert any("read as single tokens, with the Jacobian lens" in note for note in found.notes)
    read = found.table["concept"].dropna()
    assert len(read) and not read.str.contains(" ").any()
    assert found.waypoint is not None and set(found.table["verdict"]) == {"unsure"}


def test_every_reader_reads_the_same_state_and_the_study_s_own_as_the_study_did(compiled_study):
    study, world, _ = compiled_study
    fact = world.of_kind("mnemonic")[0]
    row = study[fact.fact_id]
    table = compare_readers(study, fact.fact_id)
    best = table[table["rank"] == 1].set_index("reader")
    assert list(best.index) == ["verbalise", "lexicon", "repeated words", "logit lens", "Jacobian lens"]
    assert best.loc["verbalise", "phrase"] == best.loc["lexicon", "phrase"] == row["concept"] == fact.concept.phrase
    assert best.loc["verbalise", "ratio"] == pytest.approx(row["concept_score"], abs=1e-4)
    assert best.loc["verbalise", "p_value"] == row["concept_p"]
    assert pd.isna(best.loc["repeated words", "phrase"]) and "no token for" in best.loc["repeated words", "note"]
    for _, rows in table[table["phrase"].notna()].groupby("reader"):
        assert list(rows["rank"]) == list(range(1, len(rows) + 1)) and len(rows) <= LISTED
        assert rows["ratio"].is_monotonic_decreasing
        assert 0.01 <= rows["p_value"].iloc[0] <= 1 and rows["p_value"].iloc[1:].isna().all()


def test_what_cannot_be_read_says_why(compiled_study, monkeypatch):
    study, _, _ = compiled_study
    with pytest.raises(MnemoError, match="no fact 'nobody'"):
        compare_readers(study, "nobody")
    with pytest.raises(MnemoError, match="no waypoint"):
        compare_readers(replace(study, waypoint=None), "nobody")
    monkeypatch.setattr("mnemo.concept_readers.WIDE", 1)
    readers = _readers(study.model, study.task, list(study.recalled_facts().values())[:2], layer=1)
    with pytest.raises(MnemoError, match="wider than 1"):
        readers["Jacobian lens"]()
