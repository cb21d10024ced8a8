"""Running, reading and putting back: against the bridge itself and against Hugging Face."""

from __future__ import annotations

import pytest
import torch

from mnemo.errors import MnemoError
from mnemo.graph import stream_hook
from mnemo.model import Model, load
from mnemo.patching import Patch, Site, ask, next_logprobs, read_stream
from mnemo.phrases import Asked, write_phrases
from mnemo.prompts import Prompt, TemplateError, render
from tests.tiny_models import tiny_model, tiny_tokenizer

HF = {family: tiny_model(family) for family in ("gpt2", "llama", "gpt_neox")}


@pytest.fixture(scope="module", params=HF)
def model(request) -> Model:
    return load(HF[request.param], tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def prompts(model) -> list[Prompt]:
    return [render("decode {cue} is", cue, tokenizer=model.tokens) for cue in ("VA==", "Q", "VAVAQQ==", "QQ==")]


def hidden_states(model: Model, prompt: Prompt) -> tuple[torch.Tensor, ...]:
    hf = next(hf for hf in HF.values() if type(hf).__name__ == model.bridge.cfg.architecture)
    with torch.no_grad():
        return hf(torch.tensor([prompt.tokens]), output_hidden_states=True).hidden_states


def test_streams_are_the_hidden_states_whatever_the_lengths(model, prompts):
    streams = read_stream(model, prompts, positions=[-1, -2])
    for stream, prompt in zip(streams, prompts, strict=True):
        expected = hidden_states(model, prompt)
        for layer in range(model.n_layers):  # Hugging Face's last entry is behind the final norm
            torch.testing.assert_close(stream[layer, 0], expected[layer][0, -1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(stream[layer, 1], expected[layer][0, -2], atol=1e-4, rtol=1e-4)


def test_answers_are_those_of_each_prompt_alone(model, prompts):
    tokens = torch.tensor([[1, 2]] * len(prompts))
    together = ask(model, prompts, tokens=tokens)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            said = model.bridge(torch.tensor([prompt.tokens]))[0, -1].log_softmax(-1)
        assert together.top[i] == said.argmax()
        torch.testing.assert_close(together.logprob[i], said[[1, 2]], atol=1e-4, rtol=1e-4)


def test_putting_a_prompts_own_state_back_changes_nothing_and_anothers_makes_it_the_other(model, prompts):
    streams = read_stream(model, prompts, positions=[-1])
    untouched = dict(enumerate(torch.cat([said for _, said in sorted_rows(model, prompts)])))
    for layer in range(model.n_layers + 1):
        own = torch.cat([said for _, said in sorted_rows(model, prompts, Patch(Site(layer, -1), streams[:, layer, 0]))])
        torch.testing.assert_close(own, torch.stack(list(untouched.values())), atol=1e-4, rtol=1e-4)
    # What the final norm reads at the last position decides everything.
    top = Patch(Site(model.n_layers, -1), streams[:, -1, 0].flip(0))
    other = torch.cat([said for _, said in sorted_rows(model, prompts, top)])
    torch.testing.assert_close(other, torch.stack(list(untouched.values())).flip(0), atol=1e-4, rtol=1e-4)


def sorted_rows(model, prompts, patch=None):
    """One row at a time, in the order of the prompts."""
    rows = [
        (int(i), said[k : k + 1]) for r, said in next_logprobs(model, prompts, patch=patch) for k, i in enumerate(r)
    ]
    return sorted(rows, key=lambda row: row[0])


def test_a_patch_is_the_interchange_of_transformer_lens(model):
    """All of a state exchanged, and the part of it in a subspace, as the library's own tools do it."""
    from transformer_lens.tools.analysis.interchange import SubspaceInterchange, intervened_logits, random_basis

    prompts = [render("decode {cue} is", cue, tokenizer=model.tokens) for cue in ("VA==", "QQ==", "VA==")]
    assert len({len(prompt) for prompt in prompts}) == 1
    tokens, position = torch.tensor([prompt.tokens for prompt in prompts]), -2
    for layer in range(1, model.n_layers + 1):
        base = read_stream(model, prompts, positions=[position])[:, layer, 0]
        source = base.flip(0) + torch.arange(3.0)[:, None]
        for rank in (model.d_model, 3):
            interchange = SubspaceInterchange(random_basis(model.d_model, rank, seed=rank))
            expected = intervened_logits(
                model.bridge,
                stream_hook(model, layer),
                interchange,
                tokens,
                source,
                lambda tokens: model.bridge(tokens)[:, -1],
                positions=torch.full((3,), tokens.shape[1] + position),
            ).log_softmax(-1)
            patch = Patch(Site(layer, position), interchange(base, source))
            for rows, said in next_logprobs(model, prompts, patch=patch):
                torch.testing.assert_close(said, expected[rows], atol=1e-4, rtol=1e-4)


def test_the_size_of_batches_changes_nothing(model, prompts, monkeypatch):
    tokens = torch.zeros(len(prompts), 1, dtype=torch.long)
    whole = ask(model, prompts, tokens=tokens)
    monkeypatch.setattr("mnemo.patching.TOKENS_PER_BATCH", 1)
    single = ask(model, prompts, tokens=tokens)
    assert torch.equal(whole.top, single.top)
    torch.testing.assert_close(whole.logprob, single.logprob, atol=1e-4, rtol=1e-4)


def test_a_layer_that_is_not_there_is_refused(model):
    with pytest.raises(MnemoError, match=f"0 \\(embedding\\) to {model.n_layers}"):
        stream_hook(model, model.n_layers + 1)


# ---- more tokens than the model reads


def test_a_prompt_that_the_model_does_not_read_to_its_end_is_never_run(model):
    assert len(render("decode {cue} is", "V" * 30, tokenizer=model.tokens)) <= model.n_positions
    with pytest.raises(MnemoError, match=r"has \d+ tokens, but the model reads at most 64: shorten what is put into"):
        render("decode {cue} is", "V?" * 40, tokenizer=model.tokens)
    with pytest.raises(TemplateError, match=r"shorten the template, which takes \d\d+ of them"):
        render("V?" * 40 + " {cue}", "VA==", tokenizer=model.tokens)
    whole = Prompt("", (1,) * 64, (63, 64))
    assert len(ask(model, [whole], tokens=torch.tensor([[1]])).top) == 1
    for run in (
        lambda: ask(model, [Prompt("", (1,) * 65, (64, 65))], tokens=torch.tensor([[1]])),
        lambda: write_phrases(model, Asked((whole,)), max_tokens=2),  # what it would write does not fit behind it
    ):
        with pytest.raises(MnemoError, match=r"a prompt has 65 tokens, but .* reads at most 64"):
            run()
