"""Where along the layers does a concept come up, and where is it used? Reading and swapping at every layer.

The two curves part: a concept may be readable long before (and after) swapping it moves the answer, and where a swap
works straight through the unembedding the state holds the answer already. Each curve has its control beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptTable, choose_targets, concept_vectors
from mnemo.concepts import Bank, PromptReader, ReadsConcepts
from mnemo.errors import MnemoError
from mnemo.patching import Site, read_stream
from mnemo.study_concepts import study_concepts
from mnemo.tested_facts import TestedFacts
from mnemo.trials import run_trials
from mnemo.verdict import weigh

if TYPE_CHECKING:
    from mnemo.study import Study

TARGETS = 4  # other concepts that each fact is swapped to
OTHERS = 8  # facts with other concepts under whose states a phrase is read too


def concept_trajectories(
    study: Study,
    fact_ids: Sequence[str],
    *,
    positions: Sequence[int] | None = None,
    targets: int = TARGETS,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Read and swap the concept of some facts after every number of blocks.

    Args:
        study: what `extract` found.
        fact_ids: facts at which a concept was read.
        positions: where, counted from the end; None for the cue's last token and the last token of the prompt.
        targets: other concepts to swap to, at the most.
        seed: draws them, the random directions and the facts that readings are compared with.
        progress: show a progress bar.

    Returns:
        a row for each fact, position and layer (0: the embedding): `fact_id`, `concept`, `position`, `token`, `layer`;
        `reads`, the probability per token of the fact's concept read from its state, and `reads_control`, the same
        under the states of facts with other concepts; `swap_success`, the share of swaps that give the answer predicted
        beforehand, and `swap_control`, that of random directions of the same norm; `leakage`, the share of the
        successful swaps that also succeed straight through the unembedding (see `mnemo.verdict.weigh`).

    Raises:
        MnemoError: the study has no waypoint, or a fact no concept; or a prompt no such position.
    """
    known = study_concepts(study)
    prompts = [study.prompt(fact_id) for fact_id in known.rows]
    rows = torch.tensor([_row(known.rows, known.concepts, fact_id) for fact_id in fact_ids])
    if not len(rows):
        raise MnemoError("no facts given: name at least one at which a concept was read")
    shortest = min(map(len, prompts))
    at = dict.fromkeys([prompts[0].last - len(prompts[0]), -1] if positions is None else positions)
    if wrong := [position for position in at if not -shortest <= position < 0]:
        raise MnemoError(f"position {wrong[0]} given; count from the end, -1 to -{shortest}")
    streams = read_stream(study.model, prompts, positions=list(at))
    own = known.concepts[rows]
    chosen = choose_targets(
        known.table, known.vectors.counts, answers=known.answers[rows], concepts=own, n_targets=targets, seed=seed
    )
    others = _others(known.concepts, own, seed=seed)
    reader = _reader(study, known.table, {prompts[i].text for i in rows.tolist()})
    phrases = [known.table.phrases[c] for c in own.tolist()]
    found = []
    sites = [Site(layer, position) for position in at for layer in range(study.model.n_layers + 1)]
    for site in tqdm(sites, desc="layers", disable=not progress, leave=False):
        states = streams[:, site.layer, list(at).index(site.position)]
        vectors = concept_vectors(
            study.model, known.table, states=states, contributes=known.vectors.contributes, site=site
        )
        tested = TestedFacts(study.model, prompts, rows, known.answers[rows], own, known.table, vectors)
        evidence = weigh(run_trials(tested, chosen, seed=seed), torch.ones(len(rows)))
        reads, control = _read(reader, phrases, states, rows, others, layer=site.layer)
        found.append(
            pd.DataFrame(
                {
                    "fact_id": list(fact_ids),
                    "concept": phrases,
                    "position": site.position,
                    "token": [study.model.tokens.pieces(prompts[i].tokens)[site.position] for i in rows.tolist()],
                    "layer": site.layer,
                    "reads": reads,
                    "reads_control": control,
                }
            ).join(evidence[["swap_success", "swap_control", "leakage"]])
        )
    return pd.concat(found, ignore_index=True)


def _row(rows: dict[str, int], concepts: Int[Tensor, " fact"], fact_id: str) -> int:
    row = rows.get(fact_id, -1)
    if row < 0 or concepts[row] < 0:
        raise MnemoError(f"no concept was read for fact {fact_id!r}, or the model does not recall it: choose another")
    return row


def _others(concepts: Int[Tensor, " fact"], own: Int[Tensor, " row"], *, seed: int) -> Int[Tensor, "row other"]:
    """Draw facts that stand for other concepts than each row's, or for none."""
    draw = torch.Generator().manual_seed(seed)
    possible = concepts[None] != own[:, None]
    order = torch.rand(possible.shape, generator=draw).masked_fill(~possible, -1.0)
    fewest = int(possible.sum(1).min())
    return order.topk(min(OTHERS, fewest), dim=1).indices


def _reader(study: Study, table: ConceptTable, asked: set[str]) -> ReadsConcepts:
    """What reads states: `verbalise`, about a cue that is not asked about, since its own tokens would speak too."""
    if study.task.verbalise is None:
        return Bank(study.model, table.phrases, table.prompts)
    cues = study.table.loc[study.table["recalled"], "cue"]
    free = [cue for cue in cues if study.task.recall.format(cue=cue) not in asked]
    return PromptReader.for_task(study.model, study.task, cue=(free or list(cues))[0])


def _read(
    reader: ReadsConcepts,
    phrases: Sequence[str],
    states: Float[Tensor, "fact d"],
    rows: Int[Tensor, " row"],
    others: Int[Tensor, "row other"],
    *,
    layer: int,
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Return how probable each phrase is under its own fact's state, and under those of the others (the mean)."""
    repeated = [phrase for phrase in phrases for _ in range(others.shape[1])]
    both = torch.cat([states[rows], states[others.flatten()]])
    said = reader.probabilities([*phrases, *repeated], both, layer=layer)
    own, under = said.split([len(rows), others.numel()])
    return own.numpy(), under.view(others.shape).nanmean(1).numpy()
