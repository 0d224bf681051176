"""winner_step_: compete, accumulate and apply_ in at most six launches, with the bits of the three.

The contest itself writes the keys by which its winners are grouped, the survey puts together the lists that were cut,
and rows of neurons that nobody teaches are neither read nor written.

Strides of x and of the weight change no bits, but for the norms of rows of weights ("row_l2", rate_power): these are
added up in an order that the compiler may choose by the weight's strides.
"""

import torch

from hebbkern import checks
from hebbkern.backends.triton import status
from hebbkern.backends.triton.accumulate import Coefficients, countable, grouped, keys_of
from hebbkern.backends.triton.apply import take
from hebbkern.backends.triton.compete import contest
from hebbkern.backends.triton.launch import readable
from hebbkern.backends.triton.moments import moments
from hebbkern.backends.triton.patches import place
from hebbkern.backends.triton.walk import Keys
from hebbkern.ops.winner_step import check
from hebbkern.specifications import constant

OP = "winner_step_"


def winner_step_(weight, x, labels, *settings):
    count = check(weight, x, labels, *settings)
    k, p, cosine, coefficients, by_response, decay_by_response, average, normalise, lr, *geometry, frozen = settings
    patches, *spots = geometry
    status.look(weight)
    frozen = None if frozen is None else frozen.contiguous()
    if readable(x):
        checks.finite(OP, x=x, weight=weight)
        if labels is not None:
            checks.named_range(OP, "labels", labels, weight.shape[0])
    where, neurons = place(x, weight.shape[2:], *spots), weight.shape[0]
    how = Coefficients(constant(tuple(map(float, coefficients)), x), 0, 1)
    if labels is not None:
        known = moments(OP, where, patches)
        taught = labels[:, None]
        keys = keys_of(OP, taught, max(count // max(x.shape[0], 1), 1), how, neurons, frozen, count)
    else:
        countable(OP, count * k)
        keys = x.new_empty(count * k, dtype=torch.int32)
        named = Keys(keys, tuple(coefficients), frozen, by_response)
        _, responses, known = contest(OP, x, weight, k, p, cosine, *geometry, None, keys=named)
        if by_response:
            how = how._replace(rectified=responses)
        if decay_by_response:
            how = how._replace(decays=responses, decays_down=k, decays_right=1)
    scale = known.scale if patches == "standardised" else None  # a cosine's contest scales what it does not teach
    lists = grouped(where, keys, k, how, neurons, known.offset, scale, False)
    average = lists.decay if average else None
    take(OP, weight, lists.total, lists.decay, average, lr, normalise, 0.0, None, lists)
