"""What a finished folder holds: the hash of every file, so that a damaged one is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnemo.errors import InputError
from mnemo.files import digest, write_text
from mnemo.textfiles import read_json

if TYPE_CHECKING:
    from mnemo.cluster.plan import Run

FILE = "manifest.json"
RUNS = "runs"  # folder of a sweep's runs


def write_manifest(folder: Path, **about: Any) -> None:
    """Write manifest.json: `about`, and the SHA-256 of every other file in the folder and those in it.

    Raises:
        InputError: a file cannot be read, or the manifest not be written.
    """
    files = {str(file.relative_to(folder)): digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    write_text(folder / FILE, json.dumps({**about, "files": files}, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that is whole; None where it is not, or has none."""
    try:
        manifest = read_json(folder / FILE)
        files = manifest.get("files")
        if not isinstance(files, dict) or not files:
            return None
        whole = all(_inside(name) and digest(folder / name) == expected for name, expected in files.items())
    except (InputError, ValueError):
        return None
    return manifest if whole else None


def is_done(run: Run, out: Path) -> bool:
    """Whether a run's folder is whole and says that it was made from the same inputs."""
    manifest = read_manifest(out / RUNS / run.name)
    return manifest is not None and manifest.get("signature") == run.signature


def _inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts
