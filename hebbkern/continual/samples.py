"""What neurons are shown: samples as patches, and without the blank ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern.reference import FLAT


def blank(x: Tensor, patches: str) -> Tensor:
    """bool [B]: rows of x [B, N] in which nothing is to be seen, all zeros, or flat where patches are centred.

    Flat is what the operators call so: what is left of the norm without the mean is at most FLAT of it.
    """
    if patches == "raw":
        return (x.amin(1) == 0) & (x.amax(1) == 0)  # a fifth of the time of comparing every entry
    return _centred(x).norm(dim=1) <= FLAT * x.norm(dim=1)


def seen(x: Tensor, patches: str) -> Tensor:
    """The rows of x that are not blank."""
    nothing = blank(x, patches)
    return x[~nothing] if nothing.any() else x


def as_patches(x: Tensor, patches: str) -> Tensor:
    """Rows of x as the neurons see them: raw, centred or standardised, flat ones zeros in the last case."""
    if patches == "raw":
        return x
    if patches == "centred":
        return _centred(x)
    return normalised(_centred(x)).masked_fill(blank(x, patches)[:, None], 0)


def normalised(x: Tensor) -> Tensor:
    """Rows of norm 1; zeros stay, in half precision too."""
    return F.normalize(x, eps=torch.finfo(x.dtype).tiny)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)
