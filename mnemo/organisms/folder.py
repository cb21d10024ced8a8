"""Write an organism as a study folder, with the truth beside it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from mnemo.facts import Fact, FactSet, Task
from mnemo.files import replacing, write_text
from mnemo.organisms.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TRUTH = "truth.csv"
TRUTH_COLUMNS = ("fact_id", "kind", "concept", "split")


def write_folder(
    folder: Path, world: World, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    """Write task.toml, facts.csv, concepts.txt, truth.csv and model/ into `folder`.

    Args:
        folder: made if need be; files of these names in it are replaced.
        world: what the model was taught.
        model: the trained model.
        tokenizer: its tokenizer.
        name: what the task is called.
    """
    config = world.config
    Task(
        name=name,
        recall=config.recall,
        verbalise=config.verbalise,
        concept_recall=config.concept_recall,
        max_concept_tokens=config.concept_tokens,
        probes=tuple(config.question(relation, "{}") for relation in world.relations),
        facts="facts.csv",
        concepts="concepts.txt",
        model="model",
    ).write(folder)
    FactSet(facts=tuple(Fact(fact_id=f.fact_id, cue=f.cue, answer=f.answer) for f in world.facts)).write(
        folder / "facts.csv"
    )
    write_text(folder / "concepts.txt", "".join(f"{c.phrase}\n" for c in world.concepts))
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(TRUTH_COLUMNS)
    for f in world.facts:
        writer.writerow((f.fact_id, f.kind, f.concept.phrase if f.concept else "", f.split))
    write_text(folder / TRUTH, table.getvalue())
    with replacing(folder / "model") as draft:
        model.save_pretrained(draft, safe_serialization=True)
        tokenizer.save_pretrained(draft)
