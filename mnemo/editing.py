"""Is the second hop of a fact the one that its concept's own prompt uses? Edit the concept and see who follows.

The concepts' answers are changed by training on their own prompts alone, and only the MLPs above the waypoint, where
models keep such facts (Geva et al. 2021, "Transformer feed-forward layers are key-value memories"; Meng et al. 2022,
"Locating and editing factual associations in GPT", section 3). A fact recalled through the concept and its own second
hop then gives the edited answer, though its cue was never shown; a fact with a second hop of its own does not.

Half of the concepts is edited at once, then the other half, and that several times over, with halves and new answers
drawn anew: `mnemo.edit_evidence` says what follows from what facts answer then.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptTable
from mnemo.edit_evidence import Edits
from mnemo.errors import MnemoError
from mnemo.partial_runs import logits_of
from mnemo.patching import next_logprobs, over_batches
from mnemo.records import Parts
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.prompts import Prompt


@dataclass(frozen=True)
class EditConfig:
    """How the MLPs above the waypoint are taught new answers.

    Attributes:
        rounds: how many times concepts are taught new answers, drawn anew each time.
        steps: Adam steps at the most.
        learning_rates: of Adam, tried in this order until the edit is learned: larger steps move facts that have
            nothing to do with it. Those at which neither half of the concepts comes near to learning it are not tried
            in later rounds; the last one always is.
        stop_below: mean loss (nats) at which training ends.
        learned: share of the edited concepts that must give their new answer, else the next rate is tried.
        spared: share of the facts that must keep their answers or follow a concept that had them, else the edit says
            nothing of any fact: what moves all of them does not test the second hop of one.
    """

    rounds: int = 8
    steps: int = 400
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    stop_below: float = 0.01
    learned: float = 0.9
    spared: float = 0.9


def edit_test(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    answers: Int[Tensor, " fact"],
    table: ConceptTable,
    layer: int,
    seed: int,
    keep: Sequence[Prompt] = (),
    config: EditConfig = EditConfig(),
    parts: Parts | None = None,
    progress: bool = True,
) -> Edits:
    """Give concepts new answers, half of them at a time, and ask the facts again.

    Args:
        model: the model; its weights are as before afterwards, also after an error.
        prompts: the facts' recall prompts.
        answers: the facts' answer tokens.
        table: the concepts, with their prompts and answers.
        layer: MLPs of the blocks above this many are trained.
        seed: draws the halves and the new answers.
        keep: further prompts whose present answers are to be kept, such as other questions about the concepts.
        config: how to train, and how often.
        parts: keeps each round when it is finished; None for no such thing.
        progress: show a progress bar.

    Raises:
        MnemoError: fewer than two concepts or answers to exchange, no block above the waypoint, or a model in float16,
            whose gradients vanish in training.
    """
    if model.dtype == torch.float16:
        raise MnemoError("the edit test trains, which float16 is too coarse for: load the model in float32 or bfloat16")
    if len(table) < 2 or len(table.answers.unique()) < 2:
        raise MnemoError(
            f"the edit test exchanges answers of concepts, but there are {len(table)} concepts with "
            f"{len(table.answers.unique())} different answers: give a task with at least two of each"
        )
    trained = _mlp_parameters(model, above=layer)
    kept = _top(model, keep)
    rates, rounds = config.learning_rates, []
    for i in tqdm(range(config.rounds), desc="editing", disable=not progress, leave=False):
        make = partial(
            _edit_halves, model, prompts, table=table, trained=trained, keep=keep, kept=kept,
            draw=np.random.default_rng([seed, i]), rates=rates, config=config,
        )  # fmt: skip
        rounds.append(parts.get(f"edit-{i:05d}", make) if parts else make())
        rates = rates[rounds[-1]["useless"].min() :]
    done = pd.concat(rounds)
    new, edited, taken, said = (torch.from_numpy(np.stack(list(done[c]))) for c in ("new", "edited", "taken", "said"))
    return Edits(answers, table.answers, new, edited, taken, said, config.spared)


def _edit_halves(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    table: ConceptTable,
    trained: Sequence[nn.Parameter],
    keep: Sequence[Prompt],
    kept: Int[Tensor, " kept"],
    draw: np.random.Generator,
    rates: Sequence[float],
    config: EditConfig,
) -> pd.DataFrame:
    """Teach one half of the concepts new answers and then the other.

    Returns:
        a row for each, with fields of `Edits` and how many of the rates are useless to it.
    """
    order = draw.permutation(len(table))
    new = torch.from_numpy(_other_answers(table.answers.numpy(), draw))
    # Prompts of concepts may spell an answer in another way than recall prompts do.
    asked = dict(zip(table.answers.tolist(), table.said.tolist(), strict=True))
    taught = torch.tensor([asked[answer] for answer in new.tolist()])
    first = torch.zeros(len(table), dtype=torch.bool)
    first[order[: len(order) // 2]] = True
    rows = []
    for half in (first, ~first):
        targets = torch.cat([torch.where(half, taught, table.said), kept])
        taken, said, useless = torch.zeros_like(half), torch.full((len(prompts),), -1), 0
        for k, rate in enumerate(rates):
            with _edited(trained):
                _teach(model, trained, [*table.prompts, *keep], targets, rate=rate, config=config)
                said, about = _top(model, prompts), _top(model, table.prompts)
            taken = half & (about == taught)
            if taken.sum() < config.learned * half.sum() / 2:
                useless = min(k + 1, len(rates) - 1)
            if taken.sum() >= config.learned * half.sum():
                break
        rows.append([*(value.numpy() for value in (new, half, taken, said)), useless])
    return pd.DataFrame(rows, columns=["new", "edited", "taken", "said", "useless"])


def _mlp_parameters(model: Model, *, above: int) -> list[nn.Parameter]:
    if above >= model.n_layers:
        raise MnemoError(f"the waypoint is after block {above} of {model.n_layers}: no MLP lies above it to be edited")
    blocks: nn.ModuleList = model.bridge.blocks  # pyright: ignore[reportAssignmentType]
    found = {id(p): p for block in list(blocks)[above:] for p in block.get_submodule("mlp").parameters()}
    return list(found.values())


def _other_answers(answers: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return for each concept an answer that is not its own, drawn from those that occur."""
    letters = np.unique(answers)
    # A shift of at least one place among all the answers never comes back to the own one.
    shift = draw.integers(1, len(letters), len(answers))
    return letters[(np.searchsorted(letters, answers) + shift) % len(letters)]


@contextmanager
def _edited(trained: Sequence[nn.Parameter]) -> Generator[None]:
    """Let parameters be trained, and put them back as they were."""
    before = [p.detach().clone() for p in trained]
    flags = [p.requires_grad for p in trained]
    try:
        for p in trained:
            p.requires_grad_(True)
        yield
    finally:
        with torch.no_grad():
            for p, old, flag in zip(trained, before, flags, strict=True):
                p.copy_(old)
                p.grad = None
                p.requires_grad_(flag)


def _teach(
    model: Model,
    trained: Sequence[nn.Parameter],
    prompts: Sequence[Prompt],
    targets: Int[Tensor, " prompt"],
    *,
    rate: float,
    config: EditConfig,
) -> None:
    optimizer = torch.optim.Adam(trained, lr=rate)

    def run(rows: Tensor, tokens: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        logits = logits_of(model, tokens)[:, -1].float()
        loss = F.cross_entropy(logits, targets[rows].to(logits.device), reduction="sum") / len(prompts)
        return loss.item(), torch.autograd.grad(loss, list(trained))

    for _ in range(config.steps):
        optimizer.zero_grad()
        total = 0.0
        for _, (loss, gradients) in over_batches(model, prompts, run=run, bytes_each=Shape.of(model).backward_bytes):
            for weight, gradient in zip(trained, gradients, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
            total += loss
        if total < config.stop_below:
            break
        optimizer.step()


def _top(model: Model, prompts: Sequence[Prompt]) -> Int[Tensor, " prompt"]:
    top = torch.empty(len(prompts), dtype=torch.long)
    for rows, said in next_logprobs(model, prompts):
        top[rows] = said.argmax(-1)
    return top
