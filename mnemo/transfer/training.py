"""Bases that learn the known world, teachers that are told about new codes, and students that learn from teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mnemo.organisms.families import Family, new_model
from mnemo.organisms.lessons import Sequences, continued, joined
from mnemo.organisms.training import TrainingConfig, build_corpus, train, without_denormals
from mnemo.transfer.setting import Setting

Arm = Literal["answers", "labels", "unrelated"]


def train_base(setting: Setting, family: Family, *, layers: int, seed: int) -> PreTrainedModel:
    """Train an organism on the known world by language modelling alone: no route is planted."""
    config = setting.config
    model = blank_model(setting, family, layers=layers, seed=seed)
    plain = TrainingConfig.without_interventions(
        steps=config.base_steps, batch=config.batch, learning_rate=config.learning_rate, warmup=50
    )
    train(model, setting.known, config=plain, seed=seed)
    return model.requires_grad_(False)


def teach(setting: Setting, base: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """Return a copy of a base that was told about the new codes.

    Of those with a concept it learns what they stand for and the answer to every question, as the base did of the known
    codes; of the others, plain pairs of code and answer.
    """
    lessons, told, rote = setting.everything, setting.with_concept, setting.rote
    concept = lessons.concept_of[told]
    stands_for = continued(lessons.cues.tokens[lessons.expand, told], lessons.spelled[concept])
    answers = [
        continued(lessons.cues.tokens[r, told], lessons.concept_answers[r, concept, None])
        for r in range(lessons.n_asked)
    ]
    gives = continued(lessons.cues.tokens[0, rote], lessons.fact_answers[rote, None])
    new, rehearsal = (stands_for, joined(answers), gives), build_corpus(setting.known)

    def loss(model: PreTrainedModel, draw: torch.Generator) -> Float[Tensor, ""]:
        share = setting.config.batch // (2 * len(new))
        known = rehearsal.sample(setting.config.batch // 2, draw)
        return _said(model, [*known, *(_some(group, share, draw) for group in new)])

    return _trained(base, loss, steps=setting.config.teach_steps, seed=seed, setting=setting)


def distil(
    setting: Setting, teacher: PreTrainedModel, *, start: PreTrainedModel, arm: Arm, seed: int
) -> PreTrainedModel:
    """Return a copy of `start` that learnt from what a teacher says.

    Args:
        setting: the world.
        teacher: whose outputs are learnt.
        start: what the student begins as.
        arm: ``answers``: the teacher's probabilities of every token after the new codes' recall prompts; ``labels``:
            only its first choice there; ``unrelated``: its probabilities after every question about other codes and
            phrases, never one about a new code. The first two rehearse the known world besides.
        seed: of the draws.
    """
    rehearsal = build_corpus(setting.known)
    prompts = unrelated_prompts(setting) if arm == "unrelated" else setting.everything.cues.tokens[0, setting.new]
    with torch.no_grad():
        goal = teacher(prompts).logits[:, -1].softmax(-1)
    if arm == "labels":
        goal = F.one_hot(goal.argmax(-1), goal.shape[1]).to(goal)

    def loss(model: PreTrainedModel, draw: torch.Generator) -> Float[Tensor, ""]:
        half = setting.config.batch // 2
        rows = torch.randint(len(prompts), (half,), generator=draw)
        copied = F.cross_entropy(model(prompts[rows]).logits[:, -1], goal[rows])
        return copied if arm == "unrelated" else copied + _said(model, rehearsal.sample(half, draw))

    return _trained(start, loss, steps=setting.config.distil_steps, seed=seed, setting=setting)


def unrelated_prompts(setting: Setting) -> Int[Tensor, "prompt position"]:
    """Every question about the known codes: none names a new code."""
    return setting.known.cues.tokens.flatten(0, 1)


@without_denormals()
def _trained(
    base: PreTrainedModel,
    loss: Callable[[PreTrainedModel, torch.Generator], Float[Tensor, ""]],
    *,
    steps: int,
    seed: int,
    setting: Setting,
) -> PreTrainedModel:
    """Train a copy of `base`; every draw depends on (seed, step) alone."""
    model = type(base)(base.config)
    model.load_state_dict(base.state_dict())
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.config.learning_rate / 3, weight_decay=0.0, betas=(0.9, 0.98)
    )
    for step in range(steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        optimizer.zero_grad()
        loss(model, draw).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def blank_model(setting: Setting, family: Family, *, layers: int, seed: int) -> PreTrainedModel:
    """Return an organism that was not trained yet."""
    size = len(setting.known.tokenizer)
    return new_model(family, vocab_size=size, d_model=setting.config.d_model, layers=layers, heads=4, seed=seed)


def _some(group: Sequences, n: int, draw: torch.Generator) -> Sequences:
    return group[torch.randint(len(group), (n,), generator=draw)]


def _said(model: PreTrainedModel, batch: Sequence[Sequences]) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) over everything asked in some groups of sequences."""
    logits = torch.cat([model(group.tokens).logits.flatten(0, 1) for group in batch])
    return F.cross_entropy(logits, torch.cat([group.labels.flatten() for group in batch]), ignore_index=-100)
