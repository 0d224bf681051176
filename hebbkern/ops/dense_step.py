"""dense_step_: dense_update and apply_ as one operator, for the rules in which every patch teaches every neuron."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hebbkern import backends, checks
from hebbkern.ops.apply import apply_, check_apart
from hebbkern.ops.library import GEOMETRY, LIBRARY, Pair, bump_version, call, define, pair, whole
from hebbkern.specifications import DenseSpecification, schema_of

OP = "dense_step_"


def dense_step_(
    weight: Tensor,
    x: Tensor,
    *,
    lr: float,
    activation: str = "relu",
    decay: str = "triangular",
    patches: str = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    frozen: Tensor | None = None,
) -> None:
    """Take one step in place of a dense rule: weight += lr · sum / count, both being results of ``dense_update``.

    The weights are bit for bit those after ``dense_update`` and ``apply_``; where patches are few, the compiled kernels
    make no sum in between. Deterministic: two runs give the same bits, the compiled CPU kernels on any number of
    threads.

    Args:
        weight: [K, N], or [K, C / groups, kh, kw]; float32, float64, bfloat16 or float16, any strides. Written in
            place.
        x: [B, N], or images [B, C, H, W], of weight's dtype.
        lr: learning rate, a finite number.
        activation: "linear", "relu" or "tanh".
        decay: as for ``dense_update``.
        patches, stride, padding, dilation, groups: as for ``compete``.
        frozen: bool [K], True = the row keeps its bits, while it takes part in the decay of the others.

    Raises:
        ValueError: arguments do not fit, x or weight holds a NaN or an infinity, or the step would leave a weight that
            is not finite; the weights are as before.
    """
    where = patches, pair(stride), pair(padding), pair(dilation), whole(groups), frozen
    call(OP, weight, x, activation, decay, lr, *where)
    bump_version(weight)


def rounded_dense_step_(
    weight: Tensor,
    x: Tensor,
    *,
    lr: float,
    activation: str,
    decay: str,
    patches: str,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    frozen: Tensor | None,
) -> None:
    """Take the step of ``dense_update`` of weight rounded to x's dtype, applied to weight as it is.

    Arguments and errors are those of ``dense_step_``.
    """
    geometry = patches, pair(stride), pair(padding), pair(dilation), whole(groups)
    if fused_rounded_step_(weight, x, activation, decay, lr, *geometry, frozen):
        return
    rounded = weight.to(x.dtype)
    sum, count = call("dense_update", x, rounded, activation, decay, 1.0, *geometry, frozen)
    wide = checks.result_dtype(weight.dtype)
    apply_(weight, sum.to(wide), denominator=count.to(wide), lr=lr, frozen=frozen)


def fused_rounded_step_(weight: Tensor, x: Tensor, *settings: Any) -> bool:
    """Whether one operator took the whole rounded step; if not, weight is as before. Settings: as of the operator.

    Compiled CPU kernels take it for bfloat16 x, where that is faster than in parts.
    """
    if torch.compiler.is_compiling() or (weight.dtype, x.dtype) != (torch.float32, torch.bfloat16):
        return False
    if not weight.device.type == x.device.type == "cpu" or backends.serving(OP, weight).name != "cpu":
        return False
    taken = call(OP, weight, x, *settings, overload=_rounded)
    if taken:
        bump_version(weight)
    return taken


def check(weight: Tensor, x: Tensor, activation: str, decay: str, lr: float, *where: Any) -> int:
    """Shapes and settings; the number of patches."""
    *geometry, frozen = where
    count = checks.layer(OP, x, weight, *geometry)
    checks.choice(OP, "activation", activation, checks.ACTIVATIONS[:3])
    checks.choice(OP, "decay", decay, checks.DECAYS)
    checks.neuron_mask(OP, "frozen", frozen, weight.shape[0], x)
    check_apart(OP, weight)
    checks.rate(OP, lr)
    return count


def fake(*arguments: Any) -> None:
    """The results of a step: none."""


ARGUMENTS = (
    f"(Tensor(a!) weight, Tensor x, {schema_of(DenseSpecification, 'activation', 'decay')}, float lr, {GEOMETRY}, "
    "Tensor? frozen)"
)
define(f"dense_step_{ARGUMENTS} -> ()", check, fake)
# Compiled CPU kernels alone have it. Returns whether it took the step of weight rounded to x's dtype.
LIBRARY.define(f"_rounded_dense_step_{ARGUMENTS} -> bool")
LIBRARY.impl("_rounded_dense_step_", torch.library.fallthrough_kernel, "Autograd")
_rounded = torch.ops.hebbkern._rounded_dense_step_.default
