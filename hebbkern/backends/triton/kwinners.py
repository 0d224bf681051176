"""kwinners: all but the k highest entries along one dimension become zero, in one launch.

Entries compete as integers of their own width that are ordered as they are, so every dtype is a matter of 16, 32 or
64 bits and of exact comparisons. The k-th highest is found bit by bit with the row in registers, or, where the row is
too long for these, digit by digit in chunks that come from L2 after the first time.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern import checks
from hebbkern.backends.triton.launch import launch, power_of_2, processors, readable

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an entry
# 512 threads may hold 128 registers each: 32 entries at one for the bits, one for the key and one for the rank among
# equals leave a quarter of them for addresses; entries of 8 bytes need two for each of these but the rank.
LONGEST = {2: 16384, 4: 16384, 8: 8192}
CHUNK = 8192  # entries of a long row at a time, 16 a thread: enough loads in flight, and still two programs a processor
DIGIT, VALUES = tl.constexpr(8), tl.constexpr(256)  # bits of a digit, and how many values it has


@triton.jit
def _keys(bits):
    """Integers ordered as the floats of these bits; zeros of either sign are equal, -2^(bits - 1) is below them all."""
    magnitude = bits & (0x7FFF if bits.dtype == tl.int16 else 0x7FFFFFFF if bits.dtype == tl.int32 else (1 << 63) - 1)
    keys = tl.where(bits < 0, -magnitude, magnitude)
    return keys.to(tl.int32) if bits.dtype == tl.int16 else keys


@triton.jit
def _kth_highest(keys, k, BITS: tl.constexpr, AXIS: tl.constexpr):
    """Of each row the k-th highest key, built from its highest bit on, and how many keys are above it."""
    negative: tl.constexpr = -(1 << (BITS - 1))
    above = tl.sum((keys >= 0).to(tl.int32), axis=AXIS)
    threshold = tl.where(above >= k, tl.zeros_like(above).to(keys.dtype), negative)
    above = tl.where(above >= k, 0, above)
    step = tl.full([], 1, keys.dtype) << (BITS - 2)
    for _ in range(BITS - 1):
        higher = threshold | step
        count = tl.sum((keys >= tl.expand_dims(higher, AXIS)).to(tl.int32), axis=AXIS)
        threshold = tl.where(count >= k, higher, threshold)
        above = tl.where(count >= k, above, count)
        step = step >> 1
    return threshold, above


@triton.jit
def kwinners_kernel(
    y, out, k, D, rows, near, y_far, y_near, y_along, out_far, out_near, out_along,
    BITS: tl.constexpr, AXIS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_R rows whole: [rows, entries] for AXIS 1, [entries, rows] for AXIS 0."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    entry = tl.arange(0, BLOCK_D)
    exists = tl.expand_dims(entry < D, 1 - AXIS) & tl.expand_dims(row < rows, AXIS)
    entry = tl.expand_dims(entry.to(tl.int64), 1 - AXIS)
    start = tl.expand_dims(row // near * y_far + row % near * y_near, AXIS)
    bits = tl.load(y + start + entry * y_along, mask=exists, other=0)
    keys = tl.where(exists, _keys(bits), -(1 << (BITS - 1)))
    threshold, above = _kth_highest(keys, k, BITS, AXIS)
    threshold, room = tl.expand_dims(threshold, AXIS), tl.expand_dims(k - above, AXIS)
    equal = keys == threshold
    kept = (keys > threshold) | (equal & (tl.cumsum(equal.to(tl.int32), axis=AXIS) <= room))
    start = tl.expand_dims(row // near * out_far + row % near * out_near, AXIS)
    tl.store(out + start + entry * out_along, tl.where(kept, bits, 0), mask=exists)


@triton.jit
def kwinners_long_kernel(
    y, out, k, D, rows, near, y_far, y_near, y_along, out_far, out_near, out_along,
    BITS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A program owns a row, and reads it once for every digit of the k-th highest key and once more at the end."""
    row = tl.program_id(0).to(tl.int64)
    y += row // near * y_far + row % near * y_near
    out += row // near * out_far + row % near * out_near
    lane = tl.arange(0, CHUNK)
    digit = tl.arange(0, VALUES)
    wide: tl.constexpr = tl.int64 if BITS == 64 else tl.int32
    threshold = tl.full([], -(1 << (BITS - 1)), wide)
    room = k
    shift = tl.full([], BITS - DIGIT, wide)
    for _ in range(BITS // DIGIT):
        counts = tl.zeros([VALUES], tl.int32)
        for first in range(0, D, CHUNK):
            entry = first + lane
            keys = _keys(tl.load(y + entry.to(tl.int64) * y_along, mask=entry < D, other=0))
            here = (keys >> shift) - (threshold >> shift)
            equal = (here >= 0) & (here < VALUES) & (entry < D)
            counts += tl.histogram(tl.where(equal, here, 0).to(tl.int32), VALUES, mask=equal)
        at_least = tl.cumsum(counts, axis=0, reverse=True)
        chosen = tl.max(tl.where(at_least >= room, digit, 0), axis=0)
        room -= tl.sum(tl.where(digit > chosen, counts, 0), axis=0)
        threshold += chosen.to(wide) << shift
        shift -= DIGIT
    equal_before = 0
    for first in range(0, D, CHUNK):
        entry = first + lane
        bits = tl.load(y + entry.to(tl.int64) * y_along, mask=entry < D, other=0)
        keys = _keys(bits)
        equal = (keys == threshold) & (entry < D)
        kept = (keys > threshold) | (equal & (equal_before + tl.cumsum(equal.to(tl.int32), axis=0) <= room))
        equal_before += tl.sum(equal.to(tl.int32), axis=0)
        tl.store(out + entry.to(tl.int64) * out_along, tl.where(kept, bits, 0), mask=entry < D)


def _merged(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """One size and one stride for dimensions that can be merged, else None."""
    size, stride = 1, 0
    for extent, step in reversed(list(zip(sizes, strides, strict=True))):
        if extent == 1:
            continue
        if size == 1:
            stride = step
        elif step != size * stride:
            return None
        size *= extent
    return size, stride


def _lines(y: Tensor, dim: int) -> tuple[Tensor, int, tuple[int, int, int]]:
    """y, or a contiguous copy; how many positions follow ``dim``; strides before, after and along it."""
    before = _merged(y.shape[:dim], y.stride()[:dim])
    after = _merged(y.shape[dim + 1 :], y.stride()[dim + 1 :])
    if before is None or after is None:
        return _lines(y.contiguous(), dim)
    return y, after[0], (before[1], after[1], y.stride(dim))


def kwinners(y: Tensor, k: int, dim: int) -> Tensor:
    """The operator ``kwinners``."""
    if readable(y):
        checks.finite("kwinners", y=y)
    out, size, dim = y.new_empty(y.shape), y.element_size(), dim % y.dim()
    if not out.numel():
        return out
    y, near, strides = _lines(y, dim)
    D, integers = y.shape[dim], INTEGERS[size]
    rows, columns = y.numel() // D, near > 1
    arguments = y.view(integers), out.view(integers), k, D, rows, near, *strides, D * near, 1, near
    if LONGEST[size] < D:
        launch(kwinners_long_kernel, (rows,), *arguments, warps=16, BITS=8 * size, CHUNK=CHUNK)
        return out
    block = power_of_2(D, 16)
    # Rows of up to 2048 entries share a program of 4 warps; columns lie side by side, 8 of float32 to a sector, and
    # share one of 16 (a quarter of what these hold: addresses take registers). At least a warp's worth of entries,
    # but not so many that processors are left without a program.
    most = max(1, (LONGEST[size] // 4 if columns else 2048) // block)
    each = 256 if columns else 512  # entries a warp
    share = power_of_2(rows // (2 * processors(y)), min(max(8 if columns else 1, 512 // block), most), most)
    warps = min(max(share * block // each, 1), 16)
    launch(
        kwinners_kernel, (triton.cdiv(rows, share),), *arguments, warps=warps, registers=min(2048 // warps, 255),
        BITS=8 * size, AXIS=0 if columns else 1, BLOCK_R=share, BLOCK_D=block,
    )  # fmt: skip
    return out
