"""`mnemo demo`: one fact of each kind in the shipped organism, with the evidence beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from mnemo.datasets import data_path
from mnemo.extraction import extract
from mnemo.files import replacing
from mnemo.organisms.world import SHOWN_CUE
from mnemo.plot import overview
from mnemo.report import plain
from mnemo.scoring import invented, read_truth, with_truth
from mnemo.study import Study
from mnemo.verdict import swaps_in_words

WHAT_IT_IS = {
    "mnemonic": "planted; held out of training",
    "decoy": "evokes a concept, answers otherwise",
    "idle": "evokes one that fits, goes without it",
    "rote": "no concept",
    "free": "nothing planted",
}


@dataclass(frozen=True)
class Shown:
    """A fact that the demo shows and the kind that it was trained to be."""

    row: pd.Series
    kind: str


def run_demo(out: Path, *, console: Console, seed: int = 0) -> Study:
    """Extract the shipped organism, print the report and save the figure to `out`/demo.png."""
    folder = data_path("organism")
    console.print("Asking the shipped organism about all its facts (no training, no download) ...", style="dim")
    study = extract(folder, quick=True, seed=seed)
    truth = read_truth(folder / "truth.csv", study.task.load_facts())
    facts = with_truth(study.table, truth)
    shown = choose(facts[facts["recalled"]])

    console.print(_headline(shown[0].row, study))
    console.print(_table(shown))
    console.print(_about_free(facts[facts["recalled"]], shown, seed=seed))
    for note in study.notes:
        console.print(f"note: {plain(note)}", style="yellow")
    study.write(out)
    file = out / "demo.png"
    labels = [f"{shown_.row['cue']} → {shown_.row['answer']}\n({shown_.kind})" for shown_ in shown]
    figure = overview(study, [shown_.row["fact_id"] for shown_ in shown], labels=labels)
    with replacing(file) as draft:
        figure.savefig(draft, dpi=150, format="png")
    console.print(f"Figure: {plain(str(file))}    verdicts of all facts: {plain(str(out / 'verdicts.csv'))}")
    return study


def choose(facts: pd.DataFrame) -> list[Shown]:
    """Choose VA== and the first fact of each negative kind; of the free ones that which looks most invented."""
    of_kind = {kind: facts[facts["kind"] == kind] for kind in WHAT_IT_IS}
    free = of_kind["free"].assign(
        called=of_kind["free"]["verdict"] == "mnemonic",
        necessary=of_kind["free"]["ablation_drop"] - of_kind["free"]["ablation_control"],
    )
    free = free.sort_values(["called", "entailment", "necessary"], ascending=False, kind="stable")
    first = facts[facts["cue"] == SHOWN_CUE].iloc[0]
    rows = [first, *(of_kind[kind].iloc[0] for kind in ("decoy", "idle", "rote")), free.iloc[0]]
    return [Shown(row, row["kind"]) for row in rows]


def _headline(row: pd.Series, study: Study) -> str:
    site = study.waypoint.site if study.waypoint else None
    prompt = study.prompt(row["fact_id"])
    token = study.model.tokens.pieces(prompt.tokens)[site.position].strip() if site else ""
    where = f"after block {site.layer}, at the token {plain(repr(token))}" if site else "nowhere"
    return (
        f"\n[bold]{plain(row['cue'])} -> {plain(str(row['concept']))} -> {plain(row['answer'])}[/bold]\n"
        f"recalled with probability {row['recall_probability']:.3f}; waypoint {where}; concept read there: "
        f"[bold]{plain(str(row['concept']))}[/bold] ({row['concept_score']:.1f} nats per token), runner-up "
        f"{plain(str(row['runner_up']))} ({row['runner_up_score']:.1f}); verdict [bold]{row['verdict']}[/bold] "
        f"(q = {row['q_value']:.1g})\n"
    )


def _table(shown: Sequence[Shown]) -> Table:
    """One column for each fact, so that the table fits a terminal of 80 characters."""
    table = Table(title="One fact of each kind; controls in brackets", title_justify="left", show_lines=True)
    table.add_column("")
    for fact in shown:
        table.add_column(plain(f"{fact.row['cue']} -> {fact.row['answer']}"), overflow="fold")

    def add(name: str, cell: Callable[[pd.Series], str]) -> None:
        table.add_row(name, *(cell(fact.row) for fact in shown))

    table.add_row("trained to be", *(f"[bold]{fact.kind}[/bold]: {WHAT_IT_IS[fact.kind]}" for fact in shown))
    add("recalled with P", lambda row: f"{row['recall_probability']:.2f}")
    add("concept read", lambda row: plain(str(row["concept"])))
    add("swap works (random)", swaps_in_words)
    add("concept suffices, P (others)", lambda row: f"{row['sufficiency']:.2f} ({row['sufficiency_control']:.2f})")
    add("P lost without it (random)", lambda row: f"{row['ablation_drop']:.2f} ({row['ablation_control']:.2f})")
    add("probes follow it (same answer)", lambda row: f"{row['entailment']:.2f} ({row['entailment_control']:.2f})")
    add("verdict", lambda row: f"[bold]{row['verdict']}[/bold]")
    return table


def _about_free(facts: pd.DataFrame, shown: Sequence[Shown], *, seed: int) -> str:
    count = invented(facts, seed=seed)
    cue, shuffled = shown[-1].row["cue"], count["null"]
    follow = count["entailment"]["matching"]
    return (
        f"\n[bold]Invented?[/bold] Nobody gave {plain(cue)} a concept. Of {count['facts']} such free facts "
        f"{count['matches']:.0%} evoke a concept that has their answer; with shuffled answers {shuffled['mean']:.0%} "
        f"do (at most {shuffled['max']:.0%} in 1000 shuffles, p = {count['p_value']:.1g}). "
        f"{count['verdicts']} are recalled through a concept.\nA concept vector carries its answer with it, so look at "
        f"the other questions: matching cues answer {follow['entailment']:.0%} of them as their concept does, and "
        f"{follow['entailment_control']:.0%} as other concepts with the same answer do.\n"
    )
