"""Would a wrong concept have done as well? Facts that go through a concept, tried with another that has their answer.

    python benchmarks/wrong_concepts.py FOLDER ...           # study folders of organisms, or of any model
    python benchmarks/wrong_concepts.py FOLDER ... --runs DIR     # reads finished runs, DIR/NAME for a folder NAME
    python benchmarks/wrong_concepts.py FOLDER ... --evoked       # concepts that the model names, whatever verdicts say

The null that shuffles answers is easy to beat, since a concept with another answer cannot carry a fact. Here each fact
is tried, in the very same trials at dose 1, through its own concept and through a concept drawn from those that other
cues evoke and that have its answer. How many facts pass through the wrong one says how often *recalled through it*
names a concept when all that counts is the answer. Beside it the edit test (`mnemo.editing`): how often facts give the
new answers that their own concept was taught, and how often those of the wrong one, after the same training.

With `--evoked` the facts are those to whose code the model, asked what it stands for, names a concept with their
answer, and that is their concept: where no concept can be read at the waypoint, an edit can still show that a fact goes
through one.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import cell, print_table, with_kinds
from jaxtyping import Int
from torch import Tensor

from mnemo.behaviour import probe_prompts
from mnemo.concept_vectors import choose_targets
from mnemo.edit_evidence import Edits
from mnemo.editing import edit_test
from mnemo.errors import MnemoError
from mnemo.extraction import extract
from mnemo.invented import THROUGH_A_CONCEPT
from mnemo.looks import Effort
from mnemo.study import Study
from mnemo.study_concepts import StudyConcepts, study_concepts
from mnemo.tested_facts import TestedFacts
from mnemo.trials import rivals_of, run_trials
from mnemo.verdict import judge, weigh

TRIED = ("through", "through_wrong", "follows", "follows_wrong")


def through_either(study: Study, *, evoked: bool = False, seed: int = 0) -> pd.DataFrame:
    """Try each fact that is recalled through a concept with that one and with a wrong one that has its answer.

    Args:
        study: what `extract` found.
        evoked: whether to take facts and concepts as the model names them when asked.
        seed: draws wrong concepts, targets and the edit's answers.

    Returns:
        a row for each such fact of which there is a wrong concept: `fact_id`, `concept`, `wrong`, whether the fact is
        `through` the first and `through_wrong` the second, and whether it `follows` an edit of the first and
        `follows_wrong` one of the second (NaN where the edit was not taken).
    """
    facts = study.table.set_index("fact_id")
    if evoked:
        study = replace(study, table=study.table.assign(concept=study.table["evoked"]))
        called = facts["evoked_answer"] == facts["predicted"]
    else:
        called = facts["verdict"].isin(THROUGH_A_CONCEPT)
    known = study_concepts(study)
    wrong = _wrong(known, seed=seed)
    ids = [i for i, row in known.rows.items() if called[i] and wrong[row] >= 0]
    if not ids:
        return pd.DataFrame(columns=["fact_id", "concept", "wrong", *TRIED])
    rows = torch.tensor([known.rows[i] for i in ids])
    recall = torch.tensor(facts.loc[ids, "recall_probability"].to_numpy(np.float32))
    phrases, edits = known.table.phrases, _edits(study, known, seed=seed)
    return pd.DataFrame(
        {
            "fact_id": ids,
            "concept": [phrases[c] for c in known.concepts[rows].tolist()],
            "wrong": [phrases[c] for c in wrong[rows].tolist()],
            "through": _through(study, known, rows, known.concepts, recall, seed=seed),
            "through_wrong": _through(study, known, rows, wrong, recall, seed=seed),
            "follows": edits.follows(known.concepts)[rows].numpy(),
            "follows_wrong": edits.follows(wrong)[rows].numpy(),
        }
    )


def _wrong(known: StudyConcepts, *, seed: int) -> Int[Tensor, " fact"]:
    """For each fact that has a concept another one with its answer that some cue evokes; -1 where there is none."""
    drawn = torch.rand(len(known.answers), len(known.table), generator=torch.Generator().manual_seed(seed))
    return rivals_of(known.table, known.vectors.counts, answers=known.answers, concepts=known.concepts, drawn=drawn)[
        :, 0
    ]


def _through(
    study: Study,
    known: StudyConcepts,
    rows: Int[Tensor, " fact"],
    concepts: Int[Tensor, " fact"],
    recall: Tensor,
    *,
    seed: int,
) -> list[bool]:
    assert study.waypoint is not None, "facts are recalled through a concept at a waypoint"
    targets = choose_targets(
        known.table, known.vectors.counts, answers=known.answers, concepts=concepts,
        n_targets=Effort().targets, seed=seed,
    )  # fmt: skip
    prompts = [study.prompt(fact_id) for fact_id in known.rows]
    tested = TestedFacts(study.model, prompts, rows, known.answers[rows], concepts[rows], known.table, known.vectors)
    evidence = weigh(run_trials(tested, targets[rows], seed=seed), recall)
    return judge(evidence, sites=study.waypoint.tried)["verdict"].isin(THROUGH_A_CONCEPT).tolist()


def _edits(study: Study, known: StudyConcepts, *, seed: int) -> Edits:
    assert study.waypoint is not None, "facts are recalled through a concept at a waypoint"
    return edit_test(
        study.model,
        [study.prompt(fact_id) for fact_id in known.rows],
        answers=known.answers,
        table=known.table,
        layer=study.waypoint.site.layer,
        seed=seed,
        keep=probe_prompts(study.model, study.task, fillers=known.table.phrases),
        progress=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", metavar="FOLDER", help="study folders")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="finished runs, by the names of the study folders")
    parser.add_argument("--evoked", action="store_true", help="take the concepts that the model names when asked")
    parser.add_argument("--quick", action="store_true", help="extract with fewer interventions for each fact")
    args = parser.parse_args()
    try:
        found = {folder.resolve().name: _kinds(folder, args) for folder in args.studies}
    except MnemoError as error:
        parser.exit(2, f"{error}\n")
    print_table(
        [
            "organism",
            "facts",
            "how many",
            "through their own",
            "through the wrong one",
            "follow their own",
            "the wrong one",
        ],
        (
            [name, kind, str(len(rows)), *(cell(rows[tried], rows["concept"]) for tried in TRIED)]
            for name, table in found.items()
            for kind, rows in table.groupby("kind")
        ),
    )


def _kinds(folder: Path, args: argparse.Namespace) -> pd.DataFrame:
    done = args.runs and args.runs / folder.resolve().name
    study = Study.read(done, task=folder) if done else extract(folder, quick=args.quick, progress=False)
    return with_kinds(through_either(study, evoked=args.evoked), study, folder)


if __name__ == "__main__":
    logging.getLogger("mnemo").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main()
