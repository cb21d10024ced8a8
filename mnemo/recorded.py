"""What a run wrote about itself, read back: nothing in its files is believed unread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StringConstraints, ValidationError

from mnemo.errors import InputError
from mnemo.facts import MAX_FACTS, FactSet, Task, is_hub_name
from mnemo.model import Model
from mnemo.records import text_hashes
from mnemo.textfiles import check_place, read_json
from mnemo.tokens import shown

_INPUTS = ("task", "facts", "lexicon", "model")
_INDEX = re.compile(r"__index_level_\d+__")  # columns that pandas puts into a file for the index of a table
_PLAIN = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null),
)

Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Source(BaseModel):
    """Where a run read its inputs from; None for what lay nowhere."""

    model_config = ConfigDict(extra="ignore")

    task: str | None = None
    facts: str | None = None
    model: str | None = None


class Recorded(BaseModel):
    """What of run.json is needed to repeat the run, or to go on from it."""

    model_config = ConfigDict(extra="ignore")

    kind: str
    source: Source
    seed: StrictInt = Field(ge=0, lt=2**31)
    quick: StrictBool
    edit: StrictBool
    task: Hash
    facts: Hash
    lexicon: Hash
    model: Hash
    inputs: Hash
    versions: dict[str, str | None]
    dtype: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: Path) -> Recorded:
        """Read run.json.

        Raises:
            InputError: it is not the record of a run, with the place of the first mistake.
        """
        try:
            return cls.model_validate(read_json(file))
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, fault["loc"])) or None
            raise InputError(f"not the record of a run ({fault['msg']})", file=file, column=place) from None

    def changed(self, task: Task, model: Model, *, facts: FactSet) -> str | None:
        """Say which of these inputs are not those of the run, by their hashes; None where all are."""
        now = {**text_hashes(task, facts), "model": model.fingerprint}
        changed = [name for name in _INPUTS if now[name] != getattr(self, name)]
        parts = (f"{name} (hash {getattr(self, name)[:8]} then, {now[name][:8]} now)" for name in changed)
        return f"changed since the run: {', '.join(parts)}" if changed else None


def inputs_of(
    source: Source, given: Mapping[str, str | Path | None], *, file: Path
) -> tuple[Task, str | Path | None, FactSet]:
    """Return the task, the model and the facts of a run: those given, else those that it recorded.

    Facts or a model that lie no more where the run found them are those of the task, if that was given: a study folder
    may have been moved. (Hashes tell whether they are the same: `Recorded.changed`.)

    Args:
        source: what the run recorded.
        given: `task`, `model` and `facts`, each None for the recorded one.
        file: where that is recorded, for what errors say.

    Raises:
        InputError: no task is known, a path that nothing can have, or a hub model that nobody named here.
    """
    paths = {name: given[name] if given[name] is not None else getattr(source, name) for name in given}
    if paths["task"] is None:
        raise InputError("does not say where its task lies: give --task (in Python task=...)", file=file)
    for name, path in paths.items():
        if path is not None:
            where = (file, f"source.{name}") if given[name] is None else (None, None)
            check_place(path, home=name == "model", file=where[0], column=where[1])
            if given["task"] is not None and given[name] is None and _is_gone(path):
                paths[name] = None
    task = Task.read(paths["task"])
    model = paths["model"] if paths["model"] is not None else task.model_path
    if given["model"] is None and isinstance(model, str) and is_hub_name(model, bare=True) and model != "organism":
        how = f"give --model {model} to fetch it (in Python model={model!r})"
        raise InputError(f"used {shown(model)} from the hub: {how}", file=file)
    return task, model, task.load_facts(paths["facts"])


def _is_gone(place: str | Path) -> bool:
    return Path(place).is_absolute() and not Path(place).exists()


def read_verdicts(file: Path, *, most: int = MAX_FACTS) -> pd.DataFrame:
    """Read verdicts.parquet; each fact stands in it once, and every column is of texts, numbers or truth values.

    What pandas noted there about the table is not needed, and not read.

    Args:
        file: the file.
        most: facts that there can be; no more rows are read.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if not file.is_file():
        raise InputError("there is no such file, so there is nothing to compare with or to go on from", file=file)
    try:
        with pq.ParquetFile(file) as parquet:
            rows = parquet.metadata.num_rows
            content = parquet.read() if rows <= most else None
        table = None if content is None else _plain(content).to_pandas(ignore_metadata=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"cannot be read as Parquet ({' '.join(str(error).split())[:80]})", file=file) from None
    if table is None:
        raise InputError(f"{rows} rows for at most {most} facts: run extract again", file=file)
    if (twice := table.columns[table.columns.duplicated()]).size:
        raise InputError("there are two columns of this name", file=file, column=str(twice[0]))
    table = table.drop(columns=[column for column in table if _INDEX.fullmatch(str(column))])
    check_key(table, ["fact_id"], file=file)
    return table


def _plain(content: pa.Table) -> pa.Table:
    """Spell out columns that are encoded by a dictionary, and refuse what is neither text, number nor truth value."""
    kinds = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in content.schema]
    for name, kind in zip(content.column_names, kinds, strict=True):
        if not any(is_one(kind) for is_one in _PLAIN):
            raise ValueError(f"column {name!r} holds {kind}")
    return content.cast(pa.schema(zip(content.column_names, kinds, strict=True)))


def check_key(table: pd.DataFrame, key: list[str], *, file: Path) -> None:
    """Refuse a table whose rows cannot be told apart by some columns.

    Raises:
        InputError: a column is missing or incomplete, or a row stands there twice.
    """
    for column in key:
        if column not in table or not table[column].map(lambda value: isinstance(value, str | int)).all():
            problem = "there is no such column, or not in every row: rows cannot be told apart"
            raise InputError(problem, file=file, column=column)
    twice = table.loc[table.duplicated(key), key]
    if len(twice):
        raise InputError(f"{shown(row_name(tuple(twice.iloc[0])))} stands here twice: mend the file", file=file)


def row_name(row: object) -> str:
    """Write the key of a row as one text."""
    return " ".join(str(part) for part in row) if isinstance(row, tuple) else str(row)
