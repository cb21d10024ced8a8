"""Parts of a run: what equal prompts have in common runs once, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.forwards import counted_forwards
from mnemo.graph import stream_hook
from mnemo.model import Model, load
from mnemo.partial_runs import is_skipped, logits_of, run_from, stream_into
from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer

LAYERS, LENGTH = 3, 5


TUPLES = {"gptj": {"rotary_dim": 4}, "falcon": {}}  # families whose blocks put out more than the stream


@pytest.fixture(scope="module", params=[*FAMILIES, *TUPLES])
def model(request) -> Model:
    hf = tiny_model(request.param, layers=LAYERS, **TUPLES.get(request.param, {}))
    model = load(hf, tokenizer=tiny_tokenizer())
    assert model.block_output == ("tuple" if request.param in TUPLES else "stream")
    return model


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(4, 20, (3, LENGTH), generator=draw)[[2, 0, 1, 0, 2, 2]]


def putting(model: Model, rows: int, position: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """States for the rows, and what puts them at a position of a stream."""
    states = torch.randn(rows, model.d_model, generator=torch.Generator().manual_seed(1))

    def put(stream: Tensor) -> Tensor:
        stream[:, position] = states
        return stream

    return states, put


def hooks(model: Model) -> dict[str, int]:
    return {name: len(point.fwd_hooks) for name, point in model.bridge.hook_dict.items()}


@torch.no_grad()
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_states_put_into_equal_prompts_give_what_they_give_in_each_alone(model, tokens, layer):
    states, put = putting(model, len(tokens), -2)
    found = logits_of(model, tokens, change=(layer, put), last=3)
    for row, prompt in enumerate(tokens):

        def alone(value: Tensor, hook: Any, row: int = row) -> Tensor:
            value = value.clone()
            value[:, -2] = states[row]
            return value

        expected = model.bridge.run_with_hooks(prompt[None], fwd_hooks=[(stream_hook(model, layer), alone)])
        torch.testing.assert_close(found[row], expected[0, -3:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_where_blocks_cannot_be_skipped_every_prompt_runs_whole_and_no_run_starts_behind_one(model, tokens):
    stubborn = replace(model, block_output="unknown")
    _, put = putting(model, len(tokens), -2)
    with counted_forwards(model) as forwards:
        found = logits_of(stubborn, tokens, change=(2, put))
    assert forwards.prompts == len(tokens)
    torch.testing.assert_close(found, logits_of(model, tokens, change=(2, put)), atol=1e-4, rtol=1e-4)
    with pytest.raises(MnemoError, match="cannot be skipped"):
        run_from(stubborn, 1, stream=torch.zeros(6, LENGTH, model.d_model), tokens=tokens)
    whole: list[Tensor] = []
    run = model.bridge.run_with_hooks(
        tokens, fwd_hooks=[(stream_hook(model, 0), lambda value, hook: whole.append(value))]
    )
    _, found = run_from(stubborn, 0, stream=whole[0], tokens=tokens)  # from the embedding on, nothing is skipped
    torch.testing.assert_close(found, run[:, -1:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_interrupted_run_leaves_the_blocks_as_they_were(model, tokens):
    def stop(value: Tensor) -> Tensor:
        raise KeyboardInterrupt

    own = [vars(block).get("forward") for block in model.bridge.blocks]
    with pytest.raises(KeyboardInterrupt):
        stream = torch.zeros(6, LENGTH, model.d_model)
        run_from(model, 1, stream=stream, tokens=tokens, changes={stream_hook(model, LAYERS): stop})
    assert [vars(block).get("forward") for block in model.bridge.blocks] == own
    assert not any(is_skipped(block) for block in model.bridge.blocks)


@torch.no_grad()
def test_an_unchanged_prompt_runs_once(model, tokens):
    with counted_forwards(model) as forwards:
        found = logits_of(model, tokens)
    assert forwards.prompts == 3
    expected = model.bridge(tokens)[:, -1:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_prompts_run_once_up_to_the_change(model, tokens, layer):
    _, put = putting(model, len(tokens), -1)
    with counted_forwards(model) as forwards:
        logits_of(model, tokens, change=(layer, put))
    assert forwards.prompts == pytest.approx((3 * layer + 6 * (LAYERS - layer)) / LAYERS)


@torch.no_grad()
@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
def test_the_stream_into_a_block_is_that_of_the_whole_run(model, tokens, layer):
    whole: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        whole.append(value)

    model.bridge.run_with_hooks(tokens, fwd_hooks=[(stream_hook(model, layer), keep)])
    before = hooks(model)
    with counted_forwards(model) as forwards:
        found = stream_into(model, layer, tokens=tokens)
    torch.testing.assert_close(found, whole[0], atol=0, rtol=0)
    assert forwards.prompts == pytest.approx(len(tokens) * layer / LAYERS)
    assert hooks(model) == before
