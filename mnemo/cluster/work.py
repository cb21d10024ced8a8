"""One run of a sweep, on whichever worker it lands: done before, gone on with, or begun.

The unit of work is a whole extraction (a task, a model, a seed), not a shard of its facts, because a verdict is no
function of its fact alone: the waypoint is chosen over all facts, a concept's vector is a mean over them, readings are
ranked against other facts' states, and Benjamini-Hochberg counts them. A shard judged by itself would get other
verdicts. What *is* a function of the fact, once those are known, is its trials and its paths: they are done in parts of
`mnemo.extraction.FACTS_PER_CHUNK` facts, which lie in the sweep's folder while the run goes on. So a worker that is
killed costs at the most the part that it was at and the steps before the first one, whoever takes the run over finds
the rest, and the result is that of an undisturbed `mnemo extract`.

A run is written to its folder whole or not at all, with a manifest of hashes; a lock of the file system keeps two
workers from the same run (one may be believed dead and not be).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mnemo.cluster.manifest import RUNS, is_done, write_manifest
from mnemo.cluster.plan import Run
from mnemo.errors import InputError, MnemoError
from mnemo.files import remove_drafts, replacing

if TYPE_CHECKING:
    from mnemo.model import Model

WORK = ".work"


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        name: of the run.
        error: why it could not be done, in one line; None if it was.
        kept: whether it had been finished before.
        loaded: whether its model was loaded for it, not at hand.
        seconds: how long it took.
        process: id of the worker's process.
    """

    name: str
    error: str | None
    kept: bool
    loaded: bool
    seconds: float
    process: int


def perform(run: Run, out: str, *, threads: int | None) -> Outcome:
    """Do a run unless it is done, and write it to its folder in `out`.

    Args:
        run: what to do.
        out: the sweep's folder, which all workers see.
        threads: of torch; None leaves them as they are.

    Returns:
        how it ended. What the user can mend is told there, and never raised: it is no reason to try again.
    """
    start = time.perf_counter()
    loaded = kept = False
    error = None
    try:
        # Hooks are put on the model itself, so one process does one run at a time.
        with _ONE_AT_A_TIME, _locked(Path(out) / WORK / f"{run.name}.lock"):
            kept = is_done(run, Path(out))
            if not kept:
                loaded = _extract(run, Path(out), threads)
    except MnemoError as fault:
        error = " ".join(str(fault).split())
    seconds = time.perf_counter() - start
    return Outcome(run.name, error, kept=kept, loaded=loaded, seconds=seconds, process=os.getpid())


def _extract(run: Run, out: Path, threads: int | None) -> bool:
    """Extract and write; returns whether the model had to be loaded."""
    import torch

    from mnemo.extraction import extract_in_parts

    if threads is not None:
        torch.set_num_threads(threads)
    model, loaded = _CACHE.get(run)
    study, parts = extract_in_parts(
        run.task,
        model=model,
        parts_in=out / WORK / run.name,
        quick=run.quick,
        edit=run.edit,
        resume=True,
        seed=run.seed,
        progress=False,
    )
    remove_drafts(out / RUNS / run.name)
    with replacing(out / RUNS / run.name) as draft:
        study.write(draft, report=run.report)
        write_manifest(draft, signature=run.signature, run=run.about())
    parts.end()
    shutil.rmtree(out / WORK / run.name, ignore_errors=True)
    return loaded


_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def _locked(file: Path) -> Generator[None]:
    """Wait for the only lock on a file; it goes with the process that holds it, however that ends."""
    with ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Opened as it is, and no link followed: whoever may write here must not choose what is emptied or locked.
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            held.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise InputError(f"cannot be locked ({error.strerror or error})", file=file) from error
        yield


class _Cache:
    """The model that this process used last: the runs of one model come together, and a second may not fit."""

    def __init__(self) -> None:
        self._key: tuple[str | None, ...] | None = None
        self._model: Model | None = None

    def get(self, run: Run) -> tuple[Model, bool]:
        """Return a run's model, and whether it was loaded just now."""
        from mnemo.model import load

        key = run.model, run.model_files, run.dtype, run.device
        if self._model is not None and self._key == key:
            return self._model, False
        self._model = None  # before the next one is loaded, not after
        self._model, self._key = load(run.model, dtype=run.dtype, device=run.device), key
        return self._model, True


_CACHE = _Cache()
