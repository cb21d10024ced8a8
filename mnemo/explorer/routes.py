"""What another value of a component does along an edge or a path, and along nothing else.

The component's change travels from reader to reader: each is run on its own clean input plus that change, all others
stay as they are (path patching: Goldowsky-Dill et al. 2023). `mnemo.edge_patching` measures the same for many facts
at once; here a single prompt, any number of slots of a head together, and the result is a change to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mnemo.activations import Recording, differences, record, writer_hooks
from mnemo.explorer.places import Chain, Change, Place, slots_between
from mnemo.graph import stream_hook
from mnemo.partial_runs import run_from
from mnemo.patching import metric
from mnemo.readers import behind_reader, check_readers, input_hooks, put, seen

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model
    from mnemo.prompts import Prompt


def clean_run(model: Model, contrast: Contrast) -> Recording:
    """Run the clean prompt of a contrast and keep what `along` starts from.

    Raises:
        MnemoError: a model whose readers are not what mnemo takes them for.
    """
    base = _recorded(model, contrast, [contrast.clean], [*writer_hooks(model), *input_hooks(model)])
    check_readers(model, base)
    return base


def along(model: Model, contrast: Contrast, *, base: Recording, chain: Chain, others: Sequence[Prompt]) -> Change:
    """Return what comes out at the end of a chain when its first component is as it is, on average, in other prompts.

    Args:
        model: the model.
        contrast: whose clean prompt is changed.
        base: what `clean_run` kept of it.
        chain: two components or more, or one and the logits.
        others: prompts of as many tokens.
    """
    run = _recorded(model, contrast, others, writer_hooks(model))
    step = _change(model, base, run, chain.first)
    for sender, reader in pairwise((chain.first, *chain.rest)):
        run = _read(model, base, sender, reader, step)
        step = _change(model, base, run, reader)
    if chain.to_logits:
        return Change(stream_hook(model, model.n_layers), -1, None, step.float().cpu(), add=True)
    last = chain.rest[-1]
    out = (_own(model, run, last) - _own(model, base, last)).float().cpu()
    return Change(last.component.hook, last.position, last.heads, out, add=True)


def _recorded(model: Model, contrast: Contrast, prompts: Sequence[Prompt], names: Sequence[str]) -> Recording:
    tokens = torch.tensor([prompt.tokens for prompt in prompts], device=model.device)
    return record(model, tokens, names=names, contrasts=[contrast] * len(prompts), metric_fn=metric)[0]


def _change(model: Model, base: Recording, other: Recording, place: Place) -> Float[Tensor, " d"]:
    """By how much what a component writes to the stream differs, on average over the other run's prompts."""
    length = base.tokens.shape[1]
    where = slice(length + place.position, length + place.position + 1)
    some = place.writers(model.n_heads)
    return differences(model, base, other=other, some=some, positions=where).sum(2)[:, 0].mean(0)


def _read(model: Model, base: Recording, sender: Place, reader: Place, step: Float[Tensor, " d"]) -> Recording:
    """Run a reader's block with its input from one sender changed; only that reader's own output means anything."""
    layer = reader.component.layer
    changes = {}
    for kind in slots_between(sender, reader):
        stream = seen(model, base, kind=kind, layer=layer)[:, sender.position] + step
        # For heads of all of them, since only one is looked at.
        name, new = behind_reader(model, kind, layer=layer, stream=stream)
        shape, spots = (*base.tokens.shape, *new.shape[1:]), (slice(None), sender.position)
        changes[name] = partial(put, shape=shape, spots=spots, new=new)
    keep = [f"blocks.{layer}.hook_mlp_out"]
    if reader.component.kind == "heads":
        keep = [name for name in writer_hooks(model) if name.startswith(f"blocks.{layer}.") and "mlp" not in name]
    values, _ = run_from(
        model, layer, stream=base.values[stream_hook(model, layer)], tokens=base.tokens, changes=changes, keep=keep
    )
    return Recording(base.tokens, {**base.values, **values}, base.logits, base.metric)


def _own(model: Model, run: Recording, place: Place) -> Tensor:
    """What a component puts out at its own hook: [d], or [head, d_head]."""
    value = place.component.split(run.values[place.component.hook], model.n_heads)[0, place.position]
    return value if place.heads is None else value[place.heads]
