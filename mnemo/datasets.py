"""Where the bundled data lie."""

from __future__ import annotations

from pathlib import Path

from mnemo.errors import MnemoError

_PACKAGE = Path(__file__).resolve().parent
_ROOTS = (_PACKAGE / "data", _PACKAGE.parent / "data")  # inside a wheel, then in a checkout


def data_path(name: str) -> Path:
    """The folder of a bundled data set, such as ``"base64"``, ``"acronyms"`` or ``"organism"``.

    The package's own copy is taken before the checkout's.

    Raises:
        MnemoError: no bundled folder has that name; the message lists those that exist.
    """
    bundled = _bundled(_ROOTS)
    if name not in bundled:
        there = ", ".join(sorted(bundled)) or "none: reinstall mnemo"
        raise MnemoError(f"no bundled data named {name!r}; there are: {there}")
    return bundled[name]


def acronym_phrases() -> list[str]:
    """The bundled expansions of acronyms, such as ``"value added tax"``, in the order of their file."""
    return (data_path("acronyms") / "concepts.txt").read_text(encoding="utf-8").splitlines()


def _bundled(roots: tuple[Path, ...]) -> dict[str, Path]:
    """Name -> folder over all roots; an earlier root wins."""
    return {
        folder.name: folder
        for root in reversed(roots)
        if root.is_dir()
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith((".", "_"))
    }
