"""Weights on which a step lasts: which ones learning refuses, and steps below the spacing of a low precision."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hebbkern.checks import fail

LOW = (torch.float16, torch.bfloat16)
_steps: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()  # of low precision; infinity after a warning


def computed_by(layer: nn.Module) -> str | None:
    """What the weight of `layer` is instead of a parameter, so that a step on it would be lost; None if it lasts."""
    parameter = layer._parameters.get("weight")
    if parameter is None:
        if parametrize.is_parametrized(layer, "weight"):
            kinds = [type(each).__name__ for each in layer.parametrizations["weight"]]  # pyright: ignore
            return f"a weight computed by torch.nn.utils.parametrize ({', '.join(kinds)})"
        hooks = [type(hook).__name__ for hook in layer._forward_pre_hooks.values() if not hasattr(hook, "__code__")]
        return f"a weight computed from other tensors ({', '.join(hooks) or 'FSDP, or an assignment'})"
    if hasattr(parameter, "_fsdp_flattened"):
        return "a weight sharded by FullyShardedDataParallel (exclude it with ignored_states=)"
    if not issubclass(type(parameter), nn.Parameter):  # isinstance holds for a DTensor too
        return f"a {type(parameter).__name__} (exclude a weight from fully_shard with ignored_params=)"
    return None


def check_own_weight(where: str, name: str, layer: nn.Module) -> None:
    """Raises ValueError if a step on the weight of `layer` would be lost; `name` is the layer's in the message."""
    if got := computed_by(layer):
        fail(where, name, "have a weight that is a parameter of its own", got)


def round_stochastically(exact: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """exact [...] (float32) in `dtype`: each entry one of its two neighbours there, whose mean is the entry.

    Croci et al., Stochastic rounding: implementation, error analysis and applications, 2022, equation 1.
    """
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact).exponent - 1
    spacing = torch.ldexp(torch.ones_like(exact), exponent).clamp_(min=info.tiny).mul_(info.eps)
    spacing.clamp_(min=torch.finfo(exact.dtype).tiny)  # a denormal spacing is 0 on some devices
    steps = exact / spacing
    lower = steps.floor()
    drawn = torch.rand(exact.shape, generator=generator, device=exact.device, dtype=exact.dtype)
    return (lower + (drawn < steps - lower)).mul_(spacing).to(dtype)


def step_rounded_(where: str, weight: Tensor, step_: Callable[[Tensor], Any], generator: torch.Generator) -> None:
    """`step_`, taken on a float32 copy of a float16 or bfloat16 weight, which is rounded stochastically.

    Raises:
        ValueError: a weight would overflow. It is as before.
    """
    exact = weight.detach().float()
    step_(exact)
    rounded = round_stochastically(exact, weight.dtype, generator)
    if not rounded.isfinite().all():
        fail(where, "lr", f"leave weights that {weight.dtype} holds", "an overflow")
    weight.copy_(rounded)


def warn_if_steps_vanish(layer: nn.Module, weight: Tensor, step_: Callable[[Tensor], Any]) -> None:
    """Warns once for a layer if more than half of the entries that `step_` moves are rounded back to what they were.

    Args:
        layer: the layer, for the message.
        weight: its weight, float16 or bfloat16, before the step. It is not changed.
        step_: takes the step on a float32 tensor. It is called at the first, second, fourth, ... step only.
    """
    count = _steps[layer] = _steps.get(layer, 0) + 1
    if count == math.inf or not math.log2(count).is_integer():
        return
    before = weight.detach().float()
    exact = before.clone()
    step_(exact)
    wanted = exact != before
    lost = wanted & (exact.to(weight.dtype).float() == before)
    if int(lost.sum()) * 2 > int(wanted.sum()):
        _steps[layer] = math.inf
        warnings.warn(
            f"hebbkern.{type(layer).__name__}: more than half of the weights that should move do not, because the step "
            f"is below the precision of {weight.dtype}; pass a generator for stochastic rounding, keep the layer in "
            "float32, or increase lr",
            stacklevel=2,
        )
