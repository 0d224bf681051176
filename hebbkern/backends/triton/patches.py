"""How kernels read the patches of an input: from where they lie in the images. Nothing is ever unfolded.

``patch_view(x, ...)`` describes a linear layer as 1x1 patches of images of one pixel. A kernel takes its arguments by
``*view.arguments`` (x, its four strides, height, width, rows and columns of patches, images, and the stride of a group
of channels) and the constexpr ``SHAPE = view.shape``. Its functions pass them on in two tuples: ``grid = (sb, sh, sw,
Ho, Wo, B, sg)`` says where the patches lie, ``layout = (sc, sh, sw, H, W)`` where the entries of a patch lie. Patches
are numbered in the order (group, image, row, column).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from hebbkern.checks import FLAT

# Indices into SHAPE.
KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATE_H, DILATE_W = map(tl.constexpr, range(8))
INSIDE, WIDE, GROUPED = map(tl.constexpr, range(8, 11))
LINEAR = tl.constexpr((1, 1, 1, 1, 0, 0, 1, 1, True, False, False))  # SHAPE of rows of a matrix
FLAT_SHARE = tl.constexpr(FLAT)


class PatchView(NamedTuple):
    """The patches of one input: kernel arguments, compile-time SHAPE, and how many patches of how many entries."""

    arguments: tuple
    shape: tuple
    patches: int
    entries: int
    x: torch.Tensor
    groups: int


def patch_view(
    x: torch.Tensor, kernel: Sequence[Any] = (),
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
) -> PatchView:  # fmt: skip
    """The view of x [B, N] with kernel (), or of x [B, C, H, W] with kernel (kh, kw)."""
    images = x if x.dim() == 4 else x[:, :, None, None]
    kernel = tuple(map(int, kernel)) or (1, 1)
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    rows, columns = ((images.shape[2 + a] + 2 * padding[a] - span[a]) // stride[a] + 1 for a in (0, 1))
    patches, entries = groups * images.shape[0] * rows * columns, images.shape[1] // groups * kernel[0] * kernel[1]
    reach = sum(stride * (size - 1) for stride, size in zip(images.stride()[1:], images.shape[1:], strict=True))
    # bool(): for torch.compile it may be a symbol, on which no kernel can be specialised.
    shape = (*kernel, *stride, *padding, *dilation, max(padding) == 0, bool(reach >= 2**31), groups > 1)
    # One group: constants, for which no kernel is compiled anew.
    spread = (images.shape[0], images.shape[1] // groups * images.stride(1)) if groups > 1 else (1, 0)
    arguments = (x, *images.stride(), *images.shape[2:], rows, columns, *spread)
    return PatchView(arguments, tuple(map(int, shape[:8])) + shape[8:], patches, entries, x, groups)


@triton.jit
def tile_of_group(rows, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """This program's group and tile, where each group has tiles of its own: of ``rows`` patches or neurons."""
    if SHAPE[GROUPED]:
        tiles = tl.cdiv(rows, BLOCK)
        return tl.program_id(0) // tiles, tl.program_id(0) % tiles
    else:  # a return does not end a branch taken at compile time
        return 0, tl.program_id(0)


@triton.jit
def own_patches(number, P, grid, SHAPE: tl.constexpr, BLOCK_P: tl.constexpr, first=0):
    """Tile ``number`` of the P patches from ``first`` on: their numbers, whether each is one of them, their corners."""
    place = number * BLOCK_P + tl.arange(0, BLOCK_P)
    return first + place, place < P, corners(first + place, grid, SHAPE)


@triton.jit
def corners(patch, grid, SHAPE: tl.constexpr):
    """Of each patch: where its first entry lies from x on, and the row and column of its upper left corner."""
    sb, sh, sw, Ho, Wo, B, sg = grid
    image = patch // (Ho * Wo)
    within = patch % (Ho * Wo)
    row = within // Wo * SHAPE[STRIDE_H] - SHAPE[PAD_H]
    column = within % Wo * SHAPE[STRIDE_W] - SHAPE[PAD_W]
    start = row.to(tl.int64) * sh + column.to(tl.int64) * sw
    if SHAPE[GROUPED]:
        start += (image // B).to(tl.int64) * sg
        image = image % B
    return image.to(tl.int64) * sb + start, row, column


@triton.jit
def taps(entry, layout, SHAPE: tl.constexpr):
    """Of each entry: where it lies from its patch's first on, and how many rows and columns below its corner."""
    sc, sh, sw, _, _ = layout
    area: tl.constexpr = SHAPE[KERNEL_H] * SHAPE[KERNEL_W]
    channel = entry // area
    down = entry % area // SHAPE[KERNEL_W] * SHAPE[DILATE_H]
    right = entry % SHAPE[KERNEL_W] * SHAPE[DILATE_W]
    if SHAPE[WIDE]:
        channel = channel.to(tl.int64)
        down_far, right_far = down.to(tl.int64), right.to(tl.int64)
        return channel * sc + down_far * sh + right_far * sw, down, right
    return channel * sc + down * sh + right * sw, down, right


@triton.jit
def load_patches(x, corner, valid, tap, within, layout, SHAPE: tl.constexpr):
    """[patches, entries] of x; 0 in the padding, in a patch not ``valid`` and in an entry not ``within``."""
    start, row, column = corner
    offset, down, right = tap
    inside = valid[:, None] & within[None, :]
    if not SHAPE[INSIDE]:
        _, _, _, H, W = layout
        y = row[:, None] + down[None, :]
        z = column[:, None] + right[None, :]
        inside = inside & (y >= 0) & (y < H) & (z >= 0) & (z < W)
    return tl.load(x + start[:, None] + offset[None, :], mask=inside, other=0.0)


@triton.jit
def all_zeros(x, corner, asked, layout, N, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """[patches]: those ``asked`` for, all of whose entries are 0; read until an entry of each is not."""
    zeros = asked
    first = 0
    while (first < N) & (tl.max(zeros.to(tl.int32), axis=0) > 0):
        tile, _ = load_entries(x, corner, zeros, first, N, layout, SHAPE, BLOCK)
        zeros = zeros & (tl.max((tile != 0).to(tl.int32), axis=1) == 0)
        first += BLOCK
    return zeros


@triton.jit
def load_entries(x, corner, valid, first, N, layout, SHAPE: tl.constexpr, BLOCK: tl.constexpr):
    """Entries first to first + BLOCK of each patch, [patches, BLOCK], and their numbers [BLOCK]; 0 from N on."""
    entry = first + tl.arange(0, BLOCK)
    return load_patches(x, corner, valid, taps(entry, layout, SHAPE), entry < N, layout, SHAPE), entry
