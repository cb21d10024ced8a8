"""The page says what the table says, is whole without the folder, and shows hostile text as text."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mnemo.scoring import read_truth
from mnemo.summary import MESSAGES, SHOWN, _message_rows, summarise, write_report

HOSTILE = '<img src=x onerror="alert(1)">|`*_[a](b)\n# & {{ 7 * 7 }}'


class Page(HTMLParser):
    """Texts, tags and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(compiled_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    compiled_study[0].report(folder)
    return folder


def test_both_pages_say_what_was_found_and_how_to_repeat_it(compiled_study, written):
    study, _, _ = compiled_study
    html, markdown = (written / "report.html").read_text(), (written / "report.md").read_text()
    page = Page(html)
    through = int((study.table["verdict"] == "mnemonic").sum())
    for text in (" ".join(page.text.split()), " ".join(markdown.replace("*", "").split())):
        assert f"Of {len(study.table)} facts the model recalls {len(study.table)}. {through} of these" in text
        assert study.record["model"] in text and f"torch {study.record['versions']['torch']}"[:10] in text
        for part in ("What was asked", "Invented mnemonics", "Against which controls", "What could still be wrong"):
            assert part in text
        assert "trained to be" not in text  # nobody said what the truth is
    assert study.record["command"] in page.text
    assert "{{" not in html and "{%" not in markdown and "nan" not in markdown


def test_the_page_is_whole_without_its_folder(written):
    page = Page((written / "report.html").read_text())
    assert not {"script", "link", "iframe"} & set(page.tags)
    files = sorted(file.name for file in (written / "figures").iterdir())
    assert files == ["doses.png", "swaps.png", "verdicts.png"]
    inside = {base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in page.images}
    assert inside == {file.read_bytes() for file in (written / "figures").iterdir()}
    linked = re.findall(r"\]\((figures/\w+\.png)\)", (written / "report.md").read_text())
    assert sorted(linked) == [f"figures/{name}" for name in files]


def test_the_truth_is_shown_only_where_it_is_given(compiled_study, tmp_path):
    study, world, folder = compiled_study
    truth = read_truth(folder / "truth.csv", study.task.load_facts())
    page = summarise(study, truth=truth)
    by_kind = {row["kind"]: row["verdicts"] for row in page["kinds"]}
    for kind in ("mnemonic", "idle", "decoy", "rote"):
        count = sum(fact.kind == kind for fact in world.facts)
        assert by_kind[kind]["mnemonic" if kind == "mnemonic" else "rote"] == count
    assert page["invented"] == {"facts": 0} and page["examples"] == []  # this organism has no free facts
    assert page["marks"] == {}  # every mnemonic was planted
    write_report(study, tmp_path, truth=truth)
    assert "trained to be" in (tmp_path / "report.md").read_text()


def test_hostile_text_is_shown_as_text(compiled_study, tmp_path):
    study, _, _ = compiled_study
    table = study.table.copy()
    rows = table["verdict"] == "mnemonic"
    table.loc[rows, ["cue", "concept", "top_path"]] = HOSTILE
    task = study.task.model_copy(update={"name": HOSTILE, "recall": f"{HOSTILE} {{cue}} is"})
    # Nothing can be asked about such a task again, so its page has no waypoint and no curves.
    write_report(replace(study, task=task, table=table, notes=(HOSTILE,), waypoint=None), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert page.text.count('<img src=x onerror="alert(1)">') > 5 and "{{ 7 * 7 }}" in page.text
    markdown = (tmp_path / "report.md").read_text()
    assert not re.search(r"(?<!\\)<", markdown)
    for rows_of in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows_of.splitlines()}
        assert len(widths) == 1, rows_of


def test_a_study_that_tested_nothing_has_a_page_that_says_so(compiled_study, tmp_path):
    study, _, _ = compiled_study
    empty = study.table[[*study.table.columns[:5], "recall_probability"]].assign(
        verdict="unsure", score=None, invented=None, top_path=None, seconds=0.0
    )
    task = study.task.model_copy(update={"verbalise": None, "probes": ()})
    bare = replace(study, task=task, table=empty, waypoint=None, readings={}, notes=("the task has no verbalise",))
    write_report(bare, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "not asked: the task has no such template" in text and "Nothing was tested." in text
    assert "the task has no verbalise" in text and list((tmp_path / "figures").iterdir()) == []


def test_numbers_of_the_page_are_those_of_the_table(compiled_study):
    study, _, _ = compiled_study
    page = summarise(study)
    assert sum(row["facts"] for row in page["verdicts"]) == len(study.table)
    swap = page["controls"][0]
    through = study.table[study.table["verdict"] == "mnemonic"]
    assert swap["through"] == (through["swap_success"].median(), through["swap_control"].median())
    assert len(page["examples"]) == min(10, len(through))
    json.dumps(page["invented"])


def test_the_page_says_what_the_strongest_writers_carry(compiled_study, written):
    study, _, _ = compiled_study
    facts = study.table[study.table["verdict"] == "mnemonic"].head(2)
    rows, unread = _message_rows(study, facts)
    assert not unread
    assert [row["cue"] for row in rows if row["first"]] == list(facts["cue"])
    assert [row["concept"] for row in rows if row["first"]] == list(facts["concept"])
    assert {row["writer"] for row in rows if row["first"]} == {"whole state"} and len(rows) == 2 * (1 + MESSAGES)
    for name in ("report.html", "report.md"):
        text = (written / name).read_text()
        assert "What brings their concepts there" in text and text.count("whole state") == SHOWN + 1  # and once below
        assert f"MLP{study.waypoint.site.layer - 1}" in text
    rows, unread = _message_rows(replace(study, waypoint=None), facts)
    assert not rows and len(unread) == 1 and "has no waypoint" in unread[0]
