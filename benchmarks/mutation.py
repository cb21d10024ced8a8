"""Change the core mathematics in small ways, one at a time, and see whether the tests notice.

    python benchmarks/mutation.py                        # 80 mutants drawn with seed 0
    python benchmarks/mutation.py --mutants 20 --seed 1 --modules readers verdict
    python benchmarks/mutation.py --report out/mutation.jsonl        # the table of what was measured before

A mutant is one operator, comparison, number, sign or method in another's place (`FAULTS`). Places are drawn evenly over
the modules named, whatever their length; annotations, docstrings, error messages and what only decides how work is cut
into batches are left out. Each mutant runs in a copy of the project, in a process of its own, against the tests of its
module alone (`TESTS`), until the first failure; a mutant that runs longer than the limit counts as killed. Results go
to a file of JSON lines, one a mutant; mutants in it are not run again.

(No kept library does this without being installed: mutmut and cosmic-ray are none of the project's dependencies.)
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
TESTS = {
    "attribution": ["tests/test_attribution.py"],
    "attribution_runs": ["tests/test_attribution.py"],
    "corrected_attribution": ["tests/test_attribution.py"],
    "readers": ["tests/test_edge_patching.py", "tests/test_attribution.py"],
    "line": ["tests/test_paths.py", "tests/test_memory.py"],
    "multipliers": ["tests/test_paths.py"],
    "paths": ["tests/test_paths.py"],
    "verdict": ["tests/test_verdict.py"],
}
CORE = ["attribution", "attribution_runs", "corrected_attribution", "line", "multipliers", "paths", "verdict"]
LIMIT = 240  # seconds for the tests of one mutant
# How work is cut into pieces never changes a result, and messages are for people.
LEFT_OUT = ("at_once", "per_position", "widest", "width", "copies", "memory_gb", "BATCH", "MEMORY", "raise ", "tqdm")

Op = type[ast.AST]
OPERATORS: dict[Op, Op] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
COMPARISONS: dict[Op, Op] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Gt, ast.Gt: ast.GtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
METHODS = {
    "sum": "mean", "mean": "sum", "min": "max", "max": "min", "abs": "neg", "argmax": "argmin", "flip": "clone",
    "square": "abs", "any": "all", "all": "any", "exp": "sigmoid", "sigmoid": "exp",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: where, what stood there and what stands there now."""

    module: str
    line: int
    number: int  # of the changes at hand in the module, in the order in which `changes` gives them
    before: str
    after: str

    @property
    def key(self) -> str:
        return f"{self.module}:{self.line}:{self.before} -> {self.after}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of one node."""
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield ast.BinOp(node.left, OPERATORS[type(op)](), node.right)  # pyright: ignore[reportArgumentType]
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield ast.Compare(node.left, [COMPARISONS[type(op)]()], node.comparators)  # pyright: ignore[reportArgumentType]
        case ast.BoolOp(op=op):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield operand
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
            changed = copy.deepcopy(node)
            assert isinstance(changed.func, ast.Attribute)
            changed.func.attr = METHODS[name]
            yield changed
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case _:
            pass


def places(tree: ast.Module, lines: Sequence[str]) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield the nodes of a module that may be changed, each with what may stand in its place."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            todo += [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
            todo = [other for other in todo if other not in set(ast.walk(node))]
            continue
        line = getattr(node, "lineno", None)
        if line is not None and not any(word in lines[line - 1] for word in LEFT_OUT):
            for other in changes(node):
                yield node, other


def mutants(module: str) -> list[Mutant]:
    """List all changes that one module has room for."""
    text = (ROOT / "mnemo" / f"{module}.py").read_text(encoding="utf-8")
    found = []
    for number, (node, other) in enumerate(places(ast.parse(text), text.splitlines())):
        line = getattr(node, "lineno", 0)
        found.append(Mutant(module, line, number, ast.unparse(node), ast.unparse(ast.fix_missing_locations(other))))
    return found


def source_of(mutant: Mutant) -> str:
    """Return the module with the change in it."""
    text = (ROOT / "mnemo" / f"{mutant.module}.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    node, other = list(places(tree, text.splitlines()))[mutant.number]
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, name, other)
            elif isinstance(value, list) and node in value:
                value[value.index(node)] = other
    return ast.unparse(ast.fix_missing_locations(tree))


def drawn(modules: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """Draw mutants, as many from each module."""
    rng = random.Random(seed)
    pools = [rng.sample(found, len(found)) for found in map(mutants, modules)]
    turns = max(map(len, pools))
    return [pool[i] for i in range(turns) for pool in pools if i < len(pool)][:count]


def run_tests(folder: Path, tests: Sequence[str], limit: float) -> str:
    """Return ``passed``, ``failed`` or ``too long``, of the tests in a copy of the project."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return "too long"
    return "passed" if done.returncode == 0 else "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--modules", nargs="+", choices=sorted(TESTS), default=CORE)
    parser.add_argument("--mutants", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for the tests of one mutant")
    parser.add_argument("--results", type=Path, default=Path("out/mutation.jsonl"))
    parser.add_argument("--report", type=Path, help="print what such a file says, and run nothing")
    options = parser.parse_args()
    if options.report:
        print(report(read(options.report)))
        return
    options.results.parent.mkdir(parents=True, exist_ok=True)
    known = {row["key"] for row in read(options.results)}
    todo = [m for m in drawn(options.modules, options.mutants, options.seed) if m.key not in known]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "mnemo"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "out", "dist", "__pycache__"))
        for tests in {tuple(TESTS[mutant.module]) for mutant in todo}:
            if run_tests(folder, tests, 4 * options.limit) != "passed":
                sys.exit(f"{' and '.join(tests)} fail without any change: mend them first")
        for mutant in tqdm(todo, unit="mutant"):
            file = folder / "mnemo" / f"{mutant.module}.py"
            untouched, start = file.read_text(encoding="utf-8"), time.perf_counter()
            file.write_text(source_of(mutant), encoding="utf-8")
            outcome = run_tests(folder, TESTS[mutant.module], options.limit)
            file.write_text(untouched, encoding="utf-8")
            row = {**asdict(mutant), "key": mutant.key, "outcome": outcome, "seconds": time.perf_counter() - start}
            with options.results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
    print(report(read(options.results)))


def read(file: Path) -> list[dict[str, str]]:
    """Read a file of results; nothing where there is none."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def report(rows: Sequence[dict[str, str]]) -> str:
    """Return the share killed by module, and every survivor, in Markdown."""
    lines = ["| module | mutants | killed | share |", "| --- | --- | --- | --- |"]
    for module in [*dict.fromkeys(row["module"] for row in rows), "all"]:
        some = [row for row in rows if module in (row["module"], "all")]
        killed = sum(row["outcome"] != "passed" for row in some)
        lines.append(f"| {module} | {len(some)} | {killed} | {killed / max(1, len(some)):.0%} |")
    lines += ["", "Survivors:", ""]
    lines += [
        f"* {row['module']}.py: `{row['before']}` -> `{row['after']}`" for row in rows if row["outcome"] == "passed"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
