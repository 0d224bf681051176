"""Certified winners: float32 competitions screened in bfloat16, on tensor cores, and decided in float32.

    screen     a bound u above every response, from a product of rounded numbers; the CAP highest u of each patch
    decide     float32 responses of those that may still win; a patch whose k-th is above every other neuron's
               bound is decided, the others compete again in float32, in the same kernel

**The bound.** Let x be a patch (its offset taken off) and x̂ the same rounded, w and ŵ likewise, N their length. By
Cauchy and Schwarz |x.w - x̂.ŵ| ≤ |x - x̂| |w| + |x̂| |w - ŵ|, with norms that the moments kernel measures. Products
of bfloat16 are exact in float32; their sum is off by at most N 2^-22 |x̂| |ŵ|, even where tensor cores cut off instead
of rounding. The float32 response itself, with its offset o folded in, is off by at most N 2^-23 |w| (|x| + 2 |o| √N).
The sum of the three, a little enlarged for the rounding of the norms and of u, is what is added to x̂.ŵ. Below 2^-20
norms count as 2^-20, so that denormal numbers are far below the bound; above 2^20 nothing is certified.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern.backends.triton.arithmetic import narrowed, precision, product
from hebbkern.backends.triton.launch import launch, power_of_2
from hebbkern.backends.triton.lists import NO_INDEX, empty_lists, insert, write_lists
from hebbkern.backends.triton.moments import Rounding
from hebbkern.backends.triton.patches import load_entries, own_patches
from hebbkern.backends.triton.tuning import fastest
from hebbkern.backends.triton.walk import Competition, Tile, fitted, shares_of, walk

MOST_WINNERS = 8  # lists of four times as many candidates still fit into registers
LEAST = tl.constexpr(2.0**-20)
MOST = tl.constexpr(2.0**20)

# bfloat16 tiles as in walk.TILES["half"], but the patches are loaded in float32 and rounded on chip: a stage is
# 64 x 64 x 4 + 128 x 64 x 2 = 33 kB, three of them 98 kB, two blocks to a multiprocessor.
TILES = Tile(64, 128, 64, 8, 3, registers=255), Tile(64, 64, 64, 4, 3), Tile(128, 64, 64, 8, 2)
# 16 patches x 16 candidates x 64 inputs (32 candidates x 32 inputs) are 64 registers a thread of 8 warps.
DECIDE = Tile(16, 32, 64, warps=8, stages=2, registers=255)


def worthwhile(rows: Tensor, k: int, mode: str) -> bool:
    """Whether a competition is screened: ``mode`` is what ``hebbkern.screening`` chose.

    Only by "always": on a GPU the patches that compete again cost more than screening saves (csrc/cuda/screen.cu).
    """
    return mode == "always" and rows.dtype == torch.float32 and k <= MOST_WINNERS


@triton.jit
def reach(size, slip, offset, N):
    """(a, b) of each patch: its response to w is off by at most a |w| + b |w - ŵ|."""
    size = tl.maximum(size, LEAST)
    far = 0.0
    if offset is not None:
        far = tl.abs(offset) * tl.sqrt(tl.zeros_like(size) + N)
    rounding = (tl.zeros_like(size) + N + 16) * (size * (2.0**-22 + 2.0**-23) + (slip + 2 * far) * 2.0**-23)
    return (slip + rounding) * (1 + 2.0**-7), tl.where(size <= MOST, size * (1 + 2.0**-7), float("inf"))


@triton.jit
def uncertainty(near, wide, w_size, w_slip, neuron, exists):
    """[P, M]: by how much the responses of ``neuron`` [P or 1, M] may be off."""
    size = tl.maximum(tl.load(w_size + neuron, mask=exists, other=0), LEAST)
    slip = tl.load(w_slip + neuron, mask=exists, other=0)
    return near[:, None] * tl.where(size <= MOST, size, float("inf")) + wide[:, None] * slip


@triton.jit
def screen_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, rounded, offset, inverse, eligible, p_size, p_slip, w_size, w_slip, lists,
    bounds, P, K, N, stride, share,
    SHAPE: tl.constexpr, CAP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (i, s): the CAP neurons of share s with the highest bounds, for tile i of patches, in no order."""
    patch, valid, corner = own_patches(tl.program_id(0), P, (sb, sh, sw, Ho, Wo, B, sg), SHAPE, BLOCK_P)
    shift = None if offset is None else tl.load(offset + patch, mask=valid, other=0)
    near, wide = reach(
        tl.load(p_size + patch, mask=valid, other=0), tl.load(p_slip + patch, mask=valid, other=0), shift, N
    )
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, K)
    best, index = empty_lists(BLOCK_P, CAP, tl.float32)
    for first in range(begin, end, BLOCK_K):
        neuron = first + tl.arange(0, BLOCK_K)
        exists = neuron < end
        response = tl.zeros([BLOCK_P, BLOCK_K], tl.float32)
        for first_entry in range(0, N, BLOCK_N):
            tile, entry = load_entries(x, corner, valid, first_entry, N, (sc, sh, sw, H, W), SHAPE, BLOCK_N)
            tile, within = tile.to(tl.float32), entry < N
            if shift is not None:
                tile = tl.where(within[None, :], tile - shift[:, None], 0.0)
            at = rounded + neuron[None, :].to(tl.int64) * stride + entry[:, None]
            rows = tl.load(at, mask=exists[None, :] & within[:, None], other=0.0)
            response = product(narrowed(tile, tl.bfloat16), rows, response, "ieee")
        bound = response + uncertainty(near, wide, w_size, w_slip, neuron[None, :], exists[None, :])
        if inverse is not None:
            bound *= tl.load(inverse + neuron, mask=exists, other=0)[None, :]
        bound = tl.where(tl.abs(bound) < float("inf"), bound, float("inf"))
        if eligible is not None:
            exists = exists & tl.load(eligible + neuron, mask=exists, other=0).to(tl.int1)
        best, index = insert(best, index, tl.where(exists[None, :], bound, float("-inf")), neuron[None, :])
    slot = tl.arange(0, CAP)
    at = (tl.program_id(1).to(tl.int64) * P + patch)[:, None] * CAP + slot[None, :]
    tl.store(lists + at, index, mask=valid[:, None])
    tl.store(bounds + at, best, mask=valid[:, None])


@triton.jit
def _merged(lists, bounds, patch, valid, shares, P, CAP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    """The CAP highest bounds of each patch and their neurons, from ``shares`` lists of CAP each."""
    slot = tl.arange(0, BLOCK)
    at = (slot // CAP)[None, :].to(tl.int64) * P * CAP + patch[:, None].to(tl.int64) * CAP + (slot % CAP)[None, :]
    filled = valid[:, None] & (slot < shares * CAP)[None, :]
    bound = tl.load(bounds + at, mask=filled, other=float("-inf"))
    best, index = empty_lists(BLOCK_P, CAP, tl.float32)
    return insert(best, index, bound, tl.load(lists + at, mask=filled, other=NO_INDEX))


@triton.jit
def kth_highest(value, index, k):
    """[P]: the k-th highest of each row of value [P, M]."""
    highest = tl.max(value, axis=1)
    for _ in range(k - 1):
        name = tl.min(tl.where(value == highest[:, None], index, NO_INDEX), axis=1)
        value = tl.where(index == name[:, None], float("-inf"), value)
        highest = tl.max(value, axis=1)
    return highest


@triton.jit
def candidates(
    x, corner, valid, layout, weight, shift, total, inverse, index, live, N, SHAPE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """[P, M]: float32 responses of the ``live`` neurons, not yet times the patch's scale; -inf elsewhere."""
    sums = tl.zeros([index.shape[0], index.shape[1], BLOCK_N], tl.float32)
    for first in range(0, N, BLOCK_N):
        tile, entry = load_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK_N)
        tile, within = tile.to(tl.float32), entry < N
        at = weight + index[:, :, None].to(tl.int64) * N + entry[None, None, :]
        sums += tile[:, None, :] * tl.load(at, mask=live[:, :, None] & within[None, None, :], other=0.0)
    response = tl.sum(sums, axis=2)
    if shift is not None:
        response -= shift[:, None] * tl.load(total + index, mask=live, other=0)
    if inverse is not None:
        response *= tl.load(inverse + index, mask=live, other=0)
    response = tl.where(tl.abs(response) < float("inf"), response, float("inf"))
    return tl.where(live, response, float("-inf"))


@triton.jit
def decide_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, offset, scale, total, inverse, eligible, p_size, p_slip, w_size,
    w_slip, lists, bounds, winners, responses, keys, frozen, undecided, P, K, N, k, shares, zero_ranks,
    SHAPE: tl.constexpr, TOP: tl.constexpr, CAP: tl.constexpr, BY_RESPONSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_P patches: their ``shares`` lists of CAP candidates give the winners, or all neurons do."""
    patch, valid, corner = own_patches(tl.program_id(0), P, (sb, sh, sw, Ho, Wo, B, sg), SHAPE, BLOCK_P)
    layout = (sc, sh, sw, H, W)
    shift = None if offset is None else tl.load(offset + patch, mask=valid, other=0)
    best, index = _merged(lists, bounds, patch, valid, shares, P, CAP, BLOCK_P, BLOCK)
    others = tl.min(best, axis=1)  # no neuron that is not in the list has a higher bound
    listed = best > float("-inf")
    kept = tl.load(p_size + patch, mask=valid, other=0)
    lost = tl.load(p_slip + patch, mask=valid, other=0)
    near, wide = reach(kept, lost, shift, N)
    spread = uncertainty(near, wide, w_size, w_slip, index, listed)
    if inverse is not None:
        spread *= tl.load(inverse + index, mask=listed, other=0)
    # A candidate below the k-th lowest possible response has lost already, and is not read.
    sure = kth_highest(tl.where(listed, best - 2 * spread, float("-inf")), index, k)
    live = listed & ~(best < sure[:, None])
    response = candidates(x, corner, valid, layout, weight, shift, total, inverse, index, live, N, SHAPE, BLOCK_C)
    decided = (kth_highest(response, index, k) > others) | (others == float("-inf"))
    size = None if scale is None else tl.load(scale + patch, mask=valid, other=0)
    if size is not None:
        blank = size == 0
        response = tl.where(response > float("-inf"), response * size[:, None], response)
    else:
        blank = (kept == 0) & (lost == 0)
    response = tl.where(blank[:, None], float("-inf"), response)  # no neuron wins it
    decided = decided | blank
    write_lists(
        response, index, patch, valid & decided, winners, responses, keys, frozen, K, k, zero_ranks, BY_RESPONSE
    )
    left = valid & ~decided
    if undecided is not None:
        tl.store(undecided + patch, left.to(tl.int32), mask=valid)
    if tl.max(left.to(tl.int32), axis=0) > 0:
        winning, of_all = walk(
            x, corner, left, layout, weight, shift, size, total, inverse, eligible, 0, K, N,
            SHAPE, TOP, PRECISION, BLOCK_K, BLOCK_N,
        )  # fmt: skip
        write_lists(winning, of_all, patch, left, winners, responses, keys, frozen, K, k, zero_ranks, BY_RESPONSE)


def screened(task: Competition, undecided: Tensor | None = None) -> None:
    """Write winners and responses where few responses need float32.

    ``undecided``, int32 [P], is set to 1 for the patches that needed all, to 0 for the others.
    """
    view, rows, moments, eligible, k, winners, responses, keys = task
    P, K, N = task.sizes

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        return candidates_of(tile, task)

    tiles = [fitted(tile, task, tile.patches) for tile in TILES]
    lists, bounds = run(fastest("screen", rows, (P, K, N, k), tiles, run))
    shares, _, cap = lists.shape
    norms, tile = rounding_of(task)[1:], fitted(DECIDE, task, DECIDE.patches)
    launch(
        decide_kernel, (triton.cdiv(P, tile.patches),), *view.arguments, rows, *moments[:4], eligible, *norms, lists,
        bounds, winners, responses, keys.keys, keys.frozen, undecided, P, K, N, k, shares, keys.zero_ranks,
        SHAPE=view.shape, TOP=power_of_2(k), CAP=cap, BY_RESPONSE=keys.by_response,
        PRECISION=precision(), BLOCK_P=tile.patches, BLOCK_K=tile.neurons, BLOCK_N=power_of_2(N, 16, 16),
        BLOCK_C=DECIDE.inputs * 16 // cap, BLOCK=power_of_2(shares * cap), **tile.launch_options,
    )  # fmt: skip


def rounding_of(task: Competition) -> Rounding:
    assert task.moments.rounding is not None
    return task.moments.rounding


def candidates_of(tile: Tile, task: Competition) -> tuple[Tensor, Tensor]:
    """Candidates and bounds, [shares, P, CAP] each."""
    view, rows, moments = task[:3]
    (P, K, N), cap = task.sizes, power_of_2(4 * task.k, 16)
    rounded, *norms = rounding_of(task)
    shares, share = shares_of(task, tile)
    lists = rows.new_empty((shares, P, cap), dtype=torch.int32)
    bounds = rows.new_empty((shares, P, cap))
    launch(
        screen_kernel, (triton.cdiv(P, tile.patches), shares), *view.arguments, rounded, moments.offset,
        moments.inverse, task.eligible, *norms, lists, bounds, P, K, N, rounded.stride(0), share, SHAPE=view.shape,
        CAP=cap, BLOCK_P=tile.patches, BLOCK_K=tile.neurons, BLOCK_N=tile.inputs, **tile.launch_options,
    )  # fmt: skip
    return lists, bounds
