"""The bundled base64 study and the acronym lexicon."""

from __future__ import annotations

import base64
import csv
import re
import shutil
import tomllib
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from mnemo import datasets
from mnemo.base64_table import read_readings, single_byte_codes, write_study
from mnemo.datasets import data_path
from mnemo.errors import InputError, MnemoError

STUDY = data_path("base64")
ACRONYMS = data_path("acronyms")


def records(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def initials(phrase: str) -> str:
    return "".join(word[0] for word in phrase.split())


# --- the table


def test_the_facts_are_the_base64_of_every_printable_character() -> None:
    facts = records(STUDY / "facts.csv")
    assert [fact["answer"] for fact in facts] == [chr(byte) for byte in range(0x20, 0x7F)]
    for fact in facts:
        assert base64.b64encode(fact["answer"].encode()) == fact["cue"].encode()
        assert base64.b64decode(fact["cue"], validate=True) == fact["answer"].encode()
    assert len({fact["fact_id"] for fact in facts}) == 95


def test_a_code_spells_six_bits_then_two() -> None:
    """RFC 4648 by hand, so that the library is not its own witness."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for code in single_byte_codes():
        byte = ord(code.answer)
        assert code.cue == alphabet[byte >> 2] + alphabet[(byte & 0b11) << 4] + "=="


def test_vat() -> None:
    fact = next(fact for fact in records(STUDY / "facts.csv") if fact["cue"] == "VA==")
    assert (fact["answer"], fact["coincidence"], fact["reading"]) == ("T", "VAT", "value added tax")


# --- coincidences and readings


def test_a_coincidence_is_the_code_then_the_answer_and_never_without_a_reading() -> None:
    facts = records(STUDY / "facts.csv")
    for fact in facts:
        assert bool(fact["coincidence"]) == bool(fact["reading"])
        if fact["coincidence"]:
            assert fact["coincidence"] == fact["cue"][:2] + fact["answer"]
    noticed = {fact["coincidence"] for fact in facts}
    assert noticed >= {"VAT", "WAX", "RAD", "TwO", "TQM", "cAp", "awk", "eAx", "dAt", "MQ1"}
    noticed.discard("")
    card = (STUDY / "README.md").read_text(encoding="utf-8")
    assert f"{len(noticed)} of the 95 facts have a reading" in card


def test_a_reading_of_three_words_over_three_letters_spells_them() -> None:
    spelt = [
        fact
        for fact in records(STUDY / "facts.csv")
        if fact["coincidence"].isalpha() and len(fact["reading"].split()) == 3
    ]
    assert len(spelt) >= 15
    for fact in spelt:
        plain = unicodedata.normalize("NFKD", fact["reading"]).encode("ascii", "ignore").decode()  # à is an a
        assert initials(plain) == fact["coincidence"].lower()


def test_a_coincidence_that_the_lexicon_holds_is_read_as_there() -> None:
    lexicon: dict[str, set[str]] = {}
    for row in records(ACRONYMS / "acronyms.csv"):
        lexicon.setdefault(row["acronym"], set()).add(row["expansion"])
    for fact in records(STUDY / "facts.csv"):
        expansions = lexicon.get(fact["coincidence"].upper())
        if expansions and fact["reading"] != fact["coincidence"].lower():  # cAp is also the word
            assert fact["reading"] in expansions


# --- the study folder


def test_writing_the_study_again_gives_the_same_bytes(tmp_path: Path) -> None:
    shutil.copy(STUDY / "readings.csv", tmp_path)
    write_study(tmp_path)
    for name in ("facts.csv", "concepts.txt"):
        assert (tmp_path / name).read_bytes() == (STUDY / name).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"readings.csv", "facts.csv", "concepts.txt"}


def test_the_concepts_hold_every_reading_and_every_acronym_once() -> None:
    concepts = (STUDY / "concepts.txt").read_text(encoding="utf-8").splitlines()
    assert len(concepts) == len(set(concepts))
    readings = {fact["reading"] for fact in records(STUDY / "facts.csv")} - {""}
    expansions = {row["expansion"] for row in records(ACRONYMS / "acronyms.csv")}
    assert set(concepts) == readings | expansions


def test_the_task_has_its_templates_and_no_model() -> None:
    task = tomllib.loads((STUDY / "task.toml").read_text(encoding="utf-8"))
    assert "model" not in task
    assert task["recall"].count("{cue}") == task["verbalise"].count("{cue}") == 1
    assert task["concept_recall"].count("{concept}") == 1
    assert all(probe.count("{}") == 1 for probe in task["probes"])
    assert (STUDY / task["facts"]).is_file() and (STUDY / task["concepts"]).is_file()
    # Answers follow as words of their own, so a prompt may not end in a space or inside quotes.
    assert task["recall"][-1].isalpha() and task["concept_recall"][-1].isalpha()


@pytest.mark.parametrize(
    ("rows", "row", "column"),
    [
        ("answer,meaning\nT,value added tax\n", 1, "reading"),
        ("answer,reading\nTT,value added tax\n", 2, "answer"),
        ("answer,reading\nT,value added tax\nT,tee\n", 3, "answer"),
        ("answer,reading\nT,\n", 2, "reading"),
        ("\ufeffanswer,reading\nT,\n", 2, "reading"),  # as spreadsheets save it
        ('answer,reading\nT,"tea\nor tee"\nT,tee\n', 4, "answer"),
    ],
)
def test_mistakes_in_readings_are_named_with_their_place(tmp_path: Path, rows: str, row: int, column: str) -> None:
    file = tmp_path / "readings.csv"
    file.write_text(rows, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(f"{file}, row {row}, column {column!r}: ")):
        read_readings(file)


@pytest.mark.parametrize(("content", "problem"), [(None, "no such file"), (b"answer,reading\n\xe0,x", "UTF-8")])
def test_readings_that_cannot_be_read(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "readings.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        write_study(tmp_path)
    assert not (tmp_path / "facts.csv").exists()


# --- the lexicon


def test_each_acronym_is_the_initials_of_its_three_words() -> None:
    rows = records(ACRONYMS / "acronyms.csv")
    assert len(rows) >= 150
    for row in rows:
        assert re.fullmatch(r"[a-z]+ [a-z]+ [a-z]+", row["expansion"]), row
        assert row["acronym"] == initials(row["expansion"]).upper()
    expansions = [row["expansion"] for row in rows]
    assert len(set(expansions)) == len(expansions)
    assert "value added tax" in expansions
    assert [row["acronym"] for row in rows] == sorted(row["acronym"] for row in rows)
    assert (ACRONYMS / "concepts.txt").read_text(encoding="utf-8").splitlines() == expansions


def test_the_last_letters_of_the_acronyms_are_spread() -> None:
    """The last letter is an organism's answer: a few answers for all concepts would make chance high."""
    counts = Counter(row["acronym"][-1] for row in records(ACRONYMS / "acronyms.csv"))
    assert sum(count >= 6 for count in counts.values()) >= 20
    assert max(counts.values()) / counts.total() < 0.1


def test_the_lexicon_card_states_the_counts() -> None:
    rows = records(ACRONYMS / "acronyms.csv")
    card = (ACRONYMS / "README.md").read_text(encoding="utf-8")
    assert f"{len(rows)} three-letter acronyms" in card
    assert f"the other {sum(n == 1 for n in Counter(r['acronym'] for r in rows).values())} have one" in card
    assert f"take {len({row['acronym'][:2] for row in rows})} values" in card


# --- finding bundled data


def test_an_unknown_data_set_is_answered_with_those_that_exist() -> None:
    for name in ("base46", "../data/base64", ""):
        with pytest.raises(MnemoError, match=r"no bundled data named .*acronyms, base64"):
            data_path(name)


def test_the_packages_copy_wins_over_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, checkout = tmp_path / "package", tmp_path / "checkout"
    for folder in (package / "base64", checkout / "base64", checkout / "acronyms"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(datasets, "_ROOTS", (package, checkout))
    assert data_path("base64") == package / "base64"
    assert data_path("acronyms") == checkout / "acronyms"
