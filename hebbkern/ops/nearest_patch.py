"""nearest_patch: the nearest patch of each neuron, the test by which HebbCL freezes neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern.ops.library import GEOMETRY, Pair, call, define, pair, whole

OP = "nearest_patch"


def nearest_patch(
    x: Tensor,
    weight: Tensor,
    *,
    patches: str = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    eligible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the nearest patch of every neuron, and its normalised distance.

    The distance of neuron j to patch x is |w_j − x|² / |x|₁ (squared Euclidean over the l1 norm; HebbCL, section on
    freezing). Of equally near patches the first counts; a patch of zeros is never nearest.
    Deterministic: two runs give the same bits, the compiled CPU kernels on any number of threads.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        weight: [K, N], or [K, C / groups, kh, kw], of x's dtype.
        patches, stride, padding, dilation, groups: as for ``compete``.
        eligible: bool [K], True = a patch is looked for. Other neurons get nearest −1 and distance +inf, and so do all
            where no patch qualifies.

    Returns:
        nearest int32 [K], a patch index in the order (group, image, row, column), and distance [K] (float64 for float64
        inputs, otherwise float32).

    Raises:
        ValueError: arguments do not fit, x or weight holds a NaN or an infinity, or |x|², |w|², 1 / |x|₁ or the
            distance of a nearest patch overflows (on a GPU no operator looks).
    """
    geometry = patches, pair(stride), pair(padding), pair(dilation), whole(groups)
    return call(OP, x, weight, *geometry, eligible)


def check(x: Tensor, weight: Tensor, *where: Any) -> int:
    """Shapes and settings; the number of patches."""
    *geometry, eligible = where
    count = checks.layer(OP, x, weight, *geometry)
    checks.neuron_mask(OP, "eligible", eligible, weight.shape[0], x)
    return count


def fake(x: Tensor, weight: Tensor, *where: Any) -> tuple[Tensor, Tensor]:
    neurons = weight.shape[0]
    return x.new_empty(neurons, dtype=torch.int32), x.new_empty(neurons, dtype=checks.result_dtype(x.dtype))


define(
    f"nearest_patch(Tensor x, Tensor weight, {GEOMETRY}, Tensor? eligible) -> (Tensor nearest, Tensor distance)",
    check,
    fake,
)
