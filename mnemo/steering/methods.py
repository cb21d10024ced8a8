"""Two ways to push a model towards something, used through transformers' own `generate`.

*Steering* adds dose * vector to the residual stream: one forward pass a token, as without it. *Guidance* adds
dose * (log p(positive) - log p(negative)) to the scores: what classifier-free guidance for language models (Sanchez et
al. 2023, equation 7) and contrastive decoding of one model with two prompts (Shi et al. 2023) have in common; where the
prompt is the pairs' negative one it is classifier-free guidance itself. Each pair costs two forward passes a token
more.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.graph import stream_hook
from mnemo.model import batch_inputs
from mnemo.prompts import Prompt
from mnemo.steering.pairs import PromptPair

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

    from mnemo.model import Model


@runtime_checkable
class Method(Protocol):
    """What pushes a model, by a dose: 0 leaves it as it is."""

    @property
    def model(self) -> Model: ...

    @property
    def forwards(self) -> int:
        """Forward passes for each sequence and generated token."""
        ...

    def at(self, dose: float, width: int) -> AbstractContextManager[LogitsProcessorList]:
        """Push within the block, and yield what is to be done to the scores.

        Args:
            dose: how much.
            width: tokens of the (padded) prompts that the block runs; what follows them is generated.
        """
        ...


@dataclass(frozen=True)
class Steering:
    """Add dose * `vector` to the residual stream after `layer` blocks.

    Attributes:
        model: the model.
        vector: what is added.
        layer: where, in blocks that have run.
        position: token of the prompt, counted from its end (negative).
        onwards: whether every later token gets it too, generated ones included.
    """

    model: Model
    vector: Float[Tensor, " d"]
    layer: int
    position: int = -1
    onwards: bool = False

    @property
    def forwards(self) -> int:
        """The model's own pass alone."""
        return 1

    @contextmanager
    def at(self, dose: float | Tensor, width: int) -> Generator[LogitsProcessorList]:
        """Push within the block (see `Method`)."""
        from transformers import LogitsProcessorList

        first = width + self.position
        if self.position >= 0 or first < 0:
            raise MnemoError(
                f"position {self.position} is no token of a prompt of {width}: count from its end, -1 last"
            )
        where = slice(first, None if self.onwards else first + 1)
        step = dose * self.vector

        def add(stream: Tensor, hook: Any) -> Tensor:
            later = stream.shape[1] == 1 and width > 1  # a cached step shows the newest token alone
            if later and not self.onwards:
                return stream
            stream = stream.clone()
            stream[:, slice(None) if later else where] += step.to(stream)
            return stream

        with self.model.bridge.hooks(fwd_hooks=[(stream_hook(self.model, self.layer), add)]):
            yield LogitsProcessorList()


@dataclass(frozen=True)
class Guidance:
    """Add dose * mean over `pairs` of (log p(. | positive) - log p(. | negative)) to the scores of the next token.

    Each pair's prompts are continued by what has been generated so far.
    """

    model: Model
    pairs: Sequence[PromptPair]

    @property
    def forwards(self) -> int:
        """The model's own pass, and two for each pair."""
        return 1 + 2 * len(self.pairs)

    @contextmanager
    def at(self, dose: float, width: int) -> Generator[LogitsProcessorList]:
        """Push within the block (see `Method`)."""
        from transformers import LogitsProcessor, LogitsProcessorList

        contrast = self.contrast

        class Push(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                return scores + dose * contrast(input_ids[:, width:]).to(scores)

        yield LogitsProcessorList([Push()])

    @torch.no_grad()
    def contrast(self, written: Int[Tensor, "row new"]) -> Float[Tensor, "row vocabulary"]:
        """Return what one unit of dose adds after each of some continuations (which may be empty), in nats."""
        rows = [tuple(row) for row in written.tolist()]
        place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
        prompts = [prompt.tokens for pair in self.pairs for prompt in (pair.positive, pair.negative)]
        said = self.model.forward([(*prompt, *row) for row in place for prompt in prompts])[:, -1]
        said = _at_least_single(said).log_softmax(-1).view(len(place), len(self.pairs), 2, -1)
        return (said[:, :, 0] - said[:, :, 1]).mean(1)[[place[row] for row in rows]]


@torch.no_grad()
def next_logprobs(method: Method, prompts: Sequence[Prompt], *, dose: float) -> Float[Tensor, "prompt vocabulary"]:
    """Return what a pushed model says after each prompt, as log-probabilities (nats)."""
    width = max(len(prompt) for prompt in prompts)
    ids, _ = batch_inputs([prompt.tokens for prompt in prompts], device=method.model.device)
    with method.at(dose, width) as processors:
        scores = _at_least_single(method.model.forward([prompt.tokens for prompt in prompts])[:, -1])
        return processors(ids, scores).log_softmax(-1).cpu()  # pyright: ignore[reportArgumentType]


def _at_least_single(logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch vocabulary"]:
    """Return logits in single precision, in double where they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Generated:
    """Sampled continuations.

    Attributes:
        tokens: what was written, an end token and what pads after it included.
        said: which of `tokens` count: those up to and with the first end token.
        divergence: KL(pushed || plain) of the next token at each place, nats.
        surprise: -log p of each token under the plain model after the same prompt, nats.
    """

    tokens: Int[Tensor, "row new"]
    said: Bool[Tensor, "row new"]
    divergence: Float[Tensor, "row new"]
    surprise: Float[Tensor, "row new"]


@torch.no_grad()
def generate(
    method: Method, prompts: Sequence[Prompt], *, dose: float, draws: int, new_tokens: int, seed: int
) -> Generated:
    """Sample continuations at temperature 1 through transformers' `generate`, and compare with the plain model.

    Args:
        method: what pushes.
        prompts: prompts of any lengths.
        dose: how much.
        draws: continuations of each prompt.
        new_tokens: length of each.
        seed: of the sampling.
    """
    model = method.model
    rows = [prompt.tokens for prompt in prompts for _ in range(draws)]
    end: Any = model.tokens.hf.eos_token_id
    pad = end if end is not None else 0
    ids, mask = batch_inputs(rows, pad=pad, device=model.device)
    width = ids.shape[1]
    model.require_room(width + new_tokens)
    hf: Any = model.bridge.original_model
    devices = [model.device] if model.device.type == "cuda" else []
    with method.at(dose, width) as processors, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        found = hf.generate(
            ids, attention_mask=mask, logits_processor=processors, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            max_new_tokens=new_tokens, pad_token_id=pad, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    pushed = _at_least_single(torch.stack(found.scores, 1)).log_softmax(-1)
    tokens = found.sequences[:, width:]
    whole = [(*row, *new) for row, new in zip(rows, tokens.tolist(), strict=True)]
    plain = _at_least_single(model.forward(whole)[:, -tokens.shape[1] - 1 : -1]).log_softmax(-1)
    ended = (tokens == end).cumsum(1) - (tokens == end).long() > 0 if end is not None else tokens < 0
    # 0 * (-inf - -inf) is no number, and a token that the pushed model never says adds nothing.
    gap = torch.where(pushed.exp() > 0, pushed.exp() * (pushed - plain), 0.0).sum(-1).clamp(min=0)
    surprise = -plain.gather(2, tokens[..., None])[..., 0]
    return Generated(tokens.cpu(), ~ended.cpu(), gap.cpu(), surprise.cpu())
