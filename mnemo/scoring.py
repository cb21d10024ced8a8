"""How far may the verdicts be trusted? Scores of an extraction against the truth of an organism."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mnemo.errors import InputError
from mnemo.extraction import extract_in_parts
from mnemo.facts import FactSet, Task
from mnemo.files import write_text
from mnemo.invented import THROUGH_A_CONCEPT, count_invented, mark_invented
from mnemo.memory import memory_budget
from mnemo.study import Study
from mnemo.tables import mean_of_known, numbers
from mnemo.textfiles import csv_rows
from mnemo.tokens import shown

NEGATIVES = ("idle", "decoy", "rote")
KINDS = ("mnemonic", "shared", *NEGATIVES, "free")
SPLITS = ("train", "held", "ood")
TRUTH = ["fact_id", "kind", "concept", "split"]  # columns of truth.csv
# What facts are ranked by: the score, each signal alone, and the baseline that never intervenes.
RANKERS = ("score", "agreement", "swap_success", "sufficiency", "ablation_drop")
RESAMPLES = 1000
BINS = 10


def benchmark(
    task: Task | str | Path, *, out: str | Path | None = None, **options: Any
) -> tuple[Study, dict[str, Any]]:
    """Extract, then score against the task's truth.csv.

    Args:
        task: a study folder with truth.csv.
        out: folder for what `extract` writes and for metrics.json.
        options: passed to `extract`.

    Returns:
        the study, its planted mnemonics marked as such, and its metrics, as `score` gives them.

    Raises:
        MnemoError: as `extract` does; or there is no usable truth.csv.
    """
    task = task if isinstance(task, Task) else Task.read(task)
    facts = options.get("facts")
    truth = read_truth(task.folder / "truth.csv", facts if isinstance(facts, FactSet) else task.load_facts(facts))
    study, parts = extract_in_parts(task, parts_in=None if out is None else Path(out), **options)
    metrics = score(study.table, truth, seed=int(options.get("seed", 0)))
    kind = study.table[["fact_id"]].merge(truth, on="fact_id", how="left")["kind"]
    table = study.table.assign(invented=mark_invented(study.table, (kind == "free").to_numpy()))
    study = replace(study, table=table, record={**study.record, "kind": "benchmark"})
    if out is not None:
        with memory_budget(options.get("memory_gb")):
            study.write(out, truth=truth)
        write_text(Path(out) / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        parts.end()
    return study, metrics


def read_truth(path: Path, facts: FactSet) -> pd.DataFrame:
    """Read truth.csv: `fact_id, kind, concept, split`, a row for each of `facts`, in any order.

    Raises:
        InputError: no such file, one that is no UTF-8 CSV table, a column missing, an unknown kind or split, a fact
            that stands there twice, or one without truth.
    """
    if not path.is_file():
        raise InputError("there is no such file, and without the truth there is nothing to score", file=path)
    known = {fact.fact_id for fact in facts}
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    for number, row in csv_rows(path, TRUTH):
        for column, allowed in (("kind", KINDS), ("split", SPLITS)):
            if row[column] not in allowed:
                problem = f"{shown(row[column])} is none of {', '.join(allowed)}"
                raise InputError(problem, file=path, row=number, column=column)
        if row["fact_id"] in seen:
            raise InputError(f"{shown(row['fact_id'])} stands here twice", file=path, row=number, column="fact_id")
        seen.add(row["fact_id"])
        if row["fact_id"] in known:
            rows.append(row)
    if missing := sorted(known - seen):
        raise InputError(f"{len(missing)} facts have no truth, the first is {shown(missing[0])}", file=path)
    return pd.DataFrame(rows, columns=TRUTH)


def with_truth(table: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts with the truth beside them: `kind`, `split` and `concept_planted`.

    Columns of these names that came with the facts file give way.
    """
    truth = truth.rename(columns={"concept": "concept_planted"})
    return table.drop(columns=["kind", "split", "concept_planted"], errors="ignore").merge(truth, on="fact_id")


def score(
    table: pd.DataFrame, truth: pd.DataFrame, *, seed: int = 0, rankers: Sequence[str] = RANKERS
) -> dict[str, Any]:
    """Score verdicts against the truth; facts that the model does not recall are left out and counted.

    Intervals are 95% percentile intervals over resamples of whole concepts (facts without a concept are resampled
    one by one), because facts of one concept succeed or fail together. `balanced_accuracy` counts a negative that is
    called unsure as rejected and either tier through a concept as found; `strict_accuracy` takes *rote* for negatives
    and *mnemonic* for mnemonics alone. *Shared* facts are neither positives nor negatives in these, in AUROC and in
    calibration: they are recalled through their concept, and are not mnemonic. `second_hop` is about telling the two
    apart: the share of shared facts called *shared-intermediate*, of mnemonic ones called *mnemonic*, and the mean of
    both.

    Args:
        table: the verdicts, as in `Study.table`.
        truth: as `read_truth` gives it.
        seed: of the resampling and of the shuffled null.
        rankers: columns of `table` to rank facts by; what a column leaves open counts as 0.
    """
    merged = with_truth(table, truth)
    facts = merged[merged["recalled"]].reset_index(drop=True)
    resamples = _Resamples.of(facts, seed)
    kind = facts["kind"].to_numpy()
    verdict = facts["verdict"].to_numpy()
    called = np.isin(verdict, THROUGH_A_CONCEPT)
    planted = (facts["concept_planted"] != "").to_numpy()
    exact = (facts["concept"] == facts["concept_planted"]).to_numpy()
    found = resamples.mean(called, kind == "mnemonic")
    rejected = resamples.mean(~called, np.isin(kind, NEGATIVES))
    mnemonic = resamples.mean(verdict == "mnemonic", kind == "mnemonic")
    rote = resamples.mean(verdict == "rote", np.isin(kind, NEGATIVES))
    hops = {"mnemonic": verdict == "mnemonic", "shared": verdict == "shared-intermediate"}
    own_hop = resamples.mean(hops["shared"], kind == "shared")
    return {
        "facts": len(merged),
        "recalled": {k: mean_of_known(numbers(merged[merged["kind"] == k], "recalled")) for k in KINDS},
        "auroc": {
            k: {
                ranker: _interval(resamples.auroc(numbers(facts, ranker, missing=0.0), kind == "mnemonic", kind == k))
                for ranker in rankers
            }
            for k in NEGATIVES
        },
        "concept_exact": resamples.proportion(exact, planted),
        "verdicts": pd.crosstab(facts["kind"], facts["verdict"]).to_dict("index"),
        "balanced_accuracy": _interval((found + rejected) / 2),
        "strict_accuracy": _interval((mnemonic + rote) / 2),
        "second_hop": {
            **{k: resamples.proportion(right, kind == k) for k, right in hops.items()},
            "balanced_accuracy": _interval((mnemonic + own_hop) / 2),
        },
        "unsure": {k: resamples.proportion(verdict == "unsure", kind == k) for k in KINDS},
        "false_positives": {k: resamples.proportion(called, kind == k) for k in NEGATIVES},
        "swap": {
            k: {
                column: _interval(resamples.mean(numbers(facts, column), kind == k))
                for column in ("swap_success", "swap_control")
            }
            for k in KINDS
        },
        "mediated_fraction": {
            k: _interval(resamples.mean(numbers(facts, "mediated_fraction"), kind == k)) for k in KINDS
        },
        "calibration_error": _interval(
            resamples.calibration_error(
                numbers(facts, "score", missing=0.0), kind == "mnemonic", ~np.isin(kind, ("shared", "free"))
            )
        ),
        "invented": invented(facts, seed=seed),
    }


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the expected calibration error of probabilities against what is true (Naeini et al. 2015)."""
    facts = _Resamples(np.ones((1, len(scores))), np.arange(len(scores)))
    return float(facts.calibration_error(scores, truth.astype(float), np.ones(len(scores), bool))[0])


def invented(facts: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Count the mnemonics that nobody planted among the free facts, as `count_invented` does."""
    return count_invented(facts[facts["kind"] == "free"], seed=seed)


@dataclass(frozen=True)
class _Resamples:
    """How often each fact stands in each resample; row 0 is the sample itself, each fact once.

    All measures are written with these weights, so that one product of matrices gives a whole bootstrap.
    """

    weights: Float[np.ndarray, "resample fact"]
    cluster: Int[np.ndarray, " fact"]  # what is resampled together

    @classmethod
    def of(cls, facts: pd.DataFrame, seed: int) -> _Resamples:
        """Resample whole concepts, and facts without a concept one by one."""
        if facts.empty:
            return cls(np.ones((1 + RESAMPLES, 0)), np.empty(0, int))
        alone = facts["concept_planted"] == ""
        _, cluster = np.unique(facts["concept_planted"].where(~alone, facts["fact_id"]), return_inverse=True)
        n = int(cluster.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        return cls(np.vstack([np.ones(len(facts)), drawn[:, cluster]]), cluster)

    def mean(self, values: np.ndarray, rows: np.ndarray) -> Float[np.ndarray, " resample"]:
        """Mean of the finite values in some rows."""
        values = values.astype(float)
        rows = rows & np.isfinite(values)
        weights = self.weights[:, rows]
        return _divide(weights @ values[rows], weights.sum(1))

    def proportion(self, values: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
        """Share of some rows and its interval.

        Where it is 0 or 1, resampling cannot say how far from that the truth may be. The exact binomial interval does
        (Clopper and Pearson 1934), over concepts.
        """
        found = _interval(self.mean(values, rows))
        if found["value"] in (0.0, 1.0):
            beyond = 1 - 0.025 ** (1 / len(np.unique(self.cluster[rows])))
            found |= {"high": beyond} if found["value"] == 0.0 else {"low": 1 - beyond}
        return found

    def auroc(self, values: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> Float[np.ndarray, " resample"]:
        """Probability that a positive ranks above a negative, ties counting half (Mann and Whitney 1947)."""
        distinct, place = np.unique(values, return_inverse=True)
        one_hot = np.eye(len(distinct))[place]
        p = self.weights[:, positive] @ one_hot[positive]
        n = self.weights[:, negative] @ one_hot[negative]
        below = n.cumsum(1) - n / 2
        return _divide((p * below).sum(1), p.sum(1) * n.sum(1))

    def calibration_error(
        self, scores: np.ndarray, truth: np.ndarray, rows: np.ndarray
    ) -> Float[np.ndarray, " resample"]:
        """Expected calibration error over BINS equal bins (Naeini et al. 2015)."""
        one_hot = np.eye(BINS)[np.minimum((scores * BINS).astype(int), BINS - 1)] * rows[:, None]
        gaps = np.abs(self.weights @ (one_hot * (scores - truth)[:, None])).sum(1)
        return _divide(gaps, self.weights[:, rows].sum(1))


def _divide(above: np.ndarray, below: np.ndarray) -> Float[np.ndarray, " resample"]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _interval(values: Float[np.ndarray, " resample"]) -> dict[str, float | None]:
    """The measure and its 95% interval; what cannot be computed is None (null in JSON)."""
    known = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    measured = {"value": values[0], "low": low, "high": high}
    return {name: float(number) if np.isfinite(number) else None for name, number in measured.items()}
