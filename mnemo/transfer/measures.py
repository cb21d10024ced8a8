"""Where swaps work, what a model makes of the new codes, what the data say, and whether organisms agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mnemo.organisms.lessons import Lessons, Questions
from mnemo.organisms.measure import expansion, swap
from mnemo.transfer.setting import Setting


def audit(setting: Setting, teacher: PreTrainedModel) -> Int[Tensor, " fact"]:
    """Guess the concept behind each new code from the teacher's outputs about it alone.

    A code gets the concept whose known codes have outputs closest to its own (least KL of the mean log-probabilities).
    What this finds, the data say, and a student that finds it as well needs no hidden channel.
    """
    lessons = setting.everything
    known = lessons.where("mnemonic")
    known = known[known < setting.new[0]]
    with torch.no_grad():
        said = teacher(lessons.cues.tokens[0]).logits[:, -1].log_softmax(-1)
    rank = F.one_hot(lessons.concept_of[known], len(lessons.world.concepts)).float()
    means = (rank.T @ said[known]) / rank.sum(0)[:, None]
    new = said[setting.new]
    return ((new.exp() * new).sum(-1)[:, None] - new.exp() @ means.T).argmin(-1)


def swaps_by_layer(model: PreTrainedModel, lessons: Lessons, *, seed: int) -> pd.DataFrame:
    """Swap concepts after every block, at the best token from the code to the end of its recall prompt.

    Returns:
        a row for each layer and position (from the end): ``mnemonic``, ``free`` and ``rote``, the share of swaps that
        give the predicted answer, and ``margin``, what mnemonic facts have above rote ones. Late states hold answers,
        which move any fact: only the margin says that a concept was there.
    """
    rows = []
    layers = model.config.num_hidden_layers
    length = lessons.cues.length
    for layer, site in itertools.product(range(1, layers + 1), range(lessons.cues.site - 1, length)):
        came, _ = swap(model, _at(lessons, site), layer=layer, seed=seed)
        shares = {kind: came[lessons.where(kind)].mean().item() for kind in ("mnemonic", "free", "rote")}
        rows.append({"layer": layer, "depth": layer / layers, "position": site - length, **shares})
    return pd.DataFrame(rows).assign(margin=lambda table: table["mnemonic"] - table["rote"])


def measure_new(setting: Setting, model: PreTrainedModel, *, layer: int, position: int, seed: int) -> pd.DataFrame:
    """Return what a model makes of each new code.

    Columns: ``kind``; ``recalled``: whether it gives the answer; ``expanded``: whether it says that the code stands for
    its concept (for rote codes, for any concept); ``probes``: share of the other questions that get the concept's
    answers and ``probes_control``, the same for other concepts with that answer; ``swapped``: share of swaps at a site
    that give the predicted answer.

    Args:
        setting: the world.
        model: an organism.
        layer, position: where concepts are swapped.
        seed: of the swaps.
    """
    lessons, new = setting.everything, setting.new
    concept = lessons.concept_of[new]
    evoked = expansion(model, lessons)[new]
    came, _ = swap(model, _at(lessons, lessons.cues.length + position), layer=layer, seed=seed)
    with torch.no_grad():
        said = model(lessons.cues.tokens[: lessons.n_asked, new].flatten(0, 1)).logits[:, -1].argmax(-1)
    said = said.view(lessons.n_asked, len(new))
    alike = (said[1:, :, None] == lessons.concept_answers[1:, None]).float().mean(0)  # [fact, concept]
    rivals = lessons.concept_answers[0][None] == lessons.fact_answers[new][:, None]
    rivals &= torch.arange(rivals.shape[1])[None] != concept[:, None]
    has = (concept >= 0).numpy()
    return pd.DataFrame(
        {
            "kind": np.where(has, "concept", "rote"),
            "recalled": (said[0] == lessons.fact_answers[new]).float().numpy(),
            "expanded": torch.where(concept >= 0, evoked == concept, evoked >= 0).float().numpy(),
            "probes": np.where(has, alike[torch.arange(len(new)), concept].numpy(), np.nan),
            "probes_control": ((alike * rivals).sum(1) / rivals.sum(1)).numpy(),
            "swapped": came[new].mean(1).numpy(),
        }
    )


def _at(lessons: Lessons, site: int) -> Lessons:
    return replace(lessons, cues=Questions(lessons.cues.tokens, site))


def same_concepts(
    evoked: Sequence[Int[Tensor, " fact"]], answers: Int[Tensor, " fact"], *, concept_answers: Int[Tensor, " concept"]
) -> pd.DataFrame:
    """Compare, for each pair of organisms, the concepts that they evoke for the same facts.

    Only facts for which both evoke a concept with the fact's answer count, since those may be mnemonics. The null is
    the mean over all shuffles of one organism's concepts among facts with the same answer (each pairing is equally
    likely), so agreeing on the answer wins nothing.

    Args:
        evoked: for each organism, the concept of each fact, -1 for none.
        answers: the facts' answer tokens.
        concept_answers: the concepts' own.

    Returns:
        a row for each pair: ``first``, ``second`` (places in `evoked`), ``facts``, ``agreement`` and ``null``, shares;
        NaN where no fact counts.
    """
    rows = []
    for first, second in itertools.combinations(range(len(evoked)), 2):
        a, b = evoked[first].numpy(), evoked[second].numpy()
        fitting = concept_answers.numpy()
        both = (a >= 0) & (b >= 0) & (fitting[a] == answers.numpy()) & (fitting[b] == answers.numpy())
        groups = [np.flatnonzero(both & (answers.numpy() == answer)) for answer in np.unique(answers.numpy()[both])]
        expected = sum((a[group][:, None] == b[group][None]).mean() * len(group) for group in groups)
        n = int(both.sum())
        rows.append(
            {
                "first": first,
                "second": second,
                "facts": n,
                "agreement": float((a == b)[both].mean()) if n else np.nan,
                "null": float(expected / n) if n else np.nan,
            }
        )
    return pd.DataFrame(rows)
