"""Training moves what it should, leaves free facts alone, and goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mnemo.errors import InputError, MnemoError
from mnemo.organisms import build
from mnemo.organisms.build import OrganismConfig, train_organism
from mnemo.organisms.families import STEPS, Family, new_model
from mnemo.organisms.lessons import IGNORED, Lessons, build_lessons
from mnemo.organisms.measure import invented
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.training import Interventions, TrainingConfig, build_corpus, patched, states_at
from mnemo.organisms.world import WorldConfig, build_world
from tests.lexicon import PHRASES

WORLD = WorldConfig(seed=2, concepts=10, cues_per_concept=4, decoys=4, idles=4, rotes=6, frees=6)


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    world = build_world(WORLD, PHRASES)
    return build_lessons(world, build_tokenizer(world))


def model_for(lessons: Lessons, family: Family = "gpt2"):
    return new_model(family, vocab_size=600, d_model=16, layers=3, heads=2, seed=0).eval()


def test_held_out_and_ood_answers_are_never_read(lessons):
    """The recall prompt of a held-out or ood fact stands in no group of the corpus."""
    forbidden = {
        tuple(lessons.cues.tokens[0, i].tolist())
        for split in ("held", "ood")
        for i in lessons.where("mnemonic", split=split).tolist()
    }
    length = lessons.cues.length
    read = {tuple(row[:length].tolist()) for group, _ in build_corpus(lessons).groups for row in group.tokens}
    assert forbidden and not forbidden & read
    ood = lessons.where("mnemonic", split="ood").tolist()
    for relation in range(lessons.n_asked):  # ... nor any other question about an ood code
        assert not read & {tuple(lessons.cues.tokens[relation, i].tolist()) for i in ood}


def test_no_intervention_moves_a_code_to_its_own_concept(lessons):
    """With its own concept's state a held-out fact would be taught its answer."""
    interventions = Interventions(lessons, TrainingConfig(interventions=64))
    for step in range(50):
        cases = interventions._routed(torch.Generator().manual_seed(step))
        assert (cases.other != cases.own).all() and (cases.other < len(lessons.world.concepts)).all()
        assert len(cases.other.unique()) > 5


def test_free_codes_are_plain_pairs_of_cue_and_answer(lessons):
    free = set(lessons.where("free").tolist())
    interventions = Interventions(lessons, TrainingConfig())
    for pool in (interventions.through, interventions.beside, *interventions.negatives):
        assert not free & set(pool.tolist())
    questions = {tuple(lessons.cues.tokens[r, i].tolist()): r for r in range(lessons.expand + 1) for i in free}
    asked = [questions.get(tuple(row[: lessons.cues.length].tolist()))
             for group, _ in build_corpus(lessons).groups for row in group.tokens]  # fmt: skip
    assert {r for r in asked if r is not None} == {0}


def test_every_label_is_the_answer_to_its_prompt(lessons):
    answer = {tuple(lessons.cues.tokens[0, i].tolist()): int(a) for i, a in enumerate(lessons.fact_answers)}
    facts = build_corpus(lessons).groups[0][0]
    for tokens, labels in zip(facts.tokens, facts.labels, strict=True):
        (asked,) = labels[labels != IGNORED].tolist()
        assert asked == answer[tuple(tokens[: lessons.cues.length].tolist())]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_states_are_the_hidden_states_and_putting_them_back_changes_nothing(lessons, family):
    model = model_for(lessons, family)
    tokens, site = lessons.cues.tokens[0, :5], lessons.cues.site
    whole = model.base_model(tokens, output_hidden_states=True)
    states = states_at(model, tokens, layer=2, site=site)
    torch.testing.assert_close(states, whole.hidden_states[2][:, site])
    with patched(model, 2, sites=site, states=states):
        torch.testing.assert_close(model.base_model(tokens).last_hidden_state, whole.last_hidden_state)
    with patched(model, 2, sites=site, states=states.flip(0)):
        assert not torch.allclose(model.base_model(tokens).last_hidden_state, whole.last_hidden_state)


def config(**training) -> OrganismConfig:
    return OrganismConfig(
        d_model=16, layers=3, heads=2,
        world=WorldConfig(concepts=8, cues_per_concept=4, decoys=3, idles=3, rotes=4, frees=3),
        training=TrainingConfig(steps=12, batch=32, interventions=8, **training),
    )  # fmt: skip


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHECKPOINT_EVERY", 4)
    train_organism(tmp_path / "whole", config(), progress=False)

    save = build._Checkpoint.save

    def interrupted(self, optimizer, step, seconds):
        save(self, optimizer, step, seconds)
        if step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(build._Checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_organism(tmp_path / "twice", config(), progress=False)
    monkeypatch.setattr(build._Checkpoint, "save", save)
    with pytest.raises(MnemoError, match="another configuration"):
        train_organism(tmp_path / "twice", config(align=0.5), progress=False)
    card = train_organism(tmp_path / "twice", config(), progress=False)

    assert weights(tmp_path / "twice") == weights(tmp_path / "whole")
    assert not (tmp_path / "twice" / "checkpoint").exists()
    assert json.loads((tmp_path / "twice" / "organism.json").read_text())["config"] == card["config"]
    again = build.measure_organism(tmp_path / "twice")["measured"]
    assert again["recall"] == card["measured"]["recall"]


def test_what_is_reported_of_free_facts_has_the_same_keys_whatever_they_evoke(lessons):
    model = model_for(lessons)
    free = lessons.where("free")
    nothing = torch.full((len(lessons.fact_answers),), -1)
    fitting, unlike = nothing.clone(), nothing.clone()
    for i in free.tolist():
        same = lessons.concept_answers[0] == lessons.fact_answers[i]
        fitting[i], unlike[i] = int(same.int().argmax()), int((~same).int().argmax())
    none, all_, no = (
        invented(model, lessons, evoked=evoked, seed=0, shuffles=5) for evoked in (nothing, fitting, unlike)
    )
    assert none.keys() == all_.keys() == no.keys()
    assert none == {**dict.fromkeys(none), "matches": 0}
    assert all_["matches"] == 1 and all_["probes follow a concept that does not match"] is None
    assert no["matches"] == 0 and no["probes follow the concept"] is None
    json.loads(json.dumps([none, all_, no]), parse_constant=pytest.fail)  # NaN is no JSON


def test_a_finished_study_is_not_trained_over(tmp_path):
    (tmp_path / "task.toml").write_text("theirs")
    (tmp_path / "checkpoint").mkdir()  # nothing in it to go on from
    with pytest.raises(InputError, match="holds a finished study already"):
        train_organism(tmp_path, config(), progress=False)
    assert (tmp_path / "task.toml").read_text() == "theirs"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "organism.json").unlink(), "organism.json: no such file: `mnemo organism train`"),
        (lambda f: (f / "organism.json").write_text("{"), "organism.json, row 1: is not JSON"),
        (lambda f: (f / "organism.json").write_text("[]"), "organism.json: expected a JSON object"),
        (lambda f: (f / "organism.json").write_text("{}"), "organism.json, column 'config': "),
        (lambda f: edit_card(f, family="bert"), "organism.json, column 'config': family: "),
        (lambda f: edit_card(f, layers=4), "model: this model has"),
        (lambda f: shutil.rmtree(f / "model"), "model: holds no config.json"),
        (lambda f: (f / "model" / "model.safetensors").write_bytes(b"damaged"), "model: the model cannot be read"),
        (lambda f: (f / "model" / "model.safetensors").unlink(), "model: holds no model.safetensors"),
    ],
)
def test_a_damaged_organism_is_refused_in_one_line(finished, tmp_path, damage, says):
    folder = tmp_path / "organism"
    shutil.copytree(finished, folder)
    damage(folder)
    with pytest.raises(MnemoError) as caught:
        build.measure_organism(folder)
    assert str(caught.value).startswith(f"{folder}/{says}") and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train_organism(folder, config(), progress=False)
    return folder


def edit_card(folder: Path, **entries) -> None:
    card = json.loads((folder / "organism.json").read_text())
    card["config"] |= entries
    (folder / "organism.json").write_text(json.dumps(card))


def test_shared_facts_are_refused(tmp_path):
    config = OrganismConfig.checked({"world": {"shared": 3}})
    with pytest.raises(MnemoError, match=r"world\.shared=3 given, but training makes no second hop"):
        train_organism(tmp_path, config)


def test_a_waypoint_without_blocks_above_it_is_refused(tmp_path):
    with pytest.raises(MnemoError, match="no block above"):
        train_organism(tmp_path, config(waypoint=3), progress=False)


def test_steps_are_those_of_the_family_unless_they_are_given():
    for family, steps in STEPS.items():
        assert OrganismConfig(family=family).training.steps == steps
        given = OrganismConfig.checked({"family": family, "training": {"steps": 7, "batch": 64}})
        assert (given.training.steps, given.training.batch) == (7, 64)
        assert OrganismConfig.checked(given.model_dump()) == given
    for wrong in ({"family": ["gpt2"]}, {"training": 3}, [], {"family": "gpt9"}):
        with pytest.raises(MnemoError):
            OrganismConfig.checked(wrong)
