"""Is the second hop of a fact the one that its concept's own prompt uses? Edit the concept and see who follows.

The concepts' answers are changed by training on their own prompts alone, and only the MLPs above the waypoint, where
models keep such facts (Geva et al. 2021, "Transformer feed-forward layers are key-value memories"; Meng et al. 2022,
"Locating and editing factual associations in GPT", section 3). A fact recalled through the concept and its own second
hop then gives the edited answer, though its cue was never shown; a fact with a second hop of its own does not.

Half of the concepts is edited at once, then the other half: each fact is tested once, and is once a control.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptTable
from mnemo.errors import MnemoError
from mnemo.patching import next_logprobs, over_batches
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.prompts import Prompt


@dataclass(frozen=True)
class EditConfig:
    """How the MLPs above the waypoint are taught new answers.

    Attributes:
        steps: Adam steps at the most.
        learning_rates: of Adam, tried in this order until the edit is learned: larger steps move facts that have
            nothing to do with it.
        stop_below: mean loss (nats) at which training ends.
        learned: share of the edited concepts that must give their new answer, else the next rate is tried.
        spared: share of the facts of other concepts that must keep their answers, else the edit says nothing of any
            fact: what moves all of them does not test the second hop of one.
    """

    steps: int = 400
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    stop_below: float = 0.01
    learned: float = 0.9
    spared: float = 0.9


@dataclass(frozen=True)
class Edits:
    """What facts answer after one half of the concepts was taught new answers, and after the other half was.

    Attributes:
        answers: the facts' own answer tokens.
        concepts: each fact's concept, -1 for none.
        new: the answer that each concept was taught.
        edited: which concepts were taught theirs in each edit.
        taken: which of these gave it afterwards.
        said: what each fact answered afterwards.
        spared: see `EditConfig`.
    """

    answers: Int[Tensor, " fact"]
    concepts: Int[Tensor, " fact"]
    new: Int[Tensor, " concept"]
    edited: Bool[Tensor, "edit concept"]
    taken: Bool[Tensor, "edit concept"]
    said: Int[Tensor, "edit fact"]
    spared: float

    @property
    def changed(self) -> Float[Tensor, "edit fact"]:
        """Whether each fact gives another answer than its own; NaN where its concept was edited."""
        beside = (self.concepts < 0) | ~self.edited[:, self.concepts]
        return torch.where(beside, (self.said != self.answers).float(), torch.nan)

    def follows(self, concepts: Int[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        """Whether each fact gives the new answer of a concept, be it its own or another.

        NaN for -1, where the concept did not take its new answer, where that is the fact's own answer anyway, or where
        the edit moved facts whose own concepts it left alone, or there are none to tell (see `EditConfig.spared`).
        """
        harmless = 1 - self.changed.nanmean(1, keepdim=True) >= self.spared
        tested = harmless & (concepts >= 0) & self.taken[:, concepts] & (self.new[concepts] != self.answers)
        return torch.where(tested, (self.said == self.new[concepts]).float(), torch.nan).nanmean(0)

    def table(self) -> pd.DataFrame:
        """Return a row for each fact.

        Columns:
            edit_follows: whether it gives its own concept's edited answer, as in `follows`.
            edit_control: whether its answer changed while only other concepts were edited (the mean over both edits
                for a fact without a concept).
        """
        follows, control = self.follows(self.concepts), self.changed.nanmean(0)
        return pd.DataFrame({"edit_follows": follows.numpy(), "edit_control": control.numpy()})


def edit_test(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    answers: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    table: ConceptTable,
    layer: int,
    seed: int,
    keep: Sequence[Prompt] = (),
    config: EditConfig = EditConfig(),
    progress: bool = True,
) -> Edits:
    """Give concepts new answers, half of them at a time, and ask the facts again.

    Args:
        model: the model; its weights are as before afterwards, also after an error.
        prompts: the facts' recall prompts.
        answers: the facts' answer tokens.
        concepts: each fact's concept, a row of `table`, -1 for none.
        table: the concepts, with their prompts and answers.
        layer: MLPs of the blocks above this many are trained.
        seed: draws the halves and the new answers.
        keep: further prompts whose present answers are to be kept, such as other questions about the concepts.
        config: how to train.
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
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(table))
    new = torch.from_numpy(_other_answers(table.answers.numpy(), draw))
    # Prompts of concepts may spell an answer in another way than recall prompts do.
    asked = dict(zip(table.answers.tolist(), table.said.tolist(), strict=True))
    taught = torch.tensor([asked[answer] for answer in new.tolist()])
    kept = _top(model, keep)
    first = torch.zeros(len(table), dtype=torch.bool)
    first[order[: len(order) // 2]] = True
    edited = torch.stack([first, ~first])
    taken, said = torch.zeros_like(edited), torch.full((2, len(prompts)), -1)
    for i, half in enumerate(tqdm(edited, desc="editing", unit="half", disable=not progress)):
        targets = torch.cat([torch.where(half, taught, table.said), kept])
        for rate in config.learning_rates:
            with _edited(trained):
                _teach(model, trained, [*table.prompts, *keep], targets, rate=rate, config=config)
                said[i], about = _top(model, prompts), _top(model, table.prompts)
            taken[i] = half & (about == taught)
            if taken[i].sum() >= config.learned * half.sum():
                break
    return Edits(answers, concepts, new, edited, taken, said, config.spared)


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
        logits = model.bridge(tokens)[:, -1].float()
        loss = F.cross_entropy(logits, targets[rows].to(logits.device), reduction="sum") / len(prompts)
        return loss.item(), torch.autograd.grad(loss, list(trained))

    for _ in range(config.steps):
        optimizer.zero_grad()
        total = 0.0
        for _, (loss, gradients) in over_batches(model, prompts, run, bytes_each=Shape.of(model).backward_bytes):
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
