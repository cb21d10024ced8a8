"""What a method costs and brings, dose by dose, and how two methods compare at one distance from the plain model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.errors import MnemoError
from mnemo.prompts import Prompt
from mnemo.steering.methods import Method, generate

if TYPE_CHECKING:
    from mnemo.model import Model

COLLAPSE = 0.5  # of the surprise of uniformly random tokens, log(vocabulary)


def sweep(
    method: Method,
    prompts: Sequence[Prompt],
    *,
    doses: Sequence[float],
    hit: Callable[[str], bool],
    references: Sequence[Prompt],
    draws: int = 4,
    new_tokens: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Generate under each dose and measure what comes out.

    Columns, a row for each dose:
        dose: as given.
        divergence: KL(pushed || plain), nats per token, mean over what was generated.
        hits: share of continuations that `hit` accepts: the concept score.
        perplexity: of what was generated, under the plain model after the same prompt. It rises with the divergence
            even where the text is good, since the plain model would have said something else there.
        fluency: surprise of each text under the plain model after whichever of `references` it follows best, nats per
            token: is this a text that the model would write at all?
        distinct_1, distinct_2: different words and pairs of words over all of them (Li et al. 2016, section 5).
        forwards: forward passes for each sequence and token.

    Args:
        method: what pushes.
        prompts: what is continued.
        doses: how much, in any order.
        hit: whether a continuation (its text, special tokens left out) says what was wanted.
        references: prompts after which a text may be natural.
        draws: continuations of each prompt.
        new_tokens: length of each.
        seed: of the sampling, the same for every dose.
        progress: show a progress bar.
    """
    rows, surprise = [], _Fluency(method.model, references)
    for dose in tqdm(doses, desc="doses", disable=not progress, leave=False):
        found = generate(method, prompts, dose=dose, draws=draws, new_tokens=new_tokens, seed=seed)
        written = [tuple(row[said].tolist()) for row, said in zip(found.tokens, found.said, strict=True)]
        texts = [method.model.tokens.decode(row) for row in written]
        rows.append(
            {
                "dose": dose,
                "divergence": found.divergence[found.said].mean().item(),
                "hits": float(np.mean([hit(text) for text in texts])),
                "perplexity": math.exp(found.surprise[found.said].mean().item()),
                "fluency": surprise(written).mean().item(),
                "distinct_1": _distinct(texts, 1),
                "distinct_2": _distinct(texts, 2),
                "forwards": method.forwards,
            }
        )
    return pd.DataFrame(rows)


def at_divergence(curve: pd.DataFrame, targets: Sequence[float]) -> pd.DataFrame:
    """Read a sweep where its divergence first reaches each target, linearly between the doses on either side.

    Args:
        curve: as `sweep` gives it, with a dose of 0.
        targets: nats per token.

    Returns:
        the columns of `curve`, a row for each target, NaN where no dose gets so far or the first is there already.

    Raises:
        MnemoError: the curve is empty or has doses of both signs, which have no single order.
    """
    if curve.empty or (curve["dose"].min() < 0 < curve["dose"].max()):
        raise MnemoError("matching needs a sweep over doses of one sign: split it at 0")
    curve = curve.iloc[curve["dose"].abs().argsort(kind="stable")]
    divergence = curve["divergence"].to_numpy(float)
    columns = [column for column in curve if column != "divergence" and pd.api.types.is_numeric_dtype(curve[column])]
    rows = []
    for target in targets:
        reached = np.flatnonzero(divergence >= target)
        row = {"divergence": target, **dict.fromkeys(columns, math.nan)}
        if len(reached) and reached[0] > 0:
            sides = [reached[0] - 1, reached[0]]
            row |= {c: float(np.interp(target, divergence[sides], curve[c].to_numpy(float)[sides])) for c in columns}
        rows.append(row)
    return pd.DataFrame(rows)


def collapse(curve: pd.DataFrame, vocabulary: int) -> float:
    """Return the smallest dose (in size) whose texts are less fluent than COLLAPSE * log(vocabulary); NaN for none."""
    broken = curve[curve["fluency"] > COLLAPSE * math.log(vocabulary)]
    return float(broken["dose"].abs().min())


def _distinct(texts: Sequence[str], n: int) -> float:
    runs = [tuple(words[i : i + n]) for text in texts for words in [text.split()] for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else math.nan


class _Fluency:
    """Surprise of texts after the reference that each follows best, nats per token; each text is scored once."""

    def __init__(self, model: Model, references: Sequence[Prompt]) -> None:
        self.model, self.references = model, references
        self.known: dict[tuple[int, ...], float] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[tuple[int, ...]]) -> Float[Tensor, " text"]:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for length in {len(text) for text in new}:
            some = [text for text in new if len(text) == length]
            logits = self.model.forward([(*prompt.tokens, *text) for text in some for prompt in self.references])
            said = logits[:, -length - 1 : -1].float().log_softmax(-1).view(len(some), len(self.references), length, -1)
            written = torch.tensor(some, device=said.device)[:, None, :, None].expand(-1, len(self.references), -1, -1)
            best = said.gather(3, written)[..., 0].mean(-1).amax(1)
            self.known |= dict(zip(some, (-best).tolist(), strict=True))
        return torch.tensor([self.known[text] for text in texts])
