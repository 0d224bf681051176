"""taps: what the layers of any model put out (or take in) on given data, the model left exactly as it was.

    with taps(model, ["features.0", "features.3"]) as read:
        read(images)["features.0"]

Hooks see the layers, so the model need not be a Sequential; a forward pass ends at the last layer that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hebbkern.nn.learning import Hebbian, check_any


def hebbian_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Hebbian layers of `model` by name; ValueError where there are none."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Hebbian)}
    check_any("evaluation", model, layers)
    return layers


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in evaluation mode, learns nothing, and torch's random numbers are another stream.

    Afterwards, also after an exception, each module's mode and learning state and the random state are as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    layers = [layer for layer, _ in modes if isinstance(layer, Hebbian)]
    states = [(layer, layer.learning_state) for layer in layers if layer.learning_state is not None]
    devices = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}
    try:
        for layer, _ in states:
            layer.learning_state = None
        model.eval()
        with torch.random.fork_rng(sorted(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, state in states:
            layer.learning_state = state


@contextmanager
def taps(
    model: nn.Module,
    names: Iterable[str],
    *,
    inputs: bool = False,
    keep: Callable[[Tensor], Tensor] = Tensor.clone,
) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Gives a function of a batch x that returns {name: keep(output of that layer)}, `model` being `at_rest`.

    Args:
        names: of modules of `model`; "" is the model itself. Of a layer's several calls the first counts.
        inputs: take the first argument of each layer instead of its output.
        keep: what is kept of each tensor, made at once (later layers may overwrite it), without autograd.

    Raises:
        ValueError: no module of that name; or, from the function, one that the data does not reach.
    """
    names, seen = list(dict.fromkeys(names)), {}
    modules = _modules(model, names)

    def note(name: str, tensor: Tensor) -> None:
        if name not in seen:
            seen[name] = keep(tensor)
        if len(seen) == len(names):
            raise _AllSeen

    def hook(name: str):
        if inputs:
            return modules[name].register_forward_pre_hook(lambda module, args: note(name, args[0]))
        return modules[name].register_forward_hook(lambda module, args, output: note(name, output))

    @torch.no_grad()
    def read(x: Tensor) -> dict[str, Tensor]:
        seen.clear()
        try:
            model(x.to(device_of(model)))
        except _AllSeen:
            return dict(seen)
        for name in names:
            if name not in seen:
                raise ValueError(f'hebbkern.evaluation: layer must be one that the data reaches, got "{name}"')
        return dict(seen)

    handles = []
    with at_rest(model):
        try:
            handles.extend(map(hook, names))
            yield read
        finally:
            for handle in handles:
                handle.remove()


def _modules(model: nn.Module, names: list[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            known = ", ".join(f'"{other}"' for other in modules if other)
            raise ValueError(f'hebbkern.evaluation: layer must be a module of the model ({known}), got "{name}"')
    return modules


def device_of(model: nn.Module) -> torch.device:
    """Of its first parameter or buffer; the CPU where it has none."""
    tensors = (*model.parameters(), *model.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


class _AllSeen(BaseException):
    """Ends a forward pass from which all has been taken; not an Exception, which a model may catch."""
