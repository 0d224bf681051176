"""compete: the winners of each patch, the k neurons that respond most strongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern.ops.library import GEOMETRY, Pair, call, define, pair, whole

OP = "compete"


def compete(
    x: Tensor,
    weight: Tensor,
    k: int = 1,
    *,
    p: float = 2.0,
    cosine: bool = False,
    patches: str = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    eligible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k winners of every patch, strongest first, and their responses.

    The response of neuron j to patch x is Σ_i sign(w_ji) |w_ji|^(p−1) x_i (Krotov and Hopfield 2019, equation 1), for
    p = 2 the dot product; with ``cosine`` it is x·w / (|x| |w|), 0 where a norm is 0. Ties go to the lower index.
    No neuron wins a blank patch, which is all zeros, or flat where patches are centred or standardised: it says nothing
    about which neuron it resembles.
    Deterministic: two runs give the same bits, the compiled CPU kernels on any number of threads.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        weight: [K, N], or [K, C / groups, kh, kw], of x's dtype.
        k: winners a patch, 1 to min(64, K / groups).
        p: Lebesgue exponent of the response, finite, at least 1; 2 with ``cosine``.
        cosine: whether responses are cosines.
        patches: "raw", "centred" (own mean removed; a flat patch, whose norm is then at most 1e-6 of what it was,
            becomes zeros) or "standardised" (and divided by the remaining norm). Padding zeros belong to the patch.
        stride, padding, dilation: a number or (vertical, horizontal); 1, 0, 1 for a linear layer.
        groups: G, as of `torch.nn.Conv2d`: each position has one patch for each group, which sees C / G channels and
            for which the K / G neurons of the group compete; 1 for a linear layer.
        eligible: bool [K], True = may win. Where fewer than k may, the remaining ranks hold winner −1, response 0, as
            do all ranks of a blank patch.

    Returns:
        winners int32 [P, k] and responses [P, k] (float64 for float64 inputs, otherwise float32). P = B samples, or
        G·B·Ho·Wo patches in the order (group, image, row, column).

    Raises:
        ValueError: arguments do not fit, or x or weight holds a NaN or an infinity (on a GPU no operator looks).
    """
    geometry = patches, pair(stride), pair(padding), pair(dilation), whole(groups)
    return call(OP, x, weight, k, p, cosine, *geometry, eligible)


def check(x: Tensor, weight: Tensor, k: int, p: float, cosine: bool, *where: Any) -> int:
    """Shapes and settings; the number of patches."""
    *geometry, eligible = where
    count = checks.layer(OP, x, weight, *geometry)
    check_competition(OP, k, p, cosine, weight.shape[0], geometry[-1])
    checks.neuron_mask(OP, "eligible", eligible, weight.shape[0], x)
    return count


def check_competition(op: str, k: int, p: float, cosine: bool, neurons: int, groups: int) -> None:
    neurons, of_group = neurons // groups, "" if groups == 1 else " of a group"
    if not 1 <= k <= min(checks.MOST_WINNERS, neurons):
        checks.fail(op, "k", f"be between 1 and min({checks.MOST_WINNERS}, {neurons} neurons{of_group})", k)
    if not (checks.is_finite(p) and p >= 1):
        checks.fail(op, "p", "be a finite number of at least 1", f"{p:g}")
    if cosine and p != 2:
        checks.fail(op, "p", "be 2 with cosine responses", f"{p:g}")


def fake(x: Tensor, weight: Tensor, k: int, p: float, cosine: bool, *where: Any) -> tuple[Tensor, Tensor]:
    *geometry, _ = where
    count = checks.layer(OP, x, weight, *geometry)
    winners = x.new_empty((count, k), dtype=torch.int32)
    return winners, x.new_empty((count, k), dtype=checks.result_dtype(x.dtype))


define(
    f"compete(Tensor x, Tensor weight, int k, float p, bool cosine, {GEOMETRY}, Tensor? eligible) "
    "-> (Tensor winners, Tensor responses)",
    check,
    fake,
)
