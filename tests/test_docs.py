"""Is everything public documented, and does every page and number stand in one place? (`make docs` builds strictly.)"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import mnemo
from mnemo import plot

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(entry=SITE["nav"]) -> list[str]:
    """Return the files that the navigation names, in its order."""
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]


def documented() -> set[str]:
    text = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in pages())
    return set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))


def test_the_navigation_has_every_page_and_no_other():
    assert sorted(pages()) == sorted(file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", mnemo.__all__)
def test_every_public_name_is_in_the_reference(name):
    thing = getattr(mnemo, name)
    assert f"{thing.__module__}.{name}" in documented()


def test_what_is_said_to_be_imported_from_the_package_is():
    text = (DOCS / "api" / "main.md").read_text(encoding="utf-8")
    promised = re.findall(r"^::: \S+\.(\S+)$", text, flags=re.MULTILINE)
    assert sorted(promised) == mnemo.__all__


def test_no_module_takes_the_place_of_a_public_name():
    """Importing ``mnemo.x`` makes it ``mnemo.x``, whatever the package gave under that name before."""
    assert not [name for name in mnemo.__all__ if importlib.util.find_spec(f"mnemo.{name}")]


@pytest.mark.parametrize("name", [name for name in plot.__all__ if callable(getattr(plot, name))])
def test_every_figure_is_in_the_reference(name):
    assert f"{getattr(plot, name).__module__}.{name}" in documented()


def test_the_site_needs_no_network():
    assert SITE["theme"]["font"] is False and SITE["strict"] is True
    extras = [*SITE.get("extra_css", []), *SITE.get("extra_javascript", [])]
    assert not any("//" in address for address in extras)


def test_measured_numbers_are_included_and_not_copied():
    for page in (DOCS / "measured").glob("*.md"):
        (source,) = re.fullmatch(r'--8<-- "(\S+\.md)"\n', page.read_text(encoding="utf-8")).groups()  # pyright: ignore
        assert (ROOT / source).is_file()


def test_notebooks_are_listed_where_one_starts_and_in_the_same_words_in_the_readme():
    lists = [
        dict(re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.MULTILINE))
        for page, pattern in (
            (DOCS / "getting_started.md", r"^\| `(\d\w+)` \| (.+) \|$"),
            (ROOT / "README.md", r"^\| \[(\d\w+)\]\(notebooks/\1\.ipynb\) \| (.+) \|$"),
        )
    ]
    assert sorted(lists[0]) == sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb"))
    assert lists[0] == lists[1]


def test_an_entry_for_several_names_is_shown_for_each_of_them():
    spec = importlib.util.spec_from_file_location("shared_names", DOCS / "extensions" / "shared_names.py")
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    text = "What.\n\nArgs:\n    a, b: the first line\n        and the second.\n    c: more, or: less.\n"
    thing = SimpleNamespace(docstring=SimpleNamespace(value=text))
    extension.SharedNames().on_object(obj=thing)
    assert thing.docstring.value == (
        "What.\n\nArgs:\n    a: the first line\n        and the second.\n    b: see `a`.\n    c: more, or: less.\n"
    )
