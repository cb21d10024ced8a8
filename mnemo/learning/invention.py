"""Free facts: which of the fitting concepts does a model come to use, and what gave it away beforehand?

Before a free fact is learned, its cue evokes nothing that helps. If afterwards the cue, asked what it stands for,
evokes a concept with the fact's answer, the model may have invented a mnemonic: how often, against answers shuffled
among the facts, is a rate over chance. Which of the concepts with the answer it is, is compared with three guesses that
can be made before the first step:

* *nearest*: the concept whose direction at the site the cue's state points to most (cosine),
* *used*: the concept that most of the new cues evoke anyway,
* *gradient*: the concept toward which the first gradient moves the cue's state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mnemo.behaviour import expand_cues
from mnemo.concept_vectors import concept_vectors
from mnemo.graph import stream_hook
from mnemo.learning.arms import Lesson, Survey
from mnemo.patching import Site, by_length, read_stream

if TYPE_CHECKING:
    from mnemo.model import Model

GUESSES = ("nearest", "used", "gradient")
SHUFFLES = 200


def evoked(model: Model, survey: Survey, *, lesson: Lesson) -> Int[Tensor, " fact"]:
    """Return the concept (a row of `survey.table`) that each cue is now said to stand for; -1 for none."""
    facts = {fact.fact_id: fact for fact in survey.said.facts}
    said = expand_cues(model, survey.task, facts=[facts[fact_id] for fact_id in lesson.fact_ids])
    return survey.table.rows_of(said)


def rate(
    concepts: Int[Tensor, " fact"], answers: Int[Tensor, " fact"], *, survey: Survey, seed: int
) -> tuple[float, float]:
    """Return the share of facts whose cue evokes a concept with their answer, and its mean under shuffled answers."""
    given = torch.where(concepts >= 0, survey.table.answers[concepts], -1).numpy()
    rng = np.random.default_rng(seed)
    null = [(given == rng.permutation(answers.numpy())).mean() for _ in range(SHUFFLES)]
    return float((given == answers.numpy()).mean()), float(np.mean(null))


def guesses(model: Model, survey: Survey, *, lesson: Lesson, site: Site) -> pd.DataFrame:
    """Return a row for each fact and fitting concept: `fact_id`, `concept`, and what each of `GUESSES` gives it.

    Args:
        model: the model before it learns.
        survey: what it knows.
        lesson: free facts.
        site: where concepts are followed.
    """
    table = survey.table
    states = read_stream(model, survey.said.prompts, positions=[site.position])[:, site.layer, 0]
    contributes = torch.where(survey.evoking, survey.concepts, -1)
    vectors = concept_vectors(model, table, states=states, contributes=contributes, site=site)
    place = {fact.fact_id: i for i, fact in enumerate(survey.said.facts)}
    mine = states[[place[fact_id] for fact_id in lesson.fact_ids]] - vectors.mean
    # No fact of the lesson contributes to a concept, so any of them sees all contexts.
    every = torch.arange(len(table))
    directions = vectors.seen_by(torch.full_like(every, place[lesson.fact_ids[0]]), every)
    nearest = F.normalize(mine, dim=-1) @ F.normalize(directions, dim=-1).T
    pulled = -_gradient_at(model, lesson, site) @ F.normalize(directions, dim=-1).T
    used = torch.bincount(lesson.concepts[lesson.concepts >= 0], minlength=len(table))
    fact, concept = (table.answers[None] == lesson.answers[:, None]).nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "fact_id": [lesson.fact_ids[i] for i in fact.tolist()],
            "concept": concept.numpy(),
            "nearest": nearest[fact, concept].numpy(),
            "used": used[concept].numpy(),
            "gradient": pulled[fact, concept].numpy(),
        }
    )


def _gradient_at(model: Model, lesson: Lesson, site: Site) -> Float[Tensor, "fact d"]:
    """Gradient of each fact's surprisal at its state."""
    found = torch.zeros(len(lesson), model.d_model)
    for rows in by_length(lesson.prompts).values():
        added = torch.zeros(len(rows), model.d_model, device=model.device, requires_grad=True)

        def add(value: Tensor, hook: object, added: Tensor = added) -> Tensor:
            value = value.clone()
            value[:, site.position] += added
            return value

        logits = model.forward([lesson.prompts[i].tokens for i in rows], hooks=[(stream_hook(model, site.layer), add)])
        loss = F.cross_entropy(logits[:, -1].float(), lesson.answers[rows].to(logits.device), reduction="sum")
        found[rows] = torch.autograd.grad(loss, added)[0].float().cpu()
    return found


def score_guesses(guessed: pd.DataFrame, chosen: pd.Series) -> pd.DataFrame:
    """Return how often each guess names the concept that was chosen, beside chance.

    Args:
        guessed: as `guesses` gives it.
        chosen: the concept that each cue evokes in the end, by fact_id; facts without a fitting one, or with no choice
            because one concept alone has the answer, say nothing.

    Returns:
        a row for each guess: `guess`, `facts`, `right` (ties share), `chance`.
    """
    rows = []
    for guess in GUESSES:
        right, chance = [], []
        for fact_id, options in guessed.groupby("fact_id"):
            fits = options["concept"] == chosen.get(fact_id, -1)
            if len(options) < 2 or not fits.any():
                continue
            best = options[guess] == options[guess].max()
            right.append(float((best & fits).sum() / best.sum()))
            chance.append(1 / len(options))
        rows.append(
            {
                "guess": guess,
                "facts": len(right),
                "right": np.mean(right or [np.nan]),
                "chance": np.mean(chance or [np.nan]),
            }
        )
    return pd.DataFrame(rows)
