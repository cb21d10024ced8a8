"""Steering against guidance, on the shipped organism and on any other trained ones.

    python benchmarks/steering.py                              # the shipped organism, some minutes of one core
    python benchmarks/steering.py --organisms out/organisms    # the organisms in a folder too (facts alone)
    python benchmarks/steering.py --resume                     # keeps what an interrupted run has finished
    python benchmarks/steering.py --table                      # prints the tables of the results that are there

The tables go to benchmarks/results/steering_*.csv and the figure to out/steering/steering.png; intervals are over
concepts. The truth of the organisms is used:
this measures the methods, and judges no fact.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cases import ORGANISM, ROOT, cell, print_table
from tqdm.auto import tqdm

from mnemo.concept_vectors import ConceptTable, ask_concepts
from mnemo.facts import Task
from mnemo.files import write_text
from mnemo.intervals import grouped_interval
from mnemo.model import Model, load
from mnemo.patching import Site, read_stream, read_stream_at_span
from mnemo.prompts import Prompt, answer_token, render
from mnemo.records import Parts, inputs_hash
from mnemo.scoring import read_truth
from mnemo.steering import (
    Guidance,
    Method,
    Steering,
    at_divergence,
    collapse,
    concept_pairs,
    facts_by_kind,
    first_order,
    purity,
    steer_facts,
    steering_vector,
    sweep,
    towards_each,
    tradeoff,
)

RESULTS = ROOT / "benchmarks" / "results"
TABLES = ("curves", "first_order", "facts", "purity")
LAYER = 2  # the planted waypoint of the organisms
CONCEPTS, PROMPTS, PAIRS, DRAWS = 6, 8, 4, 2
DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0, 32.0)
FACT_DOSES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
TARGETS = (0.03, 0.1, 0.3, 1.0, 2.0, 3.0)
KINDS = ("mnemonic", "idle", "decoy", "rote", "free")
FACTS_PER_KIND = 48
FACT_MEASURES = ("own", "toward", "says", "flips")


class Organism:
    """A study folder with its model and truth."""

    def __init__(self, folder: Path) -> None:
        self.name = "shipped llama-0" if folder == ORGANISM else folder.name
        self.task = Task.read(folder)
        self.facts = self.task.load_facts()
        self.truth = read_truth(folder / "truth.csv", self.facts).set_index("fact_id")
        self.model: Model = load(self.task.model_path or folder)
        self.lexicon = self.task.load_lexicon()

    def prompts(self, template: str | None, fillers: Sequence[str]) -> list[Prompt]:
        assert template is not None
        return [render(template, filler, tokenizer=self.model.tokens) for filler in fillers]

    def chosen(self) -> list[tuple[str, list[str]]]:
        """Return the concepts steered towards, each with those it is contrasted with; drawn by seed 0."""
        order = [self.lexicon[i] for i in np.random.default_rng(0).permutation(len(self.lexicon))]
        return [(order[i], order[CONCEPTS + i * PAIRS :][:PAIRS]) for i in range(CONCEPTS)]

    def expand_concept(self) -> str:
        assert self.task.verbalise is not None
        return self.task.verbalise.replace("{cue}", "{concept}")

    def methods(self, concept: str, others: Sequence[str], layer: int = LAYER) -> tuple[Steering, Guidance]:
        pairs = concept_pairs(self.model, self.expand_concept(), concept=concept, others=others)
        position = pairs[0].positive.last - len(pairs[0].positive)
        vector = steering_vector(self.model, pairs, layer=layer)
        return Steering(self.model, vector, layer, position), Guidance(self.model, pairs)

    def asked(self, concept: str) -> dict[str, list[Prompt]]:
        """Return prompts to push: about codes of other concepts, and about other concepts by name."""
        mnemonic = self.truth[(self.truth["kind"] == "mnemonic") & (self.truth["concept"] != concept)]
        ids = mnemonic.sample(PROMPTS, random_state=0).index
        cues = self.prompts(self.task.verbalise, [self.facts[str(i)].cue for i in ids])
        return {"code": cues, "names another": self.prompts(self.expand_concept(), list(mnemonic["concept"][ids]))}


def curves_of(organism: Organism, concept: str, others: Sequence[str]) -> pd.DataFrame:
    """Sweep both methods towards one concept."""
    references = organism.prompts(organism.expand_concept(), organism.lexicon)
    steering, guidance = organism.methods(concept, others)
    swept: tuple[tuple[str, Method], ...] = (("steering", steering), ("guidance", guidance))
    found = []
    for prompt, asked in organism.asked(concept).items():
        for name, method in swept:
            curve = sweep(
                method, asked, doses=DOSES, hit=lambda text: text.strip() == concept, references=references,
                draws=DRAWS, new_tokens=organism.task.max_concept_tokens + 1,
            )  # fmt: skip
            found.append(
                curve.assign(method=name, prompt=prompt, concept=concept, vocabulary=organism.model.vocab_size)
            )
    return pd.concat(found)


def first_order_of(organism: Organism) -> pd.DataFrame:
    """Correlate both methods at dose 0, layer by layer."""
    rows = []
    for concept, others in organism.chosen():
        asked = organism.asked(concept)["code"]
        for layer in range(1, organism.model.n_layers + 1):
            steering, guidance = organism.methods(concept, others, layer)
            found = first_order(steering, guidance, prompts=asked)
            known = found.correlation[found.correlation.isfinite()]
            value = known.mean().item() if len(known) else float("nan")
            rows.append({"concept": concept, "layer": layer, "correlation": value})
    return pd.DataFrame(rows)


def table_of(organism: Organism) -> ConceptTable:
    return ask_concepts(organism.model, organism.task.concept_recall or "", phrases=organism.lexicon)


def facts_of(organism: Organism) -> pd.DataFrame:
    """Push facts of every kind towards concepts."""
    some = organism.truth.groupby("kind").sample(FACTS_PER_KIND, random_state=0, replace=False)
    facts = [organism.facts[str(i)] for i in some.index]
    tokens, table = organism.model.tokens, table_of(organism)
    asked = organism.prompts(organism.task.recall, [fact.cue for fact in facts])
    answers = [answer_token(p, f.answer, tokenizer=tokens).id for p, f in zip(asked, facts, strict=True)]
    rank = {phrase: i for i, phrase in enumerate(table.phrases)}
    found = steer_facts(
        organism.model, asked, answers=torch.tensor(answers), table=table, seed=0, doses=FACT_DOSES,
        concepts=torch.tensor([rank.get(concept, -1) for concept in some["concept"]]),
        site=Site(LAYER, asked[0].last - len(asked[0])),
    )  # fmt: skip
    place = found["fact"].to_numpy()
    # Facts without a concept are resampled one by one.
    groups = some["concept"].where(some["concept"] != "", some.index.to_series())
    return found.assign(kind=some["kind"].to_numpy()[place], concept=groups.to_numpy()[place])


def purity_of(organism: Organism) -> pd.DataFrame:
    """Compare each concept's vector, from its prompts, with the directions of the cues that evoke the concepts."""
    table = table_of(organism)
    vectors = towards_each(read_stream_at_span(organism.model, table.prompts, layer=LAYER))
    mnemonic = organism.truth[organism.truth["kind"] == "mnemonic"]
    asked = organism.prompts(organism.task.recall, [organism.facts[str(i)].cue for i in mnemonic.index])
    states = read_stream(organism.model, asked, positions=[asked[0].last - len(asked[0])])[:, LAYER, 0]
    means = pd.DataFrame(states.numpy()).groupby(mnemonic["concept"].to_numpy()).mean()
    known = [i for i, phrase in enumerate(table.phrases) if phrase in means.index]
    directions = torch.tensor(means.loc[[table.phrases[i] for i in known]].to_numpy())
    found = purity(vectors[known], towards_each(directions), answers=table.answers[known])
    return found.assign(concept=[table.phrases[i] for i in known])


def measure(folders: Sequence[Path], parts: Parts) -> dict[str, pd.DataFrame]:
    """Measure everything; curves and first order on the first folder alone."""
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for k, folder in enumerate(folders):
        organism = Organism(folder)

        def kept(name: str, what: str, make: partial[pd.DataFrame], of: Organism = organism) -> None:
            found[name].append(parts.get(f"{name}-{of.name}-{what}", make).assign(organism=of.name))

        kept("facts", "all", partial(facts_of, organism))
        kept("purity", "all", partial(purity_of, organism))
        if k == 0:
            kept("first_order", "all", partial(first_order_of, organism))
            for i, (concept, others) in enumerate(tqdm(organism.chosen(), desc="concepts")):
                kept("curves", str(i), partial(curves_of, organism, concept, others))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


# ---------------------------------------------------------------------------------------------- tables


def matched(curves: pd.DataFrame) -> pd.DataFrame:
    """Read every concept's curves at the same divergences."""
    found = [
        at_divergence(curve, TARGETS).assign(method=method, prompt=prompt, concept=concept)
        for (method, prompt, concept), curve in curves.groupby(["method", "prompt", "concept"])
    ]
    return pd.concat(found, ignore_index=True)


def print_results(found: dict[str, pd.DataFrame]) -> None:
    measures = ("dose", "hits", "perplexity", "fluency", "distinct_2")
    print("\nAt matched divergence from the plain model (nats per token)\n")
    table = matched(found["curves"])
    print_table(
        ["prompt", "divergence", "method", "concepts", *measures],
        (
            [*map(str, key), str(rows["hits"].notna().sum()), *(cell(rows[m], rows["concept"]) for m in measures)]
            for key, rows in table.groupby(["prompt", "divergence", "method"], sort=False)
            if rows["hits"].notna().any()
        ),
    )
    wide = table.pivot_table(index=["prompt", "divergence", "concept"], columns="method", values="hits")
    gap = (wide["steering"] - wide["guidance"]).dropna().rename("gap").reset_index()
    print("\nConcept score of steering less that of guidance, paired by concept\n")
    print_table(
        ["prompt", "divergence", "difference"],
        ([*map(str, key), cell(rows["gap"], rows["concept"])] for key, rows in gap.groupby(["prompt", "divergence"])),
    )
    print("\nThe largest doses\n")
    ends = found["curves"].groupby(["prompt", "method"])
    print_table(
        ["prompt", "method", "dose", *measures[1:], "divergence", "concepts whose texts break", "forwards per token"],
        (
            [*map(str, key), f"{last['dose'].max():.0f}", *(cell(last[m], last["concept"]) for m in measures[1:]),
             cell(last["divergence"], last["concept"]),
             str(sum(np.isfinite(collapse(c, int(c["vocabulary"].iloc[0]))) for _, c in rows.groupby("concept"))),
             str(last["forwards"].iloc[0])]
            for key, rows in ends for last in [rows[rows["dose"] == rows["dose"].max()]]
        ),
    )  # fmt: skip
    print("\nFirst order: correlation of what both do to the next token\n")
    print_table(
        ["vector after block", "correlation"],
        ([str(k), cell(rows["correlation"], rows["concept"])] for k, rows in found["first_order"].groupby("layer")),
    )
    print("\nFacts: change of log-odds (nats), and how well it tells mnemonic facts from the others (AUROC), dose 2\n")
    at = found["facts"][found["facts"]["dose"] == 2]
    print_table(
        ["organism", "method", "kind", "own answer", "other concept's answer", "says it", "flips", "AUROC"],
        (
            [row["organism"], row["method"], row["kind"], *(_interval(row, m) for m in FACT_MEASURES),
             "" if row["kind"] == "mnemonic" else f"{row['auroc']:.2f}"]
            for _, row in at.iterrows()
        ),
    )  # fmt: skip
    print("\nWhat else the vectors hold: cosine with directions of concepts (root mean square for several)\n")
    columns = ("own", "same_answer", "unrelated", "null")
    print_table(
        ["organism", *columns],
        (
            [str(k), *(cell(rows[c], rows["concept"]) for c in columns)]
            for k, rows in found["purity"].groupby("organism")
        ),
    )


def _interval(row: pd.Series, measure: str) -> str:
    return f"{row[measure]:.2f} [{row[f'{measure}_low']:.2f}, {row[f'{measure}_high']:.2f}]"


def summary(facts: pd.DataFrame) -> pd.DataFrame:
    """Average over the facts of each kind, with 95% intervals over concepts, and rank mnemonic facts above each kind.

    ``auroc``: the probability that a mnemonic fact gains more of the other concept's answer than one of this kind, ties
    counting half.
    """
    lines = []
    for (organism, method, dose), group in facts.groupby(["organism", "method", "dose"]):
        mnemonic = group.loc[group["kind"] == "mnemonic", "toward"].to_numpy()
        for kind, rows in group.groupby("kind"):
            line = {"organism": organism, "method": method, "dose": dose, "kind": kind, "facts": len(rows)}
            for measure in FACT_MEASURES:
                found = grouped_interval(rows[measure].to_numpy(float), rows["concept"].to_numpy(), seed=0)
                line |= {measure: found["value"], f"{measure}_low": found["low"], f"{measure}_high": found["high"]}
            above = mnemonic[:, None] - rows["toward"].to_numpy()[None]
            lines.append({**line, "auroc": ((above > 0) + 0.5 * (above == 0)).mean()})
    return pd.DataFrame(lines)


def draw(curves: pd.DataFrame, facts: pd.DataFrame, file: Path) -> None:
    """Draw the comparison at matched divergence above what each method does to facts of every kind."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplot_mosaic(
        [list(np.repeat(["hits", "fluency", "distinct_2"], len(KINDS))), list(np.repeat(KINDS, 3))],
        figsize=(12, 6.4), layout="constrained",
    )  # fmt: skip
    table = matched(curves)
    for measure, label in (
        ("hits", "share that says the concept"), ("fluency", "surprise of the text, nats per token"),
        ("distinct_2", "different word pairs, share"),
    ):  # fmt: skip
        tradeoff(table[table["prompt"] == "code"], measure, label=label, ax=axes[measure])
    facts = facts[facts["organism"] == facts["organism"].iloc[0]]
    for kind in KINDS:
        facts_by_kind(facts, kind, measure="toward", label="log-odds gained (nats)", ax=axes[kind])
        axes[kind].set_xlabel("dose")
        axes[kind].set_ylim(-4, 60)
    axes["mnemonic"].legend(loc="upper left", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", type=Path, help="folder of trained organisms to measure besides")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "steering", help="where finished parts are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        more = sorted(arguments.organisms.glob("*/organism.json")) if arguments.organisms else []
        folders = [ORGANISM, *(file.parent for file in more)]
        sizes = (LAYER, CONCEPTS, PROMPTS, PAIRS, DRAWS, DOSES, FACT_DOSES, FACTS_PER_KIND)
        inputs = inputs_hash({"organisms": [str(folder) for folder in folders], "sizes": sizes})
        parts = Parts.begin(arguments.out, inputs, resume=arguments.resume)
        measured = measure(folders, parts)
        draw(measured["curves"], measured["facts"], arguments.out / "steering.png")
        for name, table in {**measured, "facts": summary(measured["facts"])}.items():
            write_text(arguments.results / f"steering_{name}.csv", table.round(4).to_csv(index=False))
        parts.end()
    print_results({name: pd.read_csv(arguments.results / f"steering_{name}.csv") for name in TABLES})


if __name__ == "__main__":
    main()
