"""The backend "eager": plain torch, for tensors on any device. Nothing needs to be compiled."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hebbkern.backends.eager.kernels import KERNELS


def why_not() -> str | None:
    """Why the backend cannot run here: it always can."""
    return None


def supports(tensor: Tensor) -> bool:
    """Whether the kernels take tensors of this one's device: they take any."""
    return True


def kernels() -> dict[str, Callable]:
    """The kernels that are Python functions: all of them."""
    return KERNELS
