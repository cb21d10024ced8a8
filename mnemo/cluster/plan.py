"""What a sweep is to run: sweep.toml, and the runs that it means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, field_validator

from mnemo.checked import Name, Record
from mnemo.errors import InputError, MnemoError
from mnemo.facts import Task, why_not_on_hub
from mnemo.records import package_versions, text_hash, text_hashes
from mnemo.textfiles import is_folder
from mnemo.tokens import shown
from mnemo.tomlfiles import Inside, read_record

MOST_RUNS = 100_000
Dtype = Literal["float64", "float32", "float16", "bfloat16"]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**31)]


class Sweep(Record):
    """What sweep.toml says: every model with every task, seed and checkpoint.

    Args:
        name: what the sweep is about.
        tasks: study folders or task files, relative to the folder that holds sweep.toml.
        models: model directories relative to it, or hub names with their owner; empty for what each task names.
        checkpoints: folders in each model's directory, or revisions of hub models; empty for the model as it is.
        seeds: each run draws with one.
        quick: fewer interventions for each fact.
        edit: also teach concepts new answers.
        dtype: of the weights, such as ``bfloat16``; None to leave them as saved.
        device: where each worker computes; None for CUDA where there is one, else the CPU.
        report: also write the report of each run, whose figures take seconds.
        folder: where sweep.toml lies; not what it says, so never in the file.

    Raises:
        MnemoError: a key is unknown, missing or of the wrong type, named twice, or a path leaves the folder.
    """

    name: Name
    tasks: Annotated[tuple[Inside, ...], Field(min_length=1)]
    models: tuple[Inside, ...] = ()
    checkpoints: tuple[Inside, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    quick: StrictBool = False
    edit: StrictBool = False
    dtype: Dtype | None = None
    device: Name | None = None
    report: StrictBool = False
    folder: Path = Field(default=Path("."), exclude=True)

    @field_validator("tasks", "models", "checkpoints", "seeds")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            twice = next(value for i, value in enumerate(values) if value in values[:i])
            raise ValueError(f"{shown(str(twice))} stands here twice")
        return values

    @classmethod
    def read(cls, file: str | Path) -> Sweep:
        """Read a sweep file.

        Raises:
            InputError: with file, row and key: no such file, not TOML, or a key that `Sweep` refuses.
        """
        return read_record(cls, Path(file))


@dataclass(frozen=True)
class Run:
    """One extraction of a sweep.

    Attributes:
        name: of its folder; no other run of the sweep has it.
        task: the task's file.
        model: a directory, or a hub name with its revision (``org/name@step1000``).
        model_files: hash over name, size and time of every file in that directory.
        checkpoint: of the model, or None.
        seed, quick, edit, dtype, device, report: as in `Sweep`.
        facts: how many the task has.
        signature: hash over all that decides the result, as far as can be told without loading the model: texts,
            options, versions and `model_files`. A finished run is kept while this stays the same.
    """

    name: str
    task: str
    model: str
    model_files: str
    checkpoint: str | None
    seed: int
    quick: bool
    edit: bool
    dtype: str | None
    device: str | None
    report: bool
    facts: int
    signature: str

    def about(self) -> dict[str, Any]:
        """Return what the run is, as plain values."""
        return asdict(self)


def plan_runs(sweep: Sweep, *, root: Path | None = None) -> list[Run]:
    """Return the runs of a sweep, those of one model together, so that a worker need not load it twice.

    Reads tasks, facts and lexicons, and no model.

    Args:
        sweep: what to run.
        root: folder that the paths in it start from; None for the one that holds sweep.toml.

    Raises:
        MnemoError: a task that cannot be used, a model that is not there, one of them twice, too many runs.
    """
    root = sweep.folder if root is None else root
    count = len(sweep.tasks) * max(1, len(sweep.models)) * max(1, len(sweep.checkpoints)) * len(sweep.seeds)
    if count > MOST_RUNS:
        raise MnemoError(f"{count} runs asked for, and a sweep has at most {MOST_RUNS}: split it")
    tasks = {path: Task.read(root / path) for path in sweep.tasks}
    texts: dict[str, dict[str, str]] = {}
    facts: dict[str, int] = {}
    for path, task in tasks.items():
        known = task.load_facts()
        texts[path], facts[path] = text_hashes(task, known), len(known)
    models = {
        (path, given, point): _model(task, root, given, point)
        for given, point, (path, task) in product(sweep.models or (None,), sweep.checkpoints or (None,), tasks.items())
    }
    _check_differ(models, root)
    files = {model: _files(model) for model in set(models.values())}
    options: dict[str, Any] = {"quick": sweep.quick, "edit": sweep.edit, "dtype": sweep.dtype}
    versions = package_versions()  # takes milliseconds, and there may be many runs
    runs = []
    for (path, given, point), model in models.items():
        for seed in sweep.seeds:
            inputs = {**texts[path], **options, "seed": seed, "model": [model, files[model]], **versions}
            runs.append(
                Run(
                    name=_folder_name(path, given, point, seed),
                    task=str((root / path).absolute()),
                    model=model,
                    model_files=files[model],
                    checkpoint=point,
                    seed=seed,
                    device=sweep.device,
                    report=sweep.report,
                    facts=facts[path],
                    signature=text_hash(json.dumps(inputs, sort_keys=True)),
                    **options,
                )
            )
    return sorted(runs, key=lambda run: run.model)


def _check_differ(models: Mapping[tuple[str, str | None, str | None], str], root: Path) -> None:
    """Refuse what is named twice in other words (``study``, ``./study/task.toml``): it would be run twice."""
    seen: dict[tuple[Path, str], tuple[str, str | None, str | None]] = {}
    for named, model in models.items():
        task = root / named[0]
        first = seen.setdefault((task / "task.toml" if is_folder(task) else task, model), named)
        if first != named:
            one, other = next((a, b) for a, b in zip(first, named, strict=True) if a != b)
            raise MnemoError(f"{shown(str(other))} is the same as {shown(str(one))}: name each thing once")


def _model(task: Task, root: Path, given: str | None, checkpoint: str | None) -> str:
    """The model's directory, or its name on the hub, with its checkpoint."""
    source = _source(task, root, given)
    if isinstance(source, Path):
        inner = source / "model"
        source = inner if is_folder(inner) and not (source / "config.json").exists() else source
        found = source / checkpoint if checkpoint else source
        if not is_folder(found):
            raise InputError(f"the model has no such checkpoint; its folder is {source}", file=found)
        return str(found.absolute())
    if source == "organism" and checkpoint:
        raise MnemoError(f"the shipped organism has no checkpoint {shown(checkpoint)}: take `checkpoints` out")
    return f"{source}@{checkpoint}" if checkpoint else source


def _source(task: Task, root: Path, given: str | None) -> Path | str:
    """The directory that the sweep, or else the task, names as the model, or a name on the hub."""
    if given is None:
        if (source := task.model_path) is None:
            raise task.fault("model", "neither the task nor the sweep names a model: add models = [...] to the sweep")
        return source
    if is_folder(root / given):
        return root / given
    if given != "organism" and (why := why_not_on_hub(given, root)):
        raise MnemoError(f"model {why}")
    return given


def _files(model: str) -> str:
    """Name, size and time of the files of a model's directory, hashed; a hub model is named by its revision."""
    folder = Path(model)
    files = sorted(file for file in folder.iterdir() if file.is_file()) if is_folder(folder) else []
    return text_hash(json.dumps([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]))


def _folder_name(*what: Any) -> str:
    """A name that a person can read and no other run of the sweep has."""
    task, model, checkpoint, seed = what
    readable = "-".join(str(part) for part in (task, model, checkpoint) if part is not None)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", readable).strip("-.")[-60:]
    return f"{readable}-seed{seed}-{text_hash(json.dumps(what))[:8]}"
