"""All that `mnemo learn` does: teach every arm, in batches and one fact at a time, watch on the way, and sum up.

The work is cut into parts that are kept when they are finished, so that an interrupted run goes on where it stopped.
Every draw in a part depends on the seed of its run alone, so the numbers are those of a run that nobody disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.checked import Record
from mnemo.facts import FactSet, Task
from mnemo.files import replacing, write_text
from mnemo.learning.arms import ARMS, Arm, Lesson, Survey, divided, survey
from mnemo.learning.emergence import Watch, checkpoints, choose_site
from mnemo.learning.first_gradient import first_gradient, shares
from mnemo.learning.invention import evoked, guesses, rate
from mnemo.learning.summary import summarised
from mnemo.learning.teach import Course, TeachConfig, share_recalled, teach
from mnemo.libraries import quietly
from mnemo.model import load
from mnemo.model_source import find_folder, read_model
from mnemo.patching import Site
from mnemo.records import Parts, run_record
from mnemo.tables import write_csv

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mnemo.model import Model

THROUGH = ("coincident", "rote")  # arms whose cues evoke concepts that a route may go through
TABLES = ("courses", "curves", "first", "choices")
How = Literal["full", "lora"]


class LearnConfig(Record):
    """How much is taught.

    Attributes:
        runs: draws of facts, shuffles and LoRA factors; intervals are over these.
        taught, held: facts of each arm that are taught in a batch, and held out.
        alone: facts of each arm that are taught one at a time.
        arms: what is taught, where there are such facts.
        hows: ways to teach.
        steps: of a batch course.
        full_rate, lora_rate: learning rates of AdamW.
        weight_decay: of AdamW.
        traced: facts whose paths are traced at each checkpoint, and before the first step.
    """

    runs: int = Field(default=5, ge=1)
    taught: int = Field(default=24, ge=2)
    held: int = Field(default=16, ge=0)
    alone: int = Field(default=6, ge=0)
    arms: tuple[Arm, ...] = ARMS
    hows: tuple[How, ...] = ("full", "lora")
    steps: int = Field(default=40, ge=1)
    full_rate: float = Field(default=2e-4, gt=0)
    lora_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    traced: int = Field(default=4, ge=0)

    def teaching(self, how: How) -> TeachConfig:
        """Return how a course is taught."""
        rate = self.full_rate if how == "full" else self.lora_rate
        return TeachConfig(how=how, steps=self.steps, learning_rate=rate, weight_decay=self.weight_decay)


QUICK = LearnConfig(runs=2, taught=12, held=8, alone=2, hows=("full",), steps=24, traced=2)


@dataclass(frozen=True)
class Learned:
    """What `learn` found.

    Attributes:
        courses: a row for each fact that was taught: `run, how, batch, arm, fact_id, surprisal` (nats, before it was),
            `steps_to_recall`, `examples_to_recall` (steps times facts), `recalled` in the end, `old` (share of old
            questions answered as before, at the end of its course).
        curves: a row for each checkpoint: `run, how, arm, step`, shares recalled of the `taught`, `held` and `old`,
            means of what `Watch` measures, and of what cues evoke (`fitting`, `fitting_null`).
        first: what the first step is predicted to change, as shares (`mnemo.learning.first_gradient`).
        choices: for free facts the fitting concepts, the guesses about them, and whether each is `chosen` in the end.
        summary: the numbers with intervals over runs, as `summarised` gives them.
        record: what the run was made of.
    """

    courses: pd.DataFrame
    curves: pd.DataFrame
    first: pd.DataFrame
    choices: pd.DataFrame
    summary: pd.DataFrame
    record: dict[str, Any]

    def write(self, folder: str | Path) -> None:
        """Write a CSV file for each table, run.json, and the figures."""
        from mnemo.learning.figures import figures

        folder = Path(folder)
        for name in (*TABLES, "summary"):
            write_csv(getattr(self, name), folder / f"{name}.csv", float_format="%.6g")
        write_text(folder / "run.json", json.dumps(self.record, indent=2) + "\n")
        for name, figure in figures({name: getattr(self, name) for name in TABLES}):
            with replacing(folder / f"{name}.png") as draft:
                figure.savefig(draft, dpi=150, format="png")


def learn(
    task: Task | str | Path,
    *,
    model: str | Path | None = None,
    facts: FactSet | str | Path | None = None,
    out: str | Path | None = None,
    config: LearnConfig | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Learned:
    """Teach facts that a concept helps to recall, and facts that none does, and follow what happens.

    Args:
        task: a study folder, its task.toml, or a task, with `verbalise` and `concept_recall`.
        model: a model directory or hub name; None for the task's own.
        facts: other facts than the task's own.
        out: folder for the results and, while the work goes on, finished parts; None to write nothing.
        config: how much is taught; None for `LearnConfig()`.
        resume: keep the parts that an interrupted run with the same inputs left in `out`.
        seed: of the first run; the others count on.
        progress: show a progress bar.

    Raises:
        MnemoError: input that cannot be used, such as facts that the model knows already, in one line.
    """
    config = config or LearnConfig()
    task = task if isinstance(task, Task) else Task.read(task)
    chosen = facts if isinstance(facts, FactSet) else task.load_facts(facts)
    source = task.model_source(model)
    loaded = load(source)
    record = run_record(task, loaded, facts=chosen, kind="learn", seed=seed, config=config.model_dump())
    parts = Parts.begin(Path(out) if out is not None else None, record["inputs"], resume=resume)
    with quietly():
        pupil = read_model(find_folder(source)[0], None)
    work = _Work(loaded, pupil, survey(loaded, task, facts=chosen), config)
    tables: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    jobs = [job for run in range(seed, seed + config.runs) for job in work.jobs(run)]
    for table, name, make in tqdm(jobs, desc="learning", unit="part", disable=not progress):
        tables[table].append(parts.get(name, make))
    joined = {name: pd.concat(found, ignore_index=True) if found else pd.DataFrame() for name, found in tables.items()}
    learned = Learned(**joined, summary=summarised(joined), record={**record, "site": work.site_record})
    if out is not None:
        learned.write(out)
        parts.end()
    return learned


Job = tuple[str, str, Callable[[], pd.DataFrame]]


@dataclass(frozen=True)
class _Work:
    """The parts of the work; each is a table that depends on the run's seed alone."""

    model: Model
    pupil: PreTrainedModel
    survey: Survey
    config: LearnConfig

    def jobs(self, run: int) -> Iterator[Job]:
        """Yield the parts of one run: table, name, and what makes it."""
        for arm in self.arms:
            lesson, held = self._divided(arm, run)
            for how in self.config.hows:
                course = _Once(partial(self._batch, lesson, held, how=how, run=run))
                for table in ("courses", "curves", *(("choices",) if arm == "free" and how == "full" else ())):
                    yield table, f"{table}-{run}-{how}-{arm}", partial(course.table, table)
            if self.config.alone:
                few = lesson.only(range(min(self.config.alone, len(lesson))))
                yield "courses", f"alone-{run}-{arm}", partial(self._alone, few, run=run)
            if self.config.traced and arm in THROUGH:
                yield "first", f"first-{run}-{arm}", partial(self._first, lesson, run=run)

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms that are wanted and for which there are facts."""
        kinds = {self.survey.kind(row) for row in range(len(self.survey.said.facts))}
        return [arm for arm in self.config.arms if ("coincident" if arm == "rote" else arm) in kinds]

    @cached_property
    def _chosen(self) -> tuple[Site, pd.DataFrame]:
        return choose_site(self.model, self.survey)

    @property
    def site_record(self) -> dict[str, Any]:
        """Where concepts are followed, and how well every site would do."""
        site, candidates = self._chosen
        return {"layer": site.layer, "position": site.position, "candidates": candidates.to_dict("records")}

    def _divided(self, arm: Arm, run: int) -> tuple[Lesson, Lesson]:
        lesson = self.survey.lesson(arm, seed=run)
        taught = min(self.config.taught, len(lesson))
        return divided(lesson, taught=taught, held=self.config.held, seed=run)

    def _watch(self, lesson: Lesson, run: int) -> Watch:
        return Watch(self.survey, self.model.tokens.hf, self._chosen[0], lesson, self.config.traced, run)

    def _teach(self, lesson: Lesson, *, how: How, run: int, **options: Any) -> Course:
        with torch.random.fork_rng():
            torch.manual_seed(run)  # of the LoRA factors
            return teach(self.pupil, lesson, config=self.config.teaching(how), **options)

    def _batch(self, lesson: Lesson, held: Lesson, *, how: How, run: int) -> dict[str, pd.DataFrame]:
        """Teach a lesson all at once; return its part of each table."""
        watched = self._watch(lesson, run) if how == "full" and lesson.arm in THROUGH else None
        rows, said = [], lesson.concepts

        def watch(step: int, model: PreTrainedModel) -> None:
            nonlocal said
            row: dict[str, Any] = {"run": run, "how": how, "arm": lesson.arm, "step": step}
            for name, asked in (("taught", lesson), ("held", held), ("old", self.survey.old)):
                row[name] = share_recalled(model, asked)
            if watched is not None:
                measured = watched(model).drop(columns=["fact_id", "recalled"]).astype(float)
                row |= measured.mean().to_dict() | {"mediated_fraction": measured["mediated_fraction"].median()}
            elif how == "full":
                said = evoked(load(model, tokenizer=self.model.tokens.hf, check=False), self.survey, lesson=lesson)
                row["fitting"], row["fitting_null"] = rate(said, lesson.answers, survey=self.survey, seed=run)
            rows.append(row)

        course = self._teach(lesson, how=how, run=run, watch=watch, at=checkpoints(self.config.steps))
        tables = {
            "courses": _rows(lesson, course, run=run, how=how, old=rows[-1]["old"]),
            "curves": pd.DataFrame(rows),
        }
        if lesson.arm == "free" and how == "full":
            tables["choices"] = self._choices(lesson, said, run=run)
        return tables

    def _alone(self, lesson: Lesson, *, run: int) -> pd.DataFrame:
        """Teach facts one at a time, each to a fresh copy and until it is recalled."""
        found = []
        for row in range(len(lesson)):
            single = lesson.only([row])
            course = self._teach(single, how="full", run=run, until_recalled=True)
            old = share_recalled(course.model, self.survey.old)
            found.append(_rows(single, course, run=run, how="full", old=old))
        return pd.concat(found, ignore_index=True)

    def _first(self, lesson: Lesson, *, run: int) -> pd.DataFrame:
        found = shares(first_gradient(self.pupil, self._watch(lesson, run)))
        return found.assign(run=run, arm=lesson.arm)

    def _choices(self, lesson: Lesson, said: Int[Tensor, " fact"], *, run: int) -> pd.DataFrame:
        options = guesses(self.model, self.survey, lesson=lesson, site=self._chosen[0])
        for name, concepts in (("chosen", said), ("evoked_before", lesson.concepts)):
            of = dict(zip(lesson.fact_ids, concepts.tolist(), strict=True))
            options[name] = options["concept"] == options["fact_id"].map(of)
        return options.assign(run=run)


class _Once:
    """Several tables that one piece of work gives: done when the first of them is asked for."""

    def __init__(self, make: Callable[[], dict[str, pd.DataFrame]]) -> None:
        self._make = make

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return self._make()

    def table(self, name: str) -> pd.DataFrame:
        return self._tables[name]


def _rows(lesson: Lesson, course: Course, *, run: int, how: How, old: float) -> pd.DataFrame:
    steps = course.steps_to_recall.numpy()
    return pd.DataFrame(
        {
            "run": run, "how": how, "batch": len(lesson), "arm": lesson.arm, "fact_id": lesson.fact_ids,
            "surprisal": -course.probability[0].log().numpy(), "steps_to_recall": steps,
            "examples_to_recall": steps * len(lesson), "recalled": course.recalled[-1].numpy(), "old": old,
        }
    )  # fmt: skip
