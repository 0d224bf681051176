"""moments: what a competition needs to know of each patch and of each neuron, in one launch.

Of patches the two numbers of x̃ = (x - offset) · scale, of weights the sum and the inverse norm of each row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hebbkern.ops import checks
from hebbkern.triton.launch import block, launch, power_of_2, readable
from hebbkern.triton.patches import FLAT_SHARE, LINEAR, corners, load_patches, taps


class Moments(NamedTuple):
    """None where a number is the same everywhere: offset 0, scale 1, total not asked for, inverse 1."""

    offset: torch.Tensor | None = None  # [P]
    scale: torch.Tensor | None = None  # [P]
    total: torch.Tensor | None = None  # [K], Σ w
    inverse: torch.Tensor | None = None  # [K], 1 / |w|, 0 for a row of zeros


@triton.jit
def _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """The next BLOCK entries of each patch, wide, and which of them there are."""
    entry = first + tl.arange(0, BLOCK)
    offset, down, right = taps(entry, sc, sh, sw, SHAPE)
    tile = load_patches(x, start, row, column, known, offset, down, right, entry < N, H, W, SHAPE)
    return tile.to(tl.float64 if tile.dtype == tl.float64 else tl.float32), entry < N


@triton.jit
def _moments_of(
    x, start, row, column, known, sc, sh, sw, H, W, N, CENTRE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum, mean, norm and norm about the mean of each patch; no square overflows or vanishes."""
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([known.shape[0]], wide)
    largest = tl.zeros([known.shape[0]], wide)
    for first in range(0, N, BLOCK):
        tile, _ = _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE, BLOCK)
        total += tl.sum(tile, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(tile), axis=1))
    mean = total / N
    unit = tl.where(largest == 0, 1, largest)
    squares = tl.zeros([known.shape[0]], wide)
    spread = tl.zeros([known.shape[0]], wide)
    slip = tl.zeros([known.shape[0]], wide)
    for first in range(0, N, BLOCK):
        tile, within = _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE, BLOCK)
        share = tile / unit[:, None]
        squares += tl.sum(share * share, axis=1)
        if CENTRE:
            share = tl.where(within[None, :], (tile - mean[:, None]) / unit[:, None], 0)
            slip += tl.sum(share, axis=1)
            spread += tl.sum(share * share, axis=1)
    # The mean was rounded: what it leaves of the sum is made good.
    slip = slip / N
    spread = tl.sqrt(tl.maximum(spread - slip * slip * N, 0)) * unit
    return total, mean + slip * unit, tl.sqrt(squares) * unit, spread


@triton.jit
def moments_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, offset, scale, total, inverse, P, K, N,
    SHAPE: tl.constexpr, SCALE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_P patches, or behind these as many neurons, and reads them twice (the second time from L1).

    SCALE: "none", "unit" (to norm 1, about the mean if there is an offset) or "flat" (and flat patches to zeros).
    """
    program = tl.program_id(0)
    of_patches = tl.cdiv(P, BLOCK_P) if offset is not None or scale is not None else 0
    CENTRE: tl.constexpr = offset is not None
    if program < of_patches:
        patch = program * BLOCK_P + tl.arange(0, BLOCK_P)
        known = patch < P
        start, row, column = corners(patch, sb, sh, sw, Ho, Wo, SHAPE)
        _, mean, norm, spread = _moments_of(x, start, row, column, known, sc, sh, sw, H, W, N, CENTRE, SHAPE, BLOCK_N)
        if CENTRE:
            tl.store(offset + patch, mean, mask=known)
        if scale is not None:
            length = spread if CENTRE else norm
            nothing = length == 0
            if SCALE == "flat":
                nothing = length <= norm * FLAT_SHARE
            tl.store(scale + patch, tl.where(nothing, 0, 1 / tl.where(nothing, 1, length)), mask=known)
    else:
        neuron = (program - of_patches) * BLOCK_P + tl.arange(0, BLOCK_P)
        known = neuron < K
        start, row, column = corners(neuron, N, 0, 0, 1, 1, LINEAR)
        sums, _, norm, _ = _moments_of(weight, start, row, column, known, 1, 0, 0, 1, 1, N, False, LINEAR, BLOCK_N)
        if total is not None:
            tl.store(total + neuron, sums, mask=known)
        if inverse is not None:
            tl.store(inverse + neuron, tl.where(norm == 0, 0, 1 / tl.where(norm == 0, 1, norm)), mask=known)


def moments(op, where, patches, *, weight=None, unit=False, total=False, rounding=False):
    """Moments of the patches at ``where`` and of the rows of ``weight`` [K, N], in at most one launch.

    ``unit`` scales patches to norm 1 (after centring, if they are), and asks for the rows' inverse norms;
    ``total`` asks for the rows' sums.
    """
    x, P, N = where.x, where.patches, where.entries
    K = 0 if weight is None else weight.shape[0]
    dtype = checks.result_dtype(x.dtype)
    scaled = unit or patches == "standardised"
    offset = x.new_empty(P, dtype=dtype) if patches != "raw" else None
    scale = x.new_empty(P, dtype=dtype) if scaled else None
    sums = x.new_empty(K, dtype=dtype) if total and K else None
    inverse = x.new_empty(K, dtype=dtype) if unit and K else None
    # 16 x 64: a warp reads 64 neighbours of 4 patches, and a few thousand patches still fill every processor.
    rows_each = block(16)
    rows = triton.cdiv(P, rows_each) if offset is not None or scale is not None else 0
    rows += triton.cdiv(K, rows_each) if sums is not None or inverse is not None else 0
    settings = {"SHAPE": where.shape, "SCALE": "flat" if patches == "standardised" else "unit" if unit else "none"}
    launch(
        moments_kernel, (rows,), *where.arguments, weight, offset, scale, sums, inverse, P, K, N,
        BLOCK_P=rows_each, BLOCK_N=power_of_2(N, 16, block(64)), **settings,
    )  # fmt: skip
    if scaled and readable(x):
        checks.finite_norms(op, torch.where(scale == 0, 1, 1 / scale))
    return Moments(offset, scale, sums, inverse)
