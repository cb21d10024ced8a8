"""Everything of mnemo that reads files which nobody checked, as functions of bytes. Only `MnemoError` may escape."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnemo.cluster.manifest import read_manifest
from mnemo.cluster.plan import Sweep, plan_runs
from mnemo.errors import MnemoError
from mnemo.explorer.scene import make_scene
from mnemo.explorer.view import SavedView, View
from mnemo.facts import FactSet, Task
from mnemo.model_source import examine
from mnemo.plan import read_shape
from mnemo.repeat import rerun
from mnemo.scoring import read_truth
from mnemo.tracing import Trace

Json = dict[str, Any]


@dataclass(frozen=True)
class Parser:
    """A reader of files.

    Attributes:
        read: reads bytes, as far as a command would go with them.
        examples: texts that it takes, or nearly; what the fuzzers start from.
        document: for JSON, a whole document, whose values are replaced one at a time.
    """

    read: Callable[[bytes], object]
    examples: tuple[str, ...]
    document: Json | None = None


def refuses_well(parser: Parser, data: bytes) -> bool:
    """Whether the parser took `data`; what it refuses is one line, and anything but a `MnemoError` escapes."""
    try:
        parser.read(data)
    except MnemoError as error:
        assert len(str(error).splitlines()) == 1, error
        return False
    return True


def _memory() -> Path:
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="mnemo-fuzz-", dir=shared if shared.is_dir() else None))


_FOLDER = _memory()
_FACTS = FactSet.model_validate({"facts": [{"fact_id": "a", "cue": "VA==", "answer": "T"}]})


def _file(name: str, data: bytes) -> Path:
    file = _FOLDER / name
    file.write_bytes(data)
    return file


def _facts(data: bytes) -> None:
    facts = FactSet.read(_file("facts.csv", data))
    facts.write(_FOLDER / "again.csv")
    assert FactSet.read(_FOLDER / "again.csv") == facts  # what was taken is kept exactly
    repr(facts)


def _task(data: bytes) -> None:
    task = Task.read(_file("task.toml", data))
    task.write(_FOLDER / "again")
    assert Task.read(_FOLDER / "again").model_copy(update={"folder": task.folder}) == task
    for step in (task.load_facts, task.load_lexicon, lambda: task.model_path):
        refuses_well(Parser(lambda _, step=step: step(), ()), b"")


def _lexicon(data: bytes) -> None:
    _file("concepts.txt", data)
    Task(name="x", recall="{cue}", concepts="concepts.txt", folder=_FOLDER).load_lexicon()


def _sweep(data: bytes) -> None:
    sweep = Sweep.read(_file("sweep.toml", data))
    refuses_well(Parser(lambda _: plan_runs(sweep), ()), b"")


def _trace(data: bytes) -> None:
    trace = Trace.read(_file("graph.json", data))
    _ = trace.by("layer"), trace.path_table(), trace.nodes, trace.edges, trace.graph(), repr(trace)
    make_scene(trace, View(fact=trace.fact_id))


def _view(data: bytes) -> None:
    SavedView.parse(data.decode("utf-8", "replace"))


def _run(data: bytes) -> None:
    (_FOLDER / "run").mkdir(exist_ok=True)
    _file("run/run.json", data)
    rerun(_FOLDER / "run", progress=False)


def _model(data: bytes) -> None:
    (_FOLDER / "model").mkdir(exist_ok=True)
    _file("model/config.json", data)
    examine(_FOLDER / "model")
    read_shape(_FOLDER / "model")


def _truth(data: bytes) -> None:
    read_truth(_file("truth.csv", data), _FACTS)


def _manifest(data: bytes) -> None:
    _file("manifest.json", data)
    read_manifest(_FOLDER)


_STEP = {"component": "embed", "position": -3, "slot": None, "token": "V"}
_TRACE: Json = {
    "format": "mnemo trace 1", "fact_id": "a", "cue": "V", "answer": "T", "contrast_id": "b", "contrast_cue": "Q",
    "contrast_answer": "A", "prompt": "decode V is", "corrupt_prompt": "decode Q is", "tokens": [5, 7, 9],
    "pieces": ["V", "=", " is"], "corrupt_tokens": [6, 7, 9], "corrupt_pieces": ["Q", "=", " is"],
    "answer_token": "T", "contrast_answer_token": "A", "predicted": "T", "metric_clean": 2.0, "metric_corrupt": -2.0,
    "total": 4.0, "conserved": 0.0, "quadrature_error": 0.0, "quadrature_nodes": 8, "n_layers": 2, "n_heads": 2,
    "nodes": [{"component": "L0H1", "position": -1, "value": 1.0, "share": 0.25}],
    "streams": [{"stream_layer": 1, "position": -1, "value": 1.0, "share": 0.25}],
    "edges": [{"writer": "L0H1", "reader": "logits", "source": -1, "position": -1, "value": 1.0, "share": 0.25}],
    "paths": [
        {
            "steps": [_STEP, {**_STEP, "component": "L0H1", "position": -1, "slot": "v", "token": None},
                      {**_STEP, "component": "logits", "position": -1, "token": None}],
            "value": 1.0, "share": 0.25,
        }
    ],
    "seed": 0, "model_name": "m", "fingerprint": "f", "versions": {"torch": "2"}, "command": None, "source": {},
}  # fmt: skip
_VIEW: Json = {
    "format": "mnemo view 1",
    "view": {"fact": "a", "beside": None, "least_share": 0.02, "top": 10, "group": "head", "pinned": ["MLP1@-2"]},
    "interventions": [],
    "graphs": [{"directed": True, "nodes": [], "edges": []}],
}
_RUN: Json = {
    "kind": "extract", "source": {"task": "nowhere", "facts": None, "model": "m"}, "seed": 0, "quick": True,
    "edit": False, "task": "0", "facts": "0", "lexicon": "0", "model": "0", "versions": {"torch": "2"},
}  # fmt: skip
_CONFIG: Json = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_head": 4, "n_embd": 32, "n_inner": 64,
    "vocab_size": 100, "n_positions": 64, "dtype": "float32", "quantization_config": None,
}  # fmt: skip
_TASK = 'name = "x"\nrecall = "decode {cue} is"\nprobes = ["a {} b"]\nfacts = "facts.csv"\nmodel = "m"\n'
_SWEEP = 'name = "x"\ntasks = ["a"]\nmodels = ["m"]\nseeds = [0, 1]\nquick = true\n'

PARSERS = {
    "facts": Parser(_facts, ('fact_id,cue,answer\na,VA==,T\n"b","+A""=",","\n', "fact_id,cue,answer,note\na,b,c,d\n")),
    "task": Parser(_task, (_TASK, 'name = "y"\nrecall = """{cue}"""\nmax_concept_tokens = 3\n')),
    "lexicon": Parser(_lexicon, ("value added tax\n\nquick question\r\n", " a \n a \n")),
    "sweep": Parser(_sweep, (_SWEEP,)),
    "trace": Parser(_trace, (json.dumps(_TRACE),), _TRACE),
    "view": Parser(_view, (json.dumps(_VIEW),), _VIEW),
    "run": Parser(_run, (json.dumps(_RUN),), _RUN),
    "model": Parser(_model, (json.dumps(_CONFIG),), _CONFIG),
    "truth": Parser(_truth, ("fact_id,kind,concept,split\na,rote,,train\n",)),
    "manifest": Parser(_manifest, (json.dumps({"signature": "0", "files": {"facts.csv": "0"}}),), {"files": {"a": ""}}),
}
