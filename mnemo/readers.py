"""How readers take their input from the residual stream: gradients carried back to it, and exact responses to a change.

A reader normalises the stream and projects it. `reader_gradients` carries gradients from behind the projection back to
the stream, where any writer's value can be weighed with them. `responses` goes forward: it computes exactly what a
change of one reader's input, at one position, does to that reader's own output (for q and k the whole row or column of
the attention pattern, as in AtP*: Kramar et al. 2024, section 3.1), and weighs that with gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mnemo.activations import Recording, contributions, require_close
from mnemo.blocks import mlp_output, mlp_stream_hook, normalise, normed_together, part_of
from mnemo.errors import MnemoError
from mnemo.graph import seen_by, stream_hook
from mnemo.partial_runs import run_from

if TYPE_CHECKING:
    from mnemo.model import Model


def reader_hooks(model: Model) -> list[str]:
    """Return the hooks behind the projections of all readers, at which gradients are taken."""
    names = [stream_hook(model, model.n_layers)]
    for layer in range(model.n_layers):
        names += [f"blocks.{layer}.attn.hook_{kind}" for kind in "qkv"] + [f"blocks.{layer}.mlp.hook_in"]
    return names


def output_hooks(model: Model) -> list[str]:
    """Return the hooks that hold what heads and MLPs put out."""
    return [
        name
        for layer in range(model.n_layers)
        for name in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out")
    ]


def input_hooks(model: Model) -> list[str]:
    """Return the hooks that hold the stream as readers see it, and what they make of it, to check it against."""
    names = [stream_hook(model, layer) for layer in range(model.n_layers + 1)]
    for layer in range(model.n_layers):
        names += [f"blocks.{layer}.attn.hook_q", f"blocks.{layer}.mlp.hook_in"]
        names.append(mlp_stream_hook(model, layer))
    return list(dict.fromkeys(names))


def attention_hooks(model: Model) -> list[str]:
    """Return the hooks that `responses` needs besides `input_hooks` and `output_hooks`."""
    kinds = ("k", "v", "pattern", "attn_scores")
    return [f"blocks.{layer}.attn.hook_{kind}" for layer in range(model.n_layers) for kind in kinds]


def seen(model: Model, run: Recording, *, kind: str, layer: int) -> Float[Tensor, "fact position d"]:
    """Return the residual stream that readers of a kind (``q``, ``k``, ``v``, ``mlp``) see before their norm."""
    return run.values[mlp_stream_hook(model, layer) if kind == "mlp" else stream_hook(model, layer)]


def project(model: Model, kind: str, *, layer: int, stream: Float[Tensor, "*row d"]) -> Float[Tensor, "*row head e"]:
    """Return what q, k or v of all heads of a layer are where the stream (before the norm) is this."""
    weight, bias = _projection(model, kind, layer)
    found = torch.einsum("...d,hde->...he", normalise(model, part_of(kind), layer=layer, stream=stream), weight)
    return found if bias is None else found + bias


def behind_reader(
    model: Model, kind: str, *, layer: int, stream: Float[Tensor, "row d"]
) -> tuple[str, Float[Tensor, "row ..."]]:
    """Return the hook behind the readers of a kind in a block, and what it holds where the stream they see is this.

    For q, k and v that is what every head reads, [row, head, e]; for an MLP [row, d].
    """
    if kind == "mlp":
        return f"blocks.{layer}.mlp.hook_in", normalise(model, kind, layer=layer, stream=stream)
    return f"blocks.{layer}.attn.hook_{kind}", project(model, kind, layer=layer, stream=stream)


def put(value: Tensor, *, shape: tuple[int, ...], spots: tuple[Tensor | slice | int, ...], new: Tensor) -> Tensor:
    """Put new values at some spots of a value seen in another shape."""
    patched = value.clone()
    patched.view(shape)[spots] = new.to(patched)
    return patched


def _projection(model: Model, kind: str, layer: int) -> tuple[Float[Tensor, "head d e"], Tensor | None]:
    attn = model.bridge.blocks[layer].attn
    bias = getattr(attn, f"b_{kind.upper()}", None)
    return getattr(attn, f"W_{kind.upper()}"), bias


@torch.no_grad()
def check_readers(model: Model, run: Recording) -> None:
    """Measure, on the last position of a run, that readers are what this module takes them for.

    Args:
        model: the model.
        run: a recording of `writer_hooks` and `input_hooks`.

    Raises:
        MnemoError: a query or an MLP's input is not what norm and projection make of the stream, or a block runs its
            parts in parallel and its configuration says otherwise, or the other way round.
    """
    for layer in range(model.n_layers):
        query = run.values[f"blocks.{layer}.attn.hook_q"][:, -1]
        found = project(model, "q", layer=layer, stream=seen(model, run, kind="q", layer=layer)[:, -1])
        require_close(
            model,
            found.reshape(query.shape),
            expected=query,
            what=f"queries of block {layer} recomputed from the stream",
        )
        found = normalise(model, "mlp", layer=layer, stream=seen(model, run, kind="mlp", layer=layer)[:, -1])
        read = run.values[f"blocks.{layer}.mlp.hook_in"]
        read = read.view(*run.tokens.shape, -1)[:, -1]
        require_close(model, found, expected=read, what=f"the MLP's input of block {layer} recomputed from the stream")
        stream, first, last = (
            seen(model, run, kind="q", layer=layer)[:, -1],
            seen_by(model, "q", layer=layer),
            slice(-1, None),
        )
        heads = contributions(model, run.values, some=slice(first, first + model.n_heads), positions=last)
        if torch.equal(stream + heads[:, 0].sum(1), stream):
            continue  # attention that writes nothing stands beside the MLP as well as before it
        parallel = torch.equal(seen(model, run, kind="mlp", layer=layer)[:, -1], stream)
        if parallel != bool(model.bridge.cfg.parallel_attn_mlp):
            raise MnemoError(
                f"{model.name}: block {layer} {'runs' if parallel else 'does not run'} attention and MLP in parallel, "
                "against what its configuration says: use attribute_nodes"
            )


def reader_gradients(
    model: Model, run: Recording, *, kind: str, layer: int = -1, positions: slice = slice(None)
) -> Float[Tensor, "fact position reader d"]:
    """Return the metric's gradient with respect to the stream as each reader of a kind alone sees it.

    Args:
        model: the model.
        run: a recording of `input_hooks` with gradients of `reader_hooks`.
        kind: ``attention`` (q, k and v one after the other, as in `mnemo.graph.readers`), ``mlp`` or ``logits``.
        layer: which block.
        positions: which positions.
    """
    if kind == "logits":
        return run.gradients[stream_hook(model, model.n_layers)][:, positions, None]
    if kind == "mlp":
        behind = run.gradients[f"blocks.{layer}.mlp.hook_in"].view(1, *run.tokens.shape, -1)[:, :, positions]
    else:
        weights = [_projection(model, letter, layer)[0] for letter in "qkv"]
        gradients = [run.gradients[f"blocks.{layer}.attn.hook_{letter}"][:, positions] for letter in "qkv"]
        gradients = [g.reshape(*g.shape[:2], len(w), -1) for g, w in zip(gradients, weights, strict=True)]
        behind = torch.einsum("bphe,hde->hbpd", torch.cat(gradients, 2), torch.cat(weights))
    return _through_norm(model, kind, layer, seen(model, run, kind=kind, layer=layer)[:, positions], behind).movedim(
        0, 2
    )


def _through_norm(
    model: Model,
    kind: str,
    layer: int,
    stream: Float[Tensor, "fact position d"],
    behind: Float[Tensor, "reader fact position d"],
) -> Float[Tensor, "reader fact position d"]:
    """Carry gradients back through a norm, those of all readers behind it at once."""
    with torch.enable_grad():
        stream = stream.detach().requires_grad_(True)
        found = normalise(model, part_of(kind), layer=layer, stream=stream)
        return torch.autograd.grad(found, stream, behind, is_grads_batched=True)[0]


# ---- exact responses


@torch.no_grad()
def responses(
    model: Model,
    base: Recording,
    *,
    kind: str,
    layer: int,
    change: Float[Tensor, "fact position writer d"],
    gradients: dict[str, Float[Tensor, "context fact position ..."]],
) -> Float[Tensor, "context fact writer reader position"]:
    """Return what a change of each reader's input at each position does to the metric, its own response exact.

    Args:
        model: the model.
        base: the run that is changed.
        kind: ``q``, ``k``, ``v`` or ``mlp``.
        layer: which block.
        change: what is added to the stream as the reader sees it, one writer at a time.
        gradients: of the metric by what heads (``hook_z``) and MLPs (``hook_mlp_out``) put out, from several runs.
    """
    stream = seen(model, base, kind=kind, layer=layer)[:, :, None] + change
    if kind == "mlp":
        name = f"blocks.{layer}.hook_mlp_out"
        moved = mlp_output(model, layer, stream=stream) - base.values[name][:, :, None]
        return torch.einsum("bpwd,kbpd->kbwp", moved, gradients[name])[:, :, :, None]
    gradient = _by_head(model, gradients[f"blocks.{layer}.attn.hook_z"], 3)
    moved = project(model, kind, layer=layer, stream=stream)  # fact position writer head e
    if kind == "v":
        return _value_response(model, base, layer, moved, gradient)
    if kind == "q":
        return _query_response(model, base, layer, moved, gradient)
    return _key_response(model, base, layer, moved, gradient)


def _by_head(model: Model, values: Float[Tensor, "*row position ..."], leading: int) -> Tensor:
    """Give values of heads an axis for heads where they lie side by side, after `leading` other axes."""
    return values.reshape(*values.shape[:leading], model.n_heads, -1)


def _shared(model: Model, values: Float[Tensor, "*row head e"]) -> Tensor:
    """Give each query head the key or value head that it uses."""
    return values.repeat_interleave(model.n_heads // values.shape[-2], dim=-2)


def _value_response(model: Model, base: Recording, layer: int, moved: Tensor, gradient: Tensor) -> Tensor:
    """A value goes where the pattern carries it: linear."""
    pattern = base.values[f"blocks.{layer}.attn.hook_pattern"]
    value = base.values[f"blocks.{layer}.attn.hook_v"].view(*moved.shape[:2], *moved.shape[3:])
    carried = torch.einsum("bhqs,kbqhe->kbshe", pattern.to(gradient), gradient)
    carried = carried.unflatten(3, (model.n_kv_heads, -1)).sum(4)
    return torch.einsum("bswhe,kbshe->kbwhs", moved - value[:, :, None], carried)


def _query_response(model: Model, base: Recording, layer: int, moved: Tensor, gradient: Tensor) -> Tensor:
    """Queries of one position touch that position alone, so those of all positions and heads are changed at once."""
    name = f"blocks.{layer}.attn.hook_z"
    before = _by_head(model, base.values[name], 2)[:, None]

    def effect(queries: Tensor) -> Tensor:
        z = _attend(model, base, layer, f"blocks.{layer}.attn.hook_q", queries, name)
        change = _by_head(model, z, 2).unflatten(0, (len(base.tokens), -1)) - before
        return torch.einsum("bwphe,kbphe->kbwhp", change, gradient)

    if normed_together(model, layer, kind="q"):
        return _one_head_at_a_time(base, layer, "q", moved, effect)
    return effect(moved)


def _key_response(model: Model, base: Recording, layer: int, moved: Tensor, gradient: Tensor) -> Tensor:
    """One key changes its column of scores. With all keys changed at once each column is as if it alone were."""
    name = f"blocks.{layer}.attn.hook_attn_scores"
    scores = _scores(model, base, layer, base.values[name]).float()
    value = _shared(model, base.values[f"blocks.{layer}.attn.hook_v"].view(*moved.shape[:2], *moved.shape[3:]))
    worth = torch.einsum("kbqhe,bshe->kbhqs", gradient, value).float()  # of attending to s at q
    length = scores.shape[-1]
    rest, gain = torch.empty_like(scores), torch.empty_like(worth)
    for s in range(length):  # what the other tokens have without s: stable where s has all of the attention
        others = scores.index_fill(-1, torch.tensor([s], device=scores.device), -torch.inf)
        rest[..., s] = others.logsumexp(-1)
        shares = (others - rest[..., s, None]).exp().nan_to_num(0.0)
        gain[..., s] = worth[..., s] - torch.einsum("bhqs,kbhqs->kbhq", shares, worth)
    visible = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril() & torch.isfinite(scores)
    before = (scores - rest).sigmoid()[:, None]

    def effect(keys: Tensor) -> Tensor:
        shown = _attend(model, base, layer, f"blocks.{layer}.attn.hook_k", keys, name)
        changed = _scores(model, base, layer, shown, keys=keys).float().unflatten(0, (len(base.tokens), -1))
        shift = torch.where(visible[:, None], (changed - rest[:, None]).sigmoid() - before, 0.0).nan_to_num(0.0)
        return torch.einsum("bwhqs,kbhqs->kbwhs", shift, gain)

    if normed_together(model, layer, kind="k"):
        return _one_head_at_a_time(base, layer, "k", moved, effect)
    return effect(moved).unflatten(3, (model.n_kv_heads, -1)).sum(4)


def _one_head_at_a_time(
    base: Recording,
    layer: int,
    kind: str,
    moved: Float[Tensor, "fact position writer head e"],
    effect: Callable[[Tensor], Float[Tensor, "context fact writer query_head position"]],
) -> Float[Tensor, "context fact writer head position"]:
    """Change each head's queries or keys alone and count what that does at all heads, where one norm joins them."""
    own = base.values[f"blocks.{layer}.attn.hook_{kind}"].view(*moved.shape[:2], 1, *moved.shape[3:])
    found = []
    for head in range(moved.shape[3]):
        alone = own.expand_as(moved).clone()
        alone[..., head, :] = moved[..., head, :]
        found.append(effect(alone).sum(3))
    return torch.stack(found, 3)


def _attend(model: Model, base: Recording, layer: int, hook: str, moved: Tensor, wanted: str) -> Tensor:
    """Run the attention of a block with other queries or keys, a run for each fact and writer; returns one value."""
    rows = moved.transpose(1, 2).flatten(0, 1)  # fact and writer, position, head, e
    stream = base.values[stream_hook(model, layer)]
    copies = rows.shape[0] // len(stream)
    values, _ = run_from(
        model,
        layer,
        stream=stream.repeat_interleave(copies, 0),
        tokens=base.tokens.repeat_interleave(copies, 0),
        changes={hook: lambda value: rows.reshape(value.shape).to(value)},
        keep=[wanted],
    )
    return values[wanted]


def _scores(model: Model, base: Recording, layer: int, shown: Tensor, *, keys: Tensor | None = None) -> Tensor:
    """Return attention scores before the softmax: as transformer-lens shows them, else queries times keys.

    For models without a seam between the two (OPT) transformer-lens shows the pattern under the scores' name.

    Raises:
        MnemoError: neither gives the pattern that the model has.
    """
    pattern = base.values[f"blocks.{layer}.attn.hook_pattern"].float()
    named = base.values[f"blocks.{layer}.attn.hook_attn_scores"].float()
    if _same(named.softmax(-1), pattern):
        return shown
    attn = model.bridge.blocks[layer].attn
    query = base.values[f"blocks.{layer}.attn.hook_q"]
    scale = getattr(attn.original_component, "scaling", query.shape[-1] ** -0.5)

    def dot(key: Tensor) -> Tensor:
        found = torch.einsum("bqhe,b...she->b...hqs", query * scale, _shared(model, key)).float()
        return found.masked_fill(torch.ones(found.shape[-2:], device=found.device).triu(1).bool(), -torch.inf)

    own = base.values[f"blocks.{layer}.attn.hook_k"].view(*query.shape[:2], model.n_kv_heads, -1)
    if not _same(dot(own).softmax(-1), pattern):
        raise MnemoError(
            f"{model.name}: transformer-lens shows no attention scores of {model.bridge.cfg.architecture}: "
            "use method='gradient' or one of the integrated ones"
        )
    return dot(own) if keys is None else dot(keys.transpose(1, 2)).flatten(0, 1)


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < 1e-3)
