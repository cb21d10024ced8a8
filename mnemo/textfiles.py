"""Text files as people write them: UTF-8, and the row of every mistake as an editor counts it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mnemo.errors import InputError
from mnemo.tokens import shown

LINE_END = re.compile(r"\r\n|\r|\n")
_MAX_BYTES = 256 * 2**20


def row_after(text: str) -> int:
    """Row, as an editor counts, on which the character behind `text` stands."""
    return 1 + len(LINE_END.findall(text))


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False too where the name is one that the file system cannot have."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_place(path: str | Path, *, home: bool = False, file: Path | None = None, column: str | None = None) -> None:
    """Refuse a path that nothing here can have: too long, in the home of nobody, in a folder that is closed to us.

    One where nothing lies passes: who reads it says best what was expected there.

    Args:
        path: the path.
        home: whether a ``~`` in front means somebody's home.
        file: the file that holds it, if one does.
        column: where in that file.

    Raises:
        InputError: there can be no such path.
    """
    try:
        path = Path(path)
        (path.expanduser() if home else path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: expanduser knows no such user
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{shown(str(path))} is no path that can be used ({why})", file=file, column=column) from None


def read_text(path: Path, *, most: int = _MAX_BYTES) -> str:
    """A UTF-8 file, without the byte order mark that spreadsheets put in front.

    Raises:
        InputError: it is not there, cannot be read, is larger than `most` bytes, not UTF-8 or holds a NUL character.
    """
    try:
        if not path.is_file():
            what = "this is a folder, not a file" if path.is_dir() else "there is no such file"
            raise InputError(what, file=path)
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = b"" if size > most else file.read(most + 1)  # those in /proc are longer than they say
        if (size := max(size, len(raw))) > most:
            raise InputError(
                f"{size / 2**20:.0f} MB, and at most {most // 2**20} MB are read: split the file", file=path
            )
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=path) from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = " (the file looks like UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InputError(
            f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8{utf16}: save it as UTF-8",
            file=path,
            row=row_after(raw[: error.start].decode("latin-1")),
        ) from None
    text = text.removeprefix("\ufeff")
    if (at := text.find("\0")) >= 0:
        raise InputError(
            "a NUL character, which no text file holds: save the file as UTF-8 text",
            file=path,
            row=row_after(text[:at]),
        )
    return text


def csv_records(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV text, each with the row in the file on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        row = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"not CSV from here on ({error}): is a double quote left open? A value that holds a quote "
                "goes in quotes, with the quote inside doubled",
                file=path,
                row=row,
            ) from None
        if values is None:
            return
        if values:
            yield row, values


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file by column, each with the row in the file on which it begins.

    Args:
        path: the file; its first row names the columns.
        columns: those that it must have.

    Raises:
        InputError: what `read_text`, `csv_records` and `by_column` refuse; a column missing or named twice.
    """
    records = csv_records(read_text(path), path)
    row, header = next(records, (1, []))
    for column in columns:
        if header.count(column) != 1:
            problem = f"the header should have this column once, it has it {header.count(column)} times"
            raise InputError(problem, file=path, row=row, column=column)
    yield from by_column(records, header, path=path)


def by_column(
    records: Iterator[tuple[int, list[str]]], header: Sequence[str], *, path: Path
) -> Iterator[tuple[int, dict[str, str]]]:
    """What `csv_records` gives below a header, by column.

    Raises:
        InputError: a row with too many or too few values.
    """
    for row, values in records:
        if len(values) != len(header):
            raise InputError(
                f"{len(values)} values for {len(header)} columns: a value that holds a comma goes in double quotes",
                file=path,
                row=row,
            )
        yield row, dict(zip(header, values, strict=True))


def read_json(path: Path, *, most: int = _MAX_BYTES) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: what `read_text` refuses, and what is not JSON or no object.
    """
    text = read_text(path, most=most)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON ({error.msg}): mend or replace it", file=path, row=error.lineno) from error
    except RecursionError:
        raise InputError("is not JSON that is needed here: brackets nested too deep", file=path) from None
    except ValueError as error:  # an integer that Python finds too long
        raise InputError(f"is not JSON that is needed here ({error})", file=path) from None
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object, found {type(content).__name__}", file=path)
    return content
