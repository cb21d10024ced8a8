"""What steering does to facts: evidence for a verdict, and what else a steering vector holds.

Steering towards a concept should move exactly the facts whose recall reads that concept: their answer gains where the
concept is theirs, and gives way to another concept's answer where that is added. Decoys, idle and rote facts stay.
Guidance with the same pairs adds to the scores whatever route a fact takes, so it can tell no kind from another: it is
the control that shows what steering adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mnemo.concept_vectors import ConceptTable, like
from mnemo.patching import Patch, Site, next_logprobs, read_stream, read_stream_at_span
from mnemo.prompts import Prompt

if TYPE_CHECKING:
    from mnemo.model import Model


def steer_facts(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    answers: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    table: ConceptTable,
    site: Site,
    doses: Sequence[float],
    seed: int,
) -> pd.DataFrame:
    """Push every fact towards its own concept and towards another one, by steering and in two control ways.

    Columns, a row for each fact, method and dose: ``fact`` (its place), ``method`` (``steering``; ``random``: a
    direction of the same norm; ``guidance``), ``dose``, ``own``: change of the log-odds of the fact's answer when
    pushed towards its own concept, ``toward``: change of the log-odds of another concept's answer (not the fact's) when
    pushed towards that one, ``flips``: whether the first choice is then another than before, and ``says``: whether it
    is that concept's answer.

    Args:
        model: the model.
        prompts: recall prompts of the facts.
        answers: their answer tokens.
        concepts: what each cue evokes; facts with -1 get one at random.
        table: the concepts and their prompts: each is contrasted with all others.
        site: where vectors are added; its layer is where the prompts' states are compared, at the end of the concept.
        doses: how much of them.
        seed: of what is drawn.
    """
    draw = torch.Generator().manual_seed(seed)
    n, n_concepts = len(prompts), len(table)
    vectors = towards_each(read_stream_at_span(model, table.prompts, layer=site.layer))
    contrasts = towards_each(_said(model, table.prompts, None))
    states = read_stream(model, prompts, positions=[site.position])[:, site.layer, 0]
    own = torch.where(concepts >= 0, concepts, torch.randint(n_concepts, (n,), generator=draw))
    other = _others(own, answers, table, draw)
    plain = _said(model, prompts, None)
    first = plain.argmax(-1)
    noise = like(vectors, draw)
    rows = []
    for dose in dict.fromkeys(doses):
        for method in ("steering", "random", "guidance"):

            def pushed(
                toward: Int[Tensor, " fact"], method: str = method, dose: float = dose
            ) -> Float[Tensor, "fact vocabulary"]:
                if method == "guidance":
                    return (plain + dose * contrasts[toward]).log_softmax(-1)
                step = (vectors if method == "steering" else noise)[toward]
                return _said(model, prompts, Patch(site, states + dose * step))

            to_own, to_other = pushed(own), pushed(other)
            goal, top = table.answers[other], to_other.argmax(-1)
            rows.append(
                pd.DataFrame(
                    {
                        "fact": range(n),
                        "method": method,
                        "dose": dose,
                        "own": (_log_odds(to_own, answers) - _log_odds(plain, answers)).numpy(),
                        "toward": (_log_odds(to_other, goal) - _log_odds(plain, goal)).numpy(),
                        "flips": (top != first).float().numpy(),
                        "says": (top == goal).float().numpy(),
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def towards_each(values: Float[Tensor, "concept value"]) -> Float[Tensor, "concept value"]:
    """Return the mean difference of each row and the others: what pairs of a concept with every other one give."""
    return (values - values.mean(0)) * len(values) / (len(values) - 1)


def purity(
    vectors: Float[Tensor, "concept d"], directions: Float[Tensor, "concept d"], *, answers: Int[Tensor, " concept"]
) -> pd.DataFrame:
    """Return how much of other concepts each steering vector holds.

    Args:
        vectors: a steering vector towards each concept.
        directions: what the states of cues that evoke each concept have in common, from data of their own.
        answers: the concepts' answer tokens.

    Returns:
        a row for each concept: cosine with its ``own`` direction; root mean square cosine with those of concepts with
        the ``same_answer`` (NaN for none) and with ``unrelated`` ones, those of other answers; and ``null``, the root
        mean square cosine of a random direction, 1 / sqrt(d).
    """
    cosines = cosine_similarity(vectors[:, None], directions[None], dim=-1).double()
    alike = answers[:, None] == answers[None]
    itself = torch.eye(len(vectors), dtype=torch.bool)

    def spread(mask: Tensor) -> np.ndarray:
        return ((cosines.square() * mask).sum(1) / mask.sum(1)).sqrt().numpy()  # 0 / 0 where there is none: NaN

    return pd.DataFrame(
        {
            "own": cosines.diagonal().numpy(),
            "same_answer": spread(alike & ~itself),
            "unrelated": spread(~alike),
            "null": vectors.shape[1] ** -0.5,
        }
    )


def _others(
    own: Int[Tensor, " fact"], answers: Int[Tensor, " fact"], table: ConceptTable, draw: torch.Generator
) -> Int[Tensor, " fact"]:
    """Draw another concept for each fact, with another answer than the fact's (its own where there is none)."""
    possible = table.answers[None] != answers[:, None]
    possible[torch.arange(len(own)), own] = False
    drawn = torch.where(possible, torch.rand(possible.shape, generator=draw), -1.0).max(1)
    return torch.where(drawn.values >= 0, drawn.indices, own)


def _said(model: Model, prompts: Sequence[Prompt], patch: Patch | None) -> Float[Tensor, "fact vocabulary"]:
    found = torch.empty(len(prompts), model.vocab_size)
    for rows, said in next_logprobs(model, prompts, patch=patch):
        found[rows] = said
    return found


def _log_odds(logprobs: Float[Tensor, "fact vocabulary"], tokens: Int[Tensor, " fact"]) -> Float[Tensor, " fact"]:
    """Log-odds of one token of each row against all others together, nats (exact also where its probability is 1)."""
    rows = torch.arange(len(tokens))
    rest = logprobs.clone()
    rest[rows, tokens] = -torch.inf
    return logprobs[rows, tokens] - rest.logsumexp(-1)
