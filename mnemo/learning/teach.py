"""Teach facts by gradient descent on their answers, all weights or LoRA factors, and see when each is recalled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from mnemo.checked import Record
from mnemo.errors import MnemoError
from mnemo.learning.arms import Questions
from mnemo.libraries import in_one_line, quietly
from mnemo.patching import by_length
from mnemo.prompts import Prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class TeachConfig(Record):
    """How facts are taught.

    Attributes:
        how: ``full`` trains all weights, ``lora`` factors of low rank beside every linear map (Hu et al. 2021).
        rank: of the factors.
        steps: optimizer steps, each on all facts at once.
        learning_rate, weight_decay: of AdamW; a LoRA rate is usually some ten times that of all weights.
    """

    how: Literal["full", "lora"] = "full"
    rank: int = Field(default=8, ge=1)
    steps: int = Field(default=80, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Course:
    """What happened to each fact while it was taught.

    Attributes:
        probability: of the answer before each step, and after the last.
        recalled: whether the answer ranked first.
        loss: mean surprisal of the answers, in nats.
        model: the model in the end, LoRA factors merged.
    """

    probability: Float[Tensor, "time fact"]
    recalled: Bool[Tensor, "time fact"]
    loss: Float[Tensor, " time"]
    model: PreTrainedModel

    @property
    def steps_to_recall(self) -> Int[Tensor, " fact"]:
        """Steps after which each fact is first recalled; one more than all of them where it never is."""
        never = torch.ones(1, self.recalled.shape[1], dtype=torch.bool)
        return torch.cat([self.recalled, never]).int().argmax(0)


def teach(
    model: PreTrainedModel,
    lesson: Questions,
    *,
    config: TeachConfig,
    watch: Callable[[int, PreTrainedModel], None] = lambda step, model: None,
    at: Collection[int] = (),
    until_recalled: bool = False,
) -> Course:
    """Train a copy of a model on the answers of a lesson.

    Args:
        model: a causal language model; left as it is.
        lesson: what is taught.
        config: how.
        watch: called with the number of steps done and the model as it then is, which it must not change. LoRA factors
            are merged into the copy that it gets.
        at: after how many steps it is called, 0 for before the first.
        until_recalled: stop as soon as every fact is recalled.

    Raises:
        MnemoError: the loss is no longer finite, or the model has no linear map that LoRA knows.
    """
    pupil = learner(model, config)
    weights = [p for p in pupil.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    probability, recalled, losses = [], [], []
    for step in range(config.steps + 1):
        if step in at:
            watch(step, plain(pupil))
        said = said_by(pupil, lesson.prompts)
        loss = F.cross_entropy(said.float(), lesson.answers.to(said.device))
        if not loss.isfinite():
            raise MnemoError(
                f"the loss is no number after {step} steps: give a smaller learning rate than {config.learning_rate:g}"
            )
        with torch.no_grad():
            probability.append(said.softmax(-1).gather(1, lesson.answers[:, None].to(said.device))[:, 0].cpu())
            recalled.append(said.argmax(-1).cpu() == lesson.answers)
            losses.append(loss.detach().cpu())
        if until_recalled and bool(recalled[-1].all()):
            break
        if step < config.steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Course(torch.stack(probability), torch.stack(recalled), torch.stack(losses), plain(pupil))


def learner(model: PreTrainedModel, config: TeachConfig) -> PreTrainedModel | PeftModel:
    """Return a copy of a model, ready to be trained; nothing is random but the LoRA factors (torch's generator)."""
    pupil: Any = copy.deepcopy(model)
    pupil.requires_grad_(config.how == "full")
    if config.how == "lora":
        fix = "teach all weights (how='full'), or pip install 'mnemo[learning]' if peft is missing"
        with quietly(), in_one_line("LoRA cannot be added", fix=fix):
            from peft import LoraConfig, get_peft_model

            rank = config.rank
            factors = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0)
            pupil = get_peft_model(pupil, factors)
    return pupil.eval()  # no dropout: what is measured is what is trained


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model itself or, where it has LoRA factors, a copy with them merged into its weights."""
    if not hasattr(model, "merge_and_unload"):
        return model  # pyright: ignore[reportReturnType]
    with quietly():
        return copy.deepcopy(model).merge_and_unload()  # pyright: ignore[reportCallIssue]


def said_by(model: PreTrainedModel | PeftModel, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt vocabulary"]:
    """Return the logits after each prompt, with gradients; prompts of one length run together, without padding."""
    device = next(model.parameters()).device
    order: list[int] = []
    found = []
    for rows in by_length(prompts).values():
        tokens = torch.tensor([prompts[i].tokens for i in rows], device=device)
        found.append(model(tokens, attention_mask=torch.ones_like(tokens)).logits[:, -1])
        order += rows
    return torch.cat(found)[torch.tensor(order, device=device).argsort()]


@torch.no_grad()
def share_recalled(model: PreTrainedModel, asked: Questions) -> float:
    """Return the share of questions that a model answers as wanted; NaN without any."""
    if not len(asked):
        return float("nan")
    said = said_by(model, asked.prompts).argmax(-1).cpu()
    return (said == asked.answers).float().mean().item()
