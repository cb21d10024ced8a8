"""Measure how much memory runs take and compare it with what `mnemo.shape` and `mnemo plan` say beforehand.

    OMP_NUM_THREADS=1 python benchmarks/memory.py               # four shapes, four kinds of runs; a few minutes

Every measurement is a process of its own: it loads a model with random weights from a directory, runs prompts of random
tokens under a budget, and reports the most that it ever held (VmHWM, so Linux alone). The estimate is that of `mnemo
plan`: the process, the weights, and as many prompts at once as the budget holds. Bar: the two within 25%.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tiny models of the tests

from cases import print_table, random_contrasts

from mnemo.attribution import attribute_nodes
from mnemo.memory import fit, memory_budget
from mnemo.model import load
from mnemo.multipliers import Multipliers
from mnemo.patching import TOKENS_PER_BATCH, next_logprobs
from mnemo.paths import strongest_paths
from mnemo.plan import PROCESS_GB, read_shape
from mnemo.shape import TRACE_NODES
from tests.tiny_models import saved

BAR = 0.25
NODES = {"trace": TRACE_NODES, "trace, 32 nodes": 32}  # of the quadrature: in most traces, with random weights
STAGES = ("forwards", "attribute", *NODES)
HEADER = ("shape", "tokens", "budget GB", "run", "at once", "estimate GB", "measured GB", "measured / estimate", "bar")


@dataclass(frozen=True)
class Case:
    """A model, the length and number of its prompts, and the budget."""

    family: str
    config: dict[str, Any]
    length: int
    facts: int
    budget: float

    @property
    def name(self) -> str:
        return f"{self.family}, {self.config['layers']} layers, d {self.config['d_model']}"


CASES = (  # the first three have set the formulas' coefficients, the last has not
    Case("gpt2", {"layers": 12, "d_model": 768, "heads": 12, "positions": 1024, "vocab": 50_257}, 128, 32, 1.0),
    Case("llama", {"layers": 8, "d_model": 512, "heads": 8, "positions": 1024, "vocab": 32_000}, 512, 16, 1.0),
    Case("gpt2", {"layers": 4, "d_model": 256, "heads": 8, "positions": 1024, "vocab": 5_000}, 1024, 8, 1.0),
    Case("qwen2", {"layers": 6, "d_model": 384, "heads": 6, "positions": 1024, "vocab": 16_000}, 256, 16, 0.5),
)


def estimate(case: Case, folder: Path, stage: str) -> tuple[int, float]:
    """Return how many prompts are run at once and the most that the process holds, in GB."""
    shape, parameters = read_shape(folder)
    model = PROCESS_GB + parameters * shape.itemsize / 1e9
    with memory_budget(case.budget):
        if stage in NODES:
            return 1, model + shape.trace_bytes(case.length, nodes=NODES[stage]) / 1e9
        each = shape.forward_bytes(case.length) if stage == "forwards" else shape.backward_bytes(case.length)
        most = TOKENS_PER_BATCH // case.length if stage == "forwards" else case.facts
        at_once = min(most, case.facts, fit(each))
        return at_once, model + at_once * each / 1e9


def run(case: Case, folder: Path, stage: str) -> float:
    """Do one kind of run and return the most that this process ever held, in GB."""
    model = load(folder, device="cpu")
    contrasts = random_contrasts(model, case.facts, case.length)
    with memory_budget(case.budget):
        if stage == "forwards":
            for _ in next_logprobs(model, [contrast.clean for contrast in contrasts]):
                pass
        elif stage == "attribute":
            attribute_nodes(model, contrasts)
        else:
            multipliers = Multipliers(model, contrasts[0], nodes=NODES[stage])
            multipliers.totals()
            if NODES[stage] == TRACE_NODES:
                strongest_paths(multipliers, top=1)
    said = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert said is not None
    return int(said[1]) * 1024 / 1e9


def rows(folder: Path):
    """Yield the table's rows as they are measured."""
    for number, case in enumerate(CASES):
        place = saved(case.family, folder / str(number), **case.config)
        for stage in STAGES:
            at_once, expected = estimate(case, place, stage)
            command = [sys.executable, __file__, "--case", str(number), "--stage", stage, "--folder", str(place)]
            found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            yield (
                case.name, str(case.length), f"{case.budget:g}", stage, str(at_once), f"{expected:.2f}", f"{found:.2f}",
                f"{found / expected:.2f}", f"{1 - BAR:g} to {1 + BAR:g}",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", type=int, help="measure this one in this process")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.case is not None:
        print(run(CASES[options.case], options.folder, options.stage))
        return
    with tempfile.TemporaryDirectory() as folder:
        print_table(HEADER, rows(Path(folder)))


if __name__ == "__main__":
    main()
