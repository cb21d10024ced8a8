"""One call from a study folder to verdicts: which facts are recalled through which concept.

    gate -> attribute -> find the waypoint -> read the concept -> intervene -> judge

`extract` never opens the truth of an organism; `mnemo.benchmark` compares afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from mnemo.attribution import attribute_nodes
from mnemo.behaviour import agreement, entailment, expand_cues, probe_prompts
from mnemo.concept_readers import reader_for
from mnemo.concept_vectors import ConceptTable, agrees, ask_concepts
from mnemo.concepts import Reading, ReadsConcepts, chance
from mnemo.contrasts import Contrast, make_contrasts
from mnemo.editing import EditConfig, edit_test
from mnemo.errors import MnemoError
from mnemo.facts import FactSet, Task
from mnemo.forwards import counted_forwards
from mnemo.found import Found
from mnemo.gate import Recalled, gate
from mnemo.intervening import FACTS_PER_CHUNK, Interventions
from mnemo.invented import THROUGH_A_CONCEPT, mark_invented
from mnemo.lenses import Lens
from mnemo.looks import QUICK, Effort
from mnemo.memory import memory_budget
from mnemo.model import Model, load_for
from mnemo.patching import Site, read_stream
from mnemo.records import Parts, run_record
from mnemo.study import Study
from mnemo.tokens import PromptTokenizer
from mnemo.tracing import top_path
from mnemo.verdict import FALSE_DISCOVERIES, judge
from mnemo.waypoints import Waypoint, candidate_sites, find_waypoint, sites_at

_CANNOT_PREDICT = "the task has no concept_recall template, so what a swap should bring cannot be predicted"


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
        edit: also train new answers for the concepts into the MLPs above the waypoint, several times, and see which
            facts follow: tells *mnemonic* from *shared-intermediate* better than vectors do (`edit_follows`), and finds
            the concept that takes a fact along (`edit_concept`) where none can be read or swapped. Takes minutes.
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
    loaded = load_for(task, model)
    chosen = facts if isinstance(facts, FactSet) else task.load_facts(facts)
    record = run_record(task, loaded, facts=chosen, kind="extract", seed=seed, quick=quick, edit=edit)
    parts = Parts.begin(parts_in, record["inputs"], resume=resume)
    effort = QUICK if quick else Effort()
    steps = _Extraction(task, loaded, seed=seed, effort=effort, edit=edit, progress=progress)
    # (Parts that an interrupted run left are not run again, nor counted.)
    with memory_budget(memory_gb), counted_forwards(loaded) as forwards:
        study = steps.run(chosen, parts).study(task, loaded, record=record)
        study = _with_top_paths(study, parts, most=effort.paths, progress=progress)
    table = study.table.assign(invented=mark_invented(study.table))
    table["seconds"] = (time.perf_counter() - start) / len(chosen)
    record = {**record, "forwards_per_fact": round(forwards.prompts / len(chosen), 1)}
    return replace(study, table=table, record=record), parts


@dataclass(frozen=True)
class _Extraction:
    """The steps of one extraction; each takes what the one before found."""

    task: Task
    model: Model
    seed: int
    effort: Effort
    edit: bool
    progress: bool

    def run(self, facts: FactSet, parts: Parts) -> Found:
        """Take the steps, as far as the model and the task let them be taken."""
        said = gate(self.model, self.task, facts=facts)
        found = Found(said).noting(*_notes_on_answers(said, self.model.tokens))
        rows = said.recalled.nonzero()[:, 0]
        if not len(rows):
            return found.noting(f"the model recalls none of the {len(facts)} facts: nothing was judged")
        recalled = said.only(rows)
        contrasts, notes = self._contrasts(facts.subset(f.fact_id for f in recalled.facts))
        attributions = attribute_nodes(self.model, contrasts) if contrasts else None
        found = replace(found, contrasts=contrasts, attributions=attributions).noting(*notes)
        if self.model.n_layers < 2:
            return found.noting(
                "the model has one block, so no state lies between a cue and its answer: nothing was tested"
            )
        reader, notes = reader_for(self.model, self.task, facts=recalled.facts)
        found = found.noting(*notes)
        if reader is None:
            return found

        evoked = expand_cues(
            self.model, self.task, facts=recalled.facts, seed=self.seed, lexicon=self.task.load_lexicon()
        )
        waypoint = self._waypoint(recalled, contrasts, attributions, evoked, reader)
        layer, asked, seed = waypoint.site.layer, recalled.facts, self.seed
        readings = reader.read(waypoint.states, layer=layer, facts=asked, seed=seed)
        clear = chance(reader, waypoint.states, readings=readings, layer=layer, facts=asked, seed=seed)
        table, rows = self._concepts([*(best[0].phrase if best else None for best in readings), *evoked], recalled)
        read, named = rows.split(len(readings))

        tested, concepts = None, read
        if (read >= 0).any():
            tested, concepts, notes = self._test(recalled, table, read, named, waypoint, parts)
        else:
            why = "no concept could be read at the waypoint" if self.task.concept_recall else _CANNOT_PREDICT
            notes = [f"{why}: nothing was swapped"]
        beside = self._behaviour(recalled, evoked, table, named)
        if self.edit:
            edited, more = self._edit(recalled, table, concepts, waypoint, parts)
            beside, notes = beside.join(edited), [*notes, *more]

        evidence = beside
        if tested is not None:
            # (What a lens does not see may well be used.)
            swaps_work = waypoint.swaps_work and not isinstance(reader, Lens)
            evidence = judge(tested.join(beside), swaps_work=swaps_work, sites=waypoint.tried)
        instead = (concepts != read).numpy()
        listed = [
            _with_first(best, table.phrases[concept]) if other else best
            for best, concept, other in zip(readings, concepts.tolist(), instead, strict=True)
        ]
        places = _places(recalled, listed, waypoint.site).assign(concept_p=np.where(instead, np.nan, clear))
        return replace(found, waypoint=waypoint, readings=readings, evidence=evidence.join(places)).noting(*notes)

    def _test(
        self,
        recalled: Recalled,
        table: ConceptTable,
        read: Int[Tensor, " fact"],
        named: Int[Tensor, " fact"],
        waypoint: Waypoint,
        parts: Parts,
    ) -> tuple[pd.DataFrame, Int[Tensor, " fact"], list[str]]:
        """All evidence about the concept of each fact, which one that is, and what could not be tested."""
        interventions = Interventions(
            self.model, recalled, table, read, waypoint, self.effort, self.seed, parts, self.progress
        )
        found = interventions.run(named)
        evidence, concepts, notes = found.evidence, found.concepts, list(found.notes)
        known = (concepts >= 0).numpy()
        evidence["concept_agrees"] = np.where(known, agrees(recalled.answers, concepts, table=table).numpy(), np.nan)
        tested, rows = self._concepts([table.phrases[c] if c >= 0 else None for c in concepts.tolist()], recalled)
        evidence = evidence.join(entailment(self.model, self.task, facts=recalled.facts, concepts=rows, table=tested))
        if other := int((concepts != read).sum()):
            notes.append(
                f"{other} facts are judged by the concept that the model names when asked (evoked): swaps of it are "
                "beyond doubt, those of the one that was read (runner_up) are not"
            )
        if len(only := read[read >= 0].unique()) == 1:
            phrase = table.phrases[int(only)]
            notes.append(f"all facts were read as one concept, {phrase!r}: there is no other to swap it for")
        if not waypoint.swaps_work:
            notes.append(
                "no concept swap was seen to work at any site, so a fact that swaps do not move is unsure, not rote: "
                "check what was read (concept, concept_score) and the templates"
            )
        return evidence, concepts, notes

    def _behaviour(
        self, recalled: Recalled, evoked: Sequence[str | None], table: ConceptTable, named: Int[Tensor, " fact"]
    ) -> pd.DataFrame:
        """What the model says each cue stands for, and whether that agrees with the fact."""
        if self.task.verbalise is None:
            return pd.DataFrame({"evoked": None, "evoked_answer": None, "agreement": float("nan")}, range(len(evoked)))
        said = [self.model.tokens.word(int(table.answers[c])) if c >= 0 else None for c in named.tolist()]
        agreed = agreement(recalled.answers, named, table=table)
        return pd.DataFrame({"evoked": list(evoked), "evoked_answer": said, "agreement": agreed})

    def _contrasts(self, facts: FactSet) -> tuple[list[Contrast], list[str]]:
        try:
            found = list(make_contrasts(self.task, facts, tokenizer=self.model.tokens, seed=self.seed).values())
        except MnemoError as error:
            return [], [f"no contrasts, so no attribution: {error}"]
        left = len(facts) - len(found)
        return found, [f"{left} recalled facts have no contrast of equal length: not attributed"] if left else []

    def _concepts(self, phrases: Sequence[str | None], recalled: Recalled) -> tuple[ConceptTable, Int[Tensor, " fact"]]:
        """The table of all phrases that the model can be asked about, and each fact's row in it (-1 for none)."""
        asked = [phrase for phrase in phrases if phrase] if self.task.concept_recall else []
        with self.task.blaming("concept_recall"):
            table = ask_concepts(
                self.model, self.task.concept_recall or "", phrases=asked, as_after=recalled.prompts[0]
            )
        return table, table.rows_of(phrases)

    def _waypoint(
        self,
        recalled: Recalled,
        contrasts: Sequence[Contrast],
        attributions: xr.Dataset | None,
        evoked: Sequence[str | None],
        reader: ReadsConcepts,
    ) -> Waypoint:
        if attributions is not None:
            sites = candidate_sites(self.model, contrasts, scores=attributions, most=self.effort.sites, seed=self.seed)
        else:  # nothing says which layers matter: try them all at the cue's last token
            position = recalled.prompts[0].last - len(recalled.prompts[0])
            sites = dict.fromkeys(sites_at(self.model, position), float("nan"))
        return find_waypoint(
            self.model,
            recalled.prompts,
            answers=recalled.answers,
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
            states = read_stream(self.model, recalled.prompts, positions=[site.position])[:, site.layer, 0]
            readings = reader.read(states, layer=site.layer, facts=recalled.facts, seed=self.seed)
            return self._concepts([best[0].phrase if best else None for best in readings], recalled)

        return read

    def _edit(
        self,
        recalled: Recalled,
        table: ConceptTable,
        concepts: Int[Tensor, " fact"],
        waypoint: Waypoint,
        parts: Parts,
    ) -> tuple[pd.DataFrame, list[str]]:
        """Which facts follow when concepts are taught other answers, all of the table; `concepts` are their own."""
        try:
            edits = edit_test(
                self.model,
                recalled.prompts,
                answers=recalled.answers,
                table=table,
                layer=waypoint.site.layer,
                seed=self.seed,
                keep=probe_prompts(self.model, self.task, fillers=table.phrases),
                config=EditConfig(rounds=self.effort.edit_rounds),
                parts=parts,
                progress=self.progress,
            )
        except MnemoError as error:  # the other evidence stands without it
            return pd.DataFrame(index=range(len(concepts))), [f"no edit test: {error}"]
        found = edits.table(concepts, table.phrases)
        notes = []
        if untaken := int((found["edit_follows"].isna() & (concepts >= 0).numpy()).sum()):
            notes.append(f"the edit of their concept says nothing about {untaken} facts")
        if (least := edits.choices**-self.effort.edit_rounds) >= FALSE_DISCOVERIES:
            notes.append(
                f"concepts have so few different answers that p-values of edits are at least {least:.2g}, and no fact "
                "is said to be led by one: add concepts with other answers"
            )
        return found, notes


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
    by_fact = paths.set_index("fact_id")[["top_path", "top_path_share"]]
    table = table.assign(**{column: table["fact_id"].map(values) for column, values in by_fact.items()})
    return replace(study, table=table, notes=tuple(notes))


def _top_paths(study: Study, fact_ids: Sequence[str]) -> pd.DataFrame:
    rows = []
    for fact_id in fact_ids:
        try:
            path = top_path(study.model, study.contrasts[fact_id])
            rows.append((fact_id, path.text, path.share, None))
        except MnemoError as error:  # of this fact; the others may well have one
            rows.append((fact_id, None, np.nan, str(error)))
    return pd.DataFrame(rows, columns=["fact_id", "top_path", "top_path_share", "fault"])


def _places(recalled: Recalled, readings: Sequence[list[Reading]], site: Site) -> pd.DataFrame:
    """Each fact's concept, how clearly it was read (if it was) and against which runner-up, and where."""
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


def _with_first(best: Sequence[Reading], phrase: str) -> list[Reading]:
    """Return readings with a phrase before all others, whatever its rank, or though it is not among them."""
    found = [reading for reading in best if reading.phrase == phrase]
    return [
        *(found or [Reading(phrase, (), math.nan, math.nan)]),
        *(reading for reading in best if reading.phrase != phrase),
    ]


def _notes_on_answers(said: Recalled, tokens: PromptTokenizer) -> list[str]:
    notes = []
    spaced = [tokens.pieces([i])[0].isspace() for i in said.predicted.tolist()]
    if held := sum(space and not known for space, known in zip(spaced, said.recalled.tolist(), strict=True)):
        notes.append(
            f"after {held} prompts the model writes white space first (before numbers in some vocabularies), so that "
            "the facts count as not recalled: end the task's recall template with that space"
        )
    ends = {prompt.last - len(prompt): fact for fact, prompt in zip(said.facts, said.prompts, strict=True)}
    if len(ends) > 1:
        shown = ", ".join(f"{place} of {fact.fact_id!r}" for place, fact in sorted(ends.items(), reverse=True)[:2])
        notes.append(
            f"the cue's last token is not as far from the end in all prompts (token {shown}), so that a site is "
            "another token in some: let what follows {cue} in the template start with a space or a letter"
        )
    if partial := int((~said.whole).sum()):
        notes.append(f"{partial} of {len(said.facts)} answers take several tokens: their first token stands for them")
    broken = (~said.probability.isfinite()).nonzero()[:, 0].tolist()
    if broken:
        notes.append(
            f"the model gives no finite probability for {len(broken)} of {len(said.facts)} facts, the first is "
            f"{said.facts[broken[0]].fact_id!r}: not judged; check its weights and dtype"
        )
    return notes
