"""The filters of the network of krotov_cnn.py: learnt by a local rule, or random; whitened, measured.

    recipe = Recipe("centred", rule=hk.KrotovHopfield(p=4.0, k=4, patches="centred"))
    filters = make(recipe, images, moments(images), count=400, seed=0)            # [400, 1, 5, 5]

A rule sees every patch of a set of windows, square pieces of training images: whole images, as published (two of them
are 1152 patches), or small windows, so that the 1000 patches of a step come from 64 images and not from two.

Whitening (ZCA). A patch x becomes M(x − μ), M = (C + ε·tr(C)/N)^(−1/2), with the mean μ of all training patches and the
covariance C of centred ones, for which M takes the mean of a patch away, or of patches as they are. M is symmetric.
What was learnt on such patches, w, is folded back into an ordinary filter: w·(Mx) = (Mw)·x, and batch norm takes care
of μ. The network stays a plain convolution of raw images; random filters can be whitened just so.

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
    """Of all patches of the training images, float64: mean [N], covariance [N, N] of raw and of centred patches."""

    mean: Tensor
    raw: Tensor
    centred: Tensor


@dataclass(frozen=True)
class Recipe:
    """How filters come about.

    Args:
        name: of the row.
        rule: what they learn by; None leaves them random.
        lr: of the first epoch, falls linearly to 0.
        epochs: over the windows.
        window: side of the windows, 0 = whole images.
        images: how many windows are cut, from as many images; where there are fewer images, from each equally often.
        patches: about how many make a step.
        start: deviation of the normal weights at the start.
        whiten: ε of ZCA; None does not whiten.
        mean: with whitening, each patch keeps its mean (C is the covariance of patches as they are).
        contrast: with whitening, each whitened patch is divided by its norm plus this (at learning only); None is not.
        centre: take the mean out of the random filters (what centred patches do to those that learn).
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
    """[patches, N]: each patch of each image, image by image."""
    return F.unfold(images, SIDE).mT.flatten(0, 1)


def moments(images: Tensor) -> Moments:
    """One pass over all patches of the images."""
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


def whitener(found: Moments, epsilon: float, mean: bool = False) -> Tensor:
    """M [N, N] of the module's docstring, symmetric, float32; the mean of a patch is in its null space, or kept."""
    values, vectors = torch.linalg.eigh(found.raw if mean else found.centred)
    scale = (values + epsilon * values.mean()).rsqrt()
    if not mean:
        scale[0] = 0  # centred patches do not vary along the constant, whose eigenvalue 0 comes first
    return ((vectors * scale) @ vectors.mT).float()


def windows(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """[n, C, side, side]: a window of each image, at a place drawn for it."""
    rows, columns = (
        torch.randint(images.shape[axis] - side + 1, (len(images), 1), generator=generator) for axis in (2, 3)
    )
    steps = torch.arange(side)
    rows, columns = (rows + steps).to(images.device), (columns + steps).to(images.device)
    which = torch.arange(len(images), device=images.device)
    return images[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def make(recipe: Recipe, images: Tensor, found: Moments, *, count: int, seed: int, progress: bool = False) -> Tensor:
    """[count, C, SIDE, SIDE], by the recipe."""
    generator = torch.Generator().manual_seed(seed)
    channels = images.shape[1]
    filters = recipe.start * torch.randn((count, channels, SIDE, SIDE), generator=generator).to(images.device)
    matrix = None if recipe.whiten is None else whitener(found, recipe.whiten, recipe.mean)
    if recipe.rule is None and recipe.centre:
        filters -= filters.mean((1, 2, 3), keepdim=True)
    if recipe.rule is not None:
        rounds = range(math.ceil(recipe.images / len(images)))
        order = torch.cat([torch.randperm(len(images), generator=generator) for _ in rounds])
        chosen = order[: recipe.images].to(images.device)
        seen = images[chosen] if recipe.window == 0 else windows(images[chosen], recipe.window, generator)
        filters = learn(recipe, filters, seen, found, matrix, seed, progress)
    if matrix is not None:
        filters = (filters.flatten(1) @ matrix).view_as(filters)
    return filters


def learn(recipe, filters: Tensor, seen: Tensor, found: Moments, matrix: Tensor | None, seed, progress) -> Tensor:
    """What the filters become: a convolution learns from the windows, or a linear layer from their whitened patches."""
    each = math.prod(side - SIDE + 1 for side in seen.shape[2:])  # patches of a window
    if matrix is None:
        layer = hk.nn.HebbianConv2d(seen.shape[1], len(filters), SIDE, rule=recipe.rule, device=filters.device)
        size = max(1, round(recipe.patches / each))
    else:
        mean = found.mean.float()
        seen = torch.cat([(unfold(part) - mean) @ matrix for part in seen.split(CHUNK)])
        if recipe.contrast is not None:
            seen /= seen.norm(dim=1, keepdim=True) + recipe.contrast
        layer = hk.nn.HebbianLinear(seen.shape[1], len(filters), rule=recipe.rule, device=filters.device)
        size = recipe.patches
    layer.weight.copy_(filters.view_as(layer.weight))
    batches = training.Batches(seen, size=size, seed=seed)
    training.train(nn.Sequential(layer), batches, lr=recipe.lr, epochs=recipe.epochs, progress=progress)
    return layer.weight.detach().view_as(filters)


def effective_rank(filters: Tensor) -> dict[str, float]:
    """How many directions [K, ...] filters span: at least 1, at most the number of weights of a filter.

    With singular values s and shares q = s/Σs: "entropy" is exp(−Σ q log q) (Roy and Vetterli, The effective
    rank, 2007), "participation" is (Σ s²)² / Σ s⁴.
    """
    values = torch.linalg.svdvals(filters.flatten(1).double())
    shares = values / values.sum()
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum()
    return {"entropy": entropy.exp().item(), "participation": (values.square().sum() ** 2 / values.pow(4).sum()).item()}
