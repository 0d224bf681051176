"""The network, convolution → batch norm → ReLU → max pool → linear, trained in one of two ways.

`features` computes the pooled responses of given filters once, for readouts (common/readouts.py) to train on. They are
bfloat16: 29 kB per image of 28x28 with 400 filters and pools of 4, 115 kB with pools of 2. The linear layer absorbs
the scale of batch norm, whose shift stays 0 (shifts of −1 to 0.7 for all filters were no better on validation data);
the power of RePU is 1. The experiment subtracts the mean of the training features: the bias of the linear layer can
represent it, but Adam learns faster without it (random filters gain a point in 8 epochs).

`Network` trains everything end to end.

Both pool the responses before batch norm and ReLU, which commute with a maximum once batch norm is folded into the
filters, sign and all. The statistics of batch norm follow exactly from the mean μ and the covariance C of the patches:
w·μ and wᵀCw. What remains is a matrix product and a maximum for each place of a pool, both in the processor's cache.

Shapes: images [n, C, H, W] from 0 to 1; filters [K, C, SIDE, SIDE]; N = C·SIDE². The pool divides H − SIDE + 1 and
W − SIDE + 1. Deterministic in the seed, on one machine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.papers.common.readouts import Readouts, mean_of
from examples.papers.krotov_hopfield.filters import SIDE, Moments

EPSILON = 1e-5  # of batch norm
LEVELS = 255  # 8-bit images times LEVELS are exact in bfloat16
CHUNK = 16  # images whose responses at one place of a pool fit into the cache


def pixels(shape: tuple[int, ...], pool: int) -> int:
    """Returns the number of places per channel after pooling, for images [C, H, W]."""
    return (shape[1] - SIDE + 1) // pool * ((shape[2] - SIDE + 1) // pool)


def patches(images: Tensor, pool: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Returns, for each place in a pool, the patches there times LEVELS: [pool², n·h·w, N]."""
    cut = (images * LEVELS).to(dtype).unfold(2, SIDE, 1).unfold(3, SIDE, 1)
    height, width = cut.shape[2] // pool, cut.shape[3] // pool
    cut = cut.unflatten(3, (width, pool)).unflatten(2, (height, pool))  # [n, C, h, pool, w, pool, SIDE, SIDE]
    return cut.permute(3, 5, 0, 2, 4, 1, 6, 7).reshape(pool**2, -1, images.shape[1] * SIDE**2)


class Pooled(torch.autograd.Function):
    """The largest response of each filter in each pool: patches [places, cells, N], weights [N, K] → [cells, K].

    The gradient goes to the first of the places with the largest response, as torch's does.
    """

    @staticmethod
    def forward(ctx, patches: Tensor, weight: Tensor, size: int) -> Tensor:
        out = patches.new_empty((patches.shape[1], weight.shape[1]))
        for part, best in zip(patches.split(size, 1), out.split(size), strict=True):
            torch.mm(part[0], weight, out=best)
            response = torch.empty_like(best)
            for place in part[1:]:
                torch.maximum(best, torch.mm(place, weight, out=response), out=best)
        ctx.save_for_backward(patches, weight, out)
        ctx.size = size
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, None]:
        patches, weight, out = ctx.saved_tensors
        total = torch.zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
        parts = (patches.split(ctx.size, 1), out.split(ctx.size), gradient.split(ctx.size))
        for part, best, remaining in zip(*parts, strict=True):
            remaining, response, share = remaining.clone(), torch.empty_like(best), torch.empty_like(best)
            for place in part:
                torch.eq(torch.mm(place, weight, out=response), best, out=response)
                remaining -= torch.mul(response, remaining, out=share)
                total += place.mT @ share
        return None, total.to(weight.dtype), None


def pooled(patches: Tensor, weight: Tensor, cells: int) -> Tensor:
    """Returns `Pooled` of patches with `cells` pools per image."""
    return Pooled.apply(patches, weight, CHUNK * cells)


@torch.no_grad()
def features(images: Tensor, filters: Tensor, statistics: Moments, *, pool: int) -> Tensor:
    """Returns pooled responses, standardised by the moments of the training patches and rectified.

    [n, h·w·K] bfloat16.
    """
    rows, cells = filters.flatten(1).double(), pixels(images.shape[1:], pool)
    deviation = ((rows @ statistics.raw) * rows).sum(1).clamp(min=0).add(EPSILON).sqrt()
    weight = (rows / deviation[:, None] / LEVELS).mT.bfloat16()
    shift = (LEVELS * statistics.mean @ weight.double()).bfloat16()
    out = torch.empty((len(images), cells * len(filters)), dtype=torch.bfloat16, device=images.device)
    for part, target in zip(images.split(8 * CHUNK), out.split(8 * CHUNK), strict=True):
        torch.sub(pooled(patches(part, pool), weight, cells), shift, out=target.view(-1, len(filters)))
        target.clamp_(min=0)
    return out


class Network(nn.Module):
    """The paper's figure 2: [B, C, H, W] → [B, 1, classes].

    In training mode batch norm takes the statistics of the batch, in evaluation mode `statistics`, the moments of the
    training patches. `centre` sets a constant that is subtracted from what the linear layer reads.
    """

    def __init__(self, count: int, statistics: Moments, shape: tuple[int, ...], classes: int, *, pool: int):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], count, SIDE, bias=False)
        self.scale, self.shift = nn.Parameter(torch.ones(count)), nn.Parameter(torch.zeros(count))
        self.pool, self.cells, self.dtype = pool, pixels(shape, pool), torch.bfloat16
        self.readout = Readouts(count * self.cells, classes)
        self.mean, self.covariance = LEVELS * statistics.mean.float(), LEVELS**2 * statistics.raw.float()
        self.offset = torch.zeros(count * self.cells)

    def centre(self, images: Tensor) -> None:
        """Sets the constant to the mean of the hidden responses to these images."""
        self.offset = mean_of(self.hidden(images)).float()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return self.readout(hidden - self.offset.to(hidden))

    def hidden(self, x: Tensor) -> Tensor:
        """Returns the pooled responses [B, h·w·K]."""
        places, rows = patches(x, self.pool, self.dtype), self.conv.weight.flatten(1)
        mean, covariance = self.mean, self.covariance
        if self.training:
            every = places.flatten(0, 1).to(rows.dtype)
            mean = every.mean(0)
            covariance = every.mT @ every / len(every) - mean.outer(mean)
        deviation = ((rows @ covariance) * rows).sum(1).clamp(min=0).add(EPSILON * LEVELS**2).sqrt()
        weight = (rows * (self.scale / deviation)[:, None]).mT.to(self.dtype)
        shift = self.shift - mean @ weight.to(mean.dtype)
        return F.relu(pooled(places, weight, self.cells) + shift.to(self.dtype)).view(len(x), -1)
