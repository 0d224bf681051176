"""The backend "cpu": C++ kernels for CPU tensors (csrc/cpu), registered by hebbkern._cpu as overloads "cpu"."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hebbkern.backends import extensions


def why_not() -> str | None:
    """Why the backend cannot run here, or None."""
    return extensions.load("cpu")[1]


def supports(tensor: Tensor) -> bool:
    """Whether the kernels take tensors of this one's device."""
    return tensor.device.type == "cpu" and why_not() is None


def kernels() -> dict[str, Callable]:
    """The kernels that are Python functions: none, all are compiled."""
    return {}
