"""The backends: one table of implementations, and the choice of one for each call of an operator.

Each operator of hebbkern.ops has one overload per backend, ``torch.ops.hebbkern.<operator>.<backend>``, and an overload
``default`` that makes the choice when it runs. ``kernel(operator, tensor)`` makes the choice for the public functions:

    hk.backend("auto")      the first backend of the table that supports the tensor
    hk.backend("eager")     plain torch, on any device
    hk.backend("cpu")       the compiled CPU kernels; a tensor elsewhere is an error
    hk.backend("cuda")      the compiled CUDA kernels; likewise (in the tests: emulated, on CPU tensors)
    hk.backend("triton")    the Triton kernels; likewise (with TRITON_INTERPRET=1: interpreted, on CPU tensors)

The choice holds for the whole process, all threads. HEBBKERN_BACKEND=NAME makes it at import.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor

from hebbkern.backends import cpu, cuda, eager, triton
from hebbkern.backends.screening import get_screening, screening, set_screening

__all__ = [
    "BACKENDS", "Backend", "available", "backend", "current", "get_screening", "kernel", "screening", "select",
    "set_screening", "synchronize",
]  # fmt: skip


class Backend:
    """One implementation of the operators: a room of this package, and the overloads that it serves.

    Args:
        room: a module with ``why_not()``, the reason why it cannot run here or None; ``supports(tensor)``, whether its
            kernels take tensors of that device; and ``kernels()``, those of its kernels that are Python functions.
        device: the type of device whose tensors "auto" gives to this backend; None for any.

    Attributes:
        kernels: operator name -> overload; hebbkern.ops.library fills it.
    """

    def __init__(self, name: str, room: ModuleType | None, device: str | None = None):
        self.name, self.room, self.device = name, room, device
        self.kernels: dict[str, torch._ops.OpOverload] = {}

    def why_not(self) -> str | None:
        """Why the backend cannot run here, or None."""
        return self.room.why_not() if self.room else None

    def supports(self, tensor: Tensor) -> bool:
        """Whether the kernels take tensors of this one's device; "meta" tensors have shapes only, which all take."""
        return tensor.device.type == "meta" or self.room is None or self.room.supports(tensor)

    def refuse(self, operator: str, tensor: Tensor) -> NoReturn:
        """Raise ValueError: the kernels do not take ``tensor``."""
        raise ValueError(
            f"hebbkern.{operator}: backend must be one that takes tensors on {tensor.device}, got {self.name!r} "
            '(hk.backend("auto") chooses one)'
        )


AUTO = Backend("auto", None)  # its overloads are "default", which choose when they run
BACKENDS = {  # in the order in which "auto" asks them
    "cuda": Backend("cuda", cuda, "cuda"),
    "triton": Backend("triton", triton, "cuda"),
    "cpu": Backend("cpu", cpu, "cpu"),
    "eager": Backend("eager", eager),
}
NAMES = ("auto", *sorted(BACKENDS))

_selected = AUTO
_serving: dict[torch.device, Backend] = {}  # what the selection comes to, by device


def kernel(operator: str, tensor: Tensor) -> torch._ops.OpOverload:
    """The overload of ``operator`` that a public function calls with ``tensor`` as its first argument.

    A graph of torch.compile guards on the selection; "auto" is resolved when the graph is made (hebbkern.ops.library).
    """
    if torch.compiler.is_compiling():
        return _selected.kernels[operator]
    return (_serving.get(tensor.device) or serving(operator, tensor)).kernels[operator]


def serving(operator: str, tensor: Tensor) -> Backend:
    """The backend that serves tensors of this device under the present selection. Raises ValueError if none does."""
    if _selected is AUTO:
        chosen = next(
            backend
            for backend in BACKENDS.values()
            if backend.device in (tensor.device.type, None) and backend.supports(tensor)
        )
        if chosen.name == "eager" and tensor.device.type != "meta":
            _warn_once(tensor.device.type)
    else:
        chosen = _selected
        if not chosen.supports(tensor):
            chosen.refuse(operator, tensor)
    _serving[tensor.device] = chosen
    return chosen


@functools.cache
def _warn_once(device: str) -> None:
    reasons = [
        f"{b.name}: {b.why_not() or 'it has no code for this GPU'}" for b in BACKENDS.values() if b.device == device
    ]
    warnings.warn(
        f"hebbkern: no compiled kernels for {device} tensors, plain torch runs instead, which is slower "
        f"({'; '.join(reasons) or f'this version has none for {device}'}). "
        "`hebbkern doctor` says what to do; HEBBKERN_BACKEND=eager asks for plain torch without this warning.",
        RuntimeWarning,
        stacklevel=5,
    )


def available() -> dict[str, str | None]:
    """Each backend's name, with None if it can run here, or the reason why it cannot."""
    return {name: BACKENDS[name].why_not() for name in NAMES[1:]}


def current() -> str:
    """The name that ``select``, ``backend`` or HEBBKERN_BACKEND chose; "auto" if none did."""
    return _selected.name


def select(name: str) -> None:
    """Choose the backend of every operator for the whole process, all threads.

    Raises:
        ValueError: no backend has this name.
        RuntimeError: the backend cannot run here; the message says why.
    """
    global _selected
    if name not in NAMES:
        raise ValueError(f"hebbkern.backend: name must be one of {', '.join(NAMES)}, got {name!r}")
    chosen = AUTO if name == "auto" else BACKENDS[name]
    if reason := chosen.why_not():
        raise RuntimeError(f"hebbkern: the backend {name!r} is not available: {reason}")
    _selected = chosen
    _serving.clear()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Context in which the operators run on the backend ``name``, in all threads of the process.

    Args:
        name: "auto", "cpu", "cuda", "eager" or "triton".

    Raises:
        ValueError: no backend has this name. An operator inside raises it for a tensor that the backend does not take.
        RuntimeError: the backend cannot run here; the message says why.
    """
    before = current()
    select(name)
    try:
        yield
    finally:
        select(before)


def synchronize(device: torch.device | str | int | None = None) -> None:
    """Wait for ``device`` and raise RuntimeError if steps were skipped there.

    On a GPU no operator waits to see whether numbers are finite. A step with a NaN or an infinity is skipped there: the
    weights stay, and the step is counted. The next step by the same kernels raises if the count is known by then; this
    function makes sure.

    Args:
        device: a GPU; None for all devices on which steps were taken.

    Raises:
        RuntimeError: steps were skipped; the message says how many.
    """
    device = None if device is None else torch.device(device)
    if device is not None and device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    triton.report_skipped(device)
    cuda.report_skipped(device)


select(os.environ.get("HEBBKERN_BACKEND") or "auto")
