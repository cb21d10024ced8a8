"""Which reader does a task allow? One through its own `verbalise` prompt, one that compares, or one that repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnemo.concept_vectors import ask_concepts
from mnemo.concepts import Bank, Reader, ReadsConcepts
from mnemo.errors import MnemoError
from mnemo.facts import Fact, Task

if TYPE_CHECKING:
    from mnemo.model import Model


def reader_for(model: Model, task: Task, facts: Sequence[Fact]) -> tuple[ReadsConcepts | None, list[str]]:
    """Return what the concepts of these facts can be read with, None if there is nothing, and notes for the user.

    Args:
        model: the model.
        task: its `verbalise` template comes first, then its lexicon, then a prompt that repeats words.
        facts: what is to be read.

    Raises:
        MnemoError: a template of the task cannot be used.
    """
    lexicon = task.load_lexicon()
    if task.verbalise is not None:
        cue, *others = dict.fromkeys(fact.cue for fact in facts)
        reader = Reader.for_task(model, task, cue=cue, spare_cue=others[0] if others else None, lexicon=lexicon)
        return reader, _notes_on_lexicon(lexicon, len(reader.lexicon))
    notes: list[str] = []
    known = 0
    if task.concept_recall:
        with task.blaming("concept_recall"):
            table = ask_concepts(model, task.concept_recall, lexicon)
        known = len(table)
        notes = _notes_on_lexicon(lexicon, known)
        if known > 1:
            notes.append("the task has no verbalise template: concepts are those of the lexicon, read by comparison")
            return Bank(model, table.phrases, table.prompts), notes
    try:
        reader = Reader.by_identity(model, max_tokens=task.max_concept_tokens, lexicon=lexicon)
    except MnemoError as error:
        why = f"the task has no verbalise template, {known} lexicon phrases can be asked about, and {error}"
        return None, [*notes, f"{why}: no concept was looked for or tested"]
    return reader, [*notes, "the task has no verbalise template: concepts are read in a prompt that repeats words"]


def _notes_on_lexicon(lexicon: Sequence[str], spelled: int) -> list[str]:
    left = len(lexicon) - spelled
    return [f"{left} of {len(lexicon)} lexicon phrases cannot be spelled by the tokenizer: left out"] if left else []
