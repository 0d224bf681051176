"""The strongest neurons so far: lists that competitions keep on chip, and write in order.

A list is two tiles [patches, TOP], the highest responses and their neurons, in no order; an empty slot holds -inf and
an index above that of every neuron. Neurons enter by response, equal ones by the lower index, so the order in which
they come makes no difference.
"""

import triton
import triton.language as tl

NO_INDEX = tl.constexpr(2**31 - 1)  # above every neuron and patch


@triton.jit
def empty_lists(BLOCK_P: tl.constexpr, TOP: tl.constexpr, wide: tl.constexpr):
    best = tl.full([BLOCK_P, TOP], float("-inf"), wide)
    return best, tl.zeros([BLOCK_P, TOP], tl.int32) + (tl.arange(0, TOP) + (NO_INDEX - TOP))[None, :]


@triton.jit
def insert(best, index, response, neuron):
    """Let neurons [P or 1, M] enter by their responses [P, M]; few do, hence one at a time and no sorting."""
    highest = tl.max(response, axis=1)
    if best.shape[1] == 1:
        name = tl.min(tl.where(response == highest[:, None], neuron, NO_INDEX), axis=1)
        enters = (highest[:, None] > best) | ((highest[:, None] == best) & (name[:, None] < index))
        return tl.where(enters, highest[:, None], best), tl.where(enters, name[:, None], index)
    worst = tl.min(best, axis=1)
    while tl.max((highest > worst).to(tl.int32), axis=0) > 0:
        name = tl.min(tl.where(response == highest[:, None], neuron, NO_INDEX), axis=1)
        leaves = tl.max(tl.where(best == worst[:, None], index, -1), axis=1)
        enters = (highest > worst)[:, None] & (index == leaves[:, None])
        best = tl.where(enters, highest[:, None], best)
        index = tl.where(enters, name[:, None], index)
        response = tl.where(neuron == name[:, None], float("-inf"), response)
        highest = tl.max(response, axis=1)
        worst = tl.min(best, axis=1)
    return best, index


@triton.jit
def write_lists(
    best, index, patch, valid, winners, responses, keys, frozen, K, k, zero_ranks, BY_RESPONSE: tl.constexpr
):
    """Store the k of each list in falling order, ties by the lower index.

    ``keys`` takes what accumulate groups by: the neuron that learns by rank r, or K for none (bit r of ``zero_ranks``
    is set, the neuron is frozen, with BY_RESPONSE the response is not positive), or K + 1 for a response that is not
    finite.
    """
    for rank in range(k):
        response = tl.max(best, axis=1)
        name = tl.min(tl.where(best == response[:, None], index, NO_INDEX), axis=1)
        exists = response > float("-inf")
        best = tl.where(index == name[:, None], float("-inf"), best)
        at = patch.to(tl.int64) * k + rank
        value = tl.where(exists, response, 0)
        tl.store(winners + at, tl.where(exists, name, -1), mask=valid)
        tl.store(responses + at, value, mask=valid)
        if keys is not None:
            key = tl.where(exists & ((zero_ranks >> rank) & 1 == 0), name, K)
            if BY_RESPONSE:
                key = tl.where(value > 0, key, K)
            if frozen is not None:
                excluded = tl.load(frozen + name, mask=valid & exists, other=0).to(tl.int1)
                key = tl.where(excluded, K, key)
            key = tl.where(tl.abs(value) < float("inf"), key, K + 1)
            tl.store(keys + at, key, mask=valid)
