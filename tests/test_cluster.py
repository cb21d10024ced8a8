"""Sweeps lose nothing and double nothing, whatever is killed, and come out as undisturbed extractions do."""

from __future__ import annotations

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import psutil
import pytest

import mnemo.intervening
from mnemo.cluster import Run, Sweep, plan_runs
from mnemo.cluster.dispatch import local_cluster, run_sweep
from mnemo.cluster.manifest import RUNS, is_done, read_manifest
from mnemo.cluster.plan import Dtype
from mnemo.cluster.work import WORK, _Cache, perform
from mnemo.errors import MnemoError
from mnemo.extraction import extract
from mnemo.model_checks import TOLERANCE
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world
from mnemo.records import count_parts
from mnemo.report import print_sweep_plan
from tests.lexicon import PHRASES

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with one small study in it."""
    config = WorldConfig(seed=3, concepts=8, cues_per_concept=2, decoys=1, idles=1, rotes=2, frees=0)
    world = build_world(config, PHRASES)
    folder = tmp_path_factory.mktemp("sweep")
    model, tokenizer = compile_organism(world)
    write_folder(folder / "study", world, model=model, tokenizer=tokenizer, name="compiled")
    return folder


@pytest.fixture(scope="module")
def undisturbed(root) -> dict[int, pd.DataFrame]:
    """What `extract` alone says, by seed."""
    return {seed: _comparable(extract(root / "study", quick=True, seed=seed, progress=False).table) for seed in SEEDS}


def _comparable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of verdicts as it comes back from a file, without the time it took."""
    file = io.BytesIO(table.drop(columns="seconds").to_parquet(index=False))
    return pd.read_parquet(file)


def _sweep(root: Path, **changes: Any) -> Sweep:
    return Sweep(**{"name": "test", "tasks": ("study",), "seeds": SEEDS, "quick": True, "folder": root, **changes})


def _verdicts(run: Run, out: Path) -> pd.DataFrame:
    return _comparable(pd.read_parquet(out / RUNS / run.name / "verdicts.parquet"))


# ---- what is to be run


def test_a_plan_is_every_model_with_every_task_seed_and_checkpoint(root, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(root / "study")
    for name in ("m", "n"):
        for step in ("10", "20"):
            (tmp_path / name / step).mkdir(parents=True)
    sweep = Sweep(
        name="x", tasks=("a", "b/task.toml"), models=("n", "m"), checkpoints=("10", "20"), seeds=(4, 5), folder=tmp_path
    )
    runs = plan_runs(sweep)
    assert len(runs) == len({run.name for run in runs}) == 16
    assert len({run.signature for run in runs}) == 8  # both tasks say the same
    models = [run.model for run in runs]
    assert models == sorted(models)  # a worker that takes runs in this order loads each model once
    assert {Path(model).relative_to(tmp_path.absolute()).as_posix() for model in models} == {
        "m/10", "m/20", "n/10", "n/20",
    }  # fmt: skip
    assert plan_runs(sweep) == runs


def test_a_hub_model_is_named_with_its_revision_and_not_looked_for(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (run,) = plan_runs(_sweep(root, models=("org/name",), checkpoints=("step1000",), seeds=(0,)))
    assert run.model == "org/name@step1000"
    print_sweep_plan([run], root / "out", address=None, workers=1)
    assert "org/name@step1000 (hub)" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(MnemoError, match=r"model 'typo' is neither a directory in .* nor a hub name"):
        plan_runs(_sweep(root, models=("typo",)))


@pytest.mark.parametrize("change", ["facts", "model", "seed", "quick", "dtype"])
def test_whatever_decides_the_result_changes_the_signature(root, tmp_path, change):
    shutil.copytree(root, tmp_path / "copy")
    sweep = _sweep(tmp_path / "copy", seeds=(0,))
    (before,) = plan_runs(sweep)
    if change == "facts":
        file = tmp_path / "copy/study/facts.csv"
        file.write_text(file.read_text().rsplit("\n", 2)[0] + "\n")
    if change == "model":
        os.utime(tmp_path / "copy/study/model/model.safetensors", (1, 1))
    dtype = {"dtype": "float64"} if change == "dtype" else {}
    (after,) = plan_runs(_sweep(tmp_path / "copy", seeds=(int(change == "seed"),), quick=change != "quick", **dtype))
    assert before.signature != after.signature


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "x"\n', "'tasks': this key is needed"),
        ('name = "x"\ntasks = []\n', "at least 1 item"),
        ('name = "x"\ntasks = ["../other"]\n', "leaves the study folder"),
        ('name = "x"\ntasks = ["/etc"]\n', "leaves the study folder"),
        (f'name = "x"\ntasks = ["{"y" * 5000}"]\n', "longer than a path can be"),
        ('name = "x"\ntasks = ["a", "a"]\n', "'a' stands here twice"),
        ('name = "x"\ntasks = ["study", "./study/task.toml"]\n', "'./study/task.toml' is the same as 'study'"),
        ('name = "x"\ntasks = ["study"]\nmodels = ["study/model", "./study"]\n', "same as 'study/model'"),
        ('name = "x"\ntasks = ["a"]\ndtype = "int8"\n', "row 3, column 'dtype'"),
        ('name = "x"\ntasks = ["a"]\nseeds = [-1]\n', "greater than or equal to 0"),
        ('name = "x"\ntasks = ["a"]\nseeds = [true]\n', "integer"),
        ('name = "x"\ntasks = ["a"]\nseed = [1]\n', "did you mean 'seeds'"),
        ('name = "x"\ntasks = ["a"]\n', "there is no such file"),
        ('name = "x"\ntasks = ["study"]\nmodels = ["no where"]\n', "neither a directory in"),
        ('name = "x"\ntasks = ["study"]\ncheckpoints = ["9"]\n', "no such checkpoint"),
        ('name = "x"\ntasks = ["study"]\nmodels = ["study/pythia"]\n', "no directory in"),
        ('name = "x"\ntasks = ["study"]\nmodels = ["organism"]\ncheckpoints = ["9"]\n', "has no checkpoint '9'"),
        ('name = "x"\nfolder = "y"\ntasks = ["study"]\n', "the folder is the one that holds the file"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line_with_its_place(root, text, says):
    file = root / "bad.toml"
    file.write_text(text)
    with pytest.raises(MnemoError) as caught:
        plan_runs(Sweep.read(file))
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


# ---- one run


def test_a_model_is_loaded_as_asked_and_once(root):
    plain, wide = (plan_runs(_sweep(root, seeds=(0,), dtype=dtype, device="cpu"))[0] for dtype in (None, "float64"))
    cache = _Cache()
    found = [cache.get(run) for run in (plain, wide, wide)]
    assert [(model.dtype_name, loaded) for model, loaded in found] == [
        ("float32", True), ("float64", True), ("float64", False),
    ]  # fmt: skip
    assert {f"torch.{name}" for name in get_args(Dtype)} == {str(dtype) for dtype in TOLERANCE}


def test_a_run_is_the_extraction_and_is_done_once(root, undisturbed, tmp_path):
    runs = plan_runs(_sweep(root))
    outcomes = [perform(run, str(tmp_path), threads=None) for run in runs]
    assert [(outcome.error, outcome.kept) for outcome in outcomes] == [(None, False)] * 2
    assert [outcome.loaded for outcome in outcomes][1:] == [False]  # one model, loaded once
    for run in runs:
        pd.testing.assert_frame_equal(_verdicts(run, tmp_path), undisturbed[run.seed], check_exact=True)
    before = (tmp_path / RUNS / runs[0].name / "verdicts.parquet").stat().st_mtime_ns
    again = perform(runs[0], str(tmp_path), threads=None)
    assert again.kept and (tmp_path / RUNS / runs[0].name / "verdicts.parquet").stat().st_mtime_ns == before


def test_a_damaged_run_is_known_and_done_again(root, undisturbed, tmp_path):
    (run,) = plan_runs(_sweep(root, seeds=(0,)))
    perform(run, str(tmp_path), threads=None)
    shard = tmp_path / RUNS / run.name / "verdicts.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    shard.write_bytes(content)
    assert not is_done(run, tmp_path)
    assert not perform(run, str(tmp_path), threads=None).kept
    pd.testing.assert_frame_equal(_verdicts(run, tmp_path), undisturbed[0], check_exact=True)
    for damage in ("not json", "{}", '{"files": {}}', '{"files": {"../../x": "0"}}', '{"files": {"gone": "0"}}'):
        (shard.parent / "manifest.json").write_text(damage)
        assert read_manifest(shard.parent) is None


@contextmanager
def _disk_full_after(size: int) -> Generator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(root, undisturbed, tmp_path):
    (run,) = plan_runs(_sweep(root, seeds=(1,)))
    for size in (64, 4096, 20_000):  # the lock and the mark, the first part, the last table
        with _disk_full_after(size):
            outcome = perform(run, str(tmp_path), threads=None)
        assert outcome.error is not None and "too large" in outcome.error and "cannot be written" in outcome.error
        assert not (tmp_path / RUNS / run.name).exists()
        assert not [path for path in tmp_path.rglob("*.tmp") if path.name.startswith(".")]
    assert perform(run, str(tmp_path), threads=None).error is None
    pd.testing.assert_frame_equal(_verdicts(run, tmp_path), undisturbed[1], check_exact=True)


def test_a_lock_empties_nothing_and_follows_no_link(root, tmp_path):
    (run,) = plan_runs(_sweep(root, seeds=(0,)))
    mine = tmp_path / "mine.txt"
    mine.write_text("kept")
    lock = tmp_path / "out" / WORK / f"{run.name}.lock"
    lock.parent.mkdir(parents=True)
    lock.symlink_to(mine)
    error = perform(run, str(tmp_path / "out"), threads=None).error
    assert error is not None and f"{lock}: cannot be locked" in error
    assert mine.read_text() == "kept" and not (tmp_path / "out" / RUNS).exists()


def test_what_a_run_cannot_do_is_told_and_does_not_raise(root, tmp_path):
    (run,) = plan_runs(_sweep(root, seeds=(0,), models=("organism",)))  # cannot spell these cues, or does not know them
    (gone,) = plan_runs(_sweep(root, seeds=(0,)))
    lost = Run(**{**gone.about(), "model": str(tmp_path / "gone"), "name": "lost"})
    outcome = perform(lost, str(tmp_path), threads=None)
    assert outcome.error is not None and "no such directory" in outcome.error
    assert run.model == "organism"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # its other threads rest
def test_twenty_kills_at_random_moments_lose_nothing_and_double_nothing(root, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(mnemo.intervening, "FACTS_PER_CHUNK", 4)
    (run,) = plan_runs(_sweep(root, seeds=(0,)))
    out, draw = tmp_path / "out", random.Random(0)
    start = time.monotonic()
    perform(run, str(tmp_path / "whole"), threads=None)
    whole = time.monotonic() - start
    kills = parts_found = 0
    while kills < 20:
        child = os.fork()
        if child == 0:
            perform(run, str(out), threads=None)
            os._exit(0)
        time.sleep(draw.uniform(0, whole))
        parts_found += count_parts(out / WORK / run.name, "trials") > 0
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if is_done(run, out):  # too quick for the killer
            pd.testing.assert_frame_equal(_verdicts(run, out), undisturbed[0], check_exact=True)
            shutil.rmtree(out)
    assert parts_found  # some were killed with parts finished
    assert perform(run, str(out), threads=None).error is None
    pd.testing.assert_frame_equal(_verdicts(run, out), undisturbed[0], check_exact=True)
    assert sorted(path.name for path in (out / RUNS).iterdir()) == [run.name]  # no half-written folder beside it
    assert read_manifest(out / RUNS / run.name) is not None and not (out / WORK / run.name).exists()


# ---- jobs of SLURM, as the documentation has them

# What is left of SLURM where there is none: a job is a process here, in a group of its own.
_SBATCH = """#!/bin/sh
cp "$1" "$JOBS/job.sh"
setsid bash "$JOBS/job.sh" > "$JOBS/job.log" 2>&1 &
echo "Submitted batch job $!"
"""
_SCANCEL = '#!/bin/sh\nkill -- "-$1"\n'


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Generator[tuple[list[str], dict[str, Any]]]:
    """The lines about SLURM in docs/cluster.md that are to be run yet, and their names once the job script is made."""
    import dask.config as settings
    import dask_jobqueue  # pyright: ignore[reportUnusedImport]  # noqa: F401  # its defaults, before they are changed

    page = (Path(__file__).parents[1] / "docs/cluster.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?SLURMCluster.*?)```", page, flags=re.DOTALL)
    head, dry_run, tail = code.partition("print(cluster.job_script())")
    assert dry_run
    names: dict[str, Any] = {}
    here = {"jobqueue.slurm.scheduler-options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}}
    for name, script in (("sbatch", _SBATCH), ("scancel", _SCANCEL)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("JOBS", str(tmp_path))
    with settings.set(here):
        exec(head, names)
        with names["cluster"]:
            yield tail.splitlines(), names


def test_a_job_of_the_documented_cluster_has_one_worker_of_one_thread_and_all_of_its_memory(slurm):
    script = slurm[1]["cluster"].job_script().splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in script if line.startswith("#SBATCH")}
    assert asked >= {"-n 1", "--cpus-per-task=4", "--mem=30G", "-t 04:00:00"}
    command = [line.split() for line in script if line and not line.startswith("#")]
    assert len(command) == 1 and command[0][:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    options = command[0][3:]
    assert [options[i + 1] for i, word in enumerate(options) if word == "--nthreads"] == ["1"]
    assert options[options.index("--memory-limit") + 1] == "29.80GiB"  # 32 GB, a little less than what SLURM gives
    assert "--nworkers" not in options and "--nanny" in options


def test_a_sweep_through_jobs_of_the_documented_cluster_is_the_undisturbed_one(slurm, root, undisturbed, tmp_path):
    lines, names = slurm
    file, out = root / "jobs.toml", tmp_path / "out"
    file.write_text(f'name = "x"\ntasks = ["study"]\nseeds = {list(SEEDS)}\nquick = true\n')
    code = "\n".join(lines).replace("jobs=8", "jobs=1").replace("SWEEP.toml", str(file))
    exec(code.replace("/scratch/me/sweep", str(out)).replace("threads=4", "threads=1"), names)
    table = pd.read_csv(out / "runs.csv")
    assert table["error"].isna().all() and not table["kept"].any(), (tmp_path / "job.log").read_text()
    assert os.getpid() not in set(table["process"])
    for run in plan_runs(Sweep.read(file)):
        pd.testing.assert_frame_equal(_verdicts(run, out), undisturbed[run.seed], check_exact=True)


# ---- all runs, with what may happen to them


def _mnemo(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mnemo", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # A shell starts what it runs in the background deaf to Ctrl-C, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def _until(condition: Callable[[], Any], *, process: subprocess.Popen[str], seconds: float = 600) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end or process.poll() is not None:
            process.kill()
            pytest.fail(f"waited in vain: {process.communicate()}")
        time.sleep(0.05)
    return found


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that do the runs; beside them there is one that multiprocessing keeps for itself."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_killed_workers_a_killed_scheduler_and_an_interrupt_cost_nothing_that_was_finished(root, undisturbed, tmp_path):
    file, out = root / "sweep.toml", tmp_path / "out"
    file.write_text(f'name = "x"\ntasks = ["study"]\nseeds = {list(SEEDS)}\nquick = true\n')
    runs = plan_runs(Sweep.read(file))

    def finished() -> dict[str, int]:
        return {m.parent.name: m.stat().st_mtime_ns for m in (out / RUNS).glob("*/manifest.json")}

    started = _mnemo("sweep", file, "--out", out, "--workers", "2")
    _until(lambda: list((out / WORK).glob("*.lock")), process=started)  # a worker is at its first run: kill it there
    for worker in _workers(started)[:1]:
        worker.send_signal(signal.SIGKILL)
    _until(finished, process=started)
    left = _workers(started)
    started.kill()  # the client, and the scheduler in it
    started.communicate()
    psutil.wait_procs(left, timeout=300)  # workers go with their scheduler
    assert not [worker for worker in left if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    kept = finished()
    assert kept

    again = _mnemo("sweep", file, "--out", out, "--workers", "1")
    _until(lambda: _workers(again), process=again)
    os.killpg(again.pid, signal.SIGINT)  # Ctrl-C reaches the whole group
    said = again.communicate(timeout=600)[1]
    assert again.returncode == 130 and any(line.startswith("mnemo: interrupted") for line in said.splitlines()), said
    assert "Traceback" not in said

    table = run_sweep(Sweep.read(file), out=out, workers=1, progress=False)
    assert table["error"].isna().all() and set(table.loc[table["kept"], "name"]) >= set(kept)
    assert {name: time for name, time in finished().items() if name in kept} == kept  # not written again
    whole = pd.read_parquet(out / "verdicts.parquet")
    assert not whole.duplicated(["run", "fact_id"]).any()
    assert len(whole) == sum(run.facts for run in runs)
    for run in runs:
        pd.testing.assert_frame_equal(_verdicts(run, out), undisturbed[run.seed], check_exact=True)
    assert not (out / WORK).exists()
    assert json.loads((out / "sweep.json").read_text())["runs"].keys() == {run.name for run in runs}


def test_a_scheduler_that_is_not_there_is_one_line(root, tmp_path, monkeypatch):
    monkeypatch.setattr("mnemo.cluster.dispatch._PATIENCE", 0.5)
    with pytest.raises(MnemoError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        run_sweep(_sweep(root), out=tmp_path, address="tcp://127.0.0.1:1", progress=False)
    with pytest.raises(MnemoError, match="no Dask scheduler answers"):
        run_sweep(_sweep(root), out=tmp_path, address="nonsense://x", progress=False)


def test_what_commands_print_needs_no_locks_of_the_system():
    code = "import sys; sys.modules['fcntl'] = None; import mnemo.report; print('mnemo.cluster.work' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


class _Said(Exception):
    """Ends a sweep that would wait for ever."""


def test_a_scheduler_without_workers_is_told(root, tmp_path, monkeypatch):
    monkeypatch.setattr("mnemo.cluster.dispatch._PATIENCE", 1.5)

    def say(line: str) -> None:
        if not line.startswith("dashboard"):
            raise _Said(line)

    with local_cluster(0) as cluster, pytest.raises(_Said, match="no workers yet"):
        run_sweep(_sweep(root), out=tmp_path, address=cluster.scheduler_address, progress=False, say=say)


def test_a_dry_run_says_what_would_be_run_and_runs_nothing(root, tmp_path):
    file = root / "dry.toml"
    file.write_text('name = "x"\ntasks = ["study"]\nseeds = [0, 1]\n')
    process = _mnemo("sweep", file, "--out", tmp_path / "out", "--dry-run", "--address", "tcp://host:8786")
    said, error = process.communicate()
    assert process.returncode == 0, error
    assert "2 of 2 runs to do, 36 facts, 1 models, on the Dask cluster at tcp://host:8786" in " ".join(said.split())
    assert not (tmp_path / "out").exists()
