"""The backend "triton": Triton kernels for GPU tensors, which need no compiler beside the one that pip installs.

One module a stage, as in csrc/cuda: it holds the kernels of one operator and the launcher, a function with the
arguments of the operator's schema. On a GPU no launcher reads a value, because reading would wait for the device:
``apply`` finds what is not finite, skips the step, counts it, and a later call raises (``hebbkern.synchronize``). With
TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly, and bad values raise at once.

This module imports triton only when a kernel is first used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPERATORS = (
    "accumulate", "apply_", "compete", "dense_step_", "dense_update", "kwinners", "nearest_patch", "winner_step_"
)  # fmt: skip


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels; triton reads the variable once, when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not() -> str | None:
    """Why the backend cannot run here, or None."""
    if not _installed():
        return "triton is not installed; CUDA builds of torch for Linux bring it, pip install triton does"
    if _interpreted() or torch.cuda.is_available():
        return None
    return "no GPU is found (TRITON_INTERPRET=1 runs it on the CPU, slowly)"


def supports(tensor: Tensor) -> bool:
    """Whether the kernels take tensors of this one's device."""
    return _installed() and tensor.device.type == ("cpu" if _interpreted() else "cuda")


def kernels() -> dict[str, Callable]:
    """The kernels that are Python functions: all of them."""
    return {name: functools.partial(_run, name) for name in OPERATORS} if _installed() else {}


def _run(name: str, tensor: Tensor, *arguments: Any) -> Any:
    from hebbkern.backends.triton.launchers import LAUNCHERS

    if tensor.device.type != "cuda":
        return LAUNCHERS[name](tensor, *arguments)
    with torch.cuda.device(tensor.device):
        return LAUNCHERS[name](tensor, *arguments)


def trace(name: str, *arguments: Any) -> Any:
    """The operator ``name`` as nodes of the graph that torch.compile makes."""
    from hebbkern.backends.triton.launch import traced
    from hebbkern.backends.triton.launchers import LAUNCHERS

    with traced():
        return LAUNCHERS[name](*arguments)


def report_skipped(device: torch.device | None) -> None:
    """Wait for `device`, or all devices, and raise RuntimeError if steps were skipped there."""
    if status := sys.modules.get("hebbkern.backends.triton.status"):  # not imported: no step was taken
        status.report_skipped(device)
