"""What does the first gradient amplify? Of what it is predicted to teach, the share that flows through the concept.

A fact is learned when the model tells it from others: T = metric(clean) - metric(corrupt), the contrast that is traced
(`mnemo.tracing`), rises. A step against the gradient g of the lesson's loss changes it, per unit of step, by dT, its
derivative along -g, and any loss of telling the two facts apart falls in proportion. What all facts have in common,
such as answers that become likelier everywhere, is on both sides of the contrast and drops out.

All paths through the concept's direction u at the site carry C = (delta . u)(u . gamma): how much the cues differ in
the concept there, times how much the concept then moves the answer. So, by the product rule,

    dC = d(delta . u)(u . gamma)  +  (delta . u) d(u . gamma)
         first hop, read as before   second hop, of what is there already

and each term makes one hop louder *in proportion to the other as it already is*: where no path exists, both are zero.
The share dC / dT is thus how much of the predicted learning is the amplification of a path that exists before the
first step. The control is the direction of two concepts that the cues do not evoke.

Derivatives are central differences of the traced model in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from mnemo.learning.teach import said_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mnemo.learning.emergence import Watch

# Of the central difference, as a share of the length of all weights. Derivatives are then off by less than 1e-4: along
# longer steps the metric bends (1e-4: by 2e-3), shorter ones show that Llama takes its softmax in float32 (1e-6: 6e-4).
STEP = 1e-5
COLUMNS = ("total", "concept", "first_hop", "second_hop", "control")


def first_gradient(model: PreTrainedModel, watch: Watch) -> pd.DataFrame:
    """Return what the first step on a lesson is predicted to change, in logits per unit of step.

    Two steps are looked at: against the gradient, and against its signs, which is the first step that Adam takes.

    Args:
        model: a causal language model before it learns; left as it is.
        watch: what is taught, and where the concept is followed.

    Returns:
        a row for each step (``gradient``, ``adam``) and traced fact: `step`, `fact_id`, `total` (dT), `concept` (dC),
        its terms `first_hop` and `second_hop`, and `control` (dC of the control's direction).
    """
    frozen: Any = copy.deepcopy(model).double().eval().requires_grad_(True)
    lesson = watch.lesson
    weights = list(frozen.parameters())
    gradients = torch.autograd.grad(F.cross_entropy(said_by(frozen, lesson.prompts), lesson.answers), weights)
    pairs = watch.pairs(frozen)
    length = _length([w.detach() for w in weights])

    def traced(step: Sequence[Tensor], by: float) -> pd.DataFrame:
        moved = copy.deepcopy(frozen).requires_grad_(False)
        for w, change in zip(moved.parameters(), step, strict=True):
            w.add_(change, alpha=by)
        return watch.traced_paths(moved, pairs)

    now = traced(gradients, 0.0)
    found = []
    for name, step in (("gradient", gradients), ("adam", [g.sign() for g in gradients])):
        size = STEP * length / _length(step)
        change = (traced(step, -size) - traced(step, size)) / (2 * size)
        found.append(
            pd.DataFrame(
                {
                    "step": name,
                    "fact_id": [lesson.fact_ids[pair.clean] for pair in pairs],
                    "total": change["total"],
                    "concept": change["concept_path"],
                    "first_hop": change["concept_delta"] * now["concept_gradient"],
                    "second_hop": now["concept_delta"] * change["concept_gradient"],
                    "control": change["control_path"],
                }
            )
        )
    return pd.concat(found, ignore_index=True)


def shares(changes: pd.DataFrame) -> pd.DataFrame:
    """Return each change as a share of the total one, summed over facts, a row for each `step`."""
    total = changes.groupby("step")[list(COLUMNS)].sum()
    return total.div(total["total"], axis=0).drop(columns="total").reset_index()


def _length(tensors: Sequence[Tensor]) -> float:
    return torch.stack([t.norm() for t in tensors]).norm().item()
