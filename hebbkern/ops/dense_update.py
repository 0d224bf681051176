"""dense_update: the summed update of the rules in which every patch teaches every neuron (Sanger, Oja, Hebb, ...)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hebbkern import checks
from hebbkern.ops.library import GEOMETRY, Pair, call, define, pair, whole
from hebbkern.specifications import DenseSpecification, schema_of

OP = "dense_update"


def dense_update(
    x: Tensor,
    weight: Tensor,
    *,
    activation: str = "relu",
    decay: str = "triangular",
    temperature: float = 1.0,
    patches: str = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the summed update of a dense rule, and the number of patches to average it by.

    With U = X Wᵀ over all patches X [P, N] and Y = f(U), the sum is, by ``decay``,
        "triangular"  YᵀX − tril(YᵀY) W     Sanger 1989, equation 3; with f = relu HPCA (diagonal included),
        "diagonal"    YᵀX − diag(Σ y²) W    Oja 1982,
        "activity"    YᵀX − diag(Σ y) W     instar, Grossberg 1976,
        "none"        YᵀX                   Hebb.
    With f = softmax (SoftHebb, Journé et al. 2023) R = softmax(U / temperature over neurons), its sign flipped for all
    but the neuron of highest u (ties: the lowest index), and the sum is RᵀX − diag(Σ r u) W, or RᵀX.
    Deterministic: two runs give the same bits, the compiled CPU kernels on any number of threads.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        weight: [K, N], or [K, C / groups, kh, kw], of x's dtype.
        activation: f, "linear", "relu", "tanh" or "softmax".
        decay: "triangular", "diagonal", "activity" or "none"; "diagonal" or "none" with softmax.
        temperature: of the softmax, in units of u, above 0.
        patches, stride, padding, dilation, groups: as for ``compete``; W, and the neurons of softmax, are those of a
            group.
        frozen: bool [K], True = its row of the sum is 0, while it takes part in the decay of the others.

    Returns:
        sum, shaped like weight, and count [1], the number of patches that a neuron sees; float64 for float64 inputs,
        otherwise float32.

    Raises:
        ValueError: arguments do not fit, or x or weight holds a NaN or an infinity (on a GPU no operator looks).

    On a CPU with AVX-512 BF16, raw patches of bfloat16 are multiplied as bfloat16 (``HEBBKERN_CPU=avx512`` switches it
    off): products are summed in float32, but Y, or R, is rounded to bfloat16 before it is multiplied, y (1 + e) with
    |e| ≤ 2⁻⁸. Beside float32's own roundings the sum is off by at most 2⁻⁸ |Y|ᵀ|X| + 2⁻⁷ D(|Y|ᵀ|Y|) |W|, where D is the
    part that the decay keeps. With few patches X − YW and YᵀY are rounded too, which may double that. Numbers below
    2⁻¹²⁶ count as 0 there.
    """
    geometry = patches, pair(stride), pair(padding), pair(dilation), whole(groups)
    return call(OP, x, weight, activation, decay, temperature, *geometry, frozen)


def check(x: Tensor, weight: Tensor, activation: str, decay: str, temperature: float, *where: Any) -> int:
    """Shapes and settings; the number of patches."""
    *geometry, frozen = where
    count = checks.layer(OP, x, weight, *geometry)
    checks.choice(OP, "activation", activation, checks.ACTIVATIONS)
    checks.choice(OP, "decay", decay, checks.DECAYS)
    if activation == "softmax" and decay not in ("diagonal", "none"):
        checks.fail(OP, "decay", 'be "diagonal" or "none" with softmax', f'"{decay}"')
    if not (checks.is_finite(temperature) and temperature > 0):
        checks.fail(OP, "temperature", "be a finite number above 0", f"{temperature:g}")
    checks.neuron_mask(OP, "frozen", frozen, weight.shape[0], x)
    return count


def fake(x: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    dtype = checks.result_dtype(x.dtype)
    return x.new_empty(weight.shape, dtype=dtype), x.new_empty(1, dtype=dtype)


define(
    f"dense_update(Tensor x, Tensor weight, {schema_of(DenseSpecification, 'activation', 'decay', 'temperature')}, "
    f"{GEOMETRY}, Tensor? frozen) -> (Tensor sum, Tensor count)",
    check,
    fake,
)
