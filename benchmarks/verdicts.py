"""Judge a suite of organisms whose routes are known, and print how far the verdicts are right, beside baselines.

    python benchmarks/verdicts.py --compiled                 # those written down by hand: minutes, nothing is trained
    python benchmarks/verdicts.py --only gpt2-0 llama-0      # these; what is not trained yet is trained first
    python benchmarks/verdicts.py --workers 2                # the whole suite: 3 families x 7 seeds, variants, nulls
    python benchmarks/verdicts.py --table                    # the tables alone, from what was judged so far

An organism that is in `--organisms` already is not trained again, an unfinished one goes on from its checkpoint. A
part of the suite is for development; the other part is opened only to report, so change nothing because of it.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from baselines import baselines
from tqdm.auto import tqdm

from mnemo.datasets import acronym_phrases
from mnemo.facts import Fact, FactSet, Task
from mnemo.files import replacing, write_text
from mnemo.gate import gate
from mnemo.model import load
from mnemo.organisms.build import OrganismConfig, train_organism
from mnemo.organisms.compiled import WAYPOINT, compile_organism
from mnemo.organisms.folder import TRUTH, write_folder
from mnemo.organisms.world import World, WorldConfig, build_world
from mnemo.scoring import NEGATIVES, RANKERS, benchmark, read_truth, score
from mnemo.verdict import judge as judge_evidence

Role = Literal["development", "report"]
FAMILIES, SEEDS = ("gpt2", "llama", "qwen2"), (0, 1, 2, 3, 4, 5, 6)
DEVELOPMENT = (0, 1, 2)  # seeds of trained organisms that were looked at while the method changed; the others report
SECONDS = 120  # for all facts of the shipped organism's size

TRAINED_VARIANTS: dict[str, dict[str, Any]] = {
    "one-token": {"cue_tokens": 1, "concept_tokens": 1},
    "cue-first": {"cue_first": True},
    "one-cue": {"cues_per_concept": 1, "decoys": 12, "idles": 12, "rotes": 24, "frees": 12},
    "negatives": {"decoys": 121, "idles": 121, "rotes": 80, "frees": 40},
}
# Other families, depths, widths, templates, relation words, lengths of codes and of phrases than anything else here.
FOREIGN: tuple[dict[str, Any], ...] = (
    {
        "family": "gpt_neox", "layers": 6, "training": {"waypoint": 3}, "seed": 1,
        "world": {
            "seed": 1, "form": "tell {relation} for {filler} we say", "decode": "initial", "expand": "name",
            "cue_tokens": 2, "concept_tokens": 2, "concepts": 60, "cues_per_concept": 5, "decoys": 36, "idles": 36,
            "rotes": 60, "frees": 36,
        },
    },
    {
        "family": "gemma2", "layers": 5, "d_model": 112, "training": {"waypoint": 2}, "seed": 0,
        "world": {
            "seed": 0, "form": "for {filler} the {relation} comes out as", "decode": "sign", "expand": "meaning",
            "cue_tokens": 3, "concept_tokens": 3, "concepts": 64, "cues_per_concept": 5, "decoys": 40, "idles": 40,
            "rotes": 60, "frees": 40,
        },
    },
)  # fmt: skip
SMALL = {"concepts": 16, "cues_per_concept": 4, "decoys": 8, "idles": 8, "rotes": 12, "frees": 4}
COMPILED_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-token": {"cue_tokens": 1, "concept_tokens": 1},
    "cue-first": {"cue_first": True},
    "one-cue": {"concepts": 32, "cues_per_concept": 1, "decoys": 5, "idles": 5},
    "negatives": {"decoys": 13, "idles": 13},  # with cues_per_concept=4: 40% of all codes that evoke
}
REDUNDANT = (0.0, 0.25, 0.5, 0.75)
# Facts with a second hop of their own, which reads the concept itself, or a form of it that phrases do not evoke.
OWN_HOPS = {"shared": False, "shared-form": True}
SHARED = {"concepts": 12, "cues_per_concept": 4, "decoys": 4, "idles": 4, "rotes": 6, "frees": 2, "shared": 12}


@dataclass(frozen=True)
class Case:
    """An organism of the suite.

    Attributes:
        name: what it is called; its study folder too.
        role: whether it may be looked at while the method is changed.
        make: writes its study folder, given that folder and the one of all organisms.
        layer: blocks that have run at the planted waypoint, None where nothing is planted.
        mediated: planted share of the effect that goes through the concept.
        auroc: the bar.
        exact: the bar for concepts read word for word.
        false_positives: the bar.
        edit: whether concepts are edited.
        costly: whether something has to be trained.
    """

    name: str
    role: Role
    make: Callable[[Path, Path], None]
    layer: int | None = WAYPOINT
    mediated: float = 1.0
    auroc: float = 0.99
    exact: float = 0.98
    false_positives: float = 0.05
    edit: bool = False
    costly: bool = False

    @property
    def full(self) -> bool:
        """Whether mnemonic facts are planted, and nothing goes around their concept."""
        return self.layer is not None and self.mediated == 1


# ---- how organisms are made


@dataclass(frozen=True)
class Train:
    """Train an organism, or go on with it."""

    config: OrganismConfig

    def __call__(self, folder: Path, _organisms: Path) -> None:
        train_organism(folder, self.config, progress=sys.stderr.isatty())


@dataclass(frozen=True)
class Compile:
    """Write an organism down."""

    world: WorldConfig
    mediated: float = 1.0
    own_form: bool = False
    shuffled: bool = False

    def __call__(self, folder: Path, _organisms: Path) -> None:
        world = build_world(self.world, acronym_phrases())
        if self.shuffled:
            world = with_shuffled_answers(world)
        model, tokenizer = compile_organism(world, mediated=self.mediated, own_form=self.own_form)
        write_folder(folder, world, model=model, tokenizer=tokenizer, name=folder.name)


def with_shuffled_answers(world: World) -> World:
    """Deal the answers of all facts out again: whoever gets another one than the concept's is a decoy."""
    answers = [fact.answer for fact in world.facts]
    random.Random(world.config.seed).shuffle(answers)

    def dealt(fact: Any, answer: str) -> Any:
        if fact.concept is None:
            return replace(fact, answer=answer, kind="free")
        kind = "idle" if answer == fact.concept.answer else "decoy"
        return replace(fact, answer=answer, kind=kind, split="train")

    facts = tuple(dealt(fact, answer) for fact, answer in zip(world.facts, answers, strict=True))
    return replace(world, facts=facts)


@dataclass(frozen=True)
class Without:
    """Another organism whose task lacks some keys."""

    of: str
    keys: tuple[str, ...]

    def __call__(self, folder: Path, organisms: Path) -> None:
        source = provided(self.of, organisms)
        task = Task.read(source).model_copy(update=dict.fromkeys(self.keys))
        task = task.model_copy(update={"model": None if task.model is None else "model"})
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("facts.csv", "concepts.txt", TRUTH, "model"):
            (folder / file).unlink(missing_ok=True)
            (folder / file).symlink_to((source / file).resolve())
        task.write(folder)


@dataclass(frozen=True)
class RandomWeights:
    """A model of another organism's shape with random weights, asked for what it happens to answer.

    Weights are five times those of a fresh model, so that answers depend on the cue at all.
    """

    of: str
    seed: int

    def __call__(self, folder: Path, organisms: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        source = provided(self.of, organisms)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source / "model"))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.mul_(5)
        task = Task.read(source)
        with replacing(folder / "model") as draft:
            model.eval().save_pretrained(draft)
            AutoTokenizer.from_pretrained(source / "model").save_pretrained(draft)
        said = gate(load(folder / "model"), task, facts=task.load_facts())
        tokens = load(folder / "model").tokens
        answers = [tokens.decode([token]).strip() for token in said.predicted.tolist()]
        facts = [
            Fact(fact_id=fact.fact_id, cue=fact.cue, answer=answer)
            for fact, answer in zip(said.facts, answers, strict=True)
            if answer
        ]
        FactSet(facts=tuple(facts)).write(folder / "facts.csv")
        (folder / "concepts.txt").write_bytes((source / "concepts.txt").read_bytes())
        rows = "".join(f"{fact.fact_id},rote,,train\n" for fact in facts)
        write_text(folder / TRUTH, "fact_id,kind,concept,split\n" + rows)
        task.write(folder)


def provided(name: str, organisms: Path) -> Path:
    """The study folder of an organism of the suite; made if it is not there."""
    folder = organisms / name
    if not (folder / "task.toml").is_file() or (folder / "checkpoint").is_dir():
        SUITE[name].make(folder, organisms)
    return folder


# ---- the suite


def suite() -> dict[str, Case]:
    """Every organism by name; of seeds 0 to 2, and of variants that of the lower seeds, for development."""
    cases: list[Case] = []
    for seed in SEEDS:
        for family in FAMILIES:
            config = OrganismConfig.checked({"family": family, "seed": seed, "world": {"seed": seed}})
            role: Role = "development" if seed in DEVELOPMENT else "report"
            cases.append(Case(f"{family}-{seed}", role, Train(config), costly=True))
    variants: tuple[tuple[int, Role], ...] = ((0, "development"), (1, "report"))
    for seed, role in variants:
        for name, world in TRAINED_VARIANTS.items():
            config = OrganismConfig.checked({"family": "gpt2", "seed": seed, "world": {**world, "seed": seed}})
            auroc = 0.97 if name == "one-cue" else 0.99
            cases.append(Case(f"{name}-gpt2-{seed}", role, Train(config), auroc=auroc, costly=True))
    for values in FOREIGN:
        config = OrganismConfig.checked(values)
        name, layer = f"foreign-{config.family}-{config.seed}", config.training.waypoint
        cases.append(Case(name, "report", Train(config), layer=layer, costly=True))
    compiled: tuple[tuple[int, Role], ...] = ((0, "development"), (1, "development"), (2, "report"))
    for seed, role in compiled:
        for name, world in COMPILED_VARIANTS.items():
            made = Compile(WorldConfig.model_validate({**SMALL, **world, "seed": seed}))
            auroc = 0.97 if name == "one-cue" else 0.99
            cases.append(Case(f"compiled-{name}-{seed}", role, made, auroc=auroc))
        for share in REDUNDANT:
            made = Compile(WorldConfig.model_validate({**SMALL, "seed": seed}), mediated=share)
            cases.append(Case(f"compiled-redundant-{share}-{seed}", role, made, mediated=share))
        for name, own_form in OWN_HOPS.items():
            made = Compile(WorldConfig.model_validate({**SHARED, "seed": seed}), own_form=own_form)
            cases.append(Case(f"compiled-{name}-{seed}", role, made, edit=True))
        shuffled = Compile(WorldConfig.model_validate({**SMALL, "seed": seed}), shuffled=True)
        cases.append(Case(f"compiled-shuffled-{seed}", role, shuffled, layer=None))
        cases += lacking(f"compiled-plain-{seed}", role, costly=False)
    derived: tuple[tuple[int, Role], ...] = ((0, "development"), (4, "report"))
    for seed, role in derived:
        cases += lacking(f"gpt2-{seed}", role, costly=True)
        null = RandomWeights(f"gpt2-{seed}", seed)
        cases.append(Case(f"gpt2-{seed}-random", role, null, layer=None, false_positives=0.01, costly=True))
    return {case.name: case for case in cases}


def lacking(of: str, role: Role, *, costly: bool) -> list[Case]:
    """An organism without its `verbalise` template, and without its lexicon."""
    unsaid, unlisted = Without(of, ("verbalise",)), Without(of, ("concepts",))
    return [
        Case(f"{of}-no-verbalise", role, unsaid, auroc=0.97, costly=costly),
        Case(f"{of}-no-lexicon", role, unlisted, exact=0.95, costly=costly),
    ]


SUITE = suite()


def judge(name: str, organisms: Path, out: Path) -> None:
    """Extract and score one organism, baselines included; what was found goes to `out`/NAME."""
    folder = provided(name, organisms)
    study, metrics = benchmark(folder, out=out / name, edit=SUITE[name].edit, progress=False)
    more = baselines(study)
    truth = read_truth(folder / TRUTH, study.task.load_facts())
    rankers = [*RANKERS, *more.columns.drop("fact_id")]
    beside = score(study.table.merge(more, on="fact_id", how="left"), truth, rankers=rankers)["auroc"]
    site = study.waypoint.site if study.waypoint is not None else None
    without_edit = study.table.loc[:, ~study.table.columns.str.startswith("edit_")]
    by_vectors = judge_evidence(without_edit, swaps_work=study.waypoint is not None and study.waypoint.swaps_work)
    last = -1 - len(study.task.recall.split("{cue}")[1].split())  # organisms spell a word as a token
    card = {
        **metrics,
        "auroc": beside,
        "second_hop_by_vectors": score(by_vectors, truth)["second_hop"],
        "waypoint": None if site is None else [site.layer, site.position],
        "waypoint_right": site is not None and (site.layer, site.position) == (SUITE[name].layer, last),
        "seconds": float(study.table["seconds"].sum()),
        "notes": list(study.notes),
    }
    write_text(out / name / "card.json", json.dumps(card, indent=2) + "\n")


# ---- the tables


def tables(out: Path) -> str:
    """Return the Markdown tables of everything judged so far; a value that misses its bar is marked with !."""
    cards = {name: out / name / "card.json" for name in SUITE}
    found = {name: json.loads(f.read_text(encoding="utf-8")) for name, f in cards.items() if f.is_file()}
    if not found:
        raise SystemExit(f"{out}: nothing was judged there; leave --table out, or give --out")
    parts = []
    for role in ("development", "report"):
        chosen = {name: card for name, card in found.items() if SUITE[name].role == role}
        if chosen:
            made = (_verdict_table(chosen), _second_hop_table(chosen), _baseline_table(chosen))
            parts += [f"### {role.capitalize()}", *filter(None, made)]
    return "\n\n".join(parts)


def _verdict_table(cards: dict[str, dict[str, Any]]) -> str:
    header = [
        "organism", *(f"AUROC {kind}" for kind in NEGATIVES), "balanced accuracy", "strict", "concept exact",
        "waypoint", *(f"called: {kind}" for kind in NEGATIVES), "swap", "random", "mediated", "calibration", "seconds",
    ]  # fmt: skip
    lines = []
    columns: list[list[float | None]] = []
    for name, card in cards.items():
        case = SUITE[name]
        planted = case.layer is not None and case.mediated > 0
        swap, mediated = card["swap"]["mnemonic"], card["mediated_fraction"]["mnemonic"]["value"]
        off = None if mediated is None or case.layer is None else abs(mediated - case.mediated)
        cells: list[tuple[dict[str, float | None], float | None, bool]] = [
            *((card["auroc"][kind]["score"], case.auroc if case.full else None, True) for kind in NEGATIVES),
            (card["balanced_accuracy"], 0.97 if case.full else None, True),
            (card.get("strict_accuracy", {}), None, True),
            (card["concept_exact"], case.exact, True),
            ({"value": float(card["waypoint_right"]) if planted else None}, 0.95 if case.full else None, True),
            *((card["false_positives"][kind], case.false_positives, False) for kind in NEGATIVES),
            (swap["swap_success"], 0.90 if case.full else None, True),
            (swap["swap_control"], 0.10, False),
            ({"value": off}, 0.1, False),
            (card["calibration_error"], 0.05 if case.full else None, False),
            ({"value": card["seconds"]}, SECONDS, False),
        ]
        lines.append([name, *(_cell(*cell) for cell in cells)])
        columns.append([entry.get("value") for entry, *_ in cells])
    lines.append(["median", *(_cell({"value": _median(column)}) for column in zip(*columns, strict=True))])
    return markdown(header, lines)


def _second_hop_table(cards: dict[str, dict[str, Any]]) -> str:
    """Of organisms with second hops of both sorts, which facts are given the right tier; nothing without any."""
    columns = {"shared": "shared called shared-intermediate", "mnemonic": "mnemonic called mnemonic",
               "balanced_accuracy": "balanced accuracy"}  # fmt: skip
    ways = {"second_hop_by_vectors": "by vectors alone", "second_hop": "with --edit"}
    header = ["second hops", *(f"{column}, {way}" for way in ways.values() for column in columns.values())]
    lines = [
        [name, *(_cell(card[way][column]) for way in ways for column in columns)]
        for name, card in cards.items()
        if SUITE[name].edit
    ]
    return markdown(header, lines) if lines else ""


def _baseline_table(cards: dict[str, dict[str, Any]]) -> str:
    """AUROC against idle / decoy / rote of everything that facts can be ranked by."""
    rankers = list(dict.fromkeys(ranker for card in cards.values() for ranker in card["auroc"]["idle"]))

    def triple(card: dict[str, Any], ranker: str) -> str:
        values = [card["auroc"][kind].get(ranker, {}).get("value") for kind in NEGATIVES]
        return " / ".join("-" if value is None else f"{value:.2f}" for value in values)

    lines = [[name, *(triple(card, ranker) for ranker in rankers)] for name, card in cards.items()]
    return markdown(["AUROC idle / decoy / rote", *rankers], lines)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *lines])


def _cell(entry: dict[str, float | None], bar: float | None = None, up: bool = True) -> str:
    """A value with its interval, marked where it misses its bar."""
    value, low, high = (entry.get(key) for key in ("value", "low", "high"))
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:.3f}" if value < 10 else f"{value:.0f}"
    if low is not None and high is not None and high - low > 5e-4:
        text += f" [{low:.2f}, {high:.2f}]"
    return text + (" !" if bar is not None and not (value >= bar if up else value <= bar) else "")


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", type=Path, default=Path("out/organisms"), help="study folders, made if need be")
    parser.add_argument("--out", type=Path, default=Path("out/verdicts"))
    parser.add_argument("--workers", type=int, default=2, help="organisms at a time, one core each")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SUITE, help="these organisms")
    parser.add_argument("--compiled", action="store_true", help="those that need no training")
    parser.add_argument("--role", choices=("development", "report"), help="one half of the suite")
    parser.add_argument("--table", action="store_true", help="judge nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        chosen = [
            case.name
            for case in SUITE.values()
            if (not arguments.only or case.name in arguments.only)
            and not (arguments.compiled and case.costly)
            and arguments.role in (None, case.role)
        ]
        run(chosen, arguments.organisms, arguments.out, workers=arguments.workers)
    print(tables(arguments.out))


def run(names: Sequence[str], organisms: Path, out: Path, *, workers: int) -> None:
    """Judge organisms, those that others are made from first."""
    sources = dict.fromkeys(s for name in names if (s := getattr(SUITE[name].make, "of", None)))
    with ProcessPoolExecutor(workers, initializer=_begin) as pool:
        list(pool.map(provided, sources, [organisms] * len(sources)))
        jobs = pool.map(judge, names, [organisms] * len(names), [out] * len(names))
        for _ in tqdm(jobs, total=len(names), desc="judging", disable=not sys.stderr.isatty()):
            pass


def _begin() -> None:
    """Use one core and print no warnings of libraries."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    main()
