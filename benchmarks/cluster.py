"""What a sweep costs, gains and survives: kills, throughput, overhead, memory.

    python benchmarks/cluster.py kills        # 20 random SIGKILLs, then the result against undisturbed extractions
    python benchmarks/cluster.py disk         # a disk that really fills up (needs `unshare` and user namespaces)
    python benchmarks/cluster.py scheduler    # a scheduler of its own is killed under the sweep
    python benchmarks/cluster.py throughput   # two workers against one, and one worker against a plain loop
    python benchmarks/cluster.py memory       # 10,000 facts in one run: the largest size of the worker

Each prints what it measured and writes it to --out/NAME.json. Models are organisms whose weights are written down, or
the shipped one; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from mnemo.cluster import Run, Sweep, plan_runs, run_sweep
from mnemo.cluster.dispatch import local_cluster
from mnemo.cluster.manifest import RUNS
from mnemo.cluster.work import WORK, perform
from mnemo.datasets import data_path
from mnemo.facts import Fact, FactSet, Task
from mnemo.files import write_text
from mnemo.organisms.compiled import compile_organism
from mnemo.organisms.folder import write_folder
from mnemo.organisms.world import WorldConfig, build_world

KILLS, FACTS = 20, (2500, 5000, 10_000)


def main() -> None:
    """Run what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "disk", "scheduler", "throughput", "memory", "extract"))
    parser.add_argument("--out", type=Path, default=Path("out/cluster"))
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--facts", type=int, nargs="+", default=FACTS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    out = given.out.absolute()
    if given.what == "extract":  # one size, in a process of its own
        print(json.dumps(_extract_many(out, given.facts[0])))
        return
    found = {
        "kills": lambda: kills(out, runs=given.runs, count=given.kills, seed=given.seed),
        "disk": lambda: disk(out),
        "scheduler": lambda: scheduler(out),
        "throughput": lambda: throughput(out, runs=given.runs),
        "memory": lambda: memory(out, given.facts),
    }[given.what]()
    found["load"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found, indent=1))
    write_text(out / f"{given.what}.json", json.dumps(found, indent=1) + "\n")


# ---- what is run


def study(folder: Path) -> Path:
    """Write a sweep's folder with one small organism in it, made by hand; returns it."""
    if not (folder / "study" / "task.toml").is_file():
        config = WorldConfig(seed=3, concepts=8, cues_per_concept=2, decoys=2, idles=2, rotes=4, frees=0)
        phrases = tuple(Task.read(data_path("organism")).load_lexicon())
        world = build_world(config, phrases)
        model, tokenizer = compile_organism(world)
        write_folder(folder / "study", world, model=model, tokenizer=tokenizer, name="compiled")
    return folder


def sweep_file(folder: Path, *, runs: int) -> Path:
    """Write a sweep of that organism with so many seeds; returns its file."""
    file = study(folder) / "sweep.toml"
    write_text(file, f'name = "bench"\ntasks = ["study"]\nseeds = {list(range(runs))}\nquick = true\n')
    return file


def undisturbed(runs: list[Run], out: Path) -> dict[str, pd.DataFrame]:
    """What each run says where nothing happens to it, by name; one process, one after the other."""
    for run in runs:
        outcome = perform(run, str(out), threads=1)
        assert outcome.error is None, outcome
    return {run.name: _verdicts(out, run.name) for run in runs}


def _verdicts(out: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(out / RUNS / name / "verdicts.parquet").drop(columns="seconds")


def compared(out: Path, expected: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return how a sweep's result compares with that of undisturbed runs: what is missing, doubled or different."""
    table = pd.read_parquet(out / "verdicts.parquet")
    same = sum(name in set(table["run"]) and _verdicts(out, name).equals(frame) for name, frame in expected.items())
    return {
        "runs": len(expected),
        "runs the same to the last bit": same,
        "facts": len(table),
        "facts missing": sum(map(len, expected.values())) - len(table),
        "facts doubled": int(table.duplicated(["run", "fact_id"]).sum()),
    }


# ---- kills


def kills(out: Path, *, runs: int, count: int, seed: int) -> dict[str, Any]:
    """Kill workers and, every fifth time, the client with its scheduler, at random moments, until `count` are dead."""
    draw = random.Random(seed)
    file, into = sweep_file(out / "kills", runs=runs), out / "kills" / "out"
    planned = plan_runs(Sweep.read(file))
    expected = undisturbed(planned, out / "kills" / "undisturbed")
    shutil.rmtree(into, ignore_errors=True)
    log: list[str] = []
    starts = 0
    while True:
        process, starts = _start(file, into), starts + 1
        while process.poll() is None and len(log) < count:
            time.sleep(draw.uniform(2, 12))
            whole = (len(log) + 1) % 5 == 0
            if (victim := process.pid if whole else _busy_worker(process, draw)) is None:
                continue
            done = len(list((into / RUNS).glob("*/manifest.json")))
            os.kill(victim, signal.SIGKILL)
            log.append(f"{'client and scheduler' if whole else 'worker'} killed with {done} of {runs} runs finished")
            print(log[-1], flush=True)
            if whole:
                break
        process.wait()
        if process.returncode == 0:
            break
        if len(log) >= count and starts > count:
            raise SystemExit(f"gave up after {starts} starts")
        if done_all(into, runs) and len(log) < count:  # too quick for the killer: begin anew, the finished go
            shutil.rmtree(into / RUNS / sorted(path.name for path in (into / RUNS).iterdir())[0])
    return {"kills": len(log), "starts": starts, **compared(into, expected), "log": log}


def done_all(out: Path, runs: int) -> bool:
    """Whether all runs are finished."""
    return len(list((out / RUNS).glob("*/manifest.json"))) == runs


def _start(file: Path, out: Path) -> subprocess.Popen[Any]:
    command = [sys.executable, "-m", "mnemo", "sweep", str(file), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def _busy_worker(process: subprocess.Popen[Any], draw: random.Random) -> int | None:
    """The process of a worker that has been alive for some seconds, or None."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:
        return None
    return draw.choice(workers) if workers else None


# ---- a full disk, a scheduler that dies


def disk(out: Path) -> dict[str, Any]:
    """Run a sweep on a file system of a few hundred kilobytes that fills up, then on the same made larger."""
    file = sweep_file(out / "disk", runs=4)
    planned = plan_runs(Sweep.read(file))
    expected = undisturbed(planned, out / "disk" / "undisturbed")
    into = out / "disk" / "small"
    into.mkdir(exist_ok=True)
    run = f"'{sys.executable}' -m mnemo sweep '{file}' --out '{into}/out'"
    script = (
        f"mount -t tmpfs -o size=180k none '{into}' && {run}; echo code $?; find '{into}' -name '*.tmp' | wc -l; "
        f"ls '{into}/out/runs' | wc -l; mount -o remount,size=64m '{into}' && {run}; echo code $?; "
        f"rm -rf '{out}/disk/result'; cp -r '{into}/out' '{out}/disk/result'"
    )
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "fact/s" not in line]
    return {"said": said, **compared(out / "disk" / "result", expected)}


def scheduler(out: Path) -> dict[str, Any]:
    """Kill a scheduler that runs by itself, with its worker, while a sweep is on it; start both, and go on."""
    file, into = sweep_file(out / "scheduler", runs=4), out / "scheduler" / "out"
    expected = undisturbed(plan_runs(Sweep.read(file)), out / "scheduler" / "undisturbed")
    shutil.rmtree(into, ignore_errors=True)
    said: list[str] = []
    for kill in (True, False):
        with _cluster(1) as (address, process):
            command = [sys.executable, "-m", "mnemo", "sweep", str(file), "--out", str(into), "--address", address]
            started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            while kill and started.poll() is None and not list(into.glob(f"{RUNS}/*/manifest.json")):
                time.sleep(0.2)
            if kill:
                process.kill()
            text = started.communicate(timeout=900)[1]
            said.append(f"code {started.returncode}: {text.strip().splitlines()[-1]}")
    return {"said": said, **compared(into, expected)}


@contextmanager
def _cluster(workers: int) -> Generator[tuple[str, subprocess.Popen[Any]]]:
    """A scheduler and workers as processes of their own; yields its address and the scheduler."""
    port = random.randint(20_000, 30_000)
    address = f"tcp://127.0.0.1:{port}"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    base = [sys.executable, "-m", "distributed.cli"]
    head = subprocess.Popen(
        [*base[:2], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        **quiet,
    )
    command = [*base[:2], "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    hands = [subprocess.Popen(command, **quiet) for _ in range(workers)]
    try:
        yield address, head
    finally:
        for process in (*hands, head):
            process.kill()
            process.wait()


# ---- throughput and overhead


def throughput(out: Path, *, runs: int) -> dict[str, Any]:
    """Time the same runs in a plain loop, on one worker and on two; imports and loading are done before.

    CPU seconds are those of the worker processes (or of the loop): they do not count what other programs on the
    machine take, wall seconds do.
    """
    from distributed import Client

    file = sweep_file(out / "throughput", runs=runs)
    sweep = Sweep.read(file)
    warm = sweep.model_copy(update={"seeds": (1000, 1001)})
    planned = plan_runs(sweep)
    facts = sum(run.facts for run in planned)
    found: dict[str, Any] = {"facts": facts}

    place = out / "throughput"
    for name in ("loop", "1", "2"):
        shutil.rmtree(place / name, ignore_errors=True)
    undisturbed(plan_runs(warm)[:1], place / "loop")
    wall, cpu = time.perf_counter(), time.process_time()
    undisturbed(planned, place / "loop")
    found["loop"] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    for workers in (1, 2):
        with local_cluster(workers) as made:
            cluster: Any = made
            with Client(cluster, set_as_default=False) as client:
                asked: Any = client.run(os.getpid)
            pids = [int(pid) for pid in asked.values()]
            into = place / str(workers)
            run_sweep(warm, out=into / "warm", address=cluster.scheduler_address, progress=False)
            before = _cpu(pids)
            wall = time.perf_counter()
            table = run_sweep(sweep, out=into / "out", address=cluster.scheduler_address, progress=False)
            taken = {"wall": time.perf_counter() - wall, "cpu": _cpu(pids) - before}
            assert table["error"].isna().all() and not table["loaded"].any()
            found[f"{workers} worker{'s' if workers > 1 else ''}"] = taken
    found["speed-up of two workers, wall"] = found["1 worker"]["wall"] / found["2 workers"]["wall"]
    found["CPU for each fact, two workers over one"] = found["2 workers"]["cpu"] / found["1 worker"]["cpu"]
    for kind in ("wall", "cpu"):
        found[f"overhead of one worker over the loop, {kind}"] = found["1 worker"][kind] / found["loop"][kind] - 1
    return found


def _cpu(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(time.user + time.system for time in times)


# ---- memory


def memory(out: Path, sizes: list[int]) -> dict[str, Any]:
    """Extract more and more facts of the shipped organism, each in a process of its own; report its largest size."""
    found: dict[str, Any] = {}
    for size in sizes:
        command = [sys.executable, __file__, "extract", "--out", str(out), "--facts", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[str(size)] = json.loads(done.stdout.splitlines()[-1])
        print(size, found[str(size)], flush=True)
    return found


def _extract_many(out: Path, size: int) -> dict[str, Any]:
    """A run of `size` facts: those of the shipped organism, as often as is needed, each time under other ids."""
    folder = out / "memory" / f"study-{size}"
    shutil.rmtree(folder, ignore_errors=True)
    task = Task.read(data_path("organism"))
    facts = task.load_facts()
    many = [Fact(fact_id=f"{i:05d}", cue=(f := facts[i % len(facts)]).cue, answer=f.answer) for i in range(size)]
    task.model_copy(update={"model": None}).write(folder)
    FactSet(facts=tuple(many)).write(folder / "facts.csv")
    shutil.copy(task.folder / "concepts.txt", folder / "concepts.txt")
    sweep = Sweep(name="memory", tasks=(folder.name,), models=("organism",), quick=True, folder=folder.parent)
    (run,) = plan_runs(sweep)
    into = out / "memory" / "out"
    shutil.rmtree(into / RUNS / run.name, ignore_errors=True)
    shutil.rmtree(into / WORK / run.name, ignore_errors=True)
    import torch

    from mnemo.model import load

    torch.set_num_threads(1)
    load("organism")
    loaded = _megabytes()
    start = time.perf_counter(), time.process_time()
    outcome = perform(run, str(into), threads=1)
    assert outcome.error is None, outcome
    return {
        "facts": size,
        "MB with the model loaded": loaded,
        "MB at the most": _megabytes(),
        "KB for each fact": round((_megabytes() - loaded) * 1024 / size, 1),
        "wall seconds": round(time.perf_counter() - start[0]),
        "CPU milliseconds for each fact": round(1000 * (time.process_time() - start[1]) / size, 1),
    }


def _megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
