"""What a workload would run on a GPU, which need not be there: our kernels' launches, and ATen's operators.

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
from hebbkern.benchmark.workloads import laid_out, settings_of


@dataclass
class AtenCall:
    """An operator of torch's own: what it reads and writes, its multiplications and additions, how they are done."""

    name: str
    tensors: list
    flops: int
    rate: str  # of roofline.FLOPS


@dataclass
class Trace:
    """Of one workload: launches of our kernels, operators of torch's, and the bytes that no way of doing it spares."""

    launches: list
    aten: list
    order: list  # both kinds, as they come
    unavoidable: int = 0


class _Recorder(TorchDispatchMode):
    """Runs hebbkern's operators by Triton's launchers, whatever backend is chosen, and writes down ATen's."""

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
            if not _kept(call):
                self.calls.append((len(self.launches), call))
        return result


def _kept(call):
    """Whether it makes what only tensors without memory make in every step: constants, the count of skipped steps."""
    tensors = call.tensors
    return any(t.device.type == "cpu" for t in tensors) or (call.name == "zeros" and sum(map(size, tensors)) == 4)


def _aten_call(function, args, kwargs, result):
    tensors = [*_tensors(args), *_tensors(kwargs.values()), *_tensors([result])]
    packet, flops = function._overloadpacket, 0
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=result)
    return AtenCall(function._opname, tensors, flops, _rate(function._opname, tensors))


def _rate(name, tensors):
    """How ATen multiplies now, which torch's settings say for float32."""
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


def place(tensor):
    """Where it lies: the same for views from the same entry on."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset()


def size(tensor):
    """Bytes of its entries, each once: a dimension of stride 0 repeats them."""
    entries = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        entries *= length if stride else 1
    return entries * tensor.element_size()


def trace(workload):
    """What ``workload`` would run on a GPU, which need not be there."""
    with settings_of(workload), FakeTensorMode(), recorded() as launches:
        x, w = (laid_out(shape, workload.dtype, "cuda") for shape in (workload.x, workload.w))
        extra = workload.extra(x, w)
        with _Recorder(launches) as recorder:
            result = workload.run(x, w, **extra)
    inputs, outputs = [x, w, *extra.values()], [w] if result is None else [result]
    order = list(launches)
    for before, call in reversed(recorder.calls):
        order.insert(before, call)
    touched = {place(t) for launch in launches for t in _tensors(launch.arguments)}
    touched |= {place(t) for _, call in recorder.calls for t in call.tensors}
    needed = [tensor for tensor in _tensors(inputs) if place(tensor) in touched]
    unavoidable = sum(map(size, [*needed, *_tensors(outputs)]))
    return Trace(launches, [call for _, call in recorder.calls], order, unavoidable)
