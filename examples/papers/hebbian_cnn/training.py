"""How stages, networks and readouts of hebbian_cnn.py learn: by a local rule, by gradients, or by their labels.

`learn`: Hebbian stages, by hebbkern's driver. `fit`: anything with a loss, by gradients, keeping the state of the epoch
that was best on validation data (early stopping). `teach`: the supervised Hebbian classifier (SHC), which moves each
class's neuron to the centroid of its samples. Deterministic in the seed, on one machine and number of threads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

import hebbkern as hk
from examples.papers.hebbian_cnn.network import CHUNK, mixed, settle
from hebbkern import training


@dataclass(frozen=True)
class Hebbian:
    """How stages learn by a rule; no epoch leaves them as drawn.

    Args:
        lr: of each stage in the first epoch, falling linearly to 0.
        dtype: of the products that they learn by; None is the weights' own, float32.
    """

    rule: hk.rules.Rule
    lr: tuple[float, ...] = (1e-3,) * 5
    epochs: int = 1
    batch: int = 64
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Plan:
    """Of a training by gradients. The rate rises linearly for `warm` of all steps, then falls linearly to 0.

    Args:
        rate: the highest. momentum: Nesterov's; None takes Adam instead of SGD. decay: L2 penalty.
        dropout: of what the classifier reads. mirror: each image is mirrored in half of the epochs.
        last: the rate of the last layer, of whose many inputs each has unit variance; None is as the others'.
    """

    rate: float = 0.02
    epochs: int = 8
    batch: int = 64
    decay: float = 5e-4
    momentum: float | None = 0.9
    dropout: float = 0.0
    mirror: bool = False
    warm: float = 0.2
    last: float | None = None


@dataclass(frozen=True)
class Taught:
    """How a classifier is taught (SHC): at `lr`, falling linearly to 0; compared by cosine or by dot product."""

    lr: float = 0.1
    epochs: int = 1
    batch: int = 64
    cosine: bool = False


class Samples(NamedTuple):
    """x [n, ...], labels [n], and the same images mirrored, where a plan asks for them."""

    x: Tensor
    y: Tensor
    mirrored: Tensor | None = None


class Best(NamedTuple):
    """Validation accuracy in percent, and the epoch that had it, counted from 1."""

    validation: float
    epoch: int


def learn(stage: nn.Module, x: Tensor, plan: Hebbian, *, at: int = 0, seed: int, progress: bool = False) -> None:
    """The stage, the network's number `at`, in place; then batch norm's statistics."""
    stages = nn.Sequential(stage)
    if plan.epochs:
        stages.train()
        batches = training.Batches(x, size=plan.batch, seed=seed)
        with mixed(x):  # of the answers: rules multiply as the plan says all the same
            training.train(stages, batches, lr=plan.lr[at], epochs=plan.epochs, dtype=plan.dtype, progress=progress)
    settle(stages, x[:5000])


def fit(
    model: nn.Module,
    samples: Samples,
    plan: Plan,
    *,
    seed: int,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    validate: Callable[[], float],
    progress: bool = False,
) -> Best:
    """Trains all of `model` in place, which ends as it was after the epoch whose `validate()` was highest."""
    torch.manual_seed(seed)  # for dropout, whatever was drawn before
    generator = torch.Generator().manual_seed(seed)
    optimiser, steps = _optimiser(model, plan), plan.epochs * (len(samples.y) // plan.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, steps, plan.warm))
    best, state = Best(-math.inf, 0), None
    for epoch in trange(1, plan.epochs + 1, disable=not progress, leave=False):
        model.train()
        for index in torch.randperm(len(samples.y), generator=generator).split(plan.batch)[: steps // plan.epochs]:
            x, y = _batch(samples, index, generator), samples.y[index]
            with mixed(x):
                wrong = F.cross_entropy(model(x).float(), y) if loss is None else loss(model, x, y)
            optimiser.zero_grad(set_to_none=True)
            wrong.backward()
            optimiser.step()
            schedule.step()
        if (now := validate()) > best.validation:
            best, state = Best(now, epoch), copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return best


def _optimiser(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters}] if plan.last is None else _groups(parameters, plan)
    if plan.momentum is None:
        return torch.optim.Adam(groups, lr=plan.rate, weight_decay=plan.decay, fused=True)
    options = {"momentum": plan.momentum, "nesterov": plan.momentum > 0, "weight_decay": plan.decay}
    return torch.optim.SGD(groups, lr=plan.rate, fused=True, **options)


def _groups(parameters: list[nn.Parameter], plan: Plan) -> list[dict]:
    """Weight and bias of the last layer, at their own rate, and all others."""
    return [{"params": parameters[:-2]}, {"params": parameters[-2:], "lr": plan.last}]


def _share(step: int, steps: int, warm: float) -> float:
    """Of the highest rate: a triangle."""
    rise = max(1.0, warm * steps)
    return min((step + 1) / rise, (steps - step) / (steps - rise + 1e-9))


def _batch(samples: Samples, index: Tensor, generator: torch.Generator) -> Tensor:
    x = samples.x.index_select(0, index)
    if samples.mirrored is not None:
        turned = torch.rand(len(index), generator=generator) < 0.5
        x[turned] = samples.mirrored.index_select(0, index[turned])
    return x


def readout(inputs: int, classes: int, dropout: float) -> nn.Sequential:
    """The linear classifier."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, classes))


def teach(x: Tensor, y: Tensor, classes: int, plan: Taught, *, seed: int, validate=None) -> tuple[nn.Module, Best]:
    """The classifier whose neurons moved to the centroids of their classes, at its best epoch if it is validated."""
    torch.manual_seed(seed)
    layer = hk.nn.HebbianLinear(x.shape[1], classes, rule=hk.Supervised())
    batches, step = training.Batches(x, y, size=plan.batch, seed=seed), 0
    steps, best, kept = plan.epochs * len(batches), Best(-math.inf, plan.epochs), None
    model = Nearest(layer, plan.cosine)
    for epoch in range(1, plan.epochs + 1):
        batches.seek((epoch - 1) * len(batches))
        for part, labels in batches:
            layer.learn(part.float(), plan.lr * (1 - step / steps), labels)
            step += 1
        if validate is not None and (now := validate(model)) > best.validation:
            best, kept = Best(now, epoch), layer.weight.detach().clone()
    if kept is not None:
        layer.weight.copy_(kept)
    return model, best


class Nearest(nn.Module):
    """Answers how near each class's neuron is: w·x, or w·x/‖w‖."""

    def __init__(self, layer: nn.Linear, cosine: bool):
        super().__init__()
        self.layer, self.cosine = layer, cosine

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.layer.weight) if self.cosine else self.layer.weight
        return F.linear(x, weight.to(x.dtype))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, top: int = 1) -> float:
    """Percent of the samples whose label is among the `top` highest answers."""
    model.eval()
    right = 0
    for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        with mixed(part):
            answers = model(part).float()
        right += (answers.topk(top, 1).indices == labels[:, None]).sum().item()
    return 100 * right / len(x)
