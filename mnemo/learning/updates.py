"""Do repeated steps on one batch agree? Cosines between what successive steps do to the weights.

LoRA moves a weight by s B A. The factors themselves say nothing: B M and M^-1 A are the same weight for any invertible
M. So what is compared are *effective* updates, the change of s B A by one step,

    D_t = s (B_{t+1} A_{t+1} - B_t A_t) = s [dB, B_t] [A_{t+1}; dA],

and the *momentum-free gradient*, the change that an infinitesimal step of plain gradient descent on the factors would
make, -s (g_B A + B g_A) = s [-g_B, B] [A; -g_A]. Both have rank 2r at most, so the inner products of T of them need not
build any weight: with all left and right factors stacked, <L_i R_i, L_j R_j> is the sum of a 2r x 2r block of
(L^T L) * (R R^T). `gram` takes whichever way is cheaper.

Two nulls stand beside every cosine. Independent directions of a space of D dimensions have cosines of standard
deviation 1 / sqrt(D). But the effective updates of LoRA lie in a smaller space, the tangent space at (A, B): the second
null replaces the changes of the factors by random ones of the same norms and leaves the factors where they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mnemo.checked import Record
from mnemo.errors import MnemoError
from mnemo.learning.arms import Questions
from mnemo.learning.teach import TeachConfig, learner, said_by
from mnemo.libraries import in_one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

What = Literal["updates", "gradients", "random"]
OptimizerName = Literal["sgd", "lion", "adamw"]
LOWEST, HIGHEST = 1e-5, 1e3  # learning rates that the search looks at
HALVINGS = 4  # of the last factor of four, on a logarithmic scale
SETTLED = 1e-3  # a loss (nats) below which rises do not count: there is nothing left to lower
SINGLES = 3  # times at which single facts are compared with the batch


class FollowConfig(Record):
    """How a batch is trained on again and again.

    Attributes:
        rank: of the LoRA factors.
        optimizer: ``sgd`` (no momentum), ``lion`` (Chen et al. 2023) or ``adamw``, without weight decay.
        steps: how many.
        learning_rate: None to search for the highest that does not raise the loss on the batch.
        trial: steps for which a rate must not raise it.
        seed: of the LoRA factors and of the null.
    """

    rank: int = Field(default=4, ge=1)
    optimizer: OptimizerName = "sgd"
    steps: int = Field(default=24, ge=2)
    learning_rate: float | None = Field(default=None, gt=0)
    trial: int = Field(default=8, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class LowRank:
    """Matrices of one weight, each as left @ right.

    Attributes:
        left, right: the factors; all of one rank.
    """

    left: Float[Tensor, "item out rank"]
    right: Float[Tensor, "item rank in"]

    def dense(self) -> Float[Tensor, "item out in"]:
        return self.left @ self.right

    def gram(self) -> Float[Tensor, "item item"]:
        """Return all inner products, from the factors or from the matrices, whichever takes fewer multiplications."""
        n, out, rank = self.left.shape
        into = self.right.shape[2]
        by_factors, by_matrices = (n * rank) ** 2 * (out + into), n * out * into * (rank + n)
        return self.gram_of_factors() if by_factors < by_matrices else self.gram_of_matrices()

    def gram_of_matrices(self) -> Float[Tensor, "item item"]:
        flat = self.dense().flatten(1)
        return flat @ flat.T

    def gram_of_factors(self) -> Float[Tensor, "item item"]:
        n, _, rank = self.left.shape
        left, right = self.left.transpose(0, 1).flatten(1), self.right.flatten(0, 1)
        return ((left.T @ left) * (right @ right.T)).view(n, rank, n, rank).sum((1, 3))


@dataclass(frozen=True)
class Updates:
    """What the steps on one batch did.

    Attributes:
        config: how, with the learning rate that was found.
        losses: before each step and after the last, in nats.
        updates, gradients, random: inner products of effective updates, momentum-free gradients (as moves, before each
            step) and random steps, for each module by its name.
        singles: a row for each time at which facts were taken alone: `step`, `with_batch` (mean cosine of a single
            fact's gradient with that of the batch), `with_others` (mean cosine of two single facts' gradients),
            `expected` (cosine with the batch if single gradients were orthogonal and of their lengths).
        agreement: cosine of each step's update with its momentum-free gradient.
        dimensions: number of weights of each module.
    """

    config: FollowConfig
    losses: tuple[float, ...]
    updates: dict[str, Float[Tensor, "step step"]]
    gradients: dict[str, Float[Tensor, "step step"]]
    random: dict[str, Float[Tensor, "step step"]]
    singles: pd.DataFrame
    agreement: tuple[float, ...]
    dimensions: dict[str, int]

    def cosines(self, what: What = "updates", *, layer: int | None = None) -> Float[np.ndarray, "step step"]:
        """Return the cosine of every two steps, over all modules or those of one block."""
        return _cosines(self._gram(what, layer))

    def _gram(self, what: What, layer: int | None) -> Float[Tensor, "step step"]:
        grams = getattr(self, what)
        return torch.stack([gram for name, gram in grams.items() if layer in (None, layer_of(name))]).sum(0)

    def table(self) -> pd.DataFrame:
        """Return a row for each step and layer (-1 for all): `loss` before it, cosines and nulls.

        `with_previous`, `with_first` and `with_net` are cosines of its update with that of the step before, of the
        first step and of the whole displacement; `gradient_with_previous`, `gradient_with_first` the same of the
        momentum-free gradient; `with_own_gradient` of the update with that gradient (for all layers);
        `random_with_previous` of random steps from the same factors; `null` is 1 / sqrt(number of weights).
        """
        layers = sorted({layer_of(name) for name in self.updates})
        found = []
        for layer in (None, *layers):
            net = with_net(self._gram("updates", layer))
            moved, pulled, random = (self.cosines(what, layer=layer) for what in get_args(What))
            weights = sum(size for name, size in self.dimensions.items() if layer in (None, layer_of(name)))
            for step in range(len(moved)):
                before = {"with_previous": moved, "gradient_with_previous": pulled, "random_with_previous": random}
                found.append(
                    {"step": step, "layer": -1 if layer is None else layer, "loss": self.losses[step]}
                    | {name: cosines[step, step - 1] if step else np.nan for name, cosines in before.items()}
                    | {"with_first": moved[step, 0] if step else np.nan, "with_net": net[step]}
                    | {"gradient_with_first": pulled[step, 0] if step else np.nan, "null": 1 / math.sqrt(weights)}
                    | {"with_own_gradient": self.agreement[step] if layer is None else np.nan}
                )
        config = self.config.model_dump(include={"rank", "optimizer", "learning_rate", "seed"})
        return pd.DataFrame(found).assign(**config)


def follow(model: PreTrainedModel, batch: Questions, *, config: FollowConfig) -> Updates:
    """Train a copy of a model on the same batch for some steps, and compare what the steps do.

    Raises:
        MnemoError: no learning rate lowers the loss, or the given one makes it no number.
    """
    rate = config.learning_rate or search_rate(model, batch, config=config)
    config = config.model_copy(update={"learning_rate": rate})
    pupil = _pupil(model, config)
    factors = _factors(pupil)
    optimizer = _optimizer(pupil, config, rate)
    singles_at = {0, *np.linspace(0, config.steps - 1, SINGLES).round().astype(int).tolist()}
    states, slopes, losses, singles = [_snapshot(factors)], [], [], []
    for step in range(config.steps):
        if step in singles_at:
            singles.append({"step": step, **_single_facts(pupil, batch, factors)})
        loss = _loss(pupil, batch)
        if not loss.isfinite():
            raise MnemoError(f"the loss is no number after {step} steps: give a learning rate below {rate:g}")
        optimizer.zero_grad()
        loss.backward()
        slopes.append({name: tuple(_double(p.grad) for p in pair) for name, (*pair, _) in factors.items()})
        optimizer.step()
        states.append(_snapshot(factors))
        losses.append(loss.item())
    losses.append(_loss(pupil, batch).item())

    draw = torch.Generator().manual_seed(config.seed)
    updates, gradients, random = {}, {}, {}
    mixed = torch.zeros(config.steps, dtype=torch.float64)
    for name, (_, _, scale) in factors.items():
        a, b = (torch.stack([state[name][k] for state in states]) for k in (0, 1))
        slope_a, slope_b = (torch.stack([slope[name][k] for slope in slopes]) for k in (0, 1))
        change_a, change_b = a.diff(dim=0), b.diff(dim=0)
        moved = step_of(a[:-1], b[:-1], change_a=change_a, change_b=change_b, scale=scale)
        pulled = tangent(a[:-1], b[:-1], change_a=-slope_a, change_b=-slope_b, scale=scale)
        alike_a, alike_b = _like(change_a, draw), _like(change_b, draw)
        noise = tangent(a[:-1], b[:-1], change_a=alike_a, change_b=alike_b, scale=scale)
        updates[name], gradients[name], random[name] = moved.gram(), pulled.gram(), noise.gram()
        mixed += (moved.dense() * pulled.dense()).sum((1, 2))
    lengths = [torch.stack(list(grams.values())).sum(0).diagonal().sqrt() for grams in (updates, gradients)]
    return Updates(
        config=config,
        losses=tuple(losses),
        updates=updates,
        gradients=gradients,
        random=random,
        singles=pd.DataFrame(singles),
        agreement=tuple((mixed / (lengths[0] * lengths[1]).clamp(min=1e-300)).tolist()),
        dimensions={name: a.shape[1] * b.shape[0] for name, (a, b, _) in factors.items()},
    )


def step_of(a: Tensor, b: Tensor, *, change_a: Tensor, change_b: Tensor, scale: float) -> LowRank:
    """Return s ((B + dB)(A + dA) - B A), without the cancellation of taking the difference of two products.

    Args:
        a, change_a: [item, rank, in].
        b, change_b: [item, out, rank].
        scale: s.
    """
    return LowRank(scale * torch.cat([change_b, b], -1), torch.cat([a + change_a, change_a], -2))


def tangent(a: Tensor, b: Tensor, *, change_a: Tensor, change_b: Tensor, scale: float) -> LowRank:
    """Return s (dB A + B dA), the first order of `step_of`."""
    return LowRank(scale * torch.cat([change_b, b], -1), torch.cat([a, change_a], -2))


def with_net(gram: Float[Tensor, "step step"]) -> Float[np.ndarray, " step"]:
    """Return the cosine of each step with the sum of all, from their inner products."""
    lengths = gram.diagonal().sqrt() * gram.sum().sqrt()
    return (gram.sum(1) / lengths.clamp(min=1e-300)).numpy()


def search_rate(model: PreTrainedModel, batch: Questions, *, config: FollowConfig) -> float:
    """Return the highest learning rate at which no step of a trial raises the loss on the batch.

    Rates are quadrupled until one does, and the last factor is halved `HALVINGS` times, to within a tenth of the rate.
    That all higher rates would also raise it is assumed.

    Raises:
        MnemoError: even the lowest rate does, or no rate lowers the loss at all.
    """

    def works(rate: float) -> bool:
        losses = torch.tensor(_trial(model, batch, config, rate))
        rises = (losses[1:] > losses[:-1]) & (losses[1:] > SETTLED)
        return bool(losses.isfinite().all() and not rises.any())

    rate = LOWEST
    if not works(rate):
        raise MnemoError(
            f"a learning rate of {rate:g} raises the loss on the batch already, with {config.optimizer}: give a "
            "learning rate, or a batch whose answers the model can learn"
        )
    while rate < HIGHEST and works(4 * rate):
        rate *= 4
    for k in range(1, HALVINGS + 1):
        between = rate * 4**0.5**k
        rate = between if works(between) else rate
    first, *_, last = _trial(model, batch, config, rate)
    if not last < first:
        raise MnemoError(
            f"no learning rate up to {rate:g} lowers the loss on the batch ({first:.3g} nats) in {config.trial} steps "
            f"with {config.optimizer}: give a batch that the model does not know yet"
        )
    return rate


def layer_of(name: str) -> int:
    """Return the block that a module belongs to: the first number in its name."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1


# (A, B, scale) of each module
_Factors = dict[str, tuple[nn.Parameter, nn.Parameter, float]]


def _pupil(model: PreTrainedModel, config: FollowConfig) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return learner(model, TeachConfig(how="lora", rank=config.rank))


def _factors(pupil: Any) -> _Factors:
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"])
        for name, module in pupil.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    }


def _optimizer(pupil: nn.Module, config: FollowConfig, rate: float) -> torch.optim.Optimizer:
    weights = [p for p in pupil.parameters() if p.requires_grad]
    if config.optimizer == "lion":
        with in_one_line("Lion cannot be loaded", fix="pip install 'mnemo[learning]', or use another optimizer"):
            from pytorch_optimizer import Lion
        return Lion(weights, lr=rate, weight_decay=0.0)
    make: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    return make[config.optimizer](weights, lr=rate, weight_decay=0.0)


def _trial(model: PreTrainedModel, batch: Questions, config: FollowConfig, rate: float) -> list[float]:
    """The losses before each step of a trial and after the last; it ends when a loss is no number."""
    pupil = _pupil(model, config)
    optimizer = _optimizer(pupil, config, rate)
    losses = []
    for _ in range(config.trial):
        loss = _loss(pupil, batch)
        losses.append(loss.item())
        if not loss.isfinite():
            return losses
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*losses, _loss(pupil, batch).item()]


def _loss(pupil: Any, batch: Questions) -> Float[Tensor, ""]:
    return F.cross_entropy(said_by(pupil, batch.prompts).float(), batch.answers)


def _single_facts(pupil: Any, batch: Questions, factors: _Factors) -> dict[str, float]:
    """Compare the momentum-free gradients of single facts with each other and with their mean, that of the batch."""
    names = list(factors)
    flat = [p for name in names for p in factors[name][:2]]
    said = said_by(pupil, batch.prompts).float()
    each = F.cross_entropy(said, batch.answers, reduction="none")
    slopes = [torch.autograd.grad(loss, flat, retain_graph=True) for loss in each]
    n = len(each)
    gram = torch.zeros(n, n, dtype=torch.float64)
    for k, name in enumerate(names):
        a, b, scale = factors[name]
        slope_a, slope_b = (torch.stack([_double(slope[2 * k + j]) for slope in slopes]) for j in (0, 1))
        same_a, same_b = (_double(w).expand(n, *w.shape) for w in (a, b))
        gram += tangent(same_a, same_b, change_a=-slope_a, change_b=-slope_b, scale=scale).gram()
    cosines = _cosines(gram)
    others = cosines[~np.eye(n, dtype=bool)].mean() if n > 1 else float("nan")
    lengths = gram.diagonal().sqrt()
    orthogonal = (lengths / gram.trace().sqrt().clamp(min=1e-300)).mean().item()
    return {"with_batch": float(with_net(gram).mean()), "with_others": float(others), "expected": orthogonal}


def _snapshot(factors: _Factors) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (_double(a), _double(b)) for name, (a, b, _) in factors.items()}


def _double(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # every factor takes part in every forward pass
    return tensor.detach().cpu().double().clone()


def _like(changes: Float[Tensor, "step _ _"], draw: torch.Generator) -> Float[Tensor, "step _ _"]:
    """Random matrices of the same norms."""
    noise = torch.randn(changes.shape, generator=draw, dtype=changes.dtype)
    return noise * (changes.norm(dim=(1, 2), keepdim=True) / noise.norm(dim=(1, 2), keepdim=True))


def _cosines(gram: Float[Tensor, "item item"]) -> Float[np.ndarray, "item item"]:
    lengths = gram.diagonal().sqrt().clamp(min=1e-300)
    return (gram / lengths / lengths[:, None]).numpy()
