"""Arithmetic that all kernels share: products of tiles, ordered sums, and rounding to the dtype of the weights."""

import torch
import triton
import triton.language as tl

from hebbkern.backends.triton.launch import INTERPRETED


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total [M, N] + a [M, L] b [L, N], summed in total's dtype; half types multiply exactly, on tensor cores."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # the interpreter multiplies the bits of a bfloat16 as an integer
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def narrowed(value, dtype: tl.constexpr):
    """``value`` rounded to the nearest number of dtype, ties to even (the interpreter cuts bfloat16 off)."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        bits = tl.where((bits & 0x7F800000) == 0x7F800000, bits & -65536, rounded)
        return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    return value.to(dtype)


@triton.jit
def ordered_sum(tile):
    """[R], the sum of each row of a tile [R, C]: neighbours first, then neighbouring pairs, and so on.

    tl.sum adds in the order of the layout that the compiler gives the tile, by the strides of what it was loaded from.
    C is at most 64: longer rows take more registers than there are.
    """
    for _ in tl.static_range(31):
        if tile.shape[1] > 1:
            left, right = tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 2, 2]))
            tile = left + right
    return tl.reshape(tile, [tile.shape[0]])


@triton.jit
def quotient(a, b):
    """a / b, correctly rounded: "/" is not for float32 on a GPU."""
    if a.dtype == tl.float64:
        return a / b
    else:  # a return does not end a branch taken at compile time
        return tl.div_rn(a, b)


@triton.jit
def root(a):
    """The square root, correctly rounded."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


def precision() -> str:
    """How float32 tiles are multiplied, by torch.backends.cuda.matmul.fp32_precision.

    "ieee" (torch's default, "none") is exact float32, without tensor cores. Otherwise, also after
    torch.set_float32_matmul_precision("high"), each factor is split into two tf32 numbers and three of their products
    are summed on tensor cores ("tf32x3", error about 2^-21).
    """
    return "ieee" if torch.backends.cuda.matmul.fp32_precision in ("ieee", "none") else "tf32x3"
