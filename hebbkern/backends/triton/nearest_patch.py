"""nearest_patch: each neuron's nearest patch, in three launches.

The first computes the length of every patch. The second searches by |w|² - 2 w·x̃ + |x̃|², tiles of neurons times runs
of patches, each run naming two candidates a neuron. The third measures the best two of all runs by the differences
w - x̃ themselves, free of the expansion's cancellation, and decides between them.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern import checks
from hebbkern.backends.triton.arithmetic import precision, product, quotient
from hebbkern.backends.triton.launch import launch, power_of_2, readable
from hebbkern.backends.triton.lists import NO_INDEX
from hebbkern.backends.triton.moments import sums_and_norms
from hebbkern.backends.triton.patches import (
    FLAT_SHARE,
    LINEAR,
    PatchView,
    corners,
    load_entries,
    own_patches,
    patch_view,
    tile_of_group,
)

CANDIDATES = tl.constexpr(2)  # a run and neuron: the exact distance decides where rounding may
# A grid of 256 programs keeps 132 processors busy for one round of two each, and its candidates fit in a tile.
PROGRAMS = 256


@triton.jit
def _sizes(
    x, corner, valid, mean, factor, N, layout,
    CENTRE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Σ |x̃| and Σ x̃² of each patch."""
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    length = tl.zeros([valid.shape[0]], wide)
    square = tl.zeros([valid.shape[0]], wide)
    for first in range(0, N, BLOCK):
        tile, entry = load_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK)
        tile = tile.to(wide)
        if CENTRE:
            tile = tl.where((entry < N)[None, :], tile - mean[:, None], 0) * factor[:, None]
        length += tl.sum(tl.abs(tile), axis=1)
        square += tl.sum(tile * tile, axis=1)
    return length, square


@triton.jit
def lengths_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, offset, scale, length, square, w_square, P, K, N,
    STANDARD: tl.constexpr, SHAPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_P patches, or after all patches as many neurons; second reads come from L1."""
    program = tl.program_id(0)
    of_patches = tl.cdiv(P, BLOCK_P)
    CENTRE: tl.constexpr = offset is not None
    wide = square.dtype.element_ty
    mean = tl.zeros([BLOCK_P], wide)
    factor = mean + 1
    layout = (sc, sh, sw, H, W)
    if program < of_patches:
        patch, valid, corner = own_patches(program, P, (sb, sh, sw, Ho, Wo, B, sg), SHAPE, BLOCK_P)
        if CENTRE:
            _, mean, norm, spread = sums_and_norms(x, corner, valid, N, layout, True, SHAPE, BLOCK_N)
            tl.store(offset + patch, mean, mask=valid)
            flat = spread <= norm * FLAT_SHARE
            if STANDARD:
                factor = tl.where(flat, 0, 1 / tl.where(flat, 1, spread))
            else:
                factor = tl.where(flat & (norm < float("inf")), 0, factor)
            tl.store(scale + patch, factor, mask=valid)
        sums, squares = _sizes(x, corner, valid, mean, factor, N, layout, CENTRE, SHAPE, BLOCK_N)
        tl.store(length + patch, sums, mask=valid)
        tl.store(square + patch, squares, mask=valid)
    else:
        neuron = (program - of_patches) * BLOCK_P + tl.arange(0, BLOCK_P)
        exists = neuron < K
        begin = corners(neuron, (N, 0, 0, 1, 1, 1, 0), LINEAR)
        _, squares = _sizes(weight, begin, exists, mean, factor, N, (1, 0, 0, 1, 1), False, LINEAR, BLOCK_N)
        tl.store(w_square + neuron, squares, mask=exists)


@triton.jit
def _shifted(tile, patch, valid, offset, scale):
    """x̃ of the entries of some patches; as they are stored where nothing is to be done."""
    if offset is not None:
        mean = tl.load(offset + patch, mask=valid, other=0)
        factor = tl.load(scale + patch, mask=valid, other=0)
        tile = (tile.to(mean.dtype) - mean[:, None]) * factor[:, None]
    return tile


@triton.jit
def _best(value, index):
    """Along axis 0 the smallest value and the lowest index that has it; NO_INDEX where no value is below infinity."""
    smallest = tl.min(value, axis=0)
    return smallest, tl.min(tl.where((value == smallest[None, :]) & (value < float("inf")), index, NO_INDEX), axis=0)


@triton.jit
def _products(
    x, corner, valid, patch, layout, weight, neuron, exists, offset, scale, N,
    SHAPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x̃·w [patches, neurons].

    Of all neurons, eligible or not: where the bytes of a mask decide what is loaded, Triton 3.6 lays an operand out as
    if it were made of bytes, and cannot multiply float64 then.
    """
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    dots = tl.zeros([BLOCK_P, BLOCK_K], wide)
    for first in range(0, N, BLOCK_N):
        tile, entry = load_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK_N)
        tile = _shifted(tile, patch, valid, offset, scale)
        within = exists[None, :] & (entry < N)[:, None]
        part = tl.load(weight + neuron[None, :].to(tl.int64) * N + entry[:, None], mask=within, other=0.0)
        dots = product(tile, part.to(tile.dtype), dots, PRECISION)
    return dots


@triton.jit
def _eligible_neurons(eligible, tile, first, K, BLOCK_K: tl.constexpr):
    """Tile ``tile`` of the K neurons from ``first`` on: their names, which there are, and which are eligible."""
    place = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    neuron, exists = first + place, place < K
    wanted = exists
    if eligible is not None:
        wanted = wanted & (tl.load(eligible + neuron, mask=wanted, other=0) != 0)
    return neuron, exists, wanted


@triton.jit
def search_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, eligible, offset, scale, length, square, w_square, value, index,
    groups, P, K, N, TILES: tl.constexpr, SHAPE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_K neurons and walks over a run of TILES tiles of the patches of their group.

    P, K: patches and neurons of a group. Every row of a tile keeps its own nearest patch, so that nothing is reduced
    before the run ends.
    """
    group, own = tile_of_group(K, SHAPE, BLOCK_K)
    neuron, exists, wanted = _eligible_neurons(eligible, own, group * K, K, BLOCK_K)
    run = tl.program_id(1)
    if tl.max(wanted.to(tl.int32), axis=0) > 0:
        w_squares = tl.load(w_square + neuron, mask=wanted, other=0)
        best = tl.full([BLOCK_P, BLOCK_K], float("inf"), w_squares.dtype)
        nearest = tl.full([BLOCK_P, BLOCK_K], NO_INDEX, tl.int32)
        for tile in range(TILES):
            grid = (sb, sh, sw, Ho, Wo, B, sg)
            patch, valid, corner = own_patches(run * TILES + tile, P, grid, SHAPE, BLOCK_P, group * P)
            dots = _products(
                x, corner, valid, patch, (sc, sh, sw, H, W), weight, neuron, exists, offset, scale, N,
                SHAPE, BLOCK_K, BLOCK_P, BLOCK_N, PRECISION,
            )  # fmt: skip
            lengths = tl.load(length + patch, mask=valid, other=0)
            squares = tl.load(square + patch, mask=valid, other=0)
            apart = (w_squares[None, :] - dots) + (squares[:, None] - dots)
            apart = quotient(apart, tl.where(lengths > 0, lengths, 1)[:, None] + tl.zeros_like(apart))
            nearer = (lengths > 0)[:, None] & (apart < best)
            best = tl.where(nearer, apart, best)
            nearest = tl.where(nearer, patch[:, None], nearest)
        at = (run * CANDIDATES) * groups * K + neuron
        for _ in tl.static_range(CANDIDATES):
            smallest, lowest = _best(best, nearest)
            tl.store(value + at, smallest, mask=wanted)
            tl.store(index + at, lowest, mask=wanted)
            best = tl.where(nearest == lowest[None, :], float("inf"), best)
            at += groups * K


@triton.jit
def _measured(
    x, grid, layout, weight, neuron, patch, offset, scale, length, N, SHAPE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The distance of each neuron to one patch, by differences; infinite to NO_INDEX."""
    valid = patch != NO_INDEX
    corner = corners(tl.where(valid, patch, 0), grid, SHAPE)
    lengths = tl.load(length + patch, mask=valid, other=1)
    squares = tl.zeros_like(lengths)
    for first in range(0, N, BLOCK_N):
        tile, entry = load_entries(x, corner, valid, first, N, layout, SHAPE, BLOCK_N)
        tile = _shifted(tile, patch, valid, offset, scale)
        within = valid[:, None] & (entry < N)[None, :]
        part = tl.load(weight + neuron[:, None].to(tl.int64) * N + entry[None, :], mask=within, other=0.0)
        difference = tl.where(within, part.to(lengths.dtype) - tile.to(lengths.dtype), 0)
        squares += tl.sum(difference * difference, axis=1)
    return tl.where(valid, quotient(squares, lengths), float("inf"))


@triton.jit
def nearest_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, weight, eligible, offset, scale, length, value, index, nearest, distance,
    K, N, runs, SHAPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program decides for BLOCK_K neurons between the candidates of all runs."""
    neuron, exists, wanted = _eligible_neurons(eligible, tl.program_id(0), 0, K, BLOCK_K)
    grid, layout = (sb, sh, sw, Ho, Wo, B, sg), (sc, sh, sw, H, W)
    candidate = tl.arange(0, BLOCK_R)
    written = (candidate < runs * CANDIDATES)[:, None] & wanted[None, :]
    at = candidate[:, None] * K + neuron[None, :]
    values = tl.load(value + at, mask=written, other=float("inf"))
    patches = tl.load(index + at, mask=written, other=NO_INDEX)
    _, first = _best(values, patches)
    _, second = _best(tl.where(patches == first[None, :], float("inf"), values), patches)
    near = _measured(x, grid, layout, weight, neuron, first, offset, scale, length, N, SHAPE, BLOCK_N)
    other = _measured(x, grid, layout, weight, neuron, second, offset, scale, length, N, SHAPE, BLOCK_N)
    swap = (other < near) | ((other == near) & (second < first))
    near = tl.where(swap, other, near)
    qualifies = near < float("inf")
    tl.store(nearest + neuron, tl.where(qualifies, tl.where(swap, second, first), -1), mask=exists)
    tl.store(distance + neuron, tl.where(qualifies, near, float("inf")), mask=exists)


def _lengths(view: PatchView, weight: Tensor, eligible: Tensor | None, patches: str) -> tuple:
    """Offset and scale that ``patches`` needs, |x̃|₁ and |x̃|² of the patches, |w|² of the neurons."""
    x, P, K, N = view.x, view.patches, weight.shape[0], view.entries
    dtype = checks.result_dtype(x.dtype)
    offset, scale = (x.new_empty(P, dtype=dtype) if patches != "raw" else None for _ in range(2))
    length, square, w_square = (x.new_empty(size, dtype=dtype) for size in (P, P, K))
    block = 16  # x 256 entries of float32: 16 for each thread of 8 warps, all in flight at once
    launch(
        lengths_kernel, (triton.cdiv(P, block) + triton.cdiv(K, block),), *view.arguments, weight, offset, scale,
        length, square, w_square, P, K, N, STANDARD=patches == "standardised", SHAPE=view.shape,
        warps=8, BLOCK_P=block, BLOCK_N=power_of_2(N, 16, 1024 // dtype.itemsize),
    )  # fmt: skip
    if readable(x):
        if scale is not None:
            checks.finite_norms("nearest_patch", torch.where(scale == 0, 1, 1 / scale))
        looked_for = w_square if eligible is None else w_square[eligible]
        checks.no_overflow("nearest_patch", checks.RESPONSES, 1 / length[length > 0], square, looked_for)
    return offset, scale, length, square, w_square


def _tiles(view: PatchView, K: int, exact: bool) -> tuple[int, int, int, int, int, int]:
    """Neurons, patches and entries of a tile of the search, tiles of patches to a run, warps and stages."""
    # 128 x 64 reads 1/64 + 1/128 of the products and leaves 8 warps three registers an entry: product, best, nearest.
    # Less at a time where operands are twice as wide: float64, and float32 in two parts.
    size = view.x.element_size() if exact else max(view.x.element_size(), 4)
    split = size == 4 and precision() == "tf32x3"
    groups = view.groups
    P, K = view.patches // groups, K // groups
    block_k, block_p = power_of_2(K, 16, 64), power_of_2(P, 16, 64 if size == 8 else 128)
    runs = max(1, PROGRAMS // (groups * triton.cdiv(K, block_k)))
    tiles = triton.cdiv(triton.cdiv(P, block_p), runs)
    # Tiles that are multiplied as they are stored arrive while others are multiplied, where addresses are few: those
    # of a convolution take registers of their own, so no more than 32 entries of it fit beside the rest.
    linear = view.x.dim() == 2
    stages, entries = 3 if exact and linear else 1, 128 // (8 if split else size if linear else max(size, 4))
    widest = block_k if linear else max(block_k, entries)
    return block_k, block_p, entries, tiles, 8 if widest * block_p >= 4096 else 4, stages


def nearest_patch(
    x: Tensor, weight: Tensor, patches: str,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int, eligible: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator ``nearest_patch``."""
    if readable(x):
        checks.finite("nearest_patch", x=x, weight=weight)
    view = patch_view(x, weight.shape[2:], stride, padding, dilation, groups)
    P, K, N, dtype = view.patches // groups, weight.shape[0], view.entries, checks.result_dtype(x.dtype)
    weight = weight.reshape(K, -1).contiguous()
    offset, scale, length, square, w_square = _lengths(view, weight, eligible, patches)
    mask = None if eligible is None else eligible.contiguous().view(torch.uint8)
    block_k, block_p, block_n, tiles, warps, stages = _tiles(view, K, offset is None)
    runs = triton.cdiv(P, tiles * block_p) if P else 0
    grid = groups * triton.cdiv(K // groups, block_k), runs
    value = x.new_empty(runs * CANDIDATES.value, K, dtype=dtype)
    index = x.new_empty(runs * CANDIDATES.value, K, dtype=torch.int32)
    launch(
        search_kernel, grid, *view.arguments, weight, mask, offset, scale, length, square, w_square, value, index,
        groups, P, K // groups, N, warps=warps, stages=stages, TILES=tiles, SHAPE=view.shape,
        BLOCK_K=block_k, BLOCK_P=block_p, BLOCK_N=block_n, PRECISION=precision(),
    )  # fmt: skip
    nearest, distance = x.new_empty(K, dtype=torch.int32), x.new_empty(K, dtype=dtype)
    block = 8  # x 512 entries of float32: few neurons, so that 1000 of them reach almost every processor
    launch(
        nearest_kernel, (triton.cdiv(K, block),), *view.arguments, weight, mask, offset, scale, length, value,
        index, nearest, distance, K, N, runs, warps=8, SHAPE=view.shape, BLOCK_K=block,
        BLOCK_R=power_of_2(runs * CANDIDATES.value, 2), BLOCK_N=power_of_2(N, 16, 2048 // dtype.itemsize),
    )  # fmt: skip
    if readable(x):
        # No distance is finite, though a patch of the neuron's group qualifies.
        some = (length.view(groups, P) > 0).any(1).repeat_interleave(K // groups)
        looked_for = some if eligible is None else some & eligible
        checks.no_overflow("nearest_patch", checks.RESPONSES, distance[looked_for])
    return nearest, distance
