"""The circuits that an explorer shows: of one fact or two, in one model or two, each traced once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnemo.errors import MnemoError
from mnemo.explorer.scene import make_scene, shortened
from mnemo.explorer.view import View
from mnemo.tokens import shown

if TYPE_CHECKING:
    from mnemo.study import Study
    from mnemo.traces import Trace

TOP = 50  # paths that are traced; the view shows some of them
MOST_CONCEPTS = 500  # offered for a swap
LONGEST = 200  # characters of a text that is listed


class Circuits:
    """Traces of facts, made when they are first asked for.

    Args:
        source: a study, or a trace alone.
        other: another study, whose circuit of the same fact stands beside the first one's.
    """

    def __init__(self, source: Study | Trace, other: Study | None) -> None:
        from mnemo.traces import Trace

        self._alone = source if isinstance(source, Trace) else None
        self.studies: tuple[Study, ...] = ()
        if not isinstance(source, Trace):
            self.studies = (source,) if other is None else (source, other)
        elif other is not None:
            raise MnemoError("a trace alone is not compared with a study: give mnemo.explore two studies")
        self._traces: dict[tuple[int, str], Trace] = {}

    def find(self, fact: str | None) -> str:
        """Return the id of a fact given by id or cue; of the clearest one that can be traced where none is given.

        Raises:
            MnemoError: no such fact, or none that can be traced.
        """
        if self._alone is not None:
            if fact not in (None, self._alone.fact_id, self._alone.cue):
                raise MnemoError(f"this trace is of {self._alone.cue!r} alone, not of {fact!r}")
            return self._alone.fact_id
        study = self.studies[0]
        table = study.table
        if fact is None:
            there = table[table["fact_id"].isin(list(study.contrasts))]
            if there.empty:
                raise MnemoError("no fact of this study can be traced: none is recalled and has a contrast")
            return str(there.loc[there["score"].astype(float).fillna(-1).idxmax(), "fact_id"])
        found = table[(table["fact_id"] == fact) | (table["cue"] == fact)]
        if found.empty:
            raise MnemoError(f"no fact {shown(fact)} in this study; the first ids are {list(table['fact_id'][:3])}")
        return str(found.iloc[0]["fact_id"])

    def trace(self, which: int, fact_id: str) -> Trace:
        """Return the trace of a fact in the first study or the second.

        Raises:
            MnemoError: it cannot be traced, and why.
        """
        from mnemo.tracing import trace

        if self._alone is not None:
            return self._alone
        if (which, fact_id) not in self._traces:
            study = self.studies[which]
            if fact_id not in study.contrasts:
                row = study[fact_id]
                why = "has no contrast of equal length" if row["recalled"] else "is not recalled"
                raise MnemoError(f"the fact {shown(row['cue'])} {why}, so nothing can be traced: choose another one")
            self._traces[which, fact_id] = trace(study, study.contrasts[fact_id], top=TOP)
        return self._traces[which, fact_id]

    def places(self, view: View) -> list[tuple[int, str]]:
        """Return what a view shows side by side: which study, and which fact of it."""
        found = [(0, view.fact)]
        if view.beside and self._alone is None:
            found.append((0, view.beside))
        if len(self.studies) == 2:
            found.append((1, view.fact))
        return found

    def scenes(self, view: View) -> list[dict[str, Any]]:
        """Return a drawing of each circuit that a view shows; of one beside the first that cannot be, the reason.

        Raises:
            MnemoError: the first one cannot be drawn.
        """
        first, *beside = self.places(view)
        found = [self._scene(view, *first)]
        for which, fact_id in beside:
            try:
                found.append(self._scene(view, which, fact_id))
            except MnemoError as error:
                found.append({"title": f"{fact_id}{self._of(which)}", "missing": str(error)})
        return found

    def facts(self) -> list[dict[str, Any]]:
        """Return the facts that can be chosen, long texts shortened."""
        if not self.studies:
            return []
        table = self.studies[0].table
        columns = [
            name for name in ("fact_id", "cue", "answer", "concept", "verdict", "score", "invented") if name in table
        ]
        rows = table[columns].astype(object).where(table[columns].notna(), None)
        return [
            {key: shortened(value, LONGEST) if isinstance(value, str) else value for key, value in row.items()}
            for row in rows.to_dict("records")
        ]

    def concepts(self) -> list[str]:
        """Return the concepts that are offered for a swap."""
        if not self.studies or "concept" not in self.studies[0].table:
            return []
        read = self.studies[0].table["concept"].dropna()
        return [shortened(phrase, LONGEST) for phrase in dict.fromkeys(read)][:MOST_CONCEPTS]

    def _scene(self, view: View, which: int, fact_id: str) -> dict[str, Any]:
        study = self.studies[which] if self.studies else None
        waypoint = study.waypoint.site if study is not None and study.waypoint is not None else None
        concept = study[fact_id].get("concept") if study is not None else None
        scene = make_scene(
            self.trace(which, fact_id), view, waypoint=waypoint, concept=concept if isinstance(concept, str) else None
        )
        return scene | {"title": scene["title"] + self._of(which), "fact": fact_id}

    def _of(self, which: int) -> str:
        """Whose circuit it is, where there are two models; the same name twice says nothing, so both get a number."""
        if len(self.studies) < 2:
            return ""
        names = [study.model.name for study in self.studies]
        return f" ({names[which]})" if names[0] != names[1] else f" ({names[which]}, model {which + 1})"
