"""apply_: average, skip the frozen neurons, step and renormalise, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hebbkern import _torch_private, checks
from hebbkern.ops.library import LIBRARY, bump_version, call, check_tensors, define

OP = "apply_"


def apply_(
    weight: Tensor,
    sum: Tensor,
    *,
    decay: Tensor | None = None,
    denominator: Tensor | None = None,
    lr: float | Tensor,
    normalise: str = "none",
    rate_power: float = 0.0,
    frozen: Tensor | None = None,
) -> None:
    """Take one step of the weights, in place: w_j += lr · ρ_j · Δ_j.

    Δ_j = (sum_j − decay_j w_j) / denominator_j and ρ_j = | |w_j| − 1 |^rate_power (SoftHebb's adaptive rate; 1 for
    rate_power = 0). All of it is computed in float32 (float64 for float64 weights) and rounded once into the weights.
    Deterministic: two runs give the same bits, the compiled CPU kernels on any number of threads.

    Args:
        weight: [K, N] or [K, C, kh, kw]; float32, float64, bfloat16 or float16, any strides. Written in place.
        sum: weight's shape; float64 for float64 weights, otherwise float32, as are decay and denominator. None of the
            three may share memory with weight, unless it is the same view.
        decay: [K], or None for 0.
        denominator: [K] or [1]; a row whose denominator is 0 does not move. None for 1.
        lr: learning rate, finite; a number, or a CPU tensor of one, on which torch.compile does not specialise.
        normalise: "none"; "global_max": Δ is divided by its largest absolute entry over the rows that are not frozen
            (at least 1e-30; Krotov and Hopfield's notebook); "row_max", "row_l2": after the step each row that moved is
            divided by its largest absolute weight (HebbCL's φ, by row) or its Euclidean norm.
        rate_power: finite, at least 0.
        frozen: bool [K], True = the row keeps its bits. So does every row whose step is zero in each entry.

    Raises:
        ValueError: arguments do not fit, weight, sum, decay or denominator holds a NaN or an infinity, or the step
            would leave a weight that is not finite; the weights are as before.
    """
    arguments = (weight, sum, decay, denominator, lr, normalise, rate_power, frozen)
    if isinstance(lr, Tensor):
        if not torch.compiler.is_compiling():
            check_tensors(OP, arguments)
        torch.ops.hebbkern.apply_scheduled_.default(*arguments)
    else:
        call(OP, *arguments)
    bump_version(weight)


def check_apart(op: str, weight: Tensor) -> None:
    """No two entries may share memory: a dimension's stride must exceed the reach of those with smaller ones."""
    reach = 0
    for stride, size in sorted(zip(weight.stride(), weight.shape, strict=True)):
        if size > 1 and stride <= reach:
            got = f"strides {list(weight.stride())} for shape {list(weight.shape)}"
            checks.fail(op, "weight", "hold each entry once", got)
        reach += stride * (size - 1)


def check(
    weight: Tensor,
    sum: Tensor,
    decay: Tensor | None,
    denominator: Tensor | None,
    lr: float,
    normalise: str,
    rate_power: float,
    frozen: Tensor | None,
) -> None:
    """Shapes and settings."""
    if weight.dim() not in (2, 4):
        want = "be [neurons, inputs] or [neurons, channels, height, width]"
        checks.fail(OP, "weight", want, checks.shape_name(weight))
    checks.floating(OP, "weight", weight)
    if 0 in weight.shape:
        checks.fail(OP, "weight", "have at least one neuron and one input", checks.shape_name(weight))
    check_apart(OP, weight)
    dtype, neurons = checks.result_dtype(weight.dtype), weight.shape[0]
    checks.typed(OP, "sum", sum, dtype, (weight.shape,), "weight", weight)
    checks.typed(OP, "decay", decay, dtype, ([neurons],), "weight", weight)
    checks.typed(OP, "denominator", denominator, dtype, ([neurons], [1]), "weight", weight)
    checks.rate(OP, lr)
    checks.choice(OP, "normalise", normalise, checks.NORMALISATIONS)
    if not (checks.is_finite(rate_power) and rate_power >= 0):
        checks.fail(OP, "rate_power", "be a finite number of at least 0", f"{rate_power:g}")
    checks.neuron_mask(OP, "frozen", frozen, neurons, weight)


def fake(*arguments: Any) -> None:
    """The results of a step: none."""


ARGUMENTS = "Tensor(a!) weight, Tensor sum, Tensor? decay, Tensor? denominator"
SETTINGS = "str normalise, float rate_power, Tensor? frozen"
define(f"apply_({ARGUMENTS}, float lr, {SETTINGS}) -> ()", check, fake)


def _scheduled(weight: Tensor, *arguments: Any) -> None:
    *sums, lr, normalise, rate_power, frozen = arguments
    if _torch_private.in_backward():
        raise RuntimeError(
            "hebbkern.learning: a compiled layer that learns must not be recomputed in the backward pass, as it would "
            "learn twice; leave it out of torch.utils.checkpoint, or do not compile it"
        )
    call(OP, weight, *sums, lr.item(), normalise, rate_power, frozen)
    bump_version(weight)  # here, so that graphs of torch.compile count the write too


def _check_scheduled(weight: Tensor, *arguments: Any) -> None:
    sum, decay, denominator, lr, normalise, rate_power, frozen = arguments
    if lr.numel() != 1 or lr.device.type not in ("cpu", "meta"):
        checks.fail(OP, "lr", "be a number or a CPU tensor of one", f"{checks.shape_name(lr)} on {lr.device}")
    check(weight, sum, decay, denominator, 0.0, normalise, rate_power, frozen)


# A float is a constant to torch.compile: with a falling learning rate each of its values would be compiled anew.
LIBRARY.define(f"apply_scheduled_({ARGUMENTS}, Tensor lr, {SETTINGS}) -> ()", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.impl("apply_scheduled_", torch.library.fallthrough_kernel, "Autograd")
LIBRARY.impl("apply_scheduled_", _scheduled, "CompositeExplicitAutograd")
torch.library.register_fake("hebbkern::apply_scheduled_", _check_scheduled, lib=LIBRARY)
