"""Lenses: probabilities against the model's own last step, the layer that is meant, ratios against their definition."""

from __future__ import annotations

import math
import statistics
from copy import deepcopy
from itertools import chain

import pytest
import torch
from transformer_lens.tools import analysis

from mnemo.concepts import FLOOR, Others, ReadsConcepts, chance
from mnemo.errors import MnemoError
from mnemo.facts import Fact
from mnemo.lenses import READOUTS, Lens
from mnemo.memory import memory_budget
from mnemo.model import Model, load
from mnemo.patching import Patch, Site, next_logprobs, read_stream
from mnemo.prompts import render
from mnemo.shape import Shape
from tests.tiny_models import tiny_model, tiny_tokenizer

FACTS = [Fact(fact_id=c, cue=f"{c}A==", answer="TU"[i % 2]) for i, c in enumerate("ABCDEFGH")]


@pytest.fixture(scope="module")
def model() -> Model:
    """Three blocks, of which the last one writes nothing."""
    hf = tiny_model("llama", layers=3, d_model=16, heads=2)
    with torch.no_grad():
        hf.lm_head.weight.mul_(20)  # else all tokens are as likely as each other
        for weight in (hf.model.layers[-1].self_attn.o_proj.weight, hf.model.layers[-1].mlp.down_proj.weight):
            weight.zero_()
    return load(hf, tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def prompts(model):
    return [render("decode {cue} is", fact.cue, tokenizer=model.tokens) for fact in FACTS]


@pytest.fixture(scope="module")
def streams(model, prompts) -> torch.Tensor:
    return read_stream(model, prompts, positions=[-2])[:, :, 0]


@pytest.fixture(scope="module")
def logit(model, prompts) -> Lens:
    return Lens(model, prompts[0])


@pytest.fixture(scope="module")
def jacobian(model, prompts) -> Lens:
    return Lens.fitted(model, prompts)


def test_the_logit_lens_says_what_the_model_would_if_no_block_were_left(model, prompts, streams, logit):
    tokens = torch.arange(len(FACTS)) * 7 + 3
    found = logit.of_tokens(tokens, streams[:, 1], layer=1)
    ((_, said),) = next_logprobs(model, [prompts[0]] * len(FACTS), patch=Patch(Site(model.n_layers, -1), streams[:, 1]))
    torch.testing.assert_close(found, said.exp()[torch.arange(len(FACTS)), tokens], atol=1e-6, rtol=1e-4)


def test_the_likeliest_tokens_are_those_of_the_highest_logits(model, streams, logit):
    tokens, probabilities = logit.likeliest(streams[:, 2], layer=2, most=3)
    every = logit.of_tokens(tokens.flatten(), streams[:, 2].repeat_interleave(3, 0), layer=2).view(-1, 3)
    torch.testing.assert_close(probabilities, every, atol=1e-6, rtol=1e-4)
    spelled = torch.arange(model.vocab_size).repeat(len(streams))
    said = logit.of_tokens(spelled, streams[:, 2].repeat_interleave(model.vocab_size, 0), layer=2)
    assert torch.equal(tokens, said.view(-1, model.vocab_size).topk(3).indices)


@pytest.mark.parametrize("family", ["gemma2", "opt"])
def test_what_a_family_does_behind_the_unembedding_is_done_too(family):
    """Gemma 2 caps its logits."""
    other = load(tiny_model(family, d_model=16, heads=2), tokenizer=tiny_tokenizer())
    prompt = render("decode {cue} is", "AA==", tokenizer=other.tokens)
    state = 30 * read_stream(other, [prompt], positions=[-2])[:, 1, 0]
    ((_, said),) = next_logprobs(other, [prompt], patch=Patch(Site(other.n_layers, -1), state))
    best = said.argmax(1)
    found = Lens(other, prompt).of_tokens(best, state, layer=1)
    torch.testing.assert_close(found, said.exp()[0, best], atol=1e-6, rtol=1e-4)


def test_the_jacobian_lens_carries_a_state_through_the_blocks_that_are_left(streams, logit, jacobian):
    """Behind the second block nothing is left but one that writes nothing; behind the first something is."""
    tokens = torch.arange(len(FACTS))
    for layer, alike in ((1, False), (2, True), (3, True)):
        one, other = (lens.of_tokens(tokens, streams[:, layer], layer=layer) for lens in (logit, jacobian))
        assert torch.allclose(one, other, atol=1e-6) == alike, layer
    with pytest.raises(MnemoError, match="not fitted to the stream after 0 blocks"):
        jacobian.of_tokens(tokens, streams[:, 0], layer=0)


def test_it_can_be_fitted_to_the_one_layer_that_will_be_read(model, prompts, streams, jacobian):
    alone = Lens.fitted(model, prompts, layers=[1])
    tokens = torch.arange(len(FACTS))
    both = [lens.of_tokens(tokens, streams[:, 1], layer=1) for lens in (alone, jacobian)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-3)
    with pytest.raises(MnemoError, match="after 2 blocks"):
        alone.of_tokens(tokens, streams[:, 2], layer=2)


@pytest.mark.parametrize(("family", "bos"), [("gpt_neox", None), ("llama", False)])
def test_it_is_fitted_to_the_tokens_of_the_prompts_themselves(family, bos):
    """Beside the mean over source positions of what moves the last block's output, summed over positions."""
    hf = tiny_model(family, layers=3, d_model=16, heads=2, positions=256)
    model = load(deepcopy(hf), tokenizer=tiny_tokenizer(), bos=bos)
    prompts = [render("decode {cue} is", cue, tokenizer=model.tokens) for cue in ("VA==", "decode value " * 60)]
    assert len(prompts[1]) > 128 and all(
        (p.tokens[0] == model.tokens.hf.bos_token_id) != (bos is False) for p in prompts
    )
    expected = sum(_jacobian(hf, prompt.tokens, block=0) for prompt in prompts) / len(prompts)
    fitted = Lens.fitted(model, prompts, layers=[1]).jacobian
    assert fitted is not None
    torch.testing.assert_close(fitted.jacobians[0], expected, atol=1e-4, rtol=1e-3)


def _jacobian(hf, tokens: tuple[int, ...], *, block: int) -> torch.Tensor:
    blocks = hf.base_model.layers

    def moved_by(step: torch.Tensor) -> torch.Tensor:
        """Sum of the last block's output where `step` is added behind a block; the last position counts for nothing."""
        kept = {}
        hooks = [
            blocks[block].register_forward_hook(lambda _, __, out: torch.cat([out[:, :-1] + step, out[:, -1:]], 1)),
            blocks[-1].register_forward_hook(lambda _, __, out: kept.update(out=out)),
        ]
        hf(torch.tensor([tokens]))
        for hook in hooks:
            hook.remove()
        return kept["out"][0, :-1].sum(0)

    step = torch.zeros(len(tokens) - 1, hf.config.hidden_size)
    found = torch.autograd.functional.jacobian(moved_by, step)
    assert isinstance(found, torch.Tensor)
    return found.mean(1)


def test_memory_decides_how_many_columns_are_made_at_once_and_whether_any(model, prompts, jacobian):
    matrices = 3 * 4 * 2 * model.d_model**2  # sum, one prompt's and mean, behind the first two blocks
    shape, length = Shape.of(model), max(map(len, prompts))
    column = shape.backward_bytes(length) + shape.reading_bytes(length)
    with memory_budget((matrices + 3.5 * column) / 1e9):
        few, every = Lens.fitted(model, prompts).jacobian, jacobian.jacobian
    assert few is not None and every is not None
    assert (few.metadata["dim_batch"], every.metadata["dim_batch"]) == (3, model.d_model)
    for block in (0, 1):
        torch.testing.assert_close(few.jacobians[block], every.jacobians[block], atol=1e-5, rtol=1e-3)
    with memory_budget(matrices / 1e9), pytest.raises(MnemoError, match=r"matrices .* take 6.14e-06 GB, more than may"):
        Lens.fitted(model, prompts)


def test_after_a_fit_that_fails_the_library_spells_as_before(model, prompts):
    before = model.bridge.to_tokens("VA== is").tolist()
    with pytest.raises(MnemoError, match="no Jacobian lens can be fitted"):
        Lens.fitted(model, prompts, layers=[3])
    Lens.fitted(model, prompts[:1], layers=[1])
    assert model.bridge.to_tokens("VA== is").tolist() == before


@pytest.mark.parametrize("name", ["logit", "jacobian"])
def test_words_are_ranked_by_the_ratio_of_all_that_spells_them(name, model, streams, request):
    lens: Lens = request.getfixturevalue(name)
    states, n = streams[:, 2], model.vocab_size
    every = torch.stack([lens.of_tokens(torch.arange(n), s.expand(n, -1), layer=2) for s in states])
    spellings: dict[str, list[int]] = {}
    for token in range(n):
        spellings.setdefault(model.tokens.decode([token]).strip(), []).append(token)
    assert any(len(tokens) > 1 for tokens in spellings.values())
    readings = lens.read(states, layer=2, facts=FACTS)
    assert sum(map(len, readings)) > len(FACTS)
    for i, (fact, mine) in enumerate(zip(FACTS, readings, strict=True)):
        assert [r.ratio for r in mine] == sorted((r.ratio for r in mine), reverse=True)
        for reading in mine:
            assert reading.phrase not in (fact.cue, fact.answer) and any(map(str.isalnum, reading.phrase))
            tokens = spellings[reading.phrase]
            unlike = [k for k, other in enumerate(FACTS) if other.answer != fact.answer]
            own, others = every[i, tokens].sum().item(), [every[k, tokens].sum().item() for k in unlike]
            assert math.exp(reading.logprob) == pytest.approx(own, abs=1e-5)
            expected = math.log((own + FLOOR) / (statistics.median_low(others) + FLOOR))
            assert reading.ratio == pytest.approx(expected, abs=1e-3)
    reader: ReadsConcepts = lens
    p_values = chance(reader, states, readings=readings, layer=2, facts=FACTS, seed=0)
    assert all(0.01 <= p <= 1 for p in p_values)


@pytest.mark.parametrize("name", ["logit", "jacobian"])
def test_a_state_is_read_alone_as_it_is_among_others(name, model, request):
    """Also where memory holds but a few states at once."""
    lens: Lens = request.getfixturevalue(name)
    states = 3 * torch.randn(40, model.d_model, generator=torch.Generator().manual_seed(0))
    facts = [FACTS[i % 8].model_copy(update={"fact_id": str(i)}) for i in range(len(states))]
    others = Others(states, facts)
    among = lens.read(states, layer=1, facts=facts, others=others)
    alone = [
        lens.read(states[i : i + 1], layer=1, facts=facts[i : i + 1], others=others)[0] for i in range(len(states))
    ]
    with memory_budget(3 * READOUTS * 4 * model.vocab_size / 1e9):
        few = lens.read(states, layer=1, facts=facts, others=others)
    for found in (alone, few):
        assert [[r.phrase for r in mine] for mine in found] == [[r.phrase for r in mine] for mine in among]
        for one, other in zip(chain(*found), chain(*among), strict=True):
            assert (one.logprob, one.ratio) == pytest.approx((other.logprob, other.ratio), abs=1e-4)


def test_fewer_states_are_read_at_once_where_memory_runs_out(streams, logit, monkeypatch):
    expected = logit.read(streams[:, 2], layer=2, facts=FACTS)
    whole, at_once = analysis.logit_readout, []

    def short_of_memory(bridge, states, **chosen):
        at_once.append(len(states))
        if len(states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(bridge, states, **chosen)

    monkeypatch.setattr(analysis, "logit_readout", short_of_memory)
    found = logit.read(streams[:, 2], layer=2, facts=FACTS)
    assert [[r.phrase for r in mine] for mine in found] == [[r.phrase for r in mine] for mine in expected]
    assert at_once == 2 * [8, 4, 2, 2, 2, 2]  # the references, then the states


def test_a_phrase_is_judged_by_its_first_token(model, streams, logit):
    found = logit.probabilities(["value added tax", "value", "\ud800"], streams[:3, 1], layer=1)
    first = model.tokens.continuation(logit.host.text, "value added tax")[0]
    assert found[0] == pytest.approx(logit.of_tokens(torch.tensor([first]), streams[:1, 1], layer=1).item(), rel=1e-4)
    assert found[1].isfinite()


def test_no_state_is_read_as_no_words(streams, logit):
    assert logit.read(streams[:0, 1], layer=1, facts=[]) == []
