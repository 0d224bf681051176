"""Checks of the samples and labels that HebbCL gets."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

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


def _refuse(name: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f"hebbkern.HebbCL: {name} must be {wanted}, got {got}")
