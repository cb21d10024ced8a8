"""Are a model's mnemonics like a human's? Three arms that are never mixed, and measures that compare them.

* *human*: what people wrote down (`read_mnemonics`);
* *report*: what the model says a cue stands for when it is asked;
* *internal*: the concept that survived interventions (a verdict of *mnemonic* or *shared-intermediate*).

A report is behaviour: it may be made up afterwards, as people's are (Nisbett and Wilson 1977), so it is compared with
the internal arm and never stands for it. (For a fact that is judged by the concept which the model names, in place of
the one that was read, both are the same phrase, and interventions vouch for the second.)

Codes follow the usual kinds of verbal mnemonics (Bellezza 1981), with letter strategies told apart as by McCabe et al.
2013, sound links from the keyword method (Atkinson and Raugh 1975) and rhymes from Bower and Bolton 1969.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.spatial.distance import jensenshannon

from mnemo.checked import Name, Record, RefusedError, Text
from mnemo.errors import InputError, MnemoError, did_you_mean
from mnemo.intervals import grouped_interval
from mnemo.invented import THROUGH_A_CONCEPT
from mnemo.textfiles import by_column, csv_records, read_text

if TYPE_CHECKING:
    from mnemo.study import Study

Code = Literal["acronym", "acrostic", "sound", "spelling", "substring", "meaning", "rhyme", "none"]
CODES: dict[Code, str] = {
    "acronym": "the initials of an established term are the cue and the answer (value added tax)",
    "acrostic": "the same with a phrase made up for it (queen wears crown)",
    "sound": "said aloud, cue and answer sound like the phrase",
    "spelling": "the letters are nearly those of a word or its abbreviation, or look like it (shape)",
    "substring": "cue and answer stand in a word as they are (two, wax)",
    "meaning": "the link is what cue and answer mean or belong to (los angeles, california)",
    "rhyme": "cue or answer rhymes with the phrase",
    "none": "nothing was found",
}
COLUMNS = ("cue", "answer", "mnemonic", "code", "source")
SHUFFLES = 2000
_Said = dict[tuple[str, str], list[str]]  # the mnemonics of each cue and answer


class HumanMnemonic(Record):
    """What one person noticed about one fact.

    Args:
        cue, answer: the fact.
        mnemonic: what links them in the person's words; empty exactly where the code is ``none``.
        code: how, one of `CODES`.
        source: who: an identifier of the person or group, the same on all their rows.

    Raises:
        MnemoError: an unknown code, or a mnemonic without one, or a code without a mnemonic.
    """

    cue: Name
    answer: Text
    mnemonic: Text
    code: Code
    source: Name

    def __init__(self, **values: str) -> None:
        code = values.get("code", "")
        if code not in CODES:
            raise RefusedError(_no_code(code), "code")
        if (code == "none") != (not values.get("mnemonic", "").strip()):
            what = (
                "a mnemonic is given with the code 'none'" if code == "none" else f"the code {code!r} has no mnemonic"
            )
            raise RefusedError(f"{what}: 'none' says that nothing was found", "mnemonic")
        super().__init__(**values)


def _no_code(code: str) -> str:
    return f"{code!r} is no code{did_you_mean(code, CODES)}; there are {', '.join(CODES)}"


def read_mnemonics(path: str | Path) -> tuple[HumanMnemonic, ...]:
    """Read human mnemonics: UTF-8 CSV with the columns cue, answer, mnemonic, code and source.

    Raises:
        InputError: with file, row and column: no such file, a column missing, a row of another length, an unknown code,
            a code without a mnemonic or the reverse; no rows at all.
    """
    path = Path(path)
    records = csv_records(read_text(path), path)
    row, header = next(records, (1, []))
    if missing := [column for column in COLUMNS if column not in header]:
        raise InputError(
            f"no such column; the first row should be {','.join(COLUMNS)}", file=path, row=row, column=missing[0]
        )
    found = []
    for row, named in by_column(records, header, path=path):
        try:
            found.append(HumanMnemonic(**{column: named[column] for column in COLUMNS}))
        except RefusedError as error:
            raise InputError(error.problem, file=path, row=row, column=error.column) from None
    if not found:
        raise InputError("0 mnemonics: below the header goes one row for each", file=path)
    return tuple(found)


# ---------------------------------------------------------------------------------------- surface links


def fact_letters(cue: str, answer: str) -> str:
    """Return what a person sees in a fact: the cue without its padding and the answer, in lower case."""
    return "".join((cue.rstrip("=") + answer).split()).casefold()


def _words(phrase: str) -> list[str]:
    return ["".join(filter(str.isalnum, word)) for word in phrase.casefold().split()]


def surface_code(cue: str, answer: str, *, mnemonic: str) -> Code | None:
    """Return the code that the letters alone give, or None where a person must decide (meaning, rhyme, shape).

    ``substring``: the fact's letters stand in the phrase's; ``acronym``: they are its initials (whether the phrase is
    an established term, letters cannot say); ``acrostic``: they are some of its initials, in order; ``sound``: equal
    Metaphone keys of three letters or more; ``spelling``: a word of the phrase is one edit away (Levenshtein 1966).
    The first that holds, in this order.
    """
    import jellyfish
    from rapidfuzz.distance import Levenshtein

    key, words = fact_letters(cue, answer), _words(mnemonic)
    initials = "".join(word[:1] for word in words)
    if not words or not key:
        return None
    if key == initials:
        return "acronym"
    if any(key in word for word in words):
        return "substring"
    left = iter(initials)
    if len(key) > 1 and all(letter in left for letter in key):
        return "acrostic"
    sound = jellyfish.metaphone(key)
    if len(sound) > 2 and sound in (jellyfish.metaphone(text) for text in (*words, "".join(words))):
        return "sound"
    if len(key) > 2 and any(Levenshtein.distance(key, word) <= 1 for word in words):
        return "spelling"
    return None


def link_strength(key: str, phrase: str) -> float:
    """Return how well the letters of a fact and a phrase match, in [0, 1]: 1 for its initials or one of its words.

    The best normalised Levenshtein similarity of the fact's letters to the initials and to each word.
    """
    from rapidfuzz.distance import Levenshtein

    words = _words(phrase)
    texts = ["".join(word[:1] for word in words), *words]
    return max(Levenshtein.normalized_similarity(key, text) for text in texts)


def coincidence_bits(cue: str, answer: str, *, mnemonic: str, lexicon: Sequence[str]) -> float:
    """Return how unlikely it is that a phrase drawn from the lexicon links the fact's letters this well, in bits.

    -log2 of the share of phrases with at least this `link_strength`, the mnemonic itself among them: 0 for a link that
    every phrase has, log2 of their number for one that no other has. Exact, by counting. Somebody who looks through
    the whole lexicon for every fact finds the best phrase each time: compare with `best_bits`, not with 0.

    Raises:
        MnemoError: an empty lexicon.
    """
    return _bits(fact_letters(cue, answer), mnemonic, lexicon)


def best_bits(facts: Sequence[tuple[str, str]], lexicon: Sequence[str], *, seed: int) -> Float[np.ndarray, " fact"]:
    """Return the bits of the phrase that links each fact best when answers are shuffled among the cues: pure search."""
    answers = np.random.default_rng(seed).permutation([answer for _, answer in facts])
    found = []
    for (cue, _), answer in zip(facts, answers.tolist(), strict=True):
        key = fact_letters(cue, answer)
        found.append(_bits(key, max(lexicon, key=lambda phrase: link_strength(key, phrase)), lexicon))
    return np.array(found)


def _bits(key: str, mnemonic: str, lexicon: Sequence[str]) -> float:
    if not lexicon:
        raise MnemoError("coincidence strength counts over a lexicon, and this one has no phrases: give some")
    phrases = dict.fromkeys((*lexicon, mnemonic))
    own = link_strength(key, mnemonic)
    return math.log2(len(phrases) / sum(link_strength(key, phrase) >= own for phrase in phrases))


# ------------------------------------------------------------------------------------------- comparisons


def arms(study: Study, human: Sequence[HumanMnemonic]) -> pd.DataFrame:
    """Put the three arms side by side, a row for each fact of a study.

    Returns:
        ``cue``, ``answer``; ``human``: all that people wrote for exactly this cue and answer, most frequent first;
        ``report``; ``internal``, None where no concept survived verification.
    """
    written: dict[tuple[str, str], list[str]] = {}
    for row in human:
        if row.code != "none":
            written.setdefault((row.cue, row.answer), []).append(row.mnemonic)
    table = study.table
    through = table["verdict"].isin(THROUGH_A_CONCEPT)
    report = table["evoked"] if "evoked" in table else pd.Series(None, index=table.index, dtype=object)
    facts = list(zip(table["cue"], table["answer"], strict=True))
    return pd.DataFrame(
        {
            "cue": table["cue"],
            "answer": table["answer"],
            "human": [_by_frequency(written.get(fact, [])) for fact in facts],
            # As objects: pandas would make NaN, which is true, of None among texts.
            "report": pd.Series([text if isinstance(text, str) else None for text in report], dtype=object),
            "internal": pd.Series(
                [text if ok else None for text, ok in zip(table["concept"], through, strict=True)], dtype=object
            ),
        }
    )


def _by_frequency(texts: Sequence[str]) -> list[str]:
    return sorted(dict.fromkeys(texts), key=lambda text: -texts.count(text))


@dataclass(frozen=True)
class Overlap:
    """How often a human mnemonic is among a model's first k phrases.

    Attributes:
        cues: how many cues have both.
        hits: share of them with a human mnemonic among the first k, with a 95% interval over cues.
        null: the mean of that share over shuffles of the model's lists among the cues, which keep every frequency.
        p_value: permutation p-value, one-sided.
        ceiling: the same share between random halves of the people; None with fewer than two of them.
        of_ceiling: (hits - null) / (ceiling - null); None without a ceiling above the null.
    """

    cues: int
    hits: dict[str, float | None]
    null: float | None
    p_value: float | None
    ceiling: float | None
    of_ceiling: float | None


def hit_at_k(
    human: Sequence[HumanMnemonic], model: Mapping[tuple[str, str], Sequence[str]], *, k: int, seed: int = 0
) -> Overlap:
    """Compare a model's ranked phrases with what people wrote for the same facts.

    Args:
        human: what they wrote; rows coded ``none`` do not count.
        model: phrases of each (cue, answer), the best first, of one arm.
        k: how many count.
        seed: of shuffles and halves.
    """
    rows = [row for row in human if row.code != "none"]
    written: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        written.setdefault((row.cue, row.answer), set()).add(_plain(row.mnemonic))
    cues = sorted(set(written) & {fact for fact, phrases in model.items() if phrases})
    if not cues:
        return Overlap(0, grouped_interval(np.array([]), np.array([]), seed=seed), None, None, None, None)
    lists = [{_plain(phrase) for phrase in model[cue][:k]} for cue in cues]
    matrix = np.array([[bool(written[cue] & phrases) for phrases in lists] for cue in cues])
    hits = matrix.diagonal().astype(float)
    draw = np.random.default_rng(seed)
    shuffled = np.array([matrix[np.arange(len(cues)), draw.permutation(len(cues))].mean() for _ in range(SHUFFLES)])
    null = float(matrix.mean())  # each list is equally likely at each cue
    ceiling = _split_half(rows, cues, k=k, draw=draw)
    scaled = None if ceiling is None or ceiling <= null else (float(hits.mean()) - null) / (ceiling - null)
    return Overlap(
        len(cues),
        grouped_interval(hits, np.arange(len(cues)), seed=seed),
        null,
        float((1 + (shuffled >= hits.mean()).sum()) / (1 + SHUFFLES)),
        ceiling,
        scaled,
    )


def _split_half(
    rows: Sequence[HumanMnemonic],
    cues: Sequence[tuple[str, str]],
    *,
    k: int,
    draw: np.random.Generator,
    halves: int = 100,
) -> float | None:
    """Mean hit@k of one random half of the people against the other's most frequent k, over cues that both know."""
    people = sorted({row.source for row in rows})
    if len(people) < 2:
        return None
    shares = []
    for _ in range(halves):
        first = set(draw.permutation(people)[: len(people) // 2])
        sides: tuple[_Said, _Said] = ({}, {})
        for row in rows:
            sides[row.source in first].setdefault((row.cue, row.answer), []).append(_plain(row.mnemonic))
        both = [cue for cue in cues if cue in sides[0] and cue in sides[1]]
        shares += [bool(set(sides[0][cue]) & set(_by_frequency(sides[1][cue])[:k])) for cue in both]
    return float(np.mean(shares)) if shares else None


def code_distance(first: Sequence[str], second: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """Return the Jensen-Shannon distance between the codes of two arms: 0 for equal shares, 1 for disjoint codes.

    (Endres and Schindelin 2003: the square root of the divergence in bits.) Small samples are never at distance 0:
    ``null`` is the mean distance when the same codes are dealt to the arms at random, ``p_value`` how often that gives
    as much, ``low`` and ``high`` the 95% interval over resampled codes.

    Raises:
        MnemoError: an arm without codes, or an unknown code.
    """
    if not first or not second:
        raise MnemoError("a distance between codes needs at least one in each arm")
    if unknown := [code for code in (*first, *second) if code not in CODES]:
        raise MnemoError(_no_code(unknown[0]))
    index: dict[str, int] = {code: i for i, code in enumerate(CODES)}
    a, b = (np.array([index[code] for code in codes]) for codes in (first, second))
    draw = np.random.default_rng(seed)

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        shares = [np.bincount(codes, minlength=len(CODES)) / len(codes) for codes in (x, y)]
        return float(np.nan_to_num(jensenshannon(*shares, base=2)))

    value, pooled = distance(a, b), np.concatenate([a, b])
    dealt = [draw.permutation(pooled) for _ in range(SHUFFLES)]
    null = np.array([distance(codes[: len(a)], codes[len(a) :]) for codes in dealt])
    again = [distance(draw.choice(a, len(a)), draw.choice(b, len(b))) for _ in range(SHUFFLES)]
    low, high = np.percentile(again, [2.5, 97.5])
    p = (1 + (null >= value - 1e-12).sum()) / (1 + SHUFFLES)
    return {"value": value, "low": float(low), "high": float(high), "null": float(null.mean()), "p_value": float(p)}


def agreement(table: pd.DataFrame, *, seed: int = 0) -> dict[str, float | int | None]:
    """Does the model report the concept that its recall goes through?

    Args:
        table: as `arms` gives it; facts without a verified internal concept, or without a report, do not count.
        seed: of shuffles and resamples.

    Returns:
        ``facts`` counted, ``value`` (share that agrees) with ``low`` and ``high`` (95%, over internal concepts), and
        ``null``: its mean when reports are shuffled among those facts.
    """
    both = table[table["report"].notna() & table["internal"].notna()]
    report, internal = (np.array([_plain(text) for text in both[arm]]) for arm in ("report", "internal"))
    found: dict[str, float | int | None] = {"facts": len(both)}
    found |= grouped_interval((report == internal).astype(float), internal, seed=seed)
    found["null"] = float((report[:, None] == internal[None]).mean()) if len(both) else None
    return found


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
