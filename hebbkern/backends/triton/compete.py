"""compete: the k neurons of the highest responses to each patch.

A program owns a tile of patches and walks over tiles of neurons, keeping the k strongest on chip: patches are read
where they lie in the image, and no matrix of patches by neurons is ever written. Where there are few patches, several
programs share the neurons of a tile between them, and a second kernel merges their winners. A tile of patches is of one
group, and competes for the neurons of that.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern import checks
from hebbkern.backends.screening import get_screening
from hebbkern.backends.triton import screen
from hebbkern.backends.triton.arithmetic import precision
from hebbkern.backends.triton.launch import block, launch, power_of_2, readable
from hebbkern.backends.triton.lists import empty_lists, insert, write_lists
from hebbkern.backends.triton.moments import Moments, moments_of
from hebbkern.backends.triton.patches import all_zeros, own_patches, patch_view, tile_of_group
from hebbkern.backends.triton.tuning import fastest
from hebbkern.backends.triton.walk import Competition, Keys, Tile, shares_of, tiles_of, walk


@triton.jit
def blank_patches(best, x, corner, valid, layout, scale, N, SHAPE: tl.constexpr, BLOCK_N: tl.constexpr):
    """[P]: the patches that no neuron wins. Raw patches are read again only where the strongest response is 0."""
    if scale is not None:
        return scale == 0
    else:  # a return does not end a branch taken at compile time
        return all_zeros(x, corner, valid & (tl.max(best, axis=1) == 0), layout, N, SHAPE, BLOCK_N)


@triton.jit
def compete_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, offset, scale, total, inverse, eligible, winners, responses, keys,
    frozen, groups, P, K, N, k, share, zero_ranks,
    SHAPE: tl.constexpr, TOP: tl.constexpr, BY_RESPONSE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (i, s): tile i of patches, neurons s * share to (s + 1) * share; its winners are list s of all lists.

    P, K: patches and neurons of a group. Neighbouring programs own neighbouring patches and the same neurons, which
    they find in L2.
    """
    group, tile = tile_of_group(P, SHAPE, BLOCK_P)
    patch, valid, corner = own_patches(tile, P, (sb, sh, sw, Ho, Wo, B, sg), SHAPE, BLOCK_P, group * P)
    # No function can return None or a tile, nor a tuple with None in it: Triton 3.6 compiles neither.
    shift = None if offset is None else tl.load(offset + patch, mask=valid, other=0)
    size = None if scale is None else tl.load(scale + patch, mask=valid, other=0)
    begin = tl.program_id(1) * share
    best, index = walk(
        x, corner, valid, (sc, sh, sw, H, W), weight, shift, size, total, inverse, eligible,
        group * K + begin, group * K + tl.minimum(begin + share, K), N, SHAPE, TOP, PRECISION, BLOCK_K, BLOCK_N,
    )  # fmt: skip
    blank = blank_patches(best, x, corner, valid, (sc, sh, sw, H, W), size, N, SHAPE, BLOCK_N)
    best = tl.where(blank[:, None], float("-inf"), best)
    at = tl.program_id(1).to(tl.int64) * groups * P * k
    write_lists(
        best, index, patch, valid, winners + at, responses + at, keys, frozen, groups * K, k, zero_ranks, BY_RESPONSE
    )


@triton.jit
def merge_kernel(
    lists, listed, winners, responses, keys, frozen, P, K, k, shares, zero_ranks,
    TOP: tl.constexpr, BY_RESPONSE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The k strongest of the ``shares`` lists [shares, P, k] of each patch."""
    patch = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    valid = patch < P
    slot = tl.arange(0, BLOCK)
    at = (slot // k)[None, :].to(tl.int64) * P * k + patch[:, None].to(tl.int64) * k + (slot % k)[None, :]
    filled = valid[:, None] & (slot < shares * k)[None, :]
    neuron = tl.load(lists + at, mask=filled, other=-1)
    response = tl.load(listed + at, mask=filled, other=0)
    best, index = empty_lists(BLOCK_P, TOP, response.dtype)
    best, index = insert(best, index, tl.where(neuron >= 0, response, float("-inf")), neuron)
    write_lists(best, index, patch, valid, winners, responses, keys, frozen, K, k, zero_ranks, BY_RESPONSE)


def powers(op: str, weight: Tensor, p: float, eligible: Tensor | None) -> Tensor:
    """[K, N] contiguous: sign(w) |w|^(p - 1), in the result dtype unless p is 2."""
    rows = weight.reshape(weight.shape[0], -1).contiguous()
    if p == 2:
        return rows
    rows = rows.to(checks.result_dtype(rows.dtype))
    rows = rows.sign() * rows.abs() ** (p - 1)
    if readable(weight):
        checks.no_overflow(op, "weight and p must give finite powers", rows if eligible is None else rows[eligible])
    return rows


def competition(
    op: str, x: Tensor, weight: Tensor, k: int, p: float, cosine: bool, patches: str, *geometry: Any,
    eligible: Tensor | None = None, keys: Keys | None = None,
) -> tuple[Tensor, Tensor, Moments]:  # fmt: skip
    """Winners int32 [P, k], responses [P, k] and the moments of the patches; at most three launches."""
    view = patch_view(x, weight.shape[2:], *geometry)
    rows = powers(op, weight, p, eligible)
    screened = view.groups == 1 and screen.worthwhile(rows, k, get_screening())
    moments = moments_of(op, view, patches, weight=rows, unit=cosine, total=patches != "raw", rounding=screened)
    winners = x.new_empty((view.patches, k), dtype=torch.int32)
    responses = x.new_empty((view.patches, k), dtype=checks.result_dtype(x.dtype))
    task = Competition(view, rows, moments, eligible, k, winners, responses, keys or Keys())
    (screen.screened if screened else unscreened)(task)
    if readable(x):
        checks.no_overflow(op, checks.RESPONSES, responses)
    return winners, responses, moments


def unscreened(task: Competition) -> None:
    """Write winners and responses, computing every response."""
    tiles = tiles_of(task, task.rows.dtype)

    def run(tile: Tile) -> None:
        by_tiles_of(tile, task)

    run(fastest("compete", task.rows, (task.view.groups, *task.sizes, task.k), tiles, run))


def by_tiles_of(tile: Tile, task: Competition) -> None:
    """Write winners and responses by programs of this tile."""
    view, rows, moments, eligible, k, winners, responses, keys = task
    groups, (P, K, N) = view.groups, task.sizes
    shares, share = shares_of(task, tile)
    alone = shares == 1
    lists, listed = winners, responses
    if not alone:
        lists, listed = (found.new_empty((shares, *found.shape)) for found in (winners, responses))
    settings = {"TOP": power_of_2(k), "BY_RESPONSE": keys.by_response}
    last = keys.keys, keys.frozen
    launch(
        compete_kernel, (groups * triton.cdiv(P, tile.patches), shares), *view.arguments, rows, *moments[:4], eligible,
        lists, listed, *(last if alone else (None, None)), groups, P, K, N, k, share, keys.zero_ranks,
        SHAPE=view.shape, **settings, PRECISION=precision(), BLOCK_P=tile.patches, BLOCK_K=tile.neurons,
        BLOCK_N=tile.inputs, **tile.launch_options,
    )  # fmt: skip
    if not alone:
        width = power_of_2(shares * k)
        most = power_of_2(triton.cdiv(1024, width), 1, block(16))  # 8 candidates a thread
        launch(
            merge_kernel, (triton.cdiv(groups * P, most),), lists, listed, winners, responses, *last, groups * P,
            groups * K, k, shares, keys.zero_ranks, **settings, BLOCK_P=most, BLOCK=width,
        )  # fmt: skip


def compete(
    x: Tensor, weight: Tensor, k: int, p: float, cosine: bool, patches: str,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, eligible: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator ``compete``."""
    if readable(x):
        checks.finite("compete", x=x, weight=weight)
    eligible = None if eligible is None else eligible.contiguous()
    geometry = stride, padding, dilation, groups
    return competition("compete", x, weight, k, p, cosine, patches, *geometry, eligible=eligible)[:2]
