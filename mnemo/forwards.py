"""How much work was it? Prompts that a model ran forward."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnemo.model import Model


@dataclass
class Forwards:
    """A count of prompts; one that was run twice counts twice, one that was run in part as well."""

    prompts: int = 0


@contextmanager
def counted_forwards(model: Model) -> Generator[Forwards]:
    """Count the prompts that the model runs forward inside."""
    count = Forwards()

    def add(module: Any, given: Any, embedded: Any) -> None:
        count.prompts += len(embedded)

    handle = model.bridge.embed.register_forward_hook(add)
    try:
        yield count
    finally:
        handle.remove()
