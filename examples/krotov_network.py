"""The network of krotov_cnn.py, convolution → batch norm → RePU → max pool → linear, trained in one of two ways.

`Readout`: the filters are given, and stay. What they say is then the same in every epoch, so `features` computes it
once: standardised by batch norm's statistics (exact: mean and variance follow from the moments of the patches),
pooled, and kept as bfloat16 on the device, 115 kB an image of 28x28 with 400 filters, 6.9 GB for 60,000. Batch
norm's scale and shift come after the pooling, which changes nothing as long as no scale is negative (pooling and an
increasing function commute), so scales are clamped at 0.

`Network`: everything is trained end to end, batch norm as torch has it.

`fit` trains both, by Adam, ReduceLROnPlateau and early stopping on validation data; or by the rates of such a training.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern import training
from krotov_filters import SIDE, Moments

EPSILON = 1e-5  # of batch norm


@dataclass(frozen=True)
class Schedule:
    """Of a training.

    Args:
        rate: Adam's, at first; times `factor` after more than `wait` epochs without a better validation accuracy.
        batch: samples a step. epochs: at most so many. decay: Adam's weight decay.
        patience: epochs without a better validation accuracy after which it stops.
    """

    rate: float = 1e-3
    batch: int = 256
    epochs: int = 100
    factor: float = 0.2
    wait: int = 1
    patience: int = 4
    decay: float = 0.0


@dataclass
class Fitted:
    """What a training found: the rate of each epoch up to the best one, the accuracy there, and the epochs it took."""

    rates: list[float] = field(default_factory=list)
    validation: float = -1.0
    epochs: int = 0


class RePU(nn.Module):
    """Rectified polynomial unit, max(x, 0)ⁿ."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return x if self.power == 1 else x.pow(self.power)


class Network(nn.Module):
    """[B, C, H, W] → [B, classes], the paper's figure 2."""

    def __init__(self, count: int, shape: tuple[int, ...], classes: int, *, pool: int = 2, repu: float = 1.0):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], count, SIDE, bias=False)
        self.norm = nn.BatchNorm2d(count)
        self.repu = RePU(repu)
        self.pool = nn.MaxPool2d(pool)
        self.linear = nn.Linear(count * pixels(shape, pool), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.repu(self.norm(self.conv(x)))).flatten(1))


class Readout(nn.Module):
    """[B, h·w, K], standardised and pooled, → [B, classes]: what comes after batch norm's statistics in `Network`."""

    def __init__(self, count: int, places: int, classes: int, *, repu: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(count))
        self.shift = nn.Parameter(torch.zeros(count))
        self.repu = RePU(repu)
        self.linear = nn.Linear(count * places, classes)

    def forward(self, z: Tensor) -> Tensor:
        scale, shift = self.scale.to(z.dtype), self.shift.to(z.dtype)
        return self.linear(self.repu(torch.addcmul(shift, z, scale)).flatten(1))


def pixels(shape: tuple[int, ...], pool: int) -> int:
    """Places of a channel after pooling, for images [C, H, W]."""
    return (shape[1] - SIDE + 1) // pool * ((shape[2] - SIDE + 1) // pool)


@torch.no_grad()
def features(images: Tensor, filters: Tensor, found: Moments, *, pool: int = 2, chunk: int = 512) -> Tensor:
    """[n, h·w, K] bfloat16: pooled responses, standardised by the moments of the training patches."""
    rows = filters.flatten(1).double()
    deviation = ((rows @ found.raw) * rows).sum(1).clamp(min=0).add(EPSILON).sqrt()
    weight = (rows / deviation[:, None]).float().view_as(filters).to(memory_format=torch.channels_last)
    bias = -(rows @ found.mean / deviation).float()
    out = torch.empty(
        (len(images), pixels(images.shape[1:], pool), len(filters)), dtype=torch.bfloat16, device=images.device
    )
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk].contiguous(memory_format=torch.channels_last)
        out[start : start + chunk] = F.max_pool2d(F.conv2d(part, weight, bias), pool).flatten(2).mT
    return out


def fit(model: nn.Module, x: Tensor, y: Tensor, plan: Schedule, *, seed: int, validation=None, rates=None) -> Fitted:
    """Trains `model`, in place: until validation (x, y) does not get better, or for one epoch a rate of `rates`."""
    optimiser = torch.optim.Adam(model.parameters(), lr=plan.rate, weight_decay=plan.decay, fused=True)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, "max", factor=plan.factor, patience=plan.wait)
    batches, best, state, taken = training.Batches(x, y, size=plan.batch, seed=seed), Fitted(), None, []
    for epoch in range(plan.epochs if rates is None else len(rates)):
        if rates is not None:
            optimiser.param_groups[0]["lr"] = rates[epoch]
        taken.append(optimiser.param_groups[0]["lr"])
        batches.seek(epoch * len(batches))
        _epoch(model, batches, optimiser)
        if validation is None:
            continue
        accuracy = measure(model, *validation)
        plateau.step(accuracy)
        if accuracy > best.validation:
            best, state = Fitted(list(taken), accuracy), copy.deepcopy(model.state_dict())
        elif epoch + 1 - len(best.rates) >= plan.patience:
            break
    if state is not None:
        model.load_state_dict(state)
    best.epochs = len(taken)
    return best


def _epoch(model: nn.Module, batches: training.Batches, optimiser: torch.optim.Optimizer) -> None:
    model.train()
    for x, y in batches:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        if isinstance(model, Readout):
            with torch.no_grad():
                model.scale.clamp_(min=0)


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 1000) -> float:
    """Accuracy in [0, 1]."""
    model.eval()
    right = torch.zeros((), device=x.device)
    for start in range(0, len(x), chunk):
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = model(x[start : start + chunk])
        right += (logits.argmax(1) == y[start : start + chunk]).sum()
    return right.item() / len(x)
