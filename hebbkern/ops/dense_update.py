"""dense_update: the dense rules, in which every patch teaches every neuron (Sanger, Oja, Hebb, soft winner-take-all)."""

from hebbkern.ops import checks
from hebbkern.ops.library import define, pair, serving


def dense_update(
    x,
    weight,
    *,
    activation="relu",
    decay="triangular",
    temperature=1.0,
    patches="raw",
    stride=1,
    padding=0,
    dilation=1,
    frozen=None,
):
    """The summed update of a dense rule, and the number of patches to average it by.

    With U = X Wᵀ over all patches X [P, N] and Y = f(U), the sum is, by ``decay``,
        "triangular"  YᵀX - tril(YᵀY) W     Sanger 1989, eq. 3; with f = relu HPCA (diagonal included),
        "diagonal"    YᵀX - diag(Σ y²) W    Oja 1982,
        "none"        YᵀX                   Hebb.
    With f = softmax (SoftHebb, Journé et al. 2023) R = softmax(U / temperature over neurons), its sign flipped for all
    but the neuron of highest u (ties: the lowest index), and the sum is RᵀX - diag(Σ r u) W, or RᵀX.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        weight: [K, N], or [K, C, kh, kw], of x's dtype.
        activation: "linear", "relu", "tanh" or "softmax".
        decay: "triangular", "diagonal" or "none"; not "triangular" with softmax.
        temperature: of the softmax, in units of u, above 0.
        patches, stride, padding, dilation: as for ``compete``.
        frozen: bool [K], True = its row of the sum is 0, while it takes part in the decay of the others.

    Returns:
        sum, shaped like weight, and count [1], the number of patches P; float64 for float64 inputs, otherwise float32.

    bfloat16 x and weight of raw patches on a CPU with AVX-512 BF16 (`HEBBKERN_CPU=avx512` asks for less): all products
    are summed in float32, but Y, or R, is rounded to bfloat16 before it is multiplied, y (1 + e) with |e| ≤ 2⁻⁸. Beside
    float32's own roundings the sum is off by at most 2⁻⁸ |Y|ᵀ|X| + 2⁻⁷ D(|Y|ᵀ|Y|) |W|, D being what the decay keeps.
    Few patches, of which X - YW and YᵀY are rounded too, may double that. Numbers below 2⁻¹²⁶ count as 0 there.

    Raises ValueError or RuntimeError on arguments that do not fit and on a NaN or an infinity in x or weight.
    Deterministic: the same bits on every run, on compiled backends also for any number of threads.
    """
    operator = serving("dense_update", x)
    geometry = patches, pair(stride), pair(padding), pair(dilation)
    return operator(x, weight, activation, decay, temperature, *geometry, frozen)


def check(x, weight, activation, decay, temperature, patches, stride, padding, dilation, frozen):
    """Shapes and settings; the number of patches."""
    count = checks.layer("dense_update", x, weight, patches, stride, padding, dilation)
    checks.choice("dense_update", "activation", activation, checks.ACTIVATIONS)
    checks.choice("dense_update", "decay", decay, checks.DECAYS)
    if activation == "softmax" and decay in ("triangular", "activity"):
        checks.fail("dense_update", "decay", 'be "diagonal" or "none" with softmax', f'"{decay}"')
    if not (checks.is_finite(temperature) and temperature > 0):
        checks.fail("dense_update", "temperature", "be a finite number above 0", f"{temperature:g}")
    checks.neuron_mask("dense_update", "frozen", frozen, weight.shape[0], x)
    return count


def fake(x, weight, activation, decay, temperature, patches, stride, padding, dilation, frozen):
    check(x, weight, activation, decay, temperature, patches, stride, padding, dilation, frozen)
    dtype = checks.result_dtype(x.dtype)
    return x.new_empty(weight.shape, dtype=dtype), x.new_empty(1, dtype=dtype)


define(
    "dense_update(Tensor x, Tensor weight, str activation, str decay, float temperature, str patches, int[] stride, "
    "int[] padding, int[] dilation, Tensor? frozen) -> (Tensor sum, Tensor count)",
    fake,
)
