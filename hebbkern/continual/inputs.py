"""What HebbCL does to its inputs: checks of samples and labels, blank samples, and patches as the neurons see them."""

from __future__ import annotations

from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern.reference import FLAT

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_shape(x: object, in_features: int) -> Tensor:
    """x, a tensor [B, ...] of in_features inputs a sample, floating or uint8; otherwise raises ValueError."""
    if not isinstance(x, Tensor):
        _refuse("x", "a tensor", type(x).__name__)
    if x.dim() < 2 or x.shape[1:].numel() != in_features:
        _refuse("x", f"[B, ...] of {in_features} inputs a sample", f"shape {list(x.shape)}")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        _refuse("x", "floating or uint8", str(x.dtype).removeprefix("torch."))
    return x


def as_samples(x: Tensor, in_features: int, like: Tensor) -> Tensor:
    """x as [B, in_features] of the dtype of `like`; uint8 is divided by 255. Raises ValueError if x does not fit.

    Values must be finite, and so small that no response or distance overflows.
    """
    check_shape(x, in_features)
    if x.device != like.device:
        _refuse("x", f"on {like.device}, as the weight is", x.device)
    is_image, x = x.dtype == torch.uint8, x.flatten(1).to(like.dtype)
    x = x / 255 if is_image else x
    if not torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32)).isfinite():
        if x.isfinite().all():
            _refuse("x", "small enough to be squared and added", f"up to {x.abs().max():g}")
        _refuse("x", "finite", "a NaN or an infinity")
    return x


def as_labels(x: Tensor, labels: object) -> Tensor:
    """labels as int64 [B], one for each sample of x [B, ...]; raises ValueError if they are not."""
    wanted = f"[{len(x)}] integers, the class of each sample"
    if not isinstance(labels, Tensor):
        _refuse("labels", wanted, "None" if labels is None else type(labels).__name__)
    if labels.dtype not in INTEGERS or labels.shape != x.shape[:1]:
        dtype = str(labels.dtype).removeprefix("torch.")
        _refuse("labels", wanted, f"{dtype} of shape {list(labels.shape)}")
    return labels.to(torch.int64)


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


def _refuse(name: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f"hebbkern.HebbCL: {name} must be {wanted}, got {got}")
