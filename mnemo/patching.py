"""Run a model on many prompts, read its residual stream, and put other values in its place.

Positions are counted from the end of the prompt (-1 is the last token). Prompts of one template share what follows
the cue, so that the cue's last token has the same position in all of them, however many tokens a cue takes.

Layers of the residual stream are counted by the blocks that have run: 0 is the embedding, `n_layers` is what the
final norm reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.graph import Component, components, empty_scores, stream_hook
from mnemo.memory import Found, fit, in_pieces
from mnemo.partial_runs import LAST_ALONE, Change, Hook, logits_of
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.contrasts import Contrast
    from mnemo.model import Model
    from mnemo.prompts import Prompt

TOKENS_PER_BATCH = 16_384  # more at once are no faster


@dataclass(frozen=True, order=True)
class Site:
    """A place in the residual stream: after `layer` blocks, at `position` counted from the end (negative)."""

    layer: int
    position: int


@dataclass(frozen=True)
class Patch:
    """States to put at a site, one for each prompt of a run."""

    site: Site
    states: Float[Tensor, "prompt d"]

    def of(self, rows: Int[Tensor, " row"]) -> tuple[int, Change]:
        """Return after how many blocks the stream of some of the prompts is changed, and the change."""

        def put(stream: Tensor) -> Tensor:
            stream[:, self.site.position] = self.states[rows].to(stream)
            return stream

        return self.site.layer, put


@dataclass(frozen=True)
class Answers:
    """What the model says next: its first choice, and the log-probability (nats) of the tokens asked for."""

    top: Int[Tensor, " prompt"]
    logprob: Float[Tensor, "prompt asked"]


def next_logprobs(
    model: Model, prompts: Sequence[Prompt], *, patch: Patch | None = None
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row vocabulary"]]]:
    """Yield what the model says after each prompt, batch by batch: rows of `prompts`, log-probabilities (nats).

    Args:
        model: the model.
        prompts: prompts of any lengths.
        patch: states to put into the residual stream, one for each prompt.
    """

    def say(rows: Tensor, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            logits = logits_of(model, tokens, change=None if patch is None else patch.of(rows))
        return logits[:, -1].float().log_softmax(-1).cpu()

    yield from over_batches(model, prompts, run=say)


def ask(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    tokens: Int[Tensor, "prompt asked"],
    patch: Patch | None = None,
) -> Answers:
    """Return the next token that the model prefers after each prompt, and the log-probability of some tokens.

    Args:
        model: the model.
        prompts: prompts of any lengths.
        tokens: ids whose log-probability is wanted, a row for each prompt.
        patch: states to put into the residual stream, one for each prompt.
    """
    top = torch.empty(len(prompts), dtype=torch.long)
    logprob = torch.empty(tokens.shape)
    for rows, said in next_logprobs(model, prompts, patch=patch):
        top[rows] = said.argmax(-1)
        logprob[rows] = said.gather(1, tokens[rows])
    return Answers(top, logprob)


@torch.no_grad()
def read_stream(
    model: Model, prompts: Sequence[Prompt], *, positions: Sequence[int]
) -> Float[Tensor, "prompt layer position d"]:
    """Return the residual stream of each prompt after 0, 1, ..., n_layers blocks at some positions."""
    wanted = torch.tensor(positions)
    found = torch.empty(len(prompts), model.n_layers + 1, len(positions), model.d_model)

    def read(rows: Tensor, tokens: Tensor) -> None:
        def keep(value: Tensor, hook: Any, *, layer: int) -> None:
            found[rows, layer] = value[:, wanted.to(value.device)].float().cpu()

        layers = range(model.n_layers + 1)
        hooks: list[Hook] = [(stream_hook(model, layer), partial(keep, layer=layer)) for layer in layers]
        model.bridge.run_with_hooks(tokens, fwd_hooks=[*hooks, LAST_ALONE])

    for _ in over_batches(model, prompts, run=read):
        pass
    return found


def read_stream_at_span(model: Model, prompts: Sequence[Prompt], *, layer: int) -> Float[Tensor, "prompt d"]:
    """Return each prompt's state after `layer` blocks at the last token of its cue or concept."""
    return read_stream_at(model, prompts, positions=[prompt.last - len(prompt) for prompt in prompts], layer=layer)


def read_stream_at(
    model: Model, prompts: Sequence[Prompt], *, positions: Sequence[int], layer: int
) -> Float[Tensor, "prompt d"]:
    """Return each prompt's state after `layer` blocks at a position of its own, counted from its end."""
    found = torch.empty(len(prompts), model.d_model)
    by_end: dict[int, list[int]] = {}
    for i, position in enumerate(positions):
        by_end.setdefault(position, []).append(i)
    for position, rows in by_end.items():
        found[rows] = read_stream(model, [prompts[i] for i in rows], positions=[position])[:, layer, 0]
    return found


def by_length(prompts: Sequence[Sized]) -> dict[int, list[int]]:
    """Return the rows of the prompts (or phrases) of each length, in the order in which lengths appear."""
    found: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        found.setdefault(len(prompt), []).append(i)
    return found


def over_batches(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    run: Callable[[Int[Tensor, " row"], Int[Tensor, "row token"]], Found],
    bytes_each: Callable[[int], int] | None = None,
) -> Iterator[tuple[Int[Tensor, " row"], Found]]:
    """Run prompts in batches of one length (no padding, so results are exact for every family).

    As many are run at once as the budget holds (see `mnemo.memory`), half as many from where memory runs out.

    Args:
        model: the model.
        prompts: prompts of any lengths.
        run: given the rows of the batch in `prompts` and their tokens on the model's device. It must not mind being
            begun again with fewer.
        bytes_each: what it holds for one prompt of a length; None for a run without gradients that makes logits of
            the last position alone.

    Yields:
        the rows, and what `run` returned.

    Raises:
        MnemoError: a prompt has more tokens than the model reads.
    """
    size = bytes_each or Shape.of(model).forward_bytes
    for length, rows in by_length(prompts).items():
        model.require_room(length)

        def batch(piece: slice, rows: list[int] = rows) -> tuple[Tensor, Found]:
            tokens = torch.tensor([prompts[i].tokens for i in rows[piece]], device=model.device)
            chosen = torch.tensor(rows[piece])
            return chosen, run(chosen, tokens)

        at_once = max(1, min(TOKENS_PER_BATCH // length, fit(size(length))))
        for _, found in in_pieces(len(rows), at_once, run=batch):
            yield found


def metric(logits: Float[Tensor, "fact position vocabulary"], contrasts: Sequence[Contrast]) -> Float[Tensor, " fact"]:
    """Return logit(answer) - logit(contrast answer) at the last position of each prompt."""
    last = logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))
    answer = torch.tensor([c.answer.id for c in contrasts], device=last.device)
    other = torch.tensor([c.contrast_answer.id for c in contrasts], device=last.device)
    return (last.gather(1, answer[:, None]) - last.gather(1, other[:, None]))[:, 0]


def require_comparable(contrast: Contrast) -> None:
    """Refuse a contrast whose prompts differ in length or do not differ at all.

    Raises:
        MnemoError: which of the two.
    """
    name, clean, corrupt = contrast.fact.fact_id, contrast.clean.tokens, contrast.corrupt.tokens
    if len(clean) != len(corrupt):
        raise MnemoError(
            f"{name}: the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}, but values are "
            "compared position by position: pair it with a cue of as many tokens (make_contrasts does)"
        )
    if clean == corrupt:
        raise MnemoError(f"{name}: clean and corrupt prompt are the same: pair it with a fact of another cue")


def require_contrasts(model: Model, contrasts: Sequence[Contrast]) -> None:
    """Refuse what cannot be compared.

    Raises:
        MnemoError: no contrasts; prompts of a contrast that differ in length or are the same; answers that are; a model
            in training mode (dropout makes two runs differ) or with quantised weights.
    """
    if not contrasts:
        raise MnemoError("no contrasts given: attribution compares a clean with a corrupt prompt for each fact")
    for contrast in contrasts:
        require_comparable(contrast)
        if contrast.answer.id == contrast.contrast_answer.id:
            name = contrast.fact.fact_id
            raise MnemoError(f"{name}: answer and contrast answer are the same token: pair it with another answer")
    if any(module.training for module in model.bridge.modules()):
        raise MnemoError(
            f"{model.name} is in training mode, so dropout may differ between runs: call model.bridge.eval()"
        )
    if not all(p.is_floating_point() for p in model.bridge.parameters()):
        raise MnemoError(f"{model.name} has quantised weights, which have no gradients: load the full model")


def exact_nodes(model: Model, contrasts: Sequence[Contrast]) -> xr.Dataset:
    """Activation patching, one run for each node and position: the ground truth for `attribute_nodes`.

    Each value is metric(clean) - metric(clean with this node at this position set to its corrupt value), in
    logits: positive where the node's clean value supports the answer. The variables are those of
    `attribute_nodes`; prompts of different lengths are welcome.

    Raises:
        MnemoError: contrasts or a model that `require_contrasts` refuses.
    """
    require_contrasts(model, contrasts)
    scores = empty_scores(model, contrasts)

    @torch.no_grad()
    def patch_all(rows: Tensor, tokens: Tensor) -> None:
        chosen = [contrasts[i] for i in rows.tolist()]
        corrupt_tokens = torch.tensor([c.corrupt.tokens for c in chosen], device=model.device)
        before = metric(model.bridge.run_with_hooks(tokens, fwd_hooks=[LAST_ALONE]), chosen)
        for part in components(model):
            corrupt = part.split(_value(model, corrupt_tokens, part), model.n_heads)
            heads = range(model.n_heads) if part.kind == "heads" else (None,)
            for position, head in itertools.product(range(-tokens.shape[1], 0), heads):
                spot = (slice(None), position) if head is None else (slice(None), position, head)
                put = partial(_put_at, part=part, n_heads=model.n_heads, spot=spot, new=corrupt[spot])
                after = metric(model.bridge.run_with_hooks(tokens, fwd_hooks=[(part.hook, put), LAST_ALONE]), chosen)
                labels = part.at(position=position, head=head)
                labels["fact"] = scores.fact.values[rows.numpy()]
                scores[part.kind].loc[labels] = (before - after).cpu().numpy()

    for _ in over_batches(model, [c.clean for c in contrasts], run=patch_all):
        pass
    return scores


def _put_at(value: Tensor, hook: Any, *, part: Component, n_heads: int, spot: tuple[Any, ...], new: Tensor) -> Tensor:
    patched = value.clone()
    part.split(patched, n_heads)[spot] = new  # the split value is a view
    return patched


def _value(model: Model, tokens: Int[Tensor, "row token"], part: Component) -> Tensor:
    kept: list[Tensor] = []
    model.bridge.run_with_hooks(tokens, fwd_hooks=[(part.hook, lambda value, hook: kept.append(value)), LAST_ALONE])
    return kept[0]
