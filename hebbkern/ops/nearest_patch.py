"""nearest_patch: which patch lies nearest to each neuron? The test by which HebbCL freezes neurons."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.library import define, pair, serving


def nearest_patch(x, weight, *, patches="raw", stride=1, padding=0, dilation=1, mask=None):
    """The nearest patch of every neuron, and its normalised distance.

    The distance of neuron j to patch x is |w_j - x|^2 / |x|_1 (squared Euclidean over the l1 norm; HebbCL, section on
    freezing). Of equally near patches the first counts; a patch of zeros is never nearest.

    Args:
        x: [B, N], or images [B, C, H, W]; float32, float64, bfloat16 or float16, any strides.
        weight: [K, N], or [K, C, kh, kw], of x's dtype.
        patches, stride, padding, dilation: as for ``compete``.
        mask: bool [K], True = asked for. Others get nearest -1, distance +inf, and so do all when no patch qualifies.

    Returns:
        nearest int32 [K], a patch index in the order (image, row, column), and distance [K] (float64 for float64
        inputs, otherwise float32).

    Raises ValueError or RuntimeError on arguments that do not fit and on a NaN or an infinity in x or weight.
    Deterministic: the same bits on every run, on compiled backends also for any number of threads.
    """
    return serving("nearest_patch", x)(x, weight, patches, pair(stride), pair(padding), pair(dilation), mask)


def check(x, weight, patches, stride, padding, dilation, mask):
    """Shapes and settings; the number of patches."""
    count = checks.layer("nearest_patch", x, weight, patches, stride, padding, dilation)
    checks.neuron_mask("nearest_patch", "mask", mask, weight.shape[0], x)
    return count


def fake(x, weight, patches, stride, padding, dilation, mask):
    check(x, weight, patches, stride, padding, dilation, mask)
    neurons = weight.shape[0]
    return x.new_empty(neurons, dtype=torch.int32), x.new_empty(neurons, dtype=checks.result_dtype(x.dtype))


define(
    "nearest_patch(Tensor x, Tensor weight, str patches, int[] stride, int[] padding, int[] dilation, Tensor? mask) "
    "-> (Tensor nearest, Tensor distance)",
    fake,
)
