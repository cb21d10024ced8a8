"""The suite of verdicts: what its organisms are, its baselines against values known by construction, its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import verdicts

from mnemo.facts import Task
from mnemo.organisms.compiled import WAYPOINT
from mnemo.scoring import read_truth

SCRIPT = verdicts.__file__


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> tuple[Path, Path]:
    organisms, out = tmp_path_factory.mktemp("organisms"), tmp_path_factory.mktemp("out")
    verdicts.judge("compiled-plain-0", organisms, out)
    return organisms, out


def test_baselines_see_what_was_built(judged):
    card = json.loads((judged[1] / "compiled-plain-0" / "card.json").read_text())
    assert card["waypoint"] == [WAYPOINT, -2] and card["waypoint_right"]
    auroc = {kind: {name: entry["value"] for name, entry in row.items()} for kind, row in card["auroc"].items()}
    for kind in ("idle", "decoy", "rote"):
        assert auroc[kind]["score"] == auroc[kind][f"naive swap {WAYPOINT}"] == 1
        assert auroc[kind]["naive swap 1"] < 0.6  # before the concept is evoked there is nothing to swap
        assert auroc[kind]["whole-state swap"] == pytest.approx(0.5, abs=0.1)  # it overwrites every cue alike
    assert auroc["idle"]["agreement"] == pytest.approx(0.5, abs=0.1)
    assert auroc["idle"]["verbalisation"] < 0.9 < auroc["rote"]["verbalisation"]


def test_the_organisms_for_report_are_of_other_seeds():
    roles = pd.Series({name: case.role for name, case in verdicts.SUITE.items() if name.startswith("compiled")})
    assert set(roles[roles.index.str.contains("-[01]$|-[01]-no")]) == {"development"}
    assert set(roles[roles.index.str.contains("-2$|-2-no")]) == {"report"}
    trained = [case for case in verdicts.SUITE.values() if case.name in
               {f"{family}-{seed}" for family in verdicts.FAMILIES for seed in verdicts.SEEDS}]  # fmt: skip
    assert len(trained) == 21 and sum(case.role == "report" for case in trained) == 12


def test_shuffled_answers_leave_no_mnemonic_fact(tmp_path):
    folder = verdicts.provided("compiled-shuffled-0", tmp_path)
    task = Task.read(folder)
    truth = read_truth(folder / "truth.csv", task.load_facts())
    assert set(truth["kind"]) <= {"decoy", "idle", "free"}
    assert (truth["kind"] == "decoy").sum() > 10 * (truth["kind"] == "idle").sum()


def test_a_derived_organism_lacks_its_key_and_nothing_else(tmp_path):
    folder = verdicts.provided("compiled-plain-0-no-verbalise", tmp_path)
    task, whole = Task.read(folder), Task.read(tmp_path / "compiled-plain-0")
    assert task.verbalise is None and whole.verbalise is not None
    assert task.model_copy(update={"verbalise": whole.verbalise, "folder": whole.folder}) == whole
    assert task.load_facts() == whole.load_facts() and task.load_lexicon() == whole.load_lexicon()


def put(out: Path, name: str, card: dict[str, Any]) -> None:
    (out / name).mkdir(parents=True)
    (out / name / "card.json").write_text(json.dumps(card))


def test_what_misses_its_bar_is_marked(judged, tmp_path):
    card = json.loads((judged[1] / "compiled-plain-0" / "card.json").read_text())
    put(tmp_path, "compiled-plain-0", card)
    card["balanced_accuracy"] = {"value": 0.96, "low": 0.9, "high": 0.99}
    card["waypoint_right"] = False
    put(tmp_path, "compiled-plain-2", card)
    card["mediated_fraction"]["mnemonic"]["value"] = 0.45
    put(tmp_path, "compiled-redundant-0.5-2", card)
    printed = subprocess.run(
        [sys.executable, SCRIPT, "--table", "--out", tmp_path], capture_output=True, text=True, check=True
    ).stdout
    marked: dict[str, int] = {}
    for line in printed.splitlines():
        if line.startswith("| compiled"):
            marked.setdefault(line.split(" | ")[0].strip("| "), line.count(" !"))
    assert marked["compiled-plain-0"] == 0
    assert marked["compiled-plain-2"] == 2
    assert "0.960 [0.90, 0.99] !" in printed
    assert "### Development" in printed and "### Report" in printed
    assert marked["compiled-redundant-0.5-2"] == 0  # 0.05 off the planted share is near enough


def test_second_hops_are_told_of_organisms_that_have_both_sorts(judged, tmp_path):
    card = json.loads((judged[1] / "compiled-plain-0" / "card.json").read_text())
    assert card["second_hop"] == card["second_hop_by_vectors"]  # nothing was edited
    assert card["second_hop"]["mnemonic"]["value"] == 1 and card["second_hop"]["shared"]["value"] is None
    put(tmp_path, "compiled-plain-0", card)
    assert "second hops" not in verdicts.tables(tmp_path)
    card["second_hop_by_vectors"]["shared"] = {"value": 0.125, "low": 0.0, "high": 0.25}
    put(tmp_path, "compiled-shared-0", card)
    lines = verdicts.tables(tmp_path).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| second hops"))
    (row,) = lines[start + 2 : lines.index("", start)]
    assert row.startswith("| compiled-shared-0 | 0.125 [0.00, 0.25] | 1.000")


def test_a_folder_without_verdicts_is_named_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--table", "--out", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.splitlines() == [f"{tmp_path}: nothing was judged there; leave --table out, or give --out"]
