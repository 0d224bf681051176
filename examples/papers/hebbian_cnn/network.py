"""The network of the paper's figure 4: five stages, each of which a classifier may read.

    stages = build("BBHHB", PAPER, (3, 32, 32), rule=hk.Sanger())     # nn.Sequential of five
    features = outputs(stages, x)                                     # bfloat16, inputs of the next stage or a readout

A stage is layer → ReLU → max pool → batch norm, without padding. The letter H stands for a Hebbian layer, B for a layer
of torch with a bias; both start uniform in ±1/√inputs. HWTA's projection w·x/‖w‖ needs no layer of its own: batch norm
divides the responses of each neuron by their deviation, and ReLU and the pool commute with a positive factor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hebbkern as hk

CHUNK = 100  # images whose responses stay in the processor's cache


@dataclass(frozen=True)
class Shape:
    """A stage's neurons, side of the kernel (0: fully connected) and side of the max pool."""

    neurons: int
    kernel: int = 0
    pool: int = 1


PAPER = (Shape(96, 5, 2), Shape(128, 3), Shape(192, 3, 2), Shape(256, 3), Shape(4096))
FAST = (Shape(24, 5, 2), Shape(32, 3), Shape(48, 3, 2), Shape(64, 3), Shape(256))


class Stage(nn.Module):
    """Layer → ReLU → max pool → batch norm: [B, *inputs] → [B, *outputs].

    Args:
        inputs: shape of a sample.
        rule: makes the layer Hebbian; None takes a layer of torch.
    """

    def __init__(self, inputs: torch.Size, shape: Shape, rule: hk.rules.Rule | None = None):
        super().__init__()
        options = {} if rule is None else {"rule": rule}
        if shape.kernel:
            convolution = nn.Conv2d if rule is None else hk.nn.HebbianConv2d
            self.layer = convolution(inputs[0], shape.neurons, shape.kernel, **options)
            self.norm = nn.BatchNorm2d(shape.neurons)
            side = [(length - shape.kernel + 1) // shape.pool for length in inputs[1:]]
            self.outputs = torch.Size([shape.neurons, *side])
        else:
            linear = nn.Linear if rule is None else hk.nn.HebbianLinear
            self.layer = linear(inputs.numel(), shape.neurons, **options)
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


def build(
    pattern: str, shapes: tuple[Shape, ...], inputs: Iterable[int], rule: hk.rules.Rule | None = None
) -> nn.Sequential:
    """Returns a stage per letter of the pattern, with the first of the shapes; torch's generator draws the weights."""
    stages, size = [], torch.Size(inputs)
    for letter, shape in zip(pattern, shapes, strict=False):
        stages.append(Stage(size, shape, rule if letter == "H" else None))
        size = stages[-1].outputs
    return nn.Sequential(*stages)


def mixed(x: Tensor) -> torch.autocast:
    """Returns a context with products in bfloat16 and sums in float32: twice as fast on CPUs that support it."""
    return torch.autocast(x.device.type, torch.bfloat16)


def forward_mixed(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the outputs [B, values] of `model`, multiplied in bfloat16, with images channels last."""
    with mixed(x):
        return model(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x).flatten(1)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns the outputs of `model` in evaluation mode, [n, values] bfloat16, written to `out` if given."""
    model.eval()
    if out is None:
        out = torch.empty((len(x), forward_mixed(model, x[:1]).shape[1]), dtype=torch.bfloat16, device=x.device)
    for part, target in zip(x.split(CHUNK), out.split(CHUNK), strict=True):
        target.copy_(forward_mixed(model, part))
    return out


@torch.no_grad()
def set_statistics(model: nn.Module, x: Tensor, batch_size: int = 500) -> None:
    """Sets batch norm's statistics to the average over the batches of x, and the model to evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for part in x.split(batch_size):
        forward_mixed(model, part)
    model.eval()
    for norm in norms:
        norm.momentum = 0.1
