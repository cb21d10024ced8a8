"""The concepts of a finished study as vectors at its waypoint: what any further intervention on it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.concept_vectors import ConceptTable, ConceptVectors, agrees, ask_concepts, concept_vectors
from mnemo.errors import MnemoError
from mnemo.patching import Site, read_stream
from mnemo.prompts import answer_token, render

if TYPE_CHECKING:
    from mnemo.study import Study


@dataclass(frozen=True)
class StudyConcepts:
    """Every concept of the facts of a study, and the vectors that swap them.

    Attributes:
        table: the concepts and the answer that the model gives for each.
        vectors: theirs at the waypoint, or in another layer at its position, each without the state of the fact that
            looks at it.
        answers: answer token of each recalled fact.
        concepts: row of `table` of each recalled fact's concept; -1 for none.
        rows: place of each recalled fact among them, by fact_id.
    """

    table: ConceptTable
    vectors: ConceptVectors
    answers: Int[Tensor, " fact"]
    concepts: Int[Tensor, " fact"]
    rows: dict[str, int]

    def find(self, phrase: str) -> int:
        """Return the row of a concept in `table`.

        Raises:
            MnemoError: it is not there.
        """
        if phrase not in self.table.phrases:
            raise MnemoError(f"the concept {phrase!r} cannot be asked about: its tokenizer cannot spell it")
        return self.table.phrases.index(phrase)

    def swap(self, fact_id: str, phrase: str) -> Float[Tensor, " d"]:
        """Return what takes a fact's state, where the vectors are, from its own concept to another.

        Raises:
            MnemoError: the fact has no concept, or the other one is unknown.
        """
        fact = torch.tensor([self.rows[fact_id]])
        own, other = self.concepts[fact], torch.tensor([self.find(phrase)])
        if own < 0:
            raise MnemoError(f"no concept was read for fact {fact_id!r}, so there is none to swap")
        return self.vectors.between(fact, own, other=other)[0]


def study_concepts(study: Study, *, also: Sequence[str] = (), layer: int | None = None) -> StudyConcepts:
    """Collect the concepts of a study.

    Args:
        study: what `extract` found.
        also: further phrases; they have no cues, so their vectors come from their own prompts.
        layer: another layer than the waypoint's for the vectors.

    Raises:
        MnemoError: the study has no waypoint, or its task cannot ask about concepts.
    """
    if study.waypoint is None or study.task.concept_recall is None:
        why = study.notes[0] if study.notes else "nothing was read"
        raise MnemoError(f"this study has no concepts to move: {why}")
    facts = study.table[study.table["recalled"]].reset_index(drop=True)
    phrases = [phrase if isinstance(phrase, str) else None for phrase in facts["concept"]]
    wanted = [*(phrase for phrase in phrases if phrase), *also]
    tokens = study.model.tokens
    recall = render(study.task.recall, facts["cue"].iloc[0], tokenizer=tokens)
    table = ask_concepts(study.model, study.task.concept_recall, phrases=wanted, as_after=recall)
    concepts = table.rows_of(phrases)
    answers = torch.tensor(
        [
            answer_token(render(study.task.recall, cue, tokenizer=tokens), answer, tokenizer=tokens).id
            for cue, answer in zip(facts["cue"], facts["answer"], strict=True)
        ]
    )
    contributes = torch.where(agrees(answers, concepts, table=table), concepts, -1)
    site, states = study.waypoint.site, study.waypoint.states
    if layer is not None and layer != site.layer:
        site = Site(layer, site.position)
        prompts = [study.prompt(fact_id) for fact_id in facts["fact_id"]]
        states = read_stream(study.model, prompts, positions=[site.position])[:, site.layer, 0]
    vectors = concept_vectors(study.model, table, states=states, contributes=contributes, site=site)
    rows = {fact_id: i for i, fact_id in enumerate(facts["fact_id"])}
    return StudyConcepts(table, vectors, answers, concepts, rows)
