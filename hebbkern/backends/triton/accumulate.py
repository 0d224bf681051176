"""accumulate: sums of the patches that each neuron learns from, read straight from the image.

Entry (p, r) gets a key, the neuron that learns from it; a stable sort of the keys turns them into one list a neuron, in
patch order. A list longer than PIECE is cut at fixed multiples of PIECE from its own start, and the pieces' sums are
added in order: the sum of a neuron depends on its own patches only (its bits on the tile as well, which the shapes
choose).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern import checks
from hebbkern.backends.triton.apply import PIECE, combined, slot_of
from hebbkern.backends.triton.arithmetic import ordered_sum
from hebbkern.backends.triton.launch import INTERPRETED, block, launch, power_of_2, readable
from hebbkern.backends.triton.moments import moments_of
from hebbkern.backends.triton.patches import (
    GROUPED,
    PatchView,
    all_zeros,
    corners,
    load_patches,
    own_patches,
    patch_view,
    taps,
)

ENTRIES = 8  # patches of a list that a tile adds up side by side
# A warp reads 128 neighbours, each thread has 8 loads in flight.
TILE, WIDTH = (1 << 19, 1024) if INTERPRETED.value else (1024, 128)


class Lists(NamedTuple):
    """Sums of lists, before those that were cut are put together (apply.combined)."""

    starts: Tensor  # int32 [K + 3]: where the entries of each key begin, once sorted
    partial: Tensor  # [slots, N]
    decay_partial: Tensor  # [slots]
    total: Tensor  # [K, N]
    decay: Tensor  # [K]

    def learning_rows(self, *results: Tensor) -> list[Tensor]:
        """Rows of the neurons that learn; where values can be read."""
        learning = self.starts[1:-2] > self.starts[:-3]
        return [result[learning] for result in results]


class Coefficients(NamedTuple):
    """The coefficient of each entry (p, r): values[p, r], times its response where that is positive if ``rectified``.

    The decay adds up values times ``decays``, the responses, or the values alone without them.
    """

    values: Tensor
    down: int  # strides; 0 for the same in every patch
    right: int
    rectified: Tensor | None = None  # [P, R], contiguous
    decays: Tensor | None = None
    decays_down: int = 0
    decays_right: int = 0


@triton.jit
def keys_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, scale, targets, down, right, rows, share, values, values_down, values_right,
    responses, responses_down, responses_right, frozen, keys, groups, P, R, K, N,
    LABELS: tl.constexpr, SHAPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The key of each entry: its neuron, or K where no neuron learns from it, or K + 1 where it is not valid.

    A program owns BLOCK_P patches, and reads raw ones until an entry is not 0: no neuron learns from a blank patch.
    LABELS: ``share`` patches have one of ``rows`` targets in common, in each group, which may name neurons of others.
    """
    number, valid, corner = own_patches(tl.program_id(0), P, (sb, sh, sw, Ho, Wo, B, sg), SHAPE, BLOCK_P)
    if scale is not None:
        blank = tl.load(scale + number, mask=valid, other=0) == 0
    else:
        blank = all_zeros(x, corner, valid, (sc, sh, sw, H, W), N, SHAPE, BLOCK_N)
    patch = number.to(tl.int64)
    row = patch // share % rows if LABELS else patch
    each = K // groups
    low = number // (P // groups) * each if SHAPE[GROUPED] else 0
    for rank in range(R):
        neuron = tl.load(targets + row * down + rank * right, mask=valid, other=-1)
        c = tl.load(values + patch * values_down + rank * values_right, mask=valid, other=0.0)
        outside = (neuron < low) | (neuron >= low + each)
        broken = ((neuron < -1) | (neuron >= K) if LABELS else outside & (neuron != -1)) | ~(tl.abs(c) < float("inf"))
        if responses is not None:
            response = tl.load(responses + patch * responses_down + rank * responses_right, mask=valid, other=0.0)
            broken = broken | ~(tl.abs(response) < float("inf"))
        idle = outside | (c == 0) | blank
        if frozen is not None:
            idle = idle | (tl.load(frozen + neuron, mask=valid & ~broken & ~idle, other=0) != 0)
        key = tl.where(broken, K + 1, tl.where(idle, K, neuron.to(tl.int32)))
        tl.store(keys + patch * R + rank, key, mask=valid)


@triton.jit
def _lists(job, slots, starts, keys, E, K, PIECE: tl.constexpr):
    """Of each job: the neuron of its list, the first and last entries that it adds up, and whether it writes a sum.

    The first jobs, which have the most to do, own the slots of pieces (apply.slot_of), the others a list each.
    """
    cut = job < slots
    low = job // 2 * PIECE
    # A piece beginning in here holds the entry at the low end, or begins its list, which then reaches past the end.
    at = tl.where(job % 2 == 0, low, low + PIECE - 1)
    neuron = tl.where(cut, tl.load(keys + at, mask=cut & (at < E), other=K), job - slots)
    exists = neuron < K
    start, end = tl.load(starts + neuron, mask=exists, other=0), tl.load(starts + neuron + 1, mask=exists, other=0)
    piece = tl.where(cut & (job % 2 == 0), tl.cdiv(low - start, PIECE), 0)
    first = start + piece * PIECE
    long = end - start > PIECE
    mine = exists & tl.where(cut, long & (first < end) & (slot_of(start, piece, PIECE) == job), ~long)
    return neuron, first, tl.where(mine, tl.minimum(first + PIECE, end), first), mine


@triton.jit
def _coefficients_of(entry, patch, rank, valid, values, of_values, rectified, decays, of_decays, shares):
    """Of each entry its coefficient, and ``shares`` with its term of the decay; of_values, of_decays: strides."""
    c = tl.load(values + patch * of_values[0] + rank * of_values[1], mask=valid, other=0.0)
    if rectified is not None:
        # + 0: rounded before it is added up, as are coefficients that were multiplied before.
        c = tl.fma(c, tl.maximum(tl.load(rectified + entry, mask=valid, other=0.0), 0), tl.zeros_like(c))
    if decays is None:
        shares += c
    else:
        spot = patch * of_decays[0] + rank * of_decays[1]
        shares = tl.fma(c, tl.load(decays + spot, mask=valid, other=0.0), shares)
    return c, shares


@triton.jit
def gather_kernel(
    x, sb, sc, sh, sw, H, W, Ho, Wo, B, sg, offset, scale, starts, keys, order,
    values, values_down, values_right, rectified, decays, decays_down, decays_right,
    total, decay, partial, decay_partial, slots, E, R, K, N,
    EMPTY: tl.constexpr, SHAPE: tl.constexpr, PIECE: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A program adds up a column tile of BLOCK_J lists, or of pieces of lists; EMPTY: zeros for a list of nothing.

    One broken entry makes all sums NaN.
    """
    wide: tl.constexpr = total.dtype.element_ty
    layout = (sc, sh, sw, H, W)
    job = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    neuron, first, last, mine = _lists(job, slots, starts, keys, E, K, PIECE)
    if not EMPTY:
        mine = mine & (last > first)
    if tl.max(mine.to(tl.int32), axis=0) > 0:
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        tap = taps(column, layout, SHAPE)
        sums, shares = tl.zeros([BLOCK_J * BLOCK_E, BLOCK_N], wide), tl.zeros([BLOCK_J * BLOCK_E], wide)
        for at in range(0, tl.max(last - first, axis=0), BLOCK_E):
            ahead = first[:, None] + (at + tl.arange(0, BLOCK_E))[None, :]
            valid = tl.reshape((ahead < last[:, None]).to(tl.int32), [BLOCK_J * BLOCK_E]) != 0
            entry = tl.load(order + tl.reshape(ahead, [BLOCK_J * BLOCK_E]), mask=valid, other=0).to(tl.int32)
            patch, rank = entry // R, (entry % R).to(tl.int64)
            c, shares = _coefficients_of(
                entry, patch.to(tl.int64), rank, valid, values, (values_down, values_right), rectified,
                decays, (decays_down, decays_right), shares,
            )  # fmt: skip
            corner = corners(patch, (sb, sh, sw, Ho, Wo, B, sg), SHAPE)
            tile = load_patches(x, corner, valid, tap, column < N, layout, SHAPE).to(wide)
            if offset is not None:
                tile = tile - tl.load(offset + patch, mask=valid, other=0.0)[:, None]
            if scale is not None:
                tile = tile * tl.load(scale + patch, mask=valid, other=0.0)[:, None]
            sums = tl.fma(c[:, None], tile, sums)
        spoilt = tl.where(tl.load(starts + K + 2) > tl.load(starts + K + 1), float("nan"), 0.0).to(wide)
        sums = tl.permute(tl.reshape(sums, [BLOCK_J, BLOCK_E, BLOCK_N]), (0, 2, 1))
        sums = ordered_sum(tl.reshape(sums, [BLOCK_J * BLOCK_N, BLOCK_E]))
        sums = tl.reshape(sums, [BLOCK_J, BLOCK_N]) + spoilt
        shares = ordered_sum(tl.reshape(shares, [BLOCK_J, BLOCK_E])) + spoilt
        piece, whole = mine & (job < slots), mine & (job >= slots)
        spot, within = job.to(tl.int64)[:, None] * N + column[None, :], (column < N)[None, :]
        tl.store(partial + spot, sums, mask=piece[:, None] & within)
        spot = neuron.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(total + spot, sums, mask=whole[:, None] & within)
        if tl.program_id(1) == 0:
            tl.store(decay_partial + job, shares, mask=piece)
            tl.store(decay + neuron, shares, mask=whole)


@triton.jit
def combine_kernel(
    starts, partial, decay_partial, total, decay, count, K, N,
    PIECE: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add up the sums of the pieces of lists that were cut; count the entries of every list."""
    row = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    exists = row < K
    start, end = tl.load(starts + row, mask=exists, other=0), tl.load(starts + row + 1, mask=exists, other=0)
    cut = end - start > PIECE
    if tl.program_id(1) == 0:
        tl.store(count + row, (end - start).to(count.dtype.element_ty), mask=exists)
        none = tl.zeros([1], tl.int32)
        one = combined(decay, decay_partial, start, end, row[:, None], none, exists[:, None], 1, PIECE)
        tl.store(decay + row, tl.sum(one, axis=1), mask=exists & cut)
    if tl.max(cut.to(tl.int32), axis=0) > 0:
        column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        spot = row.to(tl.int64)[:, None] * N + column[None, :]
        mask = (exists & cut)[:, None] & (column < N)[None, :]
        tl.store(total + spot, combined(total, partial, start, end, spot, column, mask, N, PIECE), mask=mask)


def check_count(op: str, entries: int) -> None:
    """Kernels number entries, patches times ranks, in 32 bits."""
    if entries >= 2**31:
        checks.fail(op, "x", "have fewer than 2^31 patches times ranks", entries)


def keys_of(
    op: str, view: PatchView, scale: Tensor | None, targets: Tensor, labels: bool, coefficients: Coefficients,
    neurons: int, frozen: Tensor | None,
) -> Tensor:  # fmt: skip
    """int32 [P * ranks], the key of every entry, in one launch.

    targets: [P, ranks], or ``labels`` of the samples [B, 1]; scale: of patches that are not raw.
    """
    P, N, (rows, ranks) = view.patches, view.entries, targets.shape
    share = P // (view.groups * max(rows, 1)) if labels else 1
    check_count(op, P * ranks)
    keys = targets.new_empty(P * ranks, dtype=torch.int32)
    c, block_p = coefficients, block(16)
    launch(
        keys_kernel, (triton.cdiv(P, block_p),), *view.arguments, scale, targets, *targets.stride(), rows, share,
        c.values, c.down, c.right, c.decays, c.decays_down, c.decays_right, frozen, keys, view.groups, P, ranks,
        neurons, N, LABELS=labels, SHAPE=view.shape, BLOCK_P=block_p, BLOCK_N=power_of_2(N, 16, block(64)),
    )  # fmt: skip
    return keys


def grouped(
    view: PatchView, keys: Tensor, ranks: int, coefficients: Coefficients, neurons: int, shift: tuple, empty: bool
) -> Lists:
    """Lists of the patches by their keys, and their sums; one launch beside ATen's sort.

    ``shift``: offset and scale of the patches, or None. Without ``empty``, rows of neurons that do not learn stay
    unwritten.
    """
    x, N, E = view.x, view.entries, keys.numel()
    dtype = checks.result_dtype(x.dtype)
    keys, order = keys.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(neurons + 3, dtype=torch.int32, device=x.device), out_int32=True)
    slots = 2 * triton.cdiv(E, PIECE)
    total, decay = x.new_empty((neurons, N), dtype=dtype), x.new_empty(neurons, dtype=dtype)
    partial, decay_partial = x.new_empty((slots, N), dtype=dtype), x.new_empty(slots, dtype=dtype)
    block_n = power_of_2(N, 16, WIDTH)
    tile = TILE // 2 if x.dim() == 4 else TILE  # an image's addresses take twice the registers
    block_n = min(block_n, power_of_2(tile // ENTRIES))
    block_j = power_of_2(slots + neurons, 1, tile // (ENTRIES * block_n))
    grid = triton.cdiv(slots + neurons, block_j), triton.cdiv(N, block_n)
    launch(
        gather_kernel, grid, *view.arguments, *shift, starts, keys, order, *coefficients,
        total, decay, partial, decay_partial, slots, E, max(ranks, 1), neurons, N,
        registers=255, EMPTY=empty, SHAPE=view.shape, PIECE=PIECE, BLOCK_J=block_j, BLOCK_E=ENTRIES,
        BLOCK_N=block_n,
    )  # fmt: skip
    return Lists(starts, partial, decay_partial, total, decay)


def accumulate(
    x: Tensor, targets: Tensor, coefficients: Tensor, responses: Tensor | None, neurons: int, kernel: Sequence[int],
    patches: str, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
    frozen: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The operator ``accumulate``."""
    if readable(x):
        checks.finite("accumulate", x=x, coefficients=coefficients, responses=responses)
        checks.named_range("accumulate", "targets", targets, neurons, groups)
    frozen = None if frozen is None else frozen.contiguous()
    view = patch_view(x, kernel, stride, padding, dilation, groups)
    moments = moments_of("accumulate", view, patches)
    down = coefficients.stride(0) if coefficients.dim() == 2 else 0
    shares = Coefficients(coefficients, down, coefficients.stride(-1))
    if responses is not None:
        shares = shares._replace(decays=responses, decays_down=responses.stride(0), decays_right=responses.stride(1))
    ranks = targets.shape[1]
    keys = keys_of("accumulate", view, moments.scale, targets, False, shares, neurons, frozen)
    lists = grouped(view, keys, ranks, shares, neurons, moments[:2], True)
    total, decay = lists.total, lists.decay
    count = torch.empty_like(decay)
    block_j, block_n = power_of_2(neurons, 1, block(8)), power_of_2(view.entries, 16, 512)
    launch(
        combine_kernel, (triton.cdiv(neurons, block_j), triton.cdiv(view.entries, block_n)), lists.starts,
        lists.partial, lists.decay_partial, total, decay, count, neurons, view.entries,
        PIECE=PIECE, BLOCK_J=block_j, BLOCK_N=block_n,
    )  # fmt: skip
    return total.view(neurons, x.shape[1] // groups, *kernel), decay, count
