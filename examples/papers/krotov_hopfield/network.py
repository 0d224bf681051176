"""The network of krotov_cnn.py, convolution → batch norm → RePU → max pool → linear, trained in one of two ways.

Both ways pool the responses at once: max pooling and what comes between it and the convolution commute. Batch norm is
an affine function of each filter's response, so it can be folded into the filter, sign and all, and its statistics
follow exactly from the mean and covariance of the patches: w·μ and wᵀCw. What is left of the large passes is one
matrix product and one maximum for each place of a pool, which stay in the processor's cache (`pooled`).

`features` and `Readouts`: the filters are given, and stay. What they say is the same in every epoch, so it is computed
once and kept as bfloat16, 29 kB an image of 28x28 with 400 filters and pool 4 (115 kB with pool 2). Batch norm's scale
is left to the linear layer, which absorbs it; its shift stays 0 (shifts of −1 to 0.7 for all filters were no better on
validation data), and RePU's power is 1. What is read out is less its mean over the training images, which the linear
layer's bias absorbs, but Adam does not: random filters gain a point in 8 epochs. One pass can train several readouts.

`Network`: everything is trained end to end, by the same `fit`: Adam, batches whose order is drawn anew in each epoch
(their images are not, which lets a batch be a view), a rate that falls linearly to 0.

Shapes: images [n, C, H, W] from 0 to 1; filters [K, C, SIDE, SIDE]; N = C·SIDE². The pool divides H − SIDE + 1 and
W − SIDE + 1. Deterministic in the seed, on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.papers.krotov_hopfield.filters import SIDE, Moments

EPSILON = 1e-5  # of batch norm
LEVELS = 255  # images of 8 bits, times this, are exact in bfloat16
CHUNK = 16  # images whose responses to one place of a pool fit into the cache


@dataclass(frozen=True)
class Schedule:
    """Of a training by Adam, whose rate falls linearly from `rate` to 0.

    Args:
        batch: samples a step. decay: decoupled weight decay. smoothing: of the labels.
    """

    rate: float = 1e-3
    epochs: int = 10
    batch: int = 256
    decay: float = 0.0
    smoothing: float = 0.0


def pixels(shape: tuple[int, ...], pool: int) -> int:
    """Places of a channel after pooling, for images [C, H, W]."""
    return (shape[1] - SIDE + 1) // pool * ((shape[2] - SIDE + 1) // pool)


def patches(images: Tensor, pool: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """[pool², n·h·w, N], times LEVELS: for each place in a pool, the patch there of every pool of every image."""
    cut = (images * LEVELS).to(dtype).unfold(2, SIDE, 1).unfold(3, SIDE, 1)
    height, width = cut.shape[2] // pool, cut.shape[3] // pool
    cut = cut.unflatten(3, (width, pool)).unflatten(2, (height, pool))  # [n, C, h, pool, w, pool, SIDE, SIDE]
    return cut.permute(3, 5, 0, 2, 4, 1, 6, 7).reshape(pool**2, -1, images.shape[1] * SIDE**2)


class Pooled(torch.autograd.Function):
    """Patches [places, cells, N] and weights [N, K] → [cells, K], each filter's largest response in each pool.

    Its gradient goes to the first of the places that respond most, as torch's does.
    """

    @staticmethod
    def forward(ctx, seen: Tensor, weight: Tensor, size: int) -> Tensor:
        out = seen.new_empty((seen.shape[1], weight.shape[1]))
        for part, best in zip(seen.split(size, 1), out.split(size), strict=True):
            torch.mm(part[0], weight, out=best)
            response = torch.empty_like(best)
            for place in part[1:]:
                torch.maximum(best, torch.mm(place, weight, out=response), out=best)
        ctx.save_for_backward(seen, weight, out)
        ctx.size = size
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        seen, weight, out = ctx.saved_tensors
        total = torch.zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
        parts = (seen.split(ctx.size, 1), out.split(ctx.size), gradient.split(ctx.size))
        for part, best, left in zip(*parts, strict=True):
            left, response, share = left.clone(), torch.empty_like(best), torch.empty_like(best)
            for place in part:
                torch.eq(torch.mm(place, weight, out=response), best, out=response)
                left -= torch.mul(response, left, out=share)
                total += place.mT @ share
        return None, total.to(weight.dtype), None


def pooled(seen: Tensor, weight: Tensor, cells: int) -> Tensor:
    """`Pooled`, of patches with `cells` pools an image."""
    return Pooled.apply(seen, weight, CHUNK * cells)


@torch.no_grad()
def features(images: Tensor, filters: Tensor, found: Moments, *, pool: int) -> Tensor:
    """[n, h·w·K] bfloat16: pooled responses, standardised by the moments of the training patches, rectified."""
    rows, cells = filters.flatten(1).double(), pixels(images.shape[1:], pool)
    deviation = ((rows @ found.raw) * rows).sum(1).clamp(min=0).add(EPSILON).sqrt()
    weight = (rows / deviation[:, None] / LEVELS).mT.bfloat16()
    shift = (LEVELS * found.mean @ weight.double()).bfloat16()
    out = torch.empty((len(images), cells * len(filters)), dtype=torch.bfloat16, device=images.device)
    for part, target in zip(images.split(8 * CHUNK), out.split(8 * CHUNK), strict=True):
        torch.sub(pooled(patches(part, pool), weight, cells), shift, out=target.view(-1, len(filters)))
        target.clamp_(min=0)
    return out


@torch.no_grad()
def mean_of(x: Tensor) -> Tensor:
    """[inputs] of [n, inputs], summed in float32."""
    return (sum(part.sum(0, dtype=torch.float32) for part in x.split(1000)) / len(x)).to(x.dtype)


class Readouts(nn.Module):
    """[B, inputs] → [B, readouts, classes]: linear layers on the same inputs, float32, multiplied as bfloat16."""

    def __init__(self, inputs: int, classes: int, count: int = 1):
        super().__init__()
        self.each = nn.ModuleList(nn.Linear(inputs, classes) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([layer.weight.to(x.dtype) for layer in self.each])
        bias = torch.cat([layer.bias for layer in self.each])
        return (F.linear(x, weight).to(bias.dtype) + bias).unflatten(1, (len(self.each), -1))


class Network(nn.Module):
    """[B, C, H, W] → [B, 1, classes], the paper's figure 2.

    In training, batch norm is by the statistics of the batch; otherwise by `found`, the moments of training patches.
    What is read out is less its mean over the images of `centre` before training, a constant.
    """

    def __init__(self, count: int, found: Moments, shape: tuple[int, ...], classes: int, *, pool: int):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], count, SIDE, bias=False)
        self.scale, self.shift = nn.Parameter(torch.ones(count)), nn.Parameter(torch.zeros(count))
        self.pool, self.cells, self.dtype = pool, pixels(shape, pool), torch.bfloat16
        self.readout = Readouts(count * self.cells, classes)
        self.mean, self.covariance = LEVELS * found.mean.float(), LEVELS**2 * found.raw.float()
        self.offset = torch.zeros(count * self.cells)

    def centre(self, images: Tensor) -> None:
        self.offset = mean_of(self.hidden(images)).float()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return self.readout(hidden - self.offset.to(hidden))

    def hidden(self, x: Tensor) -> Tensor:
        """[B, h·w·K], pooled."""
        seen, rows = patches(x, self.pool, self.dtype), self.conv.weight.flatten(1)
        mean, covariance = self.mean, self.covariance
        if self.training:
            every = seen.flatten(0, 1).to(rows.dtype)
            mean = every.mean(0)
            covariance = every.mT @ every / len(every) - mean.outer(mean)
        deviation = ((rows @ covariance) * rows).sum(1).clamp(min=0).add(EPSILON * LEVELS**2).sqrt()
        weight = (rows * (self.scale / deviation)[:, None]).mT.to(self.dtype)
        shift = self.shift - mean @ weight.to(mean.dtype)
        return F.relu(pooled(seen, weight, self.cells) + shift.to(self.dtype)).view(len(x), -1)


def fit(model: nn.Module, x: Tensor, y: Tensor, plans: list[Schedule], *, seed: int) -> None:
    """Trains the readouts of `model`, each by its plan, in place; all plans have the same batch and epochs."""
    readouts = model.each if isinstance(model, Readouts) else [model]
    groups = [
        {"params": readout.parameters(), "lr": plan.rate, "weight_decay": plan.decay}
        for readout, plan in zip(readouts, plans, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups, fused=True)
    batches = list(zip(x.split(plans[0].batch), y.split(plans[0].batch), strict=True))
    steps, generator = plans[0].epochs * len(batches), torch.Generator().manual_seed(seed)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    model.train()
    for _ in range(plans[0].epochs):
        for index in torch.randperm(len(batches), generator=generator).tolist():
            images, labels = batches[index]
            logits = model(images)
            losses = [
                F.cross_entropy(logits[:, which], labels, label_smoothing=plan.smoothing)
                for which, plan in enumerate(plans)
            ]
            optimiser.zero_grad(set_to_none=True)
            sum(losses).backward()
            optimiser.step()
            decay.step()


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, y: Tensor, chunk: int = 500) -> list[float]:
    """Accuracy of each readout, in [0, 1]."""
    model.eval()
    right = sum(
        (model(images).argmax(2) == labels[:, None]).sum(0)
        for images, labels in zip(x.split(chunk), y.split(chunk), strict=True)
    )
    return (right / len(x)).tolist()
