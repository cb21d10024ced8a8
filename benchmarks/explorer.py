"""How fast the explorer is: opening a trace, selecting, intervening, and repainting in a browser.

    python benchmarks/explorer.py            # on the shipped organism; prints a table
    python benchmarks/explorer.py --write    # and puts it into benchmarks/explorer.md

The browser's part needs chromium (MNEMO_CHROMIUM or on the path) and is left out without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import mnemo
from mnemo.explorer import Session
from mnemo.explorer.snapshot import page as snapshot_page
from mnemo.files import write_text
from mnemo.traces import Trace

RUNS = 9
Row = tuple[str, list[float], int | None]  # what, times of its runs in ms, and the most they may be
REPORT = Path(__file__).with_suffix(".md")

# Clicks on parts all over the drawing; each time counts until style and layout are computed and the frame is drawn.
SELECTING = """async () => {
  const parts = [...document.querySelectorAll("[data-node], [data-edge]")];
  const took = [];
  for (let i = 0; i < 15; i++) {
    const part = parts[Math.floor(i * parts.length / 15)];
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    part.dispatchEvent(new MouseEvent("click", {bubbles: true}));
    document.body.getBoundingClientRect();
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    took.push(performance.now() - start);
  }
  return took;
}"""


def large_trace(*, layers: int, heads: int, length: int, seed: int = 0) -> Trace:
    """Make a trace of a model that is not there, with every component at every position and random values.

    Args:
        layers, heads: of the model.
        length: of the prompt.
        seed: draws the values.
    """
    draw = random.Random(seed)
    names = [f"L{layer}H{head}" for layer in range(layers) for head in range(heads)]
    names += [f"MLP{layer}" for layer in range(layers)]
    places = [(name, position) for name in names for position in range(-length, 0)]
    total = 10.0

    def scored(**fields: object) -> dict[str, object]:
        value = draw.gauss(0, 1)
        return {**fields, "value": value, "share": value / total}

    edges = [
        scored(
            writer=f"L{layer}H{draw.randrange(heads)}",
            reader=f"MLP{draw.randrange(layer + 1, layers)}",
            source=position,
            position=position,
        )
        for position in range(-length, 0)
        for layer in range(layers - 1)
        for _ in range(60)
    ]
    steps = [{"component": "embed", "position": -2, "token": "t"}]
    steps += [{"component": f"MLP{layer}", "position": -2} for layer in range(layers)]
    steps += [{"component": f"L{layers - 1}H0", "position": -1, "slot": "v"}, {"component": "logits", "position": -1}]
    return Trace.model_validate_json(
        json.dumps(
            {
                "fact_id": "f", "cue": "cue", "answer": "T", "contrast_id": "g", "contrast_cue": "other",
                "contrast_answer": "U", "prompt": "t" * length, "corrupt_prompt": "u" * length,
                "tokens": [1] * length, "pieces": ["t"] * length, "corrupt_tokens": [2] * length,
                "corrupt_pieces": ["u"] * length, "answer_token": "T", "contrast_answer_token": "U", "predicted": "T",
                "metric_clean": total, "metric_corrupt": 0.0, "total": total, "conserved": 0.0,
                "quadrature_error": 0.0, "quadrature_nodes": 1, "n_layers": layers, "n_heads": heads,
                "nodes": [scored(component=name, position=position) for name, position in places],
                "streams": [], "edges": edges, "paths": [scored(steps=steps)], "seed": seed,
                "model_name": "large", "fingerprint": "", "versions": {},
            }
        )
    )  # fmt: skip


def milliseconds(do: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    do()
    return 1000 * (time.perf_counter() - start)


def in_python() -> list[Row]:
    """Measure what the kernel does for each click."""
    study = mnemo.extract(mnemo.data_path("organism"), quick=True, progress=False)
    facts = [name for name in study.table["fact_id"] if name in study.contrasts][: RUNS + 1]
    session = Session(study, facts[0])  # the first trace loads what the next ones have
    session.prepare()
    own = study[facts[0]]["concept"]
    concepts = [phrase for phrase in dict.fromkeys(study.table["concept"].dropna()) if phrase != own][:RUNS]
    cues = [study[name]["cue"] for name in facts[1:]]
    opening = [milliseconds(lambda name=name: session.choose(name)) for name in facts[1:]]
    session.choose(facts[0])
    nodes = [node["id"] for node in sorted(session.scenes[0]["nodes"], key=lambda node: -abs(node["value"]))]
    written = [node for node in nodes if not node.startswith("logits")][:RUNS]
    edges = [edge["id"] for edge in session.scenes[0]["edges"] if not edge["from"].startswith("logits")][:RUNS]

    def chains() -> list[str]:
        found = []
        for i in range(RUNS):
            session.select(f"path {i + 1}")
            found.append(session.detail["part"])
        return found

    def each(do: Callable[[str], object], what: Sequence[str]) -> list[float]:
        found = []
        for one in what:
            session.clear()
            found.append(milliseconds(lambda one=one: do(one)))
        return found

    selecting = each(session.select, written)
    return [
        ("open a trace", opening, 1000),
        ("read a selected node, first time", selecting, None),
        ("swap the concept", each(session.swap, concepts), 300),
        ("ablate a component", each(session.ablate, written), 300),
        ("patch a component from another fact", each(lambda cue: session.patch(written[0], cue), cues), 300),
        ("ablate an edge", each(session.ablate, edges), 300),
        ("ablate a path", each(session.ablate, chains()), 300),
    ]


def in_browser() -> list[Row]:
    """Measure the repaint of a selection in a drawing of 400 nodes and 600 edges; nothing without chromium."""
    chromium = os.environ.get("MNEMO_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        return []
    from playwright.sync_api import sync_playwright

    session = Session(large_trace(layers=16, heads=8, length=8))
    session.show(least_share=0.0)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "large.html"
        file.write_text(snapshot_page(session.state(), session.scenes, details={}), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(file.as_uri())
        name = f"repaint a selection ({len(session.scenes[0]['nodes'])} nodes, {len(session.scenes[0]['edges'])} edges)"
        took = page.evaluate(SELECTING)
        browser.close()
    return [(name, took, 100)]


def table(rows: Sequence[Row]) -> str:
    """Return the times as a Markdown table."""
    lines = ["| what | median (ms) | slowest (ms) | runs | bar (ms) |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {statistics.median(took):.0f} | {max(took):.0f} | {len(took)} | {bar or ''} |"
        for name, took, bar in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put the table into {REPORT.name}")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    found = table([*in_python(), *in_browser()])
    busy = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    where = f"One thread, torch {torch.__version__}, {platform.machine()}, {busy}."
    print(f"{found}\n\n{where}")
    if write:
        before, mark, _ = REPORT.read_text(encoding="utf-8").partition("<!-- measured -->\n")
        write_text(REPORT, f"{before}{mark}\n{found}\n\n{where}\n")


if __name__ == "__main__":
    main()
