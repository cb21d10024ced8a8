"""What the user did and sees, without any browser: messages go in, plain data to draw comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mnemo.errors import MnemoError
from mnemo.explorer.circuits import Circuits
from mnemo.explorer.code import as_code
from mnemo.explorer.details import describe
from mnemo.explorer.interventions import Ablate, Bench, Intervention, Outcome, PatchFrom, SwapConcept
from mnemo.explorer.places import Place
from mnemo.explorer.reading import Readings
from mnemo.explorer.view import SavedView, View, drawn_graph, first_fault

if TYPE_CHECKING:
    from mnemo.study import Study
    from mnemo.traces import Trace

SETTINGS = ("least_share", "top", "group")
MOST_DETAILS = 150  # that a snapshot holds
_NO_MODEL = "a trace alone has no model to intervene on: open the explorer with mnemo.explore(study)"


class Session:
    """An explorer's state. `do` changes it; `catalog`, `scenes` and `state` say what to draw.

    Args:
        source: a study, or a trace alone, which has no model to intervene on.
        fact: id or cue of the fact to begin with; None for the one with the highest score.
        other: another study to show the same fact of beside it; interventions are made there too.

    Attributes:
        view: what is shown.
        acts: the interventions made, all at once, on every circuit shown.
        outcomes: what each circuit's model then answers; a text instead where it cannot be done there, with why.
        detail: what is known of the selection.
        error: the last mistake; said: what was done that cannot be seen otherwise.

    Raises:
        MnemoError: no such fact, or none that can be traced.
    """

    def __init__(self, source: Study | Trace, fact: str | None = None, *, other: Study | None = None) -> None:
        self._circuits = Circuits(source, other)
        self._benches = [Bench(study) for study in self._circuits.studies]
        self._readings = Readings(self._benches[0]) if self._benches else None
        self.acts: tuple[Intervention, ...] = ()
        self.outcomes: tuple[Outcome | str, ...] = ()
        self.detail: dict[str, Any] = {}
        self.error, self.said = "", ""
        self._files: dict[str, str] = {}
        self._replies = 0
        self.view = View(fact=self._circuits.find(fact))
        self.scenes = self._circuits.scenes(self.view)

    @property
    def study(self) -> Study | None:
        """The study whose model answers; None for a trace alone."""
        return self._circuits.studies[0] if self._circuits.studies else None

    @property
    def outcome(self) -> Outcome | None:
        """What the first circuit's model answers after the interventions; None without any."""
        first = self.outcomes[0] if self.outcomes else None
        return first if isinstance(first, Outcome) else None

    def prepare(self) -> None:
        """Collect the study's concepts now, which the first swap would otherwise wait for."""
        for bench in self._benches:
            with suppress(MnemoError):  # a study without concepts says so when a swap is asked for
                _ = bench.concepts

    # ---- messages

    def do(self, message: dict[str, Any]) -> None:
        """Do what a message asks for; a mistake of the user's becomes `error` in the state and changes nothing.

        Args:
            message: ``do`` names one of `actions`, the rest are its arguments.
        """
        self.error, self.said, self._files = "", "", {}
        self._replies += 1
        before = self.view, self.scenes, self.acts, self.outcomes, self.detail
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
            self.view, self.scenes, self.acts, self.outcomes, self.detail = before
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
        self._look(self.view.changed(fact=self._circuits.find(fact), selected=None, pinned=()))
        self.clear()

    def beside(self, fact: str | None) -> None:
        """Show a second fact beside the first one, or none."""
        self._look(self.view.changed(beside=self._circuits.find(fact) if fact else None))
        self._run(self.acts)

    def show(self, **changes: Any) -> None:
        """Change thresholds or grouping (`View.least_share`, `top`, `group`)."""
        if unknown := set(changes) - set(SETTINGS):
            raise MnemoError(f"no setting {sorted(unknown)[0]!r}; there are {', '.join(SETTINGS)}")
        self._look(self.view.changed(**changes))

    def select(self, what: str | None) -> None:
        """Select a node, an edge or a path, and read what can be read there."""
        self._look(self.view.changed(selected=what), strict=True)

    def pin(self, node: str) -> None:
        """Keep a node shown however weak it is, or let it go."""
        self._look(self.view.changed(pinned=tuple(sorted(set(self.view.pinned) ^ {node}))))

    def ablate(self, part: str) -> None:
        """Set a component to its mean over other facts; or what it writes along an edge or a path alone."""
        self._run((*self.acts, Ablate(part=part)))

    def patch(self, part: str, cue: str) -> None:
        """Set a component to what it is for another cue; or what it writes along an edge or a path alone."""
        self._run((*self.acts, PatchFrom(part=part, cue=cue)))

    def swap(self, concept: str) -> None:
        """Swap the concept at the waypoint for another one."""
        self._run((*self.acts, SwapConcept(concept=" ".join(concept.split()))))

    def undo(self) -> None:
        """Take the last intervention back."""
        self._run(self.acts[:-1])

    def clear(self) -> None:
        """Take all interventions back."""
        self._run(())

    def save(self) -> None:
        """Put the view, the interventions and the graphs shown into `state()["files"]`."""
        graphs = tuple(drawn_graph(scene) for scene in self.scenes if "missing" not in scene)
        saved = SavedView(view=self.view, interventions=self.acts, graphs=graphs)
        self._files = {"mnemo-view.json": saved.model_dump_json(indent=1)}
        self.said = "view saved as mnemo-view.json"

    def load(self, text: str) -> None:
        """Show a saved view, and make its interventions again."""
        saved = SavedView.parse(text)
        facts = {"fact": self._circuits.find(saved.view.fact)}
        if saved.view.beside:
            facts["beside"] = self._circuits.find(saved.view.beside)
        self._look(saved.view.changed(**facts))
        self._run(saved.interventions)
        self.said = "view loaded"

    def snapshot(self) -> None:
        """Put a page that opens without a kernel into `state()["files"]`."""
        from mnemo.explorer.snapshot import page

        self._files = {"mnemo-explorer.html": page(self.state(), self.scenes, details=self.details())}
        self.said = "snapshot saved as mnemo-explorer.html"

    # ---- what to draw

    def catalog(self) -> dict[str, Any]:
        """Return what can be chosen, which never changes: facts and concepts."""
        return {"facts": self._circuits.facts(), "concepts": self._circuits.concepts()}

    def state(self) -> dict[str, Any]:
        """Return everything that a front end shows beside `scenes`, as JSON: texts are texts, never markup."""
        return {
            "reply": self._replies,
            "live": bool(self._benches),
            "view": self.view.model_dump(mode="json"),
            "detail": self.detail,
            "outcomes": [
                {"title": scene["title"], **({"error": found} if isinstance(found, str) else asdict(found))}
                for scene, found in zip(self.scenes, self.outcomes, strict=False)
            ],
            "log": [act.text for act in self.acts],
            "code": self.code(),
            "error": self.error,
            "said": self.said,
            "files": self._files,
        }

    def code(self) -> str:
        """Return Python that repeats the interventions; nothing where none were made."""
        return as_code(self.study, self.view.fact, acts=self.acts) if self.study is not None and self.acts else ""

    def _look(self, view: View, *, strict: bool = False) -> None:
        """Show another view. What is selected may be gone with it, which is a mistake if `strict`."""
        if view.changed(selected=None) != self.view.changed(selected=None):
            self.scenes = self._circuits.scenes(view)
        try:
            self.detail = self._describe(view.selected, view) if view.selected else {}
        except MnemoError:
            if strict:
                raise
            view, self.detail = view.changed(selected=None), {}
        self.view = view

    def _describe(self, what: str, view: View) -> dict[str, Any]:
        trace = self._circuits.trace(0, view.fact)
        return describe(what, scene=self.scenes[0], trace=trace, view=view, readings=self._readings)

    def details(self) -> dict[str, dict[str, Any]]:
        """What is known of the parts of the first circuit, the strongest nodes first, then paths and edges."""
        scene = self.scenes[0]
        nodes = [node["id"] for node in sorted(scene["nodes"], key=lambda node: -abs(node["value"]))]
        parts = [*nodes, *(f"path {i + 1}" for i in range(len(scene["paths"]))), *(e["id"] for e in scene["edges"])]
        if self._readings is not None:  # the lens reads many places at once as fast as one
            places = [Place.named(node, self._readings.model) for node in nodes if not node.startswith("logits")]
            self._readings.tokens(self.view.fact, places)
        return {what: self._describe(what, self.view) for what in parts[:MOST_DETAILS]}

    def _run(self, acts: Sequence[Intervention]) -> None:
        """Make interventions on every circuit shown; a mistake at the first one is the user's."""
        if acts and not self._benches:
            raise MnemoError(_NO_MODEL)
        found: list[Outcome | str] = []
        for place, (which, fact_id) in enumerate(self._circuits.places(self.view) if acts else []):
            try:
                found.append(self._benches[which].run(fact_id, acts))
            except MnemoError as error:
                if place == 0:
                    raise
                found.append(str(error))
        self.acts, self.outcomes = tuple(acts), tuple(found)
