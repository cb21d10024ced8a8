"""What does a state stand for? Reading a concept, a phrase of any length, out of the residual stream.

A state is put into the task's own `verbalise` prompt about another cue, or into a prompt that repeats words (as in
Patchscopes, Ghandeharioun et al. 2024, section 3), and the model says what it reads (`PromptReader`). Or it is
compared with the states of the lexicon's phrases in their own prompts (`Bank`). Phrases are ranked by how much likelier
they are under this state than under the states of other facts, so a phrase that is always likely wins nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mnemo.errors import MnemoError
from mnemo.facts import Fact, Task
from mnemo.patching import read_stream_at_span
from mnemo.phrases import Asked, Phrase, first_tokens, phrase_logprobs, readable_phrases, spelled
from mnemo.prompts import Prompt, render

if TYPE_CHECKING:
    from mnemo.model import Model

REFERENCES = 16  # states of other facts that a phrase is compared under
FLOOR = 0.01  # probability per token added to both sides of the ratio
LEXICON_CANDIDATES = 4  # lexicon phrases scored in full for each state
NULL_STATES = 99  # read to see how clear a reading comes by chance
# Repeats what stands where the state is put (Ghandeharioun et al. 2024, section 4.1).
IDENTITY, BLANK = "cat -> cat; 1135 -> 1135; hello -> hello; {cue} ->", "?"


@dataclass(frozen=True)
class Reading:
    """A phrase read from a state.

    Attributes:
        phrase: the text.
        tokens: its ids as a continuation of the `verbalise` prompt.
        logprob: log-probability under this state, nats per token.
        ratio: log-likelihood ratio against the states of facts with other answers (their median, since some may stand
            for the same phrase), nats per token: how much this state speaks for the phrase. Probabilities are floored
            (FLOOR), so that a phrase which is nearly impossible everywhere does not win by being a little less
            impossible here.
    """

    phrase: str
    tokens: tuple[int, ...]
    logprob: float
    ratio: float


@dataclass(frozen=True)
class Others:
    """States that readings are compared with, and the facts that they belong to."""

    states: Float[Tensor, "other d"]
    facts: Sequence[Fact]


@runtime_checkable
class ReadsConcepts(Protocol):
    """What can say which phrases a state stands for."""

    def read(
        self,
        states: Float[Tensor, "fact d"],
        *,
        layer: int,
        facts: Sequence[Fact],
        seed: int = 0,
        others: Others | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the phrases it may stand for, the best first.

        Args:
            states: residual streams after `layer` blocks, one for each of `facts`.
            layer: where the states were read and are put.
            facts: whose states they are: a phrase that holds the cue or the answer itself is no concept.
            seed: draws the states that serve as reference.
            others: what to draw those from; None for `states`. No fact is compared with itself.
        """
        ...

    def probabilities(
        self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return how probable each phrase is under the state beside it; NaN where it cannot be spelled."""
        ...


@dataclass(frozen=True)
class PromptReader:
    """Reads states through the `verbalise` prompt of one cue.

    Attributes:
        model: the model whose states are read, and which reads them.
        host: the prompt that states are put into, at the last token of its cue.
        max_tokens: the longest phrase.
        lexicon: phrases to consider beside those that the model writes, as continuations of the prompt.
        cue: the cue in the host.
        spare: reads the states of facts with that very cue, for which the host's own tokens would speak too; None where
            no other cue is known.
    """

    model: Model
    host: Prompt
    max_tokens: int
    lexicon: tuple[Phrase, ...] = ()
    cue: str = ""
    spare: PromptReader | None = None

    @classmethod
    def by_identity(cls, model: Model, *, max_tokens: int, lexicon: Sequence[str] = ()) -> PromptReader:
        """Make a reader for tasks that cannot ask what a cue stands for: its prompt repeats words.

        Raises:
            MnemoError: the tokenizer cannot spell that prompt.
        """
        host = render(IDENTITY, BLANK, tokenizer=model.tokens)
        return cls(model, host, max_tokens, spelled(model, host, phrases=lexicon))

    @classmethod
    def for_task(
        cls, model: Model, task: Task, *, cue: str, spare_cue: str | None = None, lexicon: Sequence[str] = ()
    ) -> PromptReader:
        """Make the reader of a task, with the prompt of `cue` as host; phrases it cannot spell are left out.

        Facts whose own cue is `cue` are read in the prompt of `spare_cue` instead, if there is one.

        Raises:
            MnemoError: the task has no `verbalise` template.
        """
        if task.verbalise is None:
            raise MnemoError("the task has no `verbalise` template: add one, such as 'expand {cue} is'")
        with task.blaming("verbalise"):
            host = render(task.verbalise, cue, tokenizer=model.tokens)
        spare = None if spare_cue is None else cls.for_task(model, task, cue=spare_cue, lexicon=lexicon)
        return cls(model, host, task.max_concept_tokens, spelled(model, host, phrases=lexicon), cue, spare)

    def probabilities(
        self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return the probability per token of each phrase under the state beside it (see `ReadsConcepts`)."""
        ids = {phrase: spelled(self.model, self.host, phrases=[phrase]) for phrase in dict.fromkeys(phrases)}
        rows = [i for i, phrase in enumerate(phrases) if ids[phrase]]
        found = torch.full((len(phrases),), torch.nan)
        found[rows] = self.logprob([ids[phrases[i]][0] for i in rows], states[rows], layer=layer).exp()
        return found

    def read(
        self,
        states: Float[Tensor, "fact d"],
        *,
        layer: int,
        facts: Sequence[Fact],
        seed: int = 0,
        others: Others | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the phrases it may stand for, the best first (see `ReadsConcepts`)."""
        compared = Others(states, facts) if others is None else others
        references, another = draw_references(facts, compared.facts, seed=seed)
        readers = [self.spare if self.spare is not None and fact.cue == self.cue else self for fact in facts]
        found: list[list[Reading]] = [[] for _ in facts]
        for reader in (self, self.spare):
            rows = [i for i, chosen in enumerate(readers) if chosen is reader]
            if reader is not None and rows:
                mine = read_phrases(
                    self.model,
                    reader._asked(states[rows], layer=layer),
                    facts=[facts[i] for i in rows],
                    against=reader._asked(compared.states[references], layer=layer),
                    another=another[rows],
                    written=reader._written(states[rows], layer=layer),
                    lexicon=reader.lexicon,
                )
                for i, readings in zip(rows, mine, strict=True):
                    found[i] = readings
        return found

    def logprob(
        self, phrases: Sequence[Phrase], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return the log-probability of each phrase under each state, in nats per token."""
        return phrase_logprobs(self.model, self._asked(states, layer=layer), phrases=phrases)

    def _written(self, states: Float[Tensor, "row d"], *, layer: int) -> list[list[Phrase]]:
        return readable_phrases(self.model, self._asked(states, layer=layer), max_tokens=self.max_tokens)

    def _asked(self, states: Float[Tensor, "row d"], *, layer: int) -> Asked:
        return Asked((self.host,) * len(states), states, layer)


def read_cues(
    model: Model, task: Task, *, facts: Sequence[Fact], seed: int = 0, lexicon: Sequence[str] = ()
) -> list[list[Reading]]:
    """Return the phrases that each cue may stand for, asked with `verbalise` and nothing patched, the best first.

    They are ranked as those read from states are, so that what the model says of any cue wins nothing. A cue of which
    the model would rather say nothing stands for none.

    Raises:
        MnemoError: the task has no `verbalise` template, or one that cannot be used.
    """
    if task.verbalise is None:
        raise MnemoError("the task has no `verbalise` template: add one, such as 'expand {cue} is'")
    with task.blaming("verbalise"):
        asked = Asked(tuple(render(task.verbalise, fact.cue, tokenizer=model.tokens) for fact in facts))
    references, another = draw_references(facts, facts, seed=seed)
    written = readable_phrases(model, asked, max_tokens=task.max_concept_tokens)
    found = read_phrases(
        model,
        asked,
        facts=facts,
        against=asked.rows(references),
        another=another,
        written=written,
        lexicon=spelled(model, asked.hosts[0], phrases=lexicon) if facts else (),
    )
    return [[] if said[:1] == [()] else readings for said, readings in zip(written, found, strict=True)]


def read_phrases(
    model: Model,
    asked: Asked,
    *,
    facts: Sequence[Fact],
    against: Asked,
    another: Bool[Tensor, "fact reference"],
    written: Sequence[Sequence[Phrase]],
    lexicon: Sequence[Phrase],
) -> list[list[Reading]]:
    """Rank what the model writes after each prompt, and phrases of a lexicon, by their likelihood ratios.

    Args:
        model: the model.
        asked: a prompt for each fact, with its state where that is what is read.
        facts: the facts: neither cue nor answer is read as a concept.
        against: the same for the references.
        another: which references each fact is compared with.
        written: what the model writes after each prompt.
        lexicon: phrases to consider beside those that the model writes.
    """
    listed = _likely_in_lexicon(model, asked, lexicon)
    # (The empty phrase is no reading: `_is_a_concept` leaves it out.)
    candidates = [
        [phrase for phrase in dict.fromkeys([*said, *more]) if _is_a_concept(_text(model, phrase), fact)]
        for said, more, fact in zip(written, listed, facts, strict=True)
    ]
    bank = list(dict.fromkeys(phrase for phrases in candidates for phrase in phrases))
    if not bank:
        return [[] for _ in facts]
    rank = {phrase: i for i, phrase in enumerate(bank)}
    pairs = [(r, p) for r in range(len(against)) for p in range(len(bank))]
    under = phrase_logprobs(model, against.rows([r for r, _ in pairs]), phrases=[bank[p] for _, p in pairs])
    under = under.view(len(against), len(bank))
    scored = [(k, rank[phrase]) for k, phrases in enumerate(candidates) for phrase in phrases]
    own = phrase_logprobs(model, asked.rows([k for k, _ in scored]), phrases=[bank[p] for _, p in scored])
    ranked: list[list[Reading]] = [[] for _ in facts]
    for (k, p), logprob in zip(scored, own.tolist(), strict=True):
        ratio = _ratio(logprob, under[another[k], p])
        ranked[k].append(Reading(_text(model, bank[p]), bank[p], logprob, ratio))
    return [sorted(_whole(readings, lexicon), key=lambda r: -r.ratio) for readings in ranked]


def _likely_in_lexicon(model: Model, asked: Asked, lexicon: Sequence[Phrase]) -> list[list[Phrase]]:
    """The phrases of the lexicon whose first token is likeliest after each prompt."""
    if not lexicon:
        return [[] for _ in range(len(asked))]
    said = first_tokens(model, asked, tokens=torch.tensor([phrase[0] for phrase in lexicon]))
    best = said.topk(min(LEXICON_CANDIDATES, len(lexicon)), dim=1).indices
    return [[lexicon[j] for j in chosen] for chosen in best.tolist()]


def _text(model: Model, phrase: Phrase) -> str:
    return model.tokens.decode(phrase).strip()


@dataclass(frozen=True)
class Bank:
    """Reads states by comparison with those of known phrases, each in its own `concept_recall` prompt.

    A phrase is as likely as the softmax over the bank of cosine * sqrt(d) has it, cosines being between states less
    their mean over facts and phrases less their mean over the bank: directions that have nothing to do with each other
    get cosines of standard deviation 1 / sqrt(d). What cues have in common and phrases have not is thus left out.

    Attributes:
        model: the model; its weights must not change while the bank is in use.
        phrases: what may be read.
        prompts: `concept_recall` about each.
    """

    model: Model
    phrases: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    _known: dict[int, Float[Tensor, "phrase d"]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read(
        self,
        states: Float[Tensor, "fact d"],
        *,
        layer: int,
        facts: Sequence[Fact],
        seed: int = 0,
        others: Others | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the phrases it may stand for, the best first (see `ReadsConcepts`)."""
        compared = Others(states, facts) if others is None else others
        references, another = draw_references(facts, compared.facts, seed=seed)
        mean = compared.states.mean(0)
        both = self._logprobs(torch.cat([states, compared.states[references]]) - mean, layer=layer)
        own, under = both.split([len(states), len(references)])
        return rank_known(self.phrases, own, under=under, facts=facts, another=another, most=LEXICON_CANDIDATES + 1)

    def probabilities(
        self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return how probable each phrase is under the state beside it, less what all these states have in common."""
        rank = {phrase: i for i, phrase in enumerate(self.phrases)}
        said = self._logprobs(states - states.mean(0), layer=layer)
        return said[torch.arange(len(said)), [rank[phrase] for phrase in phrases]].exp()

    def _logprobs(self, states: Float[Tensor, "row d"], *, layer: int) -> Float[Tensor, "row phrase"]:
        if layer not in self._known:  # lexicons are long, and sites of one layer many
            self._known[layer] = read_stream_at_span(self.model, self.prompts, layer=layer)
        known = self._known[layer]
        cosines = normalize(states, dim=-1) @ normalize(known - known.mean(0), dim=-1).T
        return (cosines * math.sqrt(states.shape[1])).log_softmax(-1)


def chance(
    reader: ReadsConcepts,
    states: Float[Tensor, "fact d"],
    *,
    readings: Sequence[Sequence[Reading]],
    layer: int,
    facts: Sequence[Fact],
    seed: int,
) -> list[float]:
    """Return a permutation p-value for each fact's best reading: how often is chance read as clearly?

    The null states have every coordinate, in a random basis, drawn from another fact: each coordinate is distributed
    as before, and what coordinates say together is gone. (In the model's own basis a single coordinate may hold a
    concept.) They are read in the same way, best phrase included, so that having chosen the best of many phrases is
    counted. 1 where nothing was read.
    """
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(states.shape[1], states.shape[1], generator=draw)).Q
    rows = torch.randint(len(states), (NULL_STATES, states.shape[1]), generator=draw)
    shuffled = (states @ basis).gather(0, rows) @ basis.T
    whose = [facts[i % len(facts)] for i in range(NULL_STATES)]
    found = reader.read(shuffled, layer=layer, facts=whose, seed=seed, others=Others(states, facts))
    null = torch.tensor([best[0].ratio if best else -math.inf for best in found])
    return [
        (1 + int((null >= best[0].ratio).sum())) / (1 + NULL_STATES) if best else 1.0 for best in readings
    ]  # (Phipson and Smyth 2010: the data themselves are one of the permutations)


def draw_references(
    facts: Sequence[Fact], others: Sequence[Fact], *, seed: int
) -> tuple[Int[Tensor, " reference"], Bool[Tensor, "fact reference"]]:
    """Draw up to REFERENCES of some facts, and say which of them each fact is compared with.

    They are those with another answer, as one with the fact's own may share its concept; where all have its answer,
    those that are another fact.

    Args:
        facts: what is compared.
        others: what to draw from; the facts themselves may be among them, and are known by their ids.
        seed: decides the draw.
    """
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:REFERENCES]
    chosen = [others[r] for r in drawn.tolist()]

    def differ(column: str) -> Bool[Tensor, "fact reference"]:
        pairs = [[getattr(other, column) != getattr(fact, column) for other in chosen] for fact in facts]
        return torch.tensor(pairs, dtype=torch.bool).view(len(facts), len(chosen))

    unlike = differ("answer")
    return drawn, torch.where(unlike.any(1, keepdim=True), unlike, differ("fact_id"))


def rank_known(
    phrases: tuple[str, ...],
    own: Float[Tensor, "fact phrase"],
    *,
    under: Float[Tensor, "reference phrase"],
    facts: Sequence[Fact],
    another: Bool[Tensor, "fact reference"],
    most: int,
) -> list[list[Reading]]:
    """Return, for each fact, the likeliest of some phrases that may be concepts, the largest likelihood ratio first.

    Args:
        phrases: what may be read.
        own: their log-probabilities (nats per token) under the state of each fact.
        under: the same under each reference.
        facts: the facts: neither cue nor answer is read as a concept.
        another: which references each fact is compared with.
        most: how many phrases are ranked for each fact.
    """
    ranked: list[list[Reading]] = []
    for fact, row, against in zip(facts, own, another, strict=True):
        likely = row.topk(min(most, len(row)))
        mine = [
            Reading(phrases[p], (), logprob, _ratio(logprob, under[against, p]))
            for p, logprob in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
            if _is_a_concept(phrases[p], fact)
        ]
        ranked.append(sorted(mine, key=lambda r: -r.ratio))
    return ranked


def _ratio(logprob: float, others: Float[Tensor, " reference"]) -> float:
    other = others.exp().median().item() if len(others) else 1.0
    return math.log((math.exp(logprob) + FLOOR) / (other + FLOOR))


def _whole(readings: Sequence[Reading], lexicon: Sequence[Phrase]) -> list[Reading]:
    """Leave out what is but the beginning of another phrase: where the model, having said it, rather says the rest.

    ("value added" has a better mean per token than "value added tax" whenever *tax* is the hardest word.) A phrase of
    the lexicon is whole.
    """

    def goes_on(part: Reading, phrase: Reading) -> bool:
        n, m = len(part.tokens), len(phrase.tokens)
        return n < m and phrase.tokens[:n] == part.tokens and m * phrase.logprob - n * part.logprob > math.log(0.5)

    whole = set(lexicon)
    return [part for part in readings if part.tokens in whole or not any(goes_on(part, phrase) for phrase in readings)]


def _is_a_concept(text: str, fact: Fact) -> bool:
    """Whether a phrase says something, and neither the cue nor the answer as words of its own."""
    said = f" {text.casefold()} "
    return bool(text) and not any(f" {own.strip().casefold()} " in said for own in (fact.cue, fact.answer))
