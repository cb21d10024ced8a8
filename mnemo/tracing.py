"""One fact's trace: which components, edges and paths carry the answer, as tables, as a graph and as files.

    trace = mnemo.trace("data/organism", "VA==")
    trace.paths[0].text        #  V@-4 -> L0H0.v@-2 -> MLP0@-2 -> MLP1@-2 -> L3H0.v@-1 -> MLP3@-1 -> logits@-1
    trace.by("position")       # the same by the tokens that paths visit

All values are in logits, positive where they support the answer over the contrast's answer; a share is a value over
metric(clean) - metric(corrupt). Everything is derived from the same multipliers (`mnemo.multipliers`), so that what
goes into a component is what goes out of it, and everything together is the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from mnemo.contrasts import Contrast, make_contrasts
from mnemo.errors import InputError, MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.files import replacing, write_text
from mnemo.graph import Writer
from mnemo.memory import memory_budget
from mnemo.multipliers import Multipliers, Totals, averaged_multipliers
from mnemo.paths import Edge, Hop, Path, edges_into, node_values, stream_values, strongest_paths
from mnemo.records import command, package_versions, source_of
from mnemo.tables import write_csv
from mnemo.trace_record import TracedEdge, TracedNode, TracedPath, TracedStream, TraceRecord, TraceStep

if TYPE_CHECKING:
    import networkx as nx

    from mnemo.model import Model
    from mnemo.study import Study

# What a trace keeps beside its paths: on large models the rest would be gigabytes of nothing.
LEAST_SHARE = 1e-3  # of an edge
MOST_EDGES, MOST_NODES, MOST_READERS = 1000, 5000, 200
MAX_BYTES = 64 * 2**20  # of a trace that is read
TOP_NODES = 8  # of the quadrature, where only the strongest path is wanted

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


# ---- tracing


def trace(
    source: Study | Task | Model | str | File,
    fact: str | Fact | Contrast,
    *,
    contrast: str | None = None,
    model: Model | str | File | None = None,
    top: int = 50,
    seed: int = 0,
    memory_gb: float | None = None,
) -> Trace:
    """Explain metric(clean) - metric(corrupt) of one fact as a sum over paths from its tokens to the logits.

    Args:
        source: a study, a study folder or its task.toml, or a task. A model will do where `fact` is a contrast.
        fact: the fact, its cue, or a contrast made beforehand.
        contrast: cue of the fact to compare it with; None to draw one whose prompt has as many tokens.
        model: a loaded model or what `mnemo.load` takes; None for the task's own.
        top: how many paths to list.
        seed: decides which fact it is compared with.
        memory_gb: see `mnemo.extract`.

    Raises:
        MnemoError: no such cue, no contrast, a model that cannot be taken apart, or too little memory, in one line.
    """
    if not 1 <= top <= 10_000:
        raise MnemoError(f"top={top} paths asked for; it must be between 1 and 10000")
    if not 0 <= seed < 2**31:
        raise MnemoError(f"seed {seed} given; it must be between 0 and {2**31 - 1}")
    loaded, pair, origin = _pair(source, fact, contrast=contrast, model=model, seed=seed)
    with memory_budget(memory_gb):
        multipliers, totals = averaged_multipliers(loaded, pair)
        return trace_from(loaded, multipliers, totals, top=top, seed=seed, source=origin)


def trace_from(
    model: Model,
    multipliers: Multipliers,
    totals: Totals,
    *,
    top: int,
    seed: int = 0,
    source: dict[str, str | None] | None = None,
) -> Trace:
    """Search the paths of multipliers that were made beforehand, and put everything into a trace.

    Args:
        model: the model that they are of.
        multipliers: from `averaged_multipliers`.
        totals: from the same.
        top: how many paths to list.
        seed: the seed that drew the contrast, for the record.
        source: where task, facts and model were read from, for the record.
    """
    pair, total, length = multipliers.contrast, multipliers.total, multipliers.length
    paths = strongest_paths(multipliers, top=top)
    values = node_values(multipliers, totals)
    nodes = _strongest_nodes(multipliers, values)
    edges = _edges(multipliers, totals, nodes, paths)
    pieces = model.tokens.pieces(pair.clean.tokens)
    embedded = float(values[0].sum())

    return Trace(
        fact_id=pair.fact.fact_id,
        cue=pair.fact.cue,
        answer=pair.fact.answer,
        contrast_id=pair.corrupt_fact.fact_id,
        contrast_cue=pair.corrupt_fact.cue,
        contrast_answer=pair.corrupt_fact.answer,
        prompt=pair.clean.text,
        corrupt_prompt=pair.corrupt.text,
        tokens=pair.clean.tokens,
        pieces=pieces,
        corrupt_tokens=pair.corrupt.tokens,
        corrupt_pieces=model.tokens.pieces(pair.corrupt.tokens),
        answer_token=pair.answer.text,
        contrast_answer_token=pair.contrast_answer.text,
        predicted=model.tokens.pieces([multipliers.predicted])[0],
        metric_clean=multipliers.metric_clean,
        metric_corrupt=multipliers.metric_corrupt,
        total=total,
        conserved=abs(embedded - total) / abs(total),
        quadrature_error=sum(map(abs, totals.errors + totals.mended)) / abs(total),
        quadrature_nodes=multipliers.nodes,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        nodes=_traced_nodes(nodes, length, total),
        streams=_traced_streams(stream_values(multipliers, totals), total),
        edges=_traced_edges(edges, length, total),
        paths=tuple(_traced_path(path, pieces, total) for path in paths),
        seed=seed,
        model_name=model.name,
        fingerprint=model.fingerprint,
        dtype=model.dtype_name,
        versions=package_versions(),
        command=command(),
        source=source or {},
    )


def top_path(model: Model, contrast: Contrast) -> TracedPath:
    """Return the strongest path of one contrast: the first of `trace`, at a fraction of its cost.

    The quadrature has `TOP_NODES` nodes whatever it misses, so the value may be off by some percent of itself, and
    of two paths that are nearly as strong the other one may be returned.

    Raises:
        MnemoError: as `trace` does, or nothing flows.
    """
    with memory_budget(None):
        multipliers = Multipliers(model, contrast, nodes=TOP_NODES)
        found = strongest_paths(multipliers, top=1)
    if not found:
        raise MnemoError(f"no path of {contrast.fact.fact_id!r} carries anything")
    return _traced_path(found[0], model.tokens.pieces(contrast.clean.tokens), multipliers.total)


def _traced_path(path: Path, pieces: Sequence[str], total: float) -> TracedPath:
    steps = tuple(
        TraceStep(
            component=hop.name,
            position=hop.position - len(pieces),
            slot=hop.slot,
            token=pieces[hop.position] if hop.name == "embed" else None,
        )
        for hop in path.hops
    )
    return TracedPath(steps=steps, value=path.value, share=path.value / total)


def _strongest_nodes(multipliers: Multipliers, values: Float[Tensor, "writer position"]) -> list[tuple[Hop, float]]:
    """The strongest nodes, all tokens among them, and last the logits, through which everything passes."""
    sizes = values.abs()
    sizes[0] = float("inf")  # tokens stay, however weak
    order = sizes.flatten().argsort(descending=True)[:MOST_NODES].tolist()
    found = []
    for index in order:
        writer, position = divmod(index, multipliers.length)
        value = float(values[writer, position])
        if writer == 0 or value != 0:
            found.append((Hop(multipliers.writers[writer], position), value))
    found.append((Hop(None, multipliers.length - 1), multipliers.total))
    return sorted(found, key=lambda node: -abs(node[1]))


def _edges(multipliers: Multipliers, totals: Totals, nodes: list[tuple[Hop, float]], paths: list[Path]) -> list[Edge]:
    """The strongest edges into the strongest nodes, and all those that the paths take."""
    taken = {
        (Hop(before.writer, before.position), after)
        for path in paths
        for before, after in zip(path.hops, path.hops[1:], strict=False)
    }
    readers = [hop for hop, _ in nodes if hop.writer != Writer("embed")][:MOST_READERS]
    readers += [Hop(after.writer, after.position) for _, after in taken]
    found = edges_into(multipliers, totals, readers, least=LEAST_SHARE * abs(multipliers.total), also=taken)
    return [edge for i, edge in enumerate(found) if i < MOST_EDGES or (edge.source, edge.target) in taken]


def _traced_nodes(nodes: Sequence[tuple[Hop, float]], length: int, total: float) -> tuple[TracedNode, ...]:
    return tuple(
        TracedNode(component=hop.name, position=hop.position - length, value=value, share=value / total)
        for hop, value in nodes
    )


def _traced_edges(edges: Sequence[Edge], length: int, total: float) -> tuple[TracedEdge, ...]:
    return tuple(
        TracedEdge(
            writer=edge.source.name,
            reader=edge.target.name,
            slot=edge.target.slot,
            source=edge.source.position - length,
            position=edge.target.position - length,
            value=edge.value,
            share=edge.value / total,
        )
        for edge in edges
    )


def _traced_streams(values: Float[Tensor, "boundary position"], total: float) -> tuple[TracedStream, ...]:
    length = values.shape[1]
    return tuple(
        TracedStream(stream_layer=after, position=position - length, value=value, share=value / total)
        for after, row in enumerate(values.tolist())
        for position, value in enumerate(row)
    )


def _pair(
    source: Study | Task | Model | str | File,
    fact: str | Fact | Contrast,
    *,
    contrast: str | None,
    model: Model | str | File | None,
    seed: int,
) -> tuple[Model, Contrast, dict[str, str | None]]:
    """The model and the contrast that are meant, and where they were read from."""
    from mnemo.model import Model
    from mnemo.study import Study, load_model

    if isinstance(source, Model):
        if not isinstance(fact, Contrast):
            raise MnemoError("a model alone does not say how to ask for a fact: give a task, or a contrast as the fact")
        return source, fact, {"model": source.source}
    facts: FactSet | None = None
    if isinstance(source, Study):
        task, model = source.task, source.model if model is None else model
        facts = _facts_of(source)
    else:
        task = source if isinstance(source, Task) else Task.read(source)
    if isinstance(fact, Contrast):
        loaded = load_model(task, model)
        return loaded, fact, {"model": loaded.source}
    facts = task.load_facts() if facts is None else facts
    chosen = facts.find(fact) if isinstance(fact, str) else facts[fact.fact_id]
    other = None if contrast is None else facts.find(contrast)
    loaded = load_model(task, model)
    rivals = facts if other is None else facts.subset([chosen.fact_id, other.fact_id])
    if other == chosen:
        raise MnemoError(f"the contrast cue {contrast!r} is the fact's own: give the cue of a fact with another answer")
    found: Any = make_contrasts(task, rivals, loaded.tokens, seed=seed).get(chosen.fact_id)
    if found is None:
        raise MnemoError(
            f"no fact can be compared with {chosen.cue!r}: none has another answer and a prompt of as many tokens"
        )
    return loaded, found, source_of(task, loaded, facts)


def _facts_of(study: Study) -> FactSet:
    rows = study.table[["fact_id", "cue", "answer"]].itertuples(index=False, name=None)
    return FactSet(facts=tuple(Fact(fact_id=str(i), cue=cue, answer=answer) for i, cue, answer in rows))
