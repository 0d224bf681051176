"""Three trainings: by a local rule, by gradients, and of a classifier by its labels.

`learn` trains a Hebbian stage with hebbkern's driver. `fit` trains anything with a loss and keeps the state of the
epoch that is best on validation data (early stopping). `fit_centroids` trains the supervised Hebbian classifier (SHC),
whose neurons move to the centroids of their classes. All are deterministic in the seed, on one machine and number of
threads.
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
from examples.papers.hebbian_cnn.network import CHUNK, mixed, set_statistics
from hebbkern import training

# The texts of rules in the keys of caches and results; they stay as they are when a rule gets another repr.
RULE_KEYS = {
    hk.Sanger(): "Sanger(patches='raw', activation='relu')",
    hk.WTA(): "WTA(patches='raw', k=1, similarity='cosine', coefficient='one', average=True, normalise='none')",
}


@dataclass(frozen=True)
class Hebbian:
    """How stages learn by a rule.

    Args:
        lr: one per stage, of the first epoch; it falls linearly to 0.
        epochs: 0 leaves the weights as drawn.
        batch: samples per step.
        dtype: of the products in the update; None takes that of the weights, float32.
    """

    rule: hk.rules.Rule
    lr: tuple[float, ...] = (1e-3,) * 5
    epochs: int = 1
    batch: int = 64
    dtype: torch.dtype | None = None

    def __repr__(self) -> str:
        """Part of the keys of caches and results."""
        rule = RULE_KEYS.get(self.rule, repr(self.rule))
        return f"Hebbian(rule={rule}, lr={self.lr}, epochs={self.epochs}, batch={self.batch}, dtype={self.dtype})"


@dataclass(frozen=True)
class Plan:
    """A training by gradients, whose rate rises linearly over the share `warm` of all steps, then falls linearly to 0.

    The text of a plan is part of the keys of caches and results.

    Args:
        rate: the highest learning rate.
        batch: samples per step.
        decay: L2 penalty.
        momentum: Nesterov momentum of SGD; None takes Adam instead.
        dropout: of the inputs of the classifier.
        mirror: whether each image is mirrored in half of the epochs.
        last: the rate of the last layer, whose many inputs have unit variance; None takes the rate of the others.
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
class SHC:
    """A supervised Hebbian classifier: rate `lr`, falling linearly to 0; compares by cosine or by dot product."""

    lr: float = 0.1
    epochs: int = 1
    batch: int = 64
    cosine: bool = False

    def __repr__(self) -> str:
        """Part of the keys of results, which have this name."""
        return f"Taught(lr={self.lr}, epochs={self.epochs}, batch={self.batch}, cosine={self.cosine})"


class Samples(NamedTuple):
    """Samples x [n, ...], labels [n], and the mirrored images, for plans that mirror."""

    x: Tensor
    labels: Tensor
    mirrored: Tensor | None = None


class Best(NamedTuple):
    """The highest validation accuracy in percent, and its epoch, counted from 1."""

    validation: float
    epoch: int


def learn(stage: nn.Module, x: Tensor, plan: Hebbian, *, at: int = 0, seed: int, progress: bool = False) -> None:
    """Trains stage number `at` of the network in place, then sets the statistics of batch norm."""
    stages = nn.Sequential(stage)
    if plan.epochs:
        stages.train()
        batches = training.Batches(x, batch_size=plan.batch, seed=seed)
        with mixed(x):  # for the outputs; updates multiply in plan.dtype
            training.train(stages, batches, lr=plan.lr[at], epochs=plan.epochs, dtype=plan.dtype, progress=progress)
    set_statistics(stages, x[:5000])


def fit(
    model: nn.Module,
    samples: Samples,
    plan: Plan,
    *,
    seed: int,
    validate: Callable[[], float],
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    progress: bool = False,
) -> Best:
    """Trains all of `model` in place and leaves it as it was after its best epoch.

    Args:
        validate: called after each epoch; the epoch with the highest value is the best.
        loss: of (model, x, labels); None takes the cross entropy of the model's outputs.
    """
    torch.manual_seed(seed)  # for dropout, whatever was drawn before
    generator = torch.Generator().manual_seed(seed)
    optimizer, per_epoch = _optimizer(model, plan), len(samples.labels) // plan.batch
    steps = plan.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, steps, plan.warm))
    best, state = Best(-math.inf, 0), None
    for epoch in trange(1, plan.epochs + 1, disable=not progress, leave=False):
        model.train()
        for index in torch.randperm(len(samples.labels), generator=generator).split(plan.batch)[:per_epoch]:
            x, labels = _batch(samples, index, generator), samples.labels[index]
            with mixed(x):
                value = F.cross_entropy(model(x).float(), labels) if loss is None else loss(model, x, labels)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
        if (accuracy := validate()) > best.validation:
            best, state = Best(accuracy, epoch), copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return best


def _optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [{"params": parameters}]
    if plan.last is not None:  # weight and bias of the last layer have their own rate
        groups = [{"params": parameters[:-2]}, {"params": parameters[-2:], "lr": plan.last}]
    if plan.momentum is None:
        return torch.optim.Adam(groups, lr=plan.rate, weight_decay=plan.decay, fused=True)
    options = {"momentum": plan.momentum, "nesterov": plan.momentum > 0, "weight_decay": plan.decay}
    return torch.optim.SGD(groups, lr=plan.rate, fused=True, **options)


def _share(step: int, steps: int, warm: float) -> float:
    """Returns the learning rate of a step as a share of the highest: a triangle."""
    rise = max(1.0, warm * steps)
    return min((step + 1) / rise, (steps - step) / (steps - rise + 1e-9))


def _batch(samples: Samples, index: Tensor, generator: torch.Generator) -> Tensor:
    x = samples.x.index_select(0, index)
    if samples.mirrored is not None:
        turned = torch.rand(len(index), generator=generator) < 0.5
        x[turned] = samples.mirrored.index_select(0, index[turned])
    return x


def readout(inputs: int, classes: int, dropout: float) -> nn.Sequential:
    """Returns the linear classifier."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, classes))


def fit_centroids(
    x: Tensor,
    labels: Tensor,
    classes: int,
    plan: SHC,
    *,
    seed: int,
    validate: Callable[[nn.Module], float] | None = None,
) -> tuple[nn.Module, Best]:
    """Returns a classifier with a neuron per class at the centroid of its samples, and its best epoch.

    Args:
        x: samples [n, inputs].
        labels: int64 [n].
        validate: of the model, after each epoch; the model keeps the weights of the best. None keeps the last ones.
    """
    torch.manual_seed(seed)
    layer = hk.nn.HebbianLinear(x.shape[1], classes, rule=hk.Supervised())
    batches, step = training.Batches(x, labels, batch_size=plan.batch, seed=seed), 0
    steps, best, weight = plan.epochs * len(batches), Best(-math.inf, plan.epochs), None
    model = Centroids(layer, plan.cosine)
    for epoch in range(1, plan.epochs + 1):
        batches.seek((epoch - 1) * len(batches))
        for part, targets in batches:
            layer.learn(part.float(), lr=plan.lr * (1 - step / steps), labels=targets)
            step += 1
        if validate is not None and (accuracy := validate(model)) > best.validation:
            best, weight = Best(accuracy, epoch), layer.weight.detach().clone()
    if weight is not None:
        layer.weight.copy_(weight)
    return model, best


class Centroids(nn.Module):
    """Similarities of x and the neuron of each class: w·x, or w·x/‖w‖."""

    def __init__(self, layer: nn.Linear, cosine: bool):
        super().__init__()
        self.layer, self.cosine = layer, cosine

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.layer.weight) if self.cosine else self.layer.weight
        return F.linear(x, weight.to(x.dtype))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor, top: int = 1) -> float:
    """Returns the percentage of samples whose label is among the `top` highest outputs."""
    model.eval()
    right = 0
    for part, targets in zip(x.split(CHUNK), labels.split(CHUNK), strict=True):
        with mixed(part):
            scores = model(part).float()
        right += (scores.topk(top, 1).indices == targets[:, None]).sum().item()
    return 100 * right / len(x)
