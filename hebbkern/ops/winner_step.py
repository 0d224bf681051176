"""winner_step_: compete, accumulate and apply_ as one operator, for the rules in which winners learn."""

import torch

from hebbkern.ops import checks
from hebbkern.ops.apply import check_apart
from hebbkern.ops.compete import check_contest
from hebbkern.ops.library import counted, define, pair, serving


def winner_step_(
    weight,
    x,
    *,
    lr,
    labels=None,
    k=1,
    p=2.0,
    cosine=False,
    coefficients=(1.0,),
    by_response=False,
    decay_by_response=False,
    average=False,
    normalise="none",
    patches="raw",
    stride=1,
    padding=0,
    dilation=1,
    frozen=None,
):
    """One step in place of a rule in which each patch teaches its winners, or the neuron that its label names.

    Patch b teaches its winner of rank r with coefficient c_br = coefficients[r], times max(response, 0) if
    ``by_response``. Then Δ_j = Σ c patch - decay_j w_j with decay_j = Σ c, or Σ c response if ``decay_by_response``;
    Δ_j is divided by decay_j if ``average``, and ``apply_`` takes the step. Bit for bit what ``compete``,
    ``accumulate`` and ``apply_`` give one after the other, without the full sum of every neuron in between.

    Args:
        weight: [K, N], or [K, C, kh, kw]; float32, float64, bfloat16 or float16, any strides. Written in place.
        x: [B, N], or images [B, C, H, W], of weight's dtype.
        lr: learning rate, a finite number.
        labels: int64 or int32 [B], the neuron that every patch of a sample teaches, -1 = nobody; nobody competes then,
            k is 1 and no response is there to go by. None: the winners are taught.
        k, p, cosine, patches, stride, padding, dilation: as for ``compete``.
        coefficients: k finite numbers, one a rank; at 0 a rank teaches nobody.
        normalise: as for ``apply_``.
        frozen: bool [K], True = this neuron competes but its row keeps its bits.

    Raises ValueError or RuntimeError, with the weights as before, on arguments that do not fit, on a NaN or an infinity
    in x or weight, on an overflow, and on a step that would leave a weight that is not finite.
    Deterministic: the same bits on every run, on compiled backends also for any number of threads.
    """
    where = patches, pair(stride), pair(padding), pair(dilation), frozen
    how = k, p, cosine, coefficients, by_response, decay_by_response, average, normalise, lr
    serving("winner_step_", weight)(weight, x, labels, *how, *where)
    counted(weight)


def check(
    weight,
    x,
    labels,
    k,
    p,
    cosine,
    coefficients,
    by_response,
    decay_by_response,
    average,
    normalise,
    lr,
    patches,
    stride,
    padding,
    dilation,
    frozen,
):
    """Shapes and settings; the number of patches."""
    op = "winner_step_"
    count = checks.layer(op, x, weight, patches, stride, padding, dilation)
    check_apart(op, weight)
    checks.choice(op, "normalise", normalise, checks.NORMALISATIONS)
    check_contest(op, k, p, cosine, weight.shape[0])
    most = torch.finfo(checks.result_dtype(x.dtype)).max
    if len(coefficients) != k or not all(-most <= c <= most for c in coefficients):
        got = ", ".join(f"{c:g}" for c in coefficients)
        checks.fail(op, "coefficients", f"be k = {k} finite numbers", f"[{got}]")
    if labels is not None:
        check_labels(op, x, labels, k, by_response, decay_by_response)
    checks.rate(op, lr)
    checks.neuron_mask(op, "frozen", frozen, weight.shape[0], x)
    return count


def check_labels(op, x, labels, k, by_response, decay_by_response):
    if labels.dtype not in (torch.int32, torch.int64) or labels.shape != x.shape[:1]:
        want = f"be int64 or int32 of shape [{x.shape[0]}], the class of each sample"
        checks.fail(op, "labels", want, checks.full_name(labels))
    checks.device(op, "labels", labels, "x", x)
    if k != 1:
        checks.fail(op, "k", "be 1 with labels", k)
    for name, value in (("by_response", by_response), ("decay_by_response", decay_by_response)):
        if value:
            checks.fail(op, name, "be False with labels", value)


def fake(*arguments):
    check(*arguments)


define(
    "winner_step_(Tensor(a!) weight, Tensor x, Tensor? labels, int k, float p, bool cosine, float[] coefficients, "
    "bool by_response, bool decay_by_response, bool average, str normalise, float lr, str patches, int[] stride, "
    "int[] padding, int[] dilation, Tensor? frozen) -> ()",
    fake,
)
