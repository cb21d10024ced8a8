"""An edit of the concepts moves the facts that go through them, and leaves the model as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch

import mnemo
from mnemo.concept_vectors import ConceptTable, ask_concepts
from mnemo.edit_evidence import Edits
from mnemo.editing import EditConfig, _other_answers, edit_test
from mnemo.errors import MnemoError
from mnemo.model import Model
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.world import World, WorldConfig, build_world
from mnemo.prompts import Prompt, render
from mnemo.records import Parts
from tests.lexicon import PHRASES

FAST = EditConfig(rounds=1, steps=60, learning_rates=(1e-2,))  # the compiled weights are larger than trained ones


@dataclass(frozen=True)
class Case:
    world: World
    model: Model
    prompts: list[Prompt]
    answers: torch.Tensor
    concepts: torch.Tensor
    table: ConceptTable

    def edits(self, **changes) -> Edits:
        given = {
            "answers": self.answers, "table": self.table, "layer": WAYPOINT, "seed": 0, "config": FAST,
            "progress": False,
        }  # fmt: skip
        return edit_test(self.model, self.prompts, **{**given, **changes})

    def test(self, **changes) -> pd.DataFrame:
        return self.edits(**changes).table(self.concepts, self.table.phrases)


@pytest.fixture(scope="module")
def case() -> Case:
    sizes = WorldConfig(seed=1, concepts=12, cues_per_concept=3, decoys=4, idles=4, shared=4, rotes=3, frees=0)
    world = build_world(sizes, PHRASES)
    hf, tokenizer = compile_organism(world)
    model = mnemo.load(hf, tokenizer=tokenizer)
    table = ask_concepts(model, sizes.concept_recall, phrases=[c.phrase for c in world.concepts])
    row = {phrase: i for i, phrase in enumerate(table.phrases)}
    return Case(
        world,
        model,
        [render(sizes.recall, fact.cue, tokenizer=model.tokens) for fact in world.facts],
        torch.tensor([tokenizer(f" {f.answer}", add_special_tokens=False)["input_ids"][0] for f in world.facts]),
        torch.tensor([row[f.concept.phrase] if f.concept else -1 for f in world.facts]),
        table,
    )


def test_only_facts_that_go_through_their_concept_follow_its_edit(case):
    before = {name: p.clone() for name, p in case.model.bridge.named_parameters()}
    edits, own = case.edits(), case.concepts
    found = edits.table(own, case.table.phrases)
    beside = (own < 0) | ~edits.edited[:, own]  # nothing changes where a fact's own concept is left alone
    assert (edits.said == edits.answers)[beside].all()
    kinds = pd.Series([fact.kind for fact in case.world.facts])
    follows = found["edit_follows"].groupby(kinds).agg(["mean", "count"])
    assert follows.loc["mnemonic", "mean"] == 1 and follows.loc["mnemonic", "count"] >= 8
    assert follows.loc[["idle", "decoy", "shared"], "mean"].tolist() == [0, 0, 0]
    assert follows.loc["shared", "count"] >= 3  # a second hop of their own, at the same concepts
    assert found["edit_follows"][kinds == "rote"].isna().all()
    assert (found["edit_control"][kinds != "mnemonic"] == 0).all()  # (one of their concepts takes its edit by half)
    for name, p in case.model.bridge.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and not p.requires_grad, name


def test_the_same_edits_say_whether_facts_follow_other_concepts(case):
    """Facts that follow an edit of their own concept are no sign that an edit of another one harms the rest."""
    edits, own = case.edits(), case.concepts
    others = torch.where(own >= 0, (own + 1) % len(case.table), -1)
    follows = edits.follows(others)
    planted = torch.tensor([fact.kind == "mnemonic" for fact in case.world.facts])
    new = edits.new[0]  # one round, in which both edits draw from the same answers
    told = planted & edits.taken.any(0)[others] & (new[others] != edits.answers)
    apart = told & ~(edits.taken[:, own] & (new[others] == new[own])).any(0)
    assert apart.sum() >= 8 and (follows[apart] == 0).all()
    assert follows[~told & planted].isnan().all() and follows[own < 0].isnan().all()


def test_rounds_find_the_concept_without_being_told_it(case):
    """No fact's concept is given: which one takes it along is seen from what was drawn alone."""
    nobody = torch.full_like(case.concepts, -1)
    found = case.edits(config=replace(FAST, rounds=6)).table(nobody, case.table.phrases)
    facts = case.world.facts
    planted = np.array([fact.kind == "mnemonic" for fact in facts])
    assert (found["edit_share"][planted] >= 0.5).all() and (found["edit_p"][planted] < 0.01).all()
    assert [found["edit_concept"][i] for i in np.flatnonzero(planted)] == [
        fact.concept.phrase for fact in facts if fact.kind == "mnemonic"
    ]
    rest = [i for i in np.flatnonzero(~planted) if found["edit_candidates"][i]]
    assert len(rest) >= 8 and (found["edit_share"][rest] == 0).all() and (found["edit_p"][rest] == 1).all()
    nowhere = found["edit_candidates"] == 0  # rote answers, which no concept has
    assert nowhere.sum() >= 3 and found.loc[nowhere, ["edit_share", "edit_rival", "edit_p", "edit_q"]].isna().all(
        axis=None
    )
    assert found["edit_follows"].isna().all()


def test_rounds_that_were_kept_are_not_run_again(case, tmp_path, monkeypatch):
    config = replace(FAST, rounds=2)
    whole = case.test(config=config)
    real, calls = mnemo.editing._edit_halves, []

    def second_time_interrupted(*args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(mnemo.editing, "_edit_halves", second_time_interrupted)
    with pytest.raises(KeyboardInterrupt):
        case.test(config=config, parts=Parts.begin(tmp_path, "inputs", resume=False))
    pd.testing.assert_frame_equal(case.test(config=config, parts=Parts.begin(tmp_path, "inputs", resume=True)), whole)
    assert len(calls) == 3


def test_a_rate_at_which_the_edit_is_not_learned_is_left_for_the_next(case):
    pd.testing.assert_frame_equal(case.test(config=replace(FAST, learning_rates=(1e-9, 1e-2))), case.test())


def test_a_rate_that_teaches_nothing_in_one_round_is_not_tried_in_the_next(case, monkeypatch):
    tried = []
    teach = mnemo.editing._teach
    monkeypatch.setattr(
        mnemo.editing, "_teach", lambda *args, rate, **known: (tried.append(rate), teach(*args, rate=rate, **known))
    )
    found = case.test(config=replace(FAST, rounds=2, learning_rates=(1e-9, 1e-2)))
    assert tried == [1e-9, 1e-2] * 2 + [1e-2] * 2
    pd.testing.assert_frame_equal(found, case.test(config=replace(FAST, rounds=2)))


def test_facts_of_a_concept_that_did_not_take_its_edit_are_not_tested(case):
    assert case.test(config=EditConfig(steps=1, learning_rates=(1e-9,)))["edit_follows"].isna().all()


def test_an_edit_that_moves_everything_says_nothing_of_anyone(case):
    found = case.test(config=replace(FAST, learning_rates=(1.0,), learned=0.0))
    assert found["edit_control"].mean() > 0.1
    assert found["edit_follows"].isna().all()


def test_an_interrupted_edit_leaves_the_weights_as_they_were(case, monkeypatch):
    before = {name: p.clone() for name, p in case.model.bridge.named_parameters()}

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        case.test()
    for name, p in case.model.bridge.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None and not p.requires_grad, name


def test_new_answers_are_others_that_occur():
    answers = np.array([7, 7, 3, 9, 9, 9])
    for seed in range(20):
        new = _other_answers(answers, np.random.default_rng(seed))
        assert (new != answers).all() and set(new) <= set(answers)


def test_what_cannot_be_edited_is_refused(case):
    with pytest.raises(MnemoError, match="no MLP lies above"):
        case.test(layer=case.model.n_layers)
    one = ask_concepts(case.model, case.world.config.concept_recall, phrases=case.table.phrases[:1])
    with pytest.raises(MnemoError, match="1 concepts with 1 different answers"):
        case.test(table=one)
