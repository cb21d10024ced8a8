"""Look around in the circuit of a fact, and intervene on the real model by clicking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnemo.explorer.session import Session

if TYPE_CHECKING:
    from mnemo.study import Study
    from mnemo.tracing import Trace


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
    if classic:
        from mnemo.explorer.classic import classic_explorer

        return classic_explorer(session)
    try:
        from mnemo.explorer.widget import ExplorerWidget
    except ImportError:
        from mnemo.explorer.classic import classic_explorer

        return classic_explorer(session)
    return ExplorerWidget(session)


def __getattr__(name: str) -> Any:
    if name == "ExplorerWidget":
        from mnemo.explorer.widget import ExplorerWidget

        return ExplorerWidget
    raise AttributeError(f"module 'mnemo.explorer' has no attribute {name!r}")


__all__ = ["Session", "explore"]
