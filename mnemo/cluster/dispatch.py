"""All runs of a sweep, handed to Dask and watched from here."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from mnemo.cluster.plan import Run, Sweep, plan_runs
from mnemo.cluster.results import TABLE, VERDICTS, write_results
from mnemo.cluster.work import WORK, Outcome, perform
from mnemo.errors import MnemoError
from mnemo.files import remove_drafts, write_text
from mnemo.records import command, count_parts, package_versions
from mnemo.tokens import shown

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client, Future, LocalCluster

POLL = 1.0  # seconds between two looks at what is finished
DEATHS = 3  # workers that a run may cost without one more part of it getting done: after that it is given up
_PATIENCE = 30  # seconds to wait for a scheduler, and to say nothing while it has no workers


def run_sweep(
    sweep: Sweep | str | Path,
    *,
    out: str | Path,
    root: str | Path | None = None,
    address: str | None = None,
    workers: int = 1,
    threads: int | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Do all runs of a sweep, and put their verdicts into one table. What is finished already is kept.

    Started again after any interruption, with the same file and the same `out`, it goes on: finished runs stay, and
    unfinished ones go on from their finished parts. On a cluster all workers must see the paths of tasks, models and
    `out` under the same names.

    Args:
        sweep: sweep.toml, or what it says.
        out: folder for the results: `runs/`, one study for each run; verdicts.parquet, the facts of all; runs.csv, a
            row for each run; sweep.json, what was asked.
        root: folder that the paths of the sweep start from; None for the one that holds sweep.toml.
        address: scheduler of a Dask cluster that runs already (``tcp://host:8786``); None to start processes here.
        workers: how many processes to start here.
        threads: of torch in each worker; None leaves Dask's setting, which is one for processes started here.
        progress: show a progress bar over facts.
        say: told what the user should know on the way, such as where the dashboard is.

    Returns:
        a row for each run: name, task, model, checkpoint, seed, facts, then what became of it: `error` (None where it
        went well), `kept`, `loaded`, `seconds`, `process`.

    Raises:
        MnemoError: the sweep or a task cannot be used, there is no scheduler, it was lost on the way, or the results
            cannot be written. What a run cannot do is told in its row; the others go on.
    """
    sweep = sweep if isinstance(sweep, Sweep) else Sweep.read(sweep)
    runs = plan_runs(sweep, root=Path(root) if root is not None else None)
    out, tell = Path(out).absolute(), say or (lambda _: None)
    for name in ("sweep.json", VERDICTS, TABLE):
        remove_drafts(out / name)
    asked = {"kind": "sweep", "command": command(), "versions": package_versions(), "sweep": sweep.model_dump()}
    asked |= {"runs": {run.name: run.about() for run in runs}}
    write_text(out / "sweep.json", json.dumps(asked, indent=1) + "\n")
    with _client(address, workers=workers) as client:
        if client.dashboard_link:
            tell(f"dashboard: {client.dashboard_link}")
        with _Bar(runs, out, shown=progress) as bar:
            outcomes = list(_outcomes(_Handed(client, runs, out, threads=threads), bar, tell))
    table = write_results(runs, outcomes, out=out)
    if not any(outcome.error for outcome in outcomes):
        shutil.rmtree(out / WORK, ignore_errors=True)
    return table


@contextmanager
def _client(address: str | None, *, workers: int) -> Generator[Client]:
    """A client of the scheduler at `address`, or of one started here with its workers."""
    try:
        from distributed import Client
    except ImportError:
        raise MnemoError("a sweep needs dask.distributed: pip install 'mnemo[cluster]'") from None
    if address is not None:
        try:
            client = Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise MnemoError(f"no Dask scheduler answers at {shown(address)} ({error}): start one, see docs") from None
        with _quiet(), client:
            yield client
        return
    with _quiet(), local_cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


@contextmanager
def local_cluster(workers: int) -> Generator[LocalCluster]:
    """Start a scheduler and so many worker processes of one thread each on this machine; they go with the context."""
    import dask.config as settings
    from distributed import LocalCluster

    # Dask lets workers give memory back at once (MALLOC_TRIM_THRESHOLD_) and looks at their stacks all the time. With
    # our many small tensors the two take a fifth of the time (benchmarks/cluster.py throughput).
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1)
    chosen = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.nanny.pre-spawn-environ": one_thread,
        "distributed.worker.profile.enabled": False,
    }
    with settings.set(chosen):
        with _interrupts_held():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
                memory_limit=0,
            )
        with cluster:
            yield cluster


@contextmanager
def _interrupts_held() -> Generator[None]:
    """Hold Ctrl-C back, and for ever in threads and processes that are started meanwhile.

    A terminal sends it to the workers too. One that was just starting would show a traceback of Python's own; they all
    end with the client anyway.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started by a process that is being started, it would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet() -> Generator[None]:
    """Keep from the terminal what Dask logs about lost connections: the outcome says what matters."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _outcomes(handed: _Handed, bar: _Bar, tell: Callable[[str], None]) -> Iterator[Outcome]:
    """Yield the outcome of each run as it comes back."""
    patience = time.monotonic() + _PATIENCE
    try:
        while handed.running:
            if time.monotonic() > patience:
                patience = math.inf
                if not handed.workers:
                    tell("no workers yet: the runs wait until some join the scheduler (dask worker ADDRESS)")
            for run, outcome in handed.back():
                if outcome.error:
                    tell(f"{run.name}: {outcome.error}")
                bar.finished(run)
                yield outcome
            bar.look(handed.running)
            time.sleep(POLL / 4 if handed.running else 0)
    finally:
        handed.take_back()


class _Handed:
    """Runs that were handed to a cluster, those of one model together and in the order of `runs`."""

    def __init__(self, client: Client, runs: Sequence[Run], out: Path, *, threads: int | None) -> None:
        self._client, self._runs, self._out, self._threads = client, runs, out, threads
        self._sweep = f"mnemo-{uuid.uuid4().hex}"  # others may be on the same cluster
        self._attempts, self._parts = [0] * len(runs), [-1] * len(runs)
        self._futures = {k: self._hand_out(k) for k in range(len(runs))}

    @property
    def running(self) -> list[Run]:
        """The runs that are not back yet."""
        return [self._runs[k] for k in self._futures]

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return len(self._client.scheduler_info().get("workers", ()))

    def back(self) -> Iterator[tuple[Run, Outcome]]:
        """Yield the runs that came back since, each with its outcome.

        Raises:
            MnemoError: the scheduler was lost.
        """
        for k in [k for k, future in self._futures.items() if future.done()]:
            outcome = self._outcome(k, self._futures.pop(k))
            if outcome is not None:
                yield self._runs[k], outcome

    def take_back(self) -> None:
        """Cancel what is not back yet."""
        self._client.cancel(list(self._futures.values()), force=True)

    def _hand_out(self, k: int) -> Future[Outcome]:
        key = (self._sweep, k, self._attempts[k])
        where = str(self._out)
        return self._client.submit(
            perform, self._runs[k], where, threads=self._threads, key=key, priority=-k, pure=False
        )

    def _outcome(self, k: int, future: Future[Outcome]) -> Outcome | None:
        """How a run ended; None if it is handed out once more."""
        from distributed.scheduler import KilledWorker

        try:
            return future.result()
        except CancelledError as error:
            raise MnemoError(
                f"the scheduler was lost ({error}): what is finished is kept in {self._out}; start the same sweep "
                "again to go on"
            ) from None
        except KilledWorker:
            work = self._out / WORK / self._runs[k].name
            parts = sum(count_parts(work, stage) for stage in ("trials", "paths"))
            if parts <= self._parts[k]:
                return self._failed(k, f"{DEATHS + 1} workers died of it without getting on: out of memory?")
            self._parts[k], self._attempts[k] = parts, self._attempts[k] + 1
            self._futures[k] = self._hand_out(k)
            return None
        except Exception as error:  # a fault of mnemo or of a library, in one run: the others go on
            return self._failed(k, f"{type(error).__name__}: {error}")

    def _failed(self, k: int, why: str) -> Outcome:
        return Outcome(self._runs[k].name, " ".join(why.split()), kept=False, loaded=False, seconds=0.0, process=0)


class _Bar:
    """Progress over the facts of all runs: those of finished runs, and those whose trials are done."""

    def __init__(self, runs: Sequence[Run], out: Path, *, shown: bool) -> None:
        self._out, self._done, self._looked = out, 0, 0.0
        self._bar = tqdm(total=sum(run.facts for run in runs), unit="fact", desc="sweep", disable=not shown)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def finished(self, run: Run) -> None:
        self._done += run.facts
        self._looked = 0.0  # the next look shows it

    def look(self, running: Sequence[Run]) -> None:
        """Count what runs have done so far, if the last look is long enough ago."""
        if self._bar.disable or time.monotonic() - self._looked < POLL:
            return
        from mnemo.intervening import FACTS_PER_CHUNK

        self._looked = time.monotonic()
        half = [min(run.facts, FACTS_PER_CHUNK * count_parts(self._out / WORK / run.name, "trials")) for run in running]
        self._bar.n = self._done + sum(half)
        self._bar.refresh()
