"""on_chip: the dense rules where all weights fit on chip: responses are never written, patches come from the image.

A program adds up YᵀX and YᵀY of its run of patches; a second kernel adds the runs' sums in order. How long a run is
depends on shapes alone, so the bits are the same on every device.
"""

import triton
import triton.language as tl

from hebbkern.backends.dense import LARGEST, Task
from hebbkern.backends.triton.arithmetic import precision, product
from hebbkern.backends.triton.finish import Outputs, finish
from hebbkern.backends.triton.launch import PROCESSORS, launch, power_of_2
from hebbkern.backends.triton.moments import moments_of
from hebbkern.backends.triton.patches import corners, load_patches, taps
from hebbkern.backends.triton.responses import activated, exponential, softmax_share

RUNS = 2 * PROCESSORS  # programs share the patches, at most


@triton.jit
def _competed(u, neuron, K, temperature):
    """r of a tile [patches, neurons] that holds all neurons."""
    best, winner = tl.max(tl.where((neuron < K)[None, :] & (u == u), u, float("-inf")), axis=1, return_indices=True)
    degree = tl.full([1, 1], temperature, u.dtype)
    mass = tl.sum(tl.where((neuron < K)[None, :], exponential((u - best[:, None]) / degree), 0), axis=1)
    share = softmax_share(u, best[:, None], winner[:, None], mass[:, None], neuron[None, :], degree)
    return tl.where((neuron < K)[None, :], share, 0)


@triton.jit
def gather_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, offset, scale, runs, temperature: tl.float64, RUN, P, K, N,
    SHAPE: tl.constexpr, ACTIVATION: tl.constexpr, DECAY: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns RUN patches and leaves their G, and their C or d behind it, in its row of ``runs``."""
    run = tl.program_id(0)
    neuron, column = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    exists, within = neuron < K, column < N
    wide = runs.dtype.element_ty
    layout = (sc, sh, sw, H, W)
    tap = taps(column, layout, SHAPE)
    inside = exists[:, None] & within[None, :]
    w = tl.load(weight + neuron[:, None] * N + column[None, :], mask=inside, other=0)
    if offset is not None or scale is not None:
        w = w.to(wide)
    gradient = tl.zeros([BLOCK_K, BLOCK_N], wide)
    gram = tl.zeros([BLOCK_K, BLOCK_K], wide)
    diagonal = tl.zeros([BLOCK_K], wide)
    for first in range(run * RUN, min(run * RUN + RUN, P), BLOCK_P):
        patch = first + tl.arange(0, BLOCK_P)
        valid = patch < P
        corner = corners(patch, (sb, sh, sw, Ho, Wo, B, sg), SHAPE)
        tile = load_patches(x, corner, valid, tap, within, layout, SHAPE)
        if offset is not None:
            less = tl.load(offset + patch, mask=valid, other=0)
            tile = tl.where(within[None, :], tile.to(wide) - less[:, None], 0)
        if scale is not None:
            tile = tile.to(wide) * tl.load(scale + patch, mask=valid, other=0)[:, None]
        u = product(tile, tl.trans(w), tl.zeros([BLOCK_P, BLOCK_K], wide), PRECISION)
        y = _competed(u, neuron, K, temperature) if ACTIVATION == "softmax" else activated(u, ACTIVATION)
        gradient = product(tl.trans(y), tile.to(wide), gradient, PRECISION)
        if DECAY == "triangular":
            gram = product(tl.trans(y), y, gram, PRECISION)
        if DECAY == "diagonal":
            diagonal += tl.sum(y * (u if ACTIVATION == "softmax" else y), axis=0)
        if DECAY == "activity":
            diagonal += tl.sum(y, axis=0)
    size = K * N + (K * K if DECAY == "triangular" else 0 if DECAY == "none" else K)
    to = runs + run.to(tl.int64) * size
    tl.store(to + neuron[:, None] * N + column[None, :], gradient, mask=inside)
    if DECAY == "triangular":
        tl.store(to + K * N + neuron[:, None] * K + neuron[None, :], gram, mask=exists[:, None] & exists[None, :])
    if DECAY == "diagonal" or DECAY == "activity":
        tl.store(to + K * N + neuron, diagonal, mask=exists)


@triton.jit
def add_kernel(runs, sums, COUNT, SIZE, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """sums [SIZE] = the rows of runs [COUNT, SIZE], BLOCK_R of them at once."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], runs.dtype.element_ty)
    for first in range(0, COUNT, BLOCK_R):
        run = first + tl.arange(0, BLOCK_R)
        inside = (run < COUNT)[:, None] & (entry < SIZE)[None, :]
        total += tl.sum(tl.load(runs + run.to(tl.int64)[:, None] * SIZE + entry[None, :], mask=inside, other=0), axis=0)
    tl.store(sums + entry, total, mask=entry < SIZE)


def on_chip(task: Task) -> Outputs:
    """The ``Outputs``, where all weights fit on chip."""
    P, (K, N) = task.count, task.flat.shape
    moments = moments_of(task.op, task.view, task.patches)
    block_p = power_of_2(P, 16, 32)
    # Split in two tf32 numbers, weights of 64 x 64 take more than a thread's 255 registers on sm_80.
    multiplied = precision() if max(K, N) <= LARGEST // 2 else "ieee"
    run = power_of_2(triton.cdiv(P, RUNS), block_p)
    runs = triton.cdiv(P, run)
    size = K * N + {"triangular": K * K, "none": 0}.get(task.decay, K)
    rows = task.x.new_empty((runs, size), dtype=task.dtype)
    launch(
        gather_kernel, (runs,), *task.view.arguments, task.flat, moments.offset, moments.scale, rows,
        task.temperature, run, P, K, N, SHAPE=task.view.shape, ACTIVATION=task.activation, DECAY=task.decay,
        PRECISION=multiplied, warps=8, registers=255,
        BLOCK_P=block_p, BLOCK_K=power_of_2(K, 16), BLOCK_N=power_of_2(N, 16),
    )  # fmt: skip
    sums = rows[0]
    if runs > 1:
        sums = task.x.new_empty(size, dtype=task.dtype)
        # 16 loads in flight for each of a warp's 128 bytes: the runs' sums come from L2.
        launch(add_kernel, (triton.cdiv(size, 64),), rows, sums, runs, size, warps=2, BLOCK_R=16, BLOCK=64)
    gram = sums[K * N :] if task.decay == "triangular" else None
    return finish(task, sums[: K * N], gram, sums[K * N :] if task.scales_rows else None)
