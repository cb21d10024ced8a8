"""When does a route through a concept appear? The measurements that are taken at every checkpoint of a course.

The site is chosen once, on the model before it learns anything, by what it knows already. Concept vectors are read
from the cues' recall prompts, to which it has no answer yet. *First hop*: do they mean the concept to the model, that
is, added to what it reads when it is asked what a cue stands for, do they make it say another phrase? *Second hop*:
added in a concept's own prompt, do they make it give another concept's answer? The product is how far a route through
the concept lies ready. So the choice knows nothing of what is taught later, and is the same for every arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mnemo.concept_vectors import ConceptVectors, ask_concepts, choose_targets, concept_vectors, like
from mnemo.contrasts import Contrast
from mnemo.errors import MnemoError
from mnemo.facts import Fact
from mnemo.learning.arms import Lesson, Survey
from mnemo.model import Model, load
from mnemo.multipliers import averaged_multipliers
from mnemo.patching import Patch, Site, ask, read_stream
from mnemo.prompts import AnswerToken, Prompt
from mnemo.tested_facts import TestedFacts
from mnemo.trials import run_trials
from mnemo.verdict import weigh
from mnemo.waypoints import sites_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TARGETS = 4  # concepts that each fact is swapped to
TRACED = 6  # facts whose paths are traced at each checkpoint
SAMPLE = 48  # cues that the site is chosen by


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which to measure: 0, the powers of two, and the end."""
    return [0, *(2**k for k in range(steps.bit_length()) if 2**k < steps), steps]


def choose_site(model: Model, survey: Survey, *, seed: int = 0) -> tuple[Site, pd.DataFrame]:
    """Return the site with the best ready route, and the table of all candidates.

    Candidates are the residual stream after every block but the last, at the cue's last token and at the last token.
    The table has `layer`, `position`, `first_hop` and `second_hop` (probability of the first token of the other
    concept's phrase, and of its answer), the same under random directions of the same norm (`first_control`,
    `second_control`), and `ready`, the product of what the hops have above their controls.

    Args:
        model: the model before it learns.
        survey: what it knows.
        seed: draws cues, targets and random directions.

    Raises:
        MnemoError: no two cues evoke concepts, or the model has fewer than two blocks.
    """
    evoking = survey.evoking.nonzero()[:, 0]
    if len(survey.concepts[evoking].unique()) < 2 or model.n_layers < 2:
        raise MnemoError("fewer than two concepts are evoked by any cue, or the model has one block: nothing to follow")
    draw = torch.Generator().manual_seed(seed)
    rows = evoking[torch.randperm(len(evoking), generator=draw)[:SAMPLE]]
    own, table = survey.concepts[rows], survey.table
    other = own.roll(1)
    while (same := own == other).any():
        other[same] = survey.concepts[evoking[torch.randint(len(evoking), (int(same.sum()),), generator=draw)]]
    phrases = torch.tensor([model.tokens.continuation(survey.verbalise[0].text, p)[0] for p in table.phrases])
    asked = (
        ("first", [survey.verbalise[i] for i in rows.tolist()], phrases[other]),
        ("second", [table.prompts[c] for c in own.tolist()], table.answers[other]),
    )
    last = survey.said.prompts[0].last - len(survey.said.prompts[0])
    found = []
    for position in dict.fromkeys((last, -1)):
        stream = read_stream(model, survey.said.prompts, positions=[position])[:, :, 0]
        hosts = {hop: read_stream(model, prompts, positions=[position])[:, :, 0] for hop, prompts, _ in asked}
        for site in sites_at(model, position):
            contributes = torch.where(survey.evoking, survey.concepts, -1)
            vectors = concept_vectors(model, table, states=stream[:, site.layer], contributes=contributes, site=site)
            step = vectors.between(rows, own, other=other)
            row: dict[str, float] = {"layer": site.layer, "position": position}
            for hop, prompts, wanted in asked:
                for name, added in (("hop", step), ("control", like(step, draw))):
                    patch = Patch(site, hosts[hop][:, site.layer] + added)
                    said = ask(model, prompts, tokens=wanted[:, None], patch=patch).logprob
                    row[f"{hop}_{name}"] = said.exp().mean().item()
            hops = (max(0.0, row[f"{hop}_hop"] - row[f"{hop}_control"]) for hop, *_ in asked)
            found.append(row | {"ready": math.prod(hops)})
    candidates = pd.DataFrame(found)
    best = candidates.loc[candidates["ready"].idxmax()]
    return Site(int(best["layer"]), int(best["position"])), candidates


@dataclass(frozen=True)
class Watch:
    """Measures a model about a lesson; call it at every checkpoint.

    Attributes:
        survey: what the model knew before.
        tokenizer: of the model.
        site: where concepts are moved, from `choose_site`.
        lesson: the facts that are taught.
        traced: how many of them are traced by paths; 0 for none.
        seed: draws targets and random directions, the same ones at every checkpoint.
    """

    survey: Survey
    tokenizer: PreTrainedTokenizerBase
    site: Site
    lesson: Lesson
    traced: int = TRACED
    seed: int = 0

    def __call__(self, model: PreTrainedModel) -> pd.DataFrame:
        """Return a row for each fact of the lesson.

        `probability` of the answer; `swap_success`, `swap_control`, `mediated_fraction`, `sufficiency`,
        `ablation_drop` and `strength` as `mnemo.verdict.weigh` has them; for the traced facts what `through_directions`
        gives for the direction between two facts' concepts and, as ``control``, between two others. Facts whose cue
        evokes no concept have a probability alone.
        """
        loaded = self._load(model)
        said = ask(loaded, self.lesson.prompts, tokens=self.lesson.answers[:, None])
        table = pd.DataFrame(
            {"fact_id": self.lesson.fact_ids, "probability": said.logprob[:, 0].exp().numpy(),
             "recalled": (said.top == self.lesson.answers).numpy()}
        )  # fmt: skip
        tested = (self.lesson.concepts >= 0).nonzero()[:, 0]
        if not len(tested):
            return table
        vectors, rows = self._vectors(loaded)
        evidence = self._swaps(loaded, vectors, rows, tested, said.logprob[:, 0].exp())
        table = table.join(evidence.set_axis(tested.tolist()))
        if self.traced:
            table = table.join(self._traced(loaded, self._pairs(vectors, rows)))
        return table

    def _vectors(self, model: Model) -> tuple[ConceptVectors, Int[Tensor, " fact"]]:
        """Concept vectors from all cues that evoked a concept at first, and the rows of the lesson's facts in them."""
        place = {fact.fact_id: i for i, fact in enumerate(self.survey.said.facts)}
        states = read_stream(model, self.survey.said.prompts, positions=[self.site.position])[:, self.site.layer, 0]
        contributes = torch.where(self.survey.evoking, self.survey.concepts, -1)
        vectors = concept_vectors(model, self._table(model), states=states, contributes=contributes, site=self.site)
        return vectors, torch.tensor([place[fact_id] for fact_id in self.lesson.fact_ids])

    def _table(self, model: Model) -> Any:
        """The concepts as this model now answers for them: the prediction of a swap."""
        return ask_concepts(model, self.survey.task.concept_recall or "", phrases=self.survey.table.phrases)

    def _swaps(
        self,
        model: Model,
        vectors: ConceptVectors,
        rows: Int[Tensor, " fact"],
        tested: Int[Tensor, " tested"],
        probability: Float[Tensor, " fact"],
    ) -> pd.DataFrame:
        table, concepts, answers = self._table(model), self.lesson.concepts[tested], self.lesson.answers[tested]
        targets = choose_targets(
            table, vectors.counts, answers=answers, concepts=concepts, n_targets=TARGETS, seed=self.seed
        )
        tested_facts = TestedFacts(model, self.survey.said.prompts, rows[tested], answers, concepts, table, vectors)
        columns = ["swap_success", "swap_control", "mediated_fraction", "sufficiency", "ablation_drop", "strength"]
        return weigh(run_trials(tested_facts, targets, seed=self.seed), probability[tested])[columns]

    def pairs(self, model: PreTrainedModel) -> list[Pair]:
        """Return which facts are traced, against which others, and the directions of their concepts in this model."""
        return self._pairs(*self._vectors(self._load(model)))

    def traced_paths(self, model: PreTrainedModel, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Return a row for each pair, as `through_directions` gives it."""
        return self._traced(self._load(model), pairs)

    def _load(self, model: PreTrainedModel) -> Model:
        return load(model, tokenizer=self.tokenizer, check=False)

    def _pairs(self, vectors: ConceptVectors, rows: Int[Tensor, " fact"]) -> list[Pair]:
        lesson, rng = self.lesson, np.random.default_rng(self.seed)
        found = []
        for i in (lesson.concepts >= 0).nonzero()[: self.traced, 0].tolist():
            rivals = [
                j
                for j in range(len(lesson))
                if lesson.concepts[j] not in (-1, lesson.concepts[i])
                and lesson.answers[j] != lesson.answers[i]
                and len(lesson.prompts[j]) == len(lesson.prompts[i])
            ]
            if rivals:
                j = rivals[rng.integers(len(rivals))]
                ours = lesson.concepts[[i, j]]
                strange = [c for c in range(len(vectors.counts)) if c not in ours.tolist()]
                others = torch.from_numpy(rng.choice(strange, 2, replace=False))
                seen = [vectors.seen_by(rows[[i, j]], concepts) for concepts in (ours, others)]
                found.append(Pair(i, j, *(normalize(both[0] - both[1], dim=0) for both in seen)))
        return found

    def _traced(self, model: Model, pairs: Sequence[Pair]) -> pd.DataFrame:
        rows = [
            through_directions(
                model,
                self._contrast(model, pair),
                site=self.site,
                directions={"concept": pair.concept, "control": pair.control},
            )
            for pair in pairs
        ]
        return pd.DataFrame(rows, index=[pair.clean for pair in pairs])

    def _contrast(self, model: Model, pair: Pair) -> Contrast:
        def side(k: int) -> tuple[Fact, Prompt, AnswerToken]:
            token = int(self.lesson.answers[k])
            answer = AnswerToken(token, model.tokens.pieces([token])[0], True)
            fact = next(f for f in self.survey.said.facts if f.fact_id == self.lesson.fact_ids[k])
            return fact, self.lesson.prompts[k], answer

        (fact, clean, answer), (other, corrupt, contrast_answer) = side(pair.clean), side(pair.corrupt)
        return Contrast(fact, other, clean, corrupt, answer, contrast_answer)


@dataclass(frozen=True)
class Pair:
    """Two facts of a lesson that are told apart, and unit directions at the site.

    Attributes:
        clean, corrupt: rows of the lesson.
        concept: from the second fact's concept to the first one's; neither fact contributes to it.
        control: the same for two other concepts.
    """

    clean: int
    corrupt: int
    concept: Float[Tensor, " d"]
    control: Float[Tensor, " d"]


def through_directions(
    model: Model, contrast: Contrast, *, site: Site, directions: Mapping[str, Float[Tensor, " d"]]
) -> dict[str, float]:
    """Return what the paths through a site carry, and what some directions of the stream there carry of it.

    All paths through a site together carry delta . gamma: the change of the stream there between the corrupt and the
    clean run, times the gradient of all that follows, averaged between the two runs (`mnemo.multipliers`). Of that a
    unit vector u carries (delta . u)(u . gamma), and the vectors of an orthonormal basis add up to the whole.

    Returns:
        `total` (metric(clean) - metric(corrupt)) and `site_path`, in logits; and for each direction `..._path` in
        logits, `..._share` of the total, and its factors `..._delta` and `..._gradient`.
    """
    multipliers, totals = averaged_multipliers(model, contrast)
    per_block = (len(multipliers.writers) - 1) // model.n_layers
    delta = multipliers.deltas[: 1 + site.layer * per_block].sum(0)[site.position]
    gradient = totals.stream[site.layer][site.position]
    found = {"total": multipliers.total, "site_path": float(delta @ gradient)}
    for name, direction in directions.items():
        along, by = float(delta @ direction.to(delta)), float(gradient @ direction.to(delta))
        found |= {f"{name}_path": along * by, f"{name}_share": along * by / multipliers.total}
        found |= {f"{name}_delta": along, f"{name}_gradient": by}
    return found
