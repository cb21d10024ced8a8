"""Models and contrasts that more than one benchmark measures: random weights and tokens, and study folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from mnemo.contrasts import Contrast, make_contrasts
from mnemo.facts import Fact, Task
from mnemo.intervals import grouped_interval
from mnemo.model import Model, load
from mnemo.organisms.folder import TRUTH
from mnemo.prompts import AnswerToken, Prompt
from mnemo.scoring import read_truth, with_truth
from mnemo.study import Study

ROOT = Path(__file__).resolve().parent.parent
ORGANISM = ROOT / "data" / "organism"


def random_gpt2(*, scale: float = 1.0, seed: int = 0, **config: Any) -> Model:
    """Return a GPT-2 with random weights, all of them (those of norms too) times `scale`."""
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(GPT2Config(**config)).eval()
    with torch.no_grad():
        for weight in hf.parameters():
            weight.mul_(scale)
    return load(hf, tokenizer=_tokenizer(), check=False)


def random_contrasts(model: Model, facts: int, length: int, *, changed: int = 3) -> list[Contrast]:
    """Return contrasts of random tokens, `changed` of which differ, with random answers."""
    found, start = [], min(length // 4, length - changed)
    for seed in range(facts):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randperm(model.vocab_size, generator=generator)[: length + changed + 2].tolist()
        kept, new = tokens[:length], tokens[length:-2]
        changed_to = [*kept[:start], *new, *kept[start + changed :]]
        clean, corrupt = (Prompt("random", tuple(ids), (start, start + changed)) for ids in (kept, changed_to))
        answer, other = (AnswerToken(token, "", True) for token in tokens[-2:])
        fact = Fact(fact_id=str(seed), cue="c", answer="a")
        found.append(Contrast(fact, fact, clean, corrupt, answer, other))
    return found


def study(folder: Path, facts: int) -> tuple[Model, list[Contrast]]:
    """Return the model of a study folder and contrasts of facts that are evenly spread over it."""
    task = Task.read(folder)
    model = load(task.model_path or folder)
    found = list(make_contrasts(task, task.load_facts(), tokenizer=model.tokens).values())
    return model, found[:: max(1, len(found) // facts)][:facts]


def with_kinds(table: pd.DataFrame, study: Study, folder: Path) -> pd.DataFrame:
    """Add what the facts of a study folder were trained to be: one kind, ``all``, and no concept where nobody knows."""
    file = folder / TRUTH
    if not file.is_file():
        return table.assign(kind="all", concept_planted="")
    return with_truth(table, read_truth(file, study.task.load_facts()))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, row by row as they are made."""
    for line in (header, ["---"] * len(header)):
        print("| " + " | ".join(line) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def cell(values: pd.Series, groups: pd.Series) -> str:
    """Write a mean and its 95% interval over groups; a dash where there is none."""
    found = grouped_interval(values.to_numpy(float), groups.to_numpy(), seed=0)
    if found["value"] is None:
        return "-"
    return f"{found['value']:.2f}" + ("" if found["low"] is None else f" [{found['low']:.2f}, {found['high']:.2f}]")


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer for models whose prompts are given as token ids."""
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
