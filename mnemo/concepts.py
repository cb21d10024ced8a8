"""What does a state stand for? Reading a concept, a phrase of any length, out of the residual stream.

A state is put into the task's own `verbalise` prompt about another cue, or into a prompt that repeats words (as in
Patchscopes, Ghandeharioun et al. 2024, section 3), and the model says what it reads (`Reader`). Or it is compared with
the states of the lexicon's phrases in their own prompts (`Bank`). Phrases are ranked by how much likelier they are
under this state than under the states of other facts, so a phrase that is always likely wins nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mnemo.errors import MnemoError
from mnemo.facts import Fact, Task
from mnemo.patching import Patch, Site, batches, next_logprobs, patch_hook, read_stream_at_span
from mnemo.prompts import Prompt, render

if TYPE_CHECKING:
    from mnemo.model import Model

BEAMS = 4
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
        ratio: log-likelihood ratio against the states of other facts (their median, since some may stand for the same
            phrase), nats per token: how much this state speaks for the phrase. Probabilities are floored (FLOOR), so
            that a phrase which is nearly impossible everywhere does not win by being a little less impossible here.
    """

    phrase: str
    tokens: tuple[int, ...]
    logprob: float
    ratio: float


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
        others: Float[Tensor, "other d"] | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the phrases it may stand for, the best first.

        Args:
            states: residual streams after `layer` blocks, one for each of `facts`.
            layer: where the states were read and are put.
            facts: whose states they are: a phrase that holds the cue or the answer itself is no concept.
            seed: draws the states that serve as reference.
            others: states to draw those from; None for `states`, of which none is compared with itself.
        """
        ...

    def legibility(self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int) -> float:
        """Return the mean probability of each phrase under the state beside it; NaN where none can be spelled."""
        ...


@dataclass(frozen=True)
class Reader:
    """Reads states through the `verbalise` prompt of one cue.

    Attributes:
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
    lexicon: tuple[tuple[int, ...], ...] = ()
    cue: str = ""
    spare: Reader | None = None

    @classmethod
    def by_identity(cls, model: Model, *, max_tokens: int, lexicon: Sequence[str] = ()) -> Reader:
        """Make a reader for tasks that cannot ask what a cue stands for: its prompt repeats words.

        Raises:
            MnemoError: the tokenizer cannot spell that prompt.
        """
        host = render(IDENTITY, BLANK, model.tokens)
        return cls(model, host, max_tokens, _spelled(model, host, lexicon))

    @classmethod
    def for_task(
        cls, model: Model, task: Task, *, cue: str, spare_cue: str | None = None, lexicon: Sequence[str] = ()
    ) -> Reader:
        """Make the reader of a task, with the prompt of `cue` as host; phrases it cannot spell are left out.

        Facts whose own cue is `cue` are read in the prompt of `spare_cue` instead, if there is one.

        Raises:
            MnemoError: the task has no `verbalise` template.
        """
        if task.verbalise is None:
            raise MnemoError("the task has no `verbalise` template: add one, such as 'expand {cue} is'")
        with task.blaming("verbalise"):
            host = render(task.verbalise, cue, model.tokens)
        spare = None if spare_cue is None else cls.for_task(model, task, cue=spare_cue, lexicon=lexicon)
        return cls(model, host, task.max_concept_tokens, _spelled(model, host, lexicon), cue, spare)

    def legibility(self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int) -> float:
        """Return the mean probability per token of each phrase under the state beside it; NaN for no phrase."""
        spelled = [_spelled(self.model, self.host, [phrase]) for phrase in phrases]
        rows = [i for i, ids in enumerate(spelled) if ids]
        if not rows:
            return float("nan")
        return self.logprob([spelled[i][0] for i in rows], states[rows], layer=layer).exp().mean().item()

    def read(
        self,
        states: Float[Tensor, "fact d"],
        *,
        layer: int,
        facts: Sequence[Fact],
        seed: int = 0,
        others: Float[Tensor, "other d"] | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the phrases it may stand for, the best first (see `ReadsConcepts`)."""
        compared = states if others is None else others
        references = _references(compared, seed)
        itself = [i if others is None else -1 for i in range(len(states))]
        readers = [self.spare if self.spare is not None and fact.cue == self.cue else self for fact in facts]
        found: list[list[Reading]] = [[] for _ in facts]
        for reader in (self, self.spare):
            rows = [i for i, chosen in enumerate(readers) if chosen is reader]
            if reader is not None and rows:
                mine = reader._read(
                    states[rows],
                    [facts[i] for i in rows],
                    compared[references],
                    torch.stack([references != itself[i] for i in rows]),
                    layer=layer,
                )
                for i, readings in zip(rows, mine, strict=True):
                    found[i] = readings
        return found

    def _read(
        self,
        mine: Float[Tensor, "fact d"],
        facts: Sequence[Fact],
        references: Float[Tensor, "reference d"],
        another: Bool[Tensor, "fact reference"],
        *,
        layer: int,
    ) -> list[list[Reading]]:
        """Read the states of `facts` in this host, against the references that are another fact's."""
        hosts = [self.host] * len(mine)
        # (The empty phrase, written where the model says nothing, is no reading: `_allowed` leaves it out.)
        written = write_phrases(self.model, hosts, max_tokens=self.max_tokens, layer=layer, states=mine)
        listed = self._likely_in_lexicon(mine, layer=layer)
        candidates = [
            self._allowed(dict.fromkeys([*said, *more]), fact)
            for said, more, fact in zip(written, listed, facts, strict=True)
        ]
        bank = list(dict.fromkeys(phrase for phrases in candidates for phrase in phrases))
        if not bank:
            return [[] for _ in facts]
        rank = {phrase: i for i, phrase in enumerate(bank)}

        pairs = [(r, p) for r in range(len(references)) for p in range(len(bank))]
        under = self.logprob([bank[p] for _, p in pairs], references[[r for r, _ in pairs]], layer=layer)
        under = under.view(len(references), len(bank))

        scored = [(k, rank[phrase]) for k, phrases in enumerate(candidates) for phrase in phrases]
        own = self.logprob([bank[p] for _, p in scored], mine[[k for k, _ in scored]], layer=layer)
        ranked: list[list[Reading]] = [[] for _ in facts]
        for (k, p), logprob in zip(scored, own.tolist(), strict=True):
            ratio = _ratio(logprob, under[another[k], p])
            ranked[k].append(Reading(self._text(bank[p]), bank[p], logprob, ratio))
        return [sorted(_whole(readings), key=lambda r: -r.ratio) for readings in ranked]

    @torch.no_grad()
    def logprob(
        self, phrases: Sequence[tuple[int, ...]], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return the log-probability of each phrase under each state, in nats per token."""
        result = torch.empty(len(phrases))
        by_length: dict[int, list[int]] = {}
        for i, phrase in enumerate(phrases):
            by_length.setdefault(len(phrase), []).append(i)
        for length, rows in by_length.items():
            prompts = [_continued(self.host, phrases[i]) for i in rows]
            targets = torch.tensor([phrases[i] for i in rows])
            mine = states[rows]
            for chosen, tokens in batches(self.model, prompts):
                hook = patch_hook(self.model, _site(self.host, layer, length), mine[chosen])
                logits = self.model.bridge.run_with_hooks(tokens, fwd_hooks=[hook])
                said = logits[:, -length - 1 : -1].float().log_softmax(-1).cpu()
                each = said.gather(2, targets[chosen][..., None])[..., 0]
                result[torch.tensor(rows)[chosen]] = each.mean(-1)
        return result

    def _likely_in_lexicon(self, states: Float[Tensor, "fact d"], *, layer: int) -> list[list[tuple[int, ...]]]:
        """The phrases of the lexicon whose first token is likeliest under each state."""
        if not self.lexicon:
            return [[] for _ in states]
        first = torch.tensor([phrase[0] for phrase in self.lexicon])
        patch = Patch(_site(self.host, layer, 0), states)
        hosts = [self.host] * len(states)
        likely: list[list[tuple[int, ...]]] = [[] for _ in hosts]
        for rows, said in next_logprobs(self.model, hosts, patch=patch):
            best = said[:, first].topk(min(LEXICON_CANDIDATES, len(first)), dim=1).indices
            for i, chosen in zip(rows.tolist(), best.tolist(), strict=True):
                likely[i] = [self.lexicon[j] for j in chosen]
        return likely

    def _allowed(self, phrases: dict[tuple[int, ...], None], fact: Fact) -> list[tuple[int, ...]]:
        """Leave out what says the cue or the answer instead of a concept."""
        return [phrase for phrase in phrases if _is_a_concept(self._text(phrase), fact)]

    def _text(self, phrase: tuple[int, ...]) -> str:
        return self.model.tokens.decode(phrase).strip()


@dataclass(frozen=True)
class Bank:
    """Reads states by comparison with those of known phrases, each in its own `concept_recall` prompt.

    A phrase is as likely as the softmax over the bank of cosine * sqrt(d) has it, cosines being between states less
    their mean over facts and phrases less their mean over the bank: directions that have nothing to do with each other
    get cosines of standard deviation 1 / sqrt(d). What cues have in common and phrases have not is thus left out.

    Attributes:
        model: the model.
        phrases: what may be read.
        prompts: `concept_recall` about each.
    """

    model: Model
    phrases: tuple[str, ...]
    prompts: tuple[Prompt, ...]

    def read(
        self,
        states: Float[Tensor, "fact d"],
        *,
        layer: int,
        facts: Sequence[Fact],
        seed: int = 0,
        others: Float[Tensor, "other d"] | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the phrases it may stand for, the best first (see `ReadsConcepts`)."""
        compared = states if others is None else others
        references = _references(compared, seed)
        mean = compared.mean(0)
        both = self._logprobs(torch.cat([states, compared[references]]) - mean, layer=layer)
        own, under = both.split([len(states), len(references)])
        ranked: list[list[Reading]] = []
        for i, (fact, row) in enumerate(zip(facts, own, strict=True)):
            against = under if others is not None else under[references != i]
            likely = row.topk(min(LEXICON_CANDIDATES + 1, len(row)))
            mine = [
                Reading(self.phrases[p], (), logprob, _ratio(logprob, against[:, p]))
                for p, logprob in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
                if _is_a_concept(self.phrases[p], fact)
            ]
            ranked.append(sorted(mine, key=lambda r: -r.ratio))
        return ranked

    def legibility(self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int) -> float:
        """Return the mean probability of each phrase under the state beside it."""
        rank = {phrase: i for i, phrase in enumerate(self.phrases)}
        said = self._logprobs(states - states.mean(0), layer=layer)
        return said[torch.arange(len(said)), [rank[phrase] for phrase in phrases]].exp().mean().item()

    def _logprobs(self, states: Float[Tensor, "row d"], *, layer: int) -> Float[Tensor, "row phrase"]:
        known = read_stream_at_span(self.model, self.prompts, layer=layer)
        cosines = normalize(states, dim=-1) @ normalize(known - known.mean(0), dim=-1).T
        return (cosines * math.sqrt(states.shape[1])).log_softmax(-1)


def chance(
    reader: ReadsConcepts,
    states: Float[Tensor, "fact d"],
    readings: Sequence[Sequence[Reading]],
    *,
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
    found = reader.read(shuffled, layer=layer, facts=whose, seed=seed, others=states)
    null = torch.tensor([best[0].ratio if best else -math.inf for best in found])
    return [
        (1 + int((null >= best[0].ratio).sum())) / (1 + NULL_STATES) if best else 1.0 for best in readings
    ]  # (Phipson and Smyth 2010: the data themselves are one of the permutations)


def _references(states: Float[Tensor, "fact d"], seed: int) -> Int[Tensor, " reference"]:
    return torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))[:REFERENCES]


def _ratio(logprob: float, others: Float[Tensor, " reference"]) -> float:
    other = others.exp().median().item() if len(others) else 1.0
    return math.log((math.exp(logprob) + FLOOR) / (other + FLOOR))


def _whole(readings: Sequence[Reading]) -> list[Reading]:
    """Leave out what is but the beginning of another phrase: where the model, having said it, rather says the rest.

    ("value added" has a better mean per token than "value added tax" whenever *tax* is the hardest word.)
    """

    def goes_on(part: Reading, phrase: Reading) -> bool:
        n, m = len(part.tokens), len(phrase.tokens)
        return n < m and phrase.tokens[:n] == part.tokens and m * phrase.logprob - n * part.logprob > math.log(0.5)

    return [part for part in readings if not any(goes_on(part, phrase) for phrase in readings)]


def _is_a_concept(text: str, fact: Fact) -> bool:
    """Whether a phrase says anything but the cue or the answer."""
    said = text.casefold()
    return bool(said) and fact.cue.strip().casefold() not in said and said != fact.answer.strip().casefold()


def _spelled(model: Model, host: Prompt, phrases: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The phrases as continuations of a prompt; those that cannot be spelled are left out."""
    spelled: dict[tuple[int, ...], None] = {}
    for phrase in phrases:
        with suppress(MnemoError):
            spelled[model.tokens.continuation(host.text, phrase)] = None
    return tuple(spelled)


def write_phrases(
    model: Model,
    hosts: Sequence[Prompt],
    *,
    max_tokens: int,
    layer: int = 0,
    states: Float[Tensor, "host d"] | None = None,
) -> list[list[tuple[int, ...]]]:
    """Return the phrases that beam search writes after each prompt, the likeliest first.

    A phrase ends before the model's end token, or when it has `max_tokens` tokens.

    Args:
        model: the model.
        hosts: prompts that ask what their cue stands for.
        max_tokens: the longest phrase.
        layer: where `states` go.
        states: residual streams to put at the last token of each prompt's cue; None leaves the prompts alone.
    """
    end = model.tokens.hf.eos_token_id
    open_: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in hosts]
    ended: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in hosts]
    for _ in range(max_tokens):
        rows = [(i, score, phrase) for i, phrases in enumerate(open_) for score, phrase in phrases]
        open_ = [[] for _ in hosts]
        for (i, score, phrase), likely in zip(rows, _likeliest_next(model, hosts, rows, layer, states), strict=True):
            for token, logprob in likely:
                if token == end:
                    ended[i].append((score + logprob, phrase))
                else:
                    open_[i].append((score + logprob, (*phrase, token)))
        open_ = [sorted(phrases, reverse=True)[:BEAMS] for phrases in open_]
    both = ([*short, *full] for short, full in zip(ended, open_, strict=True))
    return [[phrase for _, phrase in sorted(phrases, reverse=True)][:BEAMS] for phrases in both]


def _likeliest_next(
    model: Model,
    hosts: Sequence[Prompt],
    rows: Sequence[tuple[int, float, tuple[int, ...]]],
    layer: int,
    states: Float[Tensor, "host d"] | None,
) -> list[list[tuple[int, float]]]:
    """The best next tokens of each beam (host, score, phrase so far); all phrases have one length."""
    prompts = [_continued(hosts[i], phrase) for i, _, phrase in rows]
    length = len(rows[0][2]) if rows else 0
    by_site: dict[Site, list[int]] = {}
    for k, (i, _, _) in enumerate(rows):
        by_site.setdefault(_site(hosts[i], layer, length), []).append(k)
    found: list[list[tuple[int, float]]] = [[] for _ in rows]
    for site, mine in by_site.items():
        patch = None if states is None else Patch(site, states[[rows[k][0] for k in mine]])
        for batch, said in next_logprobs(model, [prompts[k] for k in mine], patch=patch):
            best = said.topk(min(BEAMS, said.shape[1]), dim=-1)
            for k, logprobs, ids in zip(batch.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
                found[mine[k]] = list(zip(ids, logprobs, strict=True))
    return found


def _continued(host: Prompt, phrase: tuple[int, ...]) -> Prompt:
    return Prompt(host.text, (*host.tokens, *phrase), host.span)


def _site(host: Prompt, layer: int, length: int) -> Site:
    """The last token of the host's cue when `length` tokens follow the prompt."""
    return Site(layer, host.last - len(host.tokens) - length)
