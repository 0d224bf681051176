"""compete: who is taught by each patch? The k neurons that answer it most strongly."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.library import define, pair, serving


def compete(x, weight, k=1, *, p=2.0, cosine=False, patches="raw", stride=1, padding=0, dilation=1, mask=None):
    """The k winners of every patch, strongest first, and their responses.

    The response of neuron j to patch x is sum_i sign(w_ji) |w_ji|^(p-1) x_i (Krotov and Hopfield 2019, eq. 1), for
    p = 2 the dot product; with ``cosine`` it is x.w / (|x| |w|), 0 where a norm is 0. Ties go to the lower index.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        weight: [K, N], or [K, C, kh, kw], of x's dtype.
        k: winners a patch, 1 to min(64, K).
        p: Lebesgue exponent of the response, finite, at least 1; 2 with ``cosine``.
        patches: "raw", "centred" (own mean removed) or "standardised" (and divided by the remaining norm; a flat
            patch, norm at most 1e-6 of what it was, becomes zeros). Padding zeros belong to the patch.
        stride, padding, dilation: a number or (vertical, horizontal); 1, 0, 1 for a linear layer.
        mask: bool [K], True = may win. Where fewer than k may, the remaining ranks hold winner -1, response 0.

    Returns:
        winners int32 [P, k] and responses [P, k] (float64 for float64 inputs, otherwise float32). P = B samples, or
        B*Ho*Wo positions in the order (image, row, column).

    Raises ValueError or RuntimeError on arguments that do not fit and on a NaN or an infinity in x or weight.
    Deterministic: the same bits on every run, on compiled backends also for any number of threads.
    """
    operator = serving("compete", x)
    return operator(x, weight, k, p, cosine, patches, pair(stride), pair(padding), pair(dilation), mask)


def check(x, weight, k, p, cosine, patches, stride, padding, dilation, mask):
    """Shapes and settings; the number of patches."""
    count = checks.layer("compete", x, weight, patches, stride, padding, dilation)
    check_contest("compete", k, p, cosine, weight.shape[0])
    checks.neuron_mask("compete", "mask", mask, weight.shape[0], x)
    return count


def check_contest(op, k, p, cosine, neurons):
    if not 1 <= k <= min(checks.MOST_WINNERS, neurons):
        checks.fail(op, "k", f"be between 1 and min({checks.MOST_WINNERS}, {neurons} neurons)", k)
    if not (checks.is_finite(p) and p >= 1):
        checks.fail(op, "p", "be a finite number of at least 1", f"{p:g}")
    if cosine and p != 2:
        checks.fail(op, "p", "be 2 with cosine responses", f"{p:g}")


def fake(x, weight, k, p, cosine, patches, stride, padding, dilation, mask):
    count = check(x, weight, k, p, cosine, patches, stride, padding, dilation, mask)
    winners = x.new_empty((count, k), dtype=torch.int32)
    return winners, x.new_empty((count, k), dtype=checks.result_dtype(x.dtype))


define(
    "compete(Tensor x, Tensor weight, int k, float p, bool cosine, str patches, int[] stride, int[] padding, "
    "int[] dilation, Tensor? mask) -> (Tensor winners, Tensor responses)",
    fake,
)
