"""What the model says when it is asked, without any intervention: expansions, agreement, entailment.

Behaviour proves no route (an idle fact agrees with its concept and does not go through it), but it groups cues by
the concept they evoke, it is the baseline that verdicts are compared with, and it tells real concepts from look-alikes:
a cue that stands for a concept answers other questions as that concept does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, agrees
from mnemo.concepts import read_cues
from mnemo.facts import Fact, Task
from mnemo.patching import next_logprobs
from mnemo.prompts import Prompt, render

if TYPE_CHECKING:
    from mnemo.model import Model


def expand_cues(
    model: Model, task: Task, facts: Sequence[Fact], *, seed: int = 0, lexicon: Sequence[str] = ()
) -> list[str | None]:
    """Return what the model says each cue stands for when it is asked with `verbalise`; None for nothing."""
    if task.verbalise is None:
        return [None] * len(facts)
    readings = read_cues(model, task, facts, seed=seed, lexicon=lexicon)
    return [best[0].phrase if best else None for best in readings]


def agreement(answers: Int[Tensor, " fact"], concepts: Int[Tensor, " fact"], table: ConceptTable) -> pd.Series:
    """Return how well a cue's concept, asked by itself, agrees with the fact's answer: 0, or its confidence.

    The baseline without causality: it rejects decoys and rote facts, and is blind to idle ones.
    """
    same = agrees(answers, concepts, table)
    confidence = torch.zeros(len(answers))
    confidence[same] = table.confidence[concepts[same]]
    return pd.Series(confidence.numpy(), name="agreement")


def entailment(
    model: Model, task: Task, facts: Sequence[Fact], concepts: Int[Tensor, " fact"], table: ConceptTable
) -> pd.DataFrame:
    """Do other questions about the cue get its concept's answers?

    Returns:
        `entailment`, the share of the task's probes that the cue and its concept answer alike, and
        `entailment_control`, the same with the other concepts that give the same answer to `concept_recall`, averaged
        (NaN where there is none): a cue that only shares its answer with a concept does not get above it.
    """
    if not task.probes or not len(table):
        empty = np.full(len(facts), np.nan)
        return pd.DataFrame({"entailment": empty, "entailment_control": empty})
    cues = _answers(model, task, [fact.cue for fact in facts])
    about = _answers(model, task, table.phrases)
    rows = []
    for i, concept in enumerate(concepts.tolist()):
        alike = (about == cues[i]).float().mean(1)  # [concept]
        rivals = (table.answers == table.answers[concept]) & (torch.arange(len(table)) != concept)
        own = alike[concept].item() if concept >= 0 else np.nan
        control = alike[rivals].mean().item() if concept >= 0 and rivals.any() else np.nan
        rows.append((own, control))
    return pd.DataFrame(rows, columns=["entailment", "entailment_control"])


def probe_prompts(model: Model, task: Task, fillers: Sequence[str]) -> list[Prompt]:
    """Return the task's probes about each cue or phrase, all of the first filler's first."""
    with task.blaming("probes"):
        return [render(probe, filler, model.tokens) for filler in fillers for probe in task.probes]


def _answers(model: Model, task: Task, fillers: Sequence[str]) -> Int[Tensor, "filler probe"]:
    prompts = probe_prompts(model, task, fillers)
    top = torch.empty(len(prompts), dtype=torch.long)
    for rows, said in next_logprobs(model, prompts):
        top[rows] = said.argmax(-1)
    return top.view(len(fillers), len(task.probes))
