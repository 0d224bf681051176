"""accumulate: the sum, per neuron, of the patches that teach it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern.ops.library import GEOMETRY, Pair, call, define, pair, whole

OP = "accumulate"


def accumulate(
    x: Tensor,
    targets: Tensor,
    coefficients: Tensor,
    *,
    neurons: int,
    kernel: int | Sequence[int] = (),
    responses: Tensor | None = None,
    patches: str = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum coefficient · patch over the patches that teach each neuron: the sparse half of every winner rule.

    Entry (p, r) lets patch p teach neuron targets[p, r] with coefficient c; an entry with c = 0 teaches no neuron, nor
    does one of a blank patch (see ``compete``), which could only draw the neuron towards zero. Per neuron sum = Σ c
    patch, decay = Σ c response (without responses: Σ c), count = number of entries; the update of the rule is then
    sum − decay · w (papers: HWTA, Krotov-Hopfield, HebbCL, SHC, the DHP trace).
    Deterministic: two runs give the same bits, the compiled CPU kernels on any number of threads.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        targets: int32 or int64 [P, R], neurons 0 to neurons − 1, −1 = none; with groups, P = G·B·Ho·Wo as for
            ``compete``, and a patch names neurons of its own group.
        coefficients: [P, R], or [R] for the same in every patch; float64 for float64 x, otherwise float32.
        neurons: K, the number of neurons.
        kernel: () for a linear layer, (kh, kw) or one number for images.
        responses: [P, R], of the coefficients' dtype, or None.
        patches, stride, padding, dilation, groups: as for ``compete``.
        frozen: bool [K], True = learns nothing: its row of all three results is 0.

    Returns:
        sum [K, N] or [K, C / groups, kh, kw], decay [K] and count [K], all of the coefficients' dtype.

    Raises:
        ValueError: arguments do not fit, a target is no neuron, or x, coefficients or responses hold a NaN or an
            infinity (on a GPU no operator looks at values).
    """
    geometry = pair(kernel), patches, pair(stride), pair(padding), pair(dilation), whole(groups)
    return call(OP, x, targets, coefficients, responses, neurons, *geometry, frozen)


def check(x: Tensor, targets: Tensor, coefficients: Tensor, responses: Tensor | None, neurons: int, *where: Any) -> int:
    """Shapes and settings; the number of patches."""
    kernel, *geometry, frozen = where
    checks.inputs(OP, x)
    if neurons < 1:
        checks.fail(OP, "neurons", "be at least 1", neurons)
    if x.dim() == 2 and len(kernel):
        checks.fail(OP, "kernel", "be empty for x [batch, inputs]", list(kernel))
    if x.dim() == 4 and (len(kernel) != 2 or min(kernel) < 1):
        checks.fail(OP, "kernel", "be two numbers of at least 1 for images", list(kernel))
    checks.grouping(OP, x, neurons, geometry[-1])
    count = checks.geometry(OP, x, "kernel", kernel, *geometry)
    if targets.dtype not in (torch.int32, torch.int64) or targets.dim() != 2 or targets.shape[0] != count:
        want = f"be int32 or int64 of shape [patches = {count}, ranks]"
        checks.fail(OP, "targets", want, checks.full_name(targets))
    checks.device(OP, "targets", targets, "x", x)
    dtype, ranks = checks.result_dtype(x.dtype), targets.shape[1]
    checks.typed(OP, "coefficients", coefficients, dtype, ([ranks], [count, ranks]), "x", x)
    checks.typed(OP, "responses", responses, dtype, ([count, ranks],), "x", x)
    checks.neuron_mask(OP, "frozen", frozen, neurons, x)
    return count


def fake(
    x: Tensor, targets: Tensor, coefficients: Tensor, responses: Tensor | None, neurons: int, *where: Any
) -> tuple[Tensor, Tensor, Tensor]:
    kernel, *_, groups, _ = where
    dtype = checks.result_dtype(x.dtype)
    total = x.new_empty((neurons, x.shape[1] // groups, *kernel), dtype=dtype)
    return total, x.new_empty(neurons, dtype=dtype), x.new_empty(neurons, dtype=dtype)


define(
    "accumulate(Tensor x, Tensor targets, Tensor coefficients, Tensor? responses, int neurons, int[] kernel, "
    f"{GEOMETRY}, Tensor? frozen) -> (Tensor sum, Tensor decay, Tensor count)",
    check,
    fake,
)
