"""Study folders as users write them, and prompts spelled by real tokenizers."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mnemo.contrasts import make_contrasts
from mnemo.errors import InputError, MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.prompts import TemplateError, answer_token, render
from mnemo.tokens import PromptTokenizer, UnspellableError
from tests.tiny_models import byte_level_tokenizer, word_level_tokenizer

TASK = """\
name = "base64"
recall = "decode {cue} is"
verbalise = "{cue} stands for"
concept_recall = "{concept} decodes to"
max_concept_tokens = 3
probes = ["colour {} gives", "{} is worth"]
concepts = "concepts.txt"
"""
FACTS = """\
fact_id,cue,answer,note
f0,VA==,T,value added tax
f1,WA==,X,
f2,IA==, ,a space
f3,Ig==,\"\"\"\",a quote
f4,LA==,\",\",a comma
f5,TkE=,NA,
f6,bmFu,nan,
f7,MQ==,1,"two
lines"
f8,RAD=,D,"says ""rad\"\"\"
"""

# A file cannot hold NUL or half a character; the rest of Unicode is fair game.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = TEXTS.filter(str.strip)
COLUMNS = st.lists(NAMES.filter(lambda name: name not in ("fact_id", "cue", "answer")), max_size=3, unique=True)

# The folder of a test is made once, and each example writes its files anew.
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def study_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "task.toml").write_text(TASK, encoding="utf-8")
    (folder / "facts.csv").write_text(FACTS, encoding="utf-8", newline="")
    (folder / "concepts.txt").write_text("value added tax\n\n  total quality \nvalue added tax\n", encoding="utf-8")
    return folder


@cache
def byte_level() -> PromptTokenizer:
    tokenizer = byte_level_tokenizer(["decode VA== is T", "value added tax"] * 4, size=290)
    return PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@cache
def codes() -> PromptTokenizer:
    """Words hold their space; codes fall into characters and padding, as in the shipped organism."""
    names = ["decode", "==", " is", "value", " value", " added", " tax", " decodes", " to", " "]
    names += [space + letter for letter in "AIMQTVWXdg" for space in ("", " ")]
    tokenizer = word_level_tokenizer(names, codes=True)
    return PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


def pairs(*cues_and_answers: tuple[str, str]) -> FactSet:
    return FactSet(facts=tuple(Fact(fact_id=f"f{i}", cue=c, answer=a) for i, (c, a) in enumerate(cues_and_answers)))


BASE64 = Task(name="base64", recall="decode {cue} is")


# ---------------------------------------------------------------------------------------------- facts


def test_values_stay_the_text_they_are(study_folder):
    facts = FactSet.read(study_folder / "facts.csv")
    assert [fact.answer for fact in facts] == ["T", "X", " ", '"', ",", "NA", "nan", "1", "D"]
    assert facts["f7"].extra == {"note": "two\nlines"}
    assert facts["f8"].extra == {"note": 'says "rad"'}
    frame = facts.frame()
    assert list(frame.columns) == ["fact_id", "cue", "answer", "note"]
    assert frame["answer"].tolist() == [fact.answer for fact in facts]
    assert not frame.isna().any(axis=None)


def test_a_file_comes_back_byte_for_byte(study_folder):
    file = study_folder / "facts.csv"
    FactSet.read(file).write(study_folder / "again.csv")
    assert (study_folder / "again.csv").read_bytes() == file.read_bytes()
    names = {path.name for path in study_folder.iterdir()}
    assert names == {"task.toml", "facts.csv", "concepts.txt", "again.csv"}  # no draft stays behind


def test_columns_keep_their_order(tmp_path):
    text = "note,answer,cue,fact_id,\nx,T,VA==,f0,\n"
    (tmp_path / "facts.csv").write_text(text, encoding="utf-8")
    facts = FactSet.read(tmp_path / "facts.csv")
    assert facts["f0"] == Fact(fact_id="f0", cue="VA==", answer="T", extra={"note": "x", "": ""})
    facts.subset(["f0"]).write(tmp_path / "facts.csv")
    assert (tmp_path / "facts.csv").read_text(encoding="utf-8") == text


@one_folder
@given(st.data(), COLUMNS)
def test_any_text_survives_the_file(tmp_path, data, columns):
    ids = data.draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    facts = FactSet(
        facts=tuple(
            Fact(
                fact_id=fact_id,
                cue=data.draw(NAMES),
                answer=data.draw(TEXTS.filter(bool)),
                extra={column: data.draw(TEXTS) for column in columns},
            )
            for fact_id in ids
        )
    )
    facts.write(tmp_path / "facts.csv")
    again = FactSet.read(tmp_path / "facts.csv")
    assert again == facts
    assert again.columns == facts.columns
    assert again.frame().equals(facts.frame())


def test_a_byte_order_mark_and_blank_lines_are_no_matter(tmp_path):
    (tmp_path / "facts.csv").write_bytes(b"\xef\xbb\xbf\r\nfact_id,cue,answer\r\n\r\nf0,VA==,T\r\n\r\n")
    facts = FactSet.read(tmp_path / "facts.csv")
    assert facts == pairs(("VA==", "T"))
    assert str(facts.fault("f0", "cue", problem="wrong")) == f"{tmp_path / 'facts.csv'}, row 4, column 'cue': wrong"


HEADER = b"fact_id,cue,answer\n"


@pytest.mark.parametrize(
    ("raw", "where", "what"),
    [
        (b"", "", "the file is empty; its first row should be fact_id,cue,answer"),
        (HEADER, "", "0 facts"),
        (b"fact_id,cue,anwser\n1,V,T\n", ", row 1, column 'answer'", "did you mean 'anwser'?"),
        (b"fact_id;cue;answer\n1;V;T\n", ", row 1, column 'fact_id'", "the header has"),
        (b"fact_id,cue,answer,cue\n1,V,T,V\n", ", row 1, column 'cue'", "two columns have this name"),
        (HEADER + b"a,V,T\n\nb,W,X\na,Q,Q\n", ", row 5, column 'fact_id'", "'a' is the id of row 2 already"),
        (HEADER + b'a,"V\n\n",T\na,W,X\n', ", row 5, column 'fact_id'", "'a' is the id of row 2 already"),
        (HEADER + b"a,V,T\n,V,T\n", ", row 3, column 'fact_id'", "is empty"),
        (HEADER + b"a,,T\n", ", row 2, column 'cue'", "is empty"),
        (HEADER + b"a,  ,T\n", ", row 2, column 'cue'", "'  ' is nothing but white space"),
        (HEADER + b"a,V,\n", ", row 2, column 'answer'", "is empty"),
        (HEADER + b"a,V,T\nb,V,,\n", ", row 3", "4 values for 3 columns"),
        (HEADER + b"a,V\n", ", row 2", "2 values for 3 columns"),
        (HEADER + b"a,V,T\r\nb,\xe9,T\n", ", row 3", "byte 0xe9 at offset 28 is not UTF-8: save"),
        ("fact_id,cue".encode("utf-16"), ", row 1", "at offset 0 is not UTF-8 (the file looks like UTF-16)"),
        (HEADER + b"a,V\0,T\n", ", row 2", "a NUL character"),
        (HEADER + b'a,V,T\nb,"V,T\nc,V,T\n', ", row 3", "is a double quote left open?"),
        (HEADER + b'a,"V"A,T\n', ", row 2", "not CSV from here on"),
        (HEADER + b"a," + b"V" * 140_000 + b",T\n", ", row 2", "field larger than field limit"),
    ],
)
def test_mistakes_in_a_file_are_one_line_with_their_place(tmp_path, raw, where, what):
    file = tmp_path / "facts.csv"
    file.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        FactSet.read(file)
    assert str(caught.value).startswith(f"{file}{where}: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_and_absurd_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        FactSet.read(tmp_path / "facts.csv")
    with pytest.raises(InputError, match="this is a folder, not a file"):
        FactSet.read(tmp_path)
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(300 * 2**20)  # sparse: takes no room
    with pytest.raises(InputError, match="300 MB, and at most 256 MB are read"):
        FactSet.read(tmp_path / "large.csv")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"taken/facts\.csv: cannot be written"):
        pairs(("VA==", "T")).write(tmp_path / "taken" / "facts.csv")
    with pytest.raises(InputError, match="this is a folder"):
        pairs(("VA==", "T")).write(tmp_path)
    assert (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cue": ""}, "column 'cue': is empty"),
        ({"answer": ""}, "column 'answer': is empty"),
        ({"answer": 1}, "column 'answer': the value should be a valid string, it is '1'"),
        ({"cue": "V\0"}, "column 'cue': 'V\\x00' holds a NUL character"),
        ({"cue": "\ud800"}, "column 'cue': '\\ud800' holds half a character"),
        ({"extra": {"cue": "V"}}, "column 'extra': 'cue' is a field of the fact itself"),
        ({"anwser": "T"}, "column 'anwser': no such key; did you mean 'answer'?"),
    ],
)
def test_mistakes_in_memory_are_one_line_too(values, message):
    with pytest.raises(MnemoError) as caught:
        Fact(**{"fact_id": "f0", "cue": "VA==", "answer": "T"} | values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_facts_are_found_by_position_id_and_cue():
    facts = pairs(("VA==", "T"), ("WA==", "X"), ("WA==", "Y"))
    assert facts[0] is facts["f0"] is facts.find("VA==")
    assert facts[-1].answer == "Y"
    assert [fact.fact_id for fact in facts] == ["f0", "f1", "f2"]
    assert list(facts.subset(["f2", "f0"])) == [facts[2], facts[0]]
    assert len(facts.subset([])) == 0
    with pytest.raises(MnemoError, match="no fact has the fact_id 'f9'; did you mean 'f"):
        facts["f9"]
    with pytest.raises(MnemoError, match="no fact has the cue 'VA='; did you mean 'VA=='"):
        facts.find("VA=")
    with pytest.raises(MnemoError, match=r"2 facts have the cue 'WA==': choose by fact_id, .*'f1', 'f2'"):
        facts.find("WA==")
    with pytest.raises(MnemoError, match=r"facts 0 and 1 .* share the fact_id 'f0'"):
        facts.subset(["f0", "f0"])


# --------------------------------------------------------------------------------------------- tasks


def test_a_study_folder_is_read(study_folder):
    task = Task.read(study_folder)
    assert task == Task.read(study_folder / "task.toml")
    assert task.folder == study_folder
    assert task.recall == "decode {cue} is"
    assert task.probes == ("colour {} gives", "{} is worth")
    assert task.max_concept_tokens == 3
    assert task.facts_path == study_folder / "facts.csv"
    assert len(task.load_facts()) == 9
    # Of a phrase that is listed twice the first stays.
    assert task.load_lexicon() == ("value added tax", "total quality")
    assert BASE64.load_lexicon() == ()


def test_other_facts_may_be_given(study_folder, tmp_path):
    pairs(("VA==", "T")).write(tmp_path / "other.csv")
    assert len(Task.read(study_folder).load_facts(tmp_path / "other.csv")) == 1


@one_folder
@given(TEXTS, NAMES, st.lists(TEXTS, max_size=3), st.integers(1, 64))
@example('\t\r\n"\\\x7f\x85\u2028😀', "é", ['"""'], 4)
def test_any_task_survives_the_file(tmp_path, text, name, probes, longest):
    assume(not any("{" in piece for piece in [text, *probes]))
    task = Task(
        name=name,
        recall=text + "{cue}" + text,
        verbalise="{cue}" + text if len(text) % 2 else None,
        concept_recall=text + "{concept}",
        max_concept_tokens=longest,
        probes=tuple(probe + "{}" for probe in probes),
        model="org/name" if len(text) % 3 else None,
        folder=tmp_path,
    )
    task.write(tmp_path)
    assert Task.read(tmp_path) == task


@pytest.mark.parametrize(
    ("toml", "where", "what"),
    [
        ('name = "a"\nrecal = "{cue}"', ", row 2, column 'recal'", "no such key; did you mean 'recall'"),
        ('name = "a"\nrecall = "{cue}"\n[train]\nx = 1', ", row 3, column 'train'", "no such key; known: "),
        ('name = "a"', ", column 'recall'", "this key is needed and missing"),
        ('name = "a"\nrecall = "decode"', ", row 2, column 'recall'", "'decode' should hold {cue} once"),
        ('name = "a"\nrecall = "{cue} {cue}"', ", row 2, column 'recall'", "it holds it 2 times"),
        (
            'name = "a"\nrecall = "{cue} {concept}"',
            ", row 2, column 'recall'",
            "only {cue} is filled in here",
        ),
        (
            'name = "a"\nrecall = "{cue}"\nverbalise = ""',
            ", row 3, column 'verbalise'",
            "should hold {cue} once",
        ),
        ('name = "a"\nrecall = "{cue}"\nconcept_recall = "{cue}"', "", "'{cue}' should hold {concept} once"),
        ('name = "a"\nrecall = "{cue}"\nprobes = ["{}", "{cue}"]', "", "'{cue}' should hold {} once"),
        ('name = "a"\nrecall = "{cue}"\nprobes = "{}"', "", "should be a valid tuple"),
        ('name = "a"\nrecall = 1', ", row 2, column 'recall'", "should be a valid string"),
        ('name = "a"\nrecall = "{cue}"\nmax_concept_tokens = 0', "", "greater than or equal to 1"),
        (
            'name = "a"\nrecall = "{cue}"\nmax_concept_tokens = "4"',
            "",
            "should be a valid integer, it is '4'",
        ),
        ('name = "a"\nrecall = "{cue}"\nfolder = "b"', ", row 3, column 'folder'", "no such key"),
        ('name = "a"\nrecall = decode', ", row 2", "not TOML"),
        ("name = " + "9" * 5000, "", "not TOML"),
        ("name = " + "[" * 5000, "", "brackets nested too deep"),
    ],
)
def test_mistakes_in_a_task_are_one_line_with_their_key(tmp_path, toml, where, what):
    file = tmp_path / "task.toml"
    file.write_text(toml, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Task.read(tmp_path)
    assert str(caught.value).startswith(f"{file}{where}")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["facts", "concepts", "model"])
@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "\\\\host\\x", "a\\..\\x"])
def test_paths_stay_in_the_study_folder(key, path):
    with pytest.raises(MnemoError, match=f"column '{key}': .* leaves the study folder"):
        Task(**{"name": "a", "recall": "{cue}", key: path})


def test_a_model_is_a_directory_or_a_hub_name(study_folder):
    def model_path(name):
        return BASE64.model_copy(update={"model": name, "folder": study_folder}).model_path

    assert model_path(None) is None
    with pytest.raises(InputError, match=r"'model' is neither a directory in .* nor a hub .*: --model\)"):
        model_path("model")  # a folder that is missing, most likely: nothing is fetched
    assert model_path("organism") == "organism"
    (study_folder / "model").mkdir()
    assert model_path("model") == study_folder / "model"
    assert model_path("org/gpt-2.1") == "org/gpt-2.1"
    with pytest.raises(InputError, match=r"column 'model': './weights' is neither a directory in .* nor a hub"):
        model_path("./weights")
    with pytest.raises(InputError, match=r"'model/pythia' is no directory in .*, though 'model' is one: check"):
        model_path("model/pythia")  # a typing error in a path, and the hub knows no such owner


def test_a_lexicon_without_phrases_is_refused(study_folder):
    (study_folder / "concepts.txt").write_text(" \n\n")
    with pytest.raises(InputError, match=r"concepts.txt: no phrases"):
        Task.read(study_folder).load_lexicon()
    (study_folder / "concepts.txt").unlink()
    with pytest.raises(InputError, match=r"concepts.txt: there is no such file"):
        Task.read(study_folder).load_lexicon()


# ------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("family", "template", "filler", "span"),
    [
        (codes, "decode {cue} is", "VA==", (" V", "A", "==")),
        (codes, "{concept} decodes to", "value added tax", ("value", " added", " tax")),
        (codes, "decode {} is", "VA==", (" V", "A", "==")),
        # Braces of other kinds are text, in the template and in the cue.
        (byte_level, "{} {{x}} {cue} is", "{cue}", ("{", "c", "ue", "}")),
        # White space around a cue is the template's affair, white space inside it is the cue's.
        (byte_level, "decode {cue} is", " VA  a ", (" VA", " ", " ", "a")),
        # A token that spells the cue's first letters spells the template's last one too.
        (byte_level, "v{cue}", "alue", ("value",)),
    ],
)
def test_the_tokens_of_a_cue_are_found(family, template, filler, span):
    prompt = render(template, filler, tokenizer=family())
    start, end = prompt.span
    assert family().pieces(prompt.tokens[start:end]) == span
    assert prompt.last == end - 1
    assert prompt.tokens == family().encode(prompt.text).ids
    assert len(prompt) == len(prompt.tokens)


@given(NAMES, st.sampled_from(["decode {cue} is", "{concept} decodes to", "what is {}"]))
def test_the_span_spells_the_cue(cue, template):
    tokenizer = byte_level()
    prompt = render(template, cue, tokenizer=tokenizer)
    start, end = prompt.span
    assert tokenizer.decode(prompt.tokens[start:end]).strip() == cue.strip()
    assert 0 <= start < end <= len(prompt)


@pytest.mark.parametrize(
    ("template", "filler", "message"),
    [
        ("decode", "VA==", "should hold one placeholder, once"),
        ("{cue} {cue}", "VA==", "should hold one placeholder, once"),
        ("{cue} {concept}", "VA==", "should hold one placeholder, once"),
        ("decode {cue} is", "", "no token of 'decode  is' spells ''"),
        ("decode {cue} is", "  ", "no token of 'decode    is' spells '  '"),
        ("decode {cue} is", "\ud800", "no token for '\\ud800'"),
    ],
)
def test_prompts_that_cannot_be_made_say_why(template, filler, message):
    with pytest.raises(MnemoError) as caught:
        render(template, filler, tokenizer=byte_level())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "filler", "blamed"),
    [
        ("unheard {cue} is", "VA==", TemplateError),
        ("decode {cue} is", "unheard", UnspellableError),
        # The space is the template's, but only this filler leaves it standing alone.
        ("decode {cue} is", "==", UnspellableError),
    ],
)
def test_a_template_is_blamed_for_its_own_words_only(template, filler, blamed):
    words = word_level_tokenizer(["decode", " is", "==", " V", "A"], codes=True)
    tokenizer = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))
    with pytest.raises(MnemoError) as caught:
        render(template, filler, tokenizer=tokenizer)
    assert type(caught.value) is blamed


def test_answers_of_several_tokens_say_so():
    prompt = render("decode {cue} is", "VA==", tokenizer=codes())
    whole, first = (answer_token(prompt, answer, tokenizer=codes()) for answer in ("value", "value added"))
    assert (whole.text, whole.whole) == (" value", True)
    assert (first.text, first.whole) == (" value", False)
    assert first.id == whole.id == codes().encode(" value").ids[0]


# ----------------------------------------------------------------------------------------- contrasts

CUES = st.text("VAT=", min_size=1, max_size=4)
ANSWERS = st.sampled_from(["T", "X", "value", "value added", "value tax"])
FACT_LISTS = st.lists(st.tuples(CUES, ANSWERS), min_size=1, max_size=12)


def possible_partners(facts: FactSet) -> dict[str, set[str]]:
    """The definition, by brute force."""
    prompts = {fact.fact_id: render(BASE64.recall, fact.cue, tokenizer=byte_level()) for fact in facts}
    answers = {
        fact.fact_id: answer_token(prompts[fact.fact_id], fact.answer, tokenizer=byte_level()).id for fact in facts
    }

    def contrast(one: str, other: str) -> bool:
        here, there = prompts[one], prompts[other]
        same_frame = len(here) == len(there) and here.span == there.span
        return same_frame and here.tokens != there.tokens and answers[one] != answers[other]

    return {one: {other for other in prompts if contrast(one, other)} for one in prompts}


@given(FACT_LISTS, st.integers(0, 3))
def test_contrasts_differ_in_the_cue_and_the_answer_alone(rows, seed):
    facts = pairs(*rows)
    possible = possible_partners(facts)
    try:
        contrasts = make_contrasts(BASE64, facts, tokenizer=byte_level(), seed=seed)
    except InputError:
        assert not any(possible.values())
        return
    assert list(contrasts) == [fact_id for fact_id, others in possible.items() if others]
    for fact_id, contrast in contrasts.items():
        assert contrast.fact == facts[fact_id]
        assert contrast.corrupt_fact.fact_id in possible[fact_id]
        assert contrast.clean.text == f"decode {contrast.fact.cue} is"
        assert contrast.corrupt.text == f"decode {contrast.corrupt_fact.cue} is"
        assert len(contrast.clean) == len(contrast.corrupt)
        assert contrast.clean.span == contrast.corrupt.span
        assert contrast.answer.id != contrast.contrast_answer.id
    assert make_contrasts(BASE64, facts, tokenizer=byte_level(), seed=seed) == contrasts


def chosen(facts: FactSet, seed: int = 0) -> dict[str, str]:
    contrasts = make_contrasts(BASE64, facts, tokenizer=codes(), seed=seed)
    return {fact_id: contrast.corrupt_fact.fact_id for fact_id, contrast in contrasts.items()}


LETTERS = "AIMQTVWXdg"
GRID = pairs(*((f"{a}{b}==", LETTERS[(3 * i + j) % 10]) for i, a in enumerate(LETTERS) for j, b in enumerate(LETTERS)))


def test_partners_are_shared_out_evenly():
    load = Counter(chosen(GRID).values())
    # 100 throws into 100 bins: a seventh in one bin has odds of about 1 in 100 over the whole set.
    assert max(load.values()) <= 7
    assert len(load) > 50  # 63 expected
    assert chosen(GRID, seed=1) != chosen(GRID)


def test_a_partner_depends_on_the_pair_alone():
    everyone = chosen(GRID)
    order = [fact.fact_id for fact in GRID]
    assert chosen(GRID.subset(reversed(order))) == everyone
    kept = order[::3]
    fewer = chosen(GRID.subset(kept))
    still_there = {fact_id for fact_id in kept if everyone[fact_id] in kept}
    assert len(still_there) > 5
    assert all(fewer[fact_id] == everyone[fact_id] for fact_id in still_there)


def test_tokens_outside_the_cue_agree():
    """Where a cue changes how the template is spelled, a contrast would compare more than the cue."""
    names = ["a", "b", "c", "d", "e", " ", "ab", "cd", "abc"]
    model = models.BPE({name: i for i, name in enumerate(names)}, [("a", "b"), ("c", "d"), ("ab", "c")])
    tokenizer = PromptTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)))
    task = Task(name="glued", recall="abc{cue}")
    prompts = [render(task.recall, cue, tokenizer=tokenizer) for cue in "de"]
    assert [tokenizer.pieces(prompt.tokens) for prompt in prompts] == [("ab", "cd"), ("abc", "e")]
    assert prompts[0].span == prompts[1].span == (1, 2)

    contrasts = make_contrasts(task, pairs(("d", "d"), ("e", "e"), ("a", "a")), tokenizer=tokenizer)
    assert {fact_id: contrast.corrupt_fact.cue for fact_id, contrast in contrasts.items()} == {
        "f1": "a",
        "f2": "e",
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("VA==", "T")], "1 facts make no contrast"),
        ([("VA==", "T"), ("WA==", "T")], "column 'answer': no contrast is possible: all 2 answers are 'T'"),
        (
            [("VA==", "value added"), ("WA==", "value tax")],
            "column 'answer': no contrast is possible: all 2 answers begin with the one token ' value'",
        ),
        (
            [("VA==", "T"), ("W==", "X")],
            "column 'cue': no contrast is possible: no two prompts have equal length (they have 4 to 5",
        ),
        (
            [("VA==", "T"), ("WA==", "T"), ("W==", "X")],
            "column 'cue': no contrast is possible: prompts of equal length, with the cue at the same tokens",
        ),
        ([("VA==", "T"), ("VA==", "X")], "no contrast is possible: prompts of equal length"),
    ],
)
def test_where_no_contrast_is_possible_the_reason_is_given(rows, message):
    with pytest.raises(InputError) as caught:
        make_contrasts(BASE64, pairs(*rows), tokenizer=codes())
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("WA==", "WÄ==", "facts.csv, row 3, column 'cue': ", "no token for 'Ä'"),
        (",X,", ",Q!,", "facts.csv, row 3, column 'answer': ", "the answer 'Q!' cannot follow"),
        ("decode {cue}", "please {cue}", "task.toml, column 'recall': ", "no token for 'please'"),
    ],
)
def test_text_that_cannot_be_spelled_is_blamed_on_its_file(tmp_path, old, new, place, message):
    files = {
        "task.toml": 'name = "a"\nrecall = "decode {cue} is"',
        "facts.csv": "fact_id,cue,answer,n\nf0,VA==,T,\nf1,WA==,X,\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace(old, new), encoding="utf-8")
    task = Task.read(tmp_path)
    with pytest.raises(InputError) as caught:
        make_contrasts(task, task.load_facts(), tokenizer=codes())
    assert str(caught.value).startswith(f"{tmp_path}/{place}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
