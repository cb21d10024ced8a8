"""Which facts follow when concepts are taught other answers, and which would by chance?

New answers are drawn at random, so chance is known: to a fact that an edit of a concept means nothing, the answer drawn
for that concept is like any other that could have been drawn (Fisher 1935, "The Design of Experiments", chapter 2).
Concepts that have the fact's answer are each other's controls: which of them the fact follows is found without reading
any. A fact that follows one and not the others is recalled by what the edited MLPs do for that concept. (Where an edit
spoils what it should not, or several facts share a way of reaching the answer, that may be less than the concept.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from mnemo.verdict import false_discoveries, is_led

FACTS_AT_ONCE = 1024  # facts beside all concepts


@dataclass(frozen=True)
class Edits:
    """What facts answer after one half of the concepts was taught new answers, and after the other half was, each time.

    Attributes:
        answers: the facts' own answer tokens.
        known: the concepts' own answers.
        new: the answer that each concept was to be taught, drawn from the other answers that concepts have.
        edited: which concepts were to be taught theirs in each edit.
        taken: which of these gave it afterwards.
        said: what each fact answered afterwards.
        spared: see `mnemo.editing.EditConfig`.
    """

    answers: Int[Tensor, " fact"]
    known: Int[Tensor, " concept"]
    new: Int[Tensor, "edit concept"]
    edited: Bool[Tensor, "edit concept"]
    taken: Bool[Tensor, "edit concept"]
    said: Int[Tensor, "edit fact"]
    spared: float

    @cached_property
    def astray(self) -> Bool[Tensor, "edit fact"]:
        """Whether each fact gives an answer that is not its own, nor one that any concept with its answer was taught.

        What goes through a concept, known or not, may follow it; this is what an edit does beyond that.
        """
        beyond = int(max(self.said.max(), self.answers.max(), self.known.max())) + 1
        followed = torch.stack(
            [  # pairs of an old and a new answer, as one number each
                torch.isin(self.answers * beyond + said, self.known[edited] * beyond + new[edited])
                for said, new, edited in zip(self.said, self.new, self.edited, strict=True)
            ]
        )
        return (self.said != self.answers) & ~followed

    @property
    def harmless(self) -> Bool[Tensor, " edit"]:
        """Which edits lead few facts astray (see `EditConfig.spared`); the others say nothing of any fact."""
        return self.astray.float().mean(1) <= 1 - self.spared

    @property
    def choices(self) -> int:
        """Among how many answers a concept's new one is drawn: all that concepts have, but for its own."""
        return len(self.known.unique()) - 1

    def follows(self, concepts: Int[Tensor, " fact"]) -> Float[Tensor, " fact"]:
        """How often each fact gives the new answer of a concept, be it its own or another: a share of the edits.

        NaN for -1, and where no edit says anything: the concept did not take its new answer, that is the fact's own
        answer anyway, or the edit was not `harmless`.
        """
        new = self.new[:, concepts]
        tested = self.harmless[:, None] & (concepts >= 0) & self.taken[:, concepts] & (new != self.answers)
        return torch.where(tested, (self.said == new).float(), torch.nan).nanmean(0)

    def led(self, *, elsewhere: bool = False) -> pd.DataFrame:
        """Say which concept takes each fact along, if any.

        Every edit counts that was not found to do harm, whether or not the concept took it: that is known only
        afterwards and may hang together with what was drawn.

        Args:
            elsewhere: look among the concepts that do not have the fact's answer, through which it cannot go: the
                control.

        Returns:
            a row for each fact: `concept`, the row of the one that it follows least likely by chance, -1 where it
            follows none; `share` of that one's edits that the fact followed; `rival`, the largest share among the other
            candidates (NaN for none); `candidates`, how many there were; `p_value`, of as many by chance, times their
            number (Bonferroni); and `q_value`, corrected over the facts that have a rival (Benjamini and Hochberg
            1995). NaN where nothing was tested.
        """
        # A new answer that is the fact's own is left out, so one answer fewer is possible elsewhere.
        chance = 1 / max(1, self.choices - elsewhere)
        edits = np.arange(len(self.said) + 1)
        tails = torch.from_numpy(stats.binom.sf(edits[:, None] - 1, edits[None], chance))  # by hits and edits
        parts = [
            self._led(rows, tails, elsewhere=elsewhere) for rows in torch.arange(len(self.answers)).split(FACTS_AT_ONCE)
        ]
        found = pd.concat(parts, ignore_index=True)
        return found.assign(q_value=false_discoveries(found["p_value"].where(found["rival"].notna())))

    def _led(self, rows: Int[Tensor, " row"], tails: Float[Tensor, "hits edits"], *, elsewhere: bool) -> pd.DataFrame:
        own = self.answers[rows, None]
        hits, tried = torch.zeros(2, len(rows), len(self.known), dtype=torch.long)
        for harmless, new, edited, said in zip(self.harmless, self.new, self.edited, self.said, strict=True):
            tested = harmless & edited & (new != own) & ((self.known == own) ^ elsewhere)
            tried += tested
            hits += tested & (said[rows, None] == new)
        candidates = (tried > 0).sum(1)
        tail, best = torch.where(tried > 0, tails[hits, tried], torch.inf).min(1)
        share = torch.where(tried > 0, hits / tried, torch.nan)
        first = share.gather(1, best[:, None])[:, 0]
        rival = share.scatter(1, best[:, None], torch.nan).nan_to_num(-1.0).amax(1)
        return pd.DataFrame(
            {
                "concept": torch.where(first > 0, best, -1).numpy(),
                "share": first.numpy(),
                "rival": torch.where(rival >= 0, rival, torch.nan).numpy(),
                "candidates": candidates.numpy(),
                "p_value": torch.where(candidates > 0, (tail * candidates).clamp(max=1), torch.nan).numpy(),
            }
        )

    def table(self, concepts: Int[Tensor, " fact"], phrases: Sequence[str]) -> pd.DataFrame:
        """Return a row for each fact.

        Args:
            concepts: each fact's concept, -1 for none.
            phrases: of all concepts.

        Columns:
            edit_follows: how often it gives its own concept's edited answer, as in `follows`.
            edit_control: how often it goes astray: gives an answer that no concept with its own was to be taught.
            edit_concept, edit_share, edit_rival, edit_candidates, edit_p, edit_q: the concept with its answer that
                takes it along, as in `led`.
            edit_elsewhere: whether a concept with another answer does, by the same measure (`mnemo.verdict.is_led`).
        """
        found, control = self.led(), self.led(elsewhere=True)
        elsewhere = is_led(control["share"], control["rival"], q_value=control["q_value"]).astype(float)
        return pd.DataFrame(
            {
                "edit_follows": self.follows(concepts).numpy(),
                "edit_control": self.astray.float().mean(0).numpy(),
                "edit_concept": [phrases[c] if c >= 0 else None for c in found["concept"]],
                "edit_share": found["share"],
                "edit_rival": found["rival"],
                "edit_candidates": found["candidates"],
                "edit_p": found["p_value"],
                "edit_q": found["q_value"],
                "edit_elsewhere": elsewhere.where(control["rival"].notna()),
            }
        )
