"""What a workload runs on a GPU by the kernels of csrc/cuda: their launches, and ATen's operators. No GPU is needed.

``trace(workload)`` runs it with the kernels that python_tests/helpers/cuda_host.py has compiled for the CPU
(HEBBKERN_CUDA_HOST). Their launches are recorded, as for the 132 multiprocessors of an H100, and do not run; ATen's
operators do, on uninitialised memory. A record holds the kernel, the grid and the call of the operator.
"""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import hebbkern as hk

from . import triton_recording
from .triton_recording import _Recorder as Recorder
from .workloads import empty, settings_of

RECORD_ONLY = 2
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@dataclass
class Launch:
    """One recorded launch, by its kernel's short name ("compete.exact") and instance (cuda_code.py)."""

    kernel: str
    grid: tuple
    threads: int
    shared: int  # bytes, dynamic
    instance: str
    call: SimpleNamespace = field(repr=False, default=None)  # the operator's name and arguments
    before: tuple = ()  # the grid of the launch before


def missing():
    """Why nothing can be recorded, or None."""
    if "_cuda_host" not in sys.modules:
        return "python_tests/helpers/cuda_host.py has not built the emulated kernels, or HEBBKERN_CUDA_HOST is not set"
    return hk.backends.available()["cuda"]


def serves(operator):
    """Whether csrc/cuda has a kernel for ``operator`` (torch.ops.hebbkern.compete.cuda), or Python composes one."""
    composed = getattr(hk.backends.cuda, "kernels", dict)()
    return operator._opname in composed or torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU")


class _Mode(TorchDispatchMode):
    """Runs hebbkern's operators and records launches and ATen's operators, in turn, in ``order``."""

    def __init__(self):
        super().__init__()
        self.module, self.order, self.calls = sys.modules["_cuda_host"], [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "hebbkern":
            if not serves(function):
                raise NotImplementedError(f"csrc/cuda has no kernel for {function._opname}")
            self.calls.append(_call(function, args))
            with self:
                result = function.redispatch(CPU, *args, **kwargs)
            self._record_launches()
            self.calls.pop()
            return result
        if function.namespace == "aten" and function._overloadpacket not in flop_registry:
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        if function.namespace == "aten" and not function.is_view and function._opname not in Recorder.FREE:
            self._record_launches()
            self.order.append(triton_recording._aten_call(function, args, kwargs, result))
        return result

    def _record_launches(self):
        """Adds the launches since the last entry to ``order``."""
        call = self.calls[-1] if self.calls else None
        for recorded in self.module.launches():
            before = self.order[-1].grid if self.order and isinstance(self.order[-1], Launch) else ()
            self.order.append(Launch(*recorded, call, before))
        self.module.note(RECORD_ONLY)


def launches(order):
    """The launches of a trace."""
    return [work for work in order if isinstance(work, Launch)]


def _call(function, args):
    named = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)}
    if "taught" in named:  # the name of both before they were renamed
        named["targets" if function._opname == "accumulate" else "scaled"] = named.pop("taught")
    return SimpleNamespace(operator=function._opname, **named)


def trace(workload):
    """[Launch or AtenCall, in turn] of ``workload``; NotImplementedError names an operator without kernels."""
    with settings_of(workload), hk.backend("cuda"):
        x, w = (empty(shape, workload.dtype, "cpu") for shape in (workload.x, workload.w))
        extra, mode = workload.extra(x, w), _Mode()
        mode.module.note(RECORD_ONLY)
        try:
            with mode:
                workload.run(x, w, **extra)
            return mode.order
        finally:
            mode.module.note(0)
