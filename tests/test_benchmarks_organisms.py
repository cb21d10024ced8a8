"""The table of trained organisms: what misses its bar is marked, what is not there does not stop it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "organisms.py"
ORGANISM = Path(__file__).resolve().parents[1] / "data" / "organism" / "organism.json"


def table(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--table", "--out", folder], capture_output=True, text=True, check=False
    )


def rows(folder: Path) -> dict[str, dict[str, str]]:
    done = table(folder)
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    return {name: dict(zip(cells[0][1:], values, strict=True)) for name, *values in cells[2:]}


@pytest.fixture
def card() -> dict[str, Any]:
    return json.loads(ORGANISM.read_text(encoding="utf-8"))


def put(folder: Path, name: str, card: dict[str, Any]) -> None:
    (folder / name).mkdir()
    (folder / name / "organism.json").write_text(json.dumps(card), encoding="utf-8")


def test_what_misses_its_bar_is_marked_the_seconds_too(card, tmp_path):
    card["measured"]["recall"]["rote"], card["measured"]["edit follows"]["decoy"] = 0.97, 0.10
    card["seconds"] = 720.0
    put(tmp_path, "at-the-bar", card)
    card["measured"]["recall"]["rote"], card["measured"]["edit follows"]["decoy"] = 0.96, 0.11
    card["seconds"] = 721.0
    put(tmp_path, "beyond", card)
    found = rows(tmp_path)
    at, beyond = found["at-the-bar"], found["beyond"]
    assert (at["rote"], at["edit: decoy"], at["seconds"]) == ("0.970", "0.100", "720")
    assert (beyond["rote"], beyond["edit: decoy"], beyond["seconds"]) == ("0.960 !", "0.110 !", "721 !")
    assert found["median"]["rote"] == "0.965"


def test_what_was_not_there_to_measure_is_a_dash_and_no_part_of_the_median(card, tmp_path):
    put(tmp_path, "whole", card)
    card["measured"]["invented"] = {"matches": 0.0, "shuffled mean": None, "shuffled max": float("nan")}
    del card["measured"]["recall"]["free"]
    put(tmp_path, "without", card)
    found = rows(tmp_path)
    assert found["without"]["free match"] == "0.00"
    for column in ("free", "shuffled mean", "shuffled max", "probes follow"):
        assert found["without"][column] == "-"
        assert float(found["median"][column]) == pytest.approx(float(found["whole"][column].split()[0]), abs=0.006)


def test_a_folder_without_organisms_is_named_in_one_line(tmp_path):
    done = table(tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines() == [
        f"{tmp_path}: no organism there; leave --table out to train them, or give --out"
    ]
