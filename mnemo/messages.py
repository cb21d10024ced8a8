"""What does an edge carry? The part that one writer adds to the waypoint, read as the whole state is.

A message is what a writer (embedding, head or MLP) adds to the residual stream at the waypoint's position. It is read
on its own: in the mean state of all facts the writer's mean contribution is replaced by this fact's, so that all other
writers say what they say of any fact. A concept that stands in the state of the waypoint and in no single message is
put together there from several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.activations import contributions, values_at, writer_hooks
from mnemo.concept_readers import reader_for
from mnemo.concepts import Others
from mnemo.errors import MnemoError
from mnemo.graph import Writer, writers
from mnemo.patching import over_batches
from mnemo.prompts import render
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.patching import Site
    from mnemo.prompts import Prompt
    from mnemo.study import Study

_COLUMNS = ["writer", "fact_id", "concept", "ratio", "norm", "agrees"]
WHOLE = "whole state"  # stands in a table of messages for all of them together


def read_messages(
    study: Study,
    fact_ids: Sequence[str],
    *,
    only: Sequence[str] = (),
    strongest: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Read what the writers before the waypoint say of some facts.

    Args:
        study: what `extract` found.
        fact_ids: recalled facts; each is read once.
        only: names of writers as traces show them (``embed``, ``L1H2``, ``MLP1``); all before the waypoint if empty.
        strongest: how many writers to read for each fact, those with the largest `norm`; None for all.
        seed: draws the facts that readings are compared with.
        progress: show a progress bar.

    Returns:
        a row for each writer and fact: `writer`, `fact_id`, `concept` (the phrase read best; None for none), `ratio`
        (its log-likelihood ratio against other facts' messages of that writer, nats per token), `norm` (of the message
        less its mean over facts, as a share of the norm of the state less its mean), `agrees` (whether the phrase is
        the fact's concept at the waypoint).

    Raises:
        MnemoError: the study has no waypoint or nothing to read with, an unknown writer, a fact not recalled, or a
            `strongest` below 1.
    """
    if strongest is not None and strongest < 1:
        raise MnemoError(f"strongest={strongest}: give the number of writers to read, at least 1, or None for all")
    if study.waypoint is None:
        raise MnemoError("this study has no waypoint, so there are no messages to it: see its notes")
    if not fact_ids:
        return pd.DataFrame(columns=_COLUMNS)
    fact_ids = list(dict.fromkeys(fact_ids))
    facts = study.recalled_facts(fact_ids)
    asked, place = list(facts.values()), {fact_id: i for i, fact_id in enumerate(facts)}
    reader, notes = reader_for(study.model, study.task, facts=asked)
    if reader is None:
        raise MnemoError(notes[-1])
    site, states = study.waypoint.site, study.waypoint.states
    known = [writer for writer in writers(study.model) if writer.layer < site.layer]
    chosen = _chosen(known, only)
    prompts = [render(study.task.recall, fact.cue, tokenizer=study.model.tokens) for fact in asked]
    rows = torch.tensor([place[fact_id] for fact_id in fact_ids])
    norms = _norms(study.model, prompts, rows, site=site, until=len(known))[:, chosen]
    norms /= (states[rows] - states.mean(0)).norm(dim=-1, keepdim=True)
    read = torch.zeros_like(norms).bool()
    most = len(chosen) if strongest is None else min(strongest, len(chosen))
    read.scatter_(1, norms.topk(most, dim=1).indices, True)
    columns = read.any(0).nonzero()[:, 0].tolist()
    every = _messages(study.model, prompts, site=site, some=[chosen[k] for k in columns])
    apart = states.mean(0) + every.sub_(every.mean(0)).movedim(1, 0)
    found = []
    for k, said in zip(tqdm(columns, desc="reading messages", disable=not progress, leave=False), apart, strict=True):
        mine: list[int] = read[:, k].nonzero()[:, 0].tolist()
        whose, others = [facts[fact_ids[i]] for i in mine], Others(said, asked)
        readings = reader.read(said[rows[mine]], layer=site.layer, facts=whose, seed=seed, others=others)
        for i, phrases in zip(mine, readings, strict=True):
            best = phrases[0] if phrases else None
            found.append(
                {
                    "writer": known[chosen[k]].name,
                    "fact_id": fact_ids[i],
                    "concept": best.phrase if best else None,
                    "ratio": best.ratio if best else None,
                    "norm": float(norms[i, k]),
                    "agrees": best is not None and best.phrase == study[fact_ids[i]]["concept"],
                }
            )
    return pd.DataFrame(found, columns=_COLUMNS)


def messages_beside_state(
    study: Study, fact_ids: Sequence[str], *, strongest: int = 8, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """Return the strongest messages of some facts, each fact's whole state in front of them.

    Args:
        study, fact_ids, strongest, seed, progress: as for `read_messages`.

    Returns:
        the columns of `read_messages`, fact by fact, the largest norm first. The first row of a fact is its whole state
        at the waypoint, `writer` being ``whole state`` and `norm` 1.

    Raises:
        MnemoError: as `read_messages` does.
    """
    table = read_messages(study, fact_ids, strongest=strongest, seed=seed, progress=progress)
    found = []
    for fact_id in dict.fromkeys(fact_ids):
        best = next(iter(study.readings.get(fact_id, ())), None)
        phrase, ratio = (best.phrase, best.ratio) if best else (None, float("nan"))
        agrees = phrase is not None and phrase == study[fact_id]["concept"]
        whole = {"writer": WHOLE, "fact_id": fact_id, "concept": phrase, "ratio": ratio, "agrees": agrees, "norm": 1.0}
        found.append(pd.DataFrame([whole], columns=_COLUMNS))
        found.append(table[table["fact_id"] == fact_id].sort_values("norm", ascending=False, kind="stable"))
    return pd.concat(found, ignore_index=True) if found else table


def _chosen(known: Sequence[Writer], only: Sequence[str]) -> list[int]:
    names = [writer.name for writer in known]
    for name in only:
        if name not in names:
            raise MnemoError(f"no writer {name!r} before the waypoint; there are {', '.join(names)}")
    return [k for k, name in enumerate(names) if not only or name in only]


def _sent(
    model: Model, prompts: Sequence[Prompt], *, site: Site, until: int
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row writer d"]]]:
    """Yield, batch by batch, what the first so many writers add to the stream at the site, without biases."""
    here, shape = slice(site.position, site.position + 1 or None), Shape.of(model)

    @torch.no_grad()
    def run(rows: Tensor, tokens: Tensor) -> Tensor:
        values, _ = values_at(model, tokens, names=writer_hooks(model))
        return contributions(model, values, some=slice(until), positions=here)[:, 0].float().cpu()

    def held(length: int) -> int:  # what heads and MLPs put out at all positions, and the messages at one
        return shape.forward_bytes(length) + 4 * model.d_model * (2 * model.n_layers * length + 2 * until)

    yield from over_batches(model, prompts, run=run, bytes_each=held)


def _messages(
    model: Model, prompts: Sequence[Prompt], *, site: Site, some: Sequence[int]
) -> Float[Tensor, "fact writer d"]:
    """What some writers, by their place in `mnemo.graph.writers`, add to the stream at the site's position."""
    found = torch.empty(len(prompts), len(some), model.d_model)
    for rows, sent in _sent(model, prompts, site=site, until=max(some) + 1):
        found[rows] = sent[:, some]
    return found


def _norms(
    model: Model, prompts: Sequence[Prompt], chosen: Int[Tensor, " row"], *, site: Site, until: int
) -> Float[Tensor, "row writer"]:
    """Norms of what the first so many writers say of the chosen facts, less the mean over all facts."""
    mean, own = torch.zeros(until, model.d_model), torch.empty(len(chosen), until, model.d_model)
    for rows, sent in _sent(model, prompts, site=site, until=until):
        mean += sent.sum(0) / len(prompts)
        mine, place = (chosen[:, None] == rows).nonzero(as_tuple=True)
        own[mine] = sent[place]
    return (own - mean).norm(dim=-1)
