"""Y = f(U) of the dense rules, written over U, and its column sums."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern.backends.dense import Task, exact_products, strided
from hebbkern.backends.triton.launch import block, launch, power_of_2


@triton.jit
def exponential(x):
    """e^x for x <= 0; NaN stays NaN. The GPU's own loses a bit with each bit of a float32 x."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    x = tl.where(x < -104, -104, x)
    whole = tl.floor(x * 1.4426950408889634 + 0.5)
    rest = (x - whole * 0.693359375) + whole * 2.12194440e-4  # ln 2 in two parts, the first of which has few bits
    return tl.exp(rest) * tl.exp2(whole)


@triton.jit
def hyperbolic_tangent(u):
    """tanh u. Below 1/2, where 1 - e would cancel, Lambert's continued fraction, exact to 2^-57 there."""
    size = tl.abs(u)
    z = tl.where(size < 0.5, u * u, 0)
    above = (z * 36 + 6930) * z + 270270
    below = ((z + 630) * z + 51975) * z + 945945
    near = u * ((above * z + 2027025) / (below * z + 2027025))
    e = exponential(-2 * size)
    far = (1 - e) / (1 + e)
    return tl.where(size < 0.5, near, tl.where(u < 0, -far, far))


@triton.jit
def activated(u, ACTIVATION: tl.constexpr):
    """f(u), but NaN where u is not finite: an overflow must reach the sum."""
    if ACTIVATION == "relu":
        return tl.where(u > 0, u, 0) + (u - u)
    if ACTIVATION == "tanh":
        return hyperbolic_tangent(u) + (u - u)
    return u


@triton.jit
def softmax_share(u, best, winner, mass, neuron, temperature):
    """r, from each patch's highest response, the winner, and Σ e^((u - best) / temperature)."""
    share = exponential((u - best) / temperature) / mass
    return tl.where(neuron == winner, share, -share) + (u - u)


@triton.jit
def _responses_at(u, spot, offset, scale, total):
    """The responses to x̃, [neurons, patches]; 0 beyond the last of either."""
    at, patch, valid, neuron, exists = spot
    value = tl.load(u + at, mask=exists[:, None] & valid[None, :], other=0)
    if offset is not None:
        less = tl.load(offset + patch, mask=valid, other=0)
        value -= tl.load(total + neuron, mask=exists, other=0)[:, None] * less[None, :]
    if scale is not None:
        value *= tl.load(scale + patch, mask=valid, other=0)[None, :]
    return value


@triton.jit
def _write(
    y, value, u, spot, offset, scale, scaled, diagonal, shift, sums_at, SOFT: tl.constexpr, ACTIVITY: tl.constexpr
):
    """Write Y of a tile, Y · scale, and what the tile adds to the column sums, which lie from ``sums_at`` on."""
    at, patch, valid, neuron, exists = spot
    inside = exists[:, None] & valid[None, :]
    tl.store(y + at, value, mask=inside)
    if diagonal is not None:
        term = value
        if not ACTIVITY:
            term = value * (u if SOFT else value)
        tl.store(diagonal + sums_at + neuron, tl.sum(term, axis=1), mask=exists)
    if scale is not None:
        value *= tl.load(scale + patch, mask=valid, other=0)[None, :]
        if scaled is not None:
            tl.store(scaled + at, value, mask=inside)
    if shift is not None:
        less = tl.load(offset + patch, mask=valid, other=0)
        tl.store(shift + sums_at + neuron, tl.sum(value * less[None, :], axis=1), mask=exists)


@triton.jit
def activate_kernel(
    u, S, sb, sk, ss, offset, scale, total, y, scaled, diagonal, shift, temperature: tl.float64, K,
    ACTIVATION: tl.constexpr, ACTIVITY: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK_S patches of an image and BLOCK_K neurons, or (softmax) all neurons, tile after tile.

    y may be u. Column sums are left as a row a program along the patches, [parts, K].
    """
    SOFT: tl.constexpr = ACTIVATION == "softmax"
    part = tl.program_id(0).to(tl.int64)
    image = part // tl.cdiv(S, BLOCK_S)
    within = (part % tl.cdiv(S, BLOCK_S)) * BLOCK_S + tl.arange(0, BLOCK_S)
    patch, valid = image * S + within, within < S
    start = image * sb + within * ss
    lane = tl.arange(0, BLOCK_K)
    if SOFT:
        degree = tl.full([1, 1], temperature, u.dtype.element_ty)
        best = tl.full([1, BLOCK_S], float("-inf"), u.dtype.element_ty)
        mass = tl.zeros([1, BLOCK_S], u.dtype.element_ty)
        winner = tl.zeros([1, BLOCK_S], tl.int32)
        for first in range(0, K, BLOCK_K):
            neuron = first + lane
            at = neuron.to(tl.int64)[:, None] * sk + start[None, :]
            value = _responses_at(u, (at, patch, valid, neuron, neuron < K), offset, scale, total)
            value = tl.where((neuron < K)[:, None], value, float("-inf"))
            # A NaN is no maximum, but makes its patch's Σ e^u a NaN.
            top, index = tl.max(tl.where(value == value, value, float("-inf")), axis=0, return_indices=True)
            winner = tl.where(top[None, :] > best, first + index[None, :], winner)
            rise = tl.where(top[None, :] > best, top[None, :], best)
            grown = tl.sum(exponential((value - rise) / degree), axis=0)[None, :]
            mass = mass * exponential((best - rise) / degree) + grown
            best = rise
        for first in range(0, K, BLOCK_K):
            neuron = first + lane
            at = neuron.to(tl.int64)[:, None] * sk + start[None, :]
            spot = (at, patch, valid, neuron, neuron < K)
            value = _responses_at(u, spot, offset, scale, total)
            share = softmax_share(value, best, winner, mass, neuron[:, None], degree)
            if scale is not None:  # of a flat patch nothing is left to learn
                share = tl.where(tl.load(scale + patch, mask=valid, other=0)[None, :] == 0, 0, share)
            _write(y, share, value, spot, offset, scale, scaled, diagonal, shift, part * K, True, False)
    else:
        neuron = tl.program_id(1) * BLOCK_K + lane
        at = neuron.to(tl.int64)[:, None] * sk + start[None, :]
        spot = (at, patch, valid, neuron, neuron < K)
        value = activated(_responses_at(u, spot, offset, scale, total), ACTIVATION)
        _write(y, value, value, spot, offset, scale, scaled, diagonal, shift, part * K, False, ACTIVITY)


def activate(task: Task, moments: Any, u: Tensor, sums: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Write Y over U. Returns Y · scale, and with ``sums`` the column sums that are needed."""
    (S, *strides), images = strided(u)
    K, soft = u.shape[1], task.activation == "softmax"
    # 64 x 64: coalesced along either stride, and 1/64 of U for the column sums; softmax keeps a narrower strip in L1.
    side = 64 if task.dtype == torch.float32 else 32
    block_s = power_of_2(S, 16, block(32 if soft else side))
    block_k = power_of_2(K, 16, block(side))
    parts = images * triton.cdiv(S, block_s)
    scaled = torch.empty_like(u) if sums and task.patches == "standardised" else None
    diagonal = u.new_empty((parts, K)) if sums and task.scales_rows else None
    shift = u.new_empty((parts, K)) if sums and moments.offset is not None else None
    launch(
        activate_kernel, (parts, 1 if soft else triton.cdiv(K, block_k)), u, S, *strides, moments.offset,
        moments.scale, moments.total, u, scaled, diagonal, shift, task.temperature, K,
        ACTIVATION=task.activation, ACTIVITY=task.decay == "activity", in_place=True, BLOCK_K=block_k, BLOCK_S=block_s,
    )  # fmt: skip
    with exact_products(u):
        diagonal, shift = (None if part is None else part.sum(0) for part in (diagonal, shift))
    return u if scaled is None else scaled, diagonal, shift
