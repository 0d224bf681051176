"""moments: what a competition needs to know of each patch and of each neuron, in one launch.

Of patches the two numbers of x̃ = (x - offset) · scale, of weights the sum and the inverse norm of each row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern import checks
from hebbkern.backends.triton.arithmetic import narrowed, ordered_sum
from hebbkern.backends.triton.launch import block, launch, power_of_2, readable
from hebbkern.backends.triton.patches import FLAT_SHARE, LINEAR, PatchView, corners, load_entries, own_patches


class Rounding(NamedTuple):
    """What screening needs: the weights in bfloat16, and norms of what rounding keeps (size) and loses (slip)."""

    rounded: Tensor  # [K, N], rows apart by a multiple of 8 so that 16 bytes can be loaded at once
    p_size: Tensor  # [P], of the rounded patch, its offset taken off
    p_slip: Tensor
    w_size: Tensor  # [K], of the weights as they are
    w_slip: Tensor


class Moments(NamedTuple):
    """None: every offset is 0, every scale is 1, the total is not needed, every inverse is 1."""

    offset: Tensor | None = None  # [P]
    scale: Tensor | None = None  # [P]; 0: the patch is flat, or zero
    total: Tensor | None = None  # [K], Σ w
    inverse: Tensor | None = None  # [K], 1 / |w|, 0 for a row of zeros
    rounding: Rounding | None = None


@triton.jit
def _wide_entries(x, corner, valid, first, N, layout, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """load_entries in float32 or float64, and which entries there are."""
    tile, entry = load_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK)
    return tile.to(tl.float64 if tile.dtype == tl.float64 else tl.float32), entry < N


@triton.jit
def sums_and_norms(x, corner, valid, N, layout, CENTRE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """Sum, mean, norm and norm about the mean of each patch; no square overflows or vanishes."""
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    rows: tl.constexpr = valid.shape[0]
    sums = tl.zeros([rows, BLOCK], wide)
    largest = tl.zeros([rows], wide)
    for first in range(0, N, BLOCK):
        tile, _ = _wide_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK)
        sums += tile
        largest = tl.maximum(largest, tl.max(tl.abs(tile), axis=1))
    total = ordered_sum(sums)
    mean = total / N
    unit = tl.where(largest == 0, 1, largest)
    squares = tl.zeros([rows, BLOCK], wide)
    about = tl.zeros([rows, BLOCK], wide)
    slips = tl.zeros([rows, BLOCK], wide)
    for first in range(0, N, BLOCK):
        tile, within = _wide_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK)
        share = tile / unit[:, None]
        squares = tl.fma(share, share, squares)
        if CENTRE:
            share = tl.where(within[None, :], (tile - mean[:, None]) / unit[:, None], 0)
            slips += share
            about = tl.fma(share, share, about)
    # The mean was rounded: add what it leaves of the sum.
    slip = ordered_sum(slips) / N
    spread = tl.sqrt(tl.maximum(ordered_sum(about) - slip * slip * N, 0)) * unit
    return total, tl.fma(slip, unit, mean), tl.sqrt(ordered_sum(squares)) * unit, spread


@triton.jit
def _rounding_of(
    x, corner, valid, mean, rounded, N, layout, CENTRE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Norm of each patch in bfloat16 and of what that takes from it; ``rounded`` (may be None): where to write it."""
    size = tl.zeros([valid.shape[0]], tl.float32)
    slip = tl.zeros([valid.shape[0]], tl.float32)
    largest = tl.zeros([valid.shape[0]], tl.float32)
    furthest = tl.zeros([valid.shape[0]], tl.float32)
    for first in range(0, N, BLOCK):
        tile, within = _wide_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK)
        if CENTRE:
            tile = tl.where(within[None, :], tile - mean[:, None], 0.0)
        near = narrowed(tile, tl.bfloat16)
        if rounded is not None:
            at = rounded[:, None] + (first + tl.arange(0, BLOCK))[None, :]
            tl.store(at, near, mask=valid[:, None] & within[None, :])
        kept = near.to(tl.float32)
        lost = tile - kept
        size += tl.sum(kept * kept, axis=1)
        slip += tl.sum(lost * lost, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(kept), axis=1))
        furthest = tl.maximum(furthest, tl.max(tl.abs(lost), axis=1))
    # A norm is at least its largest entry, whose square may vanish: a norm of 0 means zeros only.
    return tl.maximum(tl.sqrt(size), largest), tl.maximum(tl.sqrt(slip), furthest)


@triton.jit
def _inverse(length, zero, norm):
    """1 / length, 0 where ``zero``; NaN where the norm overflowed, which would pass for zeros otherwise."""
    inverse = tl.where(zero, 0, 1 / tl.where(zero, 1, length))
    return tl.where(norm < float("inf"), inverse, float("nan"))


@triton.jit
def moments_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, offset, scale, total, inverse, rounded, p_size, p_slip, w_size,
    w_slip, P, K, N, stride,
    SHAPE: tl.constexpr, UNIT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_P patches, or after all patches as many neurons; second reads come from L1.

    UNIT: the scale is that to norm 1 (about the mean if there is an offset), else 1; 0 for a flat patch.
    """
    program = tl.program_id(0)
    of_patches = tl.cdiv(P, BLOCK_P) if offset is not None or scale is not None or p_size is not None else 0
    CENTRE: tl.constexpr = offset is not None
    layout = (sc, sh, sw, H, W)
    if program < of_patches:
        patch, valid, corner = own_patches(program, P, (sb, sh, sw, Ho, Wo, B, sg), SHAPE, BLOCK_P)
        mean = None
        if CENTRE or scale is not None:
            _, mean, norm, spread = sums_and_norms(x, corner, valid, N, layout, CENTRE, SHAPE, BLOCK_N)
        if CENTRE:
            tl.store(offset + patch, mean, mask=valid)
        if scale is not None:
            length = spread if CENTRE else norm
            flat = length <= norm * FLAT_SHARE
            if UNIT:
                tl.store(scale + patch, _inverse(length, flat, norm), mask=valid)
            else:  # an infinite norm is not known well enough to call the patch flat
                tl.store(scale + patch, tl.where(flat & (norm < float("inf")), 0.0, 1.0), mask=valid)
        if p_size is not None:
            size, slip = _rounding_of(x, corner, valid, mean, None, N, layout, CENTRE, SHAPE, BLOCK_N)
            tl.store(p_size + patch, size, mask=valid)
            tl.store(p_slip + patch, slip, mask=valid)
    elif weight is not None:
        neuron = (program - of_patches) * BLOCK_P + tl.arange(0, BLOCK_P)
        exists = neuron < K
        begin = corners(neuron, (N, 0, 0, 1, 1, 1, 0), LINEAR)
        sums, _, norm, _ = sums_and_norms(weight, begin, exists, N, (1, 0, 0, 1, 1), False, LINEAR, BLOCK_N)
        if total is not None:
            tl.store(total + neuron, sums, mask=exists)
        if inverse is not None:
            tl.store(inverse + neuron, _inverse(norm, norm == 0, norm), mask=exists)
        if rounded is not None:
            rows = rounded + neuron.to(tl.int64) * stride
            _, slip = _rounding_of(weight, begin, exists, None, rows, N, (1, 0, 0, 1, 1), False, LINEAR, BLOCK_N)
            tl.store(w_size + neuron, norm, mask=exists)
            tl.store(w_slip + neuron, slip, mask=exists)


def moments_of(
    op: str, view: PatchView, patches: str, *, weight: Tensor | None = None,
    unit: bool = False, total: bool = False, rounding: bool = False,
) -> Moments:  # fmt: skip
    """Moments of the patches and of the rows of ``weight`` [K, N], in at most one launch.

    ``unit`` scales patches to norm 1 (after centring, if they are centred), and requests the rows' inverse norms;
    ``total`` requests the rows' sums; ``rounding`` what screening needs (float32 only).
    """
    x, P, N = view.x, view.patches, view.entries
    K = 0 if weight is None else weight.shape[0]
    dtype = checks.result_dtype(x.dtype)

    def numbers(rows: int, wanted: bool) -> Tensor | None:
        return x.new_empty(rows, dtype=dtype) if wanted else None

    offset, scale = numbers(P, patches != "raw"), numbers(P, unit or patches != "raw")
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
        moments_kernel, (programs,), *view.arguments, weight, offset, scale, sums, inverse, *(near or [None] * 5),
        P, K, N, stride, SHAPE=view.shape, UNIT=unit or patches == "standardised",
        BLOCK_P=rows_each, BLOCK_N=power_of_2(N, 16, block(64)),
    )  # fmt: skip
    if scale is not None and readable(x):
        checks.finite_norms(op, torch.where(scale == 0, 1, 1 / scale))
    return Moments(offset, scale, sums, inverse, near)


def any_of(*tensors: object) -> bool:
    return any(tensor is not None for tensor in tensors)
