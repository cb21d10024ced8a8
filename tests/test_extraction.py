"""The whole road from a study folder to verdicts, on an organism whose routes were built by hand."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mnemo.extraction
import mnemo.intervening
from mnemo import plot
from mnemo.behaviour import entailment
from mnemo.concept_vectors import ask_concepts
from mnemo.editing import EditConfig
from mnemo.errors import InputError, MnemoError
from mnemo.extraction import extract
from mnemo.facts import Fact, FactSet, Task
from mnemo.forwards import counted_forwards
from mnemo.gate import gate
from mnemo.invented import count_invented
from mnemo.model import load
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import World, WorldConfig, build_world
from mnemo.patching import Site
from mnemo.report import print_summary
from mnemo.scoring import benchmark
from mnemo.study import COLUMNS, Study
from mnemo.tables import read_csv
from mnemo.tracing import trace
from mnemo.verdict import led_by_edits
from tests.lexicon import PHRASES
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def quick(compiled_study) -> Study:
    return compiled_study[0]


@pytest.fixture(scope="module")
def world(compiled_study) -> World:
    return compiled_study[1]


@pytest.fixture(scope="module")
def folder(compiled_study) -> Path:
    return compiled_study[2]


@pytest.fixture(scope="module")
def study(folder) -> Study:
    return extract(folder, progress=False)


@pytest.fixture(scope="module")
def blind(folder, tmp_path_factory) -> Study:
    """What `quick` holds, made once more and where the truth cannot be opened."""
    blind = tmp_path_factory.mktemp("blind")
    for file in folder.iterdir():
        if file.name != "truth.csv":
            (blind / file.name).symlink_to(file)
    return extract(blind, seed=0, quick=True, progress=False)


def test_every_verdict_and_every_concept_is_the_one_that_was_built(study, world):
    for fact in world.facts:
        row = study[fact.fact_id]
        assert row["recalled"]
        assert row["verdict"] == ("mnemonic" if fact.kind == "mnemonic" else "rote"), (fact, dict(row))
        if fact.concept:
            assert row["concept"] == fact.concept.phrase == row["evoked"]
        else:
            assert pd.isna(row["evoked"])  # asked what a rote code stands for, this organism says nothing


def test_the_waypoint_is_where_it_was_built(study, world):
    cue_last = -2 if not world.config.cue_first else -3
    assert study.waypoint is not None
    assert study.waypoint.site == Site(WAYPOINT, cue_last)
    assert study.waypoint.candidates["chosen"].sum() == 1
    row = study.table.iloc[0]
    assert row["position"] == len(study.prompt(row["fact_id"])) + cue_last


def test_effects_stand_apart_from_their_controls(study, world):
    kind = {fact.fact_id: fact.kind for fact in world.facts}
    table = study.table.assign(kind=study.table["fact_id"].map(kind)).groupby("kind")
    assert table["swap_success"].mean()["mnemonic"] > 0.95
    assert table["swap_control"].max()["mnemonic"] < 0.2
    assert table["swap_success"].max()[["idle", "decoy", "rote"]].max() < 0.2
    assert table["mediated_fraction"].mean()["mnemonic"] == pytest.approx(1, abs=0.02)
    assert table["mediated_fraction"].mean()[["idle", "decoy"]].abs().max() < 0.02
    assert table["sufficiency"].mean()["idle"] > 0.9  # what fools sufficiency alone
    assert table["agreement"].mean()["idle"] > 0.9  # ... and behaviour
    assert (table["concept_agrees"].mean()[["mnemonic", "idle", "decoy"]] == [1, 1, 0]).all()


def test_work_is_counted_by_prompts_and_quick_is_less(study, quick):
    model = study.model
    with counted_forwards(model) as forwards:
        model.forward([[1, 2], [1, 2, 3], [4]])
        model.forward([[1, 2]])
    assert forwards.prompts == 4
    assert 10 < quick.record["forwards_per_fact"] < study.record["forwards_per_fact"]


def test_the_truth_is_never_opened(folder, quick, blind):
    assert (folder / "truth.csv").exists()
    pd.testing.assert_frame_equal(blind.table.drop(columns="seconds"), quick.table.drop(columns="seconds"))


def test_files_hold_what_the_study_says(study, tmp_path):
    study.write(tmp_path)
    csv = read_csv(tmp_path / "verdicts.csv")
    parquet = pd.read_parquet(tmp_path / "verdicts.parquet")
    assert list(csv.columns[: len(COLUMNS)]) == list(COLUMNS) == list(parquet.columns[: len(COLUMNS)])
    assert list(csv["fact_id"]) == list(study.table["fact_id"]) == list(parquet["fact_id"])
    assert list(csv["top_path"]) == list(study.table["top_path"])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == study.model.fingerprint and record["seed"] == 0
    written = ["figures", "report.html", "report.md", "run.json", "sites.csv", "verdicts.csv", "verdicts.parquet"]
    assert sorted(f.name for f in tmp_path.iterdir()) == written


def test_the_top_path_is_the_first_of_the_fact_s_trace(study, world):
    assert study.table["top_path"].notna().all() and study.table["top_path_share"].between(0.001, 1.01).all()
    for kind in ("mnemonic", "rote"):
        row = study[next(f.fact_id for f in world.facts if f.kind == kind)]
        first, second = trace(study.model, study.contrasts[row["fact_id"]], top=2).paths
        assert row["top_path"] in (first.text, second.text if second.value > 0.99 * first.value else None)
        assert row["top_path_share"] == pytest.approx(first.share, rel=0.02)


def smaller(world: World) -> WorldConfig:
    return world.config.model_copy(update={"concepts": 8, "idles": 4, "decoys": 4, "rotes": 4})


def test_where_another_route_carries_the_answer_idle_facts_are_not_pushed_over(world, tmp_path):
    """Twice a concept would move every idle fact of such an organism; its share of the effect is right all the same."""
    world = build_world(smaller(world), PHRASES)
    model, tokenizer = compile_organism(world, mediated=0.25)
    write_folder(tmp_path, world, model=model, tokenizer=tokenizer, name="redundant")
    table = extract(tmp_path, progress=False).table
    kinds = table["fact_id"].map({fact.fact_id: fact.kind for fact in world.facts})
    assert not table.loc[kinds != "mnemonic", "verdict"].isin(["mnemonic", "shared-intermediate"]).any()
    assert table.loc[kinds == "mnemonic", "mediated_fraction"].mean() == pytest.approx(0.25, abs=0.1)


def deepened(model: Any, *, at: int, blocks: int) -> Any:
    """Put blocks that write nothing before a block of a GPT-2."""
    idle = copy.deepcopy(model.transformer.h[0])
    for part in (idle.attn.c_proj, idle.mlp.c_proj):
        part.weight.data.zero_()
        part.bias.data.zero_()
    found = [*model.transformer.h[:at], *(copy.deepcopy(idle) for _ in range(blocks)), *model.transformer.h[at:]]
    for layer, block in enumerate(found):
        block.attn.layer_idx = layer
    model.transformer.h = torch.nn.ModuleList(found)
    model.config.n_layer = len(found)
    return model


def test_in_a_deep_model_the_one_layer_at_which_the_concept_stands_is_found(world, tmp_path):
    """The effect of the cue passes whole through every layer before it, more of them than there are candidates."""
    world = build_world(smaller(world), PHRASES)
    model, tokenizer = compile_organism(world)
    write_folder(tmp_path, world, model=deepened(model, at=1, blocks=7), tokenizer=tokenizer, name="deep")
    found = extract(tmp_path, quick=True, progress=False)
    assert found.waypoint is not None and found.waypoint.site == Site(WAYPOINT + 7, -2)
    assert found.waypoint.tried < 10  # of eleven layers at two positions
    assert [found[fact.fact_id]["verdict"] == "mnemonic" for fact in world.facts] == [
        fact.kind == "mnemonic" for fact in world.facts
    ]


def test_few_concepts_get_more_random_directions_and_rare_mnemonics_show_that_swaps_work(folder, study, world):
    """Three concepts, and of each one mnemonic fact among idle ones."""
    kept: list[str] = []
    phrases = sorted({fact.concept.phrase for fact in world.of_kind("idle") if fact.concept})[:4]
    for phrase in phrases:
        mine = [fact for fact in world.facts if fact.concept and fact.concept.phrase == phrase]
        kept += [fact.fact_id for fact in mine if fact.kind == "idle"]
        kept += [fact.fact_id for fact in mine if fact.kind == "mnemonic"][:2]
    kept += [fact.fact_id for fact in world.of_kind("rote")]
    some = study.task.load_facts().subset(kept)
    found = extract(folder, model=study.model, facts=some, progress=False)
    kinds = {fact.fact_id: fact.kind for fact in world.facts}
    for fact_id, verdict in found.table.set_index("fact_id")["verdict"].items():
        assert verdict == ("mnemonic" if kinds[str(fact_id)] == "mnemonic" else "rote"), fact_id


def test_an_answer_of_several_tokens_is_recalled_only_if_all_of_it_is(study, world):
    planted = world.of_kind("mnemonic")[0]
    assert planted.concept is not None
    words = planted.concept.phrase.split()
    answers = (planted.concept.phrase, " ".join([words[0], *words[:0:-1]]), words[1])
    facts = tuple(Fact(fact_id=str(i), cue=planted.cue, answer=answer) for i, answer in enumerate(answers))
    asked = study.task.model_copy(update={"recall": study.task.verbalise})
    said = gate(study.model, asked, facts=FactSet(facts=facts))
    assert said.whole.tolist() == [False, False, True] and said.recalled.tolist() == [True, False, False]
    assert (said.predicted[0] == said.answers[:2]).all()  # the second one begins as the model does


def test_a_probe_that_cannot_be_put_to_a_phrase_costs_that_answer_alone(study, world):
    """At the start of a prompt this tokenizer spells cues and no phrase."""
    facts = list(study.task.load_facts())[:4]
    table = ask_concepts(study.model, study.task.concept_recall, phrases=[concept.phrase for concept in world.concepts])
    both = study.task.model_copy(update={"probes": (study.task.probes[0], "{} is")})
    first = study.task.model_copy(update={"probes": study.task.probes[:1]})
    concepts = torch.tensor([0, 1, 2, -1])
    mixed, alone = (
        entailment(study.model, task, facts=facts, concepts=concepts, table=table) for task in (both, first)
    )
    pd.testing.assert_frame_equal(mixed, alone)


def test_where_paths_are_few_the_clearest_facts_have_them_and_a_fault_costs_one_fact(folder, monkeypatch):
    monkeypatch.setattr(mnemo.extraction, "QUICK", mnemo.extraction.Effort(targets=4, sites=4, sample=64, paths=5))
    real, calls = mnemo.extraction.top_path, []

    def second_fails(model, contrast):
        calls.append(contrast.fact.fact_id)
        if len(calls) == 2:
            raise MnemoError("nothing flows")
        return real(model, contrast)

    monkeypatch.setattr(mnemo.extraction, "top_path", second_fails)
    found = extract(folder, quick=True, progress=False)
    table = found.table.set_index("fact_id")
    assert len(calls) == 5 and table["top_path"].notna().sum() == 4 and pd.isna(table.loc[calls[1], "top_path"])
    assert set(table.loc[calls, "verdict"]) == {"mnemonic"}
    assert any("traced for 5 facts" in note for note in found.notes)
    assert any("1 facts have no top_path" in note and "nothing flows" in note for note in found.notes)


def test_an_interrupted_run_goes_on_and_ends_as_an_undisturbed_one(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mnemo.intervening, "FACTS_PER_CHUNK", 16)
    whole = extract(folder, quick=True, progress=False)
    real, calls = mnemo.intervening.look_at, []

    def third_time_interrupted(*args, **kwargs):
        calls.append(args[0].facts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(mnemo.intervening, "look_at", third_time_interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(folder, out=tmp_path, quick=True, progress=False)
    assert not (tmp_path / "verdicts.csv").exists()
    resumed = extract(folder, out=tmp_path, resume=True, quick=True, progress=False)
    n_chunks = -(-len(whole.table) // 16)
    assert len(calls) == 3 + n_chunks - 2  # the two finished chunks were not made again
    pd.testing.assert_frame_equal(resumed.table.drop(columns="seconds"), whole.table.drop(columns="seconds"))
    assert not (tmp_path / ".mnemo-parts").exists()


def test_an_edit_is_followed_by_the_facts_that_go_through_the_concept(shared_answers, monkeypatch):
    _, world, folder = shared_answers
    large_steps(monkeypatch)
    found = extract(without_probes(folder), quick=True, edit=True, progress=False).table.set_index("fact_id")
    kinds = pd.Series({fact.fact_id: fact.kind for fact in world.facts})[found.index]
    follows = found["edit_follows"].groupby(kinds).mean()
    assert follows["mnemonic"] == 1 and follows["idle"] == follows["decoy"] == 0
    assert (found["edit_control"][kinds != "mnemonic"] == 0).all()
    assert set(found.loc[kinds == "mnemonic", "verdict"]) == {"mnemonic"}
    planted = pd.Series({f.fact_id: f.concept.phrase for f in world.facts if f.kind == "mnemonic"})
    with_rivals = found.index[found["edit_rival"].notna()]
    led = found.index[led_by_edits(found)]
    possible = set(planted.index) & set(with_rivals)
    assert set(led) <= possible and len(led) > 0.5 * len(possible) > 8
    assert found["edit_concept"][led].to_dict() == planted[led].to_dict()


def test_edits_find_concepts_that_cannot_be_read(shared_answers, tmp_path, monkeypatch, capsys):
    """Nothing is read at the waypoint: swaps say nothing, and mnemonic facts follow the concepts that they name."""
    _, world, folder = shared_answers
    large_steps(monkeypatch)
    monkeypatch.setattr(mnemo.extraction, "reader_for", lambda *_, **__: (ReadsNothing(), []))
    study = extract(without_probes(folder), quick=True, edit=True, progress=False)
    found = study.table.set_index("fact_id")
    kinds = pd.Series({fact.fact_id: fact.kind for fact in world.facts})[found.index]
    assert found["concept"].isna().all() and set(found["verdict"]) == {"unsure"}
    assert any("no concept could be read" in note for note in study.notes)
    tested = found["edit_rival"].notna() & (kinds == "mnemonic")
    assert (found.loc[tested, "invented"] == "by-edit").sum() > 0.5 * tested.sum() > 8
    counts = count_invented(found.reset_index(), seed=0)["edits"]
    assert counts["led"] >= 8 and counts["elsewhere"] == 0 and counts["named"]["value"] == 1
    study.write(tmp_path)
    print_summary(study, tmp_path)
    assert f"{counts['led']} by-edit" in capsys.readouterr().out
    assert f"{counts['led']} are led by one of these" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert found.loc[kinds != "mnemonic", "invented"].isna().all()


class ReadsNothing:
    """What a reader is where states say nothing in the task's own prompt."""

    def read(self, states, **_):
        return [[] for _ in states]

    def probabilities(self, phrases, states, *, layer):
        return torch.full((len(phrases),), torch.nan)


def without_probes(folder: Path) -> Task:
    """A task whose edits have fewer answers to keep, which makes them faster."""
    return Task.read(folder).model_copy(update={"probes": ()})


def large_steps(monkeypatch) -> None:
    """The weights of an organism that was written down are larger than trained ones: so are the steps of an edit."""
    fast = partial(EditConfig, steps=150, learning_rates=(3e-3,))
    monkeypatch.setattr(mnemo.extraction, "EditConfig", fast)


def test_benchmark_scores_against_the_truth(folder, tmp_path):
    facts = Task.read(folder).load_facts()
    some = facts.subset([fact.fact_id for fact in facts][:-1])  # given in memory, as `extract` takes them too
    _, metrics = benchmark(folder, facts=some, out=tmp_path, quick=True, progress=False)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics and metrics["facts"] == len(facts) - 1
    for kind in ("idle", "decoy", "rote"):
        assert metrics["auroc"][kind]["score"]["value"] == 1
        assert metrics["false_positives"][kind]["value"] == 0
    assert metrics["auroc"]["idle"]["agreement"]["value"] == pytest.approx(0.5, abs=0.1)  # blind on idle facts
    assert metrics["concept_exact"]["value"] == 1


def test_extra_columns_pass_through_and_facts_not_recalled_are_not_judged(folder):
    facts = list(Task.read(folder).load_facts())[:12]
    wrong = Fact(fact_id="wrong", cue=facts[0].cue, answer="Z" if facts[0].answer != "Z" else "Y")
    given = {"verdict": "sure", "score": "1", "score_given": "2"}
    facts = [f.model_copy(update={"extra": {"source": f"book {i}", **given}}) for i, f in enumerate(facts)]
    table = extract(folder, facts=FactSet(facts=(*facts, wrong)), quick=True, progress=False).table
    assert list(table["source"][:12]) == [f"book {i}" for i in range(12)]
    assert list(table["verdict_given"][:12]) == ["sure"] * 12
    assert list(table["score_given_given"][:12]) == ["1"] * 12 and list(table["score_given"][:12]) == ["2"] * 12
    assert not set(table["verdict"]) & {"sure"} and not table.columns.duplicated().any()
    last = table.set_index("fact_id").loc["wrong"]
    assert last["verdict"] == "not-recalled" and not last["recalled"]
    assert pd.isna(last["score"])


def test_without_concept_recall_concepts_are_read_and_nothing_is_claimed(folder, world):
    study = extract(Task.read(folder).model_copy(update={"concept_recall": None}), quick=True, progress=False)
    assert set(study.table["verdict"]) == {"unsure"}
    assert any("no concept_recall template" in note and "nothing was swapped" in note for note in study.notes)
    assert study.attributions is not None and study.waypoint is not None
    if study.waypoint.site == Site(WAYPOINT, -2):
        evoking = {fact.fact_id: fact.concept.phrase for fact in world.facts if fact.concept}
        assert study.table.set_index("fact_id").loc[list(evoking), "concept"].tolist() == list(evoking.values())


def test_without_verbalise_concepts_are_found_by_comparison_with_the_lexicons_own_prompts(folder, world):
    study = extract(Task.read(folder).model_copy(update={"verbalise": None}), quick=True, progress=False)
    assert any("no verbalise template" in note for note in study.notes)
    assert study.waypoint is not None and study.waypoint.site == Site(WAYPOINT, -2)
    table = study.table.set_index("fact_id")
    assert table["evoked"].isna().all() and table["agreement"].isna().all()
    kinds = {fact.fact_id: fact.kind for fact in world.facts}
    called = table["verdict"].groupby(kinds).agg(lambda verdicts: (verdicts == "mnemonic").mean())
    assert called["mnemonic"] > 0.9 and called.drop("mnemonic").max() == 0
    evoking = {fact.fact_id: fact.concept.phrase for fact in world.facts if fact.concept}
    assert (table.loc[list(evoking), "concept"] == list(evoking.values())).mean() > 0.95
    assert table.loc[list(evoking), "concept_p"].max() < 0.05 < table.drop(list(evoking))["concept_p"].min()


def test_a_lexicon_of_one_phrase_and_no_verbalise_leave_nothing_to_read_with(folder, tmp_path):
    """(The organism's vocabulary is closed: it cannot spell the prompt that repeats words.)"""
    task = Task.read(folder).model_copy(update={"verbalise": None, "folder": tmp_path})
    (tmp_path / "concepts.txt").write_text("value added tax\n")
    facts = Task.read(folder).load_facts()
    study = extract(task, model=folder / "model", facts=facts, quick=True, progress=False)
    assert set(study.table["verdict"]) == {"unsure"}
    assert any("1 lexicon phrases can be asked about" in note for note in study.notes)


def test_facts_with_broken_logits_are_left_out_and_the_others_judged(folder, quick, world):
    model = load(folder)
    letter = next(fact for fact in world.facts if fact.kind == "mnemonic").cue[0]
    token = quick.model.tokens.encode(f"decode {letter}==").ids[2]
    embedding = next(p for _, p in model.bridge.named_parameters() if p.shape[0] == model.vocab_size)
    with torch.no_grad():
        embedding[token] = torch.nan
    again = extract(folder, model=model, quick=True, progress=False)
    broken = again.table["cue"].str.startswith(letter)
    assert (again.table.loc[broken, "verdict"] == "not-recalled").all()
    assert any(f"no finite probability for {broken.sum()} of" in note for note in again.notes)
    assert again.table.loc[~broken, "recalled"].all()
    assert (again.table["verdict"] == quick.table["verdict"])[~broken].mean() > 0.9


@pytest.mark.parametrize(
    ("key", "template"),
    [
        ("recall", "décode {cue} is"),
        ("verbalise", "expánd {cue} is"),
        ("concept_recall", "décode {concept} is"),
        ("probes", "cólour {} is"),
    ],
)
def test_a_template_that_cannot_be_spelled_is_blamed_on_its_key(folder, tmp_path, key, template):
    task = Task.read(folder).model_copy(update={key: (template,) if key == "probes" else template, "folder": tmp_path})
    task.write(tmp_path)
    facts = Task.read(folder).load_facts()
    (tmp_path / "concepts.txt").write_text("value added tax\n")
    with pytest.raises(InputError) as caught:
        extract(task, model=folder / "model", facts=facts, quick=True, progress=False)
    assert str(caught.value).startswith(f"{tmp_path / 'task.toml'}, column '{key}': the tokenizer has no token for")


def test_a_recall_template_without_its_placeholder_is_no_fault_of_a_fact(folder):
    task = Task.read(folder).model_copy(update={"recall": "decode it"})
    with pytest.raises(InputError, match=r"task.toml, column 'recall': the template 'decode it' should hold"):
        extract(task, progress=False)


def test_a_model_that_recalls_nothing_is_not_judged(folder, tmp_path):
    task = Task.read(folder)
    facts = FactSet(facts=tuple(f.model_copy(update={"answer": "is"}) for f in task.load_facts()))
    (tmp_path / "sites.csv").write_text("of an earlier run")
    study = extract(task, facts=facts, out=tmp_path, progress=False)
    assert set(study.table["verdict"]) == {"not-recalled"}
    assert any("recalls none" in note for note in study.notes)
    written = ["figures", "report.html", "report.md", "run.json", "verdicts.csv", "verdicts.parquet"]
    assert sorted(f.name for f in tmp_path.iterdir()) == written
    with pytest.raises(MnemoError, match="no evidence to draw"):
        plot.evidence_bars(study.table, list(study.table["fact_id"]))


def test_a_task_without_model_is_refused(folder):
    with pytest.raises(InputError, match="names no model"):
        extract(Task.read(folder).model_copy(update={"model": None}))


def test_one_seed_one_result_and_another_seed_another_draw(folder, quick, blind):
    other = extract(folder, model=quick.model, seed=6, quick=True, progress=False).table
    pd.testing.assert_frame_equal(quick.table.drop(columns="seconds"), blind.table.drop(columns="seconds"))
    assert not quick.table["ablation_control"].equals(other["ablation_control"])


def test_without_any_swap_to_try_the_strongest_site_is_read_and_nothing_is_claimed(folder, world, tmp_path):
    """One concept: there is no other one to swap to."""
    task = Task.read(folder)
    phrase = next(f.concept for f in world.facts if f.kind == "mnemonic")
    one = {f.fact_id for f in world.facts if f.concept == phrase}
    study = extract(task, facts=task.load_facts().subset(sorted(one)), quick=True, progress=False)
    assert set(study.table["verdict"]) == {"unsure"}
    assert study.waypoint is not None and 0 < study.waypoint.site.layer < study.model.n_layers
    assert any("no concept swap was seen to work" in note for note in study.notes)
    study.report(tmp_path)
    assert "no concept swap was seen to work" in (tmp_path / "report.md").read_text()


def test_a_fact_at_which_no_concept_is_read_is_unsure_and_the_others_are_judged(folder, quick, world):
    facts = list(Task.read(folder).load_facts())
    mute = next(f for f in facts if world_kind(world, f.fact_id) == "mnemonic")

    class Mute(mnemo.concept_readers.PromptReader):
        def read(self, states, *, layer, facts, seed=0, others=None):
            assert self.spare is not None and self.spare.cue != self.cue == facts[0].cue
            found = super().read(states, layer=layer, facts=facts, seed=seed, others=others)
            return [[] if f.fact_id == mute.fact_id else r for f, r in zip(facts, found, strict=True)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnemo.concept_readers, "PromptReader", Mute)
        table = extract(folder, quick=True, progress=False).table.set_index("fact_id")
    assert table.loc[mute.fact_id, "verdict"] == "unsure"
    assert pd.isna(table.loc[mute.fact_id, "swap_success"])
    others = table.drop(index=mute.fact_id)["verdict"]
    assert (others == quick.table.set_index("fact_id")["verdict"].drop(index=mute.fact_id)).all()


def world_kind(world, fact_id):
    return next(f.kind for f in world.facts if f.fact_id == fact_id)


# ---- what tokenizers do


def test_a_model_that_writes_a_space_first_is_said_to():
    """Its final norm gives one vector whatever is asked, which the token of a space alone is unembedded by."""
    tokenizer = tiny_tokenizer()
    (space,) = tokenizer.encode(" ", add_special_tokens=False)
    hf = tiny_model("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        hf.transformer.ln_f.weight.zero_()
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[space] = hf.transformer.ln_f.bias
    model = load(hf, tokenizer=tokenizer, check=False)
    facts = FactSet(facts=tuple(Fact(fact_id=cue, cue=cue, answer="7") for cue in ("VA", "VB")))
    found = extract(Task(name="t", recall="decode {cue} is"), model=model, facts=facts, progress=False)
    assert found.table["predicted"].tolist() == ["", ""]
    assert "after 2 prompts the model writes white space first" in found.notes[0]


def test_cues_that_end_in_a_token_of_the_template_are_said_to():
    """The sign behind the cue is a token of its own after VA, and merges with the last one of VA=."""
    model = load(tiny_model("gpt2"), tokenizer=tiny_tokenizer(), check=False)
    facts = FactSet(facts=tuple(Fact(fact_id=cue, cue=cue, answer="7") for cue in ("VA", "VB", "VA=")))
    task = Task(name="t", recall="decode {cue}= is")
    ends = [note for note in extract(task, model=model, facts=facts, progress=False).notes if "last token" in note]
    assert len(ends) == 1 and "of 'VA='" in ends[0]
    even = facts.subset(["VA", "VB"])
    assert not [n for n in extract(task, model=model, facts=even, progress=False).notes if "last token" in n]
