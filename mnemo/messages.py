"""What does an edge carry? The part that one writer adds to the waypoint, read as the whole state is.

A message is what a writer (embedding, head or MLP) adds to the residual stream at the waypoint's position. It is read
on its own: in the mean state of all facts the writer's mean contribution is replaced by this fact's, so that all other
writers say what they say of any fact. A concept that stands in the state of the waypoint and in no single message is
put together there from several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.activations import contributions, values_at, writer_hooks
from mnemo.errors import MnemoError
from mnemo.graph import Writer, writers
from mnemo.patching import over_batches
from mnemo.reading import reader_for

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.patching import Site
    from mnemo.prompts import Prompt
    from mnemo.study import Study


def read_messages(
    study: Study, fact_ids: Sequence[str], *, only: Sequence[str] = (), seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """Read what every writer before the waypoint says of some facts.

    Args:
        study: what `extract` found.
        fact_ids: recalled facts.
        only: labels of writers (``embed``, ``h1.2``, ``mlp1``); all before the waypoint if empty.
        seed: draws the facts that readings are compared with.
        progress: show a progress bar.

    Returns:
        a row for each writer and fact: `writer`, `fact_id`, `concept` (the phrase read best; None for none), `ratio`
        (its log-likelihood ratio against other facts' messages of that writer, nats per token), `norm` (of the message
        less its mean over facts, as a share of the norm of the state less its mean), `agrees` (whether the phrase is
        the fact's concept at the waypoint).

    Raises:
        MnemoError: the study has no waypoint or nothing to read with, an unknown writer, or a fact not recalled.
    """
    if study.waypoint is None:
        raise MnemoError("this study has no waypoint, so there are no messages to it: see its notes")
    facts = study.table[study.table["recalled"]].reset_index(drop=True)
    rows = {fact_id: i for i, fact_id in enumerate(facts["fact_id"])}
    for fact_id in fact_ids:
        study[fact_id]  # an unknown id is refused in its own words
        if fact_id not in rows:
            raise MnemoError(f"fact {fact_id!r} is not recalled, so nothing was read of it")
    asked = [study.fact(fact_id) for fact_id in facts["fact_id"]]
    reader, notes = reader_for(study.model, study.task, asked)
    if reader is None:
        raise MnemoError(notes[-1])
    site, states = study.waypoint.site, study.waypoint.states
    known = [writer for writer in writers(study.model) if writer.layer < site.layer]
    chosen = _chosen(known, only)
    sent = _messages(study.model, [study.prompt(i) for i in facts["fact_id"]], site=site, until=len(known))
    spread = (states - states.mean(0)).norm(dim=-1)
    found = []
    for k in tqdm(chosen, desc="reading messages", disable=not progress, leave=False):
        message = sent[:, k] - sent[:, k].mean(0)
        readings = reader.read(states.mean(0) + message, layer=site.layer, facts=asked, seed=seed)
        for fact_id in fact_ids:
            i = rows[fact_id]
            best = readings[i][0] if readings[i] else None
            concept = facts.loc[i, "concept"]
            found.append(
                {
                    "writer": known[k].label,
                    "fact_id": fact_id,
                    "concept": best.phrase if best else None,
                    "ratio": best.ratio if best else None,
                    "norm": float(message[i].norm() / spread[i]),
                    "agrees": best is not None and best.phrase == concept,
                }
            )
    return pd.DataFrame(found, columns=["writer", "fact_id", "concept", "ratio", "norm", "agrees"])


def _chosen(known: Sequence[Writer], only: Sequence[str]) -> list[int]:
    labels = [writer.label for writer in known]
    for label in only:
        if label not in labels:
            raise MnemoError(f"no writer {label!r} before the waypoint; there are {', '.join(labels)}")
    return [k for k, label in enumerate(labels) if not only or label in only]


def _messages(model: Model, prompts: Sequence[Prompt], *, site: Site, until: int) -> Float[Tensor, "fact writer d"]:
    """What the first so many writers add to the stream at the site's position, without biases."""
    found = torch.empty(len(prompts), until, model.d_model)
    here = slice(site.position, site.position + 1 or None)

    @torch.no_grad()
    def run(rows: Tensor, tokens: Tensor) -> None:
        values, _ = values_at(model, tokens, writer_hooks(model))
        found[rows] = contributions(model, values, some=slice(until), positions=here)[:, 0].float().cpu()

    for _ in over_batches(model, prompts, run):
        pass
    return found
