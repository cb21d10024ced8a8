"""Steering and guidance: what each does to a model, and what the comparison of the two measures."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from mnemo.concept_vectors import ask_concepts
from mnemo.errors import MnemoError
from mnemo.model import Model, load
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.patching import Patch, Site, read_stream
from mnemo.patching import next_logprobs as plain_logprobs
from mnemo.prompts import Prompt, answer_token, render
from mnemo.steering import (
    Guidance,
    Method,
    Steering,
    at_divergence,
    collapse,
    concept_pairs,
    first_order,
    generate,
    next_logprobs,
    purity,
    steer_facts,
    steering_vector,
    sweep,
    text_pair,
)
from mnemo.steering.curves import _distinct
from tests.lexicon import PHRASES
from tests.tiny_models import tiny_model, tiny_tokenizer

CUES = ("VA==", "QQ==", "VB==")


@cache
def tiny(family: str = "gpt2", dtype: str = "float32") -> Model:
    return load(tiny_model(family), tokenizer=tiny_tokenizer(), dtype=dtype, check=False)


def prompts(model: Model, template: str = "decode {cue} is") -> list[Prompt]:
    return [render(template, cue, tokenizer=model.tokens) for cue in CUES]


def pair(model: Model):
    return text_pair(model, "decode VB== means", negative="decode VC== means")


def said(model: Model, ids: list[tuple[int, ...]]) -> torch.Tensor:
    """Log-probabilities after each token, by the plain model."""
    return model.forward(ids).log_softmax(-1)


# --- pairs


def test_prompts_of_different_length_make_no_pair() -> None:
    with pytest.raises(
        MnemoError, match=r"equal length: 'decode VA==' has \d+ tokens and 'T' has \d+; reword"
    ) as error:
        text_pair(tiny(), "decode VA==", negative="T")
    assert "\n" not in str(error.value)


def test_a_concept_contrasts_with_others_alone() -> None:
    model = tiny()
    pairs = concept_pairs(model, "decode {concept} is", concept="VB==", others=["VB==", "VC==", "VD=="])
    assert [p.negative.text for p in pairs] == ["decode VC== is", "decode VD== is"]
    with pytest.raises(MnemoError, match="nothing to contrast 'VB==' with"):
        concept_pairs(model, "decode {concept} is", concept="VB==", others=["VB=="])


def test_the_vector_is_the_mean_difference_at_the_end_of_the_span() -> None:
    model = tiny()
    pairs = concept_pairs(model, "decode {concept} is", concept="VB==", others=["VC==", "VD=="])
    at = pairs[0].positive.last - len(pairs[0].positive)
    states = read_stream(model, [pairs[0].positive, *(p.negative for p in pairs)], positions=[at])[:, 1, 0]
    assert_close(steering_vector(model, pairs, layer=1), states[0] - (states[1] + states[2]) / 2)


# --- methods


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steering_one_token_is_a_patch(family: str) -> None:
    model = tiny(family)
    asked, vector = prompts(model)[:1], torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    state = read_stream(model, asked, positions=[-2])[:, 1, 0]
    ((_, patched),) = plain_logprobs(model, asked, patch=Patch(Site(1, -2), state + 3 * vector))
    assert_close(next_logprobs(Steering(model, vector, 1, -2), asked, dose=3.0), patched, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["steering", "guidance"])
def test_no_dose_changes_nothing(method: str) -> None:
    model = tiny()
    pushes: dict[str, Method] = {
        "steering": Steering(model, torch.ones(model.d_model), 1),
        "guidance": Guidance(model, [pair(model)]),
    }
    want = model.forward([p.tokens for p in prompts(model)])[:, -1].float().log_softmax(-1)
    assert_close(next_logprobs(pushes[method], prompts(model), dose=0.0), want)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("onwards", [False, True])
def test_generation_with_a_cache_is_steered_as_one_pass_is(family: str, onwards: bool) -> None:
    """transformers shows the hook one new token at a time; the whole text at once must give the same scores."""
    model = tiny(family)
    asked = prompts(model)  # of two lengths: the shorter are padded in front
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(2))
    method = Steering(model, vector, 1, -2, onwards=onwards)
    found = generate(method, asked, dose=2.0, draws=2, new_tokens=4, seed=0)
    width = max(len(p) for p in asked)
    for i, prompt in enumerate(p for p in asked for _ in range(2)):
        whole = [(*prompt.tokens, *found.tokens[i].tolist())]
        with method.at(2.0, len(prompt)):
            pushed = said(model, whole)[0, len(prompt) - 1 : -1]
        plain = said(model, whole)[0, len(prompt) - 1 : -1]
        gap = (pushed.exp() * (pushed - plain)).sum(-1)
        assert_close(found.divergence[i][found.said[i]], gap[found.said[i]], atol=1e-4, rtol=1e-3)
        assert_close(found.surprise[i], -plain.gather(1, found.tokens[i][:, None])[:, 0], atol=1e-4, rtol=1e-3)
    assert width > min(len(p) for p in asked)


def test_one_unit_of_guidance_from_the_negative_prompt_is_the_positive_prompt() -> None:
    model = tiny()
    contrast = pair(model)
    guided = generate(Guidance(model, [contrast]), [contrast.negative], dose=1.0, draws=3, new_tokens=4, seed=5)
    still = Steering(model, torch.zeros(model.d_model), 1)
    assert torch.equal(
        guided.tokens, generate(still, [contrast.positive], dose=0.0, draws=3, new_tokens=4, seed=5).tokens
    )
    assert guided.divergence.min() > 0


def test_several_pairs_add_the_mean_of_their_differences() -> None:
    model = tiny()
    pairs = [pair(model), text_pair(model, "VE== is", negative="VF== is")]
    written = torch.tensor([[7, 9], [8, 8], [7, 9]])
    want = torch.zeros(3, model.vocab_size, dtype=torch.double)
    for one in pairs:
        for i, row in enumerate(written.tolist()):
            positive, negative = (said(model, [(*p.tokens, *row)])[0, -1] for p in (one.positive, one.negative))
            want[i] += (positive - negative) / 2
    assert_close(Guidance(model, pairs).contrast(written).double(), want, atol=1e-5, rtol=1e-4)
    assert Guidance(model, pairs).forwards == 5
    assert Steering(model, torch.zeros(model.d_model), 1).forwards == 1


def test_a_position_outside_the_prompt_is_refused() -> None:
    model = tiny()
    with pytest.raises(MnemoError, match="position -40 is no token of a prompt"):
        next_logprobs(Steering(model, torch.ones(model.d_model), 1, -40), prompts(model), dose=1.0)


# --- first order


def test_the_derivative_is_that_of_a_small_dose_and_guidance_is_exponential() -> None:
    model = tiny(dtype="float64")
    asked = prompts(model)
    steering = Steering(model, torch.ones(model.d_model) * 0.3, 1, -2)
    guidance = Guidance(model, [pair(model)])
    found = first_order(steering, guidance, prompts=asked)
    p = next_logprobs(steering, asked, dose=0.0).double()
    a = (
        next_logprobs(steering, asked, dose=1e-2).double() - next_logprobs(steering, asked, dose=-1e-2).double()
    ) / 2e-2
    spread = (p.exp() * (a - (p.exp() * a).sum(-1, keepdim=True)).square()).sum(-1).sqrt()
    assert_close(found.spread_steering, spread, rtol=2e-3, atol=1e-4)
    assert_close(p.exp().sum(-1), torch.ones(len(asked), dtype=torch.double), rtol=1e-4, atol=0)
    q = next_logprobs(guidance, asked, dose=0.05).double()
    kl = (q.exp() * (q - p)).sum(-1)
    assert_close(kl, 0.05**2 * found.spread_guidance.square() / 2, rtol=0.1, atol=1e-6)


def test_at_one_small_distance_they_differ_by_twice_what_correlation_lacks() -> None:
    """KL(p_g || p_w) / e tends to 2 (1 - r), as the module derives."""
    model = tiny("llama", "float64")
    asked = [render("decode {cue} is", cue, tokenizer=model.tokens) for cue in ("VB==", "VE==", "VF==")]
    pairs = concept_pairs(model, "decode {concept} is", concept="VB==", others=["VC==", "VD=="])
    steering, guidance = Steering(model, steering_vector(model, pairs, layer=1), 1, -2), Guidance(model, pairs)
    found = first_order(steering, guidance, prompts=asked)
    distance = 1e-5
    for i in range(len(asked)):
        doses = [math.sqrt(2 * distance) / s[i].item() for s in (found.spread_steering, found.spread_guidance)]
        p, q = (next_logprobs(m, asked, dose=d)[i].double() for m, d in zip((steering, guidance), doses, strict=True))
        measured = (p.exp() * (p - q)).sum().item() / distance
        assert measured == pytest.approx(2 * (1 - found.correlation[i].item()), rel=0.15, abs=0.05)


# --- curves


def test_matching_reads_between_the_doses_on_either_side() -> None:
    curve = pd.DataFrame(
        {"dose": [0.0, 1.0, 2.0, 4.0], "divergence": [0.0, 0.2, 0.6, 0.5], "hits": [0.0, 0.5, 0.9, 1.0]}
    )
    found = at_divergence(curve, [0.1, 0.4, 0.7])
    assert found["dose"].tolist()[:2] == pytest.approx([0.5, 1.5])
    assert found["hits"].tolist()[:2] == pytest.approx([0.25, 0.7])
    assert found.loc[2, ["dose", "hits"]].isna().all()
    with pytest.raises(MnemoError, match="doses of one sign"):
        at_divergence(curve.assign(dose=[-1.0, 0.0, 1.0, 2.0]), [0.1])


def test_collapse_is_the_first_dose_whose_texts_are_half_noise() -> None:
    curve = pd.DataFrame({"dose": [-4.0, 1.0, 2.0], "fluency": [3.0, 0.1, 2.4]})
    assert collapse(curve, vocabulary=100) == 2.0  # log(100) / 2 = 2.30
    assert math.isnan(collapse(curve, vocabulary=10**6))


def test_distinct_words_and_pairs() -> None:
    assert _distinct(["a b a", "a b"], 1) == 2 / 5
    assert _distinct(["a b a", "a b"], 2) == 2 / 3
    assert math.isnan(_distinct(["a"], 2))


def test_a_sweep_measures_each_text_as_by_hand() -> None:
    model = tiny()
    asked, references = prompts(model)[:2], prompts(model, "{cue} means")
    method = Steering(model, torch.ones(model.d_model), 1)
    curve = sweep(
        method, asked, doses=[4.0], hit=lambda text: "e" in text, references=references, new_tokens=3, draws=2
    )
    found = generate(method, asked, dose=4.0, draws=2, new_tokens=3, seed=0)
    best = []
    for row, counts in zip(found.tokens, found.said, strict=True):
        text = tuple(row[counts].tolist())
        scores = [said(model, [(*p.tokens, *text)])[0, len(p) - 1 : -1] for p in references]
        best.append(min(-s.gather(1, torch.tensor(text)[:, None]).mean().item() for s in scores))
    texts = [model.tokens.decode(row[counts].tolist()) for row, counts in zip(found.tokens, found.said, strict=True)]
    assert curve["fluency"].item() == pytest.approx(np.mean(best), rel=1e-4)
    assert curve["hits"].item() == np.mean(["e" in text for text in texts])
    assert math.log(curve["perplexity"].item()) == pytest.approx(found.surprise[found.said].mean().item(), rel=1e-5)


# --- evidence


@pytest.fixture(scope="module")
def steered() -> pd.DataFrame:
    """Facts of an organism whose routes were written down, pushed by every method."""
    config = WorldConfig(seed=3, concepts=12, cues_per_concept=3, decoys=4, idles=4, rotes=6, frees=0)
    world = build_world(config, PHRASES)
    hf, tokenizer = compile_organism(world)
    model = load(hf, tokenizer=tokenizer, check=False)
    asked = [render(config.recall, fact.cue, tokenizer=model.tokens) for fact in world.facts]
    answers = [answer_token(p, f.answer, tokenizer=model.tokens).id for p, f in zip(asked, world.facts, strict=True)]
    table = ask_concepts(model, config.concept_recall, phrases=[c.phrase for c in world.concepts])
    rank = {phrase: i for i, phrase in enumerate(table.phrases)}
    concepts = [rank[f.concept.phrase] if f.concept else -1 for f in world.facts]
    found = steer_facts(
        model, asked, answers=torch.tensor(answers), concepts=torch.tensor(concepts), table=table,
        site=Site(WAYPOINT, asked[0].last - len(asked[0])), doses=[2.0], seed=0,
    )  # fmt: skip
    return found.assign(kind=[world.facts[i].kind for i in found["fact"]])


def test_steering_moves_facts_that_read_the_concept_and_no_others(steered: pd.DataFrame) -> None:
    moved = steered[steered["method"] == "steering"].groupby("kind")["says"].mean()
    assert moved["mnemonic"] == 1
    assert moved[["idle", "decoy", "rote"]].max() == 0
    change = steered[steered["method"] == "steering"].groupby("kind")["toward"].mean()
    assert change["mnemonic"] > 10 > 1 > change[["idle", "decoy", "rote"]].abs().max()
    random = steered[steered["method"] == "random"]
    assert random["says"].max() == 0


def test_guidance_tells_no_kind_from_another(steered: pd.DataFrame) -> None:
    change = steered[steered["method"] == "guidance"].groupby("kind")["toward"].mean()
    assert change.min() > 10
    assert change["decoy"] == pytest.approx(change["rote"], rel=0.2)


def test_purity_of_vectors_with_known_parts() -> None:
    directions = torch.eye(4)
    vectors = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = purity(vectors, directions, answers=torch.tensor([5, 6, 5, 7]))
    assert found["own"].tolist() == pytest.approx([0.6, 1, 1, 1])
    assert found["same_answer"].tolist()[0] == 0
    assert math.isnan(found["same_answer"][1])
    assert found["unrelated"][0] == pytest.approx(math.sqrt(0.64 / 2))
    assert found["null"].tolist() == [0.5] * 4
