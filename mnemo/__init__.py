"""mnemo extracts the mnemonics that a language model uses to recall facts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnemo.attribution import attribute_edges, attribute_nodes
    from mnemo.cluster import run_sweep
    from mnemo.contrasts import Contrast, make_contrasts
    from mnemo.datasets import data_path
    from mnemo.doses import dose_curves
    from mnemo.edge_circuits import faithfulness
    from mnemo.edge_patching import exact_edges
    from mnemo.errors import InputError, MnemoError
    from mnemo.explorer import explore
    from mnemo.extraction import extract
    from mnemo.fact_evidence import FactEvidence
    from mnemo.facts import Fact, FactSet, Task
    from mnemo.messages import read_messages
    from mnemo.model import Model, load
    from mnemo.repeat import rerun
    from mnemo.scoring import benchmark
    from mnemo.study import Study
    from mnemo.traces import Trace
    from mnemo.tracing import trace
    from mnemo.trajectories import concept_trajectories
    from mnemo.verification import top_edges, verify

__version__ = "0.1.0"
__all__ = [
    "Contrast", "Fact", "FactEvidence", "FactSet", "InputError", "MnemoError", "Model", "Study", "Task", "Trace",
    "attribute_edges", "attribute_nodes", "benchmark", "concept_trajectories", "data_path", "dose_curves",
    "exact_edges", "explore", "extract", "faithfulness", "load", "make_contrasts", "read_messages", "rerun",
    "run_sweep", "top_edges", "trace", "verify",
]  # fmt: skip

# torch and transformers take seconds to import: a name is imported when it is first used. No module may have the name
# of one of these, since importing it would put it in the place of what it holds.
_HOME = {
    "attribute_edges": "attribution", "attribute_nodes": "attribution", "benchmark": "scoring",
    "Contrast": "contrasts", "make_contrasts": "contrasts", "data_path": "datasets", "dose_curves": "doses",
    "faithfulness": "edge_circuits", "exact_edges": "edge_patching", "explore": "explorer", "InputError": "errors",
    "MnemoError": "errors", "FactEvidence": "fact_evidence", "Fact": "facts", "FactSet": "facts", "Task": "facts",
    "Model": "model", "load": "model", "read_messages": "messages", "rerun": "repeat", "run_sweep": "cluster",
    "Study": "study", "extract": "extraction", "Trace": "traces", "trace": "tracing",
    "concept_trajectories": "trajectories", "top_edges": "verification", "verify": "verification",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mnemo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mnemo.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
