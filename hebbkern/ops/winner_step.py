"""winner_step_: compete, accumulate and apply_ as one operator, for the rules in which winners learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern.ops.apply import check_apart
from hebbkern.ops.compete import check_competition
from hebbkern.ops.library import GEOMETRY, Pair, bump_version, call, define, pair, whole
from hebbkern.specifications import WinnerSpecification, schema_of

OP = "winner_step_"


def winner_step_(
    weight: Tensor,
    x: Tensor,
    *,
    lr: float,
    labels: Tensor | None = None,
    patches: str = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    frozen: Tensor | None = None,
    **specification: Any,
) -> None:
    """Take one step in place of a rule in which each patch teaches its winners, or the neuron that its label names.

    The weights are bit for bit those after ``compete``, ``accumulate`` and ``apply_``; the sums of neurons that learn
    nothing are never made. A blank patch (see ``compete``) teaches no neuron, whatever its label. Deterministic: two
    runs give the same bits, the compiled CPU kernels on any number of threads.

    Args:
        weight: [K, N], or [K, C / groups, kh, kw]; float32, float64, bfloat16 or float16, any strides. Written in
            place.
        x: [B, N], or images [B, C, H, W], of weight's dtype.
        lr: learning rate, a finite number.
        labels: int64 or int32 [B], the neuron that every patch of a sample (with groups, every patch of the neuron's
            group) teaches, -1 = none; there is no competition then, k is 1 and the rule uses no response. None: the
            winners learn.
        patches, stride, padding, dilation, groups: as for ``compete``.
        frozen: bool [K], True = the neuron competes but its row keeps its bits.
        **specification: fields of `hebbkern.specifications.WinnerSpecification`, which says what they mean.

    Raises:
        ValueError: arguments do not fit, x or weight holds a NaN or an infinity, or the step would leave a weight that
            is not finite; the weights are as before.
    """
    where = patches, pair(stride), pair(padding), pair(dilation), whole(groups), frozen
    call(OP, weight, x, labels, *WinnerSpecification(**specification), lr, *where)
    bump_version(weight)


def check(weight: Tensor, x: Tensor, labels: Tensor | None, *settings: Any) -> int:
    """Shapes and settings; the number of patches."""
    rule, (lr, *geometry, frozen) = WinnerSpecification.of(settings)
    count = checks.layer(OP, x, weight, *geometry)
    check_apart(OP, weight)
    checks.choice(OP, "normalise", rule.normalise, checks.NORMALISATIONS)
    check_competition(OP, rule.k, rule.p, rule.cosine, weight.shape[0], geometry[-1])
    most = torch.finfo(checks.result_dtype(x.dtype)).max
    if len(rule.coefficients) != rule.k or not all(-most <= c <= most for c in rule.coefficients):
        got = ", ".join(f"{c:g}" for c in rule.coefficients)
        checks.fail(OP, "coefficients", f"be k = {rule.k} finite numbers", f"[{got}]")
    if labels is not None:
        check_labels(x, labels, rule)
    checks.rate(OP, lr)
    checks.neuron_mask(OP, "frozen", frozen, weight.shape[0], x)
    return count


def check_labels(x: Tensor, labels: Tensor, rule: WinnerSpecification) -> None:
    if labels.dtype not in (torch.int32, torch.int64) or labels.shape != x.shape[:1]:
        want = f"be int64 or int32 of shape [{x.shape[0]}], the class of each sample"
        checks.fail(OP, "labels", want, checks.full_name(labels))
    checks.device(OP, "labels", labels, "x", x)
    if rule.k != 1:
        checks.fail(OP, "k", "be 1 with labels", rule.k)
    for name, value in (("by_response", rule.by_response), ("decay_by_response", rule.decay_by_response)):
        if value:
            checks.fail(OP, name, "be False with labels", value)


def fake(*arguments: Any) -> None:
    """The results of a step: none."""


define(
    f"winner_step_(Tensor(a!) weight, Tensor x, Tensor? labels, {schema_of(WinnerSpecification)}, float lr, "
    f"{GEOMETRY}, Tensor? frozen) -> ()",
    check,
    fake,
)
