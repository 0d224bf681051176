"""compete: who is taught by each patch?

A program owns a tile of patches and walks over tiles of neurons, keeping the k strongest on chip: patches are read
where they lie in the image, and no matrix of patches by neurons is ever written. Where there are few patches, several
programs share the neurons of a tile between them, and a second kernel merges their winners.
"""

import torch
import triton
import triton.language as tl

from hebbkern import backends, checks
from hebbkern.backends.triton import screen
from hebbkern.backends.triton.arithmetic import precision
from hebbkern.backends.triton.launch import block, launch, power_of_2, readable
from hebbkern.backends.triton.moments import moments
from hebbkern.backends.triton.patches import place
from hebbkern.backends.triton.ranks import empty, keep, write
from hebbkern.backends.triton.tuning import fastest
from hebbkern.backends.triton.walk import Keys, own_patches, running, shared, tiles_of, walk
from hebbkern.ops.compete import check


@triton.jit
def compete_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, offset, scale, total, inverse, mask, winners, responses, keys, frozen,
    P, K, N, k, share, silent,
    SHAPE: tl.constexpr, TOP: tl.constexpr, BY_RESPONSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (i, s): tile i of patches, neurons s * share to (s + 1) * share; its winners are list s of all lists.

    Neighbouring programs own neighbouring patches and the same neurons, which they find in L2.
    """
    patch, known, start, row, column = own_patches(sb, sh, sw, Ho, Wo, P, SHAPE, BLOCK_P)
    # No function can return None or a tile, nor a tuple with None in it: Triton 3.6 compiles neither.
    shift = None if offset is None else tl.load(offset + patch, mask=known, other=0)
    size = None if scale is None else tl.load(scale + patch, mask=known, other=0)
    begin = tl.program_id(1) * share
    best, who = walk(
        x, start, row, column, known, sc, sh, sw, H, W, weight, shift, size, total, inverse, mask,
        begin, tl.minimum(begin + share, K), N, SHAPE, TOP, PRECISION, BLOCK_K, BLOCK_N,
    )  # fmt: skip
    list_of = tl.program_id(1).to(tl.int64) * P * k
    write(best, who, patch, known, winners + list_of, responses + list_of, keys, frozen, K, k, silent, BY_RESPONSE)


@triton.jit
def merge_kernel(
    lists, listed, winners, responses, keys, frozen, P, K, k, shares, silent,
    TOP: tl.constexpr, BY_RESPONSE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The k strongest of the ``shares`` lists [shares, P, k] of each patch."""
    patch = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    known = patch < P
    slot = tl.arange(0, BLOCK)
    at = (slot // k)[None, :].to(tl.int64) * P * k + patch[:, None].to(tl.int64) * k + (slot % k)[None, :]
    there = known[:, None] & (slot < shares * k)[None, :]
    neuron = tl.load(lists + at, mask=there, other=-1)
    response = tl.load(listed + at, mask=there, other=0)
    best, who = empty(BLOCK_P, TOP, response.dtype)
    best, who = keep(best, who, tl.where(neuron >= 0, response, float("-inf")), neuron)
    write(best, who, patch, known, winners, responses, keys, frozen, K, k, silent, BY_RESPONSE)


def powers(op, weight, p):
    """[K, N] contiguous: sign(w) |w|^(p - 1), in the result dtype unless p is 2."""
    rows = weight.reshape(weight.shape[0], -1).contiguous()
    if p == 2:
        return rows
    rows = rows.to(checks.result_dtype(rows.dtype))
    rows = rows.sign() * rows.abs() ** (p - 1)
    if readable(weight):
        checks.no_overflow(op, "weight and p must give finite powers", rows)
    return rows


def contest(op, x, weight, k, p, cosine, patches, stride, padding, dilation, mask, keys=None):
    """Winners int32 [P, k], responses [P, k] and the moments of the patches; at most three launches."""
    where = place(x, weight.shape[2:], stride, padding, dilation)
    rows = powers(op, weight, p)
    screened = screen.worthwhile(rows, k, backends.get_screening())
    known = moments(op, where, patches, weight=rows, unit=cosine, total=patches != "raw", rounding=screened)
    winners = x.new_empty((where.patches, k), dtype=torch.int32)
    responses = x.new_empty((where.patches, k), dtype=checks.result_dtype(x.dtype))
    keys = keys or Keys()
    fight = screen.screened if screened else exact
    fight(where, rows, known, mask, k, winners, responses, keys)
    if readable(x):
        checks.no_overflow(op, checks.RESPONSES, responses)
    return winners, responses, known


def exact(where, rows, known, mask, k, winners, responses, keys):
    """Every response is computed."""
    shape = where.patches, *rows.shape, k

    def fight(tile):
        by_tiles_of(tile, where, rows, known, mask, k, winners, responses, keys)

    fight(fastest("compete", rows, shape, tiles_of(where, rows.dtype, len(rows), k), fight))


def by_tiles_of(tile, where, rows, known, mask, k, winners, responses, keys):
    P, (K, N) = where.patches, rows.shape
    shares, share = shared(P, K, tile, rows)
    alone = shares == 1
    lists, listed = winners, responses
    if not alone:
        lists, listed = winners.new_empty((shares, P, k)), responses.new_empty((shares, P, k))
    settings = {"TOP": power_of_2(k), "BY_RESPONSE": keys.by_response}
    last = keys.keys, keys.frozen
    launch(
        compete_kernel, (triton.cdiv(P, tile.patches), shares), *where.arguments, rows, known.offset, known.scale,
        known.total, known.inverse, mask, lists, listed, *(last if alone else (None, None)),
        P, K, N, k, share, keys.silent, SHAPE=where.shape, **settings, PRECISION=precision(),
        BLOCK_P=tile.patches, BLOCK_K=tile.neurons, BLOCK_N=tile.inputs, **running(tile),
    )  # fmt: skip
    if not alone:
        width = power_of_2(shares * k)
        most = power_of_2(triton.cdiv(1024, width), 1, block(16))  # 8 candidates a thread
        launch(
            merge_kernel, (triton.cdiv(P, most),), lists, listed, winners, responses, *last, P, K, k, shares,
            keys.silent, **settings, BLOCK_P=most, BLOCK=width,
        )  # fmt: skip


def compete(x, weight, k, p, cosine, patches, stride, padding, dilation, mask):
    check(x, weight, k, p, cosine, patches, stride, padding, dilation, mask)
    if readable(x):
        checks.finite("compete", x=x, weight=weight)
    mask = None if mask is None else mask.contiguous()
    return contest("compete", x, weight, k, p, cosine, patches, stride, padding, dilation, mask)[:2]
