"""What neurons are shown: samples as rows of the weight's dtype, as patches, and without the blank ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def blank(x: Tensor, patches: str) -> Tensor:
    """bool [B]: rows of x [B, N] in which nothing is to be seen, all zeros, or all equal where patches are centred.

    A NaN is something.
    """
    low, high = x.amin(1), x.amax(1)  # a fifth of the time of comparing every entry
    return (low == high) & (low == 0) if patches == "raw" else low == high


def seen(x: Tensor, patches: str) -> Tensor:
    """The rows of x that are not blank."""
    nothing = blank(x, patches)
    return x[~nothing] if nothing.any() else x


def as_patches(x: Tensor, patches: str) -> Tensor:
    """Rows of x as the neurons see them: raw, centred or standardised."""
    if patches != "raw":
        x = x - x.mean(1, keepdim=True)
    return F.normalize(x) if patches == "standardised" else x
