"""Which readers does a task allow, and how do they read the same state? Each of them is a `ReadsConcepts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from mnemo.concept_vectors import ask_concepts
from mnemo.concepts import Bank, Others, PromptReader, ReadsConcepts, chance
from mnemo.errors import MnemoError
from mnemo.facts import Fact, Task
from mnemo.lenses import Lens
from mnemo.prompts import Prompt, render

if TYPE_CHECKING:
    from mnemo.model import Model
    from mnemo.study import Study

LISTED = 5  # readings of each reader, where readers are compared
WIDE = 512  # residual stream from which on fitting a Jacobian lens takes a CPU minutes


def reader_for(model: Model, task: Task, *, facts: Sequence[Fact]) -> tuple[ReadsConcepts | None, list[str]]:
    """Return what the concepts of these facts can be read with, None if there is nothing, and notes for the user.

    Args:
        model: the model.
        task: its `verbalise` template comes first, then its lexicon, then a prompt that repeats words, then a lens.
        facts: what is to be read.

    Raises:
        MnemoError: a template of the task cannot be used.
    """
    lexicon = task.load_lexicon()
    if task.verbalise is not None:
        reader = _asking(model, task, facts, lexicon)
        return reader, _notes_on_lexicon(lexicon, len(reader.lexicon))
    bank = _comparing(model, task, lexicon)
    notes = _notes_on_lexicon(lexicon, len(bank.phrases)) if bank is not None else []
    if bank is not None and len(bank.phrases) > 1:
        notes.append("the task has no verbalise template: concepts are those of the lexicon, read by comparison")
        return bank, notes
    try:
        reader = _repeating(model, task, lexicon)
    except MnemoError as error:
        known = len(bank.phrases) if bank is not None else 0
        why = f"the task has no verbalise template, {known} lexicon phrases can be asked about, and {error}"
        lens, note = _last_resort(model, task, facts, why)
        return lens, [*notes, note]
    return reader, [*notes, "the task has no verbalise template: concepts are read in a prompt that repeats words"]


def _last_resort(model: Model, task: Task, facts: Sequence[Fact], why: str) -> tuple[Lens | None, str]:
    """A lens, the Jacobian one if it can be had, where nothing can be asked (and why not); and a note."""
    prompts = _recalls(model, task, facts)
    logit = Lens(model, prompts[0])
    try:  # whether the library reads such a model at all
        logit.of_tokens(torch.zeros(1, dtype=torch.long), torch.ones(1, model.d_model), layer=model.n_layers)
    except MnemoError as error:
        return None, f"{why}, and {error}: no concept was looked for or tested"
    try:
        lens, which = _fitted(model, prompts), "the Jacobian lens"
    except MnemoError as error:
        lens, which = logit, f"the logit lens ({error})"
    left = "those of several tokens were not looked for, and a fact that goes through none is unsure, not rote"
    return lens, f"{why}: concepts are read as single tokens, with {which}; {left}"


def _fitted(model: Model, prompts: Sequence[Prompt], *, layers: Sequence[int] | None = None) -> Lens:
    """Fit the Jacobian lens.

    Raises:
        MnemoError: it cannot be fitted, or not within minutes.
    """
    if model.device.type == "cpu" and model.d_model > WIDE:
        raise MnemoError(
            f"the Jacobian lens is left out: to fit it takes a CPU minutes where the stream is wider than {WIDE}"
        )
    return Lens.fitted(model, prompts, layers=layers)


def _asking(model: Model, task: Task, facts: Sequence[Fact], lexicon: Sequence[str]) -> PromptReader:
    cue, *others = dict.fromkeys(fact.cue for fact in facts)
    return PromptReader.for_task(model, task, cue=cue, spare_cue=others[0] if others else None, lexicon=lexicon)


def _comparing(model: Model, task: Task, lexicon: Sequence[str]) -> Bank | None:
    if not task.concept_recall:
        return None
    with task.blaming("concept_recall"):
        table = ask_concepts(model, task.concept_recall, phrases=lexicon)
    return Bank(model, table.phrases, table.prompts)


def _repeating(model: Model, task: Task, lexicon: Sequence[str]) -> PromptReader:
    return PromptReader.by_identity(model, max_tokens=task.max_concept_tokens, lexicon=lexicon)


def _recalls(model: Model, task: Task, facts: Sequence[Fact]) -> list[Prompt]:
    return [render(task.recall, fact.cue, tokenizer=model.tokens) for fact in facts]


def _notes_on_lexicon(lexicon: Sequence[str], spelled: int) -> list[str]:
    left = len(lexicon) - spelled
    return [f"{left} of {len(lexicon)} lexicon phrases cannot be spelled by the tokenizer: left out"] if left else []


# ---- readers side by side


def compare_readers(study: Study, fact_id: str, *, seed: int = 0) -> pd.DataFrame:
    """Read one fact's state at the waypoint with every reader that its task allows, and with both lenses.

    Args:
        study: what `extract` found.
        fact_id: a recalled fact.
        seed: draws the facts that readings are compared with, and the states that chance is measured on.

    Returns:
        up to LISTED rows for each reader, the best first: `reader` (``verbalise``, ``lexicon``, ``repeated words``,
        ``logit lens``, ``Jacobian lens``), `rank` from 1, `phrase`, `logprob` and `ratio` (as in `Reading`), `p_value`
        (of the best, see `mnemo.concepts.chance`; NaN for the others) and `note`, which says why a reader that reads
        nothing does not (one row without a phrase).

    Raises:
        MnemoError: the study has no waypoint, or the fact is unknown or not recalled.
    """
    if study.waypoint is None:
        raise MnemoError("this study has no waypoint, so there is no state to read: see its notes")
    facts = study.recalled_facts([fact_id])
    asked, row = list(facts.values()), list(facts).index(fact_id)
    states, layer = study.waypoint.states, study.waypoint.site.layer
    others = Others(states, asked)
    found = []
    for name, make in _readers(study.model, study.task, asked, layer=layer).items():
        try:
            reader = make()
            (best,) = reader.read(states[row][None], layer=layer, facts=[asked[row]], seed=seed, others=others)
            (p_value,) = chance(reader, states, readings=[best], layer=layer, facts=asked, seed=seed)
        except MnemoError as error:  # the others may read it
            found.append({"reader": name, "rank": 1, "note": str(error)})
            continue
        if not best:
            found.append({"reader": name, "rank": 1, "p_value": 1.0, "note": "reads nothing that may be a concept"})
        for rank, reading in enumerate(best[:LISTED], start=1):
            said = {"phrase": reading.phrase, "logprob": reading.logprob, "ratio": reading.ratio}
            found.append({"reader": name, "rank": rank, **said, "p_value": p_value if rank == 1 else None})
    return pd.DataFrame(found, columns=["reader", "rank", "phrase", "logprob", "ratio", "p_value", "note"])


def _readers(model: Model, task: Task, facts: Sequence[Fact], *, layer: int) -> dict[str, Callable[[], ReadsConcepts]]:
    """What makes each reader that the task has the texts for; some cannot be made of a model, and say so."""
    lexicon, prompts = task.load_lexicon(), _recalls(model, task, facts)

    def comparing() -> Bank:
        bank = _comparing(model, task, lexicon)
        if bank is None or len(bank.phrases) < 2:
            raise MnemoError("fewer than two phrases of the lexicon can be asked about")
        return bank

    readers: dict[str, Callable[[], ReadsConcepts]] = {}
    if task.verbalise is not None:
        readers["verbalise"] = lambda: _asking(model, task, facts, lexicon)
    if task.concept_recall and lexicon:
        readers["lexicon"] = comparing
    readers["repeated words"] = lambda: _repeating(model, task, lexicon)
    readers["logit lens"] = lambda: Lens(model, prompts[0])
    readers["Jacobian lens"] = lambda: _fitted(model, prompts, layers=[layer])
    return readers
