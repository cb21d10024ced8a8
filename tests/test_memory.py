"""One budget behind every batch, and what is done where memory runs out: by running out of it."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mnemo
from mnemo.errors import MnemoError
from mnemo.line import Line
from mnemo.memory import MEMORY_GB, NoMemoryError, checked_budget, fit, in_pieces, memory_budget
from mnemo.model import load
from mnemo.patching import ask, read_stream
from mnemo.shape import Shape
from mnemo.tracing import top_path
from tests.tiny_models import tiny_contrasts, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return load(tiny_model("llama"), tokenizer=tiny_tokenizer())


@contextmanager
def room_for(model, rows: int):
    """Let the first block run out of memory, by really asking for too much, when it is given more rows than that."""

    def check(module, args):
        if args[0].shape[0] > rows:
            torch.empty(2**60, dtype=torch.uint8)

    handle = model.bridge.blocks[0].register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@given(total=st.integers(0, 60), at_once=st.integers(1, 80), room=st.integers(1, 80), cuda=st.booleans())
def test_everything_is_done_once_however_little_room_there_is(total, at_once, room, cuda):
    tried: list[tuple[int, int]] = []

    def run(piece: slice) -> range:
        tried.append((piece.start, piece.stop))
        if piece.stop - piece.start > room:
            raise torch.OutOfMemoryError("CUDA out of memory") if cuda else MemoryError
        return range(piece.start, piece.stop)

    done = list(in_pieces(total, at_once, run=run))
    assert [i for _, found in done for i in found] == list(range(total))
    assert all(range(piece.start, piece.stop) == found for piece, found in done)
    failed = [stop - start for start, stop in tried if stop - start > room]
    assert failed == sorted(failed, reverse=True) and len(tried) == len(done) + len(failed)
    assert not failed or failed[-1] // 2 <= room  # and no piece is smaller than it must be
    assert all(piece.stop - piece.start in (total - piece.start, done[0][0].stop) for piece, _ in done)


def test_too_little_for_one_is_said_in_one_line_and_other_errors_come_through():
    def too_large(piece: slice) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(MnemoError, match=r"out of memory \(.*allocate.*\): give a smaller --memory-gb") as told:
        list(in_pieces(3, 2, run=too_large))
    assert "\n" not in str(told.value)

    def wrong(piece: slice) -> None:
        torch.dot(torch.ones(2), torch.ones(3))

    with pytest.raises(RuntimeError, match="size"):
        list(in_pieces(3, 2, run=wrong))


@pytest.mark.parametrize(
    ("attribute", "room"),
    [
        (mnemo.attribute_nodes, 2),
        (partial(mnemo.attribute_nodes, method="integrated_inputs", steps=2), 1),
        (partial(mnemo.attribute_edges, method="attention_corrected", steps=2), 3),
        (mnemo.exact_edges, 100),
    ],
)
def test_attribution_goes_on_where_memory_runs_out(model, attribute, room):
    pairs = tiny_contrasts(model)[:3]
    whole = attribute(model, pairs)
    with room_for(model, room):
        halved = attribute(model, pairs)
    for name in whole.data_vars:
        np.testing.assert_allclose(halved[name].values, whole[name].values, atol=2e-5, rtol=1e-4, err_msg=str(name))


def test_questions_and_states_are_the_same_where_memory_runs_out(model):
    prompts = [pair.clean for pair in tiny_contrasts(model)]
    tokens = torch.arange(len(prompts))[:, None]
    whole, states = ask(model, prompts, tokens=tokens), read_stream(model, prompts, positions=[-1, -2])
    with room_for(model, 1):
        torch.testing.assert_close(ask(model, prompts, tokens=tokens).logprob, whole.logprob, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(read_stream(model, prompts, positions=[-1, -2]), states, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_trace_is_the_same_within_any_budget(family):
    model = load(tiny_model(family, layers=3), tokenizer=tiny_tokenizer())
    pair = tiny_contrasts(model)[0]
    free, tight = (mnemo.trace(model, pair, top=10, memory_gb=gb) for gb in (2.0, 1e-9))
    np.testing.assert_allclose(tight.streams, free.streams, atol=1e-4)
    assert [path.text for path in tight.paths] == [path.text for path in free.paths]


@pytest.mark.parametrize("rows", [3, 1])  # nodes that fit at once; with one, not even both prompts do
def test_a_trace_goes_on_with_fewer_nodes_where_memory_runs_out(model, rows):
    pair = tiny_contrasts(model)[0]
    free, best = mnemo.trace(model, pair, top=10), top_path(model, pair)
    with room_for(model, rows):
        short, again = mnemo.trace(model, pair, top=10), top_path(model, pair)
        line = Line(model, pair, nodes=8)
        line.over_turns(lambda turn: line.attention(0, turn).z.sum())
    np.testing.assert_allclose(short.streams, free.streams, atol=1e-4)
    assert [path.text for path in short.paths] == [path.text for path in free.paths]
    assert (again.text, line.at_once) == (best.text, {3: 2, 1: 1}[rows])


def test_a_trace_gives_up_the_graphs_of_other_blocks_before_it_takes_fewer_nodes(model):
    line = Line(model, tiny_contrasts(model)[0], nodes=4)
    whole = [line.over_turns(lambda turn, layer=layer: line.attention(layer, turn).z.sum()) for layer in (0, 1)]

    def crowded(turn: slice) -> torch.Tensor:
        if len(line._kept) > 1:
            torch.empty(2**60, dtype=torch.uint8)
        return line.attention(1, turn).z.sum()

    torch.testing.assert_close(line.over_turns(crowded), whole[1])
    assert line.at_once == 4


def test_no_memory_for_a_trace_is_one_line(model):
    pair = tiny_contrasts(model)[0]
    with room_for(model, 0):
        for run in (lambda: mnemo.trace(model, pair), lambda: top_path(model, pair)):
            with pytest.raises(NoMemoryError, match=r"out of memory \(.*\): give a smaller --memory-gb"):
                run()
    with pytest.raises(NoMemoryError), memory_budget(None):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="size"), memory_budget(None):
        torch.dot(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize(("room", "sizes"), [(100, [8]), (8, [8]), (3.5, [3, 3, 2]), (1, [1] * 8), (0.1, [1] * 8)])
def test_nodes_are_taken_in_as_few_turns_as_the_budget_allows(model, room, sizes):
    pair = tiny_contrasts(model)[0]
    shape, length = Shape.of(model), len(pair.clean)
    each = shape.attention_bytes(length)
    with memory_budget((2 * room * each + shape.written_bytes(length)) / 1e9):
        line = Line(model, pair, nodes=8)
    turns: list[slice] = []

    def add_up(turn: slice) -> torch.Tensor:
        turns.append(turn)
        return line.weight[turn].sum()

    assert float(line.over_turns(add_up)) == pytest.approx(1)
    assert [turn.stop - turn.start for turn in turns] == sizes
    assert torch.cat([line.alpha[turn] for turn in turns]).equal(line.alpha)
    assert line.bytes == max(sizes) * each <= max(1, room) * each


def test_the_budget_holds_inside_alone_and_must_be_one():
    assert checked_budget(None) == MEMORY_GB
    with memory_budget(3.0):
        with memory_budget(None):
            assert fit(1e9) == 3
        with memory_budget(0.5):
            assert fit(1e9) == 1 and fit(1e8) == 5
        assert fit(1e9) == 3
    assert checked_budget(None) == MEMORY_GB
    for wrong in (0.0, -1.0, float("nan"), float("inf"), 1e300):
        with pytest.raises(MnemoError, match="give the gigabytes"), memory_budget(wrong):
            pass
