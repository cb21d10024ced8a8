"""How much memory a run may take, how much the parts of a run do take, and what happens when there is not enough.

One budget stands behind every batch size: `memory_budget` sets it for all that runs inside. What a run holds follows
from the model's shape (`Shape`), so it can be known before there is a model (`mnemo.plan`). Where memory runs out all
the same, `in_pieces` goes on with half as much at once, and what was finished stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mnemo.errors import MnemoError
from mnemo.libraries import first_line

if TYPE_CHECKING:
    from mnemo.model import Model

MEMORY_GB, MOST_GB = 2.0, 1e9  # besides the model itself: the default, and what no machine has
TRACE_NODES = 8  # of the quadrature, in most traces
GROWN = 8  # open ends that the search for one path grows together (`mnemo.paths`)
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


def in_pieces(total: int, at_once: int, run: Callable[[slice], Found]) -> Iterator[tuple[slice, Found]]:
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


# ---- what a run holds


@dataclass(frozen=True)
class Shape:
    """What the memory of a model's runs depends on.

    Attributes:
        layers, heads, kv_heads, d_model, d_head, d_mlp, vocab: as usual.
        itemsize: bytes of one number of its weights and activations.
    """

    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocab: int
    itemsize: int

    @classmethod
    def of(cls, model: Model) -> Shape:
        """Return the shape of a loaded model."""
        return cls.from_config(model.bridge.original_model.config, itemsize=model.dtype.itemsize)

    @classmethod
    def from_config(cls, config: Any, *, itemsize: int) -> Shape:
        """Return the shape that a configuration of transformers describes."""
        text = config.get_text_config()
        heads, width = text.num_attention_heads, text.hidden_size
        named = (getattr(text, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
        return cls(
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            d_model=width,
            d_head=getattr(text, "head_dim", None) or width // heads,
            d_mlp=next((size for size in named if size), 4 * width),
            vocab=text.vocab_size,
            itemsize=itemsize,
        )

    @property
    def writers(self) -> int:
        """Embedding, heads and MLPs."""
        return 1 + self.layers * (self.heads + 1)

    def forward_bytes(self, length: int, *, unembedded: int = 1) -> int:
        """Return the most that a run without gradients holds at once for one prompt.

        Args:
            length: tokens of the prompt.
            unembedded: positions whose logits are made.
        """
        # Measured (benchmarks/memory.py): what a block holds at its widest, and what the allocator keeps of the rest.
        block = 16 * length * self.d_model + 4.5 * self.heads * length * length + 9 * length * self.d_mlp
        return int(self.itemsize * block) + unembedded * self.vocab * (self.itemsize + 8)

    def reading_bytes(self, length: int) -> int:
        """Return the same for a run that makes logits at every position."""
        return self.forward_bytes(length, unembedded=length)

    def backward_bytes(self, length: int) -> int:
        """Return what a run with gradients holds for one prompt: everything that all blocks computed."""
        block = self.attention_bytes(length) + length * self.mlp_bytes
        return self.layers * block + self.forward_bytes(length)

    def trace_bytes(self, length: int, *, nodes: int = TRACE_NODES) -> float:
        """Return what the strongest path of one contrast takes: graphs, what is carried back, what writers write.

        Args:
            length: tokens of each prompt.
            nodes: of the quadrature.
        """
        half, node = self.trace_room(length) / 2, self.attention_bytes(length)
        graph = node * min(nodes, fit(node, memory_gb=half))
        kept = graph * min(self.layers, fit(graph, memory_gb=half))
        carried = max(graph, min(GROWN * graph, 1e9 * half))
        return kept + carried + self.written_bytes(length)

    def trace_room(self, length: int) -> float:
        """Return the gigabytes of the budget that a trace has beside what writers write.

        One half is for graphs of blocks, one for what is carried back through them, or through MLPs.
        """
        return max(checked_budget(None) - self.written_bytes(length) / 1e9, 1e-9)

    def written_bytes(self, length: int) -> int:
        """Return what every writer writes in the two runs of a contrast."""
        return 2 * self.itemsize * length * self.writers * self.d_model

    @property
    def mlp_bytes(self) -> int:
        """What a run with gradients holds of the MLP of one block at one position."""
        return self.itemsize * (4 * self.d_model + 4 * self.d_mlp)

    def attention_bytes(self, length: int) -> int:
        """Return what a run with gradients holds of the attention of one block, with its norm."""
        attention = 3 * self.heads * length * length + 6 * length * self.heads * self.d_head
        return self.itemsize * (4 * length * self.d_model + attention)

    def pair_bytes(self, length: int) -> int:
        """Return what two runs of one prompt hold with what every writer wrote in them, at every position."""
        return 3 * self.itemsize * length * self.writers * self.d_model + self.forward_bytes(length)
