"""What a run will take, before it: forwards, memory and time of each stage, from a model's configuration alone.

No weights are read and none are made, so the model may be one that this machine could not hold. Memory follows from the
same formulas by which batches are cut (`mnemo.shape`). Forwards are counted as if every fact were recalled and read as
a concept of its own, or every answer had one concept, whichever takes more: the fewer concepts there are to swap facts
to, the more random directions stand beside each swap. No run takes more, save one in which most answers have no concept
and few are left. Time is forwards times their arithmetic, at the speed that a matrix product of
the model's width has on this machine now: an order of magnitude, not a promise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mnemo.concepts import LEXICON_CANDIDATES, NULL_STATES, REFERENCES
from mnemo.errors import MnemoError
from mnemo.facts import FactSet, Task
from mnemo.libraries import in_one_line, quietly
from mnemo.looks import QUICK, Effort, look_runs
from mnemo.memory import checked_budget, fit, memory_budget
from mnemo.model import checked_dtype
from mnemo.model_source import config_folder, read_tokenizer
from mnemo.patching import TOKENS_PER_BATCH
from mnemo.phrases import BEAMS
from mnemo.prompts import question_and_answer, render
from mnemo.shape import Shape
from mnemo.tokens import PromptTokenizer
from mnemo.tracing import TOP_NODES
from mnemo.trials import LEAST, trial_runs
from mnemo.waypoints import LATER, PATCHED, POSITIONS, SAMPLE, TARGETS

PROCESS_GB = 0.55  # Python with torch, transformers and transformer-lens in it
CHARACTERS_PER_TOKEN = 3  # where there is no tokenizer to ask
PER_BLOCK = 4e-4  # seconds that a call of one block takes however small it is
# A block is walked several times for the strongest path of a fact, at all nodes of the quadrature.
WALKS = 6


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: what is done.
        forwards: prompts run through the model, at the most; a run with gradients counts three times.
        at_once: how many of them the budget holds.
        memory_gb: the most that the process holds meanwhile, the model included.
        seconds: how long it takes, roughly.
    """

    name: str
    forwards: int
    at_once: int
    memory_gb: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        model: what it is called.
        parameters: how many it has.
        model_gb: memory of its weights, in the dtype that they are loaded in.
        budget_gb: what the run may take besides.
        facts: how many there are.
        length: tokens of the longest recall prompt.
        longest: the most tokens that the model reads, where its configuration says so.
        exact: whether a tokenizer counted them; else they follow from the number of characters.
        stages: one after the other.
    """

    model: str
    parameters: int
    model_gb: float
    budget_gb: float
    facts: int
    length: int
    longest: int | None
    exact: bool
    stages: tuple[Stage, ...]

    @property
    def memory_gb(self) -> float:
        """The most that any stage takes."""
        return max(stage.memory_gb for stage in self.stages)


def plan(
    task: Task | str | Path,
    *,
    model: str | Path | None = None,
    facts: FactSet | str | Path | None = None,
    quick: bool = False,
    dtype: str | torch.dtype | None = None,
    memory_gb: float | None = None,
) -> Plan:
    """Say what `mnemo.extract` (without ``edit=True``) will take.

    Args:
        task: a study folder, its task.toml, or a task.
        model: a Hugging Face directory (config.json is enough), such a file, or a hub name; None for the task's own.
        facts: other facts than the task's own.
        quick: as for `extract`.
        dtype: what the weights would be loaded as, such as ``"bfloat16"``; None for what they were saved in.
        memory_gb: what it may take besides the model; None for the default.

    Raises:
        MnemoError: no usable task, facts, configuration or dtype, or a prompt of more tokens than the model reads.
    """
    task = task if isinstance(task, Task) else Task.read(task)
    source = task.model_source(model)
    chosen = facts if isinstance(facts, FactSet) else task.load_facts(facts)
    folder, name = config_folder(source)
    shape, parameters = read_shape(folder, checked_dtype(dtype))
    longest = getattr(_read_config(folder).get_text_config(), "max_position_embeddings", None)
    length, exact = _length(task, chosen, folder, longest)
    budget = checked_budget(memory_gb)
    with memory_budget(budget):
        runs = _runs(task, shape, chosen, length, QUICK if quick else Effort())
    model_gb = parameters * shape.itemsize / 1e9
    speed = _speed(shape)
    stages = [Stage("load", 1, 1, PROCESS_GB + model_gb, 3 * model_gb)]
    for what, forwards, tokens, bytes_each, most in runs:
        at_once = min(most, forwards, fit(bytes_each, memory_gb=budget))
        held = at_once * bytes_each / 1e9
        seconds = forwards * _operations(shape, parameters, tokens) / speed
        seconds += forwards / at_once * shape.layers * PER_BLOCK
        stages.append(Stage(what, forwards, at_once, PROCESS_GB + model_gb + held, seconds))
    return Plan(name, parameters, model_gb, budget, len(chosen), length, longest, exact, tuple(stages))


def read_shape(folder: Path, dtype: torch.dtype | None = None) -> tuple[Shape, int]:
    """Return the shape and the number of parameters of the model that a configuration describes; nothing is made.

    Args:
        folder: where config.json lies.
        dtype: of its weights; None for what the configuration says.

    Raises:
        MnemoError: transformers makes no causal language model of it.
    """
    from transformers import AutoModelForCausalLM

    config = _read_config(folder)
    with _no_model(folder):
        with torch.device("meta"):
            hf: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        loaded_as = dtype or getattr(config, "dtype", None)
        shape = Shape.from_config(config, itemsize=loaded_as.itemsize if isinstance(loaded_as, torch.dtype) else 4)
        return shape, sum(weight.numel() for weight in hf.parameters())


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    with _no_model(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _no_model(folder: Path) -> Generator[None]:
    fix = "check its config.json"
    with quietly(), in_one_line(f"{folder}: no model follows from its configuration", fix=fix):
        yield


def _length(task: Task, facts: FactSet, folder: Path, longest: int | None) -> tuple[int, bool]:
    """Return the tokens of the longest recall prompt, and whether a tokenizer counted them.

    Raises:
        InputError: one that was counted has more than the model reads, with its place.
    """
    try:
        with quietly():
            tokens = PromptTokenizer(read_tokenizer(folder), None)
        lengths = {fact.fact_id: len(render(task.recall, fact.cue, tokenizer=tokens)) for fact in facts}
    except MnemoError:
        most = max(len(task.recall) + len(fact.cue) for fact in facts)
        return most // CHARACTERS_PER_TOKEN + 2, False
    worst = max(lengths, key=lengths.__getitem__)
    if longest is not None and lengths[worst] > longest:  # refused as extract refuses it
        question_and_answer(task, facts[worst], facts=facts, tokenizer=replace(tokens, longest=longest))
    return lengths[worst], True


def _runs(
    task: Task, shape: Shape, facts: FactSet, length: int, effort: Effort
) -> list[tuple[str, int, int, int, int]]:
    """List the stages: name, forwards, tokens of each, bytes that one holds, and how many at once are of use."""
    n, tokens = len(facts), task.max_concept_tokens
    sample = min(n, SAMPLE)
    forward, batch = shape.forward_bytes(length), max(1, TOKENS_PER_BATCH // length)
    written = 1 + BEAMS * tokens  # to write phrases, and to see whether they end
    ranked = BEAMS * tokens + LEXICON_CANDIDATES  # phrases and their beginnings, each weighed
    read, bank = written + 1 + ranked, n * ranked
    sites = effort.sites + (shape.layers // effort.sites).bit_length()  # candidates, and the layers between two of them
    tried = min(sample, effort.sample) * trial_runs(min(n, TARGETS), random=LEAST)
    longer = length + tokens
    stages = [
        ("recall", n, length, forward, batch),
        ("attribute", 4 * n, length, shape.backward_bytes(length), n),
        ("ask what cues stand for", n * read + REFERENCES * bank, longer, shape.reading_bytes(longer), batch),
        ("find candidate sites", sample * min(PATCHED, POSITIONS * shape.layers), length, forward, batch),
        ("compare sites", sites * (tried + 2 * n), length, forward, batch),
        ("read concepts", (n + NULL_STATES) * read + 2 * REFERENCES * bank, longer, shape.reading_bytes(longer), batch),
        ("intervene", _interventions(task, facts, effort, sites, shape.layers), length, forward, batch),
        ("ask the probes", 2 * n * len(task.probes), length, forward, batch),
    ]
    if task.verbalise is None and task.concept_recall and (lexicon := len(task.load_lexicon())):
        often = 1 + min(sites, shape.layers - 1)  # asked about once, and read in every layer where a site lies
        stages.insert(3, ("read the lexicon", often * lexicon, longer, shape.forward_bytes(longer), batch))
    walks = min(n, effort.paths) * TOP_NODES * 3 * WALKS
    stages.append(("trace paths", walks, length, int(shape.trace_bytes(length)), 1))
    return [stage for stage in stages if stage[1]]


def _interventions(task: Task, facts: FactSet, effort: Effort, sites: int, layers: int) -> int:
    """Return the runs of all interventions, after so many sites were compared in a model of so many blocks."""
    named = 1 if task.verbalise else 0  # concepts that the model names, beside those that are read
    tries = 1 + named if effort.doses else 1
    later = min(LATER, max(0, layers - 2))
    having = Counter(fact.answer for fact in facts)
    each_its_own = [len(facts) - having[fact.answer] for fact in facts]
    one_an_answer = [len(having) - 1] * len(facts)
    states = len(facts) * (1 + (1 + named) * (1 + later))  # of facts, and of concepts in each layer
    asked = (1 + named) * len(facts)
    looks = (
        look_runs(others, effort=effort, sites=tries * sites, later=later) for others in (each_its_own, one_an_answer)
    )
    return states + asked + tries * max(looks)


def _operations(shape: Shape, parameters: int, length: int) -> float:
    """Return the floating-point operations of a forward: two a weight and token, and the attention itself."""
    inner = parameters - shape.vocab * shape.d_model
    return 2 * inner * length + 4 * shape.layers * length * length * shape.heads * shape.d_head


def _speed(shape: Shape) -> float:
    """Measure the floating-point operations that this machine does in a second in a product of the model's width."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wide, dtype = min(shape.d_model, 2048), {2: torch.bfloat16, 8: torch.float64}.get(shape.itemsize, torch.float32)
    rows, weight = torch.ones(256, wide, dtype=dtype, device=device), torch.ones(wide, wide, dtype=dtype, device=device)
    (rows @ weight).sum().item()  # the first takes longer
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        (rows @ weight)[0, 0].item()
        products += 1
    return 2 * products * 256 * wide * wide / (time.perf_counter() - start)
