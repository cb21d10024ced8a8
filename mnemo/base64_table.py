"""The base64 code of every printable character, and what a person may read in it."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from mnemo.datasets import acronym_phrases
from mnemo.errors import InputError
from mnemo.files import write_text
from mnemo.textfiles import csv_rows
from mnemo.tokens import shown

PRINTABLE = tuple(map(chr, range(0x20, 0x7F)))
"""The 95 printable ASCII characters, space first."""


@dataclass(frozen=True)
class Code:
    """One character and the base64 code of its byte: cue ``VA==``, answer ``T``."""

    cue: str
    answer: str

    @property
    def fact_id(self) -> str:
        """``byte-`` and the byte in hexadecimal, since many answers cannot stand in an identifier."""
        return f"byte-{ord(self.answer):02x}"

    @property
    def coincidence(self) -> str:
        """The code without its padding, then the answer: ``VAT``."""
        return self.cue.rstrip("=") + self.answer


def single_byte_codes() -> tuple[Code, ...]:
    """The codes of the 95 printable ASCII characters, in the order of their bytes (RFC 4648, section 4)."""
    return tuple(Code(base64.b64encode(answer.encode()).decode("ascii"), answer) for answer in PRINTABLE)


def read_readings(file: Path) -> dict[str, str]:
    """Character -> what a person may read in its code and itself, from a table ``answer,reading,...``.

    Raises:
        InputError: no such file, no UTF-8 CSV table, a column is missing, a character is not printable or occurs
            twice, a reading is empty.
    """
    readings: dict[str, str] = {}
    for row, record in csv_rows(file, ("answer", "reading")):
        answer, reading = record["answer"], record["reading"]
        if answer not in PRINTABLE:
            problem = f"{shown(answer)} is not one printable ASCII character"
            raise InputError(problem, file=file, row=row, column="answer")
        if answer in readings:
            problem = f"{answer!r} has a reading already; keep one of them"
            raise InputError(problem, file=file, row=row, column="answer")
        if not reading:
            problem = f"{answer!r} has no reading; write one or take the row out"
            raise InputError(problem, file=file, row=row, column="reading")
        readings[answer] = reading
    return readings


def write_study(folder: str | Path) -> None:
    """Write ``facts.csv`` and ``concepts.txt`` of the base64 study from the folder's ``readings.csv``.

    A fact whose character has no reading keeps both of its columns empty. The concepts are the readings,
    then the expansions of the bundled acronyms: concepts that a model might hold instead.

    Raises:
        InputError: a mistake in ``readings.csv``.
    """
    folder = Path(folder)
    readings = read_readings(folder / "readings.csv")

    facts = io.StringIO()
    # Quoted throughout, so that a space, a comma or a quote as an answer is seen and read back as it is.
    rows = csv.writer(facts, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows.writerow(["fact_id", "cue", "answer", "coincidence", "reading"])
    for code in single_byte_codes():
        reading = readings.get(code.answer, "")
        rows.writerow([code.fact_id, code.cue, code.answer, code.coincidence if reading else "", reading])
    write_text(folder / "facts.csv", facts.getvalue())

    concepts = dict.fromkeys([*readings.values(), *acronym_phrases()])  # in order, each once
    write_text(folder / "concepts.txt", "".join(f"{concept}\n" for concept in concepts))
