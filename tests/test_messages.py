"""What an edge carries: messages add up to the state, and the one that brings the concept says so."""

from __future__ import annotations

import pytest
import torch

import mnemo
from mnemo.errors import MnemoError
from mnemo.graph import writers
from mnemo.messages import WHOLE, _messages, messages_beside_state, read_messages
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.patching import read_stream
from tests.lexicon import PHRASES


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = WorldConfig(concepts=8, cues_per_concept=3, decoys=2, idles=2, rotes=4, frees=0, held_share=0, ood_share=0)
    world = build_world(config, PHRASES)
    folder = tmp_path_factory.mktemp("organism")
    model, tokenizer = compile_organism(world)
    write_folder(folder, world, model=model, tokenizer=tokenizer, name="compiled")
    return mnemo.extract(folder, quick=True, progress=False)


def test_messages_add_up_to_the_state_less_biases(study):
    site, model = study.waypoint.site, study.model
    prompts = [study.prompt(i) for i in study.table["fact_id"]]
    before = [writer for writer in writers(model) if writer.layer < site.layer]
    sent = _messages(model, prompts, site=site, some=range(len(before))).sum(1)
    states = read_stream(model, prompts, positions=[site.position])[:, site.layer, 0]
    torch.testing.assert_close(sent - sent.mean(0), states - states.mean(0), atol=1e-4, rtol=1e-3)


def test_the_message_that_brings_the_concept_says_it_the_loudest(study):
    """In the compiled organism the MLP before the waypoint writes the concept, from what heads say of the code."""
    assert study.waypoint.site.layer == WAYPOINT
    found = study.table[study.table["verdict"] == "mnemonic"]
    table = read_messages(study, list(found["fact_id"][:6]), progress=False)
    loudest = table.loc[table.groupby("fact_id")["ratio"].idxmax()]
    assert set(loudest["writer"]) == {f"MLP{WAYPOINT - 1}"} and loudest["agrees"].all()
    silent = table[table["norm"] < 1e-3]
    assert len(silent) and (silent["ratio"].abs() < 1e-2).all()  # nothing is sent, so nothing speaks for any phrase


def test_only_writers_before_the_waypoint_are_read_and_only_of_recalled_facts(study):
    fact_id = study.table["fact_id"].iloc[0]
    one = read_messages(study, [fact_id], only=["MLP0"], progress=False)
    assert list(one["writer"]) == ["MLP0"]
    with pytest.raises(MnemoError, match=r"no writer 'MLP9' before the waypoint; there are embed, L0H0"):
        read_messages(study, [fact_id], only=["MLP9"], progress=False)
    with pytest.raises(MnemoError, match="no fact 'nobody'"):
        read_messages(study, ["nobody"], progress=False)
    for none in (0, -1):
        with pytest.raises(MnemoError, match=f"strongest={none}: give the number of writers"):
            read_messages(study, [fact_id], strongest=none)


def test_the_strongest_writers_are_read_as_they_are_among_all(study):
    fact_ids = list(study.table.loc[study.table["verdict"] == "mnemonic", "fact_id"][:2])
    only = ["embed", "L0H0", "MLP0", f"MLP{WAYPOINT - 1}"]
    every = read_messages(study, fact_ids, only=only, progress=False)
    some = read_messages(study, fact_ids, only=only, strongest=2, progress=False)
    largest = every.sort_values("norm", ascending=False).groupby("fact_id").head(2)
    both = [table.sort_values(["fact_id", "writer"]).reset_index(drop=True) for table in (largest, some)]
    assert both[0]["writer"].equals(both[1]["writer"]) and both[0]["concept"].equals(both[1]["concept"])
    assert (both[0]["ratio"] - both[1]["ratio"]).abs().max() < 1e-4
    beside = messages_beside_state(study, [*fact_ids, *fact_ids], strongest=2)  # each is read once
    assert list(beside["fact_id"].unique()) == fact_ids
    for fact_id, rows in beside.groupby("fact_id"):
        row = study[fact_id]
        assert list(rows["writer"][:1]) == [WHOLE] and len(rows) == 3
        assert rows["concept"].iloc[0] == row["concept"] and rows["ratio"].iloc[0] == row["concept_score"]
        assert rows["norm"].iloc[0] == 1 and rows["norm"].iloc[1:].is_monotonic_decreasing
    assert messages_beside_state(study, []).empty
