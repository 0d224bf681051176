"""The names that parameters and modules have without torch.compile, DataParallel and DistributedDataParallel around."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers around the whole of it; `model` itself if there are none."""
    while attribute := _wraps_as(model):
        model = model._modules[attribute]  # type: ignore[assignment]
    return model


def plain_name(model: nn.Module, name: str) -> str:
    """The name of a parameter, buffer or module of `model` without the parts that wrappers add, inner ones included."""
    kept: list[str] = []
    module: nn.Module | None = model
    for part in name.split("."):
        if module is None or part != _wraps_as(module):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(kept)


def plain_names(names: Sequence[str]) -> list[str]:
    """As `plain_name` where the model is not at hand: a `module.` is a wrapper's if all names begin with it."""
    names = [name.replace("_orig_mod.", "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return list(names)


def holds_compiled(model: nn.Module) -> bool:
    """Whether `model` or a module in it was compiled, by torch.compile or by its method `compile`."""
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules())


def _wraps_as(module: nn.Module) -> str:
    """The attribute under which a wrapper has its model; empty for any other module."""
    if "_orig_mod" in module._modules:
        return "_orig_mod"
    return "module" if isinstance(module, PARALLEL) else ""
