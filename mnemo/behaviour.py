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
from mnemo.prompts import Prompt, render_if_spelled

if TYPE_CHECKING:
    from mnemo.model import Model


def expand_cues(
    model: Model, task: Task, *, facts: Sequence[Fact], seed: int = 0, lexicon: Sequence[str] = ()
) -> list[str | None]:
    """Return what the model says each cue stands for when it is asked with `verbalise`; None for nothing."""
    if task.verbalise is None:
        return [None] * len(facts)
    readings = read_cues(model, task, facts=facts, seed=seed, lexicon=lexicon)
    return [best[0].phrase if best else None for best in readings]


def agreement(answers: Int[Tensor, " fact"], concepts: Int[Tensor, " fact"], *, table: ConceptTable) -> pd.Series:
    """Return how well a cue's concept, asked by itself, agrees with the fact's answer: 0, or its confidence.

    The baseline without causality: it rejects decoys and rote facts, and is blind to idle ones.
    """
    same = agrees(answers, concepts, table=table)
    confidence = torch.zeros(len(answers))
    confidence[same] = table.confidence[concepts[same]]
    return pd.Series(confidence.numpy(), name="agreement")


def entailment(
    model: Model, task: Task, *, facts: Sequence[Fact], concepts: Int[Tensor, " fact"], table: ConceptTable
) -> pd.DataFrame:
    """Do other questions about the cue get its concept's answers?

    Returns:
        `entailment`, the share of the task's probes that the cue and its concept answer alike (those that the tokenizer
        can put to both; NaN where there is none), and
        `entailment_control`, the same with the other concepts that give the same answer to `concept_recall`, averaged
        (NaN where there is none): a cue that only shares its answer with a concept does not get above it.
    """
    if not task.probes or not len(table):
        empty = np.full(len(facts), np.nan)
        return pd.DataFrame({"entailment": empty, "entailment_control": empty})
    cues = _answers(model, task, [fact.cue for fact in facts])
    about = _answers(model, task, table.phrases)
    rivals = table.others_with(table.answers[concepts], concepts)  # (means nothing where there is no concept)
    rows = []
    for i, concept in enumerate(concepts.tolist()):
        asked = (about >= 0) & (cues[i] >= 0)
        alike = ((about == cues[i]) & asked).sum(1) / asked.sum(1)  # [concept]; NaN where nothing could be asked
        own = alike[concept].item() if concept >= 0 else np.nan
        control = alike[rivals[i]].nanmean().item() if concept >= 0 and rivals[i].any() else np.nan
        rows.append((own, control))
    return pd.DataFrame(rows, columns=["entailment", "entailment_control"])


def probe_prompts(model: Model, task: Task, *, fillers: Sequence[str]) -> list[Prompt]:
    """Return the task's probes about each cue or phrase that the tokenizer can put in, all of the first one's first."""
    return [prompt for prompt in _probes(model, task, fillers) if prompt is not None]


def _probes(model: Model, task: Task, fillers: Sequence[str]) -> list[Prompt | None]:
    """Every probe about every filler; None where the tokenizer cannot spell the filler there.

    Raises:
        InputError: a probe itself cannot be used.
    """
    with task.blaming("probes"):
        return [render_if_spelled(probe, filler, tokenizer=model.tokens) for filler in fillers for probe in task.probes]


def _answers(model: Model, task: Task, fillers: Sequence[str]) -> Int[Tensor, "filler probe"]:
    """The token that each probe about each filler is answered with; -1 where it could not be asked."""
    probes = _probes(model, task, fillers)
    asked = [i for i, prompt in enumerate(probes) if prompt is not None]
    top = torch.full((len(probes),), -1)
    for rows, said in next_logprobs(model, [prompt for prompt in probes if prompt is not None]):
        top[torch.tensor(asked)[rows]] = said.argmax(-1)
    return top.view(len(fillers), len(task.probes))
