"""Look around in the circuit of a fact, and intervene on the real model by clicking."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mnemo.explorer.session import Session

if TYPE_CHECKING:
    from mnemo.study import Study
    from mnemo.traces import Trace


def explore(source: Study | Trace, fact: str | None = None, *, compare: Study | None = None, classic: bool = False):
    """Show the explorer in a notebook.

    Args:
        source: a study, whose model answers interventions; or a trace alone, which can be looked at.
        fact: id or cue of the fact to begin with; None for the clearest one.
        compare: another study (another model or checkpoint) to show the same fact of beside it.
        classic: use ipywidgets' own controls and matplotlib instead; also where anywidget cannot be loaded.

    Raises:
        MnemoError: no such fact, or none that can be traced.
    """
    session = Session(source, fact, other=compare)
    session.prepare()
    if not classic:
        with suppress(ImportError):
            from mnemo.explorer.widget import ExplorerWidget

            return ExplorerWidget(session)
    from mnemo.explorer.classic import ClassicExplorer

    return ClassicExplorer(session)


__all__ = ["Session", "explore"]
