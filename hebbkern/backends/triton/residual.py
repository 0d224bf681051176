"""residual: Sanger's sum with fewer patches than neurons, without a matrix of neurons x neurons.

With R = X at first, block b of neurons after block: sum_b = Y_bᵀ R - tril(Y_bᵀ Y_b) W_b, then R -= Y_b W_b.
"""

import torch
import triton
import triton.language as tl

from hebbkern.backends.dense import BLOCK, CHUNK, COLUMNS, Responses, Task, strided
from hebbkern.backends.triton.arithmetic import precision, product
from hebbkern.backends.triton.finish import Outputs, conclude
from hebbkern.backends.triton.launch import block, launch, power_of_2
from hebbkern.backends.triton.patches import corners, load_patches, taps


@triton.jit
def _shifted_patches(
    x, patch, corner, valid, tap, within, layout, offset, scale, wide: tl.constexpr, SHAPE: tl.constexpr
):
    """x̃ of some patches [patches, entries], 0 in a patch not ``valid`` and in an entry not ``within``."""
    tile = load_patches(x, corner, valid, tap, within, layout, SHAPE).to(wide)
    if offset is not None:
        less = tl.load(offset + patch, mask=valid, other=0)
        tile = tl.where(within[None, :], tile - less[:, None], 0)
    if scale is not None:
        tile *= tl.load(scale + patch, mask=valid, other=0)[:, None]
    return tile


@triton.jit
def residual_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, y, S, yb, yk, ys, offset, scale, weight, frozen, sums, moved, sound,
    lr: tl.float64, partial, P, K, N, SHAPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_N inputs; the residual of BLOCK_P patches stays on chip for all blocks of neurons.

    With more patches than that, ``partial`` [K, N] holds what the chunks before have summed.
    """
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    within = column < N
    lane = tl.arange(0, BLOCK_K)
    wide = y.dtype.element_ty
    layout = (sc, sh, sw, H, W)
    tap = taps(column, layout, SHAPE)
    sound_here = tl.full([], 1, tl.int32)
    for chunk in range(0, P, BLOCK_P):
        patch = chunk + tl.arange(0, BLOCK_P)
        corner = corners(patch, (sb, sh, sw, Ho, Wo, B, sg), SHAPE)
        rest = _shifted_patches(x, patch, corner, patch < P, tap, within, layout, offset, scale, wide, SHAPE)
        # In groups of 16, a warp or two each: a product in full float32 keeps all it sums over in registers.
        rest = tl.reshape(rest, [BLOCK_P // 16, 16, BLOCK_N])
        patch = chunk + (tl.arange(0, BLOCK_P // 16) * 16)[:, None] + tl.arange(0, 16)[None, :]
        y_at = (patch // S).to(tl.int64) * yb + (patch % S).to(tl.int64) * ys
        if partial is not None:
            tl.debug_barrier()  # other threads may have written the partial sums that this one reads
        for first in range(0, K, BLOCK_K):
            neuron = first + lane
            exists = neuron < K
            responses = tl.load(
                y + y_at[:, :, None] + neuron.to(tl.int64)[None, None, :] * yk,
                mask=(patch < P)[:, :, None] & exists[None, None, :],
                other=0,
            )
            inside = exists[:, None] & within[None, :]
            at = neuron.to(tl.int64)[:, None] * N + column[None, :]
            w = tl.load(weight + at, mask=inside, other=0).to(wide)
            transposed = tl.permute(responses, (0, 2, 1))
            gram = product(transposed, responses, tl.zeros([BLOCK_P // 16, BLOCK_K, BLOCK_K], wide), PRECISION)
            gram = tl.where(lane[:, None] >= lane[None, :], -tl.sum(gram, axis=0), 0)
            total = product(transposed, rest, tl.zeros([BLOCK_P // 16, BLOCK_K, BLOCK_N], wide), PRECISION)
            total = product(gram, w, tl.sum(total, axis=0), PRECISION)
            spread = tl.broadcast_to(w[None, :, :], [BLOCK_P // 16, BLOCK_K, BLOCK_N])
            rest = product(-responses, spread, rest, PRECISION)
            if partial is not None:
                total += tl.load(partial + at, mask=inside & (chunk > 0), other=0)
                tl.store(partial + at, total, mask=inside)
            if chunk + BLOCK_P >= P:
                good = conclude(total, neuron, column, weight, frozen, sums, moved, lr, P, K, N)
                sound_here = tl.minimum(sound_here, good)
    if moved is not None:
        tl.store(sound + tl.program_id(0), sound_here)


def residual(task: Task, responses: Responses) -> Outputs:
    """The ``Outputs``, from the responses of ``dense.respond``."""
    P, (K, N), y, moments = task.count, task.flat.shape, responses.y, responses.moments
    (S, *strides), _ = strided(y)
    # Narrow, for the programs are as many as column tiles, and as long as the chain of blocks: 2304 inputs are 144.
    # With 32 neurons at once, products keep more than the 255 registers of a thread.
    block_k, block_n = power_of_2(K, 16, block(BLOCK)), power_of_2(N, 16, block(COLUMNS))
    multiplied = precision()
    # Split products and float64 hold operands twice as wide; the former leave no registers for tiles fetched ahead.
    block_p = power_of_2(P, 16, CHUNK if task.dtype == torch.float32 and multiplied == "ieee" else CHUNK // 2)
    warps, stages = (4, 1) if multiplied == "tf32x3" else (8, 2)
    outputs = Outputs(task, triton.cdiv(N, block_n))
    partial = y.new_empty((K, N)) if block_p < P else None
    launch(
        residual_kernel, (triton.cdiv(N, block_n),), *task.view.arguments, y, S, *strides, moments.offset,
        moments.scale, *outputs.arguments, partial, P, K, N,
        warps=warps, stages=stages,
        SHAPE=task.view.shape, PRECISION=multiplied, BLOCK_P=block_p, BLOCK_K=block_k, BLOCK_N=block_n,
    )  # fmt: skip
    return outputs
