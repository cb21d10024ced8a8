"""The command line. Exit codes: 0 on success, 2 with one line on bad input, never a traceback for a user's mistake.

Also 1 where `rerun` finds a difference, and 130 after an interruption.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from mnemo.errors import MnemoError, visible
from mnemo.libraries import first_line
from mnemo.organisms.families import Family

# Read when torch is first imported. Threads that spin while they wait for a core which something else holds make small
# models several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

app = typer.Typer(
    name="mnemo",
    help="Extract the mnemonics that a language model uses to recall facts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
organism_app = typer.Typer(help="Models trained so that the route of each fact is known.", rich_markup_mode=None)
app.add_typer(organism_app, name="organism")


def _place(value: Any) -> Any:
    """Refuse at once a path that nothing can have, whatever would be done with it."""
    from mnemo.textfiles import check_place

    if value is not None:
        check_place(value)
    return value


def _model_place(value: Any) -> Any:
    """The same of a model, whose path may begin at somebody's home."""
    from mnemo.textfiles import check_place

    if value is not None:
        check_place(value, home=True)
    return value


TaskPath = Annotated[Path, typer.Argument(metavar="TASK", callback=_place, help="Study folder or its task.toml.")]
Out = Annotated[Path | None, typer.Option(callback=_place, help="Folder for the results.")]
ModelName = Annotated[
    str | None, typer.Option(callback=_model_place, help="Model directory or hub name, instead of the task's.")
]
FactsFile = Annotated[Path | None, typer.Option(callback=_place, help="Facts file, instead of the task's.")]
Dtype = Annotated[str | None, typer.Option(help="Of the weights, such as bfloat16, else as they were saved.")]
Device = Annotated[str | None, typer.Option(help="Where to compute, such as cpu or cuda:1, else CUDA if there is one.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer interventions for each fact.")]
Edit = Annotated[bool, typer.Option("--edit", help="Also teach concepts new answers and see who follows (minutes).")]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what an interrupted run left in --out.")]
MemoryGb = Annotated[float | None, typer.Option(help="Memory that a run may take besides the model, else 2 GB.")]
Arch = Annotated[str, typer.Option(help=f"Family of models: {', '.join(get_args(Family))}.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Decides every draw.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(callback=_place, help="Folder for the figure.")] = Path("out/demo"),
    seed: Seed = 0,
) -> None:
    """Show VA== -> value added tax -> T in the shipped organism, with evidence and controls."""
    from rich.console import Console

    from mnemo.demo import run_demo

    run_demo(out, console=Console(), seed=seed)


@app.command("extract")
def extract_command(
    task: TaskPath,
    model: ModelName = None,
    facts: FactsFile = None,
    out: Out = None,
    quick: Quick = False,
    edit: Edit = False,
    resume: Resume = False,
    seed: Seed = 0,
    memory_gb: MemoryGb = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Judge every fact of a task: verdicts.csv and .parquet."""
    from mnemo.extraction import extract
    from mnemo.report import print_summary

    folder = out or _default_out(task)
    options: dict[str, Any] = {"quick": quick, "edit": edit, "resume": resume, "seed": seed, "memory_gb": memory_gb}
    chosen = _model(task, model, dtype=dtype, device=device)
    study = extract(task, model=chosen, facts=facts, out=folder, **options)
    print_summary(study, folder)


@app.command("benchmark")
def benchmark_command(
    task: TaskPath,
    model: ModelName = None,
    facts: FactsFile = None,
    out: Out = None,
    quick: Quick = False,
    edit: Edit = False,
    resume: Resume = False,
    seed: Seed = 0,
    memory_gb: MemoryGb = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Extract, then score against truth.csv: metrics.json."""
    from mnemo.report import print_metrics
    from mnemo.scoring import benchmark

    folder = out or _default_out(task)
    options: dict[str, Any] = {"quick": quick, "edit": edit, "resume": resume, "seed": seed, "memory_gb": memory_gb}
    chosen = _model(task, model, dtype=dtype, device=device)
    _, metrics = benchmark(task, model=chosen, facts=facts, out=folder, **options)
    print_metrics(metrics, folder)


@app.command("trace")
def trace_command(
    task: TaskPath,
    cue: Annotated[str, typer.Option(help="Cue of the fact, such as VA==.")],
    model: ModelName = None,
    contrast_cue: Annotated[str | None, typer.Option(help="Cue of the fact to compare it with, else drawn.")] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Paths to list.")] = 50,
    evidence: Annotated[
        bool, typer.Option("--evidence/--no-evidence", help="Also read its concept and intervene on it (see --run).")
    ] = True,
    run: Annotated[
        Path | None,
        typer.Option(callback=_place, help="What extract wrote, to stand where that did; else a quick one first."),
    ] = None,
    out: Out = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Decides every draw, else that of --run, else 0.")
    ] = None,
    memory_gb: MemoryGb = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Trace one fact: components, edges and paths, what is read where its concept acts, and every intervention."""
    from mnemo.extraction import extract
    from mnemo.fact_evidence import FactEvidence, remove_evidence
    from mnemo.finished import read_study
    from mnemo.memory import memory_budget
    from mnemo.report import print_evidence, print_trace
    from mnemo.tracing import trace

    folder = out or (run or _default_out(task)) / "trace"
    with memory_budget(memory_gb):
        if run is None:
            study, source, chosen = None, task, _model(task, model, dtype=dtype, device=device)
        else:  # in the dtype of the run, if none is given
            source = study = read_study(run, task=task, model=model, device=device, dtype=dtype)
            chosen = study.model
        if seed is None:
            seed = 0 if study is None else int(study.record["seed"])
        found = trace(source, cue, contrast=contrast_cue, model=chosen, top=top, seed=seed, memory_gb=memory_gb)
        remove_evidence(folder)
        found.write(folder)
        print_trace(found, folder)
        if not evidence:
            return
        if study is None:
            study = extract(task, model=chosen, quick=True, seed=seed, memory_gb=memory_gb)
        collected = FactEvidence.of(study, found.fact_id, seed=seed)
        collected.write(folder)
        print_evidence(collected, folder, run=run)


@app.command("sweep")
def sweep_command(
    sweep: Annotated[
        Path, typer.Argument(metavar="SWEEP", callback=_place, help="File that names tasks, models and seeds.")
    ],
    out: Out = None,
    root: Annotated[
        Path | None, typer.Option(callback=_place, help="Folder that its paths start from, else its own.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Scheduler of a Dask cluster, such as tcp://host:8786.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes to start here, without --address.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads of each worker.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run nothing.")] = False,
) -> None:
    """Extract many models, tasks and seeds on a Dask cluster; started again, it goes on."""
    from mnemo.cluster import Sweep, plan_runs, run_sweep
    from mnemo.report import print_sweep, print_sweep_plan

    asked = Sweep.read(sweep)
    folder = out or Path("out") / sweep.resolve().stem
    if dry_run:
        print_sweep_plan(plan_runs(asked, root=root), folder, address=address, workers=workers)
        return
    runs = run_sweep(asked, out=folder, root=root, address=address, workers=workers, threads=threads, say=_say)
    print_sweep(runs, folder)
    if failed := int(runs["error"].notna().sum()):
        raise MnemoError(f"{failed} of {len(runs)} runs failed (see runs.csv); start the sweep again to try them again")


@app.command("rerun")
def rerun_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", callback=_place, help="What extract, benchmark, trace or sweep wrote.")
    ],
    task: Annotated[
        Path | None, typer.Option(callback=_place, help="Where the task lies now, if it was moved.")
    ] = None,
    model: ModelName = None,
    facts: FactsFile = None,
) -> None:
    """Repeat a run and compare: exit code 0 if it comes out the same, 1 if not."""
    from mnemo.repeat import rerun

    found = rerun(folder, task=task, model=model, facts=facts)
    for line in found.lines:
        _say(line)
    if not found.same:
        raise typer.Exit(1)


@app.command("learn")
def learn_command(
    task: TaskPath,
    model: ModelName = None,
    facts: FactsFile = None,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Draws of facts; intervals are over these.")] = 5,
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer facts, steps and runs.")] = False,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Teach facts that a concept helps to recall, and facts that none does: tables and figures."""
    from mnemo.learning.runs import QUICK, LearnConfig, learn
    from mnemo.learning.summary import print_learned

    folder = out or _default_out(task) / "learn"
    config = QUICK if quick else LearnConfig(runs=runs)
    learned = learn(task, model=model, facts=facts, out=folder, config=config, resume=resume, seed=seed)
    print_learned(learned.summary, folder)


@organism_app.command("base")
def organism_base(
    out: Annotated[Path, typer.Argument(metavar="OUT", callback=_place, help="Study folder to make.")],
    arch: Arch = "gpt2",
    seed: Seed = 0,
) -> None:
    """Train an organism that knows concepts and what codes stand for, but no code's answer: something to teach."""
    from mnemo.learning.base import BaseConfig, make_base

    print(f"written: {make_base(out, BaseConfig.model_validate({'family': arch, 'seed': seed}))}")


@app.command("plan")
def plan_command(
    task: TaskPath,
    model: ModelName = None,
    facts: FactsFile = None,
    quick: Quick = False,
    dtype: Dtype = None,
    memory_gb: MemoryGb = None,
) -> None:
    """Say what extract (without --edit) will take: forwards, memory and time of each stage, from config.json alone."""
    from mnemo.plan import plan
    from mnemo.report import print_plan

    print_plan(plan(task, model=model, facts=facts, quick=quick, dtype=dtype, memory_gb=memory_gb))


@organism_app.command("train")
def organism_train(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", callback=_place, help="Study folder to make; an unfinished one goes on.")
    ],
    arch: Arch = "gpt2",
    seed: Seed = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the recipe's.")] = None,
    cue_tokens: Annotated[int, typer.Option(help="Tokens of a code, 1 to 3.")] = 3,
    concept_tokens: Annotated[int, typer.Option(help="Tokens of a phrase, 1 to 3.")] = 3,
    cue_first: Annotated[bool, typer.Option("--cue-first", help="Put the code before the relation word.")] = False,
) -> None:
    """Train an organism and measure it: a study folder with truth.csv and organism.json."""
    from mnemo.organisms.build import OrganismConfig, train_organism
    from mnemo.report import print_organism

    world = {"seed": seed, "cue_tokens": cue_tokens, "concept_tokens": concept_tokens, "cue_first": cue_first}
    training = {} if steps is None else {"steps": steps}
    config = OrganismConfig.checked({"family": arch, "seed": seed, "world": world, "training": training})
    print_organism(train_organism(out, config), out)


@organism_app.command("measure")
def organism_measure(
    folder: Annotated[Path, typer.Argument(callback=_place, help="Folder of a trained organism.")],
) -> None:
    """Measure a trained organism again: what organism.json says of it."""
    from mnemo.organisms.build import measure_organism
    from mnemo.report import print_organism

    print_organism(measure_organism(folder), folder)


def _model(task: Path, model: str | None, *, dtype: str | None, device: str | None) -> Any:
    """The model that a command was given, loaded already if it is wanted in another dtype or on another device."""
    from mnemo.facts import Task
    from mnemo.model import load_for

    if dtype is None and device is None:
        return model
    return load_for(Task.read(task), model, dtype=dtype, device=device)


def _default_out(task: Path) -> Path:
    folder = task if task.is_dir() else task.parent
    return Path("out") / folder.resolve().name


# Of the errors that its parser raises typer shows this one alone; its base is the class of all mistakes in usage.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


_INTERRUPTED = 130  # exit code


def main() -> None:
    """Run the command line."""
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except MnemoError as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        from mnemo.memory import NoMemoryError, out_of_memory

        if not out_of_memory(error):
            raise
        _fail(str(NoMemoryError(first_line(error))))
    except _UsageError as error:
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        if message.startswith("Usage:"):  # a bare `mnemo`: its help, as typer wrote it
            print(message)
            sys.exit(2)
        _fail(f"{message} (see mnemo --help)")
    except (typer.Abort, KeyboardInterrupt):
        print(
            "mnemo: interrupted; extract, benchmark and learn go on with --resume, sweep and organism train when "
            "they are started again; the others begin anew",
            file=sys.stderr,
            flush=True,
        )
        if "distributed" in sys.modules:
            os._exit(_INTERRUPTED)  # what Dask has left to say about processes that it was starting is a traceback
        sys.exit(_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _say(line: str) -> None:
    print(visible(line))


def _fail(message: str) -> NoReturn:
    print(f"mnemo: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
