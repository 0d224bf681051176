"""dense_step_: dense_update and apply_ as one operator, for the rules in which every patch teaches every neuron."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.apply import check_apart
from hebbkern.ops.library import chosen, counted, define, operator, pair, serving, stage


def dense_step_(
    weight,
    x,
    *,
    lr,
    activation="relu",
    decay="triangular",
    patches="raw",
    stride=1,
    padding=0,
    dilation=1,
    frozen=None,
):
    """One step in place of a dense rule: weight += lr * sum / P, sum and P being what ``dense_update`` gives.

    Bit for bit ``dense_update`` and then ``apply_``; the compiled kernels write no sum in between where patches are few.

    Args:
        weight: [K, N], or [K, C, kh, kw]; float32, float64, bfloat16 or float16, any strides. Written in place.
        x: [B, N], or images [B, C, H, W], of weight's dtype.
        lr: learning rate, a finite number.
        activation: "linear", "relu" or "tanh".
        decay: as for ``dense_update``.
        patches, stride, padding, dilation: as for ``compete``.
        frozen: bool [K], True = this row keeps its bits, while it takes part in the decay of the others.

    Raises ValueError or RuntimeError, with the weights as before, on arguments that do not fit, on a NaN or an infinity
    in x or weight, on an overflow, and on a step that would leave a weight that is not finite.
    Deterministic: the same bits on every run, on compiled backends also for any number of threads.
    """
    where = patches, pair(stride), pair(padding), pair(dilation), frozen
    serving("dense_step_", weight)(weight, x, activation, decay, lr, *where)
    counted(weight)


def rounded_dense_step_(
    weight,
    x,
    *,
    lr,
    activation="relu",
    decay="triangular",
    patches="raw",
    stride=1,
    padding=0,
    dilation=1,
    frozen=None,
):
    """Whether the step of float32 weight by ``dense_update`` of weight rounded to x's dtype was taken, all in one.

    Only where the CPU's kernels multiply x's dtype and this is faster than in parts; if not, weight is as it was.
    Arguments and errors as of ``dense_step_``.
    """
    served = HAS_KERNEL("hebbkern::_rounded_dense_step_", "CPU") and chosen["dense_step_"] == operator("dense_step_")
    on_cpu = weight.device.type == x.device.type == "cpu" and not torch.compiler.is_compiling()
    if not (on_cpu and served and (weight.dtype, x.dtype) == (torch.float32, torch.bfloat16)):
        return False
    where = patches, pair(stride), pair(padding), pair(dilation), frozen
    taken = _rounded(weight, x, activation, decay, lr, *where)
    if taken:
        counted(weight)
    return taken


def check(weight, x, activation, decay, lr, patches, stride, padding, dilation, frozen):
    """Shapes and settings; the number of patches."""
    op = "dense_step_"
    count = checks.layer(op, x, weight, patches, stride, padding, dilation)
    checks.choice(op, "activation", activation, checks.ACTIVATIONS[:3])
    checks.choice(op, "decay", decay, checks.DECAYS)
    checks.neuron_mask(op, "frozen", frozen, weight.shape[0], x)
    check_apart(op, weight)
    checks.rate(op, lr)
    return count


def fake(weight, *arguments):
    check(weight, *arguments)


ARGUMENTS = (
    "(Tensor(a!) weight, Tensor x, str activation, str decay, float lr, str patches, int[] stride, "
    "int[] padding, int[] dilation, Tensor? frozen)"
)
HAS_KERNEL = torch._C._dispatch_has_kernel_for_dispatch_key
define(f"dense_step_{ARGUMENTS} -> ()", fake)
_rounded = stage(f"_rounded_dense_step_{ARGUMENTS} -> bool")
