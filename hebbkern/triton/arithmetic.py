"""Arithmetic that every kernel shares: products of tiles, and rounding to the dtype of the weights."""

import torch
import triton
import triton.language as tl

from hebbkern.triton.launch import INTERPRETED


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


def precision():
    """How float32 tiles are multiplied, by torch.set_float32_matmul_precision.

    "highest" (torch's default) is exact float32 ("ieee", no tensor cores); with "high" and "medium" each factor is
    split into two tf32 numbers and three of their products are summed on tensor cores ("tf32x3", error about 2^-21).
    """
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32x3"
