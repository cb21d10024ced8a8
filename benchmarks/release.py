"""Check a release: build the wheel, install it into an empty environment outside the checkout, run the demo from there.

    python benchmarks/release.py

What mnemo needs is taken from the environment that runs this, through a .pth file; mnemo itself, and the data that it
ships, only from the wheel. The demo runs in an empty folder, and what it imports and reads must lie in the new
environment. Exit code 0 and one line where all is well, else 1 and what went wrong.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is asked of the installed package, in a process of its own.
WHERE = "import mnemo; from mnemo.datasets import data_path; print(mnemo.__file__); print(data_path('organism'))"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mnemo-release-") as place:
        folder = Path(place).resolve()
        run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT)
        (wheel,) = folder.glob("*.whl")
        python = environment(folder / "env")
        run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)])
        borrow(python)
        work = folder / "work"
        work.mkdir()
        for line in run([str(python), "-c", WHERE], cwd=work).splitlines():
            if not Path(line).is_relative_to(folder / "env"):
                fail(f"{line} is not in the new environment: the wheel lacks it, or the checkout was found instead")
        shown = run([str(python.parent / "mnemo"), "demo", "--out", str(work / "demo")], cwd=work)
        if "value added tax" not in shown or not list((work / "demo").glob("*.png")):
            fail(f"the demo shows no concept, or drew no figure: {shown[-200:]}")
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name} ({size:.1f} MB): installed alone, its data found, the demo shows its concept")


def environment(folder: Path) -> Path:
    """Make an empty virtual environment and return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def borrow(python: Path) -> None:
    """Let an environment see the packages of this one, behind its own; lines of .pth files there are not run."""
    (packages,) = run([str(python), "-c", "import site; print(site.getsitepackages()[0])"]).split()
    (Path(packages) / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")


def run(command: list[str], *, cwd: Path | None = None) -> str:
    """Run a command that knows nothing of this checkout, and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{' '.join(command[:4])} ... failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def fail(why: str) -> None:
    print(f"release: {why}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
