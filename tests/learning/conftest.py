"""A base organism small enough to train in a few seconds, made once, and what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mnemo.facts import Task
from mnemo.learning.arms import Lesson, Survey, divided, survey
from mnemo.learning.base import Base, BaseConfig, train_base
from mnemo.learning.emergence import choose_site
from mnemo.model import Model, load
from mnemo.patching import Site

SMALL = BaseConfig(
    d_model=48, layers=3, heads=4, concepts=12, cues_per_concept=4, steps=300, batch=64, new=1, learning_rate=4e-3
)


class Pupil(NamedTuple):
    """A base organism before it learns."""

    base: Base
    model: Model
    survey: Survey
    site: Site

    @property
    def hf(self) -> Any:
        return self.base.model

    def lesson(self, arm: Any, taught: int, *, held: int = 0) -> tuple[Lesson, Lesson]:
        return divided(self.survey.lesson(arm, seed=0), taught=taught, held=held, seed=0)


@pytest.fixture(scope="session")
def base() -> Base:
    return train_base(SMALL, progress=False)


@pytest.fixture(scope="session")
def base_folder(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base.write(folder)
    return folder


@pytest.fixture(scope="session")
def pupil(base, base_folder) -> Pupil:
    model, task = load(base_folder), Task.read(base_folder)
    known = survey(model, task, facts=task.load_facts())
    return Pupil(base, model, known, choose_site(model, known)[0])
