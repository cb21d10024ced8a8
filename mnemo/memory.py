"""How much memory a run may take, and what happens when there is not enough.

One budget stands behind every batch size: `memory_budget` sets it for all that runs inside. What a run holds follows
from the model's shape (`mnemo.shape`). Where memory runs out all the same, `in_pieces` goes on with half as much at
once, and what was finished stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from mnemo.errors import MnemoError
from mnemo.libraries import first_line

MEMORY_GB, MOST_GB = 2.0, 1e9  # besides the model itself: the default, and what no machine has
_BUDGET: ContextVar[float] = ContextVar("memory_gb", default=MEMORY_GB)

Found = TypeVar("Found")


class NoMemoryError(MnemoError):
    """There is not memory enough for the least that can be run at once.

    Args:
        problem: what the library that asked for it said.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(
            f"out of memory ({problem}): give a smaller --memory-gb, shorter prompts or another device, or load the "
            "model as bfloat16; mnemo plan says what a run takes"
        )


@contextmanager
def memory_budget(gb: float | None) -> Generator[None]:
    """Let everything inside take at most this much memory at once, besides the model; None for what holds already.

    It decides how much is run at once, never the result. A single prompt is always run, whatever it takes.

    Raises:
        MnemoError: not a positive number, or more than any machine has.
        NoMemoryError: memory ran out inside, where there was nothing to be halved.
    """
    token = _BUDGET.set(checked_budget(gb))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise NoMemoryError(first_line(error)) from error
    finally:
        _BUDGET.reset(token)


def checked_budget(gb: float | None) -> float:
    """Return a budget in gigabytes, the one that holds where None is given.

    Raises:
        MnemoError: not a positive number, or more than any machine has.
    """
    if gb is None:
        return _BUDGET.get()
    if not 0 < gb <= MOST_GB:
        raise MnemoError(
            f"memory_gb={gb}: give the gigabytes that may be used (at most {MOST_GB:g}), such as {MEMORY_GB}"
        )
    return gb


def fit(bytes_each: float, *, memory_gb: float | None = None) -> int:
    """Return how many things of a size the budget holds, at least one."""
    return max(1, int(checked_budget(memory_gb) * 1e9 / max(1.0, bytes_each)))


def in_pieces(total: int, at_once: int, *, run: Callable[[slice], Found]) -> Iterator[tuple[slice, Found]]:
    """Run over `total` things in pieces, in half as large ones from where memory runs out.

    Args:
        total: how many there are.
        at_once: how many to take at once, to begin with.
        run: does one piece. It must not mind being begun again.

    Yields:
        each piece and what `run` returned for it.

    Raises:
        NoMemoryError: there is not memory enough for one; where pieces are made of pieces, the larger are then halved.
    """
    start = 0
    while start < total:
        piece = slice(start, min(start + at_once, total))
        done, found, problem = attempt(run, piece)
        if done:
            yield piece, found
            start = piece.stop
            continue
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        at_once = (piece.stop - piece.start) // 2
        if at_once == 0:
            raise NoMemoryError(problem)


def attempt(run: Callable[[slice], Any], piece: slice) -> tuple[bool, Any, str]:
    """Run one piece; return whether memory was enough, what `run` returned, and else what the library said.

    (The error is gone when this returns, with all that it held on to.)
    """
    try:
        return True, run(piece), ""
    except (MemoryError, RuntimeError, NoMemoryError) as error:
        if not out_of_memory(error):
            raise
        return False, None, error.problem if isinstance(error, NoMemoryError) else first_line(error)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out; on a CPU torch says so in words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | NoMemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
