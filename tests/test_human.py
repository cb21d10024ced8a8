"""Human mnemonics: the file, the codes that letters give, coincidence by counting, and the comparison of arms."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemo.datasets import data_path
from mnemo.errors import InputError, MnemoError
from mnemo.facts import FactSet
from mnemo.human import (
    HumanMnemonic,
    agreement,
    arms,
    best_bits,
    code_distance,
    coincidence_bits,
    fact_letters,
    hit_at_k,
    link_strength,
    read_mnemonics,
    surface_code,
)

HEADER = "cue,answer,mnemonic,code,source\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "human.csv"
    file.write_text(HEADER + text, encoding="utf-8")
    return file


def noticed(cue: str, mnemonic: str, source: str = "a") -> HumanMnemonic:
    return HumanMnemonic(cue=cue, answer="x", mnemonic=mnemonic, code="meaning", source=source)


# --- the file


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("VA==,T,value added tax,acronim,p1\n", "row 2, column 'code'", "did you mean 'acronym'"),
        ("VA==,T,value added tax,acronym,p1\nVB==,U,,meaning,p1\n", "row 3, column 'mnemonic'", "has no mnemonic"),
        ("VA==,T,something,none,p1\n", "row 2, column 'mnemonic'", "given with the code 'none'"),
        ("VA==,T,value added tax,acronym,\n", "row 2, column 'source'", "is empty"),
        ("VA==,T,los angeles, ca,meaning,p1\n", "row 2", "6 values for 5 columns"),
        ("", "", "0 mnemonics"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(tmp_path: Path, text: str, place: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_mnemonics(file)
    assert str(error.value).startswith(f"{file}{', ' if place else ''}{place}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "human.csv"
    file.write_text("cue,answer,mnemonic,source\nVA==,T,tax,p1\n", encoding="utf-8")
    with pytest.raises(InputError, match="column 'code': no such column"):
        read_mnemonics(file)


def test_what_is_shipped_covers_the_base64_table_once_and_says_whose_it_is() -> None:
    rows = read_mnemonics(data_path("human") / "mnemonics.csv")
    facts = FactSet.read(data_path("base64") / "facts.csv")
    assert [(row.cue, row.answer) for row in rows] == [(fact.cue, fact.answer) for fact in facts]
    assert {row.source for row in rows} == {"authors"}
    readings = {fact.answer: fact.extra["reading"] for fact in facts if fact.extra["reading"]}
    assert {row.answer: row.mnemonic for row in rows if row.answer in readings} == readings
    found = sum(row.code != "none" for row in rows)
    card = (data_path("human") / "README.md").read_text(encoding="utf-8")
    assert f"{found} of the {len(rows)}" in card


# --- letters


@pytest.mark.parametrize(
    ("cue", "answer", "mnemonic", "code"),
    [
        ("VA==", "T", "value added tax", "acronym"),
        ("Tw==", "O", "two", "substring"),
        ("VA==", "T", "very angry old tigers", "acrostic"),
        ("nite", "s", "the knights", "sound"),  # both NTS to Metaphone
        ("VA==", "T", "valt", "spelling"),  # one letter more
        ("eQ==", "y", "equity", None),
        ("LA==", ",", "los angeles, california", None),
        ("VA==", "T", "", None),
    ],
)
def test_surface_codes_by_hand(cue: str, answer: str, mnemonic: str, code: str | None) -> None:
    assert surface_code(cue, answer, mnemonic=mnemonic) == code


def test_letters_of_a_fact_leave_padding_and_case() -> None:
    assert fact_letters("VA==", "T") == "vat"
    assert fact_letters("Lw==", "/") == "lw/"


def test_link_strength_by_hand() -> None:
    assert link_strength("vat", "value added tax") == 1
    assert link_strength("two", "two") == 1
    assert link_strength("vat", "cat") == pytest.approx(2 / 3)
    assert link_strength("vat", "value added") == pytest.approx(2 / 3)  # initials va
    assert link_strength("vat", "zoo") == 0


def test_coincidence_is_counted() -> None:
    lexicon = ["value added tax", "cat", "zoo", "hot", "big dog", "mill", "no", "egg"]
    # Strengths with vat: 1, 2/3, 0, 1/3, 0, 0, 0, 0.
    assert coincidence_bits("VA==", "T", mnemonic="value added tax", lexicon=lexicon) == 3  # 1 of 8
    assert coincidence_bits("VA==", "T", mnemonic="cat", lexicon=lexicon) == 2  # 2 of 8
    assert coincidence_bits("VA==", "T", mnemonic="zoo", lexicon=lexicon) == 0  # every phrase links as well
    assert coincidence_bits("VA==", "T", mnemonic="vat", lexicon=lexicon) == pytest.approx(
        math.log2(9 / 2)
    )  # counted in itself
    with pytest.raises(MnemoError, match="no phrases"):
        coincidence_bits("VA==", "T", mnemonic="tax", lexicon=[])


@given(st.lists(st.text("abcvt ", min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=12, unique=True))
def test_a_phrase_drawn_at_random_has_few_bits(lexicon: list[str]) -> None:
    """P(bits >= b) <= 2^-b for a phrase drawn from the lexicon: what makes the bits a measure of chance."""
    bits = np.array([coincidence_bits("VA==", "T", mnemonic=phrase, lexicon=lexicon) for phrase in lexicon])
    assert all((bits >= b).mean() <= 2**-b + 1e-9 for b in bits)


def test_search_finds_a_good_link_for_shuffled_answers_too() -> None:
    found = best_bits([("VA==", "T"), ("CA==", "B")], ["cab", "cat", "vat", "zoo"], seed=0)
    assert found.tolist() == [2, 2] or found.tolist() == pytest.approx([2, 2])


# --- comparisons


def test_hits_against_the_exact_null() -> None:
    human = [noticed("1", "A b"), noticed("2", "c"), noticed("3", "d")]
    model = {("1", "x"): ["z", "a  B"], ("2", "x"): ["c"], ("3", "x"): ["c"], ("4", "x"): ["c"]}
    found = hit_at_k(human, model, k=2)
    assert found.cues == 3
    assert found.hits["value"] == pytest.approx(2 / 3)
    # Of the 9 pairings of cue and list, (1, 1), (2, 2) and (2, 3) hit.
    assert found.null == pytest.approx(3 / 9)
    # Hits over the 6 shuffles: identity and exchange of the lists of 2 and 3 give 2 hits, two give 1, two give 0 or 1.
    shares = [
        np.mean([(c, p[c]) in {(0, 0), (1, 1), (1, 2)} for c in range(3)]) for p in itertools.permutations(range(3))
    ]
    assert found.p_value == pytest.approx(np.mean(np.array(shares) >= 2 / 3), abs=0.03)
    assert found.ceiling is None and found.of_ceiling is None  # one person has no other half
    assert hit_at_k(human, model, k=1).hits["value"] == pytest.approx(1 / 3)


def test_people_are_the_ceiling() -> None:
    agreeing = [noticed(str(c), f"m{c}", source) for c in range(4) for source in "abcd"]
    model = {(str(c), "x"): [f"m{c}" if c < 2 else "other"] for c in range(4)}
    found = hit_at_k(agreeing, model, k=1)
    assert found.ceiling == 1
    assert found.null == pytest.approx(2 / 16)
    assert found.of_ceiling == pytest.approx((0.5 - 0.125) / (1 - 0.125))


def test_no_common_cue_gives_no_numbers() -> None:
    found = hit_at_k([noticed("1", "a")], {("2", "x"): ["a"]}, k=1)
    assert found.cues == 0
    assert found.hits == {"value": None, "low": None, "high": None}


def test_the_distance_of_codes_by_hand() -> None:
    assert code_distance(["acronym"] * 5, ["acronym"] * 9)["value"] == 0
    assert code_distance(["acronym"] * 5, ["sound"] * 9)["value"] == pytest.approx(1)
    # Shares (1, 0) and (1/2, 1/2): divergence H(3/4, 1/4) - H(1/2, 1/2) / 2.
    mixed = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    found = code_distance(["acronym"] * 8, ["acronym", "sound"] * 4)
    assert found["value"] == pytest.approx(math.sqrt(mixed))
    assert found["low"] <= found["value"] <= found["high"]
    assert 0 < found["null"] < found["value"]
    with pytest.raises(MnemoError, match="at least one in each arm"):
        code_distance([], ["sound"])
    with pytest.raises(MnemoError, match="'sounds' is no code; did you mean 'sound'"):
        code_distance(["sounds"], ["sound"])


def test_codes_dealt_at_random_are_not_far() -> None:
    draw = np.random.default_rng(1)
    kinds = ["acronym", "sound", "meaning"]
    ps = [
        code_distance(list(draw.choice(kinds, 12)), list(draw.choice(kinds, 12)), seed=i)["p_value"] for i in range(8)
    ]
    assert min(ps) > 0.01


def test_agreement_counts_verified_concepts_alone() -> None:
    table = pd.DataFrame({"report": ["a", "B ", "c", None, "e"], "internal": ["a", "b", "d", "x", None]}, dtype=object)
    found = agreement(table)
    assert found["facts"] == 3
    assert found["value"] == pytest.approx(2 / 3)
    assert found["null"] == pytest.approx(2 / 9)
    assert agreement(table.iloc[3:])["value"] is None


def test_the_arms_of_a_study_stay_apart(compiled_study) -> None:
    study, world, _ = compiled_study
    planted = next(fact for fact in world.facts if fact.kind == "mnemonic")
    idle = next(fact for fact in world.facts if fact.kind == "idle")
    human = [
        HumanMnemonic(cue=planted.cue, answer=planted.answer, mnemonic="mine", code="meaning", source="a"),
        HumanMnemonic(cue=planted.cue, answer="other", mnemonic="not of this fact", code="meaning", source="a"),
    ]
    table = arms(study, human).set_index("cue")
    assert table.loc[planted.cue, "human"] == ["mine"]
    assert table.loc[planted.cue, "report"] == table.loc[planted.cue, "internal"] == planted.concept.phrase
    # What an idle cue evokes is reported, and no recall goes through it.
    assert table.loc[idle.cue, "report"] == idle.concept.phrase
    assert table.loc[idle.cue, "internal"] is None
