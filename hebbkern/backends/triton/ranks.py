"""The strongest so far: lists that competitions keep on chip, and how they leave it in order.

A list is two tiles [patches, TOP], responses and neurons, in no order; a slot without a neuron holds -inf and a name
above every neuron's. Neurons enter by response, equal ones by the lower index, so that the order in which they are
looked at makes no difference.
"""

import triton
import triton.language as tl

NOBODY = tl.constexpr(2**31 - 1)


@triton.jit
def empty(BLOCK_P: tl.constexpr, TOP: tl.constexpr, wide: tl.constexpr):
    best = tl.full([BLOCK_P, TOP], float("-inf"), wide)
    return best, tl.zeros([BLOCK_P, TOP], tl.int32) + (tl.arange(0, TOP) + (NOBODY - TOP))[None, :]


@triton.jit
def keep(best, who, response, neuron):
    """Let neurons [P or 1, M] enter by their responses [P, M]; few do, hence one at a time and no sorting."""
    highest = tl.max(response, axis=1)
    if best.shape[1] == 1:
        name = tl.min(tl.where(response == highest[:, None], neuron, NOBODY), axis=1)
        enters = (highest[:, None] > best) | ((highest[:, None] == best) & (name[:, None] < who))
        return tl.where(enters, highest[:, None], best), tl.where(enters, name[:, None], who)
    worst = tl.min(best, axis=1)
    while tl.max((highest > worst).to(tl.int32), axis=0) > 0:
        name = tl.min(tl.where(response == highest[:, None], neuron, NOBODY), axis=1)
        out = tl.max(tl.where(best == worst[:, None], who, -1), axis=1)
        enters = (highest > worst)[:, None] & (who == out[:, None])
        best = tl.where(enters, highest[:, None], best)
        who = tl.where(enters, name[:, None], who)
        response = tl.where(neuron == name[:, None], float("-inf"), response)
        highest = tl.max(response, axis=1)
        worst = tl.min(best, axis=1)
    return best, who


@triton.jit
def write(
    best, who, patch, known, winners, responses, keys, frozen, K, k, silent,
    BY_RESPONSE: tl.constexpr,
):  # fmt: skip
    """Store the k of each list in falling order, ties by the lower index.

    ``keys`` takes what accumulate groups by: the neuron that rank r teaches, K for nobody (bit r of ``silent`` is set,
    the neuron is frozen, with BY_RESPONSE the response is not positive), K + 1 for a response that is not finite.
    """
    for rank in range(k):
        response = tl.max(best, axis=1)
        name = tl.min(tl.where(best == response[:, None], who, NOBODY), axis=1)
        somebody = response > float("-inf")
        best = tl.where(who == name[:, None], float("-inf"), best)
        at = patch.to(tl.int64) * k + rank
        value = tl.where(somebody, response, 0)
        tl.store(winners + at, tl.where(somebody, name, -1), mask=known)
        tl.store(responses + at, value, mask=known)
        if keys is not None:
            key = tl.where(somebody & ((silent >> rank) & 1 == 0), name, K)
            if BY_RESPONSE:
                key = tl.where(value > 0, key, K)
            if frozen is not None:
                still = tl.load(frozen + name, mask=known & somebody, other=0).to(tl.int1)
                key = tl.where(still, K, key)
            key = tl.where(tl.abs(value) < float("inf"), key, K + 1)
            tl.store(keys + at, key, mask=known)
