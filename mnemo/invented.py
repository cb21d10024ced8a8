"""Mnemonics that nobody planted: which are real, which only look so, and how many there would be by chance.

A concept vector carries its answer with it, so a cue may seem to go through any concept that has its answer. Four
things tell look-alikes apart. Entailment: a cue that stands for a concept answers other questions as that concept does,
and not as other concepts with the same answer do (the control). Edits, where concepts were edited: taught another
answer, a concept takes with it the facts that go through it, and hardly any that go through another one with the answer
that it had; that shows even where no concept can be read or swapped. Swapped to such another concept, a fact that goes
through concepts keeps its answer. And chance: a concept that a cue evokes has the cue's
answer now and then by luck, as often as when the answers are shuffled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mnemo.intervals import grouped_interval
from mnemo.tables import mean_of_known, numbers
from mnemo.verdict import led_by_edits

THROUGH_A_CONCEPT = ("mnemonic", "shared-intermediate")  # verdicts
# Share of other questions that go as the concept's, above those that go as a same-answer concept's, from which on
# a cue is said to stand for its concept, and below which it is said not to. Between the two nothing is claimed.
FOLLOWS, FOLLOWS_NOT = 0.5, 0.25
SHUFFLES = 1000
MARKS = ("invented", "by-edit", "unsure", "look-alike")  # the most interesting first


def mark_invented(table: pd.DataFrame, free: Bool[np.ndarray, " fact"] | None = None) -> pd.Series:
    """Say of each fact that is recalled through a concept whether the model invented that mnemonic.

    ``invented``: nobody gave the cue its concept, and other questions about the cue follow the concept; or, where they
    are in between, the fact is led by its edits; or, where they say nothing (the task has no probes, or no other
    concept has the answer), it follows them.
    ``look-alike``: other questions do not follow it more than other concepts with the same answer, nor the fact an
    edit.
    ``unsure``: between the two; or the fact loses its answer when swapped to other concepts that have it, or follows
    edits of another concept than the one that was read.
    ``by-edit``: not recalled through a concept by verdict, but led by edits of one, `edit_concept`: swaps could not
    tell, or no concept could be read.
    ``planted``: a concept that was given. None: no sign of a concept.

    Args:
        table: verdicts, as in `Study.table`.
        free: which facts were given no concept; None where nobody planted anything, as in any model in the wild.
    """
    through = table["verdict"].isin(THROUGH_A_CONCEPT).to_numpy()
    above = numbers(table, "entailment") - numbers(table, "entailment_control")
    kind = np.select([above > FOLLOWS, above < FOLLOWS_NOT], ["invented", "look-alike"], "unsure").astype(object)
    edited = numbers(table, "edit_follows") - numbers(table, "edit_control") > FOLLOWS
    led = led_by_edits(table).to_numpy()
    by_another = led & (table["edit_concept"] != table["concept"]).to_numpy() if led.any() else led
    kind[edited & np.isnan(above)] = "invented"
    kind[led & ~by_another & (kind == "unsure")] = "invented"
    kind[edited & (kind == "look-alike")] = "unsure"
    kind[(kind == "invented") & ((numbers(table, "same_answer") < FOLLOWS) | by_another)] = "unsure"
    kind[~through], kind[~through & led] = None, "by-edit"
    kind[(through | led) & ~(np.ones(len(table), bool) if free is None else free)] = "planted"
    return pd.Series(kind, index=table.index, name="invented", dtype=object)


def strongest_first(table: pd.DataFrame) -> pd.DataFrame:
    """Return the facts marked as one of `MARKS`, in that order, the clearest of each first."""
    rank = table["invented"].map({mark: i for i, mark in enumerate(MARKS)})
    above = numbers(table, "entailment") - numbers(table, "entailment_control")
    by_edit = numbers(table, "edit_share") - numbers(table, "edit_rival")
    above = np.where(table["invented"] == "by-edit", by_edit, above)
    ranked = table.assign(_rank=rank, _above=above)[rank.notna()]
    ranked = ranked.sort_values(["_rank", "_above", "score"], ascending=[True, False, False], kind="stable")
    return ranked.drop(columns=["_rank", "_above"])


def as_marked(row: pd.Series) -> pd.Series:
    """Return a fact's row with the concept that its mark is about, the one that it follows in edits or that was read.

    What was measured with another concept, that was read, is left out.
    """
    if row["invented"] != "by-edit" or row["edit_concept"] == row["concept"]:
        return row
    read = [name for name in ("score", "q_value", "swap_success", "entailment", "entailment_control") if name in row]
    return row.mask(row.index.isin(read), np.nan).mask(row.index == "concept", row["edit_concept"])


def count_invented(free: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Count the mnemonics among facts that were given none, against chance, with 95% intervals.

    Shares are over all of these facts. Intervals are percentile intervals over resamples of whole concepts (facts at
    which none was read one by one), because facts of one concept stand or fall together.

    Args:
        free: rows of `Study.table`: recalled facts to which nobody gave a concept.
        seed: of the shuffles and the resampling.

    Returns:
        `facts`, their number, and, where concepts were looked for:

        - `matches`, the share whose evoked concept, asked by itself, has the fact's answer; `null`, the same with the
          answers shuffled among these facts (mean and maximum over `SHUFFLES` shuffles), and its `p_value`;
        - `verdicts`, the number judged to be recalled through a concept, and `verdicts_share`, `verdicts_null` and
          `verdicts_p_value`: of those also having the answer of the concept that they evoke;
        - `kinds`, the number of each mark of `mark_invented`, and `invented_share`, of those marked ``invented``;
        - `entailment`, how often other questions about a cue get its concept's answers, beside other concepts with
          the same answer, for matching facts and for the others; `entailment_gap`, the difference over all facts
          judged to be recalled through a concept;
        - `edits`, where concepts were edited: how many facts were `tested` (several concepts have their answer), how
          many were `led` by edits of one (`mnemo.verdict.led_by_edits`), their share, and `elsewhere`, how many are led
          by a concept with another answer (the control); `fitting`, of how many led facts the model names a
          concept with their answer, and `named`, how often it is the same one, beside `named_by_chance`.
    """
    if free.empty or "evoked_answer" not in free:
        return {"facts": len(free)}
    answers, said = (free[column].to_numpy(dtype=object) for column in ("predicted", "evoked_answer"))
    through = free["verdict"].isin(THROUGH_A_CONCEPT).to_numpy()
    marks = mark_invented(free)
    matches = said == answers
    draw = np.random.default_rng(seed)
    shuffled = np.array([said == draw.permutation(answers) for _ in range(SHUFFLES)])
    groups = free["concept"].where(free["concept"].notna(), free["fact_id"]).to_numpy()
    gap = numbers(free, "entailment") - numbers(free, "entailment_control")

    def interval(values: np.ndarray) -> dict[str, float | None]:
        return grouped_interval(values.astype(float), groups, seed=seed)

    null, null_through = shuffled.mean(1), (shuffled & through).mean(1)
    return {
        "facts": len(free),
        "matches": float(matches.mean()),
        "matches_interval": interval(matches),
        "null": _chance(null),
        "p_value": _p_value(matches.mean(), null),
        "verdicts": int(through.sum()),
        "verdicts_share": interval(matches & through),
        "verdicts_null": _chance(null_through),
        "verdicts_p_value": _p_value((matches & through).mean(), null_through),
        "kinds": {mark: int((marks == mark).sum()) for mark in MARKS},
        "invented_share": interval((marks == "invented").to_numpy()),
        "entailment": {
            name: {column: mean_of_known(numbers(rows, column)) for column in ("entailment", "entailment_control")}
            for name, rows in (("matching", free[matches]), ("other", free[~matches]))
        },
        "entailment_gap": interval(np.where(through, gap, np.nan)),
        **({"edits": _by_edits(free, seed=seed)} if "edit_q" in free else {}),
    }


def _by_edits(free: pd.DataFrame, *, seed: int) -> dict[str, Any]:
    tested, led = free["edit_rival"].notna().to_numpy(), led_by_edits(free).to_numpy()
    fitting = led & (free["evoked_answer"] == free["predicted"]).to_numpy()
    groups = free["edit_concept"].where(free["edit_concept"].notna(), free["fact_id"]).to_numpy()
    named = (free["edit_concept"] == free["evoked"]).to_numpy()

    def interval(values: np.ndarray, rows: np.ndarray) -> dict[str, float | None]:
        return grouped_interval(np.where(rows, values.astype(float), np.nan), groups, seed=seed)

    return {
        "tested": int(tested.sum()),
        "led": int(led.sum()),
        "led_share": interval(led, tested),
        "elsewhere": int(numbers(free, "edit_elsewhere", missing=0.0).sum()),
        "fitting": int(fitting.sum()),
        "named": interval(named, fitting),
        "named_by_chance": mean_of_known(1 / numbers(free[fitting], "edit_candidates")),
    }


def _chance(null: Float[np.ndarray, " shuffle"]) -> dict[str, float]:
    return {"mean": float(null.mean()), "max": float(null.max())}


def _p_value(seen: float, null: Float[np.ndarray, " shuffle"]) -> float:
    """Permutation p-value: the sample itself counts as one of the shuffles (Phipson and Smyth 2010)."""
    return float((1 + (null >= seen).sum()) / (1 + len(null)))
