"""Filters that a local rule learns, or random ones; both can be whitened.

    recipe = Recipe("centred", rule=hk.KrotovHopfield(p=4.0, k=4, patches="centred"))
    filters = make(recipe, images, moments(images), count=400, seed=0)            # [400, 1, 5, 5]

A rule learns from every patch of a set of windows: whole images as published (two of them have 1152 patches), or small
squares cut from many images, so that the 1000 patches of a step come from 64 images and not from two.

Whitening (ZCA). A patch x becomes M(x − μ) with M = (C + ε·tr(C)/N)^(−1/2), where μ is the mean of all training patches
and C their covariance: of centred patches, in which case M removes the mean of each patch, or of patches as they are.
M is symmetric, so a filter w learnt on whitened patches folds back into an ordinary one: w·(Mx) = (Mw)·x, and batch
norm absorbs μ. The network stays a plain convolution of raw images. Random filters can be whitened in the same way.

Shapes: images [n, C, H, W] from 0 to 1; filters [K, C, SIDE, SIDE]; N = C·SIDE². Deterministic in the seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hebbkern as hk
from hebbkern import training

SIDE = 5  # of a filter
CHUNK = 2000  # images whose patches are unfolded at once


class Moments(NamedTuple):
    """Mean [N] of all training patches, and covariance [N, N] of raw and of centred patches, all float64."""

    mean: Tensor
    raw: Tensor
    centred: Tensor


@dataclass(frozen=True)
class Recipe:
    """How filters are made.

    Args:
        name: of the row.
        rule: of the learning; None leaves the filters random.
        lr: of the first epoch; it falls linearly to 0.
        epochs: over the windows.
        window: side of the windows; 0 takes whole images.
        images: number of windows, each cut from another image; images repeat evenly where there are fewer.
        patches: approximate number of patches per step.
        start: standard deviation of the initial weights.
        whiten: ε of ZCA; None does not whiten.
        mean: with whitening, patches keep their mean: C is the covariance of patches as they are.
        contrast: with whitening, each whitened patch is divided by its norm plus this while filters learn.
        centre: whether the mean of each random filter is removed, as centred patches do for filters that learn.
    """

    name: str
    rule: hk.rules.Rule | None = None
    lr: float = 0.04
    epochs: int = 10
    window: int = 8
    images: int = 60_000
    patches: int = 1000
    start: float = 1.0
    whiten: float | None = None
    mean: bool = False
    contrast: float | None = None
    centre: bool = False


def unfold(images: Tensor) -> Tensor:
    """Returns the patches of each image, image by image: [patches, N]."""
    return F.unfold(images, SIDE).mT.flatten(0, 1)


def moments(images: Tensor) -> Moments:
    """Returns the moments of all patches, in one pass over the images."""
    size = images.shape[1] * SIDE**2
    total, square, count = (
        torch.zeros(shape, dtype=torch.float64, device=images.device) for shape in (size, (size,) * 2, ())
    )
    for part in images.split(CHUNK):
        patches = unfold(part)
        total += patches.sum(0, dtype=torch.float64)
        square += (patches.mT @ patches).double()
        count += len(patches)
    mean = total / count
    raw = square / count - mean.outer(mean)
    centring = torch.eye(size, dtype=torch.float64, device=images.device) - 1 / size
    return Moments(mean, raw, centring @ raw @ centring)


def whitener(statistics: Moments, epsilon: float, mean: bool = False) -> Tensor:
    """Returns the symmetric matrix M [N, N], float32; it removes the mean of each patch unless `mean` is True."""
    values, vectors = torch.linalg.eigh(statistics.raw if mean else statistics.centred)
    scale = (values + epsilon * values.mean()).rsqrt()
    if not mean:
        scale[0] = 0  # the constant direction, whose eigenvalue 0 comes first
    return ((vectors * scale) @ vectors.mT).float()


def windows(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Returns a window of each image, at a random place: [n, C, side, side]."""
    rows, columns = (
        torch.randint(images.shape[axis] - side + 1, (len(images), 1), generator=generator) for axis in (2, 3)
    )
    steps = torch.arange(side)
    rows, columns = (rows + steps).to(images.device), (columns + steps).to(images.device)
    index = torch.arange(len(images), device=images.device)
    return images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def make(
    recipe: Recipe, images: Tensor, statistics: Moments, *, count: int, seed: int, progress: bool = False
) -> Tensor:
    """Returns the filters of a recipe: [count, C, SIDE, SIDE]."""
    generator = torch.Generator().manual_seed(seed)
    channels = images.shape[1]
    filters = recipe.start * torch.randn((count, channels, SIDE, SIDE), generator=generator).to(images.device)
    matrix = None if recipe.whiten is None else whitener(statistics, recipe.whiten, recipe.mean)
    if recipe.rule is None and recipe.centre:
        filters -= filters.mean((1, 2, 3), keepdim=True)
    if recipe.rule is not None:
        rounds = range(math.ceil(recipe.images / len(images)))
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in rounds])
        chosen = order[: recipe.images].to(images.device)
        shown = images[chosen] if recipe.window == 0 else windows(images[chosen], recipe.window, generator)
        filters = learn(recipe, filters, shown, statistics, matrix, seed=seed, progress=progress)
    if matrix is not None:
        filters = (filters.flatten(1) @ matrix).view_as(filters)
    return filters


def learn(
    recipe: Recipe,
    filters: Tensor,
    shown: Tensor,
    statistics: Moments,
    matrix: Tensor | None,
    *,
    seed: int,
    progress: bool,
) -> Tensor:
    """Returns the learnt filters: of a convolution on the windows `shown`, or of a linear layer on whitened patches."""
    patches = math.prod(side - SIDE + 1 for side in shown.shape[2:])  # per window
    if matrix is None:
        layer = hk.nn.HebbianConv2d(shown.shape[1], len(filters), SIDE, rule=recipe.rule, device=filters.device)
        size = max(1, round(recipe.patches / patches))
    else:
        mean = statistics.mean.float()
        shown = torch.cat([(unfold(part) - mean) @ matrix for part in shown.split(CHUNK)])
        if recipe.contrast is not None:
            shown /= shown.norm(dim=1, keepdim=True) + recipe.contrast
        layer = hk.nn.HebbianLinear(shown.shape[1], len(filters), rule=recipe.rule, device=filters.device)
        size = recipe.patches
    layer.weight.copy_(filters.view_as(layer.weight))
    batches = training.Batches(shown, batch_size=size, seed=seed)
    training.train(nn.Sequential(layer), batches, lr=recipe.lr, epochs=recipe.epochs, progress=progress)
    return layer.weight.detach().view_as(filters)


def effective_rank(filters: Tensor) -> dict[str, float]:
    """Returns how many directions the filters [K, ...] span: from 1 to the number of weights of a filter.

    With singular values s and q = s/Σs: "entropy" is exp(−Σ q log q) (Roy and Vetterli, The effective rank, 2007),
    "participation" is (Σ s²)² / Σ s⁴.
    """
    values = torch.linalg.svdvals(filters.flatten(1).double())
    shares = values / values.sum()
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
    return {"entropy": entropy.exp().item(), "participation": (values.square().sum() ** 2 / values.pow(4).sum()).item()}
