"""The search that makes a trace: from one fact and its contrast to multipliers, and from these to paths.

`trace` explains one fact in full, `top_path` finds its strongest path alone, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as File
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mnemo.contrasts import Contrast, make_contrasts
from mnemo.errors import MnemoError
from mnemo.facts import Fact, FactSet, Task
from mnemo.graph import Writer
from mnemo.memory import memory_budget
from mnemo.model import Model, load_for
from mnemo.multipliers import Multipliers, Totals, averaged_multipliers
from mnemo.paths import Edge, Hop, Path, edges_into, node_values, stream_values, strongest_paths
from mnemo.records import command, package_versions, source_of
from mnemo.study import Study
from mnemo.trace_record import TracedEdge, TracedNode, TracedPath, TracedStream, TraceStep
from mnemo.traces import Trace

# What a trace keeps beside its paths: on large models the rest would be gigabytes of nothing.
LEAST_SHARE = 1e-3  # of an edge
MOST_EDGES, MOST_NODES, MOST_READERS = 1000, 5000, 200
TOP_NODES = 8  # of the quadrature, where only the strongest path is wanted


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
        return trace_from(loaded, multipliers, totals=totals, top=top, seed=seed, source=origin)


def trace_from(
    model: Model,
    multipliers: Multipliers,
    *,
    totals: Totals,
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
    found = edges_into(multipliers, totals, readers=readers, least=LEAST_SHARE * abs(multipliers.total), also=taken)
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
        loaded = load_for(task, model)
        return loaded, fact, {"model": loaded.source}
    facts = task.load_facts() if facts is None else facts
    chosen = facts.find(fact) if isinstance(fact, str) else facts[fact.fact_id]
    other = None if contrast is None else facts.find(contrast)
    loaded = load_for(task, model)
    rivals = facts if other is None else facts.subset([chosen.fact_id, other.fact_id])
    if other == chosen:
        raise MnemoError(f"the contrast cue {contrast!r} is the fact's own: give the cue of a fact with another answer")
    found: Any = make_contrasts(task, rivals, tokenizer=loaded.tokens, seed=seed).get(chosen.fact_id)
    if found is None:
        raise MnemoError(
            f"no fact can be compared with {chosen.cue!r}: none has another answer and a prompt of as many tokens"
        )
    return loaded, found, source_of(task, loaded, facts=facts)


def _facts_of(study: Study) -> FactSet:
    rows = study.table[["fact_id", "cue", "answer"]].itertuples(index=False, name=None)
    return FactSet(facts=tuple(Fact(fact_id=str(i), cue=cue, answer=answer) for i, cue, answer in rows))
