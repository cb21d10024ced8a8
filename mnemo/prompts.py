"""Templates filled in and spelled: where the cue stands, and which token the answer is measured by."""

from __future__ import annotations

from dataclasses import dataclass

from mnemo.errors import MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.tokens import PromptTokenizer, UnspellableError, shown


class TemplateError(MnemoError):
    """The template itself cannot be used, whatever is put into it."""


@dataclass(frozen=True)
class Prompt:
    """A rendered template.

    Attributes:
        text: what the prompt says.
        tokens: its token ids, BOS included where prompts have one.
        span: half-open token positions of the cue or concept that was put in.
    """

    text: str
    tokens: tuple[int, ...]
    span: tuple[int, int]

    @property
    def last(self) -> int:
        """Position of the last token of the cue or concept."""
        return self.span[1] - 1

    def __len__(self) -> int:
        return len(self.tokens)


def render(template: str, filler: str, *, tokenizer: PromptTokenizer) -> Prompt:
    """Put a cue or concept into a template and find its tokens.

    A token belongs to the span if it spells any of the filler's characters that is not white space, so the
    token ' V' belongs to the cue 'VA==' although it spells the space before it too.

    Args:
        template: text with one {cue} or one {concept} or, where it has neither, one {}.
        filler: the cue or concept.
        tokenizer: how text is spelled.

    Raises:
        TemplateError: the template has no placeholder or several, words that the tokenizer cannot represent, or leaves
            no room for anything in the tokens that the model reads.
        UnspellableError: the tokenizer cannot represent a piece of the filler.
        MnemoError: no token spells the filler, or the prompt has more tokens than the model reads.
    """
    slots = [slot for slot in ("{cue}", "{concept}") if slot in template] or ["{}"]
    if len(slots) > 1 or template.count(slots[0]) != 1:
        raise TemplateError(
            f"the template {shown(template)} should hold one placeholder, once: {{cue}}, {{concept}} or {{}}"
        )
    before, after = template.split(slots[0])
    text = before + filler + after
    within = range(len(before), len(before) + len(filler))
    try:
        encoding = tokenizer.encode(text)
    except UnspellableError as error:
        outside = error.end <= within.start or error.start >= within.stop
        if outside and text[error.start : error.end].strip():  # a space alone fails because of what it stands beside
            raise TemplateError(str(error)) from error
        raise

    solid = {i for i in within if not text[i].isspace()}
    hits = [i for i, (start, end) in enumerate(encoding.offsets) if not solid.isdisjoint(range(start, end))]
    if not hits:
        raise MnemoError(
            f"no token of {shown(text)} spells {shown(filler)}: its tokens are "
            f"{list(tokenizer.pieces(encoding.ids))}; use a text that the tokenizer keeps"
        )
    found = Prompt(text, encoding.ids, (hits[0], hits[-1] + 1))
    _require_room(found, tokenizer.longest)
    return found


def render_if_spelled(template: str, filler: str, *, tokenizer: PromptTokenizer) -> Prompt | None:
    """Return the prompt of `render`; None for a filler that the tokenizer cannot put into it.

    Raises:
        TemplateError: the template itself cannot be used, whatever is put into it.
    """
    try:
        return render(template, filler, tokenizer=tokenizer)
    except TemplateError:
        raise
    except MnemoError:
        return None


def _require_room(prompt: Prompt, longest: int | None) -> None:
    """Refuse a prompt of more tokens than the model reads: some models fail there, others go on and mean nothing."""
    if longest is None or len(prompt) <= longest:
        return
    start, end = prompt.span
    template = len(prompt) - (end - start)
    what = f"the prompt {shown(prompt.text)} has {len(prompt)} tokens, but the model reads at most {longest}"
    if template >= longest:
        raise TemplateError(f"{what}: shorten the template, which takes {template} of them")
    raise MnemoError(f"{what}: shorten what is put into the template (now {end - start} of them)")


@dataclass(frozen=True)
class AnswerToken:
    """The token by which an answer is measured.

    Attributes:
        id: token id.
        text: the token as it reads, with its leading space if it has one.
        whole: False if the answer takes several tokens and this is only the first, which the caller says.
    """

    id: int
    text: str
    whole: bool


def answer_token(prompt: Prompt, answer: str, *, tokenizer: PromptTokenizer) -> AnswerToken:
    """The token with which `answer` continues `prompt`, or its first token if it takes several.

    Raises:
        MnemoError: the answer cannot follow the prompt (see `PromptTokenizer.continuation`).
    """
    ids = tokenizer.continuation(prompt.text, answer)
    return AnswerToken(ids[0], tokenizer.pieces(ids[:1])[0], len(ids) == 1)


def question_and_answer(
    task: Task, fact: Fact, *, facts: FactSet, tokenizer: PromptTokenizer
) -> tuple[Prompt, AnswerToken]:
    """A fact's recall prompt and the token of its answer.

    Args:
        task: whose `recall` template is used.
        fact: what is asked.
        facts: the set that holds the fact, and knows the file and row that it was read from.
        tokenizer: how prompts and answers are spelled.

    Raises:
        InputError: with the place at fault: the task's template, or the cue or answer of the fact.
    """
    try:
        prompt = render(task.recall, fact.cue, tokenizer=tokenizer)
    except TemplateError as error:
        raise task.fault("recall", str(error)) from error
    except MnemoError as error:
        raise facts.fault(fact.fact_id, "cue", problem=str(error)) from error
    try:
        return prompt, answer_token(prompt, fact.answer, tokenizer=tokenizer)
    except MnemoError as error:
        raise facts.fault(fact.fact_id, "answer", problem=str(error)) from error
