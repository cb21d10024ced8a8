"""Follow mnemonics in a training of your own: a callback for the Trainer of transformers.

watch = Watch(survey(model, task, facts=facts), tokenizer, site, lesson)
Trainer(..., callbacks=[WatchCallback(watch, every=50, file="emergence.csv")]).train()
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformers import TrainerCallback

from mnemo.errors import MnemoError
from mnemo.learning.emergence import Watch
from mnemo.learning.teach import plain
from mnemo.tables import write_csv

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class WatchCallback(TrainerCallback):
    """Measures a model before training, every so many optimizer steps, and at the end.

    Args:
        watch: what is measured, of which facts.
        every: steps between two measurements.
        file: a CSV file that holds all measurements so far; None to keep them in memory alone.

    Attributes:
        rows: a row for each step and fact, as `Watch` gives them, with `step`.
    """

    def __init__(self, watch: Watch, *, every: int, file: str | Path | None = None) -> None:
        if every < 1:
            raise MnemoError(f"every={every} steps given: it must be at least 1")
        self.watch, self.every = watch, every
        self.file = None if file is None else Path(file)
        self.rows = pd.DataFrame()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure before the first step, or where a resumed training goes on."""
        self._measure(state, kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure when it is time."""
        if state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the result."""
        if state.global_step % self.every:
            self._measure(state, kwargs["model"])

    def _measure(self, state: TrainerState, model: Any) -> None:
        training = model.training
        try:
            measured = self.watch(plain(model))
        finally:
            model.train(training)
        self.rows = pd.concat([self.rows, measured.assign(step=state.global_step)], ignore_index=True)
        if self.file is not None:
            write_csv(self.rows, self.file)
