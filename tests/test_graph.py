"""Writers add up to the residual stream, and what lists of writers and readers say fits the model."""

from __future__ import annotations

import pytest
import torch

from mnemo.activations import constants, contributions, record, writer_hooks
from mnemo.graph import Reader, Writer, readers, readers_at, seen_by, stream_hook, writers
from mnemo.model import Model, load
from mnemo.patching import metric
from tests.tiny_models import FAMILIES, tiny_contrasts, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def model(request) -> Model:
    return load(tiny_model(request.param), tokenizer=tiny_tokenizer())


def test_embedding_heads_mlps_and_biases_add_up_to_the_final_residual(model):
    pairs = tiny_contrasts(model)[:2]
    tokens = torch.tensor([c.clean.tokens for c in pairs])
    last = stream_hook(model, model.n_layers)
    run = record(model, tokens, names=[*writer_hooks(model), last], contrasts=pairs, metric_fn=metric)[0]
    parts = contributions(model, run.values)
    assert parts.shape == (*tokens.shape, len(writers(model)), model.d_model)
    whole = run.values[last]
    torch.testing.assert_close(
        parts.sum(2) + constants(model, run), whole, atol=1e-4 * float(whole.abs().max()), rtol=0
    )


def test_a_part_of_the_writers_is_that_part_of_all(model):
    pairs = tiny_contrasts(model)[:2]
    tokens = torch.tensor([c.clean.tokens for c in pairs])
    run = record(model, tokens, names=writer_hooks(model), contrasts=pairs, metric_fn=metric)[0]
    whole = contributions(model, run.values)
    for some in (slice(0, 1), slice(0, 0), slice(2, 4), slice(model.n_heads, model.n_heads + 3), slice(3, None)):
        part = contributions(model, run.values, some=some, positions=slice(1, 4))
        torch.testing.assert_close(part, whole[:, 1:4, some])


def test_readers_stand_where_readers_at_says(model):
    found = readers(model)
    for layer in range(model.n_layers):
        for kind, count in (("q", model.n_heads), ("k", model.n_kv_heads), ("v", model.n_kv_heads), ("mlp", 1)):
            here = found[readers_at(model, layer, kind=kind)]
            assert len(here) == count and {(r.kind, r.layer) for r in here} == {(kind, layer)}
    assert found[-1] == Reader("logits")


def test_a_reader_sees_what_was_written_before_it(model):
    parts = writers(model)
    assert parts[: seen_by(model, "q", layer=0)] == (Writer("embed"),)
    assert parts[: seen_by(model, "logits")] == parts
    above = parts[: seen_by(model, "k", layer=1)]
    assert above[-1] == Writer("mlp", 0) and len(above) == model.n_heads + 2
    own_heads = {p for p in parts[: seen_by(model, "mlp", layer=1)] if p.layer == 1}
    parallel = model.bridge.cfg.architecture in ("GPTNeoXForCausalLM", "PhiForCausalLM")
    assert len(own_heads) == (0 if parallel else model.n_heads)
