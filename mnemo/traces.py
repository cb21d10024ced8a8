"""One fact's trace: which components, edges and paths carry the answer, as tables, as a graph and as files.

    trace = mnemo.trace("data/organism", "VA==")
    trace.paths[0].text        #  V@-4 -> L0H0.v@-2 -> MLP0@-2 -> MLP1@-2 -> L3H0.v@-1 -> MLP3@-1 -> logits@-1
    trace.by("position")       # the same by the tokens that paths visit

All values are in logits, positive where they support the answer over the contrast's answer; a share is a value over
metric(clean) - metric(corrupt). Everything is derived from the same multipliers (`mnemo.multipliers`), so that what
goes into a component is what goes out of it, and everything together is the whole.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import ValidationError

from mnemo.errors import InputError, MnemoError
from mnemo.files import replacing, write_text
from mnemo.tables import write_csv
from mnemo.trace_record import TracedEdge, TracedPath, TraceRecord

if TYPE_CHECKING:
    import networkx as nx

MAX_BYTES = 64 * 2**20  # of a trace that is read
_ARROW = " -> "


class Trace(TraceRecord):
    """What carries one fact's answer. Made by `mnemo.trace`, read back by `Trace.read`.

    What is stored are the fields of `TraceRecord`; the tables and sums below are computed from them.
    """

    def __repr__(self) -> str:
        carried = f"{len(self.paths)} paths carry {self.covered:.0%} of {self.total:.3g} logits"
        return f"Trace({self.cue!r} -> {self.answer!r}: {carried})"

    __str__ = __repr__

    @cached_property
    def nodes(self) -> pd.DataFrame:
        """What all paths through a component at a position carry together, the strongest first."""
        rows = [
            {
                "component": node.component, "layer": node.layer, "head": node.head, "position": node.position,
                "token": self.pieces[node.position], "value": node.value, "share": node.share,
            }
            for node in self.node_rows
        ]  # fmt: skip
        columns = ["component", "layer", "head", "position", "token", "value", "share"]
        return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "head": "Int64"})

    @cached_property
    def edges(self) -> pd.DataFrame:
        """What all paths over an edge carry together: writer at `source`, reader at `position`.

        For a head `slot` says how it reads, else it is empty.
        """
        rows = [{**edge.model_dump(), "slot": edge.slot or ""} for edge in self.edge_rows]
        return pd.DataFrame(rows, columns=list(TracedEdge.model_fields))

    @cached_property
    def streams(self) -> pd.DataFrame:
        """The residual stream after 0, 1, ... blocks (rows) by position (columns), as shares; each row sums to 1."""
        rows = pd.DataFrame([stream.model_dump() for stream in self.stream_rows])
        return rows.pivot_table(index="stream_layer", columns="position", values="share", aggfunc="sum")

    @property
    def covered(self) -> float:
        """The share of the whole that the paths listed here carry together."""
        return sum(path.share for path in self.paths)

    def path_table(self) -> pd.DataFrame:
        """Return the paths as a table: rank (from 1), text, steps, value and share."""
        rows = [
            {"rank": i, "path": path.text, "steps": len(path.steps), "value": path.value, "share": path.share}
            for i, path in enumerate(self.paths, start=1)
        ]
        return pd.DataFrame(rows, columns=["rank", "path", "steps", "value", "share"])

    def by(self, what: str = "component") -> pd.DataFrame:
        """Return the paths listed here summed by what they visit; the last row holds all other paths.

        Args:
            what: ``component`` leaves positions out, ``position`` keeps nothing but the tokens visited, and
                ``layer`` nothing but the blocks.

        Returns:
            the columns `route`, `paths` (how many; 0 for the rest, which nobody counted), `value` and `share`; values
            add up to the whole.
        """
        spell = {"component": _components, "position": self._positions, "layer": _layers}
        if what not in spell:
            raise MnemoError(f"paths are grouped by one of {sorted(spell)}, not by {what!r}")
        columns = ["route", "paths", "value", "share"]
        rows = [[spell[what](path), 1, path.value, path.share] for path in self.paths]
        table = pd.DataFrame(rows, columns=columns).groupby("route", sort=False, as_index=False).sum()
        table = table.sort_values("share", key=lambda share: -share.abs(), kind="stable", ignore_index=True)
        rest = self.total - sum(path.value for path in self.paths)
        other = pd.DataFrame([["(other paths)", 0, rest, rest / self.total]], columns=columns)
        return pd.concat([table, other], ignore_index=True)

    def _positions(self, path: TracedPath) -> str:
        visited: list[int] = []
        for step in path.steps:
            if not visited or visited[-1] != step.position:
                visited.append(step.position)
        return _ARROW.join(f"{self.token(position)}@{position}" for position in visited)

    def token(self, position: int) -> str:
        """Return a token of the clean prompt as it is shown: without the space before it, unless it is one."""
        return self.pieces[position].strip() or repr(self.pieces[position])

    def graph(self) -> nx.DiGraph[str]:
        """Return nodes (``MLP1@-2``) and edges as a directed graph.

        Nodes carry component, layer, head, position, token, value and share; edges value and share, and for those
        into a head also the shares of its slots (``q``, ``k``, ``v``) that make them up.
        """
        import networkx as nx

        texts = {
            "fact": self.fact_id, "cue": self.cue, "answer": self.answer, "contrast": self.contrast_cue,
            "prompt": self.prompt, "corrupt_prompt": self.corrupt_prompt, "model": self.model_name,
        }  # fmt: skip
        graph = nx.DiGraph()
        graph.graph.update({name: _in_xml(text) for name, text in texts.items()})
        graph.graph.update(
            fingerprint=self.fingerprint, seed=self.seed, total=self.total, metric_clean=self.metric_clean,
            metric_corrupt=self.metric_corrupt,
        )  # fmt: skip
        for node in self.node_rows:
            labels = {
                "component": node.component,
                "position": node.position,
                "token": _in_xml(self.token(node.position)),
            }
            numbers = {"layer": node.layer, "head": node.head, "value": node.value, "share": node.share}
            known = {key: value for key, value in numbers.items() if value is not None}
            graph.add_node(f"{node.component}@{node.position}", **labels, **known)
        for edge in self.edge_rows:
            ends = f"{edge.writer}@{edge.source}", f"{edge.reader}@{edge.position}"
            now = graph.edges[ends] if graph.has_edge(*ends) else {"value": 0.0, "share": 0.0}
            now = dict(now, value=now["value"] + edge.value, share=now["share"] + edge.share)
            graph.add_edge(*ends, **now, **({edge.slot: edge.share} if edge.slot else {}))
        return graph

    def explore(self, *, classic: bool = False) -> Any:
        """Show this trace in a notebook (`mnemo.explore`); a trace alone can be looked at, not intervened on."""
        from mnemo.explorer import explore

        return explore(self, classic=classic)

    def write(self, folder: str | File) -> None:
        """Write graph.json (all of the trace), graph.graphml, nodes.csv, edges.csv, paths.csv and trace.png.

        Raises:
            InputError: the folder cannot be written.
        """
        import networkx as nx

        from mnemo.plot import trace_figure

        folder = File(folder)
        write_text(folder / "graph.json", self.model_dump_json(indent=1, by_alias=True) + "\n")
        with replacing(folder / "graph.graphml") as draft:
            nx.write_graphml(self.graph(), draft)
        for name, table in (("nodes", self.nodes), ("edges", self.edges), ("paths", self.path_table())):
            write_csv(table, folder / f"{name}.csv")
        figure = trace_figure(self)
        with replacing(folder / "trace.png") as draft:
            figure.savefig(draft, dpi=150, format="png")

    @classmethod
    def read(cls, source: str | File) -> Trace:
        """Read a trace back from the folder that `write` wrote, or from its graph.json.

        Raises:
            InputError: no such file, too large, not JSON, or not a trace: with the place of the first mistake.
        """
        source = File(source)
        file = source / "graph.json" if source.is_dir() else source
        try:
            if file.stat().st_size > MAX_BYTES:
                raise InputError(f"larger than {MAX_BYTES // 2**20} MB: no trace is", file=file)
            text = file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", file=file) from None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(map(str, fault["loc"])) or None
            message = " ".join(str(fault["msg"]).split())
            problem = f"not a trace ({message}): write it again with Trace.write"
            raise InputError(problem, file=file, column=place) from None


def _in_xml(text: str) -> str:
    """Text without the control characters that no XML file can hold, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _components(path: TracedPath) -> str:
    return _ARROW.join(f"{step.component}.{step.slot}" if step.slot else step.component for step in path.steps)


def _layers(path: TracedPath) -> str:
    visited = ["embed" if step.component == "embed" else str(step.layer) for step in path.steps[:-1]]
    return _ARROW.join([*dict.fromkeys(visited), "logits"])
