"""Which other fact is each fact compared with? One that differs in the cue and the answer alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mnemo.errors import InputError
from mnemo.facts import Fact, FactSet, Task
from mnemo.prompts import AnswerToken, Prompt, question_and_answer
from mnemo.tokens import PromptTokenizer, shown


@dataclass(frozen=True)
class Contrast:
    """A fact's prompt paired with another fact's, equal but for the tokens of the cue and the answer.

    Attributes:
        fact: the fact that is explained.
        corrupt_fact: the fact it is compared with.
        clean: recall prompt of `fact`.
        corrupt: recall prompt of `corrupt_fact`, with as many tokens and the cue at the same positions.
        answer: token of the fact's answer.
        contrast_answer: token of the other fact's answer, never the same one.
    """

    fact: Fact
    corrupt_fact: Fact
    clean: Prompt
    corrupt: Prompt
    answer: AnswerToken
    contrast_answer: AnswerToken


def make_contrasts(task: Task, facts: FactSet, *, tokenizer: PromptTokenizer, seed: int = 0) -> dict[str, Contrast]:
    """Pair each fact with another whose prompt differs in the cue alone and whose answer differs.

    The partner is drawn by rendezvous hashing (Thaler and Ravishankar 1998): every pair of facts gets a
    random number from the seed and the two ids, and the smallest wins. So each possible partner is equally
    likely, and the choice depends neither on the order of the facts nor on facts that were not chosen.

    Args:
        task: whose `recall` template is used.
        facts: facts to pair with each other.
        tokenizer: how prompts and answers are spelled.
        seed: another seed draws other partners.

    Returns:
        Contrasts by fact_id, in the order of `facts`; a fact without any possible partner is left out.

    Raises:
        InputError: a prompt or an answer cannot be spelled (with the place of the fact or template), or no
            fact has a partner: then it says whether the answers or the lengths of the prompts are why.
    """
    asked = {fact.fact_id: question_and_answer(task, fact, facts=facts, tokenizer=tokenizer) for fact in facts}
    rivals: dict[tuple[tuple[int, ...], int, tuple[int, ...]], list[str]] = {}
    for fact_id, (prompt, _) in asked.items():
        start, end = prompt.span
        frame = (prompt.tokens[:start], end - start, prompt.tokens[end:])
        rivals.setdefault(frame, []).append(fact_id)

    partner: dict[str, str] = {}
    for group in rivals.values():
        partner |= _draw_partners(group, asked, seed=seed)
    if not partner:
        raise _why_no_contrast(facts, asked)
    return {
        fact.fact_id: Contrast(
            fact=fact,
            corrupt_fact=facts[other],
            clean=asked[fact.fact_id][0],
            corrupt=asked[other][0],
            answer=asked[fact.fact_id][1],
            contrast_answer=asked[other][1],
        )
        for fact in facts
        if (other := partner.get(fact.fact_id)) is not None
    }


def _draw_partners(group: list[str], asked: dict[str, tuple[Prompt, AnswerToken]], *, seed: int) -> dict[str, str]:
    """Partners among facts whose prompts differ in the cue alone, for those that have any."""
    answers = np.array([asked[fact_id][1].id for fact_id in group])
    # Different texts may have the same tokens (a tokenizer that lowers case): then there is no contrast.
    spelling: dict[tuple[int, ...], int] = {}
    prompts = np.array([spelling.setdefault(asked[i][0].tokens, len(spelling)) for i in group])
    corrupt = np.array([_hash(seed, "corrupt", fact_id) for fact_id in group], dtype=np.uint64)
    partner = {}
    for i, fact_id in enumerate(group):
        allowed = np.flatnonzero((answers != answers[i]) & (prompts != prompts[i]))
        if allowed.size:
            draws = _mix(corrupt[allowed] ^ np.uint64(_hash(seed, "clean", fact_id)))
            partner[fact_id] = group[allowed[draws.argmin()]]
    return partner


def _hash(seed: int, role: str, fact_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{role}\0{fact_id}".encode(), digest_size=8).digest(), "little")


def _mix(bits: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): every output bit hangs on every input bit."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _why_no_contrast(facts: FactSet, asked: dict[str, tuple[Prompt, AnswerToken]]) -> InputError:
    lengths = {len(prompt) for prompt, _ in asked.values()}
    answers = {answer.id: answer.text for _, answer in asked.values()}
    texts = {fact.answer for fact in facts}
    column = "answer"
    if len(facts) < 2:
        why, column = f"{len(facts)} facts make no contrast: give at least two with different answers", None
    elif len(texts) == 1:
        why = f"no contrast is possible: all {len(facts)} answers are {shown(texts.pop())}; add other answers"
    elif len(answers) == 1:
        why = (
            f"no contrast is possible: all {len(texts)} answers begin with the one token "
            f"{next(iter(answers.values()))!r}; use answers whose first tokens differ"
        )
    elif len(lengths) == len(facts):
        column = "cue"
        why = (
            f"no contrast is possible: no two prompts have equal length (they have {min(lengths)} to "
            f"{max(lengths)} tokens); add facts whose cues take as many tokens as another's"
        )
    else:
        column = "cue"
        why = (
            "no contrast is possible: prompts of equal length, with the cue at the same tokens, have equal "
            "answers; add facts with other answers whose cues take as many tokens"
        )
    return InputError(why, file=facts.file, column=column)
