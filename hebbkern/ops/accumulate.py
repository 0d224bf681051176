"""accumulate: add up, per neuron, the patches that teach it."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.library import define, pair, serving


def accumulate(
    x,
    taught,
    coefficients,
    *,
    neurons,
    kernel=(),
    responses=None,
    patches="raw",
    stride=1,
    padding=0,
    dilation=1,
    frozen=None,
):
    """Sums of coefficient * patch over the patches that teach each neuron: the sparse half of every winner rule.

    Entry (p, r) lets patch p teach neuron taught[p, r] with coefficient c; entries with c = 0 teach nobody. Per neuron
    sum = Σ c patch, decay = Σ c response (without responses: Σ c), count = number of entries; the update of the
    rule is then sum - decay * w (papers: HWTA, Krotov-Hopfield, HebbCL, SHC, the DHP trace).

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        taught: int32 or int64 [P, R], neurons 0 to neurons - 1, -1 = nobody.
        coefficients: [P, R], or [R] for the same in every patch; float64 for float64 x, otherwise float32.
        neurons: K, how many neurons there are.
        kernel: () for a linear layer, (kh, kw) or one number for images.
        responses: [P, R], of the coefficients' dtype, or None.
        patches, stride, padding, dilation: as for ``compete``.
        frozen: bool [K], True = learns nothing: its row of all three results is 0.

    Returns:
        sum [K, N] or [K, C, kh, kw], decay [K] and count [K], all of the coefficients' dtype.

    Raises ValueError or RuntimeError on arguments that do not fit, on a NaN or an infinity in x, coefficients or
    responses, and on a neuron that does not exist. Deterministic: the same bits on every run, on compiled backends
    also for any number of threads.
    """
    operator = serving("accumulate", x)
    geometry = pair(kernel), patches, pair(stride), pair(padding), pair(dilation)
    return operator(x, taught, coefficients, responses, neurons, *geometry, frozen)


def check(x, taught, coefficients, responses, neurons, kernel, patches, stride, padding, dilation, frozen):
    """Shapes and settings."""
    op = "accumulate"
    checks.inputs(op, x)
    if neurons < 1:
        checks.fail(op, "neurons", "be at least 1", neurons)
    if x.dim() == 2 and len(kernel):
        checks.fail(op, "kernel", "be empty for x [batch, inputs]", list(kernel))
    if x.dim() == 4 and (len(kernel) != 2 or min(kernel) < 1):
        checks.fail(op, "kernel", "be two numbers of at least 1 for images", list(kernel))
    count = checks.geometry(op, x, "kernel", kernel, patches, stride, padding, dilation)
    if taught.dtype not in (torch.int32, torch.int64) or taught.dim() != 2 or taught.shape[0] != count:
        want = f"be int32 or int64 of shape [patches = {count}, ranks]"
        checks.fail(op, "taught", want, checks.full_name(taught))
    checks.device(op, "taught", taught, "x", x)
    dtype, ranks = checks.result_dtype(x.dtype), taught.shape[1]
    checks.typed(op, "coefficients", coefficients, dtype, ([ranks], [count, ranks]), "x", x)
    checks.typed(op, "responses", responses, dtype, ([count, ranks],), "x", x)
    checks.neuron_mask(op, "frozen", frozen, neurons, x)


def fake(x, taught, coefficients, responses, neurons, kernel, patches, stride, padding, dilation, frozen):
    check(x, taught, coefficients, responses, neurons, kernel, patches, stride, padding, dilation, frozen)
    dtype = checks.result_dtype(x.dtype)
    total = x.new_empty((neurons, x.shape[1], *kernel), dtype=dtype)
    return total, x.new_empty(neurons, dtype=dtype), x.new_empty(neurons, dtype=dtype)


define(
    "accumulate(Tensor x, Tensor taught, Tensor coefficients, Tensor? responses, int neurons, int[] kernel, "
    "str patches, int[] stride, int[] padding, int[] dilation, Tensor? frozen) "
    "-> (Tensor sum, Tensor decay, Tensor count)",
    fake,
)
