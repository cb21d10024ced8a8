"""The notebooks in a real JupyterLab in a real browser: what a user clicks, types and sees.

Needs chromium (Debian: apt-get install chromium fonts-dejavu-core); without it the tests are skipped, never in CI.
Screenshots go to the folder named by MNEMO_SCREENSHOTS, where it is set.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from mnemo.explorer.view import SavedView

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("MNEMO_CHROMIUM") or shutil.which("chromium")
SECONDS = 1000  # of playwright's milliseconds

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="needs chromium (apt-get install chromium), or MNEMO_CHROMIUM set to its path",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a copy of the notebooks, with settings of its own; its address."""
    home = tmp_path_factory.mktemp("lab")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ip=127.0.0.1", "--allow-root",
        "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={home}",
    ]  # fmt: skip
    places = {f"JUPYTER{name}": str(home / f".{name.lower()}") for name in ("_CONFIG_DIR", "_RUNTIME_DIR")}
    places |= {f"JUPYTERLAB_{name}_DIR": str(home / f".{name.lower()}") for name in ("SETTINGS", "WORKSPACES")}
    with (home / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=home, env={**os.environ, **places}, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.25)
            else:
                pytest.fail(f"JupyterLab did not start: {(home / 'lab.log').read_text()[-2000:]}")
            yield address
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture(scope="module")
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1500, "height": 1100}, accept_downloads=True)
        yield page
        browser.close()


def shoot(page: Page, name: str) -> None:
    if folder := os.environ.get("MNEMO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def run_all(page: Page, address: str, notebook: str) -> None:
    """Open a notebook and run all of its cells."""
    page.goto(f"{address}/lab/tree/{notebook}?reset")
    # Run before the kernel is connected is dropped silently: wait for what the status bar says.
    page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first.wait_for(timeout=90 * SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()


@pytest.fixture(scope="module")
def explorer(lab, page):
    """The explorer of the second notebook, opened once; tests go on where the one before stopped."""
    run_all(page, lab, "02_circuit_explorer.ipynb")
    found = page.locator(".mnemo-explorer").first
    found.wait_for(timeout=150 * SECONDS)
    # The cells below it change the session too: wait for the last of them.
    page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first.wait_for(timeout=60 * SECONDS)
    page.wait_for_timeout(500)
    found.scroll_into_view_if_needed()
    facts = found.get_by_label("facts", exact=True)
    found.get_by_label("search facts").fill("VA==")
    facts.select_option(index=0)
    expect(found.locator("figcaption").first).to_contain_text("value added tax", timeout=20 * SECONDS)
    return found


def test_a_concept_is_swapped_by_mouse_and_the_answer_follows(explorer, page):
    shoot(page, "explorer-light")
    explorer.locator('[data-node="MLP1@-2"] rect').click()
    expect(explorer.locator(".mnemo-detail")).to_contain_text("logit lens", timeout=20 * SECONDS)
    expect(explorer.locator(".mnemo-detail")).to_contain_text("value added tax")
    explorer.get_by_label("concept to swap for").fill("central processing unit")
    explorer.get_by_role("button", name="swap concept").click()
    says = explorer.get_by_test_id("says")
    expect(says).to_contain_text("The model now says U.", timeout=20 * SECONDS)
    expect(says).to_contain_text("Predicted beforehand: U.")
    expect(explorer.locator(".mnemo-log li")).to_have_text(["swap the concept for central processing unit"])
    shoot(page, "explorer-swapped")


def test_everything_can_be_done_by_keyboard(explorer, page):
    node = explorer.locator('[data-node="MLP1@-2"]').first
    node.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    title = explorer.locator(".mnemo-title")
    expect(title).not_to_have_text("MLP1@-2", timeout=20 * SECONDS)
    expect(title).to_have_text(page.evaluate("document.activeElement.dataset.node"))
    undo = explorer.get_by_role("button", name="undo")
    undo.focus()
    page.keyboard.press("Enter")
    expect(explorer.get_by_test_id("says")).to_have_count(0, timeout=20 * SECONDS)


def test_a_mistake_is_shown_in_place_as_text(explorer, page):
    concept = explorer.get_by_label("concept to swap for")
    concept.fill("<img src=x onerror=document.title='hit'>")
    concept.press("Enter")
    expect(explorer.get_by_role("alert")).to_contain_text("cannot be asked about", timeout=20 * SECONDS)
    assert explorer.locator("img").count() == 0 and page.title() != "hit"
    shoot(page, "explorer-error")


def test_a_view_is_saved_and_loaded_again(explorer, page, tmp_path):
    explorer.locator('[data-node="MLP0@-2"] rect').click()
    explorer.get_by_role("button", name="ablate").click()
    expect(explorer.locator(".mnemo-log li")).to_have_text(["ablate MLP0@-2"], timeout=20 * SECONDS)
    with page.expect_download() as download:
        explorer.get_by_role("button", name="save view").click()
    file = tmp_path / "view.json"
    download.value.save_as(file)
    saved = SavedView.parse(file.read_text(encoding="utf-8"))
    assert [act.text for act in saved.interventions] == ["ablate MLP0@-2"]
    explorer.get_by_role("button", name="clear").click()
    expect(explorer.locator(".mnemo-log li")).to_have_count(0, timeout=20 * SECONDS)
    explorer.locator('input[type="file"]').set_input_files(file)
    expect(explorer.locator(".mnemo-log li")).to_have_text(["ablate MLP0@-2"], timeout=20 * SECONDS)


def test_pictures_and_pages_are_exported(explorer, page, tmp_path):
    for name, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("HTML", b"<!doctype html>")):
        with page.expect_download() as download:
            explorer.get_by_role("button", name=name, exact=True).click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert file.read_bytes().startswith(start), name
    with page.context.browser.new_page(viewport={"width": 800, "height": 900}) as alone:
        faults: list[str] = []
        alone.on("pageerror", lambda error: faults.append(str(error)))
        alone.goto((tmp_path / "mnemo-explorer.html").as_uri())
        expect(alone.locator(".mnemo-log li")).to_have_text(["ablate MLP0@-2"])
        alone.locator('[data-node="MLP1@-2"] rect').click()
        expect(alone.locator(".mnemo-title")).to_have_text("MLP1@-2")
        assert alone.get_by_role("button", name="ablate").count() == 0
        width = alone.evaluate("document.documentElement.scrollWidth")
        shoot(alone, "snapshot-800")
        assert faults == [] and width <= 800


def test_the_dark_theme_is_followed(explorer, page):
    before = explorer.evaluate("node => getComputedStyle(node).backgroundColor")
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Theme").first.hover()
    page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'", timeout=20 * SECONDS)
    after = explorer.evaluate("node => getComputedStyle(node).backgroundColor")
    shoot(page, "explorer-dark")
    assert sum(map(int, after[4:-1].split(", "))) < 150 < 600 < sum(map(int, before[4:-1].split(", ")))


def test_selecting_repaints_within_a_tenth_of_a_second(explorer):
    took = explorer.evaluate(
        """node => [...node.querySelectorAll("[data-node]")].slice(0, 5).map(shape => {
            const start = performance.now();
            shape.dispatchEvent(new MouseEvent("click", {bubbles: true}));
            node.getBoundingClientRect();
            return performance.now() - start;
        })"""
    )
    assert sorted(took)[len(took) // 2] <= 100, json.dumps(took)


def test_the_quickstart_runs_without_an_error(lab, page):
    run_all(page, lab, "01_quickstart.ipynb")
    source = json.loads((ROOT / "notebooks" / "01_quickstart.ipynb").read_text(encoding="utf-8"))
    cells = sum(cell["cell_type"] == "code" for cell in source["cells"])
    last = page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
    expect(last).to_have_text(f"[{cells}]:", timeout=150 * SECONDS)
    assert page.locator('[data-mime-type="application/vnd.jupyter.stderr"] .ansi-red-fg').count() == 0
    assert page.get_by_text("Traceback (most recent call last)").count() == 0
    shoot(page, "quickstart")
