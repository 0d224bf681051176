"""The network of hebbian_cnn.py, the paper's figure 4: five stages, of which a classifier may read any.

    stages = build("BBHHB", PAPER, (3, 32, 32), rule=hk.Sanger())     # nn.Sequential of five
    seen = outputs(stages, x)                                         # bfloat16, what the next stage or a readout sees

A stage is a layer → ReLU → max pool → batch norm, without padding. H is a layer of hebbkern, B one of torch with a
bias, both start uniform in ±1/√inputs. HWTA's projection, w·x/‖w‖, is left to batch norm, which divides each neuron's
response by its deviation: a positive factor a neuron, which ReLU and the pool let through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hebbkern as hk

CHUNK = 100  # images whose responses stay in the cache


@dataclass(frozen=True)
class Shape:
    """Of a stage: neurons, side of the kernel (0 = fully connected), side of the max pool."""

    neurons: int
    kernel: int = 0
    pool: int = 1


PAPER = (Shape(96, 5, 2), Shape(128, 3), Shape(192, 3, 2), Shape(256, 3), Shape(4096))
FAST = (Shape(24, 5, 2), Shape(32, 3), Shape(48, 3, 2), Shape(64, 3), Shape(256))


class Stage(nn.Module):
    """[B, *inputs] → [B, *outputs]; `rule` makes its layer Hebbian."""

    def __init__(self, inputs: torch.Size, shape: Shape, rule: hk.rules.Rule | None = None):
        super().__init__()
        size, more = (inputs[0], shape.neurons, shape.kernel), {} if rule is None else {"rule": rule}
        if shape.kernel:
            self.layer = (nn.Conv2d if rule is None else hk.nn.HebbianConv2d)(*size, **more)
            self.norm = nn.BatchNorm2d(shape.neurons)
            side = [(length - shape.kernel + 1) // shape.pool for length in inputs[1:]]
            self.outputs = torch.Size([shape.neurons, *side])
        else:
            self.layer = (nn.Linear if rule is None else hk.nn.HebbianLinear)(inputs.numel(), shape.neurons, **more)
            self.norm = nn.BatchNorm1d(shape.neurons)
            self.outputs = torch.Size([shape.neurons])
        self.inputs, self.pool = inputs, shape.pool

    def forward(self, x: Tensor) -> Tensor:
        if len(self.outputs) == 1:
            x = x.flatten(1)
        else:  # convolutions take two thirds of the time with channels last
            x = x.view(-1, *self.inputs).contiguous(memory_format=torch.channels_last)
        y = F.relu(self.layer(x), inplace=True)
        return self.norm(F.max_pool2d(y, self.pool) if self.pool > 1 else y)


def build(pattern: str, shapes: tuple[Shape, ...], inputs: Iterable[int], rule: hk.rules.Rule | None) -> nn.Sequential:
    """A stage a letter of the pattern, the first ones of `shapes`, drawn by torch's generator."""
    stages, size = [], torch.Size(inputs)
    for letter, shape in zip(pattern, shapes, strict=False):
        stages.append(Stage(size, shape, rule if letter == "H" else None))
        size = stages[-1].outputs
    return nn.Sequential(*stages)


def mixed(x: Tensor):
    """Products in bfloat16, sums in float32: twice as fast on CPUs that have them; what is kept has half the size."""
    return torch.autocast(x.device.type, torch.bfloat16)


def answer(model: nn.Module, x: Tensor) -> Tensor:
    """[B, values] of x, multiplied in bfloat16; of images with their channels last, where that is fastest."""
    with mixed(x):
        return model(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x).flatten(1)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
    """[n, values] bfloat16 of x [n, ...], in evaluation mode; written into `out` where it is given."""
    model.eval()
    if out is None:
        out = torch.empty((len(x), answer(model, x[:1]).shape[1]), dtype=torch.bfloat16, device=x.device)
    for part, target in zip(x.split(CHUNK), out.split(CHUNK), strict=True):
        target.copy_(answer(model, part))
    return out


@torch.no_grad()
def settle(model: nn.Module, x: Tensor, size: int = 500) -> None:
    """Batch norm's statistics of x, all of it weighing the same, whatever they were before."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain average over batches
    model.train()
    for part in x.split(size):
        answer(model, part)
    model.eval()
    for norm in norms:
        norm.momentum = 0.1
