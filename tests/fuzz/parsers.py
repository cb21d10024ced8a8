"""Everything of mnemo that reads files which nobody checked, as functions of bytes. Only `MnemoError` may escape."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mnemo.cluster.manifest import read_manifest
from mnemo.cluster.plan import Sweep, plan_runs
from mnemo.errors import MnemoError
from mnemo.explorer.scene import make_scene
from mnemo.explorer.view import SavedView, View
from mnemo.extraction import extract
from mnemo.facts import FactSet, Task
from mnemo.model import Model, load
from mnemo.model_source import examine, read_tokenizer
from mnemo.patching import Site
from mnemo.plan import read_shape
from mnemo.repeat import compare, rerun
from mnemo.scoring import read_truth
from mnemo.study import Study
from mnemo.tokens import PromptTokenizer
from mnemo.traces import Trace
from mnemo.waypoints import CANDIDATE_COLUMNS

Json = dict[str, Any]


@dataclass(frozen=True)
class Parser:
    """A reader of files.

    Attributes:
        read: reads bytes, as far as a command would go with them.
        examples: texts that it takes, or nearly; what the fuzzers start from.
        document: a whole document, whose values are replaced one at a time.
        spell: writes it as text.
    """

    read: Callable[[bytes], object]
    examples: tuple[str, ...]
    document: Json | None = None
    spell: Callable[[Any], str] = json.dumps


def _toml(document: Any) -> str:
    """Keys and values of a TOML file; what JSON writes otherwise than TOML (null, objects) is an error in it."""
    if not isinstance(document, dict):
        return json.dumps(document)
    return "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in document.items())


def _csv(document: Any) -> str:
    """The rows of a CSV file; what is none (a number for a row) is one cell."""
    rows = document.get("rows") if isinstance(document, dict) else document
    text = io.StringIO(newline="")
    for row in rows if isinstance(rows, list) else [rows]:
        csv.writer(text, lineterminator="\n").writerow(row if isinstance(row, list) else [row])
    return text.getvalue()


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
    _studied()
    plan_runs(Sweep.read(_file("sweep.toml", data)))


def _trace(data: bytes) -> None:
    trace = Trace.read(_file("graph.json", data))
    _ = trace.by("layer"), trace.path_table(), trace.nodes, trace.edges, trace.graph(), repr(trace)
    make_scene(trace, View(fact=trace.fact_id))


def _view(data: bytes) -> None:
    SavedView.parse(data.decode("utf-8", "replace"))


@cache
def _studied() -> Study:
    """A study in the folder `study`, of a tiny model that recalls nothing; what was found is in `run`."""
    from tests.tiny_models import saved

    folder = _FOLDER / "study"
    model = load(saved("gpt2", folder / "model"), check=False)
    (folder / "model" / "step1").mkdir()
    Task(name="x", recall="decode {cue} is", model="model").write(folder)
    _FACTS.write(folder / "facts.csv")
    shutil.copytree(folder, _FOLDER / "other")
    study = extract(folder, model=model, quick=True, progress=False)
    study.write(_FOLDER / "run")
    return study


_loaded = cache(load)  # of the same folder every time


@contextmanager
def _run_before() -> Generator[None]:
    """Runs are not repeated but come out as the first one did: it is the files that are to be read."""
    study = _studied()

    def load_for(task: Task, given: Any, *, dtype: str | None) -> Model:
        return given if isinstance(given, Model) else _loaded(task.model_source(given), dtype=dtype)

    with (
        patch("mnemo.repeat.load_for", load_for),
        patch("mnemo.repeat.extract", lambda *_, **options: study),
        patch("mnemo.scoring.benchmark", lambda *_, **options: (study, _METRICS)),
    ):
        yield


def _recorded(data: bytes) -> bytes:
    """A run.json with what is known of the study in place of its name in <>."""
    for name, value in (record := _studied().record).items():
        data = data.replace(f"<{name}>".encode(), str(value).encode())
    return data.replace(b"<folder>", str(record["source"]["task"]).encode())


def _run(data: bytes) -> None:
    with _run_before():
        _file("run/metrics.json", json.dumps(_METRICS).encode())
        _file("run/run.json", _recorded(data))
        rerun(_FOLDER / "run", progress=False)


def _finished(data: bytes) -> None:
    study = _studied()
    _file("run/run.json", _recorded(data))
    found = Study.read(_FOLDER / "run", model=study.model)
    assert not list(compare(study.table, found.table, key=["fact_id"]))


def _sites(data: bytes) -> None:
    folder = _judged()
    _file("sites/sites.csv", data)
    found = Study.read(folder, model=_studied().model)
    assert found.waypoint is not None and found.waypoint.site == Site(1, -1) and found.waypoint.tried > 0
    assert found.waypoint.swaps_work in (True, False)


@cache
def _judged() -> Path:
    """The folder of what a run that had recalled the fact would have written, but for sites.csv."""
    study, folder = _studied(), _FOLDER / "sites"
    place = {"recalled": True, "layer": 1, "position": len(study.prompt("a")) - 1}
    replace(study, table=study.table.assign(**place)).write(folder, report=False)
    return folder


def _metrics(data: bytes) -> None:
    with _run_before():
        _file("run/metrics.json", data)
        _file("run/run.json", json.dumps({**_studied().record, "kind": "benchmark", "dtype": None}).encode())
        rerun(_FOLDER / "run", progress=False)


def _tokenizer(data: bytes) -> None:
    (_FOLDER / "tokenizer").mkdir(exist_ok=True)
    _file("tokenizer/tokenizer_config.json", b'{"tokenizer_class": "PreTrainedTokenizerFast"}')
    _file("tokenizer/tokenizer.json", data)
    tokens = PromptTokenizer(read_tokenizer(_FOLDER / "tokenizer"))
    tokens.decode(tokens.encode("decode VA== is").ids)
    tokens.continuation("decode VA== is", " T")


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
_RUN: Json = {  # in <> what is known once there is a study
    "kind": "extract", "source": {"task": "<folder>", "facts": None, "model": None}, "seed": 0, "quick": True,
    "edit": False, "task": "<task>", "facts": "<facts>", "lexicon": "<lexicon>", "model": "<model>",
    "inputs": "<inputs>", "versions": {"torch": "2"}, "notes": ["none is recalled"],
}  # fmt: skip
_METRICS: Json = {"auroc": {"idle": {"value": 0.5, "low": 0.25, "high": None}}, "kinds": ["rote"], "facts": 6}
_TOKENIZER: Json = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [
        {"id": 0, "content": "<unk>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": " "}]},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": " ?[A-Z]+={0,2}| ?[a-z]+"}, "behavior": "Isolated",
                      "invert": False},
    "post_processor": {
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}},
    },
    "decoder": {"type": "Fuse"},
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, " decode": 1, " VA==": 2, " is": 3, " T": 4, "T": 5},
              "unk_token": "<unk>"},
}  # fmt: skip
_BYTES: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BPE: Json = {
    **_TOKENIZER, "normalizer": None, "post_processor": None, "decoder": _BYTES, "pre_tokenizer": _BYTES,
    "model": {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {piece: i for i, piece in enumerate(["<unk>", *"decoVA=isT\u0120", "de", "co", "deco"])},
        "merges": [["d", "e"], ["c", "o"], ["de", "co"]],
    },
}  # fmt: skip
_SWEEP: Json = {
    "name": "x", "tasks": ["study", "other/task.toml"], "models": ["study/model", "other"], "seeds": [0, 1],
    "quick": True, "edit": False, "dtype": "float32", "device": "cpu", "report": False,
}  # fmt: skip
_TASK: Json = {
    "name": "x", "recall": "decode {cue} is", "verbalise": "expand {cue} is", "probes": ["a {} b"],
    "max_concept_tokens": 3, "facts": "facts.csv", "model": "m",
}  # fmt: skip
_FACT_ROWS: Json = {"rows": [["fact_id", "cue", "answer", "note"], ["a", "VA==", "T", ""], ["b", '+A"=', ",", "d"]]}
_SITES: Json = {
    "rows": [
        [*CANDIDATE_COLUMNS, "chosen"],
        [1, -1, 1.0, 0.9, 0.1, 0.0, 1.0, 0.9, 3, 1.0, 1.0, True],
        [1, -2, 0.5, "", "", "", "", "", "", "", "", False],
    ]
}
_TRUTH: Json = {"rows": [["fact_id", "kind", "concept", "split"], ["a", "rote", "", "train"]]}
_CONFIG: Json = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_head": 4, "n_embd": 32, "n_inner": 64,
    "vocab_size": 100, "n_positions": 64, "dtype": "float32", "quantization_config": None,
}  # fmt: skip

PARSERS = {
    "facts": Parser(
        _facts, ('fact_id,cue,answer\na,VA==,T\n"b","+A""=",","\n', "fact_id,cue,answer,note\na,b,c,d\n"), _FACT_ROWS,
        _csv,
    ),
    "task": Parser(_task, (_toml(_TASK), 'name = "y"\nrecall = """{cue}"""\nmax_concept_tokens = 3\n'), _TASK, _toml),
    "lexicon": Parser(_lexicon, ("value added tax\n\nquick question\r\n", " a \n a \n")),
    "sweep": Parser(
        _sweep, (_toml(_SWEEP), 'name = "x"\ntasks = ["study"]\nmodels = ["study"]\ncheckpoints = ["step1"]\n'), _SWEEP,
        _toml,
    ),
    "trace": Parser(_trace, (json.dumps(_TRACE),), _TRACE),
    "view": Parser(_view, (json.dumps(_VIEW),), _VIEW),
    "run": Parser(_run, (json.dumps(_RUN), json.dumps({**_RUN, "kind": "benchmark"})), _RUN),
    "finished": Parser(_finished, (json.dumps(_RUN), json.dumps({**_RUN, "kind": "benchmark"})), _RUN),
    "sites": Parser(_sites, (_csv(_SITES),), _SITES, _csv),
    "metrics": Parser(_metrics, (json.dumps(_METRICS),), _METRICS),
    "model": Parser(_model, (json.dumps(_CONFIG),), _CONFIG),
    "tokenizer": Parser(_tokenizer, (json.dumps(_TOKENIZER), json.dumps(_BPE)), _TOKENIZER),
    "truth": Parser(_truth, (_csv(_TRUTH),), _TRUTH, _csv),
    "manifest": Parser(_manifest, (json.dumps({"signature": "0", "files": {"facts.csv": "0"}}),), {"files": {"a": ""}}),
}  # fmt: skip
