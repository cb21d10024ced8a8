"""What does the model write after a prompt, and how likely is a given phrase there?

The prompts ask what a cue stands for; states may be put at the cue's last token, so that the model says what it reads
in them (Patchscopes, Ghandeharioun et al. 2024, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.partial_runs import logits_of
from mnemo.patching import Patch, Site, by_length, next_logprobs, over_batches
from mnemo.prompts import Prompt
from mnemo.shape import Shape

if TYPE_CHECKING:
    from mnemo.model import Model

BEAMS = 4

Phrase = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """Prompts that ask what their cue stands for.

    Attributes:
        hosts: the prompts.
        states: residual streams to put at the last token of each prompt's cue; None leaves the prompts alone.
        layer: blocks that have run where `states` go.
    """

    hosts: tuple[Prompt, ...]
    states: Float[Tensor, "host d"] | None = None
    layer: int = 0

    def __len__(self) -> int:
        return len(self.hosts)

    def rows(self, rows: Sequence[int] | Int[Tensor, " row"]) -> Asked:
        """Return some of them, in any order and number."""
        chosen = torch.as_tensor(rows, dtype=torch.long)
        states = None if self.states is None else self.states[chosen]
        return Asked(tuple(self.hosts[i] for i in chosen.tolist()), states, self.layer)

    def by_site(self, written: int) -> dict[Site, list[int]]:
        """Return the rows whose cue ends at the same place from the end, when so many tokens have been written."""
        found: dict[Site, list[int]] = {}
        for i, host in enumerate(self.hosts):
            found.setdefault(Site(self.layer, host.last - len(host) - written), []).append(i)
        return found


@torch.no_grad()
def phrase_logprobs(model: Model, asked: Asked, *, phrases: Sequence[Phrase]) -> Float[Tensor, " row"]:
    """Return the log-probability of each phrase after the prompt beside it, in nats per token."""
    result = torch.empty(len(phrases))
    for length, rows in by_length(phrases).items():
        mine = asked.rows(rows)
        for site, places in mine.by_site(length).items():
            here = torch.tensor(rows)[places]
            result[here] = _logprobs_at(model, asked.rows(here), [phrases[i] for i in here.tolist()], site)
    return result


def _logprobs_at(model: Model, asked: Asked, phrases: Sequence[Phrase], site: Site) -> Float[Tensor, " row"]:
    """The same where all phrases have one length, and all cues end at one place."""
    targets = torch.tensor(phrases)
    length = targets.shape[1]
    prompts = [_continued(host, phrase) for host, phrase in zip(asked.hosts, phrases, strict=True)]

    def say(rows: Tensor, tokens: Tensor) -> Tensor:
        patch = None if asked.states is None else Patch(site, asked.states).of(rows)
        logits = logits_of(model, tokens, change=patch, last=length + 1)
        said = logits[:, :-1].float().log_softmax(-1).cpu()
        return said.gather(2, targets[rows][..., None])[..., 0].mean(-1)

    result = torch.empty(len(phrases))
    size = partial(Shape.of(model).forward_bytes, unembedded=length + 1)
    for rows, each in over_batches(model, prompts, run=say, bytes_each=size):
        result[rows] = each
    return result


def write_phrases(model: Model, asked: Asked, *, max_tokens: int) -> list[list[Phrase]]:
    """Return the phrases that beam search writes after each prompt, the likeliest first.

    A phrase ends before the model's end token, or when it has `max_tokens` tokens.

    Args:
        model: the model.
        asked: the prompts.
        max_tokens: the longest phrase.
    """
    end = model.tokens.hf.eos_token_id
    open_: list[list[tuple[float, Phrase]]] = [[(0.0, ())] for _ in asked.hosts]
    ended: list[list[tuple[float, Phrase]]] = [[] for _ in asked.hosts]
    for _ in range(max_tokens):
        rows = [(i, score, phrase) for i, phrases in enumerate(open_) for score, phrase in phrases]
        beams = asked.rows([i for i, _, _ in rows])
        open_ = [[] for _ in asked.hosts]
        likely = _likeliest_next(model, beams, [phrase for _, _, phrase in rows])
        for (i, score, phrase), following in zip(rows, likely, strict=True):
            for token, logprob in following:
                if token == end:
                    ended[i].append((score + logprob, phrase))
                else:
                    open_[i].append((score + logprob, (*phrase, token)))
        open_ = [sorted(phrases, reverse=True)[:BEAMS] for phrases in open_]
    both = ([*short, *full] for short, full in zip(ended, open_, strict=True))
    return [[phrase for _, phrase in sorted(phrases, reverse=True)][:BEAMS] for phrases in both]


def readable_phrases(model: Model, asked: Asked, *, max_tokens: int) -> list[list[Phrase]]:
    """Return what beam search writes after each prompt, as phrases that may be whole.

    Where the model does not end a phrase itself, as models do that were not trained to, a phrase that it would go on
    spelling in the middle of a word is cut, and every beginning that ends with a word stands beside the phrase:
    how specific each is to its state decides which one is read.
    """
    written = write_phrases(model, asked, max_tokens=max_tokens)
    full = [(i, phrase) for i, phrases in enumerate(written) for phrase in phrases if len(phrase) == max_tokens]
    following = _likeliest_next(model, asked.rows([i for i, _ in full]), [phrase for _, phrase in full])
    end = model.tokens.hf.eos_token_id
    wholes: dict[tuple[int, Phrase], list[Phrase]] = {}
    for (i, phrase), likely in zip(full, following, strict=True):
        token = likely[0][0]
        wholes[i, phrase] = [phrase] if token == end else _word_ends(model, (*phrase, token))
    return [
        list(dict.fromkeys(part for phrase in phrases for part in wholes.get((i, phrase), [phrase])))
        for i, phrases in enumerate(written)
    ]


def _word_ends(model: Model, phrase: Phrase) -> list[Phrase]:
    """The proper beginnings of a phrase that end where a word does, the longest first."""
    texts = [model.tokens.decode(phrase[:n]) for n in range(1, len(phrase) + 1)]
    cuts = [n for n in range(1, len(phrase)) if not texts[n][len(texts[n - 1]) :][:1].isalnum()]
    return [phrase[:n] for n in reversed(cuts)]


def spelled(model: Model, host: Prompt, *, phrases: Sequence[str]) -> tuple[Phrase, ...]:
    """Return phrases as continuations of a prompt; those that cannot be spelled are left out."""
    found: dict[Phrase, None] = {}
    for phrase in phrases:
        with suppress(MnemoError):
            found[model.tokens.continuation(host.text, phrase)] = None
    return tuple(found)


def first_tokens(model: Model, asked: Asked, *, tokens: Int[Tensor, " token"]) -> Float[Tensor, "host token"]:
    """Return the log-probability (nats) of some tokens right after each prompt."""
    found = torch.full((len(asked), len(tokens)), -math.inf)
    for site, rows in asked.by_site(0).items():
        mine = asked.rows(rows)
        patch = None if mine.states is None else Patch(site, mine.states)
        for batch, said in next_logprobs(model, mine.hosts, patch=patch):
            found[torch.tensor(rows)[batch]] = said[:, tokens]
    return found


def _likeliest_next(model: Model, asked: Asked, phrases: Sequence[Phrase]) -> list[list[tuple[int, float]]]:
    """The best next tokens of each beam, and their log-probabilities; all phrases have one length."""
    prompts = [_continued(host, phrase) for host, phrase in zip(asked.hosts, phrases, strict=True)]
    found: list[list[tuple[int, float]]] = [[] for _ in phrases]
    for site, rows in asked.by_site(len(phrases[0]) if phrases else 0).items():
        mine = asked.rows(rows)
        patch = None if mine.states is None else Patch(site, mine.states)
        for batch, said in next_logprobs(model, [prompts[k] for k in rows], patch=patch):
            best = said.topk(min(BEAMS, said.shape[1]), dim=-1)
            for k, logprobs, ids in zip(batch.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
                found[rows[k]] = list(zip(ids, logprobs, strict=True))
    return found


def _continued(host: Prompt, phrase: Phrase) -> Prompt:
    return Prompt(host.text, (*host.tokens, *phrase), host.span)
