"""What a run was made of, and the finished parts of one that was interrupted."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mnemo.errors import InputError
from mnemo.facts import FactSet, Task
from mnemo.files import digest, is_draft, replacing, write_text

if TYPE_CHECKING:
    from mnemo.model import Model

_PACKAGES = ("mnemo", "torch", "transformers", "transformer-lens", "numpy")
_PARTS, _MARK = ".mnemo-parts", "inputs.txt"  # the folder, and the file by which it is known as ours


def run_record(task: Task, model: Model, *, facts: FactSet, kind: str, **options: Any) -> dict[str, Any]:
    """Return versions, hashes, sources, options and the command: enough to repeat the run.

    `inputs` is one hash over everything that decides the result, `source` says where that was read from (None for what
    was made in Python and lies nowhere).

    Args:
        task: the task.
        model: the model.
        facts: the facts asked about.
        kind: what was run, such as ``extract``.
        options: the seed and everything else that decides the result.
    """
    inputs = {**text_hashes(task, facts), "model": model.fingerprint, **options}
    return {
        "kind": kind,
        "command": command(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "device": str(model.device),
        "dtype": model.dtype_name,
        "source": source_of(task, model, facts=facts),
        **inputs,
        "inputs": inputs_hash(inputs),
    }


def inputs_hash(inputs: Mapping[str, Any]) -> str:
    """Return one hash over plain values that decide a run, and over the version of mnemo."""
    return text_hash(json.dumps({**inputs, "versions": _version("mnemo")}, sort_keys=True))


def text_hashes(task: Task, facts: FactSet) -> dict[str, str]:
    """Return hashes of what a task says, of the facts and of the lexicon."""
    facts_text = json.dumps([fact.model_dump() for fact in facts], sort_keys=True)
    return {
        "task": text_hash(task.model_dump_json(exclude={"folder"})),
        "facts": text_hash(facts_text),
        "lexicon": text_hash("\n".join(task.load_lexicon())),
    }


def source_of(task: Task, model: Model, *, facts: FactSet) -> dict[str, str | None]:
    """Return where task, model and facts were read from; None for what was made in Python and lies nowhere."""
    file = task.folder / "task.toml"
    return {
        "task": str(file.absolute()) if file.is_file() else None,
        "facts": str(facts.file.absolute()) if facts.file else None,
        "model": model.source,
    }


def command() -> str:
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


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
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
        """Return the part `name`: as it was kept, or made now and kept.

        A part is kept with the hash of its file beside it; one without, or with another, is damaged and made again.
        """
        if self.folder is None:
            return make()
        file, seal = self.folder / f"{name}.parquet", self.folder / f"{name}.sha256"
        if not _sealed(file, seal):
            part = make()
            with replacing(file) as draft:
                part.to_parquet(draft)
            write_text(seal, digest(file))
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
        kept = [file for file in self.folder.iterdir() if file.name != _MARK]
        if self._marked_with() is None and not all(map(is_draft, kept)):
            raise InputError(
                f"holds files but no {_MARK}, so no run of mnemo made it: move it away, or write to another folder",
                file=self.folder,
            )
        try:
            for file in kept:  # the mark goes last: killed half-way, the folder is still known as ours
                file.unlink(missing_ok=True)
            (self.folder / _MARK).unlink(missing_ok=True)
            self.folder.rmdir()
        except OSError as error:
            raise InputError(f"cannot be removed ({error.strerror or error})", file=self.folder) from error


def count_parts(out: Path, stage: str) -> int:
    """How many parts of a stage (``trials``, ``paths``) a run that writes to `out` has finished so far."""
    return sum(1 for _ in (out / _PARTS).glob(f"{stage}-*.sha256"))


def _sealed(file: Path, seal: Path) -> bool:
    return file.is_file() and seal.is_file() and seal.read_text(encoding="utf-8") == digest(file)
