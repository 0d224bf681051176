"""Linear readouts of fixed features: several are trained side by side in one pass over the data.

    model = Readouts(inputs=6400, classes=10, count=2)
    fit(model, features, labels, [Schedule(rate=1e-3), Schedule(rate=2e-3)], seed=0)
    accuracies = measure(model, test_features, test_labels)

Training is deterministic in the seed on one machine. The order of the batches is drawn anew in each epoch, their
content is not, so that a batch is a view of the data: shuffle the samples before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """A training by AdamW whose learning rate falls linearly from `rate` to 0.

    Args:
        batch: samples per step.
        decay: decoupled weight decay.
        smoothing: label smoothing.
    """

    rate: float = 1e-3
    epochs: int = 10
    batch: int = 256
    decay: float = 0.0
    smoothing: float = 0.0


class Readouts(nn.Module):
    """Linear layers on the same inputs: [B, inputs] → [B, count, classes].

    Weights are float32; products are computed in the dtype of the inputs.
    """

    def __init__(self, inputs: int, classes: int, count: int = 1):
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(inputs, classes) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([layer.weight.to(x.dtype) for layer in self.each])
        bias = torch.cat([layer.bias for layer in self.each])
        return (F.linear(x, weight).to(bias.dtype) + bias).unflatten(1, (len(self.each), -1))


def fit(model: nn.Module, x: Tensor, labels: Tensor, schedules: Sequence[Schedule], *, seed: int) -> None:
    """Trains the readouts of `model` in place, each by its schedule.

    Args:
        model: a `Readouts`, or any module with outputs [B, 1, classes] and one schedule.
        schedules: one per readout, all with the same batch and number of epochs.
    """
    readouts = model.each if isinstance(model, Readouts) else [model]
    groups = [
        {"params": readout.parameters(), "lr": schedule.rate, "weight_decay": schedule.decay}
        for readout, schedule in zip(readouts, schedules, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    batches = list(zip(x.split(schedules[0].batch), labels.split(schedules[0].batch), strict=True))
    steps, generator = schedules[0].epochs * len(batches), torch.Generator().manual_seed(seed)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(schedules[0].epochs):
        for index in torch.randperm(len(batches), generator=generator).tolist():
            inputs, targets = batches[index]
            logits = model(inputs)
            losses = [
                F.cross_entropy(logits[:, which], targets, label_smoothing=schedule.smoothing)
                for which, schedule in enumerate(schedules)
            ]
            optimizer.zero_grad(set_to_none=True)
            sum(losses).backward()
            optimizer.step()
            falling.step()


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, labels: Tensor, chunk: int = 500) -> list[float]:
    """Returns the accuracy of each readout, from 0 to 1."""
    model.eval()
    right = sum(
        (model(inputs).argmax(2) == targets[:, None]).sum(0)
        for inputs, targets in zip(x.split(chunk), labels.split(chunk), strict=True)
    )
    return (right / len(x)).tolist()


@torch.no_grad()
def mean_of(x: Tensor) -> Tensor:
    """Returns the mean [inputs] of x [n, inputs], summed in float32, in the dtype of x."""
    return (sum(part.sum(0, dtype=torch.float32) for part in x.split(1000)) / len(x)).to(x.dtype)
