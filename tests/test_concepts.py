"""Reading concepts: beam search against exhaustion, ratios against their definition, what may be read."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from mnemo.concepts import FLOOR, NULL_STATES, Bank, Others, PromptReader, _is_a_concept, chance, read_cues
from mnemo.errors import MnemoError
from mnemo.facts import Fact, Task
from mnemo.forwards import counted_forwards
from mnemo.model import Model, load
from mnemo.patching import read_stream, read_stream_at_span
from mnemo.phrases import Asked, readable_phrases, write_phrases
from mnemo.prompts import render
from tests.tiny_models import tiny_model, tiny_tokenizer

TASK = Task(name="t", recall="decode {cue} is", verbalise="{cue} means", max_concept_tokens=2)
FACTS = [Fact(fact_id=c, cue=f"{c}A==", answer="T") for c in "ABCDEFGH"]
LAYER = 1


@pytest.fixture(scope="module")
def model() -> Model:
    return load(tiny_model("llama", d_model=16, heads=2), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def states(model) -> torch.Tensor:
    prompts = [render(TASK.recall, fact.cue, tokenizer=model.tokens) for fact in FACTS]
    return read_stream(model, prompts, positions=[prompts[0].last - len(prompts[0])])[:, LAYER, 0]


@pytest.fixture(scope="module")
def reader(model) -> PromptReader:
    return PromptReader.for_task(model, TASK, cue="QQ==")


def logprob_by_hand(model: Model, reader: PromptReader, phrase: tuple[int, ...], state: torch.Tensor) -> float:
    tokens = torch.tensor([(*reader.host.tokens, *phrase)])

    def put(value, hook):
        value = value.clone()
        value[:, reader.host.last] = state
        return value

    with torch.no_grad():
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{LAYER}.hook_resid_pre", put)])
    said = logits[0].log_softmax(-1)
    n = len(reader.host.tokens)
    return sum(said[n - 1 + k, token].item() for k, token in enumerate(phrase)) / len(phrase)


def test_the_likeliest_phrase_of_one_token_is_the_likeliest_token(model, reader, states):
    written = write_phrases(model, Asked((reader.host,) * len(states), states, LAYER), max_tokens=1)
    end = model.tokens.hf.eos_token_id
    for phrases, state in zip(written, states, strict=True):
        every = [((t,), logprob_by_hand(model, reader, (t,), state)) for t in range(model.vocab_size) if t != end]
        best = max(every, key=lambda pair: pair[1])[0]
        assert phrases[0] == best


def test_log_probability_is_per_token_under_the_patched_state(model, reader, states):
    phrases = [(5, 9), (7,), (300, 4)]
    found = reader.logprob(phrases, states[:3], layer=LAYER)
    for value, phrase, state in zip(found.tolist(), phrases, states[:3], strict=True):
        assert value == pytest.approx(logprob_by_hand(model, reader, phrase, state), abs=1e-4)


def test_the_ratio_is_floored_and_against_other_facts_alone(model, reader, states):
    readings = reader.read(states, layer=LAYER, facts=FACTS)
    for i, mine in enumerate(readings):
        assert [r.ratio for r in mine] == sorted((r.ratio for r in mine), reverse=True)
        best = mine[0]
        others = [math.exp(logprob_by_hand(model, reader, best.tokens, s)) for k, s in enumerate(states) if k != i]
        expected = math.log((math.exp(best.logprob) + FLOOR) / (statistics.median_low(others) + FLOOR))
        assert best.ratio == pytest.approx(expected, abs=1e-3)


def test_facts_with_the_same_answer_are_no_reference(model, reader, states):
    """With two concepts, half of the other facts stand for the same one: compared with them it would win nothing."""
    facts = [fact.model_copy(update={"answer": "TF"[i % 2]}) for i, fact in enumerate(FACTS)]
    for i, mine in enumerate(reader.read(states, layer=LAYER, facts=facts)):
        best = mine[0]
        others = [math.exp(logprob_by_hand(model, reader, best.tokens, states[k])) for k in range(1 - i % 2, 8, 2)]
        expected = math.log((math.exp(best.logprob) + FLOOR) / (statistics.median_low(others) + FLOOR))
        assert best.ratio == pytest.approx(expected, abs=1e-3)


def test_a_fact_read_alone_is_not_compared_with_itself_where_all_have_one_answer(reader, states):
    among, others = reader.read(states, layer=LAYER, facts=FACTS), Others(states, FACTS)
    for i, fact in enumerate(FACTS):
        (alone,) = reader.read(states[i : i + 1], layer=LAYER, facts=[fact], others=others)
        assert [r.tokens for r in alone] == [r.tokens for r in among[i]]
        assert [r.ratio for r in alone] == pytest.approx([r.ratio for r in among[i]], abs=1e-3)


def test_cues_are_read_as_states_are_with_nothing_patched(model):
    prompts = [render(str(TASK.verbalise), fact.cue, tokenizer=model.tokens) for fact in FACTS]
    for i, mine in enumerate(read_cues(model, TASK, facts=FACTS)):
        best = mine[0]
        assert best.ratio == max(reading.ratio for reading in mine)
        said = []
        for prompt in prompts:
            with torch.no_grad():
                logits = model.bridge(torch.tensor([(*prompt.tokens, *best.tokens)]))[0].log_softmax(-1)
            n = len(prompt.tokens)
            said.append(
                math.exp(sum(logits[n - 1 + k, t].item() for k, t in enumerate(best.tokens)) / len(best.tokens))
            )
        expected = math.log((said[i] + FLOOR) / (statistics.median_low(said[:i] + said[i + 1 :]) + FLOOR))
        assert best.ratio == pytest.approx(expected, abs=1e-3)


def test_phrases_that_the_model_does_not_end_also_stand_cut_between_words(model, reader, states):
    asked = Asked((reader.host,) * len(states), states, LAYER)
    written, found = (read(model, asked, max_tokens=3) for read in (write_phrases, readable_phrases))
    cut = 0
    for before, after in zip(written, found, strict=True):
        assert {phrase for phrase in before if len(phrase) < 3} <= set(after)  # the model ended these
        for phrase in set(after) - set(before):
            whole = next(long for long in before if long[: len(phrase)] == phrase)
            text, longer = (model.tokens.decode(tokens) for tokens in (phrase, whole[: len(phrase) + 1]))
            assert not longer[len(text) :][:1].isalnum()
            cut += 1
    assert cut


def test_the_fact_whose_cue_is_the_hosts_is_read_in_another_host(model, states):
    words = ["value", "added", "tax"]
    own, spare = (PromptReader.for_task(model, TASK, cue=cue, lexicon=words) for cue in (FACTS[2].cue, "Q=="))
    both = PromptReader.for_task(model, TASK, cue=FACTS[2].cue, spare_cue="Q==", lexicon=words)
    found, here, there = (r.read(states, layer=LAYER, facts=FACTS) for r in (both, own, spare))
    for i, readings in enumerate(found):
        expected = there if i == 2 else here
        assert [r.tokens for r in readings] == [r.tokens for r in expected[i]]
        assert [r.ratio for r in readings] == pytest.approx([r.ratio for r in expected[i]], abs=1e-3)
    assert [r.ratio for r in here[2]] != pytest.approx([r.ratio for r in there[2]], abs=1e-3)


def test_a_phrase_from_the_lexicon_can_win_though_the_model_would_not_write_it(model, states):
    words = [model.tokens.decode([t]).strip() for t in range(260, 320)]
    lexicon = [word for word in words if len(word) > 1 and word.isalpha()]
    reader = PromptReader.for_task(model, TASK, cue="QQ==", lexicon=lexicon)
    assert reader.lexicon
    read = {r.tokens for mine in reader.read(states, layer=LAYER, facts=FACTS) for r in mine}
    assert read & set(reader.lexicon)


def test_neither_cue_nor_answer_is_a_concept(model, reader, states):
    written = {model.tokens.decode(r.tokens).strip() for r in reader.read(states[:1], layer=LAYER, facts=FACTS[:1])[0]}
    said = next(iter(sorted(text for text in written if text)))
    fact = Fact(fact_id="x", cue="ZZ", answer=said)
    again = reader.read(states[:1], layer=LAYER, facts=[fact])[0]
    assert said.casefold() not in {r.phrase.casefold() for r in again}


@pytest.mark.parametrize(
    ("cue", "text", "concept"),
    [("VA", "value added tax", True), ("he", "the big one", True), ("7", "7 seas", False), ("rm", "farm yard", True),
     ("VA==", "VA==", False), ("value added", "value added tax", False), ("x", "tax on t", False), ("x", "", False)],
)  # fmt: skip
def test_a_cue_is_no_concept_as_words_of_its_own_and_may_be_part_of_one(cue, text, concept):
    assert _is_a_concept(text, Fact(fact_id="x", cue=cue, answer="T")) is concept


def test_phrases_that_cannot_be_spelled_are_left_out_and_no_template_is_refused(model):
    with pytest.raises(MnemoError, match="no `verbalise`"):
        PromptReader.for_task(model, TASK.model_copy(update={"verbalise": None}), cue="QQ==")


def test_beam_search_finds_what_exhaustion_finds_when_the_beam_is_wide(model, reader, states, monkeypatch):
    monkeypatch.setattr("mnemo.phrases.BEAMS", model.vocab_size)
    written = write_phrases(model, Asked((reader.host,), states[:1], LAYER), max_tokens=2)[0]
    end = model.tokens.hf.eos_token_id
    tokens = torch.tensor([reader.host.tokens])

    def put(value, hook):
        value = value.clone()
        value[:, reader.host.last] = states[0]
        return value

    with torch.no_grad():
        hook = (f"blocks.{LAYER}.hook_resid_pre", put)
        first = model.bridge.run_with_hooks(tokens, fwd_hooks=[hook])[0, -1].log_softmax(-1)
        every = torch.arange(model.vocab_size)[:, None]
        pairs = torch.cat([tokens.repeat(len(every), 1), every], 1)
        second = model.bridge.run_with_hooks(pairs, fwd_hooks=[hook])[:, -1].log_softmax(-1)
    total = {(a, b): (first[a] + second[a, b]).item()
             for a, b in itertools.product(range(model.vocab_size), repeat=2) if end not in (a, b)}  # fmt: skip
    total |= {(a,): (first[a] + second[a, end]).item() for a in range(model.vocab_size) if a != end}
    total |= {(): first[end].item()}  # the model may say nothing at all
    # A phrase of one token counts only once its end token was seen within the limit of two.
    best = max(total, key=total.__getitem__)
    assert written[0] == best


# ---- the bank, and readings by chance

WORDS = tuple("value added tax quick question means decode".split())


@pytest.fixture(scope="module")
def bank(model) -> Bank:
    return Bank(model, WORDS, tuple(render("decode {concept} is", word, tokenizer=model.tokens) for word in WORDS))


def test_the_bank_weighs_cosines_between_what_is_left_without_the_means(bank, model, states):
    known = read_stream_at_span(model, bank.prompts, layer=LAYER)
    readings = bank.read(states, layer=LAYER, facts=FACTS)
    for i, mine in enumerate(readings):
        x = states[i] - states.mean(0)
        cosines = torch.stack([torch.cosine_similarity(x, k - known.mean(0), dim=0) for k in known])
        expected = (cosines * math.sqrt(model.d_model)).log_softmax(0)
        for reading in mine:
            assert reading.logprob == pytest.approx(expected[WORDS.index(reading.phrase)].item(), abs=1e-4)


def test_the_bank_runs_its_phrases_once_for_each_layer(bank, model, states):
    fresh = Bank(model, bank.phrases, bank.prompts)
    with counted_forwards(model) as count:
        for layer in (LAYER, LAYER, LAYER - 1):
            fresh.read(states, layer=layer, facts=FACTS)
            fresh.probabilities(WORDS, states[: len(WORDS)], layer=layer)
    assert count.prompts == 2 * len(WORDS)
    again = bank.read(states, layer=LAYER - 1, facts=FACTS)
    assert again == fresh.read(states, layer=LAYER - 1, facts=FACTS) != fresh.read(states, layer=LAYER, facts=FACTS)


def test_the_bank_finds_the_phrase_behind_what_all_cues_have_in_common(bank, model):
    known = read_stream_at_span(model, bank.prompts, layer=LAYER)
    offset = 10 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    mixed = 2 * (known - known.mean(0)) + offset
    facts = [Fact(fact_id=word, cue="ZZ", answer="T") for word in WORDS]
    readings = bank.read(mixed, layer=LAYER, facts=facts)
    assert [mine[0].phrase for mine in readings] == list(WORDS)


def test_the_bank_reads_neither_cue_nor_answer(bank, states):
    facts = [Fact(fact_id=word, cue=word, answer=WORDS[0]) for word in WORDS]
    for fact, mine in zip(facts, bank.read(states[: len(facts)], layer=LAYER, facts=facts), strict=True):
        assert {fact.cue, fact.answer}.isdisjoint(r.phrase for r in mine)


def test_states_that_hold_a_concept_are_read_as_chance_is_not(bank, model):
    """A few of the states are phrases' own, the others have directions drawn at random."""
    known = read_stream_at_span(model, bank.prompts, layer=LAYER)
    known = known - known.mean(0)
    noise = torch.randn(200, model.d_model, generator=torch.Generator().manual_seed(1))
    noise *= known.norm(dim=-1).mean() / math.sqrt(model.d_model)
    states = torch.cat([known, noise])
    facts = [Fact(fact_id=str(i), cue="ZZ", answer="T") for i in range(len(states))]
    readings = bank.read(states, layer=LAYER, facts=facts)
    p_values = torch.tensor(chance(bank, states, readings=readings, layer=LAYER, facts=facts, seed=0))
    assert p_values[: len(known)].median() <= 0.05
    assert 0.35 < p_values[len(known) :].mean() < 0.65  # uniform under the null
    assert p_values.min() >= 1 / (1 + NULL_STATES)
    assert chance(bank, states[:3], readings=[[]] * 3, layer=LAYER, facts=facts[:3], seed=0) == [1.0] * 3


def test_the_identity_prompt_reads_what_is_put_at_its_last_slot(model, states):
    reader = PromptReader.by_identity(model, max_tokens=2)
    assert model.tokens.decode([reader.host.tokens[reader.host.last]]).strip() == "?"
    written = reader.read(states, layer=LAYER, facts=FACTS)
    for state, mine in zip(states, written, strict=True):
        assert mine[0].logprob == pytest.approx(logprob_by_hand(model, reader, mine[0].tokens, state), abs=1e-4)
