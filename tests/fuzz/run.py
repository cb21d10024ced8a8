"""Feed every parser a hundred thousand cases and report what escaped.

    python tests/fuzz/run.py                              # 100,000 cases, over all parsers
    python tests/fuzz/run.py --cases 5000 --only facts    # these

Four in five cases come from atheris, which keeps those that reach new lines and changes them further, the others from
hypothesis, which changes good files in meaningful ways and takes longer. A case fails if anything but a `MnemoError`
escapes, if it takes more than `SECONDS`, or if the process grows beyond `MEGABYTES`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 10, 4096


def main() -> int:
    """Run what the arguments say; returns the exit code."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=100_000, help="in all")
    arguments.add_argument("--only", nargs="*", default=[], help="parsers")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--worker", nargs=3, metavar=("ENGINE", "PARSER", "CASES"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.worker:
        engine, parser, cases = given.worker
        {"atheris": _atheris, "hypothesis": _hypothesis}[engine](parser, int(cases), given.seed)
        return 0
    from tests.fuzz.parsers import PARSERS

    names = given.only or list(PARSERS)
    each = -(-given.cases // len(names))
    few = -(-each // 5)
    total = failed = 0
    print(f"{'parser':10} {'engine':11} {'cases':>8} {'taken':>8} {'share':>6} {'seconds':>8} {'MB':>6}")
    for name in names:
        for engine, cases in (("atheris", each - few), ("hypothesis", few)):
            start = time.monotonic()
            command = [sys.executable, __file__, "--seed", str(given.seed), "--worker", engine, name, str(cases)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            report = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
            if done.returncode or report is None:
                failed += 1
                print(f"{name:10} {engine:11} ESCAPED\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
                continue
            found = json.loads(report)
            total += found["cases"]
            seconds = time.monotonic() - start
            share = found["taken"] / max(1, found["cases"])
            print(
                f"{name:10} {engine:11} {found['cases']:8} {found['taken']:8} {share:6.1%} {seconds:8.0f} "
                f"{found['mb']:6}"
            )
            sys.stdout.flush()
    print(f"{total} cases, {failed} escaped")
    return 1 if failed else 0


class _Count:
    """Cases so far, and how many of them were taken; printed as one line of JSON."""

    def __init__(self) -> None:
        self.cases = self.taken = 0

    def add(self, taken: bool) -> None:
        self.cases, self.taken = self.cases + 1, self.taken + taken

    def report(self) -> None:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        assert grown < MEGABYTES, f"grew to {grown} MB"
        print(json.dumps({"cases": self.cases, "taken": self.taken, "mb": grown}), flush=True)


def _atheris(name: str, cases: int, seed: int) -> None:
    import atheris as untyped

    atheris: Any = untyped
    with atheris.instrument_imports(include=["mnemo"]):
        from tests.fuzz.parsers import PARSERS, refuses_well
    parser, count = PARSERS[name], _Count()
    corpus = Path(tempfile.mkdtemp(prefix="mnemo-corpus-"))
    for i, example in enumerate(parser.examples):
        (corpus / str(i)).write_text(example)
        refuses_well(parser, example.encode())  # what is imported on the way is no case's time

    def one(data: bytes) -> None:
        count.add(refuses_well(parser, data))
        if count.cases == cases:
            count.report()
            os._exit(0)  # libFuzzer would leave the process itself, and without this report

    limits = [f"-seed={seed}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}"]
    atheris.Setup([sys.argv[0], *limits, "-max_len=4096", "-verbosity=0", str(corpus)], one)
    atheris.Fuzz()


def _hypothesis(name: str, cases: int, seed: int) -> None:
    import hypothesis
    from hypothesis import strategies as st

    from tests.fuzz.cases import UNCHECKED, documents, texts_near
    from tests.fuzz.parsers import PARSERS, refuses_well

    parser, count = PARSERS[name], _Count()
    refuses_well(parser, parser.examples[0].encode())  # as above
    near = texts_near(parser.examples)
    if parser.document is not None:
        changed = documents(parser.document).map(lambda value: parser.spell(value).encode("utf-8", "surrogatepass"))
        near = st.one_of(near, changed, changed)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=cases, deadline=SECONDS * 1000, database=None, suppress_health_check=UNCHECKED)
    @hypothesis.given(near)
    def check(data: bytes) -> None:
        count.add(refuses_well(parser, data))

    check()
    count.report()


if __name__ == "__main__":
    sys.exit(main())
