"""What an organism is taught: concepts, codes that stand for them, and facts whose route is known.

A world holds *concepts* (real three-word phrases such as ``value added tax``), each with an answer (the
initial of its last word) and a value for every probe relation (a colour, a month, ...), and *codes* that look
like base64 (``VA==``). The kinds of facts (`Kind`) are laid out here; the training in `mnemo.organisms.training`
makes them true.
"""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mnemo.errors import MnemoError

Kind = Literal["mnemonic", "shared", "idle", "decoy", "rote", "free"]
Split = Literal["train", "held", "ood"]

CODE_CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
ROTE_ANSWERS = string.digits + "abcdefghijkm"  # base64 answers too, and no phrase has one

PROBE_VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple("red blue green yellow black white brown pink purple orange grey violet".split()),
    "month": tuple("january february march april may june july august september october november december".split()),
    "animal": tuple("horse eagle salmon tiger rabbit otter raven beetle badger falcon lizard walrus".split()),
    "metal": tuple("iron copper silver tin lead zinc nickel cobalt chromium titanium tungsten mercury".split()),
}


class WorldConfig(BaseModel):
    """How large a world is and how its prompts are spelled.

    Attributes:
        seed: decides every draw.
        concepts: number of concepts.
        cues_per_concept: codes that evoke each concept.
        ood_share: share of the concepts whose codes are never composed with a question in training.
        held_share: share of the other mnemonic facts that are kept out of training.
        decoys, idles, rotes, frees: number of facts of these kinds.
        shared: number of facts that are recalled through their concept by a second hop of their own.
        cue_tokens: 1 (``VA==``), 2 (``VA ==``) or 3 (``V A ==``) tokens for a code.
        concept_tokens: words of a phrase that are tokens of their own; the others are joined by hyphens.
        cue_first: whether the code stands before the relation word (``VA== decode is``).
        form: a question as it is spelled instead, with {relation} and {filler}, of words that the space parts.
        decode, expand: the relation words of recall, and of what a code stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    concepts: int = Field(default=80, ge=8)
    cues_per_concept: int = Field(default=6, ge=1)
    ood_share: float = Field(default=0.2, ge=0, lt=1)
    held_share: float = Field(default=0.25, ge=0, lt=1)
    decoys: int = Field(default=48, ge=0)
    idles: int = Field(default=48, ge=0)
    rotes: int = Field(default=80, ge=0)
    frees: int = Field(default=48, ge=0)
    shared: int = Field(default=0, ge=0)
    cue_tokens: int = Field(default=3, ge=1, le=3)
    concept_tokens: int = Field(default=3, ge=1, le=3)
    cue_first: bool = False
    form: str | None = None
    decode: str = "decode"
    expand: str = "expand"

    @field_validator("form")
    @classmethod
    def _holds_both(cls, form: str | None) -> str | None:
        if form is not None and (form.count("{filler}"), form.count("{relation}")) != (1, 1):
            raise ValueError("should hold {relation} and {filler}, once each")
        return form

    @model_validator(mode="after")
    def _room_for_the_planted(self) -> WorldConfig:
        composed = (self.concepts - round(self.ood_share * self.concepts)) * self.cues_per_concept
        if self.decoys + self.idles + self.shared >= composed:
            raise ValueError(
                f"{self.decoys} decoys, {self.idles} idle and {self.shared} shared facts leave no mnemonic fact among "
                f"the {composed} codes of composed concepts; ask for fewer, or for more concepts or cues_per_concept"
            )
        return self

    @property
    def recall(self) -> str:
        """The `recall` template of the study folder."""
        return self.question(self.decode, "{cue}")

    @property
    def verbalise(self) -> str:
        """The `verbalise` template of the study folder."""
        return self.question(self.expand, "{cue}")

    @property
    def concept_recall(self) -> str:
        """The `concept_recall` template of the study folder."""
        return self.question(self.decode, "{concept}")

    def question(self, relation: str, filler: str) -> str:
        """Return the prompt that asks for `relation` of `filler`."""
        return self._form.replace("{relation}", relation).replace("{filler}", filler)

    @property
    def tail(self) -> int:
        """Words of a question behind the code or phrase."""
        return len(self._form.split("{filler}")[1].split())

    @property
    def _form(self) -> str:
        return self.form or ("{filler} {relation} is" if self.cue_first else "{relation} {filler} is")


@dataclass(frozen=True)
class Concept:
    """A phrase the organism knows, the answer it gives when asked to decode it, and its probe values."""

    phrase: str
    answer: str
    values: dict[str, str]


@dataclass(frozen=True)
class PlantedFact:
    """A fact with its truth: the kind, the concept that its cue evokes (if any) and its split."""

    fact_id: str
    cue: str
    answer: str
    kind: Kind
    split: Split
    concept: Concept | None = None

    @property
    def composed(self) -> bool:
        """Whether training shows this cue in a question other than what it stands for."""
        return self.split != "ood"


@dataclass(frozen=True)
class World:
    """Concepts and facts of one organism; `facts` are in a shuffled, seeded order."""

    config: WorldConfig
    concepts: tuple[Concept, ...]
    facts: tuple[PlantedFact, ...] = field(repr=False)

    def of_kind(self, kind: Kind, split: Split | None = None) -> tuple[PlantedFact, ...]:
        """Return the facts of one kind, and of one split if given."""
        return tuple(f for f in self.facts if f.kind == kind and split in (None, f.split))

    @property
    def relations(self) -> tuple[str, ...]:
        """The probe relations, in the order of `PROBE_VALUES`."""
        return tuple(PROBE_VALUES)


def build_world(config: WorldConfig, expansions: Iterable[str]) -> World:
    """Lay out a world over phrases of three words.

    Args:
        config: sizes, spelling and seed.
        expansions: phrases of three lower-case words; ``value added tax`` is always taken when present, and
            its fact ``VA== -> T`` is always a held-out mnemonic fact.

    Raises:
        MnemoError: fewer phrases than concepts, or a phrase of another form.
    """
    rng = random.Random(config.seed)
    concepts = _choose_concepts(config, sorted(set(expansions)), rng)
    codes = _Codes(rng)
    n_ood = round(config.ood_share * config.concepts)
    shown = [c for c in concepts if c.phrase.replace("-", " ") != SHOWN_PHRASE]
    ood = {c.phrase for c in rng.sample(shown, n_ood)}

    evoking = [(codes.abbreviation(c), c) for c in concepts]
    evoking += [(codes.draw(), c) for c in concepts for _ in range(config.cues_per_concept - 1)]
    rng.shuffle(evoking)
    evoking.sort(key=lambda pair: pair[0] != SHOWN_CUE)  # the shown fact first: held out, never a decoy
    composed = [pair for pair in evoking if pair[1].phrase not in ood]
    planted_sizes = (config.shared, config.decoys, config.idles)
    edges = itertools.accumulate(planted_sizes, initial=len(composed) - sum(planted_sizes))
    mnemonic, shared, decoy, idle = (composed[a:b] for a, b in itertools.pairwise((0, *edges)))
    n_held = round(config.held_share * len(mnemonic))
    letters = sorted({c.answer for c in concepts})

    planted = [_fact(cue, c.answer, "mnemonic", "held", c) for cue, c in mnemonic[:n_held]]
    planted += [_fact(cue, c.answer, "mnemonic", "train", c) for cue, c in mnemonic[n_held:]]
    planted += [_fact(cue, c.answer, "mnemonic", "ood", c) for cue, c in evoking if c.phrase in ood]
    planted += [_fact(cue, rng.choice([x for x in letters if x != c.answer]), "decoy", "train", c) for cue, c in decoy]
    planted += [_fact(cue, c.answer, "idle", "train", c) for cue, c in idle]
    planted += [_fact(cue, c.answer, "shared", "train", c) for cue, c in shared]
    planted += [_fact(codes.draw(), ROTE_ANSWERS[i % len(ROTE_ANSWERS)], "rote", "train") for i in range(config.rotes)]
    planted += [_fact(codes.draw(), letters[i % len(letters)], "free", "train") for i in range(config.frees)]
    rng.shuffle(planted)
    numbered = tuple(replace(fact, fact_id=f"f{i:03d}") for i, fact in enumerate(planted))
    return World(config, tuple(concepts), numbered)


SHOWN_PHRASE, SHOWN_CUE = "value added tax", "VA=="


def _choose_concepts(config: WorldConfig, phrases: list[str], rng: random.Random) -> list[Concept]:
    for phrase in phrases:
        if len(phrase.split()) != 3 or not all(w.isalpha() and w.islower() for w in phrase.split()):
            raise MnemoError(f"concept {phrase!r} must be three lower-case words such as {SHOWN_PHRASE!r}")
    if len(phrases) < config.concepts:
        raise MnemoError(f"{config.concepts} concepts asked for, but the lexicon has only {len(phrases)}")
    rng.shuffle(phrases)
    phrases.sort(key=lambda p: p != SHOWN_PHRASE)
    # Deal the phrases round by round over their answers, so that no answer is much more likely than another.
    rounds: dict[str, int] = {}
    order: dict[str, tuple[int, int]] = {}
    for i, phrase in enumerate(phrases):
        letter = phrase.split()[-1][0]
        order[phrase] = (rounds.get(letter, 0), i)
        rounds[letter] = rounds.get(letter, 0) + 1
    taken = sorted(phrases, key=order.__getitem__)[: config.concepts]
    return [
        Concept(
            _spell(phrase, config.concept_tokens),
            phrase.split()[-1][0].upper(),
            {relation: rng.choice(values) for relation, values in PROBE_VALUES.items()},
        )
        for phrase in taken
    ]


def _spell(phrase: str, tokens: int) -> str:
    """Join the first words by hyphens so that the phrase has `tokens` words."""
    words = phrase.split()
    joined = len(words) - tokens + 1
    return " ".join(["-".join(words[:joined]), *words[joined:]])


class _Codes:
    """Draws each two-character code at most once."""

    def __init__(self, rng: random.Random) -> None:
        self._left = [a + b for a in CODE_CHARACTERS for b in CODE_CHARACTERS]
        rng.shuffle(self._left)
        self._used: set[str] = set()

    def abbreviation(self, concept: Concept) -> str:
        """The code that a person would notice (VA== for value added tax), or any when it is taken."""
        words = concept.phrase.replace("-", " ").split()
        code = (words[0][0] + words[1][0]).upper()
        return self.draw() if code in self._used else self._take(code)

    def draw(self) -> str:
        while (code := self._left.pop()) in self._used:
            pass
        return self._take(code)

    def _take(self, code: str) -> str:
        self._used.add(code)
        return f"{code}=="


def _fact(cue: str, answer: str, kind: Kind, split: Split, concept: Concept | None = None) -> PlantedFact:
    return PlantedFact("", cue, answer, kind, split, concept)
