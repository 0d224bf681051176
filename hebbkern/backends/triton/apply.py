"""apply_: a survey of every number of the step, then the step itself, if all of them are finite.

A program of either kernel owns whole rows. The survey leaves its programs' results in a small table, which every
program of the step reads first: either all of them write, or none does and the first counts the step as skipped.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern import checks
from hebbkern._torch_private import has_values
from hebbkern.backends.triton import status
from hebbkern.backends.triton.arithmetic import narrowed, quotient, root
from hebbkern.backends.triton.launch import INTERPRETED, launch, power_of_2, processors, readable

if TYPE_CHECKING:
    from hebbkern.backends.triton.accumulate import Lists

# Entries in flight: 8 of a weight and of a sum by each of 128 threads, some 64 registers. Larger in the interpreter,
# whose time is by the operation.
TILE = 1024 * (64 if INTERPRETED.value else 1)
SHARE = 8  # programs a multiprocessor, which all fit on it; more would spend longer on reading the table
REGISTERS = 128  # a thread's, so that ptxas does not spill a few of some 50 for one block more a multiprocessor
SMALLEST = tl.constexpr(1e-30)  # what a global maximum is at least
ROUNDED = tl.constexpr(1 + 2.0**-18)  # more than the roundings between a bound and what it bounds
PIECE = 256  # entries of a neuron's list that are added in one go, in accumulate.py


@triton.jit
def slot_of(start, piece, PIECE: tl.constexpr):
    """The slot for the sum of a piece of a list that begins at ``start``, if the list is longer than a piece.

    Two slots for each PIECE entries of all lists: at most two long lists have a piece that begins among them, and only
    one of these two pieces can be its list's first.
    """
    return 2 * (start // PIECE + piece) + (piece == 0)


@triton.jit
def _finite(a):
    return tl.abs(a) < float("inf")


@triton.jit
def _spot(row, column, strides, FORM: tl.constexpr):
    """Where entries lie from the weight's first on; FORM: kernel area and width, or area 0 for contiguous rows."""
    far = column.to(tl.int64)
    if FORM[0] != 0:
        far = far // FORM[0] * strides[1] + far % FORM[0] // FORM[1] * strides[2] + far % FORM[1] * strides[3]
    return row.to(tl.int64)[:, None] * strides[0] + far[None, :]


@triton.jit
def _rates(weight, row, moving, lr, strides, N, wide: tl.constexpr, FORM: tl.constexpr, POWER: tl.constexpr,
           BLOCK_N: tl.constexpr):  # fmt: skip
    """ρ of each row, and lr. Norms in float64, where no square overflows."""
    base = lr.to(tl.int64).to(tl.float64, bitcast=True).to(wide)
    rate = tl.full(row.shape, 1, wide)
    if POWER != 0:
        squares = tl.zeros(row.shape, tl.float64)
        for first in range(0, N, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            mask = moving[:, None] & (column < N)[None, :]
            w = tl.load(weight + _spot(row, column, strides, FORM), mask=mask, other=0.0).to(tl.float64)
            squares += tl.sum(w * w, axis=1)
        from_one = tl.abs(tl.sqrt(squares) - 1)
        power = tl.exp2(tl.log2(tl.where(from_one == 0, 1, from_one)) * POWER)
        rate = tl.where(from_one == 0, 0, power).to(wide)
    return rate, base


@triton.jit
def _rows(row, known, decay, decay_step, denominator, denominator_step, frozen, starts, wide: tl.constexpr):
    """Of each row: whether it is read, whether it moves, its decay and its denominator."""
    if starts is not None:
        known = known & (tl.load(starts + row + 1, mask=known, other=0) > tl.load(starts + row, mask=known, other=0))
    moving = known
    if frozen is not None:
        moving = moving & (tl.load(frozen + row, mask=known, other=0) == 0)
    shrink = tl.zeros(row.shape, wide)
    if decay is not None:
        shrink = tl.load(decay + row.to(tl.int64) * decay_step, mask=known, other=0.0)
    share = tl.full(row.shape, 1, wide)
    if denominator is not None:
        share = tl.load(denominator + row.to(tl.int64) * denominator_step, mask=known, other=1.0)
        moving = moving & (share != 0)
    return known, moving, shrink, share


@triton.jit
def _delta(w, total, shrink, share, moving, HOW: tl.constexpr):
    """Δ, 0 in rows that do not move; HOW: whether there is a decay, a denominator, a global maximum."""
    if HOW[0]:
        total = tl.fma(-shrink[:, None], w, total)
    if HOW[1]:
        total = quotient(total, tl.where(moving, share, 1)[:, None])
    return tl.where(moving[:, None], total, 0)


@triton.jit
def combined(total, partial, start, end, spot, column, mask, N, PIECE: tl.constexpr):
    """The sums of lists that were cut (see accumulate.py): their pieces' sums, in order; of others ``total`` itself."""
    pieces = tl.where(end - start > PIECE, tl.cdiv(end - start, PIECE), 0)
    whole = tl.load(total + spot, mask=mask & (pieces == 0)[:, None], other=0.0)
    for piece in range(tl.max(pieces, axis=0)):
        slot = slot_of(start, piece, PIECE)
        exists = mask & (piece < pieces)[:, None]
        part = tl.load(partial + slot.to(tl.int64)[:, None] * N + column[None, :], mask=exists, other=0.0)
        whole = tl.where(exists, whole + part, whole)
    return whole


@triton.jit
def _survey_rows(weight, total, partial, row, known, moving, shrink, share, bounds, rate, strides, N,
                 NORMALISE: tl.constexpr, HOW: tl.constexpr, FORM: tl.constexpr, PIECE: tl.constexpr,
                 BLOCK_N: tl.constexpr):  # fmt: skip
    """Of each row: whether a number is not finite, the largest |Δ| and |w|."""
    wide = total.dtype.element_ty
    unsound = tl.zeros(row.shape, tl.int32)
    highest, heaviest = tl.zeros(row.shape, wide), tl.zeros(row.shape, wide)
    for first in range(0, N, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        mask = known[:, None] & (column < N)[None, :]
        w = tl.load(weight + _spot(row, column, strides, FORM), mask=mask, other=0.0).to(wide)
        spot = row.to(tl.int64)[:, None] * N + column[None, :]
        if partial is None:
            s = tl.load(total + spot, mask=mask, other=0.0)
        else:
            s = combined(total, partial, bounds[0], bounds[1], spot, column, mask, N, PIECE)
            tl.store(total + spot, s, mask=mask & (bounds[1] - bounds[0] > PIECE)[:, None])
        delta = _delta(w, s, shrink, share, moving, HOW)
        good = _finite(w) & _finite(s) & _finite(delta)
        if NORMALISE == "global_max":
            highest = tl.maximum(highest, tl.max(tl.where(good, tl.abs(delta), 0), axis=1))
            heaviest = tl.maximum(heaviest, tl.max(tl.where(good & moving[:, None], tl.abs(w), 0), axis=1))
        else:
            moved = tl.fma(rate[:, None], delta, w)
            if NORMALISE == "none":
                moved = narrowed(moved, weight.dtype.element_ty).to(wide)
            good = good & (_finite(moved) | ~moving[:, None])
        unsound += tl.max((~good & mask).to(tl.int32), axis=1)
    return unsound, highest, heaviest


@triton.jit
def survey_kernel(
    weight, s0, s1, s2, s3, total, decay, decay_step, denominator, denominator_step, frozen,
    starts, partial, decay_partial, sound, largest, top, steepest, lr, K, N,
    NORMALISE: tl.constexpr, POWER: tl.constexpr, PIECE: tl.constexpr, FORM: tl.constexpr, BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Per program: whether all its numbers are finite, and for a global maximum what bounds the step (``_verdict``).

    With ``starts``, the lists of accumulate.py, it adds up those that were cut, and leaves out rows that do not learn.
    """
    program = tl.program_id(0)
    wide: tl.constexpr = total.dtype.element_ty
    HOW: tl.constexpr = (decay is not None, denominator is not None, False)
    strides = (s0, s1, s2, s3)
    unsound = tl.zeros([BLOCK_J], tl.int32)
    highest, heaviest, fastest = tl.zeros([BLOCK_J], wide), tl.zeros([BLOCK_J], wide), tl.zeros([BLOCK_J], wide)
    if starts is not None:
        unsound += (tl.load(starts + K + 2) > tl.load(starts + K + 1)).to(tl.int32)
    for low in range(program * BLOCK_J, K, tl.num_programs(0) * BLOCK_J):
        row = low + tl.arange(0, BLOCK_J)
        known, moving, shrink, share = _rows(
            row, row < K, decay, decay_step, denominator, denominator_step, frozen, starts, wide
        )
        bounds = (row, row)
        if starts is not None:
            bounds = (tl.load(starts + row, mask=known, other=0), tl.load(starts + row + 1, mask=known, other=0))
            none = tl.zeros([1], tl.int32)
            one = combined(decay, decay_partial, bounds[0], bounds[1], row[:, None], none, known[:, None], 1, PIECE)
            shrink = tl.sum(one, axis=1)
            tl.store(decay + row, shrink, mask=known & (bounds[1] - bounds[0] > PIECE))
            if denominator is not None:
                share = shrink
                moving = known & (share != 0)
        rate, base = _rates(weight, row, moving, lr, strides, N, wide, FORM, POWER, BLOCK_N)
        bad, delta, w = _survey_rows(weight, total, partial, row, known, moving, shrink, share, bounds, base * rate,
                                     strides, N, NORMALISE, HOW, FORM, PIECE, BLOCK_N)  # fmt: skip
        unsound += bad + (~(_finite(shrink) & _finite(share))).to(tl.int32)
        highest, heaviest = tl.maximum(highest, delta), tl.maximum(heaviest, w)
        fastest = tl.maximum(fastest, tl.where(moving, rate, 0))
    tl.store(sound + program, (tl.max(unsound, axis=0) == 0).to(tl.int32))
    if NORMALISE == "global_max":
        tl.store(largest + program, tl.max(highest, axis=0))
        tl.store(top + program, tl.max(heaviest, axis=0))
        tl.store(steepest + program, tl.max(fastest, axis=0))


@triton.jit
def _verdict(sound, largest, top, steepest, lr, programs, wide: tl.constexpr, LIMIT: tl.constexpr, PARTS: tl.constexpr):
    """Whether every new weight will be finite, and the largest |Δ|.

    No new weight is above |w| + |lr| ρ |Δ| / scale, for which every program of the survey has its rows' maxima.
    """
    part = tl.arange(0, PARTS)
    within = part < programs
    good = tl.min(tl.load(sound + part, mask=within, other=1), axis=0) == 1
    scale = good.to(wide)  # 1
    if largest is not None:
        steps = tl.load(largest + part, mask=within, other=0.0)
        scale = tl.maximum(tl.max(steps, axis=0), SMALLEST)
        base = tl.abs(lr.to(tl.int64).to(tl.float64, bitcast=True).to(wide))
        reach = base * tl.load(steepest + part, mask=within, other=0.0) * quotient(steps, scale)
        bound = (tl.load(top + part, mask=within, other=0.0) + reach) * ROUNDED
        good = good & (tl.min((bound < LIMIT).to(tl.int32), axis=0) == 1)
    return good, scale


@triton.jit
def _moved(weight, total, row, column, state, strides, N, HOW: tl.constexpr, FORM: tl.constexpr):
    """Where a tile lies, which of it moves, its steps and new weights before normalising.

    state: of each row whether it moves, its decay, denominator, scale and rate.
    """
    moving, shrink, share, scale, rate = state
    mask = moving[:, None] & (column < N)[None, :]
    spot = _spot(row, column, strides, FORM)
    s = tl.load(total + row.to(tl.int64)[:, None] * N + column[None, :], mask=mask, other=0.0)
    w = tl.load(weight + spot, mask=mask, other=0.0).to(s.dtype)
    delta = _delta(w, s, shrink, share, moving, HOW)
    if HOW[2]:
        delta = quotient(delta, scale)
    # An explicit multiply-add, so that no compiler chooses otherwise here than in finish.conclude.
    return spot, mask, rate[:, None] * delta, tl.fma(rate[:, None], delta, w)


@triton.jit
def _lengths(
    weight, total, row, state, strides, N,
    NORMALISE: tl.constexpr, HOW: tl.constexpr, FORM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of each row: whether it moves at all, its largest entry, and its length in units of that, 1 where that is 0."""
    moving, scale = state[0], state[3]
    highest, furthest = tl.zeros(row.shape, scale.dtype), tl.zeros(row.shape, scale.dtype)
    for first in range(0, N, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        _, _, step, moved = _moved(weight, total, row, column, state, strides, N, HOW, FORM)
        highest = tl.maximum(highest, tl.max(tl.abs(moved), axis=1))
        furthest = tl.maximum(furthest, tl.max(tl.abs(step), axis=1))
    highest = tl.where(highest == 0, 1, highest)
    squares = tl.zeros(row.shape, scale.dtype)
    if NORMALISE == "row_l2":
        for first in range(0, N, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            _, _, _, moved = _moved(weight, total, row, column, state, strides, N, HOW, FORM)
            part = quotient(moved, highest[:, None])  # no square overflows, and the length is at least 1
            squares += tl.sum(part * part, axis=1)
    return moving & (furthest != 0), highest, tl.where(squares == 0, 1, root(squares))


@triton.jit
def step_kernel(
    weight, s0, s1, s2, s3, total, decay, decay_step, denominator, denominator_step, frozen,
    starts, sound, largest, top, steepest, skipped, lr, K, N, programs,
    NORMALISE: tl.constexpr, POWER: tl.constexpr, LIMIT: tl.constexpr, PARTS: tl.constexpr, FORM: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The step, each program its rows, which it reads once to three times (from L1 after the first)."""
    wide: tl.constexpr = total.dtype.element_ty
    HOW: tl.constexpr = (decay is not None, denominator is not None, largest is not None)
    ROWS: tl.constexpr = NORMALISE == "row_max" or NORMALISE == "row_l2"
    strides = (s0, s1, s2, s3)
    good, scale = _verdict(sound, largest, top, steepest, lr, programs, wide, LIMIT, PARTS)
    if not good:
        if tl.program_id(0) == 0:
            tl.store(skipped, tl.load(skipped) + 1)
        return
    for low in range(tl.program_id(0) * BLOCK_J, K, tl.num_programs(0) * BLOCK_J):
        row = low + tl.arange(0, BLOCK_J)
        _, moving, shrink, share = _rows(
            row, row < K, decay, decay_step, denominator, denominator_step, frozen, starts, wide
        )
        rate, base = _rates(weight, row, moving, lr, strides, N, wide, FORM, POWER, BLOCK_N)
        state = (moving, shrink, share, scale, base * rate)
        if ROWS:
            moving, highest, length = _lengths(weight, total, row, state, strides, N, NORMALISE, HOW, FORM, BLOCK_N)
            state = (moving, shrink, share, scale, base * rate)
        for first in range(0, N, BLOCK_N):
            column = first + tl.arange(0, BLOCK_N)
            spot, mask, step, moved = _moved(weight, total, row, column, state, strides, N, HOW, FORM)
            if ROWS:
                moved = quotient(quotient(moved, highest[:, None]), length[:, None])
            else:
                mask = mask & (step != 0)  # -0 + 0 would lose its sign
            tl.store(weight + spot, narrowed(moved, weight.dtype.element_ty), mask=mask)


@triton.jit
def commit_kernel(
    weight, s0, s1, s2, s3, moved, sound, frozen, skipped, K, N, blocks,
    PARTS: tl.constexpr, FORM: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Copies a tile of rows that are not frozen, if every block was sound."""
    unsound = tl.zeros([PARTS], tl.int32)
    for first in range(0, blocks, PARTS):
        part = first + tl.arange(0, PARTS)
        unsound += (tl.load(sound + part, mask=part < blocks, other=1) != 1).to(tl.int32)
    if tl.max(unsound, axis=0) > 0:
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            tl.store(skipped, tl.load(skipped) + 1)
        return
    row = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    moving = row < K
    if frozen is not None:
        moving = moving & (tl.load(frozen + row, mask=moving, other=1) == 0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = moving[:, None] & (column < N)[None, :]
    value = tl.load(moved + row.to(tl.int64)[:, None] * N + column[None, :], mask=mask)
    tl.store(weight + _spot(row, column, (s0, s1, s2, s3), FORM), value, mask=mask)


def _rows_of(weight: Tensor) -> tuple[tuple, tuple[int, int]]:
    """Kernel arguments of a weight of any strides, and the constexpr FORM."""
    images = weight if weight.dim() == 4 else weight[:, :, None, None]
    dense = weight[0].is_contiguous()
    return (weight, *images.stride()), (0 if dense else images[0, 0].numel(), images.shape[3])


def _bits(lr: float) -> int:
    """A float64 as an integer of its bits: a kernel's float arguments are float32."""
    return struct.unpack("<q", struct.pack("<d", lr))[0]


def take_step(
    op: str, weight: Tensor, total: Tensor, decay: Tensor | None, denominator: Tensor | None, lr: float,
    normalise: str, rate_power: float, frozen: Tensor | None, lists: Lists | None = None,
) -> None:  # fmt: skip
    """The step, in two launches; with ``lists`` of the neurons in them only, whose sums may still be in pieces.

    Where values can be read, an infinite sum raises ValueError. On a GPU the step is skipped and counted if a number is
    not finite.
    """
    K, N = weight.shape[0], weight[0].numel()
    rows, form = _rows_of(weight)
    block_n = power_of_2(N, 16, 256)
    block_j = power_of_2(triton.cdiv(K, 2 * processors(weight)), 1, TILE // block_n)
    programs = min(triton.cdiv(K, block_j), SHARE * processors(weight))
    sound = weight.new_empty(programs, dtype=torch.int32)
    bounds = [total.new_empty(programs) if normalise == "global_max" else None for _ in range(3)]
    frozen = None if frozen is None else frozen.contiguous()
    skipped = status.skip_count(weight)
    decays = decay, 0 if decay is None else decay.stride(0)
    denominators = denominator, 0 if denominator is None or denominator.shape[0] < K else denominator.stride(0)
    flat = total.reshape(K, N).contiguous()
    settings: dict[str, Any] = {"NORMALISE": normalise, "POWER": float(rate_power), "FORM": form}
    settings |= {"BLOCK_J": block_j, "BLOCK_N": block_n}
    starts, partial, decay_partial = (None, None, None) if lists is None else lists[:3]
    launch(
        survey_kernel, (programs,), *rows, flat, *decays, *denominators, frozen, starts, partial, decay_partial, sound,
        *bounds, _bits(lr), K, N, in_place=True, registers=REGISTERS, PIECE=PIECE, **settings,
    )  # fmt: skip
    if lists is not None and readable(weight):
        checks.no_overflow(op, checks.SUMS, *lists.learning_rows(flat, lists.decay))
    launch(
        step_kernel, (programs,), *rows, flat, *decays, *denominators, frozen, starts, sound, *bounds, skipped,
        _bits(lr), K, N, programs, in_place=True, LIMIT=torch.finfo(weight.dtype).max, PARTS=power_of_2(programs),
        **settings,
    )  # fmt: skip
    status.raise_if_counted(op, weight, skipped)


def apply_(
    weight: Tensor, sum: Tensor, decay: Tensor | None, denominator: Tensor | None, lr: float, normalise: str,
    rate_power: float, frozen: Tensor | None,
) -> None:  # fmt: skip
    """The operator ``apply_``."""
    status.raise_if_skipped(weight)
    if has_values(weight):
        checks.no_overlap("apply_", weight, sum=sum, decay=decay, denominator=denominator)
    if readable(weight):
        checks.finite("apply_", weight=weight, sum=sum, decay=decay, denominator=denominator)
    take_step("apply_", weight, sum, decay, denominator, lr, normalise, rate_power, frozen)


def commit(op: str, weight: Tensor, moved: Tensor, sound: Tensor, frozen: Tensor | None) -> None:
    """Write ``moved`` [K, N] into the rows of ``weight`` that are not frozen if every one of ``sound`` [blocks] is 1.

    Otherwise the weight stays as it is: ValueError where values can be read, a step counted as skipped elsewhere.
    """
    K, N = moved.shape
    rows, form = _rows_of(weight)
    skipped = status.skip_count(weight)
    block_n = power_of_2(N, 16, 512)
    block_j = power_of_2(K, 1, TILE // block_n)
    grid = triton.cdiv(K, block_j), triton.cdiv(N, block_n)
    launch(
        commit_kernel, grid, *rows, moved, sound, frozen, skipped, K, N, sound.numel(), PARTS=1024, FORM=form,
        in_place=True, BLOCK_J=block_j, BLOCK_N=block_n,
    )  # fmt: skip
    status.raise_if_counted(op, weight, skipped)
