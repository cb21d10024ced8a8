"""A base organism knows concepts and what codes stand for, and none of the code facts."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemo.errors import InputError
from mnemo.facts import Task
from mnemo.learning.base import CARD, BaseConfig, base_world, make_base
from mnemo.organisms.training import build_corpus


@settings(max_examples=8)
@given(seed=st.integers(0, 10**4), background=st.integers(1, 3), new=st.integers(0, 3), probed=st.floats(0.1, 0.6))
def test_every_answer_is_as_frequent_as_any_other_whether_a_concept_has_it_or_not(seed, background, new, probed):
    config = BaseConfig(seed=seed, concepts=30, background=background, new=new, probed=probed)
    world = base_world(config)
    with_concept = {concept.answer for concept in world.concepts}
    unevoking = [fact for fact in world.facts if fact.kind != "mnemonic"]
    for split, due in (("train", background), ("ood", new)):
        count = Counter(fact.answer for fact in unevoking if fact.split == split)
        assert set(count.values()) <= {due}
        assert (len(count) > len(with_concept) and with_concept < set(count)) or not due
    assert all((fact.kind == "free") == (fact.answer in with_concept) for fact in unevoking)
    evoking = Counter(fact.split for fact in world.facts if fact.kind == "mnemonic")
    assert evoking["held"] / evoking.total() == pytest.approx(1 / round(1 / probed), abs=0.01)


def test_code_facts_are_never_read_and_new_codes_not_at_all(base):
    decode, new = [], []
    for fact in base.world.facts:
        prompt = base.tokenizer(base.world.config.question("decode", fact.cue))["input_ids"]
        if fact.kind == "mnemonic":
            decode.append(tuple(prompt))
        elif fact.split == "ood":
            new.append(tuple(prompt[2:-1]))
    length = base.lessons.cues.length
    read = {tuple(row[:length].tolist()) for group, _ in build_corpus(base.lessons).groups for row in group.tokens}
    assert decode and new and not read & set(decode)
    assert not {prompt[2:-1] for prompt in read} & set(new)


def test_it_knows_what_codes_stand_for_and_what_concepts_say_but_not_what_codes_say(base):
    measured = base.card()["measured"]
    assert measured["codes expand to their concept"] > 0.95
    assert measured["concepts give their answer"] > 0.95
    assert measured["background recalled"] > 0.95
    assert measured["code facts known by chance"]["ood"] < 0.35


def test_the_same_base_is_not_trained_twice_and_another_study_not_overwritten(base, base_folder, tmp_path, monkeypatch):
    assert Task.read(base_folder).load_facts()
    before = (base_folder / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr("mnemo.learning.base.train_base", lambda *_, **__: pytest.fail("trained again"))
    assert make_base(base_folder, base.config) == base_folder
    assert (base_folder / "model" / "model.safetensors").read_bytes() == before
    assert json.loads((base_folder / CARD).read_text())["config"]["seed"] == base.config.seed
    with pytest.raises(InputError, match="another configuration"):
        make_base(base_folder, base.config.model_copy(update={"seed": 9}))
    (tmp_path / "task.toml").write_text("theirs")
    with pytest.raises(InputError, match="another study"):
        make_base(tmp_path, base.config)


def test_training_leaves_the_global_generator_alone(base):
    torch.manual_seed(5)
    due = torch.rand(1)
    torch.manual_seed(5)
    from mnemo.learning.base import train_base

    train_base(base.config.model_copy(update={"steps": 1}), progress=False)
    assert torch.equal(torch.rand(1), due)
