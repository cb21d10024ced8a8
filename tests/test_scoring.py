"""Scores against truth: known answers, and intervals that know about concepts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mnemo.errors import InputError
from mnemo.facts import Fact, FactSet
from mnemo.scoring import _Resamples, read_truth, score

FACTS = FactSet(facts=tuple(Fact(fact_id=f"f{i}", cue=f"c{i}", answer="T") for i in range(2)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_auroc_counts_pairs(positive, negative):
    values = np.array([*positive, *negative], float)
    is_positive = np.arange(len(values)) < len(positive)
    found = _Resamples(np.ones((1, len(values))), np.arange(len(values))).auroc(values, is_positive, ~is_positive)[0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert found == pytest.approx(np.mean(pairs))


def test_weights_count_as_copies_do():
    values, positive = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])
    weights = np.array([2.0, 1.0, 3.0, 2.0])
    once = _Resamples(weights[None], np.arange(4))
    copies = np.repeat(np.arange(4), weights.astype(int))
    many = _Resamples(np.ones((1, len(copies))), np.arange(len(copies)))
    everyone = np.ones(4, bool)
    for weighted, copied in (
        (once.auroc(values, positive, ~positive), many.auroc(values[copies], positive[copies], ~positive[copies])),
        (once.mean(values, positive), many.mean(values[copies], positive[copies])),
        (
            once.calibration_error(values, positive, everyone),
            many.calibration_error(values[copies], positive[copies], everyone[copies]),
        ),
    ):
        assert weighted[0] == pytest.approx(copied[0])


def verdicts(rows):
    """Rows (kind, score, verdict, concept planted)."""
    table = pd.DataFrame(
        {
            "fact_id": [f"f{i}" for i in range(len(rows))],
            "recalled": True,
            "score": [r[1] for r in rows],
            "verdict": [r[2] for r in rows],
            "concept": [r[3] for r in rows],
            "agreement": 1.0,
            "swap_success": [r[1] for r in rows],
            "swap_control": 0.0,
            "sufficiency": 1.0,
            "ablation_drop": 0.0,
        }
    )
    truth = pd.DataFrame(
        {"fact_id": table["fact_id"], "kind": [r[0] for r in rows], "concept": [r[3] for r in rows], "split": "train"}
    )
    return table, truth


PERFECT = [("mnemonic", 0.95, "mnemonic", f"concept {i // 2}") for i in range(10)] + [
    (kind, 0.05, "rote", f"concept {i}" if kind != "rote" else "")
    for kind in ("idle", "decoy", "rote")
    for i in range(5)
]


def test_perfect_verdicts_score_perfectly_and_an_uninformative_ranker_does_not():
    metrics = score(*verdicts(PERFECT))
    for kind in ("idle", "decoy", "rote"):
        assert metrics["auroc"][kind]["score"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert metrics["auroc"][kind]["agreement"]["value"] == 0.5
        assert metrics["false_positives"][kind]["value"] == 0
    assert metrics["balanced_accuracy"]["value"] == 1
    assert metrics["concept_exact"]["value"] == 1
    assert metrics["calibration_error"]["value"] == pytest.approx(0.05)


def test_none_of_a_few_may_still_be_some_of_many():
    """Resampling a share of 0 or 1 gives it again; the exact interval over concepts does not."""
    metrics = score(*verdicts(PERFECT))
    for kind in ("idle", "decoy", "rote"):  # of five concepts, or five facts without one
        expected = stats.binomtest(0, 5).proportion_ci(method="exact")
        assert metrics["false_positives"][kind] == pytest.approx({"value": 0, "low": 0, "high": expected.high})
    expected = stats.binomtest(5, 5).proportion_ci(method="exact")  # ten mnemonic, idle and decoy facts share these
    assert metrics["concept_exact"]["value"] == 1 and metrics["concept_exact"]["high"] == 1
    assert metrics["concept_exact"]["low"] == pytest.approx(expected.low)


def test_strict_accuracy_takes_no_unsure_for_an_answer():
    rows = [("mnemonic", 0.9, "mnemonic", "a")] * 3 + [("mnemonic", 0.9, "shared-intermediate", "b")]
    rows += [("idle", 0.1, "rote", "c")] * 3 + [("idle", 0.1, "unsure", "d")]
    metrics = score(*verdicts(rows))
    assert metrics["balanced_accuracy"]["value"] == 1 and metrics["strict_accuracy"]["value"] == 0.75
    assert metrics["unsure"]["idle"]["value"] == 0.25 and metrics["unsure"]["mnemonic"]["value"] == 0


def test_shared_facts_count_for_second_hops_alone():
    rows = [("shared", 0.9, tier, f"s {tier}") for tier in ("shared-intermediate", "mnemonic", "mnemonic", "unsure")]
    before, metrics = score(*verdicts(PERFECT)), score(*verdicts(PERFECT + rows))
    for name in ("auroc", "balanced_accuracy", "strict_accuracy", "calibration_error", "false_positives"):
        of_kinds = metrics[name] if "value" not in metrics[name] else {"": metrics[name]}
        for kind, entry in of_kinds.items():
            was = before[name][kind] if kind else before[name]
            found = [e.get("score", e)["value"] for e in (entry, was)]
            assert found[0] == pytest.approx(found[1]), (name, kind)
    assert metrics["second_hop"]["shared"]["value"] == 0.25 and metrics["second_hop"]["mnemonic"]["value"] == 1
    assert metrics["second_hop"]["balanced_accuracy"]["value"] == 0.625
    assert before["second_hop"]["shared"]["value"] is before["second_hop"]["balanced_accuracy"]["value"] is None


def test_intervals_are_wider_when_facts_of_one_concept_stand_or_fall_together():
    def width(concepts):
        rows = [("mnemonic", 0.9, "mnemonic" if c % 2 else "rote", f"concept {c}") for c in concepts]
        rows += [("rote", 0.1, "rote", "")] * 40
        entry = score(*verdicts(rows))["balanced_accuracy"]
        return entry["high"] - entry["low"]

    assert width([i // 10 for i in range(40)]) > 1.5 * width(range(40))


def test_facts_that_are_not_recalled_are_left_out_and_counted():
    table, truth = verdicts(PERFECT)
    table.loc[0, ["recalled", "score", "verdict"]] = [False, 0.0, "not-recalled"]
    metrics = score(table, truth)
    assert metrics["auroc"]["idle"]["score"]["value"] == 1
    assert metrics["recalled"]["mnemonic"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fact_id,kind,concept\nf0,rote,\nf1,rote,\n", "column 'split'"),
        ("fact_id,kind,concept,split\nf0,rota,,train\n", "'rota' is none of"),
        ("fact_id,kind,concept,split\nf0,rote,,train\n", "1 facts have no truth, the first is 'f1'"),
        (
            "fact_id,kind,concept,split\nf0,rote,,train\nf0,rote,,train\n",
            "row 3, column 'fact_id': 'f0' stands here twice",
        ),
        ('fact_id,kind,concept,split\nf0,rote,"a\nb",train\nf1,rota,,train\n', "row 4, column 'kind'"),
        ('fact_id,kind,concept,split\nf0,rote,,train\nf1,rote,"open,train\n', r"row 3: not CSV .* double quote"),
        ("fact_id,kind,concept,split\nf0,rote,,train\nf1,rote,a,b,train\n", "row 3: 5 values for 4 columns"),
        ("fact_id,kind,kind,concept,split\n", "column 'kind': the header should have this column once"),
    ],
)
def test_unusable_truth_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "truth.csv").write_text(text, newline="")
    with pytest.raises(InputError, match=message):
        read_truth(tmp_path / "truth.csv", FACTS)


def test_truth_is_read_as_a_spreadsheet_saves_it(tmp_path):
    rows = "fact_id,kind,concept,split\r\nf1,idle,a b,held\r\nelse,rote,,train\r\nf0,rote,,ood\r\n"
    (tmp_path / "truth.csv").write_text(f"\ufeff{rows}", encoding="utf-8", newline="")
    assert read_truth(tmp_path / "truth.csv", FACTS).to_numpy().tolist() == [
        ["f1", "idle", "a b", "held"], ["f0", "rote", "", "ood"],
    ]  # fmt: skip


def test_truth_that_is_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "truth.csv").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match=r"truth\.csv: 1024 MB, and at most 256 MB are read"):
        read_truth(tmp_path / "truth.csv", FACTS)


def test_no_truth_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_truth(tmp_path / "truth.csv", FACTS)
