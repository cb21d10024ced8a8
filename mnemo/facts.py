"""Facts and the task that asks for them.

A study folder holds `task.toml`, `facts.csv` and, where there is one, a lexicon of concepts: the classes
here read and write it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PrivateAttr, StrictInt, field_validator, model_validator

from mnemo.checked import Name, Record, RefusedError, Text
from mnemo.errors import InputError, MnemoError, did_you_mean
from mnemo.files import write_text
from mnemo.textfiles import LINE_END, by_column, csv_records, is_folder, read_text
from mnemo.tokens import shown
from mnemo.tomlfiles import Inside, read_record

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("fact_id", "cue", "answer")
MAX_FACTS, MAX_COLUMNS, MAX_VALUES = 1_000_000, 1000, 10_000_000
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?")


class Fact(Record):
    """A cue and its answer, such as `VA==` and `T`.

    Args:
        fact_id: what the fact is called in every table.
        cue: what the prompt asks for; spaces around it count.
        answer: what should follow the prompt; may be a space, a quote or a comma.
        extra: the other columns of the facts file, passed through unread.

    Raises:
        MnemoError: the id or the cue is blank, the answer is empty, or a text cannot be kept in a file.
    """

    fact_id: Name
    cue: Name
    answer: Text
    extra: dict[Text, Text] = Field(default_factory=dict)

    @field_validator("answer")
    @classmethod
    def _has_an_answer(cls, value: str) -> str:
        if not value:
            raise ValueError("is empty")
        return value

    @field_validator("extra")
    @classmethod
    def _extra_is_extra(cls, value: dict[str, str]) -> dict[str, str]:
        if taken := [name for name in value if name in _COLUMNS]:
            raise ValueError(f"{taken[0]!r} is a field of the fact itself, give it there")
        return value


@dataclass(frozen=True)
class _Origin:
    """The file that facts were read from: its columns in order and each fact's row."""

    file: Path
    columns: tuple[str, ...]
    rows: dict[str, int]


class FactSet(Record):
    """Facts in order, each under an id of its own.

    Raises:
        MnemoError: two facts share an id.
    """

    facts: tuple[Fact, ...]
    _origin: _Origin | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _ids_differ(self) -> FactSet:
        seen: dict[str, int] = {}
        for i, fact in enumerate(self.facts):
            if (first := seen.setdefault(fact.fact_id, i)) != i:
                raise ValueError(
                    f"facts {first} and {i} (counted from 0) share the fact_id {fact.fact_id!r}: "
                    "give every fact an id of its own"
                )
        return self

    @classmethod
    def read(cls, path: str | Path) -> FactSet:
        """Read a facts file: UTF-8 CSV with the columns fact_id, cue and answer, and any others.

        Every value is kept as the text it is: 'NA', '1', a space. Blank lines are skipped.

        Raises:
            InputError: with file, row and column: no such file, not UTF-8, not CSV, larger than 256 MB, more than a
                million facts or a thousand columns; a column missing or named twice; a row with too many or too few
                values; an id used twice; an empty id, cue or answer; no facts at all.
        """
        path = Path(path)
        records = csv_records(read_text(path), path)
        row, header = next(records, (1, []))
        _check_header(header, path, row)

        most = min(MAX_FACTS, MAX_VALUES // len(header))
        facts: list[Fact] = []
        rows: dict[str, int] = {}
        for row, named in by_column(records, header, path=path):
            fact_id, cue, answer = (named.pop(column) for column in _COLUMNS)
            if len(facts) == most:
                raise InputError(f"more than {most} facts of {len(header)} columns: split the file", file=path, row=row)
            if fact_id in rows:
                raise InputError(
                    f"{shown(fact_id)} is the id of row {rows[fact_id]} already: give every fact an id of its own",
                    file=path,
                    row=row,
                    column="fact_id",
                )
            try:
                facts.append(Fact(fact_id=fact_id, cue=cue, answer=answer, extra=named))
            except RefusedError as error:
                raise InputError(error.problem, file=path, row=row, column=error.column) from None
            rows[fact_id] = row
        if not facts:
            raise InputError("0 facts: below the header goes one row per fact", file=path)
        found = cls(facts=tuple(facts))
        found._origin = _Origin(path, tuple(header), rows)
        return found

    def write(self, path: str | Path) -> None:
        """Write as CSV: the columns in the order in which they were read; what a fact lacks is left empty.

        Raises:
            InputError: the file cannot be written, or `path` is a folder.
        """
        path = Path(path)
        if path.is_dir():
            raise InputError("this is a folder: give the name of the file to write", file=path)
        table = [[self._value(fact, column) for column in self.columns] for fact in self.facts]
        # Until Python 3.12, csv leaves a lone carriage return bare, and a reader takes it for a line's end.
        bare = any("\r" in value for line in [self.columns, *table] for value in line)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
        writer.writerow(self.columns)
        writer.writerows(table)
        write_text(path, text.getvalue())

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: as the file had them, else fact_id, cue, answer and the extra ones."""
        known = self._origin.columns if self._origin else _COLUMNS
        return tuple(dict.fromkeys([*known, *(name for fact in self.facts for name in fact.extra)]))

    @staticmethod
    def _value(fact: Fact, column: str) -> str:
        return str(getattr(fact, column)) if column in _COLUMNS else fact.extra.get(column, "")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {fact.fact_id: i for i, fact in enumerate(self.facts)}

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.facts)

    def __getitem__(self, key: int | str) -> Fact:
        """The fact at a position or under an id; MnemoError names close ids where there is none."""
        if not isinstance(key, str):
            return self.facts[key]
        if key not in self._places:
            raise MnemoError(f"no fact has the fact_id {key!r}{did_you_mean(key, self._places)}")
        return self.facts[self._places[key]]

    def __eq__(self, other: object) -> bool:
        """Equal facts in equal order, whichever file they come from."""
        return isinstance(other, FactSet) and self.facts == other.facts

    def __repr__(self) -> str:
        return f"FactSet({len(self)} facts{f' from {self._origin.file}' if self._origin else ''})"

    __str__ = __repr__

    def find(self, cue: str) -> Fact:
        """The one fact with this cue; MnemoError where there is none (with close cues) or several."""
        found = [fact for fact in self.facts if fact.cue == cue]
        if not found:
            raise MnemoError(f"no fact has the cue {shown(cue)}{did_you_mean(cue, (fact.cue for fact in self.facts))}")
        if len(found) > 1:
            ids = [fact.fact_id for fact in found]
            raise MnemoError(f"{len(ids)} facts have the cue {shown(cue)}: choose by fact_id, one of {ids}")
        return found[0]

    def subset(self, ids: Iterable[str]) -> FactSet:
        """The facts with these ids, in this order; MnemoError if there is no such id."""
        chosen = FactSet(facts=tuple(self[fact_id] for fact_id in ids))
        chosen._origin = self._origin
        return chosen

    def frame(self) -> pandas.DataFrame:
        """One row per fact, one column of text per field and extra column."""
        import pandas

        return pandas.DataFrame(
            {column: [self._value(fact, column) for fact in self.facts] for column in self.columns},
            dtype="str",
        )

    def fault(self, fact_id: str, column: str, *, problem: str) -> InputError:
        """The error to raise about a value of one fact: with file and row if the fact was read from one."""
        if self._origin and fact_id in self._origin.rows:
            return InputError(problem, file=self._origin.file, row=self._origin.rows[fact_id], column=column)
        return InputError(f"fact {fact_id!r}: {problem}", column=column)

    @property
    def file(self) -> Path | None:
        """The file these facts were read from."""
        return self._origin.file if self._origin else None


def _check_header(header: list[str], path: Path, row: int) -> None:
    if not header:
        raise InputError(f"the file is empty; its first row should be {','.join(_COLUMNS)}", file=path)
    if len(header) > MAX_COLUMNS:
        raise InputError(f"{len(header)} columns, and at most {MAX_COLUMNS} are read", file=path, row=row)
    for column in _COLUMNS:
        if column not in header:
            close = did_you_mean(column, header)
            raise InputError(
                f"no such column; the header has {shown(', '.join(map(repr, header)), limit=200)}{close}",
                file=path,
                row=row,
                column=column,
            )
    if twice := [column for i, column in enumerate(header) if column in header[:i]]:
        raise InputError("two columns have this name", file=path, row=row, column=twice[0])


# ---------------------------------------------------------------------------------------------- tasks


def _check_slot(template: str, slot: str) -> str:
    """A template holds its own placeholder once and no other one; further braces are text."""
    if (count := template.count(slot)) != 1:
        raise ValueError(f"{shown(template)} should hold {slot} once, it holds it {count} times")
    for other in {"{cue}", "{concept}"} - {slot}:
        if other in template:
            raise ValueError(f"{shown(template)} holds {other}, but only {slot} is filled in here")
    return template


class Task(Record):
    """Prompt templates around facts: what `task.toml` in a study folder says.

    Args:
        name: what the study is about.
        recall: template with one {cue}; the answer follows it.
        verbalise: template with one {cue}; the concept that the cue evokes follows it.
        concept_recall: template with one {concept}; the answer follows it.
        max_concept_tokens: longest concept to look for, 1 to 64 tokens.
        probes: other questions, templates with one {}, asked of a cue and of a concept alike.
        facts: facts file, relative to the study folder.
        concepts: lexicon with one phrase per line, relative to the study folder.
        model: model directory relative to the study folder, hub name with its owner (``org/name``), or ``organism``.
        folder: the study folder; where the task lies, not what it says, so never in the file.

    Raises:
        MnemoError: a key is unknown, missing or of the wrong type, a template lacks its placeholder, or a
            path leaves the study folder.
    """

    name: Name
    recall: Text
    verbalise: Text | None = None
    concept_recall: Text | None = None
    max_concept_tokens: StrictInt = Field(default=4, ge=1, le=64)
    probes: tuple[Text, ...] = ()
    facts: Inside = "facts.csv"
    concepts: Inside | None = None
    model: Inside | None = None
    folder: Path = Field(default=Path("."), exclude=True)

    @field_validator("recall", "verbalise")
    @classmethod
    def _asks_of_a_cue(cls, value: str | None) -> str | None:
        return value if value is None else _check_slot(value, "{cue}")

    @field_validator("concept_recall")
    @classmethod
    def _asks_of_a_concept(cls, value: str | None) -> str | None:
        return value if value is None else _check_slot(value, "{concept}")

    @field_validator("probes")
    @classmethod
    def _ask_of_either(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_slot(probe, "{}") for probe in value)

    @classmethod
    def read(cls, path: str | Path) -> Task:
        """Read a study folder's task.toml, given the folder or the file.

        Raises:
            InputError: with file, row and key: no such file, not TOML, or a key that `Task` refuses.
        """
        path = Path(path)
        file = path / "task.toml" if is_folder(path) else path
        return read_record(cls, file)

    def write(self, folder: str | Path) -> None:
        """Write task.toml into `folder`, which is made if need be.

        Raises:
            InputError: the file cannot be written.
        """
        lines = [f"{key} = {_toml(value)}\n" for key, value in self.model_dump(exclude_none=True).items()]
        write_text(Path(folder) / "task.toml", "".join(lines))

    @property
    def facts_path(self) -> Path:
        """The facts file."""
        return self.folder / self.facts

    @property
    def model_path(self) -> Path | str | None:
        """The model's directory if the study folder has it, else its hub name; None if the task names none.

        Raises:
            InputError: `model` is neither.
        """
        if self.model is None or is_folder(self.folder / self.model):
            return self.model and self.folder / self.model
        if self.model != "organism" and (why := why_not_on_hub(self.model, self.folder)):
            raise self.fault("model", f"{why} (what is on the hub all the same is given by hand: --model)")
        return self.model

    def load_facts(self, path: str | Path | None = None) -> FactSet:
        """Read the facts of the task, or those in the file `path` instead; raises what FactSet.read does."""
        return FactSet.read(self.facts_path if path is None else path)

    def load_lexicon(self) -> tuple[str, ...]:
        """The phrases of the lexicon in order; empty if the task names none.

        Blank lines and space around a phrase go; of a phrase listed twice the first stays.

        Raises:
            InputError: the file named cannot be read or holds no phrase.
        """
        if self.concepts is None:
            return ()
        file = self.folder / self.concepts
        lines = (line.strip() for line in LINE_END.split(read_text(file)))
        phrases = tuple(dict.fromkeys(line for line in lines if line))
        if not phrases:
            raise InputError("no phrases: put one on each line, or take `concepts` out of task.toml", file=file)
        return phrases

    def model_source(self, given: str | Path | None) -> str | Path:
        """Return where the model of a run lies: the one given, else the task's own.

        Raises:
            InputError: there is neither, or the task's own is neither a folder nor on the hub.
        """
        source = given if given is not None else self.model_path
        if source is None:
            raise self.fault("model", 'the task names no model: add model = "..." or give one (--model)')
        return source

    def fault(self, key: str, problem: str) -> InputError:
        """The error to raise about one key of the task: with the file if there is one."""
        file = self.folder / "task.toml"
        return InputError(problem, file=file if file.is_file() else None, column=key)

    @contextmanager
    def blaming(self, key: str) -> Generator[None]:
        """Report what goes wrong in the block as the `fault` of one key; an error that names its place stays."""
        try:
            yield
        except InputError:
            raise
        except MnemoError as error:
            raise self.fault(key, str(error)) from error


def is_hub_name(text: str, *, bare: bool = False) -> bool:
    """Whether a text can name a model on the hub: ``org/name``, or with a revision ``org/name@step1000``.

    Args:
        text: the text.
        bare: also take ``gpt2``, a name without an owner. Not for what a file says: there it may as well be a folder
            that is missing, and asking the hub for it would be nobody's wish.
    """
    found = _HUB_NAME.fullmatch(text)
    return found is not None and (bare or found[1] is not None)


def why_not_on_hub(text: str, folder: Path) -> str | None:
    """Say why a text in a file in `folder` names no model on the hub, or return None if it does.

    Where its owner is a folder beside the file, ``models/pythia`` is the path of what is missing there.
    """
    if not is_hub_name(text):
        return f"{shown(text)} is neither a directory in {folder} nor a hub name such as 'org/name'"
    owner = text.partition("/")[0]
    if is_folder(folder / owner):
        return f"{shown(text)} is no directory in {folder}, though {shown(owner)} is one: check the path"
    return None


def _toml(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # A TOML basic string is a JSON string, except that it also escapes DEL and knows no surrogate pairs.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
