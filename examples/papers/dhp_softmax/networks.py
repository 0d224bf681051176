"""The networks of the DHP experiments: hidden layers, and one or several readouts for the tasks.

    heads = Heads("own", classes=(2,) * 5)
    network = Network(perceptron(784, 256, 256), 256, heads, lambda inputs, classes: hk.nn.DHPLinear(inputs, classes))
    network.loss(x, labels, task=0)      # the training loss; a DHP readout updates its trace here
    network(x, task=0)                   # [B, classes of the task], the prediction

Images have the shape [B, channels, height, width].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.nn import DHPLinear

HEADS = ("own", "one", "masked", "shared")


@dataclass(frozen=True)
class Heads:
    """The readouts of the tasks. Labels count from 0 within each task, whatever the kind.

    Args:
        kind: "own": a readout per task. "one": one readout of all tasks' classes; the loss is over all of them, the
            prediction within the task. "masked": as "one", but the loss is also within the task. "shared": one
            readout, whose outputs mean other classes in each task.
        classes: number of classes of each task.
    """

    kind: str
    classes: tuple[int, ...]

    def __post_init__(self):
        if self.kind not in HEADS:
            raise ValueError(f"dhp_softmax networks: heads must be one of {', '.join(HEADS)}, got {self.kind}")

    @property
    def outputs(self) -> tuple[int, ...]:
        """The number of outputs of each readout."""
        return {"own": self.classes, "shared": (max(self.classes),)}.get(self.kind, (sum(self.classes),))

    def readout(self, task: int) -> int:
        """Returns the index of the task's readout."""
        return task if self.kind == "own" else 0

    def first(self, task: int) -> int:
        """Returns the index of the task's first class in its readout."""
        return sum(self.classes[:task]) if self.kind in ("one", "masked") else 0


class Network(nn.Module):
    """A body, and the readouts that `readout(inputs, classes)` makes for the tasks."""

    def __init__(self, body: nn.Module, inputs: int, heads: Heads, readout: Callable[[int, int], nn.Module]):
        super().__init__()
        self.body, self.heads = body, heads
        self.readouts = nn.ModuleList(readout(inputs, classes) for classes in heads.outputs)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Returns the logits of the task's classes: [B, classes]."""
        z = self.readouts[self.heads.readout(task)](self.body(x))
        return z[:, self._own(task)]

    def loss_outputs(self, x: Tensor, task: int) -> Tensor:
        """Returns the logits [B, outputs] that the loss is over."""
        return self(x, task) if self.heads.kind != "one" else self.readouts[0](self.body(x))

    def loss(self, x: Tensor, labels: Tensor, task: int) -> Tensor:
        """Returns the cross entropy, for labels [B] that count from 0 within the task."""
        readout, first = self.readouts[self.heads.readout(task)], self.heads.first(task)
        h = self.body(x)
        z = readout(h, labels + first) if isinstance(readout, DHPLinear) else readout(h)
        if self.heads.kind == "one":
            return F.cross_entropy(z, labels + first)
        return F.cross_entropy(z[:, self._own(task)], labels)

    def slow_weights(self) -> list[str]:
        """Returns the names of the consolidated parameters: all but the plastic part of DHP readouts."""
        plastic = {
            id(p) for readout in self.readouts if isinstance(readout, DHPLinear) for p in (readout.alpha, readout.eta)
        }
        return [name for name, parameter in self.named_parameters() if id(parameter) not in plastic]

    def _own(self, task: int) -> slice:
        first = self.heads.first(task)
        return slice(first, first + self.heads.classes[task])


class TwiceLinear(nn.Module):
    """The baselines' readout z = h (θ + θ')ᵀ, with as many weights as a DHP readout (section 4)."""

    def __init__(self, inputs: int, classes: int):
        super().__init__()
        self.weight, self.second = (nn.Parameter(torch.empty(classes, inputs)) for _ in range(2))
        bound = 1 / math.sqrt(inputs)
        for weight in (self.weight, self.second):
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight + self.second)


def perceptron(inputs: int, *hidden: int) -> nn.Module:
    """Returns fully connected layers with ReLUs (sections 4.1 to 4.3)."""
    widths = zip((inputs, *hidden), hidden, strict=False)
    layers = [layer for a, b in widths for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers)


def mixture_body() -> tuple[nn.Module, int]:
    """Returns the body of Table 3 and its width: three convolutions and a linear layer, leaky ReLUs of slope 0.2.

    Images are [B, 3, 32, 32]. The text of appendix A.4 has two convolutions and slope 0.3; here the table counts.
    """
    layers, channels = [], 3
    for out in (20, 50, 50):
        layers += [nn.Conv2d(channels, out, 5, padding=1), nn.LeakyReLU(0.2), nn.MaxPool2d(2)]
        channels = out
    # 32 -> 30 -> 15 -> 13 -> 6 -> 4 -> 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(50 * 2 * 2, 500), nn.LeakyReLU(0.2)), 500


def cifar_body() -> tuple[nn.Module, int]:
    """Returns the body of Zenke et al. 2017, appendix, and its width.

    3x3 convolutions of 32, 32, 64, 64 channels, a pool after every second one, 512 units; dropout of 0.25 after each
    pool and of 0.5 before the readout.
    """

    def pair(a: int, b: int) -> list[nn.Module]:
        first, second = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3)
        return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]

    # 32 -> 32 -> 30 -> 15 -> 15 -> 13 -> 6
    dense = [nn.Flatten(), nn.Linear(64 * 6 * 6, 512), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*pair(3, 32), *pair(32, 64), *dense), 512
