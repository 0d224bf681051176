"""moments: what a competition needs to know of each patch and of each neuron, in one launch.

Of patches the two numbers of x̃ = (x - offset) · scale, of weights the sum and the inverse norm of each row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hebbkern import checks
from hebbkern.backends.triton.arithmetic import narrowed, ordered_sum
from hebbkern.backends.triton.launch import block, launch, power_of_2, readable
from hebbkern.backends.triton.patches import FLAT_SHARE, LINEAR, corners, load_patches, taps


class Rounding(NamedTuple):
    """What screening knows: the weights in bfloat16, and norms of what is kept (size) and lost (slip) by rounding."""

    rounded: torch.Tensor  # [K, N], rows apart by a multiple of 8 so that 16 bytes can be loaded at once
    p_size: torch.Tensor  # [P], of the rounded patch, its offset taken off
    p_slip: torch.Tensor
    w_size: torch.Tensor  # [K], of the weights as they are
    w_slip: torch.Tensor


class Moments(NamedTuple):
    """None where a number is the same everywhere: offset 0, scale 1, total not asked for, inverse 1."""

    offset: torch.Tensor | None = None  # [P]
    scale: torch.Tensor | None = None  # [P]
    total: torch.Tensor | None = None  # [K], Σ w
    inverse: torch.Tensor | None = None  # [K], 1 / |w|, 0 for a row of zeros
    rounding: Rounding | None = None


@triton.jit
def _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """The next BLOCK entries of each patch, wide, and which of them there are."""
    entry = first + tl.arange(0, BLOCK)
    offset, down, right = taps(entry, sc, sh, sw, SHAPE)
    tile = load_patches(x, start, row, column, known, offset, down, right, entry < N, H, W, SHAPE)
    return tile.to(tl.float64 if tile.dtype == tl.float64 else tl.float32), entry < N


@triton.jit
def moments_of(
    x, start, row, column, known, sc, sh, sw, H, W, N, CENTRE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum, mean, norm and norm about the mean of each patch; no square overflows or vanishes."""
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    rows: tl.constexpr = known.shape[0]
    sums = tl.zeros([rows, BLOCK], wide)
    largest = tl.zeros([rows], wide)
    for first in range(0, N, BLOCK):
        tile, _ = _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE, BLOCK)
        sums += tile
        largest = tl.maximum(largest, tl.max(tl.abs(tile), axis=1))
    total = ordered_sum(sums)
    mean = total / N
    unit = tl.where(largest == 0, 1, largest)
    squares = tl.zeros([rows, BLOCK], wide)
    about = tl.zeros([rows, BLOCK], wide)
    slips = tl.zeros([rows, BLOCK], wide)
    for first in range(0, N, BLOCK):
        tile, within = _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE, BLOCK)
        share = tile / unit[:, None]
        squares = tl.fma(share, share, squares)
        if CENTRE:
            share = tl.where(within[None, :], (tile - mean[:, None]) / unit[:, None], 0)
            slips += share
            about = tl.fma(share, share, about)
    # The mean was rounded: what it leaves of the sum is made good.
    slip = ordered_sum(slips) / N
    spread = tl.sqrt(tl.maximum(ordered_sum(about) - slip * slip * N, 0)) * unit
    return total, tl.fma(slip, unit, mean), tl.sqrt(ordered_sum(squares)) * unit, spread


@triton.jit
def _rounding_of(
    x, start, row, column, known, mean, rounded, sc, sh, sw, H, W, N,
    CENTRE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Norm of each patch in bfloat16 and of what that takes from it; ``rounded`` (may be None) is where it goes."""
    size = tl.zeros([known.shape[0]], tl.float32)
    slip = tl.zeros([known.shape[0]], tl.float32)
    largest = tl.zeros([known.shape[0]], tl.float32)
    furthest = tl.zeros([known.shape[0]], tl.float32)
    for first in range(0, N, BLOCK):
        tile, within = _entries(x, start, row, column, known, first, sc, sh, sw, H, W, N, SHAPE, BLOCK)
        if CENTRE:
            tile = tl.where(within[None, :], tile - mean[:, None], 0.0)
        near = narrowed(tile, tl.bfloat16)
        if rounded is not None:
            at = rounded[:, None] + (first + tl.arange(0, BLOCK))[None, :]
            tl.store(at, near, mask=known[:, None] & within[None, :])
        kept = near.to(tl.float32)
        lost = tile - kept
        size += tl.sum(kept * kept, axis=1)
        slip += tl.sum(lost * lost, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(kept), axis=1))
        furthest = tl.maximum(furthest, tl.max(tl.abs(lost), axis=1))
    # A norm is at least its largest entry, whose square may vanish: 0 is nothing but zeros.
    return tl.maximum(tl.sqrt(size), largest), tl.maximum(tl.sqrt(slip), furthest)


@triton.jit
def _inverse(length, nothing, norm):
    """1 / length, 0 for nothing; NaN where the norm overflowed, which would pass for zeros otherwise."""
    inverse = tl.where(nothing, 0, 1 / tl.where(nothing, 1, length))
    return tl.where(norm < float("inf"), inverse, float("nan"))


@triton.jit
def moments_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, offset, scale, total, inverse, rounded, p_size, p_slip, w_size, w_slip,
    P, K, N, stride,
    SHAPE: tl.constexpr, SCALE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_P patches, or behind these as many neurons; what it reads again comes from L1.

    SCALE: "unit" (to norm 1, about the mean if there is an offset) or "flat" (and flat patches to zeros).
    """
    program = tl.program_id(0)
    of_patches = tl.cdiv(P, BLOCK_P) if offset is not None or scale is not None or p_size is not None else 0
    CENTRE: tl.constexpr = offset is not None
    if program < of_patches:
        patch = program * BLOCK_P + tl.arange(0, BLOCK_P)
        known = patch < P
        start, row, column = corners(patch, sb, sh, sw, Ho, Wo, SHAPE)
        mean = None
        if CENTRE or scale is not None:
            _, mean, norm, spread = moments_of(
                x, start, row, column, known, sc, sh, sw, H, W, N, CENTRE, SHAPE, BLOCK_N
            )
        if CENTRE:
            tl.store(offset + patch, mean, mask=known)
        if scale is not None:
            length = spread if CENTRE else norm
            nothing = length == 0
            if SCALE == "flat":
                nothing = length <= norm * FLAT_SHARE
            tl.store(scale + patch, _inverse(length, nothing, norm), mask=known)
        if p_size is not None:
            size, slip = _rounding_of(
                x, start, row, column, known, mean, None, sc, sh, sw, H, W, N, CENTRE, SHAPE, BLOCK_N
            )
            tl.store(p_size + patch, size, mask=known)
            tl.store(p_slip + patch, slip, mask=known)
    elif weight is not None:
        neuron = (program - of_patches) * BLOCK_P + tl.arange(0, BLOCK_P)
        known = neuron < K
        start, row, column = corners(neuron, N, 0, 0, 1, 1, LINEAR)
        sums, _, norm, _ = moments_of(weight, start, row, column, known, 1, 0, 0, 1, 1, N, False, LINEAR, BLOCK_N)
        if total is not None:
            tl.store(total + neuron, sums, mask=known)
        if inverse is not None:
            tl.store(inverse + neuron, _inverse(norm, norm == 0, norm), mask=known)
        if rounded is not None:
            rows = rounded + neuron.to(tl.int64) * stride
            _, slip = _rounding_of(
                weight, start, row, column, known, None, rows, 1, 0, 0, 1, 1, N, False, LINEAR, BLOCK_N
            )
            tl.store(w_size + neuron, norm, mask=known)
            tl.store(w_slip + neuron, slip, mask=known)


def moments(op, where, patches, *, weight=None, unit=False, total=False, rounding=False):
    """Moments of the patches at ``where`` and of the rows of ``weight`` [K, N], in at most one launch.

    ``unit`` scales patches to norm 1 (after centring, if they are), and asks for the rows' inverse norms;
    ``total`` asks for the rows' sums; ``rounding`` for what screening needs (float32 only).
    """
    x, P, N = where.x, where.patches, where.entries
    K = 0 if weight is None else weight.shape[0]
    dtype = checks.result_dtype(x.dtype)
    scaled = unit or patches == "standardised"

    def numbers(rows, wanted):
        return x.new_empty(rows, dtype=dtype) if wanted else None

    offset, scale = numbers(P, patches != "raw"), numbers(P, scaled)
    sums, inverse = numbers(K, total and weight is not None), numbers(K, unit and weight is not None)
    stride = triton.cdiv(N, 8) * 8
    near = None
    if rounding:
        sizes = (x.new_empty(rows, dtype=torch.float32) for rows in (P, P, K, K))
        near = Rounding(x.new_empty((K, stride), dtype=torch.bfloat16), *sizes)
    # 16 x 64: a warp reads 64 neighbours of 4 patches, and a few thousand patches still fill every processor.
    rows_each = block(16)
    of_patches, of_rows = any_of(offset, scale, near), any_of(sums, inverse, near)
    # Numbers, not bools: torch.compile may have a symbol for P, which no bool can be multiplied with.
    programs = int(of_patches) * triton.cdiv(P, rows_each) + int(of_rows) * triton.cdiv(K, rows_each)
    launch(
        moments_kernel, (programs,), *where.arguments, weight, offset, scale, sums, inverse, *(near or [None] * 5),
        P, K, N, stride, SHAPE=where.shape, SCALE="flat" if patches == "standardised" else "unit",
        BLOCK_P=rows_each, BLOCK_N=power_of_2(N, 16, block(64)),
    )  # fmt: skip
    if scaled and readable(x):
        checks.finite_norms(op, torch.where(scale == 0, 1, 1 / scale))
    return Moments(offset, scale, sums, inverse, near)


def any_of(*tensors):
    return any(tensor is not None for tensor in tensors)
