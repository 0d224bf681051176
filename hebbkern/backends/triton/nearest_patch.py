"""nearest_patch: each neuron's nearest patch, in three launches.

The first takes the length of every patch. The second searches by |w|² - 2 w·x̃ + |x̃|², tiles of neurons times runs of
patches, each run naming two candidates a neuron. The third measures the best two of all runs by the differences
w - x̃ themselves, free of the expansion's cancellation, and decides between them.
"""

import torch
import triton
import triton.language as tl

from hebbkern import checks
from hebbkern.backends.triton.arithmetic import precision, product, quotient
from hebbkern.backends.triton.launch import launch, power_of_2, readable
from hebbkern.backends.triton.moments import moments_of
from hebbkern.backends.triton.patches import FLAT_SHARE, LINEAR, corners, load_patches, place, taps
from hebbkern.backends.triton.ranks import NOBODY  # above every patch
from hebbkern.ops.nearest_patch import check

CANDIDATES = tl.constexpr(2)  # a run and neuron: the exact distance decides where rounding may
# A grid of 256 programs keeps 132 processors busy for one round of two each, and its candidates fit in a tile.
PROGRAMS = 256


@triton.jit
def _sizes(
    x, start, row, column, known, mean, factor, sc, sh, sw, H, W, N,
    CENTRE: tl.constexpr, SCALE: tl.constexpr, SHAPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Σ |x̃| and Σ x̃² of each patch."""
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    length = tl.zeros([known.shape[0]], wide)
    square = tl.zeros([known.shape[0]], wide)
    for first in range(0, N, BLOCK):
        entry = first + tl.arange(0, BLOCK)
        offset, down, right = taps(entry, sc, sh, sw, SHAPE)
        tile = load_patches(x, start, row, column, known, offset, down, right, entry < N, H, W, SHAPE).to(wide)
        if CENTRE:
            tile = tl.where((entry < N)[None, :], tile - mean[:, None], 0)
        if SCALE:
            tile = tile * factor[:, None]
        length += tl.sum(tl.abs(tile), axis=1)
        square += tl.sum(tile * tile, axis=1)
    return length, square


@triton.jit
def lengths_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, offset, scale, length, square, w_square, P, K, N,
    SHAPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_P patches, or behind these as many neurons; what it reads again comes from L1."""
    program = tl.program_id(0)
    of_patches = tl.cdiv(P, BLOCK_P)
    CENTRE: tl.constexpr = offset is not None
    SCALE: tl.constexpr = scale is not None
    wide = square.dtype.element_ty
    mean = tl.zeros([BLOCK_P], wide)
    factor = mean + 1
    if program < of_patches:
        patch = program * BLOCK_P + tl.arange(0, BLOCK_P)
        known = patch < P
        start, row, column = corners(patch, sb, sh, sw, Ho, Wo, SHAPE)
        if CENTRE:
            _, mean, norm, spread = moments_of(x, start, row, column, known, sc, sh, sw, H, W, N, True, SHAPE, BLOCK_N)
            tl.store(offset + patch, mean, mask=known)
            if SCALE:
                flat = spread <= norm * FLAT_SHARE
                factor = tl.where(flat, 0, 1 / tl.where(flat, 1, spread))
                tl.store(scale + patch, factor, mask=known)
        sums, squares = _sizes(
            x, start, row, column, known, mean, factor, sc, sh, sw, H, W, N, CENTRE, SCALE, SHAPE, BLOCK_N
        )
        tl.store(length + patch, sums, mask=known)
        tl.store(square + patch, squares, mask=known)
    else:
        neuron = (program - of_patches) * BLOCK_P + tl.arange(0, BLOCK_P)
        known = neuron < K
        start, row, column = corners(neuron, N, 0, 0, 1, 1, LINEAR)
        _, squares = _sizes(
            weight, start, row, column, known, mean, factor, 1, 0, 0, 1, 1, N, False, False, LINEAR, BLOCK_N
        )
        tl.store(w_square + neuron, squares, mask=known)


@triton.jit
def _shifted(tile, patch, known, offset, scale):
    """x̃ of the entries of some patches; as they are stored where nothing is to be done."""
    if offset is not None:
        mean = tl.load(offset + patch, mask=known, other=0)
        tile = tile.to(mean.dtype) - mean[:, None]
        if scale is not None:
            tile = tile * tl.load(scale + patch, mask=known, other=0)[:, None]
    return tile


@triton.jit
def _best(value, index):
    """Along axis 0 the smallest value and, of those that have it, the lowest index; NOBODY for none below infinity."""
    smallest = tl.min(value, axis=0)
    return smallest, tl.min(tl.where((value == smallest[None, :]) & (value < float("inf")), index, NOBODY), axis=0)


@triton.jit
def _products(
    x, start, row, column, known, patch, sc, sh, sw, H, W, weight, neuron, offset, scale, K, N,
    SHAPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x̃·w [patches, neurons].

    Of all neurons, asked or not: where the bytes of a mask decide what is loaded, Triton 3.6 lays an operand out as if
    it were made of bytes, and cannot multiply float64 then.
    """
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    dots = tl.zeros([BLOCK_P, BLOCK_K], wide)
    for first in range(0, N, BLOCK_N):
        entry = first + tl.arange(0, BLOCK_N)
        at, down, right = taps(entry, sc, sh, sw, SHAPE)
        tile = load_patches(x, start, row, column, known, at, down, right, entry < N, H, W, SHAPE)
        tile = _shifted(tile, patch, known, offset, scale)
        within = (neuron < K)[None, :] & (entry < N)[:, None]
        part = tl.load(weight + neuron[None, :].to(tl.int64) * N + entry[:, None], mask=within, other=0.0)
        dots = product(tile, part.to(tile.dtype), dots, PRECISION)
    return dots


@triton.jit
def search_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, mask, offset, scale, length, square, w_square, value, index, flaw, P, K, N,
    TILES: tl.constexpr, SHAPE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_K neurons and walks over a run of TILES tiles of patches.

    Every place of a tile keeps its own nearest patch, so that nothing is reduced before the run ends.
    """
    neuron = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    run = tl.program_id(1)
    asked = neuron < K
    if mask is not None:
        asked = asked & (tl.load(mask + neuron, mask=asked, other=0) != 0)
    if tl.max(asked.to(tl.int32), axis=0) > 0:
        w_squares = tl.load(w_square + neuron, mask=asked, other=0)
        best = tl.full([BLOCK_P, BLOCK_K], float("inf"), w_squares.dtype)
        who = tl.full([BLOCK_P, BLOCK_K], NOBODY, tl.int32)
        overflows = tl.zeros([BLOCK_P, BLOCK_K], tl.int32)
        for tile in range(TILES):
            patch = (run * TILES + tile) * BLOCK_P + tl.arange(0, BLOCK_P)
            known = patch < P
            start, row, column = corners(patch, sb, sh, sw, Ho, Wo, SHAPE)
            dots = _products(
                x, start, row, column, known, patch, sc, sh, sw, H, W, weight, neuron, offset, scale, K, N,
                SHAPE, BLOCK_K, BLOCK_P, BLOCK_N, PRECISION,
            )  # fmt: skip
            lengths = tl.load(length + patch, mask=known, other=0)
            squares = tl.load(square + patch, mask=known, other=0)
            apart = (w_squares[None, :] - dots) + (squares[:, None] - dots)
            apart = quotient(apart, tl.where(lengths > 0, lengths, 1)[:, None] + tl.zeros_like(apart))
            nearer = (lengths > 0)[:, None] & (apart < best)
            if flaw is not None:
                overflows |= ((lengths > 0)[:, None] & ~(apart < float("inf"))).to(tl.int32)
            best = tl.where(nearer, apart, best)
            who = tl.where(nearer, patch[:, None], who)
        at = (run * CANDIDATES) * K + neuron
        for _ in tl.static_range(CANDIDATES):
            smallest, lowest = _best(best, who)
            tl.store(value + at, smallest, mask=asked)
            tl.store(index + at, lowest, mask=asked)
            best = tl.where(who == lowest[None, :], float("inf"), best)
            at += K
        if flaw is not None:
            found = tl.max(tl.max(tl.where(asked[None, :], overflows, 0), axis=0), axis=0)
            tl.store(flaw + run * tl.num_programs(0) + tl.program_id(0), found)


@triton.jit
def _measured(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, neuron, patch, offset, scale, length, N,
    SHAPE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The distance of each neuron to one patch, by differences; infinite to NOBODY."""
    known = patch != NOBODY
    start, row, column = corners(tl.where(known, patch, 0), sb, sh, sw, Ho, Wo, SHAPE)
    lengths = tl.load(length + patch, mask=known, other=1)
    squares = tl.zeros_like(lengths)
    for first in range(0, N, BLOCK_N):
        entry = first + tl.arange(0, BLOCK_N)
        at, down, right = taps(entry, sc, sh, sw, SHAPE)
        tile = load_patches(x, start, row, column, known, at, down, right, entry < N, H, W, SHAPE)
        tile = _shifted(tile, patch, known, offset, scale)
        within = known[:, None] & (entry < N)[None, :]
        part = tl.load(weight + neuron[:, None].to(tl.int64) * N + entry[None, :], mask=within, other=0.0)
        difference = tl.where(within, part.to(lengths.dtype) - tile.to(lengths.dtype), 0)
        squares += tl.sum(difference * difference, axis=1)
    return tl.where(known, quotient(squares, lengths), float("inf"))


@triton.jit
def nearest_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, weight, mask, offset, scale, length, value, index, nearest, distance, K, N, runs,
    SHAPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program decides for BLOCK_K neurons between the candidates of all runs."""
    neuron = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    asked = neuron < K
    if mask is not None:
        asked = asked & (tl.load(mask + neuron, mask=asked, other=0) != 0)
    candidate = tl.arange(0, BLOCK_R)
    there = (candidate < runs * CANDIDATES)[:, None] & asked[None, :]
    at = candidate[:, None] * K + neuron[None, :]
    values = tl.load(value + at, mask=there, other=float("inf"))
    patches = tl.load(index + at, mask=there, other=NOBODY)
    _, first = _best(values, patches)
    _, second = _best(tl.where(patches == first[None, :], float("inf"), values), patches)
    near = _measured(x, sb, sc, sh, sw, H, W, Ho, Wo, weight, neuron, first, offset, scale, length, N, SHAPE, BLOCK_N)
    other = _measured(x, sb, sc, sh, sw, H, W, Ho, Wo, weight, neuron, second, offset, scale, length, N, SHAPE, BLOCK_N)
    swap = (other < near) | ((other == near) & (second < first))
    near = tl.where(swap, other, near)
    found = near < float("inf")
    tl.store(nearest + neuron, tl.where(found, tl.where(swap, second, first), -1), mask=neuron < K)
    tl.store(distance + neuron, tl.where(found, near, float("inf")), mask=neuron < K)


def _lengths(where, weight, patches):
    """Offset and scale where ``patches`` asks for them, |x̃|₁ and |x̃|² of the patches, |w|² of the neurons."""
    x, P, K, N = where.x, where.patches, weight.shape[0], where.entries
    dtype = checks.result_dtype(x.dtype)
    offset = x.new_empty(P, dtype=dtype) if patches != "raw" else None
    scale = x.new_empty(P, dtype=dtype) if patches == "standardised" else None
    length, square, w_square = (x.new_empty(size, dtype=dtype) for size in (P, P, K))
    block = 16  # x 256 entries of float32: 16 for each thread of 8 warps, all on their way at once
    launch(
        lengths_kernel, (triton.cdiv(P, block) + triton.cdiv(K, block),), *where.arguments, weight, offset, scale,
        length, square, w_square, P, K, N, SHAPE=where.shape,
        warps=8, BLOCK_P=block, BLOCK_N=power_of_2(N, 16, 1024 // dtype.itemsize),
    )  # fmt: skip
    if readable(x):
        if scale is not None:
            checks.finite_norms("nearest_patch", torch.where(scale == 0, 1, 1 / scale))
        checks.no_overflow("nearest_patch", checks.RESPONSES, length, square, w_square)
    return offset, scale, length, square, w_square


def _tiles(where, K, exact):
    """Neurons, patches and entries of a tile of the search, tiles of patches to a run, warps and stages."""
    # 128 x 64 reads 1/64 + 1/128 of the products and leaves 8 warps three registers a place: product, best, who. Less
    # at a time where operands are twice as wide: float64, and float32 in two parts.
    size = where.x.element_size() if exact else max(where.x.element_size(), 4)
    split = size == 4 and precision() == "tf32x3"
    block_k, block_p = power_of_2(K, 16, 64), power_of_2(where.patches, 16, 64 if size == 8 else 128)
    runs = max(1, PROGRAMS // triton.cdiv(K, block_k))
    tiles = triton.cdiv(triton.cdiv(where.patches, block_p), runs)
    # Tiles that are multiplied as they are stored arrive while others are multiplied, where addresses are few: those
    # of a convolution take registers of their own, so no more than 32 entries of it fit beside the rest.
    linear = where.x.dim() == 2
    stages, entries = 3 if exact and linear else 1, 128 // (8 if split else size if linear else max(size, 4))
    return block_k, block_p, entries, tiles, 8 if block_k * block_p >= 4096 else 4, stages


def nearest_patch(x, weight, patches, stride, padding, dilation, mask):
    check(x, weight, patches, stride, padding, dilation, mask)
    if readable(x):
        checks.finite("nearest_patch", x=x, weight=weight)
    where = place(x, weight.shape[2:], stride, padding, dilation)
    P, K, N, dtype = where.patches, weight.shape[0], where.entries, checks.result_dtype(x.dtype)
    weight = weight.reshape(K, -1).contiguous()
    mask = None if mask is None else mask.contiguous().view(torch.uint8)
    offset, scale, length, square, w_square = _lengths(where, weight, patches)
    block_k, block_p, block_n, tiles, warps, stages = _tiles(where, K, offset is None)
    grid = triton.cdiv(K, block_k), triton.cdiv(P, tiles * block_p) if P else 0
    runs = grid[1]
    value = x.new_empty(runs * CANDIDATES.value, K, dtype=dtype)
    index = x.new_empty(runs * CANDIDATES.value, K, dtype=torch.int32)
    flaw = x.new_zeros(grid, dtype=torch.int32) if readable(x) else None
    launch(
        search_kernel, grid, *where.arguments, weight, mask, offset, scale, length, square, w_square, value, index,
        flaw, P, K, N, warps=warps, stages=stages, TILES=tiles, SHAPE=where.shape,
        BLOCK_K=block_k, BLOCK_P=block_p, BLOCK_N=block_n, PRECISION=precision(),
    )  # fmt: skip
    nearest, distance = x.new_empty(K, dtype=torch.int32), x.new_empty(K, dtype=dtype)
    block = 8  # x 512 entries of float32: few neurons, so that 1000 of them reach almost every processor
    launch(
        nearest_kernel, (triton.cdiv(K, block),), *where.arguments, weight, mask, offset, scale, length, value, index,
        nearest, distance, K, N, runs, warps=8, SHAPE=where.shape, BLOCK_K=block,
        BLOCK_R=power_of_2(runs * CANDIDATES.value, 2), BLOCK_N=power_of_2(N, 16, 2048 // dtype.itemsize),
    )  # fmt: skip
    if readable(x):
        overflow = torch.where(flaw.any(), torch.inf, distance.new_zeros(()))
        checks.no_overflow("nearest_patch", checks.RESPONSES, overflow, torch.where(nearest < 0, 0, distance))
    return nearest, distance
