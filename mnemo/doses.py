"""How does a fact's answer change with the dose of each intervention? Curves of one fact, controls among them.

A dose of 0 adds nothing and 1 is the intervention that verdicts rest on. Where a concept is used, the swap gives the
answer predicted beforehand as the dose comes near 1; a direction that merely breaks the state costs the fact its
answer and brings no other in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, choose_targets, like
from mnemo.errors import MnemoError
from mnemo.files import replacing
from mnemo.patching import Patch, ask
from mnemo.prompts import Prompt
from mnemo.study_concepts import StudyConcepts, study_concepts
from mnemo.tables import write_csv
from mnemo.trials import resampled
from mnemo.verdict import tested_later

if TYPE_CHECKING:
    from mnemo.study import Study

DOSES = tuple(step / 8 for step in range(17))  # 0 to 2
TARGETS, RANDOM = 6, 6  # other concepts swapped to; random directions, and random other facts

# Curves: what is done to the state at each dose a.
CURVES = {
    "swap": "state + a (other concept - own concept)",
    "prompt swap": "the same, with vectors from the concepts' own prompts",
    "random swap": "state + a (random direction of the swap's norm); control of the swaps",
    "same answer": "state + a (other concept with the same answer - own concept); must change nothing",
    "remove": "state - a (own concept)",
    "resample": "state + a (concept of a random other fact - own concept); whatever answer that has",
    "random removal": "state - a (random vector of its norm); control of the removal",
    "suffice": "mean state + a (own concept); at dose 0 nothing but the rest of the prompt speaks",
    "other suffices": "mean state + a (another concept); control of the above",
}


def dose_curves(
    study: Study, fact_id: str, *, doses: Sequence[float] = DOSES, targets: int = TARGETS, seed: int = 0
) -> pd.DataFrame:
    """Run every intervention on one fact, at every dose, in the layer in which its verdict was found.

    The answer of each swap is predicted beforehand, by asking the model about the other concept.

    Args:
        study: what `extract` found.
        fact_id: a fact at which a concept was read.
        doses: multiples of the vector that is added.
        targets: other concepts to swap to, at the most.
        seed: draws them and the random directions.

    Returns:
        a row for each curve (see `CURVES`), trial and dose: `curve`, `concept` (the one moved to, or the fact's own),
        `trial`, `layer`, `dose`, `predicted` (the answer that the swap should give; None where none is predicted),
        `p_own` (probability of the fact's own answer), `p_predicted` (of the predicted one; NaN where none is), `says`
        (the model's first choice). Curves that cannot be tried are missing: no other concept to swap to, none with the
        same answer.

    Raises:
        MnemoError: the study has no waypoint, or no such fact, or none of its concept; or a dose is not finite.
    """
    if not len(doses) or not np.isfinite(doses).all():
        raise MnemoError(f"doses {list(doses)} given; at least one is needed, and all must be finite numbers")
    row = study[fact_id]
    if study.waypoint is None or not isinstance(row["concept"], str):
        raise MnemoError(f"no concept was read for fact {fact_id!r}, so there is none to move: {_why(study, row)}")
    known = study_concepts(study, layer=int(row["tested_layer"]) if tested_later(row) else None)
    curves, prompt, answer = _curves(study, known, row, targets=targets, seed=seed)
    whole = _Curve.joined(curves)
    labels = pd.concat([curve.labels(known.table, study) for curve in curves], ignore_index=True)
    wanted = torch.stack([torch.full_like(whole.concepts, answer), known.table.answers[whole.concepts]], 1)
    found = []
    for dose in doses:
        patch = Patch(known.vectors.site, whole.start + dose * whole.step)
        said = ask(study.model, [prompt] * len(labels), tokens=wanted, patch=patch)
        own, predicted = said.logprob.exp().unbind(1)
        found.append(
            labels.assign(
                layer=known.vectors.site.layer,
                dose=float(dose),
                p_own=own.numpy(),
                p_predicted=np.where(labels["predicted"].notna(), predicted.numpy(), np.nan),
                says=[study.model.tokens.word(token) for token in said.top.tolist()],
            )
        )
    return pd.concat(found, ignore_index=True)


def title_of(row: pd.Series) -> str:
    """Return the heading of a fact's curves; it names their layer where that is not the waypoint's."""
    where = f" (layer {row['tested_layer']:.0f})" if tested_later(row) else ""
    return f"{row['cue']} → {row['concept']} → {row['answer']}{where}"


def write_doses(doses: pd.DataFrame, folder: Path, *, title: str) -> None:
    """Write doses.csv and doses.png into `folder`.

    Raises:
        InputError: the folder cannot be written.
    """
    from mnemo.plot import dose_figure

    write_csv(doses, folder / "doses.csv")
    with replacing(folder / "doses.png") as draft:
        dose_figure(doses, title=title).savefig(draft, dpi=150, format="png")


@dataclass(frozen=True)
class _Curve:
    """Trials of one intervention: states to start from, what to add to each, and the concepts that this is about."""

    name: str
    start: Float[Tensor, "trial d"]
    step: Float[Tensor, "trial d"]
    concepts: Int[Tensor, " trial"]
    predicts: bool

    @classmethod
    def joined(cls, curves: Sequence[_Curve]) -> _Curve:
        start, step, concepts = (
            torch.cat([getattr(curve, name) for curve in curves]) for name in ("start", "step", "concepts")
        )
        return cls("all", start, step, concepts, predicts=False)

    def labels(self, table: ConceptTable, study: Study) -> pd.DataFrame:
        concepts = self.concepts.tolist()
        return pd.DataFrame(
            {
                "curve": self.name,
                "concept": [table.phrases[c] for c in concepts],
                "trial": range(len(concepts)),
                "predicted": [
                    study.model.tokens.word(int(table.answers[c])) if self.predicts else None for c in concepts
                ],
            }
        )


def _curves(
    study: Study, known: StudyConcepts, row: pd.Series, *, targets: int, seed: int
) -> tuple[list[_Curve], Prompt, int]:
    """All interventions on one fact; its prompt and the token of its answer."""
    table, concepts, answers, vectors = known.table, known.concepts, known.answers, known.vectors
    fact = torch.tensor([known.rows[row["fact_id"]]])
    if concepts[fact] < 0:
        raise MnemoError(
            f"the concept {row['concept']!r} of fact {row['fact_id']!r} cannot be spelled in concept_recall"
        )
    own, support = concepts[fact], vectors.counts
    others = choose_targets(table, support, answers=answers[fact], concepts=own, n_targets=targets, seed=seed)[0]
    others = others[others >= 0]
    rivals = table.others_with(table.answers[own], own)[0].nonzero()[:targets, 0]
    drawn = resampled(vectors, fact, concepts=own, seed=seed, most=RANDOM)[0]
    drawn = drawn[drawn >= 0]
    draw = torch.Generator().manual_seed(seed)
    state, vector = vectors.states[fact], vectors.seen_by(fact, own)

    def moved(name: str, start: Tensor, step: Tensor, to: Tensor, *, predicts: bool = False) -> _Curve:
        return _Curve(name, start.expand(len(step), -1), step, to, predicts)

    def from_own(to: Int[Tensor, " trial"]) -> Float[Tensor, "trial d"]:
        return vectors.between(fact.expand(len(to)), own.expand(len(to)), other=to)

    aimed = others.repeat_interleave(-(-RANDOM // max(len(others), 1)))
    found = [
        moved("swap", state, from_own(others), others, predicts=True),
        moved("prompt swap", state, vectors.from_prompts[others] - vectors.from_prompts[own], others, predicts=True),
        moved("random swap", state, like(from_own(aimed), draw), aimed, predicts=True),
        moved("same answer", state, from_own(rivals), rivals),
        moved("remove", state, -vector, own),
        moved("resample", state, from_own(drawn), drawn),
        moved("random removal", state, like(vector.expand(RANDOM, -1), draw), own.expand(RANDOM)),
        moved("suffice", vectors.mean[None], vector, own),
        moved("other suffices", vectors.mean[None], vectors.seen_by(fact.expand(len(others)), others), others),
    ]
    return [curve for curve in found if len(curve.step)], study.prompt(row["fact_id"]), int(answers[fact])


def _why(study: Study, row: pd.Series) -> str:
    if not row["recalled"]:
        return f"the model answers {row['predicted']!r}, not {row['answer']!r}"
    return study.notes[0] if study.notes else "nothing was read at the waypoint"
