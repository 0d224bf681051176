"""What a workload runs on a GPU by the Triton kernels: their launches, and ATen's operators. No GPU is needed.

``trace(workload)`` runs it on tensors without memory. Nothing is compiled, launched or computed.
"""

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hebbkern.backends.triton.arithmetic import precision
from hebbkern.backends.triton.launch import recorded
from hebbkern.backends.triton.launchers import LAUNCHERS

from .workloads import empty, settings_of


@dataclass
class AtenCall:
    """A call of an ATen operator: its tensors, its multiplications and additions, and how fast they are computed."""

    name: str
    tensors: list
    flops: int
    rate: str  # of roofline.FLOPS


@dataclass
class Trace:
    """Of one workload: the launches, ATen's operators, and the bytes that every implementation must move."""

    launches: list
    aten: list
    order: list  # both kinds, as they come
    unavoidable: int = 0


class _Recorder(TorchDispatchMode):
    """Runs hebbkern's operators by Triton's launchers on every backend, and records ATen's operators."""

    FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "alias")
    FREE += ("detach", "detach_")

    def __init__(self, launches):
        super().__init__()
        self.launches, self.calls = launches, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "hebbkern":
            with self:
                return LAUNCHERS[function._opname](*args)
        if function.namespace == "aten" and function._overloadpacket not in flop_registry:
            with self:
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view and function._opname not in self.FREE:
            call = _aten_call(function, args, kwargs or {}, result)
            if not _cached(call):
                self.calls.append((len(self.launches), call))
        return result


def _cached(call):
    """Whether the call makes constants or the count of skipped steps, which only tensors without memory make anew."""
    tensors = call.tensors
    return any(t.device.type == "cpu" for t in tensors) or (call.name == "zeros" and sum(map(size, tensors)) == 4)


def _aten_call(function, args, kwargs, result):
    tensors = [*_tensors(args), *_tensors(kwargs.values()), *_tensors([result])]
    packet, flops = function._overloadpacket, 0
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=result)
    return AtenCall(function._opname, tensors, flops, _rate(function._opname, tensors))


def _rate(name, tensors):
    """How fast ATen multiplies, which for float32 depends on torch's settings."""
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
    if dtype != torch.float32:
        return "fp64" if dtype == torch.float64 else "half"
    exact = precision() == "ieee"
    if name.startswith("convolution"):
        exact = torch.backends.cudnn.conv.fp32_precision == "ieee"
    return "fp32" if exact else "tf32"


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def address(tensor):
    """The storage and offset of a tensor: the same for all views that start at one entry."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def size(tensor):
    """Bytes of the entries, each counted once: a dimension of stride 0 repeats them."""
    entries = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        entries *= length if stride else 1
    return entries * tensor.element_size()


def trace(workload):
    """The Trace of ``workload``."""
    with settings_of(workload), FakeTensorMode(), recorded() as launches:
        x, w = (empty(shape, workload.dtype, "cuda") for shape in (workload.x, workload.w))
        extra = workload.extra(x, w)
        with _Recorder(launches) as recorder:
            result = workload.run(x, w, **extra)
    inputs, outputs = [x, w, *extra.values()], [w] if result is None else [result]
    order = list(launches)
    for before, call in reversed(recorder.calls):
        order.insert(before, call)
    touched = {address(t) for launch in launches for t in _tensors(launch.arguments)}
    touched |= {address(t) for _, call in recorder.calls for t in call.tensors}
    needed = [tensor for tensor in _tensors(inputs) if address(tensor) in touched]
    unavoidable = sum(map(size, [*needed, *_tensors(outputs)]))
    return Trace(launches, [call for _, call in recorder.calls], order, unavoidable)
