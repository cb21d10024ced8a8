"""Commands as a user types them: exit codes, one line for mistakes, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from mnemo.cli import main
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from tests.lexicon import PHRASES


def run(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnemo", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    world = build_world(
        WorldConfig(seed=1, concepts=8, cues_per_concept=3, decoys=3, idles=3, rotes=4, frees=0), PHRASES
    )
    path = tmp_path_factory.mktemp("cli") / "study"
    model, tokenizer = compile_organism(world)
    write_folder(path, world, model=model, tokenizer=tokenizer, name="compiled")
    return path


def test_benchmark_writes_its_files_where_it_says(folder, tmp_path):
    done = run("benchmark", folder / "task.toml", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "study"
    assert {f.name for f in out.iterdir()} == {
        "figures", "metrics.json", "report.html", "report.md", "run.json", "sites.csv", "verdicts.csv",
        "verdicts.parquet",
    }  # fmt: skip
    assert "AUROC" in done.stdout and "agreement" in done.stdout


def test_two_runs_with_one_seed_write_the_same_files_but_for_the_time_they_took(folder, tmp_path):
    for name in "12":
        (tmp_path / name).mkdir()
        done = run("extract", folder, "--quick", "--out", "out", cwd=tmp_path / name, PYTHONHASHSEED=name)
        assert done.returncode == 0, done.stderr
    one, two = (tmp_path / name / "out" for name in "12")
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(two) for file in two.rglob("*") if file.is_file())
    assert {"report.html", "report.md", "run.json"} < {str(file) for file in files}
    timed = {Path("verdicts.csv"): pd.read_csv, Path("verdicts.parquet"): pd.read_parquet}
    for file in files:
        if file in timed:
            tables = [timed[file](folder / file).drop(columns="seconds") for folder in (one, two)]
            pd.testing.assert_frame_equal(*tables, check_exact=True)
        else:
            assert (one / file).read_bytes() == (two / file).read_bytes(), file
    assert "mnemo extract" in (one / "report.md").read_text()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "facts.csv").write_text("fact_id,cue\na,b\n"), "'answer'"),
        (lambda f: (f / "facts.csv").write_bytes(b"fact_id,cue,answer\na,\xff,T\n"), "not UTF-8"),
        (lambda f: (f / "facts.csv").write_text("fact_id,cue,answer\n"), "0 facts"),
        (lambda f: (f / "facts.csv").write_text("fact_id,cue,answer\na,VA==,T\na,QQ==,A\n"), "row 3"),
        (lambda f: (f / "facts.csv").write_text("fact_id,cue,answer\na,€€,T\n"), "€"),
        (lambda f: (f / "task.toml").write_text('name = "x"\nrecall = "decode is"\n'), "{cue}"),
        (lambda f: (f / "task.toml").unlink(), "task.toml"),
        (lambda f: shutil.rmtree(f / "model"), "model"),
        (lambda f: (f / "model" / "config.json").write_text("{"), "config.json"),
    ],
)
def test_bad_input_is_one_line_with_its_place_and_exit_code_2(folder, tmp_path, damage, says):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    damage(broken)
    done = run("extract", broken, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mnemo: "), done.stderr
    assert says in lines[0]
    assert not (tmp_path / "out" / "verdicts.csv").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract",),
        ("extract", ".", "--sead", "1"),
        ("organism", "train", "x", "--arch", "bert"),
        ("nonsense",),
        ("plan", "x" * 5000),
        ("rerun", "x" * 5000),
        ("extract", ".", "--model", "~nobodyx/m"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_anywhere_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("mnemo.cli.app", lambda **_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("mnemo: out of memory (") and len(said.splitlines()) == 1


def test_importing_mnemo_and_its_commands_loads_no_heavy_library():
    heavy = ("torch", "transformers", "pandas", "matplotlib")
    code = f"import mnemo.cli, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
