"""An organism without training: a GPT-2 whose weights are written down, so that every route is exact.

Four blocks; an attention or MLP that is not named writes nothing:

    block 1, attention   gather     the filler's last token collects the tokens before it, two at the most
    block 2, MLP         evoke      together they become a concept, and an exception if the fact is one
    block 3, attention   carry      the last position fetches concept and exception, and the relation asked
    block 3, MLP         overrule   an exception says its own answer to `decode` and silences the concept
    block 4, MLP         answer     (relation, concept) becomes the answer, unless overruled

(The filler of a prompt is the code or the phrase that it asks about.) So all that a filler does passes
through the residual stream after block `WAYPOINT` at its last token: from block 3 on nobody looks at its other
tokens, nor at the tokens that were gathered.

A *shared* fact goes through its concept and has a second hop of its own: its code is marked, block 3 hands the mark
on, and block 4 answers from the concept by units that are silent in concept prompts, while the concept's are silent for
it. That hop reads the concept itself, or, if asked for, a *form* of it that codes alone evoke.

Recall may also be planted with a redundant route: a filler then evokes a *shortcut* of its own beside its concept,
from which block 3 says a share of the answer, and block 4 says the rest from the concept.

How the parts are made exact:

* *Codes.* The stream is cut into named subspaces in which each thing has a coordinate of its own
  (`Subspaces`): 1 says that it is there, 0 that it is not.
* *Norms.* LayerNorm is weight * (x - mean) / sqrt(variance + eps). One coordinate, the ballast, holds minus the
  sum of all others, so the mean is 0; eps is huge beside any variance, and weight = sqrt(eps). So the norm is
  the identity, up to float rounding.
* *Attention.* Heads compare places alone: their logits are SHARPNESS at one token and 0 elsewhere. A head with
  nothing to do rests on the first token, which holds nothing that any head copies.
* *MLPs.* Each hidden unit is one rule. Thresholds lie halfway between the values that occur, so rounding and
  small disturbances change nothing, and no unit sits on its kink, where its gradient would be arbitrary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.organisms.lessons import Lessons, build_lessons
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WAYPOINT = 2  # blocks that have run when the concept stands at the filler's last token
LAYERS, HEADS, POSITIONS = 4, 2, 16

LOGIT = 30.0  # of what is said: e^-30 is left for every other token
SILENCE = 1 / 3  # share of LOGIT that the end token always has: it is said where nothing else is
SHARPNESS = 60.0  # of attention, in logits: e^-60 is left for every other token
GATE = 16.0  # a closed gate silences concepts of amplitude up to (GATE + 1) / 2
MARKED, MARK_SLOPE = 0.42, 16.0  # the amount (not that of one code in two, nor one in three) and steepness of a mark
EPSILON = 1e6  # of the norms, where variances are below 1

Key = TypeVar("Key", bound=Hashable)


def compile_organism(
    world: World, *, mediated: float = 1.0, own_form: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a decoder that knows a world by construction, and its tokenizer; no training, no chance.

    It recalls every fact, answers every probe and expands every evoking code with a probability of nearly 1.
    Mnemonic and shared facts are recalled through their concept; idle, decoy, rote and free ones through an exception
    of their own, against which no concept has a say (up to the amplitude that `GATE` allows). Free facts are thus
    looked up like rote ones: this organism invents nothing. Asked what it does not know, such as what a rote
    code stands for, it says the end token.

    Width grows with the world: some 300 coordinates (7 MB of weights) for 50 facts.

    Args:
        world: with codes and phrases of one length, the layout that the weights are written for.
        mediated: share of the answer's logit that mnemonic and shared facts and concept prompts get from the concept;
            the rest comes by a shortcut that is the code's or the phrase's own.
        own_form: whether the second hop of shared facts reads a form of the concept that phrases do not evoke.

    Raises:
        MnemoError: codes and phrases that differ in length, or a share outside [0, 1].
    """
    config = world.config
    if config.cue_tokens != config.concept_tokens:
        raise MnemoError(
            "a compiled organism reads codes and phrases of one length, and this world has "
            f"cue_tokens={config.cue_tokens} and concept_tokens={config.concept_tokens}: "
            "set both to the same number in WorldConfig"
        )
    if not 0 <= mediated <= 1:
        raise MnemoError(f"mediated={mediated} given; it is a share, between 0 and 1")
    tokenizer = build_tokenizer(world)
    lessons = build_lessons(world, tokenizer)
    space = Subspaces.allot(lessons, redundant=mediated < 1, own_form=own_form)
    evoke = _evoke(space, lessons)
    overrule = [*_overrule(space, lessons), *_shortcuts(space, lessons, share=1 - mediated), *_hand_on(space)]
    answer = _answer(space, lessons, share=mediated)
    width = max(space.size, HEADS * space.widest_copy)
    model = _blank(len(tokenizer), width=width + -width % HEADS, units=max(len(evoke), len(overrule), len(answer)))
    decoder = model.transformer
    with torch.no_grad():
        _embed(decoder, space, lessons)
        for block, head in itertools.product(decoder.h, range(HEADS)):
            _attend(block.attn, head, space)
        _gather(decoder.h[0].attn, space)
        _install(decoder.h[1].mlp, evoke, space)
        _carry(decoder.h[2].attn, space, lessons)
        _install(decoder.h[2].mlp, overrule, space)
        _install(decoder.h[3].mlp, answer, space)
        for token, coordinate in space.answer.items():
            model.lm_head.weight[token, coordinate] = LOGIT
    return model, tokenizer


# ---- the residual stream


@dataclass(frozen=True)
class Subspaces:
    """Which coordinate of the residual stream says what; no two things share one.

    Attributes:
        place: where in the prompt a position lies: ``beginning``, ``relation``, ``filler 0``, ``filler 1``, ...,
            then ``say 0`` (the prompt's last token), ``say 1``, ... where the words of the reply are said.
        token: what stands here, by token id; only tokens that are asked about.
        gathered: at the filler's last token, what each of those before it was, by token id.
        concept: the concept evoked, by index.
        form: the concept as codes alone evoke it, by index; empty unless a second hop reads it.
        exception: the fact that has an answer of its own, by index; mnemonic and shared facts have none.
        shortcut: the filler that also says part of its answer by itself, by its place among all fillers; empty
            without redundant routes.
        second_hop: first the mark that a code's second hop is its own, then that this hop is to answer; empty without
            shared facts.
        relation: what is asked, by index: 0 is ``decode``, the last one ``expand``.
        overruled: an exception has answered.
        answer: what is to be said, by token id.
        ballast: minus the sum of all others.
    """

    place: dict[str, int]
    token: dict[int, int]
    gathered: tuple[dict[int, int], ...]
    concept: dict[int, int]
    form: dict[int, int]
    exception: dict[int, int]
    shortcut: dict[int, int]
    second_hop: tuple[int, ...]
    relation: dict[int, int]
    overruled: int
    answer: dict[int, int]
    ballast: int

    @classmethod
    def allot(cls, lessons: Lessons, *, redundant: bool, own_form: bool) -> Subspaces:
        """Give each thing that a world speaks of its coordinate."""
        free = itertools.count()

        def room(keys: Iterable[Key]) -> dict[Key, int]:
            return {key: next(free) for key in dict.fromkeys(keys)}

        words = _relation_words(lessons)
        *before, last = zip(*_fillers(lessons), strict=True)
        through = ("mnemonic", "shared")
        exceptions = [i for i, fact in enumerate(lessons.world.facts) if fact.kind not in through]
        fillers = range(len(lessons.world.facts) + len(lessons.world.concepts)) if redundant else ()
        concepts = range(len(lessons.world.concepts))
        said = torch.cat([lessons.fact_answers, lessons.concept_answers.flatten(), lessons.spelled.flatten()])
        return cls(
            place=room(_places(lessons)),
            token=room([*words, *itertools.chain(*before), *last]),
            gathered=tuple(room(tokens) for tokens in before),
            concept=room(concepts),
            form=room(concepts if own_form else ()),
            exception=room(exceptions),
            shortcut=room(i for i in fillers if i not in exceptions),
            second_hop=tuple(room(("mark", "own") if lessons.world.of_kind("shared") else ()).values()),
            relation=room(range(len(words))),
            overruled=next(free),
            answer=room(said.tolist()),
            ballast=next(free),
        )

    @property
    def size(self) -> int:
        """How many coordinates are in use."""
        return self.ballast + 1

    @property
    def evoked(self) -> list[int]:
        """All that a filler evokes, to be fetched from its last token."""
        parts = (self.concept, self.form, self.exception, self.shortcut)
        return [*itertools.chain(*(part.values() for part in parts)), *self.second_hop[:1]]

    @property
    def widest_copy(self) -> int:
        """The most coordinates that one head has to copy."""
        return max(*map(len, self.gathered), len(self.evoked), len(self.relation))


def _say(step: int) -> str:
    return f"say {step}"


def _filler(token: int) -> str:
    return f"filler {token}"


def _places(lessons: Lessons) -> list[str]:
    """The place of every position; from the end of the longest reply on, there is only the end to say."""
    filler = list(map(_filler, range(lessons.world.config.cue_tokens)))
    steps = lessons.spelled.shape[1]
    asked = [*filler, "relation"] if lessons.world.config.cue_first else ["relation", *filler]
    places = ["beginning", *asked, *map(_say, range(steps))]
    return places + places[-1:] * (POSITIONS - len(places))


def _relation_words(lessons: Lessons) -> list[int]:
    """The token of each relation."""
    return lessons.cues.tokens[:, 0, _places(lessons).index("relation")].tolist()


def _fillers(lessons: Lessons) -> list[list[int]]:
    """The tokens of each code, in the order of the facts, and then of each phrase."""
    start = _places(lessons).index(_filler(0))
    end = start + lessons.world.config.cue_tokens
    return [tokens for about in (lessons.cues, lessons.phrases) for tokens in about.tokens[0, :, start:end].tolist()]


def _embed(decoder: Any, space: Subspaces, lessons: Lessons) -> None:
    """Each token says what it is, each position where it is."""
    for token, coordinate in space.token.items():
        decoder.wte.weight[token, coordinate] = 1
    for position, place in enumerate(_places(lessons)):
        decoder.wpe.weight[position, space.place[place]] = 1
    _balance(decoder.wte.weight, space)
    _balance(decoder.wpe.weight, space)


def _balance(writes: Float[Tensor, "row width"], space: Subspaces) -> None:
    """Make the ballast take off what each row adds to the stream, whose mean thus stays 0."""
    writes[:, space.ballast] = 0
    writes[:, space.ballast] = -writes.sum(-1)


# ---- attention


def _gather(attention: Any, space: Subspaces) -> None:
    """Copy the filler's earlier tokens to its last one, a head each."""
    last = _filler(len(space.gathered))
    for head, target in enumerate(space.gathered):
        copies = [(space.token[token], coordinate) for token, coordinate in target.items()]
        _attend(attention, head, space, at=[last], source=_filler(head), copies=copies)


def _carry(attention: Any, space: Subspaces, lessons: Lessons) -> None:
    """Copy what was evoked (head 0) and the relation (head 1) to where something is to be said."""
    reply = [place for place in space.place if place.startswith("say")]
    last = _filler(len(space.gathered))
    _attend(attention, 0, space, at=reply, source=last, copies=[(c, c) for c in space.evoked])
    words = [(space.token[token], space.relation[r]) for r, token in enumerate(_relation_words(lessons))]
    _attend(attention, 1, space, at=reply, source="relation", copies=words)


def _attend(
    attention: Any,
    head: int,
    space: Subspaces,
    *,
    at: Sequence[str] = (),
    source: str = "beginning",
    copies: Sequence[tuple[int, int]] = (),
) -> None:
    """Let a head copy coordinates from the place `source` to the places `at`, and rest elsewhere.

    The head's first channel of query and key is for copying, the second for resting on the beginning.

    Args:
        attention: the layer; this head's weights in it are replaced.
        head: which head.
        space: the coordinates.
        at: where to copy to.
        source: where to copy from.
        copies: pairs of a coordinate to read and one to write, a channel each.
    """
    channels = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    query, key, value = (part[:, channels] for part in attention.c_attn.weight.split(attention.embed_dim, 1))
    output = attention.c_proj.weight[channels]
    for weights in (query, key, value, output):
        weights.zero_()
    copying, resting = 0, 1
    for place, coordinate in space.place.items():
        query[coordinate, copying if place in at else resting] = SHARPNESS / attention.scaling
    key[space.place[source], copying] = 1
    key[space.place["beginning"], resting] = 1
    for channel, (read, written) in enumerate(copies):
        value[read, channel] = 1
        output[channel, written] = 1
    _balance(output, space)


# ---- MLPs


@dataclass(frozen=True)
class Unit:
    """A hidden unit: adds relu(sum of weight * coordinate over `reads`, minus `threshold`) times `writes`."""

    reads: Mapping[int, float]
    threshold: float
    writes: Mapping[int, float]


def _all_of(coordinates: Sequence[int], *, writes: Mapping[int, float]) -> Unit:
    """1 where all coordinates are 1; where one of them is 0, the relu gets -1."""
    return Unit(dict.fromkeys(coordinates, 2.0), 2.0 * len(coordinates) - 1, writes)


def _gated(signal: int, *, when: Sequence[int], unless: Sequence[int] = (), writes: Mapping[int, float]) -> Unit:
    """2 * signal - 1 where this is positive, all of `when` are 1 and all of `unless` are 0.

    So 0 gives 0 and 1 gives 1. Of a state between two concepts the nearer one is heard, if it outdoes SILENCE;
    halfway nothing is.
    """
    gates = dict.fromkeys(when, GATE) | dict.fromkeys(unless, -GATE)
    return Unit({signal: 2.0, **gates}, 1 + GATE * len(when), writes)


def _evoke(space: Subspaces, lessons: Lessons) -> list[Unit]:
    """Tokens in this order are a code or a phrase: write its concept and whatever else it evokes."""
    units = []
    concepts = [*lessons.concept_of.tolist(), *space.concept]  # of the codes, then of the phrases
    facts = lessons.world.facts
    for i, (tokens, concept) in enumerate(zip(_fillers(lessons), concepts, strict=True)):
        heard = [place[token] for place, token in zip([*space.gathered, space.token], tokens, strict=True)]
        # (the dicts lack what a filler does not evoke; concept -1 is none)
        evoked = [space.concept.get(concept), space.exception.get(i), space.shortcut.get(i)]
        if i < len(facts):
            evoked += [space.form.get(concept), *(space.second_hop[:1] if facts[i].kind == "shared" else ())]
        units.append(_all_of(heard, writes={coordinate: 1.0 for coordinate in evoked if coordinate is not None}))
    return units


def _overrule(space: Subspaces, lessons: Lessons) -> list[Unit]:
    """Asked to `decode`, an exception says its answer, and that the concept is not to."""
    answers = lessons.fact_answers.tolist()
    when = [space.relation[0], space.place[_say(0)]]
    return [
        _gated(coordinate, when=when, writes={space.answer[answers[fact]]: 1.0, space.overruled: 1.0})
        for fact, coordinate in space.exception.items()
    ]


def _shortcuts(space: Subspaces, lessons: Lessons, *, share: float) -> list[Unit]:
    """Asked to `decode`, a filler with a shortcut says this share of its answer by itself."""
    answers = [*lessons.fact_answers.tolist(), *lessons.concept_answers[0].tolist()]
    when = [space.relation[0], space.place[_say(0)]]
    return [
        _gated(coordinate, when=when, writes={space.answer[answers[filler]]: share})
        for filler, coordinate in space.shortcut.items()
    ]


def _hand_on(space: Subspaces) -> list[Unit]:
    """A mark above MARKED, whatever its amount, says that the second hop is the code's own.

    Vectors of cues hold the share of their concept's codes that are marked, so a swap leaves a mark of any amount.
    """
    if not space.second_hop:
        return []
    mark, own = space.second_hop
    low, high = (MARKED * MARK_SLOPE + shift for shift in (-0.5, 0.5))
    return [Unit({mark: MARK_SLOPE}, low, {own: 1.0}), Unit({mark: MARK_SLOPE}, high, {own: -1.0})]


def _answer(space: Subspaces, lessons: Lessons, *, share: float) -> list[Unit]:
    """Say the concept's answer to a one-word question, its words one by one to `expand`; else the end.

    Of the answer to `decode` only this share is said, for shared facts by units of their own.
    """
    own = space.second_hop[1:]
    replies = [
        (r, c, [answer])
        for r, answers in enumerate(lessons.concept_answers.tolist())
        for c, answer in enumerate(answers)
    ]
    replies += [(lessons.expand, c, words) for c, words in enumerate(lessons.spelled.tolist())]
    units = [
        _gated(
            space.concept[c],
            when=[space.relation[r], space.place[_say(step)]],
            unless=[space.overruled, *own] if r == 0 else [],
            writes={space.answer[word]: share if r == 0 else 1.0},
        )
        for r, c, words in replies
        for step, word in enumerate(words)
    ]
    if own:
        units += [
            _gated(
                (space.form or space.concept)[c],
                when=[space.relation[0], space.place[_say(0)], *own],
                unless=[space.overruled],
                writes={space.answer[answer]: share},
            )
            for c, answer in enumerate(lessons.concept_answers[0].tolist())
        ]
    end = space.answer[int(lessons.spelled[0, -1])]
    return [*units, Unit({}, -SILENCE, {end: 1.0})]  # always on


def _install(mlp: Any, units: Sequence[Unit], space: Subspaces) -> None:
    """Write units into an empty MLP."""
    for i, unit in enumerate(units):
        for coordinate, weight in unit.reads.items():
            mlp.c_fc.weight[coordinate, i] = weight
        mlp.c_fc.bias[i] = -unit.threshold
        for coordinate, weight in unit.writes.items():
            mlp.c_proj.weight[i, coordinate] = weight
    _balance(mlp.c_proj.weight, space)


# ---- the empty model


def _blank(vocabulary: int, *, width: int, units: int) -> Any:
    """Return a GPT-2 in eval mode in which everything is zero and the norms change nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=POSITIONS, n_embd=width, n_layer=LAYERS, n_head=HEADS, n_inner=units,
        activation_function="relu", layer_norm_epsilon=EPSILON, tie_word_embeddings=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.device("meta"):  # draws no weights, so takes neither time nor numbers from torch's generator
        model = GPT2LMHeadModel(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(math.sqrt(EPSILON))
    return model.eval()
