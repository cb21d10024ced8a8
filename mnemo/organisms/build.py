"""From a seed to a study folder: train an organism, with checkpoints, and measure what it became."""

from __future__ import annotations

import json
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from mnemo.datasets import acronym_phrases
from mnemo.errors import InputError, MnemoError
from mnemo.files import replacing, write_text
from mnemo.libraries import quietly
from mnemo.model_source import read_model
from mnemo.organisms.families import STEPS, Family, new_model
from mnemo.organisms.folder import write_folder
from mnemo.organisms.lessons import Lessons, build_lessons
from mnemo.organisms.measure import measure
from mnemo.organisms.spelling import build_tokenizer
from mnemo.organisms.training import TrainingConfig, new_optimizer, train
from mnemo.organisms.world import World, WorldConfig, build_world
from mnemo.textfiles import read_json
from mnemo.tokens import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_EVERY = 200  # steps


class OrganismConfig(BaseModel):
    """Everything that decides an organism.

    Attributes:
        family: architecture.
        seed: of the initial weights and of every draw in training; the world has its own.
        d_model, layers, heads: size.
        world: what it is taught.
        training: how; its steps are `STEPS` of the family if they are not given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family = "gpt2"
    seed: int = 0
    d_model: int = Field(default=96, ge=8)
    layers: int = Field(default=4, ge=2)
    heads: int = Field(default=4, ge=1)
    world: WorldConfig = WorldConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_the_steps_of_its_family(cls, values: Any) -> Any:
        family = values.get("family", "gpt2") if isinstance(values, dict) else None
        training = values.get("training", {}) if isinstance(values, dict) else None
        if isinstance(family, str) and family in STEPS and isinstance(training, dict):
            return {**values, "training": {"steps": STEPS[family], **training}}
        return values

    @classmethod
    def checked(cls, values: Any) -> OrganismConfig:
        """Make a configuration of plain values, such as a JSON file holds; MnemoError says which one cannot be."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            fault = error.errors()[0]
            name = ".".join(str(part) for part in fault["loc"]) or "the configuration"
            raise MnemoError(f"{name}: {fault['msg']}, it is {shown(repr(fault['input']))}") from error


def train_organism(
    out: str | Path, config: OrganismConfig, *, device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Train an organism into the study folder `out`, and write what was measured to its organism.json.

    A run that was interrupted goes on from its last checkpoint when it is started again with the same configuration; on
    one machine the result is the same as without the interruption.

    Returns:
        the content of organism.json: configuration, versions, seconds and measurements.

    Raises:
        MnemoError: `out` holds a finished study or the checkpoint of another configuration, or the configuration makes
            no sense.
    """
    out = Path(out)
    if (out / "task.toml").exists() and not (out / "checkpoint" / "about.json").is_file():
        raise InputError("holds a finished study already: remove it or choose another folder", file=out)
    if config.training.waypoint >= config.layers:
        raise MnemoError(f"waypoint {config.training.waypoint} leaves no block above it in {config.layers} layers")
    if config.world.shared:
        raise MnemoError(
            f"world.shared={config.world.shared} given, but training makes no second hop of a fact's own: leave it at 0"
        )
    world = _world(config)
    tokenizer = build_tokenizer(world)
    lessons = build_lessons(world, tokenizer).to(device)
    model = new_model(
        config.family,
        vocab_size=len(tokenizer),
        d_model=config.d_model,
        layers=config.layers,
        heads=config.heads,
        seed=config.seed,
    ).to(torch.device(device))  # pyright: ignore[reportArgumentType]
    checkpoint = _Checkpoint(out / "checkpoint", config, model)
    seconds = _train_from(checkpoint, model, lessons, config, progress=progress)
    card = {
        "config": config.model_dump(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "measured": measure(model, lessons, layer=config.training.waypoint, seed=config.seed),
    }
    name = f"base64-style codes over acronyms ({config.family}, seed {config.seed})"
    write_folder(out, world, model=model.cpu(), tokenizer=tokenizer, name=name)
    write_text(out / "organism.json", json.dumps(card, indent=2) + "\n")
    checkpoint.remove()
    return card


def measure_organism(folder: str | Path) -> dict[str, Any]:
    """Measure a trained organism again and write the result to its organism.json.

    Returns:
        the content of organism.json.

    Raises:
        InputError: the folder holds no trained organism, or a damaged one.
    """
    file, weights = Path(folder) / "organism.json", Path(folder) / "model"
    if not file.is_file():
        raise InputError("no such file: `mnemo organism train` writes it when it has finished", file=file)
    card = read_json(file)
    try:
        config = OrganismConfig.checked(card.get("config"))
        world = _world(config)
    except MnemoError as error:
        raise InputError(f"{error}: mend it or train again", file=file, column="config") from error
    if not isinstance(card.get("seconds"), int | float):
        raise InputError("the seconds that training took, a number, are missing here", file=file, column="seconds")
    tokenizer = build_tokenizer(world)
    with quietly():
        model = read_model(weights, None)
    shape = (model.config.model_type, model.config.vocab_size, model.config.num_hidden_layers)
    due = (config.family, len(tokenizer), config.layers)
    if shape != due:
        raise InputError(
            f"this model has (family, tokens, layers) {shape}, and organism.json describes one with {due}: put the "
            "model that belongs to it there, or train again",
            file=weights,
        )
    lessons = build_lessons(world, tokenizer)
    card["measured"] = measure(model, lessons, layer=config.training.waypoint, seed=config.seed)
    write_text(file, json.dumps(card, indent=2) + "\n")
    return card


def _world(config: OrganismConfig) -> World:
    return build_world(config.world, acronym_phrases())


def _train_from(
    checkpoint: _Checkpoint, model: PreTrainedModel, lessons: Lessons, config: OrganismConfig, *, progress: bool
) -> float:
    """Train from where the checkpoint stands; return the seconds spent training, earlier sittings included."""
    optimizer = new_optimizer(model, config.training)
    start, before = checkpoint.restore(optimizer)
    began = time.perf_counter()
    steps = config.training.steps
    with tqdm(total=steps, initial=start, desc="training", unit="step", disable=not progress) as bar:

        def after_step(step: int, loss: torch.Tensor) -> None:
            bar.update()
            if (step + 1) % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < steps:
                checkpoint.save(optimizer, step + 1, before + time.perf_counter() - began)

        train(
            model,
            lessons,
            config=config.training,
            seed=config.seed,
            start=start,
            optimizer=optimizer,
            after_step=after_step,
        )
    return before + time.perf_counter() - began


class _Checkpoint:
    """Weights, optimizer state, step and seconds of an unfinished training, in one safetensors file."""

    def __init__(self, folder: Path, config: OrganismConfig, model: PreTrainedModel) -> None:
        self.folder, self.config, self.model = folder, config, model

    def save(self, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self.model.named_parameters()}
        for i, p in enumerate(self.model.parameters()):
            tensors |= {f"optimizer.{i}.{name}": value for name, value in optimizer.state[p].items()}
        with replacing(self.folder) as draft:
            draft.mkdir()
            save_file(tensors, draft / "state.safetensors")
            about = {"config": self.config.model_dump(), "step": step, "seconds": seconds}
            (draft / "about.json").write_text(json.dumps(about), encoding="utf-8")

    def restore(self, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Load what was saved, if anything; return the step and the seconds spent so far."""
        if not (self.folder / "about.json").is_file():
            return 0, 0.0
        about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
        if about["config"] != json.loads(self.config.model_dump_json()):
            raise MnemoError(
                f"{self.folder} is an unfinished organism of another configuration: remove it or choose another folder"
            )
        tensors = load_file(self.folder / "state.safetensors")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
        for i, p in enumerate(self.model.parameters()):
            prefix = f"optimizer.{i}."
            optimizer.state[p] = {
                name.removeprefix(prefix): value.to(p.device) if value.dim() else value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        return int(about["step"]), float(about["seconds"])

    def remove(self) -> None:
        if self.folder.is_dir():
            shutil.rmtree(self.folder)
