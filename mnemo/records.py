"""What a run was made of, and the finished parts of one that was interrupted."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mnemo.errors import InputError
from mnemo.facts import FactSet, Task
from mnemo.files import replacing, write_text

if TYPE_CHECKING:
    from mnemo.model import Model

_PACKAGES = ("mnemo", "torch", "transformers", "transformer-lens", "numpy")
_PARTS, _MARK = ".mnemo-parts", "inputs.txt"  # the folder, and the file by which it is known as ours


def run_record(task: Task, model: Model, facts: FactSet, **options: Any) -> dict[str, Any]:
    """Return versions, hashes, options and the command: enough to repeat the run.

    `inputs` is one hash over everything that decides the result.
    """
    task_text = task.model_dump_json(exclude={"folder"})
    facts_text = json.dumps([fact.model_dump() for fact in facts], sort_keys=True)
    inputs = {
        "task": _hash(task_text),
        "facts": _hash(facts_text),
        "lexicon": _hash("\n".join(task.load_lexicon())),
        "model": model.fingerprint,
        **options,
    }
    return {
        "command": _command(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        **inputs,
        "inputs": _hash(json.dumps({**inputs, "versions": _version("mnemo")}, sort_keys=True)),
    }


def _command() -> str:
    """The command as it can be typed again; in a notebook or a script it is theirs."""
    program = Path(sys.argv[0])
    ours = program.name == "mnemo" or program.parts[-2:] == ("mnemo", "__main__.py")
    return shlex.join(["mnemo" if ours else str(program), *sys.argv[1:]])


def package_versions() -> dict[str, str | None]:
    """Return the versions of what results hang on; None for a package that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Parts:
    """Finished parts of a run, kept in a folder while the run goes on.

    Attributes:
        folder: where they lie; None keeps nothing.
        inputs: hash of what the run is made of; parts of another run are thrown away.
    """

    folder: Path | None
    inputs: str

    @classmethod
    def begin(cls, out: Path | None, inputs: str, *, resume: bool) -> Parts:
        """Open the parts of a run that writes to `out`: those left by an interrupted run if `resume`, else none.

        Raises:
            InputError: a folder of that name holds files that no run put there, or it cannot be written.
        """
        if out is None:
            return cls(None, inputs)
        parts = cls(out / _PARTS, inputs)
        if not (resume and parts._marked_with() == inputs):
            parts._clear()
        write_text(out / _PARTS / _MARK, inputs)
        return parts

    def get(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return the part `name`: as it was kept, or made now and kept."""
        if self.folder is None:
            return make()
        file = self.folder / f"{name}.parquet"
        if not file.is_file():
            part = make()
            with replacing(file) as draft:
                part.to_parquet(draft)
        return pd.read_parquet(file)

    def end(self) -> None:
        """Throw the parts away: the run is whole and written."""
        self._clear()

    def _marked_with(self) -> str | None:
        """The inputs of the run that made the folder; None if no run did."""
        mark = self.folder / _MARK if self.folder is not None else None
        return mark.read_text(encoding="utf-8") if mark is not None and mark.is_file() else None

    def _clear(self) -> None:
        """Remove the folder if a run made it; what others put under that name is not ours to remove."""
        if self.folder is None or not self.folder.is_dir():
            return
        if self._marked_with() is not None:
            shutil.rmtree(self.folder)
        elif any(self.folder.iterdir()):
            raise InputError(
                f"holds files but no {_MARK}, so no run of mnemo made it: move it away, or write to another folder",
                file=self.folder,
            )
