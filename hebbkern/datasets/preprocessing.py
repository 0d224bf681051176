"""Preprocessing of images: centring, standardising and whitening, fitted on the training set.

    fitted = zca(x_train)
    x_train, x_test = fitted(x_train), fitted(x_test)

Fits are in float64 and read the images in chunks: in addition to the images they need the memory of a chunk and, for
`zca`, of a few [inputs, inputs] matrices. The same images give the same bits on the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PREPROCESS = ("none", "centre", "standardise", "zca")
EPSILON = 1e-2  # for images from 0 to 1: components with a deviation below 0.1 count as noise and are not amplified
CHUNK = 2048  # images at a time


@dataclass(frozen=True)
class Preprocessing:
    """x → ((x − mean) / deviation) or (x − mean) · matrix, on images flattened to [n, inputs].

    Attributes:
        mean: [inputs] float32.
        deviation: [inputs] float32, or None for no division.
        matrix: [inputs, inputs] float32, symmetric, or None for no whitening.
        shape: of one training image.
    """

    mean: Tensor
    shape: tuple[int, ...]
    deviation: Tensor | None = None
    matrix: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Returns x [n, ...] as new float32 images. Raises ValueError for images of another shape."""
        return self.apply_(x.to(torch.float32, copy=True, memory_format=torch.contiguous_format))

    def apply_(self, x: Tensor) -> Tensor:
        """Does the same in place, on contiguous float32 images, with the memory of a chunk; returns x."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"hebbkern.datasets: x must have the shape that was fitted, {list(self.shape)}, got {list(x.shape[1:])}"
            )
        for part in x.view(len(x), -1).split(CHUNK):
            part -= self.mean
            if self.deviation is not None:
                part /= self.deviation
            if self.matrix is not None:
                part.copy_(part @ self.matrix)
        return x


def check_preprocess(preprocess: str) -> None:
    if preprocess not in PREPROCESS:
        names = ", ".join(f'"{name}"' for name in PREPROCESS[:-1])
        raise ValueError(f'hebbkern.datasets: preprocess must be {names} or "{PREPROCESS[-1]}", got "{preprocess}"')


def fit(preprocess: str, x: Tensor, *, epsilon: float = EPSILON) -> Preprocessing | None:
    """Fits the transformation `preprocess` to the training images x; None for "none". See the functions below."""
    check_preprocess(preprocess)
    if preprocess == "zca":
        return zca(x, epsilon=epsilon)
    return None if preprocess == "none" else {"centre": centre, "standardise": standardise}[preprocess](x)


def centre(x: Tensor) -> Preprocessing:
    """Fits the removal of the mean image, the mean of each input (pixel of a channel) over the training images.

    Args:
        x: training images, floats [n, inputs] or [n, channels, height, width].

    Raises:
        ValueError: there are no images, or they hold a NaN or an infinity.
    """
    return Preprocessing(_mean(x).float(), tuple(x.shape[1:]))


def standardise(x: Tensor) -> Preprocessing:
    """Fits mean 0 and deviation 1 of each channel over all pixels of the training images ([n, inputs]: each input).

    Deviations divide by n, not n − 1. A channel or an input that does not vary is only centred.

    Args:
        x: training images, floats [n, inputs] or [n, channels, height, width].

    Raises:
        ValueError: as for `centre`, or no channel varies.
    """
    mean = _mean(x)
    pixels = x[0, 0].numel() if x.dim() > 2 else 1  # a channel's pixels share a mean and a deviation
    mean = _per_channel(mean, pixels)
    square = sum(((part - mean).square_().sum(0) for part in _chunks(x)), torch.zeros_like(mean))
    deviation = _per_channel(square / len(x), pixels).sqrt()
    varies = deviation > 1e-7 * mean.abs().clamp(min=1e-30)  # rounding of a float32 constant gives less
    if not varies.any():
        raise ValueError("hebbkern.datasets: the training images must vary to be standardised, got constant ones")
    deviation[~varies] = 1
    return Preprocessing(mean.float(), tuple(x.shape[1:]), deviation=deviation.float())


def zca(x: Tensor, *, epsilon: float = EPSILON) -> Preprocessing:
    """Fits ZCA whitening: (x − mean) U (Λ + ε)^−½ Uᵀ, with U Λ Uᵀ the covariance of the flattened training images.

    The result has the covariance U Λ/(Λ + ε) Uᵀ, which tends to the identity as ε tends to 0. Of all whitenings it is
    the nearest to the images (Krizhevsky, Learning multiple layers of features from tiny images, 2009, appendix A).

    Loading CIFAR-10 (60,000 x 3072) with it takes 1.8 GiB at most, as without it, and about 50 s more of processor
    time, which the threads share.

    Args:
        x: training images, floats [n, inputs] or [n, channels, height, width]; n > inputs, because fewer images do not
            determine the covariance.
        epsilon: ε, above 0, in squared units of the images.

    Raises:
        ValueError: there are too few images, they are constant or not finite, or epsilon is not above 0.
    """
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"hebbkern.datasets: epsilon must be a finite number above 0, got {epsilon}")
    inputs = x[0].numel() if len(x) else 0
    if len(x) <= inputs:
        raise ValueError(
            f"hebbkern.datasets: the training images must be more than their inputs ({inputs}) for zca, got {len(x)}"
        )
    mean = _mean(x)
    covariance = torch.zeros(inputs, inputs, dtype=torch.float64, device=x.device)
    for part in _chunks(x):
        part = part - mean
        covariance.addmm_(part.T, part, alpha=1 / len(x))
    if not covariance.diagonal().max() > 1e-14 * mean.square().max():
        raise ValueError("hebbkern.datasets: the training images must vary to be whitened, got constant ones")
    variance, axes = torch.linalg.eigh(covariance)
    scale = (variance.clamp_(min=0) + epsilon).rsqrt_()
    return Preprocessing(mean.float(), tuple(x.shape[1:]), matrix=((axes * scale) @ axes.T).float())


def _mean(x: Tensor) -> Tensor:
    """[inputs] float64; refuses images without a finite mean."""
    if len(x) == 0 or not x.is_floating_point():
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(
            f"hebbkern.datasets: the training images must be floats, at least one, got {len(x)} of {dtype}"
        )
    mean = sum((part.sum(0) for part in _chunks(x)), x.new_zeros((), dtype=torch.float64)) / len(x)
    if not mean.isfinite().all():
        raise ValueError("hebbkern.datasets: the training images must be finite, got a NaN or an infinity")
    return mean


def _per_channel(values: Tensor, pixels: int) -> Tensor:
    """Replaces the values of each channel by their mean."""
    return values.view(-1, pixels).mean(1).repeat_interleave(pixels)


def _chunks(x: Tensor) -> Iterator[Tensor]:
    """[≤ CHUNK, inputs] in float64"""
    return (part.flatten(1).double() for part in x.split(CHUNK))
