"""How much work was it? Prompts that a model ran forward."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnemo.partial_runs import is_skipped

if TYPE_CHECKING:
    from mnemo.model import Model


@dataclass
class Forwards:
    """Prompts and parts of them: one that was run twice counts twice, one that ran through half of the blocks as half.

    Attributes:
        blocks: how many blocks of the model one prompt passes.
        passed: blocks that prompts ran through, each prompt for itself.
    """

    blocks: int
    passed: int = 0

    @property
    def prompts(self) -> float:
        """Prompts run forward."""
        return self.passed / self.blocks


@contextmanager
def counted_forwards(model: Model) -> Generator[Forwards]:
    """Count the prompts that the model runs forward inside."""
    count = Forwards(model.n_layers)

    def add(block: Any, given: tuple[Any, ...]) -> None:
        if not is_skipped(block):
            count.passed += len(given[0])

    handles = [block.register_forward_pre_hook(add) for block in model.bridge.blocks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
