"""What a workload would run on a GPU by the kernels of csrc/cuda: their launches, and ATen's operators.

``trace(workload)`` runs it with the kernels compiled for the CPU (HEBBKERN_CUDA_HOST, python_tests/helpers/cuda_host.py), whose
launches are only noted down, as for the 132 multiprocessors of an H100. ATen's operators do run, on whatever is in
memory. Of a launch nothing is known but its kernel and grid, and the operator's call that it belongs to.
"""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import hebbkern as hk
from hebbkern.benchmark import recording
from hebbkern.benchmark.recording import _Recorder as Recorder
from hebbkern.benchmark.workloads import laid_out, settings_of

ONLY_NOTE = 2
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@dataclass
class Launch:
    """One launch that was noted down, by its kernel's short name ("compete.exact") and instance (cuda_code.py)."""

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
        return "the emulated kernels are not built (python_tests/helpers/cuda_host.py), or HEBBKERN_CUDA_HOST does not name them"
    return hk.backends.available()["cuda"]


def serves(operator):
    """Whether csrc/cuda has a kernel for ``operator`` (torch.ops.hebbkern.compete.cuda)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU")


class _Mode(TorchDispatchMode):
    """Lets hebbkern's operators run, ATen's beneath them in sight; ``order`` is what came, in turn."""

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
            self._catch_up()
            self.calls.pop()
            return result
        if function.namespace == "aten" and function._overloadpacket not in flop_registry:
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        if function.namespace == "aten" and not function.is_view and function._opname not in Recorder.FREE:
            self._catch_up()
            self.order.append(recording._aten_call(function, args, kwargs, result))
        return result

    def _catch_up(self):
        """The launches since the last entry."""
        call = self.calls[-1] if self.calls else None
        for noted in self.module.launches():
            before = self.order[-1].grid if self.order and isinstance(self.order[-1], Launch) else ()
            self.order.append(Launch(*noted, call, before))
        self.module.note(ONLY_NOTE)


def launches(order):
    """The launches among what ``trace`` returned."""
    return [work for work in order if isinstance(work, Launch)]


def _call(function, args):
    named = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)}
    return SimpleNamespace(operator=function._opname, **named)


def trace(workload):
    """[Launch or AtenCall, in turn] of ``workload``; NotImplementedError names an operator without kernels."""
    with settings_of(workload), hk.backend("cuda"):
        x, w = (laid_out(shape, workload.dtype, "cpu") for shape in (workload.x, workload.w))
        extra, mode = workload.extra(x, w), _Mode()
        mode.module.note(ONLY_NOTE)
        try:
            with mode:
                workload.run(x, w, **extra)
            return mode.order
        finally:
            mode.module.note(0)
