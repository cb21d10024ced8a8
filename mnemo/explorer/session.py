"""What the user did and sees, without any browser: messages go in, a plain dictionary to draw comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mnemo.errors import MnemoError
from mnemo.explorer.interventions import Ablate, Bench, Intervention, Outcome, PatchFrom, SwapConcept
from mnemo.explorer.scene import make_scene
from mnemo.explorer.view import SavedView, View, first_fault

if TYPE_CHECKING:
    from mnemo.study import Study
    from mnemo.tracing import Trace

TOP = 50  # paths that are traced; the view shows some of them
MOST_CONCEPTS = 500  # offered for a swap
LONGEST = 200  # characters of a text that is listed


class Session:
    """An explorer's state. `do` changes it, `state` says what to draw.

    Args:
        source: a study, or a trace alone, which has no model to intervene on.
        fact: id or cue of the fact to begin with; None for the one with the highest score.
        other: another study to show the same fact of beside it.

    Raises:
        MnemoError: no such fact, or none that can be traced.
    """

    def __init__(self, source: Study | Trace, fact: str | None = None, *, other: Study | None = None) -> None:
        from mnemo.tracing import Trace

        self._trace = source if isinstance(source, Trace) else None
        self.study = None if isinstance(source, Trace) else source
        self.other = other
        self.bench = Bench(self.study) if self.study is not None else None
        self._traces: dict[tuple[int, str], Trace] = {}
        self.acts: tuple[Intervention, ...] = ()
        self.outcome: Outcome | None = None
        self.detail: dict[str, Any] = {}
        self.error, self.said = "", ""
        self._files: dict[str, str] = {}
        self._replies = 0
        self.view = View(fact=self._trace.fact_id if self._trace else self._first(fact))
        self._scenes()  # a fact that cannot be traced is refused here

    # ---- messages

    def do(self, message: dict[str, Any]) -> None:
        """Do what a message asks for; a mistake of the user's becomes `error` in the state and changes nothing.

        Args:
            message: ``do`` names one of `actions`, the rest are its arguments.
        """
        self.error, self.said, self._files = "", "", {}
        self._replies += 1
        before = self.view, self.acts, self.outcome, self.detail
        try:
            arguments = {str(key): value for key, value in message.items() if key != "do"}
            action = self.actions.get(str(message.get("do")))
            if action is None:
                raise MnemoError(f"no action {message.get('do')!r}; there are {', '.join(self.actions)}")
            try:
                action(**arguments)
            except ValidationError as error:
                raise MnemoError(first_fault(error)) from None
            except TypeError as error:  # arguments that the action does not have
                raise MnemoError(str(error)) from None
        except MnemoError as error:
            self.view, self.acts, self.outcome, self.detail = before
            self.error = str(error)

    @property
    def actions(self) -> dict[str, Callable[..., None]]:
        """What `do` can be asked for."""
        return {
            "fact": self.choose, "beside": self.beside, "show": self.show, "select": self.select, "pin": self.pin,
            "ablate": self.ablate, "patch": self.patch, "swap": self.swap, "undo": self.undo, "clear": self.clear,
            "save": self.save, "load": self.load, "snapshot": self.snapshot,
        }  # fmt: skip

    def choose(self, fact: str) -> None:
        """Show another fact; interventions on the one before are forgotten."""
        self.view = self.view.changed(fact=self._first(fact), selected=None, pinned=())
        self.acts, self.outcome, self.detail = (), None, {}
        self._scenes()

    def beside(self, fact: str | None) -> None:
        """Show a second fact beside the first one, or none."""
        self.view = self.view.changed(beside=self._first(fact) if fact else None)
        self._scenes()

    def show(self, **changes: Any) -> None:
        """Change thresholds or grouping (`View.least_share`, `top`, `group`)."""
        if unknown := set(changes) - {"least_share", "top", "group"}:
            raise MnemoError(f"no setting {sorted(unknown)[0]!r}; there are least_share, top and group")
        self.view = self.view.changed(**changes)
        self._scenes()

    def select(self, what: str | None) -> None:
        """Select a node, an edge or a path, and read what can be read there."""
        self.view = self.view.changed(selected=what)
        self.detail = self._describe(what) if what else {}

    def pin(self, node: str) -> None:
        """Keep a node shown however weak it is, or let it go."""
        pinned = set(self.view.pinned) ^ {node}
        self.view = self.view.changed(pinned=tuple(sorted(pinned)))

    def ablate(self, node: str) -> None:
        """Set a component to its mean over other facts."""
        self._act(Ablate(node=node))

    def patch(self, node: str, cue: str) -> None:
        """Set a component to what it is for another cue."""
        self._act(PatchFrom(node=node, cue=cue))

    def swap(self, concept: str) -> None:
        """Swap the concept at the waypoint for another one."""
        self._act(SwapConcept(concept=" ".join(concept.split())))

    def undo(self) -> None:
        """Take the last intervention back."""
        self.acts = self.acts[:-1]
        self.outcome = self._run(self.acts) if self.acts else None

    def clear(self) -> None:
        """Take all interventions back."""
        self.acts, self.outcome = (), None

    def save(self) -> None:
        """Put the view, the interventions and the graph into `state()["files"]`."""
        saved = SavedView(view=self.view, interventions=self.acts, graph=self._scenes())
        self._files = {"mnemo-view.json": saved.model_dump_json(indent=1)}
        self.said = "view saved"

    def load(self, text: str) -> None:
        """Show a saved view, and make its interventions again."""
        saved = SavedView.parse(text)
        self.view = saved.view.changed(fact=self._first(saved.view.fact))
        self._scenes()
        self.acts = saved.interventions
        self.outcome = self._run(self.acts) if self.acts else None
        self.detail = self._describe(self.view.selected) if self.view.selected else {}
        self.said = "view loaded"

    def snapshot(self) -> None:
        """Put a page that opens without a kernel into `state()["files"]`."""
        from mnemo.explorer.snapshot import page

        self._files = {"mnemo-explorer.html": page(self.state())}
        self.said = "snapshot made"

    # ---- what to draw

    def state(self) -> dict[str, Any]:
        """Return everything that a front end draws, as JSON: texts are texts, never markup."""
        return {
            "reply": self._replies,
            "live": self.bench is not None,
            "view": self.view.model_dump(mode="json"),
            "scenes": self._scenes(),
            "facts": self._facts(),
            "concepts": self._concepts(),
            "detail": self.detail,
            "outcome": asdict(self.outcome) if self.outcome else None,
            "log": [act.text for act in self.acts],
            "code": self.code() if self.acts else "",
            "error": self.error,
            "said": self.said,
            "files": self._files,
        }

    def code(self) -> str:
        """Return Python that repeats the interventions."""
        if self.study is None:
            return ""
        record = self.study.record
        options = f"quick={record['quick']}, seed={record['seed']}"
        lines = [
            f"# on {self.study.model!r}",
            "import mnemo",
            "from mnemo.explorer import Session",
            "",
            f"study = mnemo.extract({str(self.study.task.folder)!r}, {options})",
            f"session = Session(study, {self.view.fact!r})",
        ]
        for act in self.acts:
            arguments = ", ".join(f"{k}={v!r}" for k, v in act.model_dump(exclude={"kind"}).items())
            lines.append(f"session.{act.kind}({arguments})")
        return "\n".join([*lines, "print(session.outcome)"])

    def _act(self, act: Intervention) -> None:
        acts = (*self.acts, act)
        self.outcome = self._run(acts)
        self.acts = acts

    def _run(self, acts: Sequence[Intervention]) -> Outcome:
        if self.bench is None:
            raise MnemoError("a trace alone has no model to intervene on: open the explorer with mnemo.explore(study)")
        return self.bench.run(self.view.fact, acts)

    def _first(self, fact: str | None) -> str:
        """The id of a fact given by id or cue; of the clearest fact that can be traced where none is given."""
        if self.study is None:
            if fact not in (None, self._trace.fact_id, self._trace.cue):  # pyright: ignore[reportOptionalMemberAccess]
                raise MnemoError(f"this trace is of {self._trace.cue!r} alone, not of {fact!r}")  # pyright: ignore
            return self._trace.fact_id  # pyright: ignore[reportOptionalMemberAccess]
        table = self.study.table
        if fact is None:
            there = table[table["fact_id"].isin(list(self.study.contrasts))]
            if there.empty:
                raise MnemoError("no fact of this study can be traced: none is recalled and has a contrast")
            return str(there.loc[there["score"].astype(float).fillna(-1).idxmax(), "fact_id"])
        found = table[(table["fact_id"] == fact) | (table["cue"] == fact)]
        if found.empty:
            raise MnemoError(f"no fact {fact!r} in this study; the first ids are {list(table['fact_id'][:3])}")
        return str(found.iloc[0]["fact_id"])

    def _traced(self, which: int, fact_id: str) -> Trace:
        from mnemo.tracing import trace

        if self._trace is not None:
            return self._trace
        study = self.study if which == 0 else self.other
        assert study is not None
        if (which, fact_id) not in self._traces:
            if fact_id not in study.contrasts:
                row = study[fact_id]
                why = "has no contrast of equal length" if row["recalled"] else "is not recalled"
                raise MnemoError(f"the fact {row['cue']!r} {why}, so nothing can be traced: choose another one")
            self._traces[which, fact_id] = trace(study, study.contrasts[fact_id], top=TOP)
        return self._traces[which, fact_id]

    def _scenes(self) -> list[dict[str, Any]]:
        shown = [(0, self.view.fact)]
        if self.view.beside and self._trace is None:
            shown.append((0, self.view.beside))
        if self.other is not None:
            shown.append((1, self.view.fact))
        return [self._scene(which, fact_id) for which, fact_id in shown]

    def _scene(self, which: int, fact_id: str) -> dict[str, Any]:
        study = self.study if which == 0 else self.other
        waypoint = study.waypoint.site if study is not None and study.waypoint is not None else None
        concept = study[fact_id]["concept"] if study is not None else None
        trace = self._traced(which, fact_id)
        return make_scene(trace, self.view, waypoint=waypoint, concept=concept if isinstance(concept, str) else None)

    def _facts(self) -> list[dict[str, Any]]:
        if self.study is None:
            return []
        columns = ["fact_id", "cue", "answer", "concept", "verdict", "score"]
        rows = self.study.table[columns].astype(object)
        return [
            {key: _short(value) if isinstance(value, str) else _number(value) for key, value in row.items()}
            for row in rows.to_dict("records")
        ]

    def _concepts(self) -> list[str]:
        if self.study is None or "concept" not in self.study.table:
            return []
        return list(dict.fromkeys(self.study.table["concept"].dropna()))[:MOST_CONCEPTS]

    def _describe(self, what: str) -> dict[str, Any]:
        """What is known of a node, an edge or a path of the first scene."""
        scene = self._scenes()[0]
        if what.startswith("path "):
            number = what.removeprefix("path ")
            if not number.isdecimal() or not 1 <= int(number) <= len(scene["paths"]):
                raise MnemoError(f"{what!r} is not among the {len(scene['paths'])} paths shown")
            path = scene["paths"][int(number) - 1]
            return {
                "kind": "path",
                "title": path["text"],
                "share": path["share"],
                "value": path["share"] * scene["total"],
            }
        kind = "edges" if ">" in what else "nodes"
        row = next((row for row in scene[kind] if row["id"] == what), None)
        if row is None:
            raise MnemoError(f"{what!r} is not shown: lower the least share, or pin it")
        found = {"kind": kind.removesuffix("s"), "title": what, "share": row["share"], "value": row["value"]}
        if kind == "nodes" and self.bench is not None and not what.startswith("logits"):
            found |= self._readings(what)
        return found

    def _readings(self, node: str) -> dict[str, Any]:
        """A head's attention, and what the stream that a node writes to is read as."""
        assert self.bench is not None and self.study is not None
        found: dict[str, Any] = {"tokens": self.bench.reads_as(self.view.fact, node)}
        if node.startswith("L"):
            weights = self.bench.attention(self.view.fact, node)
            tokens = [token["text"] for token in self._scenes()[0]["tokens"]]
            found["attention"] = [{"token": t, "weight": w} for t, w in zip(tokens, weights, strict=True)]
        site = self.study.waypoint.site if self.study.waypoint is not None else None
        if site is not None and int(node.rpartition("@")[2]) == site.position:
            readings = self.study.readings.get(self.view.fact, [])
            found["concepts"] = [{"phrase": r.phrase, "ratio": r.ratio} for r in readings[:4]]
        return found


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
