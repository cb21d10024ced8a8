"""What the commands print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mnemo.cluster.manifest import is_done
from mnemo.cluster.plan import Run
from mnemo.doses import CURVES
from mnemo.errors import visible
from mnemo.fact_evidence import FILES, FactEvidence
from mnemo.facts import is_hub_name
from mnemo.invented import MARKS, as_marked, strongest_first
from mnemo.plan import Plan
from mnemo.study import Study
from mnemo.traces import Trace
from mnemo.verdict import swaps_in_words


def plain(text: str) -> str:
    """Text of a task, a fact or a model for a `Console`: no markup of rich and no code of the terminal acts."""
    return escape(visible(text))


def print_plan(plan: Plan) -> None:
    """Print what a run will take, stage by stage."""
    console = Console()
    counted = "" if plan.exact else " (guessed from the characters: there is no tokenizer)"
    console.print(
        f"[bold]{plain(plan.model)}[/bold]: {plan.parameters:,} parameters, {plan.model_gb:.3g} GB; {plan.facts} "
        f"facts of up to {plan.length} tokens{counted}; {plan.budget_gb:g} GB besides the model"
    )
    if plan.longest is not None and plan.length > plan.longest:
        console.print(f"the model reads at most {plan.longest} tokens: longer prompts are refused")
    listing = Table()
    for column in ("stage", "forwards", "at once", "peak GB", "time"):
        listing.add_column(column, justify="left" if column == "stage" else "right")
    for stage in plan.stages:
        row = f"{stage.forwards:,}", f"{stage.at_once}", f"{stage.memory_gb:.2f}", _duration(stage.seconds)
        listing.add_row(stage.name, *row)
    forwards, seconds = (sum(getattr(stage, name) for stage in plan.stages) for name in ("forwards", "seconds"))
    listing.add_row("all, at the most", f"{forwards:,}", "", f"{plan.memory_gb:.2f}", _duration(seconds), style="bold")
    console.print(listing)


def _duration(seconds: float) -> str:
    units = ((86_400, "days"), (3600, "h"), (60, "min"))
    size, unit = next(((size, unit) for size, unit in units if seconds >= 2 * size), (1, "s"))
    return f"{seconds / size:.2g} {unit}"


def print_summary(study: Study, folder: Path) -> None:
    """Print how many facts got which verdict, the mnemonics, invented ones first, and what was not tested."""
    console = Console()
    table = study.table
    counts = table["verdict"].value_counts()
    console.print("  ".join(f"[bold]{count}[/bold] {verdict}" for verdict, count in counts.items()))
    if study.waypoint is not None:
        site = study.waypoint.site
        console.print(f"waypoint: residual stream after block {site.layer}, position {site.position} from the end")
    listed = strongest_first(table)
    if len(listed):
        marks = listed["invented"].value_counts()
        counted = ", ".join(f"{marks.get(mark, 0)} {mark}" for mark in MARKS if mark in marks or mark != "by-edit")
        listing = Table(title=f"Mnemonics that nobody is known to have planted: {counted}", title_justify="left")
        edited = ["edits (next)"] if "edit_q" in table else []
        for column in ("fact", "concept", "", "score", "swap (random)", "other questions (same answer)", *edited):
            listing.add_column(column, overflow="fold", min_width=12 if column == "concept" else None)
        for row in (as_marked(row) for _, row in listed.head(10).iterrows()):
            listing.add_row(
                plain(f"{row['cue']} -> {row['answer']}"),
                plain(str(row["concept"])),
                row["invented"],
                _number(row["score"], 2),
                swaps_in_words(row),
                _beside(row, "entailment", "entailment_control"),
                *(_beside(row, "edit_share", "edit_rival") for _ in edited),
            )
        console.print(listing)
    for note in study.notes:
        console.print(f"note: {plain(note)}", style="yellow")
    console.print(f"written: {plain(str(folder / 'report.html'))}, verdicts.csv and the files beside them")


def _beside(row: pd.Series, effect: str, control: str) -> str:
    return f"{_number(row.get(effect), 2)} ({_number(row.get(control), 2)})"


def print_metrics(metrics: dict[str, Any], folder: Path) -> None:
    """Print a benchmark's AUROC table beside its baselines, and the other scores."""
    console = Console()
    auroc = Table(title="AUROC, mnemonic facts against ... (95% interval over concepts)", title_justify="left")
    auroc.add_column("ranked by")
    kinds = list(metrics["auroc"])
    for kind in kinds:
        auroc.add_column(kind, justify="right")
    for ranker in metrics["auroc"][kinds[0]]:
        auroc.add_row(ranker, *(_interval(metrics["auroc"][kind][ranker]) for kind in kinds))
    console.print(auroc)
    kinds = list(metrics["swap"])
    other = Table("", *kinds, title="By kind", title_justify="left")
    other.add_row("recalled", *(_number(metrics["recalled"][kind]) for kind in kinds))
    for column in ("swap_success", "swap_control"):
        other.add_row(column, *(_interval(metrics["swap"][kind][column]) for kind in kinds))
    false = metrics["false_positives"]
    wrongly = (_interval(false[kind]) if kind in false else "" for kind in kinds)
    other.add_row("judged recalled through a concept", *wrongly)
    console.print(other)
    console.print(
        f"concept exact {_interval(metrics['concept_exact'])}   balanced accuracy "
        f"{_interval(metrics['balanced_accuracy'])}   calibration error {_interval(metrics['calibration_error'])}"
    )
    free = metrics["invented"]
    if "matches" in free:
        kinds = ", ".join(f"{count} {kind}" for kind, count in free["kinds"].items() if kind != "by-edit")
        console.print(
            f"free facts: {_interval(free['matches_interval'])} evoke a concept with their answer (shuffled: "
            f"{free['null']['mean']:.3f}, at most {free['null']['max']:.3f}, p = {free['p_value']:.2g}); "
            f"{free['verdicts']} of {free['facts']} recalled through a concept: {kinds}"
        )
    if "edits" in free:
        edits = free["edits"]
        console.print(
            f"edits: {edits['led']} of {edits['tested']} free facts are led by a concept with their answer, "
            f"{edits['elsewhere']} by another; where the model names one that fits ({edits['fitting']}) it is "
            f"the same in {_interval(edits['named'])} (by chance {_number(edits['named_by_chance'])})"
        )
    console.print(f"written: {plain(str(folder / 'metrics.json'))}, report.html and the files beside them")


def print_sweep_plan(runs: list[Run], folder: Path, *, address: str | None, workers: int) -> None:
    """Print the runs of a sweep, which of them are finished, and where the others would be run."""
    console = Console()
    table = Table("run", "facts", "model", "checkpoint", "seed", "", box=None, pad_edge=False)
    done = {run.name for run in runs if is_done(run, folder)}
    for run in runs:
        state = "finished" if run.name in done else ""
        model = f"{run.model} (hub)" if is_hub_name(run.model) else run.model
        table.add_row(plain(run.name), str(run.facts), plain(model), plain(run.checkpoint or ""), str(run.seed), state)
    console.print(table)
    left = [run for run in runs if run.name not in done]
    where = (
        f"the Dask cluster at {address}" if address else f"{workers} {'processes' if workers > 1 else 'process'} here"
    )
    console.print(
        f"{len(left)} of {len(runs)} runs to do, {sum(run.facts for run in left)} facts, "
        f"{len({run.model for run in left})} models, on {plain(where)}, into {plain(str(folder))}"
    )


def print_sweep(runs: pd.DataFrame, folder: Path) -> None:
    """Print how many runs went how, and what came of those that failed."""
    console = Console()
    failed = runs[runs["error"].notna()]
    kept = int(runs["kept"].sum())
    facts = int(runs.loc[runs["error"].isna(), "facts"].sum())
    console.print(
        f"{len(runs) - len(failed)} of {len(runs)} runs finished, {kept} of them before; {facts} facts judged"
    )
    for row in failed.itertuples():
        console.print(f"failed: {plain(str(row.name))}: {plain(str(row.error))}", style="yellow")
    console.print(f"written: {plain(str(folder / 'verdicts.parquet'))}, runs.csv, and a folder for each run in runs/")


def print_organism(card: dict[str, Any], folder: Path) -> None:
    """Print what was measured on a new organism."""
    console = Console()
    for name, values in card["measured"].items():
        shown = values if isinstance(values, dict) else {"": values}
        console.print(f"{name}: " + "  ".join(f"{key} {_number(value)}" for key, value in shown.items()))
    console.print(f"trained in {card['seconds']:.0f} s; written: {plain(str(folder))}")


def print_trace(trace: Trace, folder: Path, *, rows: int = 10) -> None:
    """Print what is explained, then the strongest nodes, edges, routes and paths with their shares.

    Args:
        trace: what was found.
        folder: where it was written.
        rows: how many of each.
    """
    console = Console()
    console.print(f"[bold]{plain(f'{trace.cue} -> {trace.answer}')}[/bold], compared with ", end="")
    console.print(plain(f"{trace.contrast_cue} -> {trace.contrast_answer}"))
    console.print(
        f"logit({plain(repr(trace.answer_token))}) - logit({plain(repr(trace.contrast_answer_token))}): "
        f"{trace.metric_clean:.3f} clean, {trace.metric_corrupt:.3f} corrupt, [bold]{trace.total:.3f}[/bold] to explain"
    )
    if trace.predicted != trace.answer_token:
        says = plain(f"the model answers {trace.predicted!r}, not {trace.answer_token!r}")
        console.print(f"note: {says}: it does not recall this fact", style="yellow")
    nodes = trace.nodes[trace.nodes["component"] != "logits"].head(rows).itertuples()
    _print_shares(console, "node", [(f"{n.component}@{n.position}", n.value, n.share, n.token) for n in nodes])
    edges = [
        (f"{e.writer}@{e.source} -> {e.reader}{'.' + e.slot if e.slot else ''}@{e.position}", e.value, e.share, "")
        for e in trace.edges.head(rows).itertuples()
    ]
    _print_shares(console, "edge", edges)
    routes = trace.by("position")
    routes = [(row.route, row.value, row.share, row.paths or "") for row in routes.itertuples()]
    _print_shares(console, "route of the paths over tokens", [*routes[:-1][:rows], routes[-1]], last="paths")
    paths = [(path.text, path.value, path.share, "") for path in trace.paths[:rows]]
    _print_shares(console, f"path (first {len(paths)} of {len(trace.paths)})", paths)
    console.print(
        f"{len(trace.paths)} paths carry {trace.covered:.1%} of the whole, all others {1 - trace.covered:.1%}; all "
        f"paths together miss it by {trace.conserved:.1g} of it ({trace.quadrature_nodes} nodes)"
    )
    console.print(f"written: {plain(str(folder / 'graph.json'))}, trace.png and the tables beside them")


def print_evidence(evidence: FactEvidence, folder: Path, *, run: Path | None) -> None:
    """Print where a fact was looked at, what each reader reads there, the strongest messages, and the interventions.

    Args:
        evidence: what was found.
        folder: where it was written.
        run: the folder that the study was read from; None for one made for this.
    """
    console = Console()
    _print_place(console, evidence, run)
    if "readings" in evidence.tables:
        _print_readings(console, evidence.tables["readings"])
    if "messages" in evidence.tables:
        _print_messages(console, evidence.tables["messages"])
    if "doses" in evidence.tables:
        _print_doses(console, evidence.tables["doses"])
    for note in evidence.notes:
        console.print(f"note: {plain(note)}", style="yellow")
    written = [file for file in FILES if (folder / file).is_file()]
    console.print(f"written: {plain(str(folder / written[0]))}, {', '.join(written[1:])}")


def _print_place(console: Console, evidence: FactEvidence, run: Path | None) -> None:
    study, row = evidence.study, evidence.study[evidence.fact_id]
    effort = "quick" if study.record["quick"] else "full"
    if run is None:
        whose = f"a {effort} extract made now; one without --quick may stand elsewhere (give its folder with --run)"
    else:
        whose = f"the {effort} run in {plain(str(run))}, seed {study.record['seed']}"
    if study.waypoint is None:
        console.print(f"no waypoint, by {whose}")
        return
    site = study.waypoint.site
    token = plain(study.model.tokens.pieces(study.prompt(evidence.fact_id).tokens)[site.position])
    console.print(f"waypoint: after block {site.layer}, at {token}, {-site.position} from the end, by {whose}")
    concept = plain(str(row["concept"])) if isinstance(row["concept"], str) else "none"
    verdict = plain(str(row["verdict"]))
    console.print(f"verdict there: [bold]{verdict}[/bold], score {_number(row['score'])}; concept: {concept}")


def _print_readings(console: Console, readings: pd.DataFrame) -> None:
    table = Table("reader", "reads", "nats/token", "p", "then", box=None, pad_edge=False)
    for reader, rows in readings.groupby("reader", sort=False):
        best, rest = rows.iloc[0], rows["phrase"].iloc[1:3]
        text = plain(best["phrase"]) if isinstance(best["phrase"], str) else f"[dim]{plain(str(best['note']))}[/dim]"
        then = plain(", ".join(rest))
        table.add_row(plain(str(reader)), text, _number(best["ratio"]), _number(best["p_value"]), then)
    console.print(table)
    console.print()


def _print_messages(console: Console, messages: pd.DataFrame) -> None:
    table = Table("writer", "carries", "nats/token", "size", "the concept?", box=None, pad_edge=False)
    for row in messages.to_dict("records"):
        carries = plain(row["concept"]) if isinstance(row["concept"], str) else "-"
        agrees = "yes" if row["agrees"] else ""
        table.add_row(plain(row["writer"]), carries, _number(row["ratio"]), f"{row['norm']:.1%}", agrees)
    console.print(table)
    console.print()


def _print_doses(console: Console, doses: pd.DataFrame) -> None:
    """Print what each intervention does at a dose of 1."""
    at_one = doses[(doses["dose"] - 1).abs() < 1e-9]
    where = f"intervention at dose 1, layer {doses['layer'].iloc[0]}"
    table = Table(where, "trials", "P(own answer)", "P(predicted answer)", box=None, pad_edge=False)
    for name, trials in at_one.groupby("curve", sort=False):
        own, predicted = float(trials["p_own"].mean()), float(trials["p_predicted"].mean())
        table.add_row(f"{name}: {CURVES[str(name)]}", str(len(trials)), _number(own), _number(predicted))
    console.print(table)
    console.print()


def _print_shares(console: Console, what: str, rows: list[tuple[str, float, float, Any]], *, last: str = "") -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(what, overflow="fold")
    table.add_column("logits", justify="right")
    table.add_column("share", justify="right")
    table.add_column(last)
    for text, value, share, more in rows:
        table.add_row(plain(text), f"{value:.3f}", f"{share:.1%}", plain(str(more)))
    console.print(table)
    console.print()


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _interval(entry: dict[str, float | None]) -> str:
    return f"{_number(entry['value'])} [{_number(entry['low'])}, {_number(entry['high'])}]"
