"""The coefficients by which patches teach, where they are the same in every batch: made once, then shared."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hebbkern.ops.checks import result_dtype

KEPT = 256  # of each: values, dtype and device; the least recently used goes


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """values as a [k] tensor in the result dtype of `like`, on its device; kept, except while tracing."""
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return torch.tensor(values, dtype=result_dtype(like.dtype), device=like.device)
    return _kept(values, result_dtype(like.dtype), like.device)


@functools.lru_cache(maxsize=KEPT)
def _kept(values, dtype, device):
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
