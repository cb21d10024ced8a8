"""The notebooks in a real JupyterLab in a real browser: what a user clicks, types and sees.

Needs chromium (Debian: apt-get install chromium fonts-dejavu-core); without it the tests are skipped, never in CI.
Screenshots go to the folder named by MNEMO_SCREENSHOTS, where it is set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from explorer import SELECTING, large_trace
from playwright.sync_api import Locator, Page, expect, sync_playwright

from mnemo.explorer import Session
from mnemo.explorer.snapshot import page as snapshot_page
from mnemo.explorer.view import SavedView

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("MNEMO_CHROMIUM") or shutil.which("chromium")
SECONDS = 1000  # of playwright's milliseconds
HOSTILE = "<img src=x onerror=\"document.title='hit'\">"

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
    quiet = home / ".settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ip=127.0.0.1", "--allow-root",
        "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={home}",
    ]  # fmt: skip
    places = {f"JUPYTER{name}": str(home / f".{name.lower()}") for name in ("_CONFIG_DIR", "_RUNTIME_DIR")}
    places |= {f"JUPYTERLAB_{name}_DIR": str(home / f".{name.lower()}") for name in ("SETTINGS", "WORKSPACES")}
    places |= {"OMP_NUM_THREADS": "1"}  # two notebooks run at once, and threads would wait for each other
    with (home / "lab.log").open("w") as log:
        own = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # figures are to be shown
        server = subprocess.Popen(command, cwd=home, env=own | places, stdout=log, stderr=subprocess.STDOUT)
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
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A notebook of which all cells were run, and what the browser had to complain about."""

    page: Page
    cells: int
    faults: list[str]

    def wait(self) -> None:
        """Wait until the last cell has run."""
        last = self.page.locator(".jp-CodeCell").last.locator(".jp-InputPrompt")
        expect(last).to_have_text(f"[{self.cells}]:", timeout=200 * SECONDS)


@pytest.fixture(scope="module")
def notebooks(lab, browser):
    """Both notebooks, which run at the same time."""
    return {name: run_all(browser, lab, name) for name in ("02_circuit_explorer", "01_quickstart")}


def run_all(browser, address: str, name: str) -> Opened:
    """Open a notebook and run all of its cells."""
    page = browser.new_page(viewport={"width": 1500, "height": 1250}, accept_downloads=True)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?reset")
    # Run before the kernel is connected is dropped silently: wait for what the status bar says.
    page.locator(".jp-StatusBar-TextItem", has_text="| Idle").first.wait_for(timeout=90 * SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    source = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return Opened(page, sum(cell["cell_type"] == "code" for cell in source["cells"]), faults)


def shoot(page: Page, name: str) -> None:
    if folder := os.environ.get("MNEMO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def page(notebooks):
    return notebooks["02_circuit_explorer"].page


@pytest.fixture(scope="module")
def opened(notebooks, page):
    """The explorer of the second notebook, when all cells have run."""
    notebooks["02_circuit_explorer"].wait()  # the cells below the explorer change it too
    page.get_by_role("tab", name="File Browser").first.click()  # room for the notebook
    found = page.locator(".mnemo-explorer").first
    found.scroll_into_view_if_needed()
    return found


@pytest.fixture
def explorer(opened) -> Locator:
    """The explorer showing VA== alone, nothing done."""
    settled(opened)
    if opened.locator("figure").count() > 1:
        opened.get_by_role("button", name="close the comparison").click()
        settled(opened)
    search = opened.get_by_label("search facts")
    search.fill("VA==")
    # case tells VA== from vA==: the list shows both
    opened.locator(".mnemo-facts [role=option]", has_text="VA==").filter(has_text="value added tax").click()
    expect(opened.locator("figcaption").first).to_contain_text("VA== → value added tax → T", timeout=30 * SECONDS)
    settled(opened)
    search.fill("")
    return opened


def settled(explorer: Locator) -> None:
    """Wait for the kernel's answer."""
    expect(explorer).to_have_attribute("aria-busy", "false", timeout=30 * SECONDS)


def slide(explorer: Locator, label: str, value: float) -> None:
    """Move a slider as the arrow keys do."""
    explorer.get_by_role("slider", name=label, exact=True).evaluate(
        """(slider, value) => { slider.value = value;
           for (const name of ["input", "change"]) slider.dispatchEvent(new Event(name, {bubbles: true})); }""",
        value,
    )
    settled(explorer)


# ---- looking


def test_nodes_edges_and_paths_are_described_when_they_are_selected(explorer, page):
    detail = explorer.locator(".mnemo-detail")
    explorer.locator('[data-node="MLP1@-2"] rect').click()
    expect(detail).to_contain_text("logit lens", timeout=30 * SECONDS)
    expect(detail).to_contain_text("value added tax")
    expect(detail).to_contain_text("logits ·")
    shoot(page, "explorer-node")
    detail.get_by_role("button", name="MLP0@-2 → MLP1@-2").click()
    expect(detail.locator(".mnemo-title")).to_have_text("MLP0@-2 → MLP1@-2")
    expect(detail).to_contain_text("its ends", timeout=30 * SECONDS)
    explorer.locator(".mnemo-paths [role=option]").first.click()
    expect(detail.locator(".mnemo-steps li").last).to_contain_text("logits@-1", timeout=30 * SECONDS)
    steps = detail.locator(".mnemo-steps li").count()
    assert explorer.locator(".route path").count() == steps - 1
    shoot(page, "explorer-path")
    detail.get_by_role("button", name="L0H0.v@-2").click()
    expect(detail).to_contain_text("attends to", timeout=30 * SECONDS)


def test_facts_are_searched_and_filtered(explorer):
    count, options = explorer.locator(".mnemo-count"), explorer.locator(".mnemo-facts [role=option]")
    everything = int(count.inner_text().split(" of ")[1].split(",")[0])
    explorer.get_by_label("verdict", exact=True).select_option("rote")
    rote = int(count.inner_text().split(" of ")[0])
    assert 0 < rote < everything
    expect(options.first).to_contain_text("rote")
    slide(explorer, "score ≥", 1)
    assert options.count() == 0
    expect(explorer.locator(".mnemo-facts")).to_contain_text("No fact is like that.")
    slide(explorer, "score ≥", 0)
    explorer.get_by_label("verdict", exact=True).select_option("")
    explorer.get_by_label("search facts").fill("tax")
    expect(options.first).to_contain_text("tax")
    explorer.get_by_label("search facts").fill("")


def test_thresholds_grouping_and_pins_change_what_is_drawn(explorer, page):
    nodes = explorer.locator("[data-node]")
    few = nodes.count()
    slide(explorer, "least share", -4)
    many = nodes.count()
    assert many > few
    shoot(page, "explorer-many")
    weak = explorer.locator('[data-node^="L2H"]').first.get_attribute("data-node")
    explorer.locator(f'[data-node="{weak}"]').dispatch_event("click")
    explorer.get_by_role("button", name="pin", exact=True).click()
    settled(explorer)
    slide(explorer, "least share", -0.3)
    expect(explorer.locator(f'[data-node="{weak}"]')).to_have_class(re.compile("pinned"))
    explorer.get_by_label("group by").select_option("layer")
    settled(explorer)
    assert (
        explorer.locator('[data-node="L0@-2"]').count() == 1 and explorer.locator('[data-node="L0H0@-2"]').count() == 0
    )
    explorer.get_by_label("group by").select_option("head")
    settled(explorer)
    slide(explorer, "least share", -1.7)
    slide(explorer, "paths", 3)
    assert explorer.locator(".mnemo-paths [role=option]").count() == 3
    slide(explorer, "paths", 10)


def test_two_facts_stand_side_by_side(explorer, page):
    explorer.get_by_label("cue to compare with").fill("4T==")
    explorer.get_by_role("button", name="compare", exact=True).click()
    expect(explorer.locator("figure")).to_have_count(2, timeout=30 * SECONDS)
    boxes = [figure.bounding_box() for figure in explorer.locator("figure").all()]
    feet = [box["y"] + box["height"] for box in boxes]
    assert feet[0] == pytest.approx(feet[1]) and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    explorer.get_by_label("concept to swap for").fill("central processing unit")
    explorer.get_by_role("button", name="swap concept").click()
    expect(explorer.get_by_test_id("says")).to_have_count(2, timeout=30 * SECONDS)
    shoot(page, "explorer-compare")


# ---- intervening


def test_a_concept_is_swapped_by_mouse_and_the_answer_follows(explorer, page):
    explorer.get_by_label("concept to swap for").fill("central processing unit")
    busy = explorer.evaluate(
        """node => { [...node.querySelectorAll("button")].find(b => b.textContent === "swap concept").click();
           return node.getAttribute("aria-busy"); }"""
    )
    assert busy == "true"
    says = explorer.get_by_test_id("says")
    expect(says).to_contain_text("The model now says U instead of T.", timeout=30 * SECONDS)
    expect(says).to_contain_text("U was predicted beforehand, and it came.")
    settled(explorer)
    expect(explorer.locator(".mnemo-log li")).to_have_text(["swap the concept for central processing unit"])
    table = explorer.locator(".mnemo-outcomes table")
    expect(table.locator("thead th")).to_have_text(["answer", "before", "after", "control"])
    predicted = table.locator("tr", has_text="predicted").locator("td").all_inner_texts()
    assert float(predicted[0]) < 0.1 < 0.9 < float(predicted[1]) and float(predicted[2]) < 0.5
    explorer.locator("summary", has_text="as Python").click()
    expect(explorer.locator(".mnemo-log pre")).to_contain_text("session.swap(concept='central processing unit')")
    shoot(page, "explorer-swapped")


def test_edges_and_components_are_ablated_and_patched(explorer):
    explorer.locator('[data-node="MLP1@-2"] rect').click()
    settled(explorer)
    explorer.get_by_label("cue to patch from").fill("vA==")
    explorer.get_by_label("cue to patch from").press("Enter")
    log = explorer.locator(".mnemo-log li")
    expect(log).to_have_text(["patch MLP1@-2 from vA=="], timeout=30 * SECONDS)
    explorer.locator('[data-edge="MLP0@-2>MLP1@-2"]').dispatch_event("click")
    settled(explorer)
    explorer.get_by_role("button", name="ablate").click()
    expect(log).to_have_text(["patch MLP1@-2 from vA==", "ablate MLP0@-2 → MLP1@-2"], timeout=30 * SECONDS)


def test_everything_can_be_done_by_keyboard(explorer, page):
    cells = page.locator(".jp-Cell").count()
    node = explorer.locator('[data-node="MLP1@-2"]')
    node.focus()
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("document.activeElement.dataset.node")
    assert focused and focused != "MLP1@-2"
    width = "getComputedStyle(document.activeElement.querySelector('circle, rect')).strokeWidth"
    assert page.evaluate(width) == "5px"  # seen to have the focus
    page.keyboard.press("Enter")
    expect(explorer.locator(".mnemo-title")).to_contain_text(focused)
    settled(explorer)
    assert page.evaluate("document.activeElement.dataset.node") == focused  # still where it was
    for key in ("d", "d", "x", "a"):  # the notebook has keys of its own, which would cut the cell
        page.keyboard.press(key)
    assert page.locator(".jp-Cell").count() == cells
    concept = explorer.get_by_label("concept to swap for")
    concept.focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("central processing unit")
    page.keyboard.press("Enter")
    expect(explorer.get_by_test_id("says")).to_contain_text("The model now says U", timeout=30 * SECONDS)
    undo = explorer.get_by_role("button", name="undo")
    undo.focus()
    page.keyboard.press("Enter")
    expect(explorer.get_by_test_id("says")).to_have_count(0, timeout=30 * SECONDS)
    explorer.get_by_role("listbox", name="paths").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(explorer.locator(".mnemo-title")).to_contain_text("path")
    settled(explorer)
    explorer.get_by_label("search facts").fill("scottish")
    explorer.get_by_role("listbox", name="facts").focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(explorer.locator("figcaption").first).to_contain_text("scottish national party", timeout=30 * SECONDS)


# ---- mistakes


def test_a_mistake_is_shown_in_place_as_text(explorer, page):
    concept = explorer.get_by_label("concept to swap for")
    alert = explorer.get_by_role("alert")
    for typed in (HOSTILE, "x" * 10_000):
        concept.fill(typed)
        concept.press("Enter")
        expect(alert).to_contain_text("cannot be asked about", timeout=30 * SECONDS)
        expect(alert).to_be_in_viewport()
        settled(explorer)
        assert explorer.locator("img").count() == 0 and page.title() != "hit"
        assert explorer.evaluate("node => node.scrollWidth <= node.clientWidth")
    shoot(page, "explorer-error")
    expect(explorer.locator("figcaption").first).to_contain_text("VA== → value added tax → T")
    alert.get_by_role("button", name="dismiss").click()
    expect(alert).to_have_count(0)


def test_a_view_is_saved_and_loaded_again_and_a_broken_one_refused(explorer, page, tmp_path):
    explorer.locator('[data-node="MLP0@-2"] rect').click()
    settled(explorer)
    explorer.get_by_role("button", name="ablate").click()
    log = explorer.locator(".mnemo-log li")
    expect(log).to_have_text(["ablate MLP0@-2"], timeout=30 * SECONDS)
    with page.expect_download() as download:
        explorer.get_by_role("button", name="save view").click()
    file = tmp_path / "view.json"
    download.value.save_as(file)
    saved = SavedView.parse(file.read_text(encoding="utf-8"))
    assert [act.text for act in saved.interventions] == ["ablate MLP0@-2"] and len(saved.graphs) == 1
    explorer.get_by_role("button", name="clear").click()
    expect(log).to_have_count(0, timeout=30 * SECONDS)
    broken = tmp_path / "broken.json"
    broken.write_text('{"view": {"fact": 3}}', encoding="utf-8")
    chooser = explorer.locator('input[type="file"]')
    chooser.set_input_files(broken)
    expect(explorer.get_by_role("alert")).to_contain_text("not a saved view (view.fact:", timeout=30 * SECONDS)
    chooser.set_input_files(file)
    expect(log).to_have_text(["ablate MLP0@-2"], timeout=30 * SECONDS)
    expect(explorer.get_by_role("alert")).to_have_count(0)


# ---- files


def test_pictures_pages_and_code_are_exported(explorer, page, browser, tmp_path):
    explorer.get_by_label("concept to swap for").fill("central processing unit")
    explorer.get_by_role("button", name="swap concept").click()
    expect(explorer.get_by_test_id("says")).to_have_count(1, timeout=30 * SECONDS)
    for name, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("HTML", b"<!doctype html>")):
        with page.expect_download() as download:
            explorer.get_by_role("button", name=name, exact=True).click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert file.read_bytes().startswith(start), name
    if folder := os.environ.get("MNEMO_SCREENSHOTS"):
        shutil.copy(tmp_path / "mnemo-explorer.png", Path(folder) / "export.png")
    explorer.locator("summary", has_text="as Python").click()
    with page.expect_download() as download:
        explorer.get_by_role("button", name="download").click()
    assert download.value.suggested_filename == "mnemo-interventions.py"
    with browser.new_page(viewport={"width": 800, "height": 900}) as alone:
        faults: list[str] = []
        alone.on("pageerror", lambda error: faults.append(str(error)))
        alone.goto((tmp_path / "mnemo-explorer.html").as_uri())
        expect(alone.locator(".mnemo-log li")).to_have_text(["swap the concept for central processing unit"])
        alone.locator('[data-node="MLP1@-2"] rect').click()
        expect(alone.locator(".mnemo-title")).to_contain_text("MLP1@-2")
        expect(alone.locator(".mnemo-detail")).to_contain_text("value added tax")
        assert alone.get_by_role("button", name="ablate").count() == 0
        shoot(alone, "snapshot-800")
        assert faults == [] and alone.evaluate("document.documentElement.scrollWidth") <= 800
        alone.goto((tmp_path / "mnemo-explorer.svg").as_uri())
        assert alone.evaluate("document.querySelectorAll('text').length") > 20


def test_hostile_text_is_drawn_as_text(browser, tmp_path):
    trace = large_trace(layers=2, heads=2, length=4)
    hostile = {name: HOSTILE for name in ("cue", "answer", "contrast_cue", "contrast_answer")}
    pieces = (HOSTILE, *trace.pieces[1:])
    session = Session(trace.model_copy(update={**hostile, "pieces": pieces}))
    session.scenes[0]["waypoint"] = {"x": 100, "y": 100, "text": HOSTILE}
    state = {**session.state(), "log": [HOSTILE], "code": HOSTILE}
    file = tmp_path / "hostile.html"
    file.write_text(snapshot_page(state, session.scenes, details=session.details()), encoding="utf-8")
    with browser.new_page() as page:
        page.goto(file.as_uri())
        expect(page.locator("figcaption")).to_contain_text("<img src=x")
        for part in page.locator("[data-node], [data-edge], [role=option]").all():
            part.dispatch_event("click")
        assert page.locator("img").count() == 0 and page.title() != "hit"


# ---- how it looks and how fast it is


def test_hundreds_of_nodes_are_selected_within_a_tenth_of_a_second(browser, tmp_path):
    session = Session(large_trace(layers=16, heads=8, length=8))
    session.do({"do": "show", "least_share": 0.0})
    file = tmp_path / "large.html"
    file.write_text(snapshot_page(session.state(), session.scenes, details={}), encoding="utf-8")
    with browser.new_page(viewport={"width": 1400, "height": 1000}) as page:
        page.goto(file.as_uri())
        assert page.locator("[data-node]").count() >= 400 and page.locator("[data-edge]").count() >= 300
        took = page.evaluate(SELECTING)
        shoot(page, "large")
    assert sorted(took)[len(took) // 2] <= 100, json.dumps(took)


def test_it_fits_into_800_pixels(explorer, page):
    explorer.locator('[data-node="MLP1@-2"] rect').click()
    settled(explorer)
    size = page.viewport_size
    page.set_viewport_size({"width": 800, "height": 1250})
    page.wait_for_timeout(300)
    explorer.scroll_into_view_if_needed()
    shoot(page, "explorer-800")
    out = explorer.evaluate(
        """node => { const box = node.getBoundingClientRect();
           return [...node.querySelectorAll("button, input, select, table, [role=listbox], figcaption, h4")]
             .filter(part => part.offsetParent && !part.classList.contains("mnemo-hidden"))
             .filter(part => part.getBoundingClientRect().left < box.left
                             || part.getBoundingClientRect().right > box.right + 0.5)
             .map(part => part.outerHTML.slice(0, 80)); }"""
    )
    width = explorer.evaluate("node => node.getBoundingClientRect().width")
    page.set_viewport_size(size)
    assert out == [] and width <= 800


def test_it_fills_the_screen_and_comes_back(explorer, page):
    explorer.get_by_role("button", name="fullscreen").click()
    leave = explorer.get_by_role("button", name="leave fullscreen")
    expect(leave).to_be_visible(timeout=30 * SECONDS)
    assert page.evaluate("document.fullscreenElement.className") == "mnemo-explorer"
    shoot(page, "explorer-fullscreen")
    leave.click()
    expect(explorer.get_by_role("button", name="fullscreen", exact=True)).to_be_visible(timeout=30 * SECONDS)


def test_everything_that_can_be_used_has_a_name(explorer):
    explorer.locator('[data-node="MLP1@-2"] rect').click()
    settled(explorer)
    nameless = explorer.evaluate(
        """node => [...node.querySelectorAll("button, input, select, [role=listbox], [role=button], section")]
             .filter(part => !part.classList.contains("mnemo-hidden"))
             .filter(part => !(part.getAttribute("aria-label") || part.textContent.trim()
                               || part.labels?.[0]?.textContent.trim()))
             .map(part => part.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


def test_the_dark_theme_is_followed(explorer, page):
    before = explorer.evaluate("node => getComputedStyle(node).backgroundColor")
    explorer.locator('[data-node="MLP1@-2"] rect').click()
    settled(explorer)
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text="Theme").first.hover()
    page.locator(".lm-Menu-itemLabel", has_text="JupyterLab Dark").first.click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'", timeout=30 * SECONDS)
    page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=30 * SECONDS)
    after = explorer.evaluate("node => getComputedStyle(node).backgroundColor")
    shoot(page, "explorer-dark")
    assert sum(map(int, after[4:-1].split(", "))) < 150 < 600 < sum(map(int, before[4:-1].split(", ")))


def test_nothing_went_wrong_in_the_browser(explorer, notebooks):
    assert notebooks["02_circuit_explorer"].faults == []


def test_the_quickstart_runs_without_an_error(notebooks):
    opened = notebooks["01_quickstart"]
    opened.wait()
    assert opened.page.locator('[data-mime-type="application/vnd.jupyter.stderr"] .ansi-red-fg').count() == 0
    assert opened.page.get_by_text("Traceback (most recent call last)").count() == 0
    opened.page.bring_to_front()  # JupyterLab draws what is seen
    opened.page.locator(".jp-OutputArea-output img").first.scroll_into_view_if_needed(timeout=30 * SECONDS)
    shoot(opened.page, "quickstart")
