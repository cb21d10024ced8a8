"""The callback in a real Trainer: it measures when it should and changes nothing."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset

from mnemo.errors import MnemoError
from mnemo.learning.callback import WatchCallback
from mnemo.learning.emergence import Watch


class Taught(Dataset[dict[str, torch.Tensor]]):
    """Prompts with the answer as the last token, the only one that is asked for."""

    def __init__(self, lesson) -> None:
        self.lesson = lesson

    def __len__(self) -> int:
        return len(self.lesson)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([*self.lesson.prompts[row].tokens, int(self.lesson.answers[row])])
        labels = torch.full_like(tokens, -100)
        labels[-1] = tokens[-1]
        return {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}


def trained(pupil, folder, callbacks) -> dict[str, torch.Tensor]:
    import copy

    from transformers import Trainer, TrainingArguments

    lesson, _ = pupil.lesson("coincident", 8)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=5, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=3, dataloader_pin_memory=False,
    )  # fmt: skip
    model = copy.deepcopy(pupil.hf)
    Trainer(model=model, args=arguments, train_dataset=Taught(lesson), callbacks=callbacks).train()
    return model.state_dict()


def test_a_trainer_is_watched_and_left_alone(pupil, tmp_path):
    lesson, _ = pupil.lesson("coincident", 8)
    watch = Watch(pupil.survey, pupil.model.tokens.hf, pupil.site, lesson, traced=1)
    callback = WatchCallback(watch, every=2, file=tmp_path / "emergence.csv")
    watched = trained(pupil, tmp_path / "watched", [callback])
    alone = trained(pupil, tmp_path / "alone", [])
    assert all(torch.equal(weight, alone[name]) for name, weight in watched.items())
    rows = callback.rows
    assert rows["step"].unique().tolist() == [0, 2, 4, 5]
    assert (rows.groupby("step").size() == 8).all()
    means = rows.groupby("step")["probability"].mean()
    assert means[5] > means[0]
    written = pd.read_csv(tmp_path / "emergence.csv")
    assert written["probability"].tolist() == pytest.approx(rows["probability"].tolist())
    with pytest.raises(MnemoError, match="every=0"):
        WatchCallback(watch, every=0)
