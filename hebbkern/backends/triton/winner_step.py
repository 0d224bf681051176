"""winner_step_: compete, accumulate and apply_ in at most six launches, with the bits of the three.

The competition itself writes the keys by which its winners are grouped, the survey adds up the pieces of lists that
were cut, and rows of neurons that do not learn are neither read nor written.

Strides of x and of the weight change no bits, except for the norms of rows of weights ("row_l2", rate_power): these are
added up in an order that the compiler may choose by the weight's strides.
"""

from typing import Any

import torch
from torch import Tensor

from hebbkern import checks
from hebbkern.backends.triton import status
from hebbkern.backends.triton.accumulate import Coefficients, check_count, grouped, keys_of
from hebbkern.backends.triton.apply import take_step
from hebbkern.backends.triton.compete import competition
from hebbkern.backends.triton.launch import readable
from hebbkern.backends.triton.moments import moments_of
from hebbkern.backends.triton.patches import patch_view
from hebbkern.backends.triton.walk import Keys
from hebbkern.specifications import WinnerSpecification, constant

OP = "winner_step_"


def winner_step_(weight: Tensor, x: Tensor, labels: Tensor | None, *settings: Any) -> None:
    """The operator ``winner_step_``; settings: the rest of its schema."""
    rule, (lr, *geometry, frozen) = WinnerSpecification.of(settings)
    patches, *spots = geometry
    status.raise_if_skipped(weight)
    frozen = None if frozen is None else frozen.contiguous()
    if readable(x):
        checks.finite(OP, x=x, weight=weight)
        if labels is not None:
            checks.named_range(OP, "labels", labels, weight.shape[0])
    view, neurons = patch_view(x, weight.shape[2:], *spots), weight.shape[0]
    count, k = view.patches, rule.k
    shares = Coefficients(constant(tuple(map(float, rule.coefficients)), x), 0, 1)
    if labels is not None:
        moments = moments_of(OP, view, patches)
        keys = keys_of(OP, view, moments.scale, labels[:, None], True, shares, neurons, frozen)
    else:
        check_count(OP, count * k)
        keys = x.new_empty(count * k, dtype=torch.int32)
        written = Keys(keys, tuple(rule.coefficients), frozen, rule.by_response)
        _, responses, moments = competition(OP, x, weight, k, rule.p, rule.cosine, *geometry, keys=written)
        if rule.by_response:
            shares = shares._replace(rectified=responses)
        if rule.decay_by_response:
            shares = shares._replace(decays=responses, decays_down=k, decays_right=1)
    scale = moments.scale if patches == "standardised" else None  # the scale of a cosine is for responses only
    lists = grouped(view, keys, k, shares, neurons, (moments.offset, scale), False)
    denominator = lists.decay if rule.average else None
    take_step(OP, weight, lists.total, lists.decay, denominator, lr, rule.normalise, 0.0, None, lists)
