"""One call from a study folder to verdicts: which facts are recalled through which concept.

    gate -> attribute -> find the waypoint -> read the concept -> intervene -> judge

`extract` never opens the truth of an organism; `mnemo.benchmark` compares afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.attribution import attribute_nodes
from mnemo.behaviour import agreement, entailment, expand_cues, probe_prompts
from mnemo.concept_vectors import ConceptTable, agrees, ask_concepts, choose_targets, concept_vectors
from mnemo.concepts import Reading, ReadsConcepts, chance
from mnemo.contrasts import Contrast, make_contrasts
from mnemo.editing import edit_test
from mnemo.errors import MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.files import replacing, write_text
from mnemo.forwards import counted_forwards
from mnemo.gate import Recalled, gate
from mnemo.invented import THROUGH_A_CONCEPT, mark_invented
from mnemo.lenses import Lens
from mnemo.looks import QUICK, Effort, look_at
from mnemo.memory import memory_budget
from mnemo.patching import Site, read_stream
from mnemo.prompts import Prompt, render
from mnemo.reading import reader_for
from mnemo.records import Parts, run_record
from mnemo.tables import write_csv
from mnemo.tracing import top_path
from mnemo.trials import TestedFacts, directions_beside, smallest_p
from mnemo.verdict import FALSE_DISCOVERIES, FEWEST, judge
from mnemo.waypoints import Waypoint, candidate_sites, find_waypoint, sites_at

if TYPE_CHECKING:
    from mnemo.model import Model

COLUMNS = (
    "fact_id", "cue", "answer", "predicted", "recalled", "verdict", "score", "p_value", "q_value", "concept",
    "concept_score", "layer", "position", "swap_success", "swap_control", "ablation_drop", "leakage",
    "mediated_fraction", "top_path", "seconds",
)  # fmt: skip
FACTS_PER_CHUNK = 64  # facts between two savings
_CANNOT_PREDICT = "the task has no concept_recall template, so what a swap should bring cannot be predicted"


@dataclass(frozen=True)
class Study:
    """What `extract` found.

    Attributes:
        task: the task.
        model: the model.
        table: a row for each fact: `COLUMNS`, further evidence, and the columns of the facts file (one named
            like a column of ours as `name_given`).
        contrasts: what each recalled fact is compared with, by fact_id, where there is something of equal length.
        attributions: node scores of the recalled facts that have a contrast; None where none has, or the study was read
            back.
        waypoint: where concepts act, with every candidate tried; None where nothing could be tried.
        readings: phrases read at the waypoint, best first, by fact_id; of a study that was read back the best two.
        notes: what could not be tested, and why.
        record: versions, seed, hashes and command.
    """

    task: Task
    model: Model
    table: pd.DataFrame
    contrasts: dict[str, Contrast]
    attributions: xr.Dataset | None
    waypoint: Waypoint | None
    readings: dict[str, list[Reading]]
    notes: tuple[str, ...]
    record: dict[str, Any] = field(repr=False)

    def __getitem__(self, fact_id: str) -> pd.Series:
        """Return the row of one fact."""
        rows = self.table[self.table["fact_id"] == fact_id]
        if rows.empty:
            raise MnemoError(f"no fact {fact_id!r} in this study; the first ids are {list(self.table['fact_id'][:3])}")
        return rows.iloc[0]

    def fact(self, fact_id: str) -> Fact:
        """Return one fact as it was asked."""
        row = self[fact_id]
        return Fact(fact_id=fact_id, cue=row["cue"], answer=row["answer"])

    def recalled_facts(self, fact_ids: Sequence[str] = ()) -> dict[str, Fact]:
        """Return the recalled facts by fact_id, in the order of the states at the waypoint.

        Args:
            fact_ids: facts that must be among them.

        Raises:
            MnemoError: one of these is unknown or not recalled.
        """
        rows = self.table.loc[self.table["recalled"].astype(bool), ["fact_id", "cue", "answer"]]
        found = {str(i): Fact(fact_id=i, cue=cue, answer=answer) for i, cue, answer in rows.itertuples(index=False)}
        for fact_id in fact_ids:
            self[fact_id]  # an unknown id is refused in its own words
            if fact_id not in found:
                raise MnemoError(f"fact {fact_id!r} is not recalled, so nothing was read of it")
        return found

    def prompt(self, fact_id: str) -> Prompt:
        """Return the recall prompt of one fact."""
        return render(self.task.recall, self[fact_id]["cue"], self.model.tokens)

    def report(self, folder: str | Path, *, truth: pd.DataFrame | None = None) -> None:
        """Write report.html and report.md, one page each that needs no code to be read, and the figures in them.

        Args:
            folder: where to.
            truth: what the facts were trained to be, as `mnemo.scoring.read_truth` gives it, to be shown beside what
                was found; None where nobody knows.
        """
        from mnemo.summary import write_report

        write_report(self, Path(folder), truth=truth)

    def write(self, folder: str | Path, *, truth: pd.DataFrame | None = None, report: bool = True) -> None:
        """Write verdicts.csv, verdicts.parquet, run.json, the report and, if there is a waypoint, sites.csv.

        A sites.csv that an earlier study left there goes, since it says nothing about this one.

        Args:
            folder: where to.
            truth: for the report, as in `report`.
            report: False to leave the report out, whose figures take seconds.
        """
        folder = Path(folder)
        write_csv(self.table, folder / "verdicts.csv")
        with replacing(folder / "verdicts.parquet") as draft:
            self.table.to_parquet(draft, index=False)
        if self.waypoint is None:
            (folder / "sites.csv").unlink(missing_ok=True)
        else:
            write_csv(self.waypoint.candidates, folder / "sites.csv")
        write_text(folder / "run.json", json.dumps({**self.record, "notes": self.notes}, indent=2) + "\n")
        if report:
            self.report(folder, truth=truth)

    @classmethod
    def read(
        cls,
        folder: str | Path,
        *,
        task: str | Path | None = None,
        model: Model | str | Path | None = None,
        facts: str | Path | None = None,
        device: str | None = None,
    ) -> Study:
        """Read back what `extract` or `benchmark` wrote into a folder; nothing is judged again.

        Args:
            folder: the folder.
            task, facts: where these lie now, if not where the run recorded.
            model: a loaded model, or where it lies now. A hub model must be named.
            device: where to compute; None for CUDA where there is one, else the CPU.

        Raises:
            MnemoError: no run, a damaged one, or inputs that are not those of the run, in one line.
        """
        from mnemo.finished import read_study

        return read_study(folder, task=task, model=model, facts=facts, device=device)


def extract(
    task: Task | str | Path,
    *,
    model: Model | str | Path | None = None,
    facts: FactSet | str | Path | None = None,
    out: str | Path | None = None,
    quick: bool = False,
    edit: bool = False,
    resume: bool = False,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: bool = True,
) -> Study:
    """Find out, for every fact of a task, whether and through which concept the model recalls it.

    Args:
        task: a study folder, its task.toml, or a task.
        model: a loaded model or what `mnemo.load` takes; None for the task's own.
        facts: other facts than the task's own.
        out: folder for verdicts and report and, while the work goes on, finished chunks; None to write nothing.
        quick: fewer interventions for each fact.
        edit: also train new answers for the concepts into the MLPs above the waypoint and see which facts follow
            (`edit_follows`): tells *mnemonic* from *shared-intermediate* better than vectors do, and takes minutes.
        resume: keep the chunks that an interrupted run with the same inputs left in `out`.
        seed: decides contrasts, targets and random directions; one seed, one result.
        memory_gb: what may be held at once besides the model; decides how much is run together, never the result. None
            for the default (see `mnemo.memory`).
        progress: show progress bars.

    Raises:
        MnemoError: input that cannot be used, in one line.
    """
    out = Path(out) if out is not None else None
    study, parts = extract_in_parts(
        task,
        model=model,
        facts=facts,
        parts_in=out,
        quick=quick,
        edit=edit,
        resume=resume,
        seed=seed,
        memory_gb=memory_gb,
        progress=progress,
    )
    if out is not None:
        with memory_budget(memory_gb):  # the report runs the model for what messages carry
            study.write(out)
        parts.end()
    return study


def extract_in_parts(
    task: Task | str | Path,
    *,
    model: Model | str | Path | None = None,
    facts: FactSet | str | Path | None = None,
    parts_in: Path | None,
    quick: bool = False,
    edit: bool = False,
    resume: bool = False,
    seed: int = 0,
    memory_gb: float | None = None,
    progress: bool = True,
) -> tuple[Study, Parts]:
    """Do what `extract` does, but leave the writing to the caller, and with it the end of the finished parts.

    Args:
        parts_in: folder that keeps finished parts; the caller ends them when it has written the study.

    The other arguments are those of `extract`.
    """
    start = time.perf_counter()
    if not 0 <= seed < 2**31:
        raise MnemoError(f"seed {seed} given; it must be between 0 and {2**31 - 1}")
    task = task if isinstance(task, Task) else Task.read(task)
    loaded = load_model(task, model)
    chosen = facts if isinstance(facts, FactSet) else task.load_facts(facts)
    record = run_record(task, loaded, chosen, kind="extract", seed=seed, quick=quick, edit=edit)
    parts = Parts.begin(parts_in, record["inputs"], resume=resume)
    effort = QUICK if quick else Effort()
    steps = _Extraction(task, loaded, seed=seed, effort=effort, edit=edit, progress=progress)
    # (Parts that an interrupted run left are not run again, nor counted.)
    with memory_budget(memory_gb), counted_forwards(loaded) as forwards:
        study = _with_top_paths(steps.run(chosen, parts, record), parts, most=effort.paths, progress=progress)
    study.record["forwards_per_fact"] = round(forwards.prompts / len(chosen), 1)
    study.table["invented"] = mark_invented(study.table)
    study.table["seconds"] = (time.perf_counter() - start) / len(chosen)
    return study, parts


@dataclass(frozen=True)
class _Extraction:
    """The steps of one extraction; each takes what the one before found."""

    task: Task
    model: Model
    seed: int
    effort: Effort
    edit: bool
    progress: bool

    def run(self, facts: FactSet, parts: Parts, record: dict[str, Any]) -> Study:
        said = gate(self.model, self.task, facts)
        notes = _notes_on_answers(said)
        rows = said.recalled.nonzero()[:, 0]
        if not len(rows):
            notes.append(f"the model recalls none of the {len(facts)} facts: nothing was judged")
            return self._study(said, notes, record)
        recalled = said.only(rows)
        contrasts, more = self._contrasts(facts.subset(f.fact_id for f in recalled.facts))
        notes += more
        attributions = attribute_nodes(self.model, contrasts) if contrasts else None
        if self.model.n_layers < 2:
            notes.append("the model has one block, so no state lies between a cue and its answer: nothing was tested")
            return self._study(said, notes, record, contrasts=contrasts, attributions=attributions)
        reader, more = reader_for(self.model, self.task, recalled.facts)
        notes += more
        if reader is None:
            return self._study(said, notes, record, contrasts=contrasts, attributions=attributions)

        evoked = expand_cues(self.model, self.task, recalled.facts, seed=self.seed, lexicon=self.task.load_lexicon())
        waypoint = self._waypoint(recalled, contrasts, attributions, evoked, reader)
        readings = reader.read(waypoint.states, layer=waypoint.site.layer, facts=recalled.facts, seed=self.seed)
        read = _places(recalled, readings, waypoint.site)
        read["concept_p"] = chance(
            reader, waypoint.states, readings, layer=waypoint.site.layer, facts=recalled.facts, seed=self.seed
        )
        table, concepts = self._concepts([best[0].phrase if best else None for best in readings], recalled)
        if not (concepts >= 0).any():
            why = "no concept could be read at the waypoint" if self.task.concept_recall else _CANNOT_PREDICT
            notes.append(f"{why}: nothing was tested")
            return self._study(
                said, notes, record, contrasts=contrasts, attributions=attributions, waypoint=waypoint,
                readings=readings, evidence=read,
            )  # fmt: skip
        evidence, more = self._intervene(recalled, table, concepts, waypoint, parts)
        notes += more
        evidence = evidence.join(self._behaviour(recalled, evoked))
        evidence = evidence.join(entailment(self.model, self.task, recalled.facts, concepts, table))
        if self.edit:
            edited, more = self._edit(recalled, table, concepts, waypoint, parts)
            evidence, notes = evidence.join(edited), notes + more
        if len(table) < 2:
            notes.append(f"all facts were read as one concept, {table.phrases[0]!r}: there is no other to swap it for")
        if not waypoint.swaps_work:
            notes.append(
                "no concept swap was seen to work at any site, so a fact that swaps do not move is unsure, not rote: "
                "check what was read (concept, concept_score) and the templates"
            )
        swaps_work = waypoint.swaps_work and not isinstance(reader, Lens)  # what a lens does not see may well be used
        evidence = judge(evidence, swaps_work=swaps_work, sites=waypoint.tried).join(read)
        return self._study(
            said, notes, record, contrasts=contrasts, attributions=attributions, waypoint=waypoint, readings=readings,
            evidence=evidence,
        )  # fmt: skip

    def _behaviour(self, recalled: Recalled, evoked: Sequence[str | None]) -> pd.DataFrame:
        """What the model says each cue stands for, and whether that agrees with the fact."""
        if self.task.verbalise is None:
            return pd.DataFrame({"evoked": None, "evoked_answer": None, "agreement": float("nan")}, range(len(evoked)))
        asked, concepts = self._concepts(evoked, recalled)
        said = [
            self.model.tokens.decode([int(asked.answers[c])]).strip() if c >= 0 else None for c in concepts.tolist()
        ]
        agreed = agreement(recalled.answers, concepts, asked)
        return pd.DataFrame({"evoked": list(evoked), "evoked_answer": said, "agreement": agreed})

    def _contrasts(self, facts: FactSet) -> tuple[list[Contrast], list[str]]:
        try:
            found = list(make_contrasts(self.task, facts, self.model.tokens, seed=self.seed).values())
        except MnemoError as error:
            return [], [f"no contrasts, so no attribution: {error}"]
        left = len(facts) - len(found)
        return found, [f"{left} recalled facts have no contrast of equal length: not attributed"] if left else []

    def _concepts(self, phrases: Sequence[str | None], recalled: Recalled) -> tuple[ConceptTable, Int[Tensor, " fact"]]:
        """The table of all phrases that the model can be asked about, and each fact's row in it (-1 for none)."""
        asked = [phrase for phrase in phrases if phrase] if self.task.concept_recall else []
        with self.task.blaming("concept_recall"):
            table = ask_concepts(self.model, self.task.concept_recall or "", asked, as_after=recalled.prompts[0])
        rank = {phrase: i for i, phrase in enumerate(table.phrases)}
        return table, torch.tensor([rank.get(phrase or "", -1) for phrase in phrases])

    def _waypoint(
        self,
        recalled: Recalled,
        contrasts: Sequence[Contrast],
        attributions: xr.Dataset | None,
        evoked: Sequence[str | None],
        reader: ReadsConcepts,
    ) -> Waypoint:
        if attributions is not None:
            sites = candidate_sites(self.model, contrasts, attributions, most=self.effort.sites, seed=self.seed)
        else:  # nothing says which layers matter: try them all at the cue's last token
            position = recalled.prompts[0].last - len(recalled.prompts[0])
            sites = dict.fromkeys(sites_at(self.model, position), float("nan"))
        return find_waypoint(
            self.model,
            recalled.prompts,
            recalled.answers,
            sites=sites,
            evoked_at=self._evoked_at(recalled, evoked, reader),
            reader=reader,
            seed=self.seed,
            sample=self.effort.sample,
        )

    def _evoked_at(
        self, recalled: Recalled, evoked: Sequence[str | None], reader: ReadsConcepts
    ) -> Callable[[Site], tuple[ConceptTable, Int[Tensor, " fact"]]]:
        """Say what facts are grouped under while sites are compared: what the cue is said to stand for.

        A task that cannot ask that has what is read at each site instead.
        """
        if self.task.verbalise is not None or not self.task.concept_recall:
            said = self._concepts(evoked, recalled)
            return lambda site: said

        def read(site: Site) -> tuple[ConceptTable, Int[Tensor, " fact"]]:
            states = read_stream(self.model, recalled.prompts, [site.position])[:, site.layer, 0]
            readings = reader.read(states, layer=site.layer, facts=recalled.facts, seed=self.seed)
            return self._concepts([best[0].phrase if best else None for best in readings], recalled)

        return read

    def _intervene(
        self,
        recalled: Recalled,
        table: ConceptTable,
        concepts: Int[Tensor, " fact"],
        waypoint: Waypoint,
        parts: Parts,
    ) -> tuple[pd.DataFrame, list[str]]:
        agree = agrees(recalled.answers, concepts, table)
        contributes = torch.where(agree, concepts, -1)
        support = torch.bincount(concepts[agree], minlength=len(table))
        vectors = concept_vectors(self.model, table, waypoint.states, contributes, site=waypoint.site)
        targets = choose_targets(
            table, support, answers=recalled.answers, concepts=concepts, n_targets=self.effort.most_targets,
            seed=self.seed,
        )  # fmt: skip
        others = (targets >= 0).sum(1)[concepts >= 0]
        fewest = int(others[others > 0].min()) if others.any() else 0
        tests, first = self.effort.tests(waypoint.tried), min(fewest, self.effort.targets)
        notes = []
        if fewest and (least := tests * smallest_p(first, directions_beside(first, tests=tests))) >= FALSE_DISCOVERIES:
            notes.append(
                f"some facts can be swapped to {first} other concepts only, so that their p-values are at least "
                f"{least:.2g} and they are never called mnemonic: add facts that evoke other concepts"
            )
        if 0 < fewest < FEWEST:
            notes.append(f"facts that can be swapped to fewer than {FEWEST} other concepts are never called rote")
        if alone := int((others == 0).sum()):
            notes.append(f"{alone} facts cannot be swapped to any other concept, so nothing is claimed of them")
        found = []
        read = (concepts >= 0).nonzero()[:, 0]
        chunks = read.split(FACTS_PER_CHUNK)
        for k, rows in enumerate(tqdm(chunks, desc="intervening", disable=not self.progress, leave=False)):
            tested = TestedFacts(
                self.model, recalled.prompts, rows, recalled.answers[rows], concepts[rows], table, vectors
            )
            make = partial(
                look_at, tested, targets[rows], recalled.probability[rows], effort=self.effort, sites=waypoint.tried,
                fewest=fewest, seed=self.seed,
            )  # fmt: skip
            found.append(parts.get(f"trials-{k:05d}", make).set_axis(rows.tolist()))
        # A fact at which no concept was read has no evidence, and will be unsure.
        return pd.concat(found).reindex(range(len(concepts))), notes

    def _edit(
        self,
        recalled: Recalled,
        table: ConceptTable,
        concepts: Int[Tensor, " fact"],
        waypoint: Waypoint,
        parts: Parts,
    ) -> tuple[pd.DataFrame, list[str]]:
        """Which facts follow when their concept is taught another answer."""

        def make() -> pd.DataFrame:
            return edit_test(
                self.model,
                recalled.prompts,
                answers=recalled.answers,
                concepts=concepts,
                table=table,
                layer=waypoint.site.layer,
                seed=self.seed,
                keep=probe_prompts(self.model, self.task, table.phrases),
                progress=self.progress,
            ).table()

        try:
            found = parts.get("edit", make)
        except MnemoError as error:  # the other evidence stands without it
            return pd.DataFrame(index=range(len(concepts))), [f"no edit test: {error}"]
        untaken = int((found["edit_follows"].isna() & (concepts >= 0).numpy()).sum())
        return found, [f"the edit of their concept says nothing about {untaken} facts"] if untaken else []

    def _study(
        self,
        said: Recalled,
        notes: Sequence[str],
        record: dict[str, Any],
        *,
        contrasts: Sequence[Contrast] = (),
        attributions: xr.Dataset | None = None,
        waypoint: Waypoint | None = None,
        readings: Sequence[list[Reading]] = (),
        evidence: pd.DataFrame | None = None,
    ) -> Study:
        recalled = [bool(known) for known in said.recalled]
        table = pd.DataFrame(
            {
                "fact_id": [fact.fact_id for fact in said.facts],
                "cue": [fact.cue for fact in said.facts],
                "answer": [fact.answer for fact in said.facts],
                "predicted": [self.model.tokens.decode([i]).strip() for i in said.predicted.tolist()],
                "recalled": recalled,
                "recall_probability": said.probability.numpy(),
            }
        )
        if evidence is not None:
            table = table.merge(evidence, on="fact_id", how="left")
        untested = pd.Series(["unsure" if known else "not-recalled" for known in recalled])
        table["verdict"] = table["verdict"].fillna(untested) if "verdict" in table else untested
        for column in COLUMNS:
            if column not in table:
                table[column] = None
        more = [column for column in table if column not in COLUMNS]
        table = table[[*COLUMNS, *more]].join(_given(said.facts, table.columns))
        judged = [fact.fact_id for fact, known in zip(said.facts, recalled, strict=True) if known]
        by_fact = dict(zip(judged, readings, strict=True)) if readings else {}
        paired = {contrast.fact.fact_id: contrast for contrast in contrasts}
        return Study(self.task, self.model, table, paired, attributions, waypoint, by_fact, tuple(notes), record)


def _with_top_paths(study: Study, parts: Parts, *, most: int, progress: bool) -> Study:
    """Fill in each fact's strongest path, in chunks that are kept, the clearest of those through a concept first."""
    table = study.table
    traced = table[table["fact_id"].isin(list(study.contrasts))]
    traced = traced.assign(score=traced["score"].astype(float)).sort_values("score", ascending=False, kind="stable")
    through = traced["verdict"].isin(THROUGH_A_CONCEPT)
    order = [*traced.loc[through, "fact_id"], *traced.loc[~through, "fact_id"]]
    chosen, notes = order[:most], list(study.notes)
    found = []
    starts = range(0, len(chosen), FACTS_PER_CHUNK)
    for k, start in enumerate(tqdm(starts, desc="tracing paths", disable=not progress, leave=False)):
        ids = chosen[start : start + FACTS_PER_CHUNK]
        found.append(parts.get(f"paths-{k:05d}", partial(_top_paths, study, ids)))
    paths = pd.concat(found, ignore_index=True) if found else _top_paths(study, [])
    if left := len(order) - len(chosen):
        notes.append(
            f"paths were traced for {len(chosen)} facts, the clearest of those recalled through a concept first; the "
            f"other {left} have no top_path"
        )
    faults = paths["fault"].dropna()
    if len(faults):
        notes.append(f"{len(faults)} facts have no top_path, the first because: {faults.iloc[0]}")
    by_fact = paths.set_index("fact_id")
    for column in ("top_path", "top_path_share"):
        table[column] = table["fact_id"].map(by_fact[column])
    return replace(study, notes=tuple(notes))


def _top_paths(study: Study, fact_ids: Sequence[str]) -> pd.DataFrame:
    rows = []
    for fact_id in fact_ids:
        try:
            path = top_path(study.model, study.contrasts[fact_id])
            rows.append((fact_id, path.text, path.share, None))
        except MnemoError as error:  # of this fact; the others may well have one
            rows.append((fact_id, None, np.nan, str(error)))
    return pd.DataFrame(rows, columns=["fact_id", "top_path", "top_path_share", "fault"])


def _given(facts: Sequence[Fact], taken: Sequence[str] | pd.Index) -> pd.DataFrame:
    """The extra columns of the facts file; one named like a column of ours goes on as `name_given`."""
    given = pd.DataFrame([fact.extra for fact in facts])
    names: dict[str, str] = {}
    for column in given:
        name = str(column)
        while name in taken or (name != column and name in given):
            name += "_given"
        names[str(column)] = name
    return given.rename(columns=names)


def _places(recalled: Recalled, readings: Sequence[list[Reading]], site: Site) -> pd.DataFrame:
    """Each fact's concept, how clearly it was read and against which runner-up, and where."""
    best = [[*found, None, None][:2] for found in readings]
    return pd.DataFrame(
        {
            "fact_id": [fact.fact_id for fact in recalled.facts],
            "concept": [first.phrase if first else None for first, _ in best],
            "concept_score": [first.ratio if first else None for first, _ in best],
            "runner_up": [second.phrase if second else None for _, second in best],
            "runner_up_score": [second.ratio if second else None for _, second in best],
            "layer": site.layer,
            "position": [len(prompt) + site.position for prompt in recalled.prompts],
        }
    )


def load_model(task: Task, model: Model | str | Path | None) -> Model:
    from mnemo.model import Model, load

    if isinstance(model, Model):
        return model
    source = model if model is not None else task.model_path
    if source is None:
        raise task.fault("model", 'the task names no model: add model = "..." or give one (--model)')
    return load(source)


def _notes_on_answers(said: Recalled) -> list[str]:
    notes = []
    if partial := int((~said.whole).sum()):
        notes.append(f"{partial} of {len(said.facts)} answers take several tokens: their first token stands for them")
    broken = (~said.probability.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        notes.append(
            f"the model gives no finite probability for {len(broken)} of {len(said.facts)} facts, the first is "
            f"{said.facts[broken[0]].fact_id!r}: not judged; check its weights and dtype"
        )
    return notes
