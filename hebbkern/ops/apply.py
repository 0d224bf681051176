"""apply_: average, skip the frozen, step and renormalise, in place."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.library import LIBRARY, counted, define, serving


def apply_(weight, sum, *, decay=None, denominator=None, lr, normalise="none", rate_power=0.0, frozen=None):
    """Take one step of the weights, in place: w_j += lr * rho_j * Δ_j.

    Δ_j = (sum_j - decay_j w_j) / denominator_j, and rho_j = | |w_j| - 1 | ^ rate_power (SoftHebb's adaptive rate; 1 for
    rate_power = 0). All of it in float32 (float64 for float64 weights), rounded once into the weights.

    Args:
        weight: [K, N] or [K, C, kh, kw]; float32, float64, bfloat16 or float16, any strides. Written in place.
        sum: weight's shape; float64 for float64 weights, otherwise float32, as are decay and denominator.
        decay: [K], or None for 0.
        denominator: [K] or [1]; a row whose denominator is 0 does not move. None for 1.
        lr: learning rate, finite; a number, or a CPU tensor of one, on which torch.compile does not specialise.
        normalise: "none"; "global_max": Δ is divided by its largest absolute entry over the rows that are not frozen
            (at least 1e-30; Krotov and Hopfield's notebook); "row_max", "row_l2": after the step each row that moved is
            divided by its largest absolute weight (HebbCL's φ, by row) or its Euclidean norm.
        rate_power: finite, at least 0.
        frozen: bool [K], True = this row keeps its bits. So does every row whose step is zero in each entry.

    Raises ValueError or RuntimeError, with the weights as before, on arguments that do not fit, on a NaN or an infinity
    in weight, sum, decay or denominator, and on a step that would leave a weight that is not finite.
    Deterministic: the same bits on every run, on compiled backends also for any number of threads.
    """
    scheduled = isinstance(lr, torch.Tensor)
    operator = torch.ops.hebbkern.apply_scheduled_.default if scheduled else serving("apply_", weight)
    operator(weight, sum, decay, denominator, lr, normalise, rate_power, frozen)
    counted(weight)


def check_apart(op, weight):
    """No two entries may share memory: a dimension's stride must exceed the reach of those with smaller ones."""
    reach = 0
    for stride, size in sorted(zip(weight.stride(), weight.shape, strict=True)):
        if size > 1 and stride <= reach:
            got = f"strides {list(weight.stride())} for shape {list(weight.shape)}"
            checks.fail(op, "weight", "hold each entry once", got)
        reach += stride * (size - 1)


def check(weight, sum, decay, denominator, lr, normalise, rate_power, frozen):
    """Shapes and settings."""
    op = "apply_"
    if weight.dim() not in (2, 4):
        want = "be [neurons, inputs] or [neurons, channels, height, width]"
        checks.fail(op, "weight", want, checks.shape_name(weight))
    checks.floating(op, "weight", weight)
    if 0 in weight.shape:
        checks.fail(op, "weight", "have at least one neuron and one input", checks.shape_name(weight))
    check_apart(op, weight)
    dtype, neurons = checks.result_dtype(weight.dtype), weight.shape[0]
    checks.typed(op, "sum", sum, dtype, (weight.shape,), "weight", weight)
    checks.typed(op, "decay", decay, dtype, ([neurons],), "weight", weight)
    checks.typed(op, "denominator", denominator, dtype, ([neurons], [1]), "weight", weight)
    checks.rate(op, lr)
    checks.choice(op, "normalise", normalise, checks.NORMALISATIONS)
    if not (checks.is_finite(rate_power) and rate_power >= 0):
        checks.fail(op, "rate_power", "be a finite number of at least 0", f"{rate_power:g}")
    checks.neuron_mask(op, "frozen", frozen, neurons, weight)


define(
    "apply_(Tensor(a!) weight, Tensor sum, Tensor? decay, Tensor? denominator, float lr, str normalise, "
    "float rate_power, Tensor? frozen) -> ()",
    check,
)


def _scheduled(weight, sum, decay, denominator, lr, normalise, rate_power, frozen):
    serving("apply_", weight)(weight, sum, decay, denominator, lr.item(), normalise, rate_power, frozen)


def _check_scheduled(weight, sum, decay, denominator, lr, normalise, rate_power, frozen):
    if lr.numel() != 1 or lr.device.type not in ("cpu", "meta"):
        checks.fail("apply_", "lr", "be a number or a CPU tensor of one", f"{checks.shape_name(lr)} on {lr.device}")
    check(weight, sum, decay, denominator, 0.0, normalise, rate_power, frozen)


# A float is a constant to torch.compile: with a falling learning rate each of its values would be compiled anew.
LIBRARY.define(
    "apply_scheduled_(Tensor(a!) weight, Tensor sum, Tensor? decay, Tensor? denominator, Tensor lr, str normalise, "
    "float rate_power, Tensor? frozen) -> ()",
    tags=torch.Tag.pt2_compliant_tag,
)
LIBRARY.impl("apply_scheduled_", torch.library.fallthrough_kernel, "Autograd")
LIBRARY.impl("apply_scheduled_", _scheduled, "CompositeExplicitAutograd")
torch.library.register_fake("hebbkern::apply_scheduled_", _check_scheduled, lib=LIBRARY)
