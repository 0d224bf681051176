"""finish: from the products of a dense rule to its sum, or in the same pass to the weights after the step.

sum = G - tril(C) W, G - diag(d) W, or G; the triangular product stops at the diagonal.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern.backends.dense import Task
from hebbkern.backends.triton.arithmetic import narrowed, precision, product, quotient
from hebbkern.backends.triton.launch import PROCESSORS, block, launch, power_of_2


class Outputs:
    """Where a kernel writes: the sum [K, N], or the weights after the step and, a program, whether they are finite."""

    def __init__(self, task: Task, programs: int) -> None:
        flat = task.flat
        self.sums = flat.new_empty(flat.shape, dtype=task.dtype) if task.lr is None else None
        self.moved = None if task.lr is None else torch.empty_like(flat)
        self.sound = None if task.lr is None else flat.new_empty(programs, dtype=torch.int32)
        # 0.0: an argument that is a float takes no None on a GPU.
        self.arguments = task.flat, task.frozen, self.sums, self.moved, self.sound, task.lr or 0.0


@triton.jit
def conclude(total, neuron, column, weight, frozen, sums, moved, lr, P, K, N):
    """Write a tile of the sum, or of the weights after the step; 1 unless a weight is not finite after it.

    The step is that of ``apply_``: Δ = sum / P, w + lr Δ, rounded once. An entry whose step is zero keeps its bits.
    """
    inside = (neuron < K)[:, None] & (column < N)[None, :]
    at = neuron.to(tl.int64)[:, None] * N + column[None, :]
    if frozen is not None:
        total = tl.where(tl.load(frozen + neuron, mask=neuron < K, other=1)[:, None], 0, total)
    good = tl.full([], 1, tl.int32)
    if moved is None:
        tl.store(sums + at, total, mask=inside)
    else:
        before = tl.load(weight + at, mask=inside, other=0)
        rate = tl.full([1, 1], lr, total.dtype)
        count = tl.full([1, 1], P, total.dtype)
        delta = quotient(total, count)
        # An explicit multiply-add, so that no compiler chooses otherwise here than in apply_.
        after = narrowed(tl.fma(delta, rate, before.to(total.dtype)), before.dtype)
        after = tl.where(delta * rate == 0, before, after)
        tl.store(moved + at, after, mask=inside)
        spread = after.to(total.dtype)
        finite = tl.where(inside, spread - spread == 0, True)
        good = tl.min(tl.min(finite.to(tl.int32), axis=1), axis=0)
    return good


@triton.jit
def finish_kernel(
    gradient, gram, diagonal, shift, weight, frozen, sums, moved, sound, lr: tl.float64, P, K, N,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_K neurons by BLOCK_N inputs; those with the longest triangle start first."""
    program = tl.program_id(0)
    row = tl.cdiv(K, BLOCK_K) - 1 - program // tl.cdiv(N, BLOCK_N)
    neuron = row * BLOCK_K + tl.arange(0, BLOCK_K)
    column = program % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists, within = neuron < K, column < N
    wide = gradient.dtype.element_ty
    inside = exists[:, None] & within[None, :]
    at = neuron.to(tl.int64)[:, None] * N + column[None, :]
    total = tl.load(gradient + at, mask=inside, other=0)
    if shift is not None:
        total -= tl.load(shift + neuron, mask=exists, other=0)[:, None]
    if gram is not None:
        less = tl.zeros([BLOCK_K, BLOCK_N], wide)
        for first in range(0, row * BLOCK_K + BLOCK_K, BLOCK_L):
            other = first + tl.arange(0, BLOCK_L)
            below = exists[:, None] & (other[None, :] <= neuron[:, None])
            c = tl.load(gram + neuron.to(tl.int64)[:, None] * K + other[None, :], mask=below, other=0)
            w_at = other.to(tl.int64)[:, None] * N + column[None, :]
            w = tl.load(weight + w_at, mask=(other < K)[:, None] & within[None, :], other=0)
            less = product(c, w.to(wide), less, PRECISION)
        total -= less
    elif diagonal is not None:
        w = tl.load(weight + at, mask=inside, other=0).to(wide)
        total -= tl.load(diagonal + neuron, mask=exists, other=0)[:, None] * w
    sound_here = conclude(total, neuron, column, weight, frozen, sums, moved, lr, P, K, N)
    if moved is not None:
        tl.store(sound + program, sound_here)


def finish(
    task: Task, gradient: Tensor, gram: Tensor | None, diagonal: Tensor | None, shift: Tensor | None = None
) -> Outputs:
    """The ``Outputs`` of the products G [K, N], C [K, K] or d [K]; ``shift`` is subtracted from the rows of G."""
    K, N = task.flat.shape
    # 64 x 64 reads an operand of the triangle 64 times less often than it is used; 32 x 32 where those are too few to
    # give every processor a program.
    side = 64 if triton.cdiv(K, 64) * triton.cdiv(N, 64) >= PROCESSORS else 32
    block_k, block_n = (power_of_2(size, 16, block(side)) for size in (K, N))
    programs = triton.cdiv(K, block_k) * triton.cdiv(N, block_n)
    outputs = Outputs(task, programs)
    launch(
        finish_kernel, (programs,), gradient, gram, diagonal, shift, *outputs.arguments, task.count, K, N,
        warps=8 if block_k * block_n >= 4096 else 4, stages=2, PRECISION=precision(), BLOCK_K=block_k, BLOCK_N=block_n,
        BLOCK_L=power_of_2(K, 16, block(16)),
    )  # fmt: skip
    return outputs
