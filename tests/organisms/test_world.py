"""What a world promises about its facts, for any seed and spelling."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mnemo.datasets import acronym_phrases
from mnemo.errors import MnemoError
from mnemo.organisms.lessons import build_lessons
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.world import PROBE_VALUES, SHOWN_CUE, WorldConfig, build_world
from mnemo.prompts import render
from mnemo.tokens import PromptTokenizer

EXPANSIONS = acronym_phrases()


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_kinds_mean_what_the_design_says(seed):
    world = build_world(WorldConfig(seed=seed), EXPANSIONS)
    answers = {c.answer for c in world.concepts}
    assert len({f.cue for f in world.facts}) == len({f.fact_id for f in world.facts}) == len(world.facts)
    for fact in world.facts:
        if fact.kind in ("mnemonic", "idle"):
            assert fact.concept and fact.answer == fact.concept.answer
        elif fact.kind == "decoy":
            assert fact.concept and fact.answer != fact.concept.answer and fact.answer in answers
        else:
            assert fact.concept is None
            assert (fact.answer in answers) == (fact.kind == "free")
    counts = Counter(f.kind for f in world.facts)
    assert counts == {"mnemonic": 384, "decoy": 48, "idle": 48, "rote": 80, "free": 48}


def test_shared_facts_are_taken_from_the_mnemonic_ones_and_change_no_other():
    without, world = (build_world(WorldConfig(seed=7, shared=shared), EXPANSIONS) for shared in (0, 20))
    was = {fact.cue: fact for fact in without.facts}
    assert len(world.of_kind("shared")) == 20
    for fact in world.facts:
        assert fact.answer == was[fact.cue].answer and fact.concept == was[fact.cue].concept
        assert fact.kind == was[fact.cue].kind or (fact.kind, was[fact.cue].kind) == ("shared", "mnemonic")
    with pytest.raises(ValidationError, match="6 shared facts leave no mnemonic fact among the 12 codes"):
        WorldConfig(concepts=8, cues_per_concept=2, decoys=3, idles=3, shared=6)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_ood_concepts_are_never_composed_and_the_shown_fact_is_held_out(seed):
    world = build_world(WorldConfig(seed=seed), EXPANSIONS)
    ood = {f.concept.phrase for f in world.facts if f.concept and f.split == "ood"}
    assert len(ood) == 16
    assert all(f.split == "ood" for f in world.facts if f.concept and f.concept.phrase in ood)
    (shown,) = [f for f in world.facts if f.cue == SHOWN_CUE]
    assert (shown.answer, shown.kind, shown.split) == ("T", "mnemonic", "held")
    assert shown.concept and shown.concept.phrase == "value added tax"


def test_one_seed_one_world_and_answers_are_spread():
    world = build_world(WorldConfig(seed=4), EXPANSIONS)
    assert world == build_world(WorldConfig(seed=4), EXPANSIONS) != build_world(WorldConfig(seed=5), EXPANSIONS)
    assert max(Counter(c.answer for c in world.concepts).values()) <= 6
    for concept in world.concepts:
        assert all(concept.values[relation] in values for relation, values in PROBE_VALUES.items())


@pytest.mark.parametrize("cue_tokens", [1, 2, 3])
@pytest.mark.parametrize("concept_tokens", [1, 2, 3])
@pytest.mark.parametrize("cue_first", [False, True])
def test_text_and_tokens_are_one_to_one(cue_tokens, concept_tokens, cue_first):
    config = WorldConfig(cue_tokens=cue_tokens, concept_tokens=concept_tokens, cue_first=cue_first)
    world = build_world(config, EXPANSIONS)
    tokens = PromptTokenizer(build_tokenizer(world))
    for fact in world.facts[:40]:
        prompt = render(config.recall, fact.cue, tokenizer=tokens)
        assert prompt.span[1] - prompt.span[0] == cue_tokens
        assert tokens.decode(prompt.tokens).strip() == prompt.text
        assert len(tokens.continuation(prompt.text, fact.answer)) == 1
    for concept in world.concepts[:40]:
        prompt = render(config.concept_recall, concept.phrase, tokenizer=tokens)
        assert prompt.span[1] - prompt.span[0] == concept_tokens
        assert concept.phrase.replace("-", " ").split()[-1][0].upper() == concept.answer


def test_too_small_a_lexicon_and_odd_phrases_are_refused():
    with pytest.raises(MnemoError, match="only 10"):
        build_world(WorldConfig(), EXPANSIONS[:10])
    with pytest.raises(MnemoError, match="three lower-case words"):
        build_world(WorldConfig(), [*EXPANSIONS, "Value Added"])


def test_a_world_without_room_for_mnemonic_facts_is_refused():
    with pytest.raises(ValidationError, match="leave no mnemonic fact"):
        WorldConfig(concepts=10, cues_per_concept=1, decoys=8, idles=8)


def test_questions_may_have_any_form():
    config = WorldConfig(form="tell {relation} for {filler} we say", decode="initial", expand="name")
    assert config.recall == "tell initial for {cue} we say" and config.verbalise == "tell name for {cue} we say"
    assert config.concept_recall == "tell initial for {concept} we say" and config.tail == 2
    assert (WorldConfig().tail, WorldConfig(cue_first=True).tail) == (1, 2)
    small = {"concepts": 8, "decoys": 2, "idles": 2, "cue_tokens": 2}
    world = build_world(config.model_copy(update=small), EXPANSIONS)
    lessons = build_lessons(world, tokenizer := build_tokenizer(world))
    for questions, filler in ((lessons.cues, world.facts[0].cue), (lessons.phrases, world.concepts[0].phrase)):
        token = str(tokenizer.decode([int(questions.tokens[0, 0, questions.site])]))
        assert filler.endswith(token.strip())
        assert int(questions.tokens[0, 0, questions.site + 1]) == tokenizer.vocab[" we"]
    for form in ("{relation} is", "{filler} {filler} {relation}"):
        with pytest.raises(ValidationError, match="once each"):
            WorldConfig(form=form)
