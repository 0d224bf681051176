"""Patches as tensors: those that a layer sees, blank ones, and patches as the neurons see them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.checks import FLAT

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def drawn_patches(layer: Any, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[groups, at most count, N]: patches of x under a linear layer or a convolution, drawn without replacement.

    Only the drawn patches are copied. A linear layer has one group.
    """
    if isinstance(layer, CONVOLUTIONS):
        axes = len(layer.kernel_size)
        x = x if x.dim() == axes + 2 else x.unsqueeze(0)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        for axis, (size, stride, dilation) in enumerate(
            zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
        ):
            x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        x = x.movedim(1, axes + 1).unflatten(axes + 1, (layer.groups, -1))
    else:
        axes, x = 0, x.reshape(-1, 1, x.shape[-1])
    places = x.shape[: axes + 1]
    chosen = torch.randperm(places.numel(), generator=generator, device="cpu")[:count].to(x.device)
    return x[torch.unravel_index(chosen, places)].flatten(2).transpose(0, 1)


def is_blank(x: Tensor, patches: str) -> Tensor:
    """bool [B]: the rows of x [B, N] that are all zeros or, where patches are centred, flat.

    A row is flat if its norm without the mean is at most FLAT of its norm, as for the operators.
    """
    if patches == "raw":
        return (x.amin(1) == 0) & (x.amax(1) == 0)  # five times as fast as comparing every entry
    return _centred(x).norm(dim=1) <= FLAT * x.norm(dim=1)


def without_blank(x: Tensor, patches: str) -> Tensor:
    """The rows of x [B, N] that are not blank; x itself if there is no blank row."""
    blank = is_blank(x, patches)
    return x[~blank] if blank.any() else x


def as_patches(x: Tensor, patches: str) -> Tensor:
    """The rows of x [B, N], raw, centred or standardised; flat rows become zeros if centred."""
    if patches == "raw":
        return x
    x = _centred(x).masked_fill(is_blank(x, patches)[:, None], 0)
    return x if patches == "centred" else unit_rows(x)


def unit_rows(x: Tensor) -> Tensor:
    """The rows of x [B, N] divided by their norms; zeros stay, in half precision too."""
    return F.normalize(x, eps=torch.finfo(x.dtype).tiny)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)
