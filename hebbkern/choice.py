"""Which kernels serve an operator on a GPU where both are there: the compiled ones of csrc/cuda, or Triton's.

The two give the same winners, and the same sums up to the order of summation. The table below says up to how much work
the compiled ones run, in products (patches x neurons x inputs), and why. It was made without a GPU, from what launches
cost the host and from what each kernel's instructions can reach, and corrected by the one run on an H100 that there was
(docs/speed.md), in which no competition was timed; ``bench/gpu.py`` times both kinds on every workload and says where
the table chooses the slower one.
"""

from math import inf
from typing import NamedTuple

import torch

TENSOR_CORES = (torch.bfloat16, torch.float16)


class Entry(NamedTuple):
    """Products up to which the compiled kernels serve an operator."""

    exact: float  # where float32 or float64 is multiplied without tensor cores
    tensor: float  # where half types are, or float32 in parts, as torch's fp32_precision allows
    why: str


LAUNCHES = 2**27  # about 10 us of an H100's tensor cores: less than the host takes for a Triton launch or two
DENSE = 2**30  # 1.0e9 products of tf32 took the compiled kernels 0.84 ms and Triton's 1.18 ms on an H100
TABLE = {
    "compete": Entry(
        LAUNCHES,
        LAUNCHES,
        "one call launches all kernels, where Triton's Python takes longer than the kernels run; beyond, competitions "
        "are screened or multiplied on tensor cores, which Triton drives by wgmma, about 1.5 times as fast as mma.sync",
    ),
    "learn_winners_": Entry(LAUNCHES, LAUNCHES, "a competition is most of it"),
    "match": Entry(inf, LAUNCHES, "both multiply float32 without tensor cores; in parts on them only Triton does"),
    "sanger": Entry(inf, DENSE, "ATen's products are most of it; in parts on tensor cores only Triton multiplies"),
    "learn_dense_": Entry(inf, DENSE, "as sanger"),
    "accumulate": Entry(
        inf, inf, "bound by memory and by its launches: CUB sorts, pieces are gathered 16 bytes a read"
    ),
    "apply_": Entry(inf, inf, "bound by memory: two launches, of which the host sees one call"),
    "kwinners": Entry(inf, inf, "a radix select reads a row once, Triton's bit by bit counts it once a bit"),
}


def products(name, tensor, *arguments):
    """Patches x neurons x inputs of a call of operator ``name``, as its schema takes them.

    0 for what the operator will refuse.
    """
    if name in ("accumulate", "apply_", "kwinners"):
        return 0
    x, weight = (arguments[0], tensor) if name.startswith("learn_") else (tensor, arguments[0])
    if x.dim() != 4 or weight.dim() != 4:
        return x.numel() * weight.shape[0] if weight.dim() else 0
    stride, padding, dilation = arguments[-4:-1]  # every schema ends with them and a mask
    if not all(map(_is_pair, (stride, padding, dilation))) or min(stride) < 1:
        return 0
    positions = x.shape[0]
    for axis in (0, 1):
        span = dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        positions *= max((x.shape[2 + axis] + 2 * padding[axis] - span) // stride[axis] + 1, 0)
    return positions * weight.numel()


def _is_pair(values):
    return len(values) == 2 and all(isinstance(value, int) for value in values)


def chosen(name, tensor, *arguments):
    """ "cuda" or "triton", for a call of operator ``name`` whose first argument is ``tensor``."""
    entry = TABLE[name]
    if entry.exact == entry.tensor == inf:
        return "cuda"
    split = tensor.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision not in ("ieee", "none")
    limit = entry.tensor if split or tensor.dtype in TENSOR_CORES else entry.exact
    return "cuda" if products(name, tensor, *arguments) < limit else "triton"
