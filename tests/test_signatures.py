"""Arguments of public functions: two may be told by their places, further ones by their names alone.

(Constructors that dataclasses write are no functions of ours.)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnemo

PACKAGE = Path(mnemo.__file__).parent
# What calls these decides: the command line by name, a Trainer by place.
CALLED_BY_LIBRARIES = {"cli.py", "learning/callback.py"}


def public_functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Public functions and methods, each with how many of its arguments may be given by their place."""
    for node in ast.iter_child_nodes(tree):
        name = getattr(node, "name", "")
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(node, ast.ClassDef):
            for function, places in public_functions(node):
                bound = [argument.arg for argument in function.args.args[:1]] in (["self"], ["cls"])
                yield function, places - bound
        elif isinstance(node, ast.FunctionDef):
            yield node, len(node.args.posonlyargs) + len(node.args.args)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_public_function_takes_more_than_two_arguments_by_place(file):
    if file.relative_to(PACKAGE).as_posix() in CALLED_BY_LIBRARIES:
        return
    found = public_functions(ast.parse(file.read_text(encoding="utf-8")))
    assert [function.name for function, places in found if places > 2] == []
