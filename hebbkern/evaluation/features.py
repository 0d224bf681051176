"""Features: labelled data batch by batch, and what the layers of any model put out on it.

    with taps(model, ["features.0", "features.3"]) as read:
        read(images)["features.0"]

Every evaluation takes its data as a pair of tensors (x, labels), or as any iterable of such pairs, as a DataLoader or
`hebbkern.training.Batches` are (Batches leaves out an incomplete last batch unless partial=True).

`taps` reads layers by forward hooks, so the model need not be a Sequential. A forward pass ends at the last layer
that is read. The model is left exactly as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hebbkern.checks import dtype_name
from hebbkern.nn.state import no_learning
from hebbkern.nn.wrappers import plain_name

Pair = tuple[Tensor, Tensor]
MEMORY = 2**31  # bytes that features may take: 2 GiB
BATCH_SIZE = 256  # samples a forward pass


def is_pair(source: object) -> TypeGuard[Pair]:
    return isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(x, Tensor) for x in source)


def batches(source: Pair | Iterable[Pair], batch_size: int = BATCH_SIZE) -> Iterator[Pair]:
    """Yields (x, labels) of at most `batch_size` samples, in the source's own order.

    Raises:
        ValueError: labels are missing or do not fit their samples.
    """
    if not is_pair(source) and not isinstance(source, Iterable):
        kind = type(source).__name__
        raise ValueError(f"hebbkern.evaluation: data must be a pair (x, labels) or batches of such, got {kind}")
    for batch in [source] if is_pair(source) else source:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            got = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise ValueError(f"hebbkern.evaluation: each batch must be a pair (x, labels), got {got}")
        x, labels = batch
        yield from zip(x.split(batch_size), check_labels("labels", labels, x).split(batch_size), strict=True)


def check_labels(name: str, labels: object, x: Tensor) -> Tensor:
    """Returns the labels of x as int64. Raises ValueError unless they are whole numbers from 0, one a sample."""
    if not isinstance(labels, Tensor) or labels.shape != x.shape[:1]:
        got = list(labels.shape) if isinstance(labels, Tensor) else labels
        raise ValueError(f"hebbkern.evaluation: {name} must be one a sample ({len(x)}), got {got}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"hebbkern.evaluation: {name} must be whole numbers, got {dtype_name(labels.dtype)}")
    whole = labels.long()
    if len(whole) and (least := int(whole.min())) < 0:
        got = least % 2**64 if labels.dtype == torch.uint64 else least
        raise ValueError(f"hebbkern.evaluation: {name} must be from 0 to 2^63 - 1, got {got}")
    return whole


def check_samples(name: str, x: Tensor, labels: Tensor) -> Tensor:
    """Returns the labels as int64. Raises ValueError unless x is finite, [n, inputs], with n > 0, and labels fit."""
    if x.ndim != 2:
        shape = list(x.shape)
        raise ValueError(f"hebbkern.evaluation: {name} must be [n, inputs], such as x.flatten(1), got {shape}")
    if len(x) == 0:
        raise ValueError(f"hebbkern.evaluation: {name} must hold one sample or more, got none")
    if not x.isfinite().all():
        raise ValueError(f"hebbkern.evaluation: {name} must be finite, got a NaN or an infinity")
    return check_labels(f"{name}_labels", labels, x)


def storage(numbers: int, memory: int) -> torch.dtype | None:
    """float32 if so many numbers fit into `memory` bytes, else bfloat16 if those do, else None."""
    fitting = (dtype for dtype in (torch.float32, torch.bfloat16) if numbers * dtype.itemsize <= memory)
    return next(fitting, None)


class Store:
    """Features of several layers, collected batch by batch: float32 while all fit into `memory`, then bfloat16.

    Args:
        memory: bytes.
        count: the number of samples to come, if it is known; the first batch then decides the dtype.
    """

    def __init__(self, memory: int, count: int | None = None):
        self.memory, self.count, self.dtype = memory, count, torch.float32
        self.parts: dict[str, list[Tensor]] = {}
        self.labels: list[Tensor] = []

    def add(self, features: dict[str, Tensor], labels: Tensor) -> None:
        """Adds one batch. Raises ValueError with the bytes needed if not even bfloat16 fits."""
        self.labels.append(labels)
        samples = max(self.count or 0, sum(map(len, self.labels)))
        numbers = samples * sum(tensor[0].numel() for tensor in features.values())
        dtype = storage(numbers, self.memory)
        if dtype is None:
            raise ValueError(
                f"hebbkern.evaluation: memory must hold the features in bfloat16 ({2 * numbers} bytes), "
                f"got {self.memory}; pool them, or take fewer layers or samples"
            )
        for name, tensor in features.items():
            parts = self.parts.setdefault(name, [])
            if dtype is not self.dtype:
                parts[:] = [part.to(dtype) for part in parts]
            parts.append(tensor.to(dtype))
        self.dtype = dtype

    def take(self) -> tuple[dict[str, Tensor], Tensor]:
        """Joins and returns everything; the store is empty afterwards. Raises ValueError if no batch was added."""
        if not self.labels:
            raise ValueError("hebbkern.evaluation: data must hold at least one batch, got none")
        joined = {name: torch.cat(self.parts.pop(name)) for name in list(self.parts)}
        return joined, torch.cat(self.labels)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in evaluation mode, learns nothing, and draws from a copy of the random state.

    On leaving, also by an exception, every module's mode and torch's random state are what they were before.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}
    try:
        model.eval()
        with no_learning(), torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def taps(
    model: nn.Module,
    names: Iterable[str],
    *,
    inputs: bool = False,
    keep: Callable[[nn.Module, Tensor], Tensor] = lambda layer, output: output.clone(),
) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Context that gives a function from a batch x to {name: keep(layer, its output)}, the model in `eval_mode`.

    Args:
        model: any module.
        names: of modules of `model`, with or without what wrappers add; "" is the model itself. If a layer is called
            several times, its first call is read.
        inputs: read the first argument of each layer instead of its output.
        keep: applied to each tensor at once, without autograd, because later layers may overwrite the tensor.

    Raises:
        ValueError: `model` has no module of that name; or, from the function, the data does not reach a layer.
    """
    names = list(dict.fromkeys(names))
    modules, kept = _modules(model, names), {}

    def add(name: str, tensor: Tensor) -> None:
        if name not in kept:
            kept[name] = keep(modules[name], tensor)
        if len(kept) == len(names):
            raise _AllRead

    def hook(name: str) -> RemovableHandle:
        if inputs:
            return modules[name].register_forward_pre_hook(lambda module, args: add(name, args[0]))
        return modules[name].register_forward_hook(lambda module, args, output: add(name, output))  # pyright: ignore

    @torch.no_grad()
    def read(x: Tensor) -> dict[str, Tensor]:
        kept.clear()
        try:
            model(x.to(device_of(model)))
        except _AllRead:
            return dict(kept)
        for name in names:
            if name not in kept:
                raise ValueError(f'hebbkern.evaluation: layer must be one that the data reaches, got "{name}"')
        return dict(kept)

    handles = []
    with eval_mode(model):
        try:
            handles.extend(map(hook, names))
            yield read
        finally:
            for handle in handles:
                handle.remove()


def _modules(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    modules = modules_by_name(model)
    for name in names:
        if name not in modules:
            known = ", ".join(f'"{other}"' for other, _ in model.named_modules() if other)
            raise ValueError(f'hebbkern.evaluation: layer must be a module of the model ({known}), got "{name}"')
    return modules


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by the names that the model without wrappers has, and by its own."""
    named = list(model.named_modules(remove_duplicate=False))
    return {plain_name(model, name): module for name, module in named} | dict(named)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


class _AllRead(BaseException):
    """Ends a forward pass when every layer has been read. Not an Exception, because a model may catch those."""
