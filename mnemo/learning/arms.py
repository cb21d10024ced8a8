"""What is there to learn, and what would help? Facts sorted by what the model already knows, and their controls.

*coincident*: the concept that the cue evokes, asked by itself, gives the fact's answer; *free*: another concept has the
answer; *impossible*: no concept has it; *known*: the model recalls the fact already, so there is nothing to learn. The
*rote* arm is made of the coincident one: the same cues, the same answers as often as before, dealt out so that no cue
gets its concept's answer and no two cues of a concept get the same. Whatever differs between the two arms is thus due
to which answer belongs to which cue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mnemo.behaviour import expand_cues, probe_prompts
from mnemo.concept_vectors import ConceptTable, agrees, ask_concepts
from mnemo.errors import MnemoError
from mnemo.facts import FactSet, Task
from mnemo.gate import Recalled, gate
from mnemo.patching import next_logprobs
from mnemo.prompts import Prompt, render

if TYPE_CHECKING:
    from mnemo.model import Model

Arm = Literal["coincident", "rote", "free", "impossible"]
ARMS: tuple[Arm, ...] = ("coincident", "rote", "free", "impossible")
SWAPS = 2000  # attempts to mend a shuffle, two answers at a time


@dataclass(frozen=True)
class Questions:
    """Prompts, and the token with which each should go on.

    Attributes:
        prompts: what is asked.
        answers: the first token of each answer, by which learning is measured. (Facts that the model says whole before
            it learns are *known*, see `mnemo.gate`.)
    """

    prompts: tuple[Prompt, ...]
    answers: Int[Tensor, " question"]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Lesson(Questions):
    """Facts of one arm.

    Attributes:
        arm: what is known to help.
        fact_ids: of the facts whose cues are asked.
        concepts: the concept, a row of `Survey.table`, that each cue evokes in the model before it learns; -1 for none.
    """

    arm: Arm
    fact_ids: tuple[str, ...]
    concepts: Int[Tensor, " question"]

    def only(self, rows: Sequence[int]) -> Lesson:
        """Return the same about some of the facts."""
        chosen = torch.as_tensor(rows, dtype=torch.long)
        return replace(
            self,
            prompts=tuple(self.prompts[i] for i in rows),
            answers=self.answers[chosen],
            fact_ids=tuple(self.fact_ids[i] for i in rows),
            concepts=self.concepts[chosen],
        )


@dataclass(frozen=True)
class Survey:
    """What a model knows before it learns.

    Attributes:
        task: how it is asked.
        said: all facts and what the model answers.
        table: the concepts and the answer that the model gives for each.
        concepts: what each fact's cue evokes, a row of `table`, -1 for none.
        verbalise: what asks each cue what it stands for.
        old: questions that the model answers now and should answer as before: known facts, concepts, their other
            questions.
    """

    task: Task
    said: Recalled
    table: ConceptTable
    concepts: Int[Tensor, " fact"]
    verbalise: tuple[Prompt, ...]
    old: Questions

    @property
    def evoking(self) -> Bool[Tensor, " fact"]:
        """Whether a cue evokes a concept with its fact's answer: a context of that concept, and no error of reading."""
        return agrees(self.said.answers, self.concepts, table=self.table)

    def kind(self, row: int) -> str:
        """Return ``known``, or the arm that a fact belongs to."""
        answer = self.said.answers[row]
        if self.said.recalled[row]:
            return "known"
        concept = int(self.concepts[row])
        if concept >= 0 and self.table.answers[concept] == answer:
            return "coincident"
        return "free" if (self.table.answers == answer).any() else "impossible"

    def lesson(self, arm: Arm, *, seed: int) -> Lesson:
        """Return all facts of an arm; `seed` shuffles the answers of the rote one.

        Raises:
            MnemoError: there are none, or the answers cannot be shuffled.
        """
        source = "coincident" if arm == "rote" else arm
        kinds = [self.kind(row) for row in range(len(self.said.facts))]
        rows = [row for row, kind in enumerate(kinds) if kind == source]
        if not rows:
            raise MnemoError(
                f"none of the {len(kinds)} facts is {source} ({kinds.count('known')} are known already): give facts "
                "that the model does not recall" + (", whose cues evoke a concept with their answer" * (arm == source))
            )
        chosen = torch.tensor(rows)
        answers, concepts = self.said.answers[chosen], self.concepts[chosen]
        if arm == "rote":
            answers = shuffled_answers(answers, concepts, own=self.table.answers[concepts], seed=seed)
        return Lesson(
            prompts=tuple(self.said.prompts[row] for row in rows),
            answers=answers,
            arm=arm,
            fact_ids=tuple(self.said.facts[row].fact_id for row in rows),
            concepts=concepts,
        )


def survey(model: Model, task: Task, *, facts: FactSet) -> Survey:
    """Ask the model all that it may know: every fact, what its cue stands for, and the concepts.

    Concepts are the phrases of the task's lexicon, or where it has none those that the cues are said to stand for.

    Raises:
        InputError: the task lacks `verbalise` or `concept_recall`.
        MnemoError: the model recalls every fact, or knows no concept.
    """
    for key in ("verbalise", "concept_recall"):
        if getattr(task, key) is None:
            raise task.fault(key, "missing: without it nobody can tell which concept a cue evokes and what it says")
    said = gate(model, task, facts=facts)
    if said.recalled.all():
        raise MnemoError(
            f"the model recalls all {len(facts)} facts already: give facts that it does not know, or an earlier model"
        )
    evoked = expand_cues(model, task, facts=said.facts)
    lexicon = task.load_lexicon() or [phrase for phrase in evoked if phrase]
    with task.blaming("concept_recall"):
        table = ask_concepts(model, task.concept_recall or "", phrases=lexicon)
    if len(table) < 2:
        raise MnemoError(f"{len(table)} concepts can be asked about, and shuffling needs two: give a lexicon")
    concepts = table.rows_of(evoked)
    with task.blaming("verbalise"):
        asked = tuple(render(task.verbalise or "", fact.cue, tokenizer=model.tokens) for fact in said.facts)
    return Survey(task, said, table, concepts, asked, _old(model, task, said, table))


def _old(model: Model, task: Task, said: Recalled, table: ConceptTable) -> Questions:
    known = said.only(said.recalled.nonzero()[:, 0])
    probes = probe_prompts(model, task, fillers=table.phrases)
    probed = torch.empty(len(probes), dtype=torch.long)
    for rows, logprobs in next_logprobs(model, probes) if probes else ():
        probed[rows] = logprobs.argmax(-1)
    return Questions((*known.prompts, *table.prompts, *probes), torch.cat([known.answers, table.answers, probed]))


def shuffled_answers(
    answers: Int[Tensor, " fact"], concepts: Int[Tensor, " fact"], *, own: Int[Tensor, " fact"], seed: int
) -> Int[Tensor, " fact"]:
    """Deal the answers out anew: no fact gets its concept's answer, no two facts of a concept get the same one.

    Args:
        answers: of the facts.
        concepts: of the facts.
        own: the answer of each fact's concept.
        seed: decides the draw.

    Raises:
        MnemoError: the answers do not allow it, for example because most are the same.
    """
    rng = np.random.default_rng(seed)
    dealt, group, mine = (t.numpy().copy() for t in (answers, concepts, own))
    rng.shuffle(dealt)

    def faults() -> np.ndarray:
        same = (group[:, None] == group) & (dealt[:, None] == dealt)
        return (dealt == mine) | (same.sum(1) > 1)

    wrong = faults()
    for _ in range(SWAPS):
        if not wrong.any():
            return torch.from_numpy(dealt)
        pair = [rng.choice(wrong.nonzero()[0]), rng.integers(len(dealt))]
        dealt[pair] = dealt[pair[::-1]]
        after = faults()
        if after.sum() > wrong.sum():
            dealt[pair] = dealt[pair[::-1]]
        else:
            wrong = after
    raise MnemoError(
        f"the answers of {len(answers)} facts ({len(np.unique(answers))} different ones) cannot be dealt out so that "
        "no concept helps: add facts with other answers"
    )


def divided(lesson: Lesson, *, taught: int, held: int, seed: int) -> tuple[Lesson, Lesson]:
    """Draw facts to teach and facts to hold out; no concept that a cue evokes is in both.

    So a held-out fact that is recalled was not copied from another cue of its concept.

    Args:
        lesson: all facts of an arm.
        taught, held: how many; fewer to hold out where there are not as many.
        seed: decides the draw; the same for arms with the same cues.

    Raises:
        MnemoError: fewer facts than are to be taught.
    """
    rng = np.random.default_rng(seed)
    group = lesson.concepts.numpy().copy() if lesson.arm in ("coincident", "rote") else np.arange(len(lesson))
    order = rng.permutation(np.unique(group))
    rows = [int(row) for g in order for row in rng.permutation(np.flatnonzero(group == g))]
    if len(rows) < taught:
        raise MnemoError(f"{taught} {lesson.arm} facts are to be taught, but there are only {len(rows)}: teach fewer")
    last = group[rows[taught - 1]]
    rest = [row for row in rows[taught:] if group[row] != last]
    return lesson.only(rows[:taught]), lesson.only(rest[:held])
