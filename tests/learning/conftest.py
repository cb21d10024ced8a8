"""A base organism small enough to train in a few seconds, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnemo.learning.base import Base, BaseConfig, train_base

SMALL = BaseConfig(
    d_model=48, layers=3, heads=4, concepts=12, cues_per_concept=4, steps=300, batch=64, new=1, learning_rate=4e-3
)


@pytest.fixture(scope="session")
def base() -> Base:
    return train_base(SMALL, progress=False)


@pytest.fixture(scope="session")
def base_folder(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base.write(folder)
    return folder
