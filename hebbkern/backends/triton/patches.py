"""Where the patches of an input lie, and what is known of each: mean, norm. Nothing is ever unfolded.

``place(x, ...)`` sees a linear layer as 1x1 patches of images of one pixel. A kernel takes its arguments by
``*where.arguments`` (x, its four strides, height, width, rows and columns of patches) and the constexpr
``SHAPE = where.shape``; entry i of patch p is then ``load_patches`` of ``corners(p)`` and ``taps(i)``.
``moments`` gives the two numbers a patch that centring and standardising need: x̃ = (x - offset) · scale.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hebbkern.backends.eager.kernels import FLAT

# Indices into SHAPE.
KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATE_H, DILATE_W, INSIDE, WIDE = map(tl.constexpr, range(10))
LINEAR = tl.constexpr((1, 1, 1, 1, 0, 0, 1, 1, True, False))  # SHAPE of rows of a matrix
FLAT_SHARE = tl.constexpr(FLAT)


class Place(NamedTuple):
    """The patches of one input: kernel arguments, compile-time SHAPE, and how many patches of how many entries."""

    arguments: tuple
    shape: tuple
    patches: int
    entries: int
    x: torch.Tensor


def place(x, kernel=(), stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    """x [B, N] with kernel (), or x [B, C, H, W] with (kh, kw)."""
    images = x if x.dim() == 4 else x[:, :, None, None]
    kernel = tuple(map(int, kernel)) or (1, 1)
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    rows, columns = ((images.shape[2 + a] + 2 * padding[a] - span[a]) // stride[a] + 1 for a in (0, 1))
    patches, entries = images.shape[0] * rows * columns, images.shape[1] * kernel[0] * kernel[1]
    reach = sum(stride * (size - 1) for stride, size in zip(images.stride()[1:], images.shape[1:], strict=True))
    # bool(): for torch.compile it may be a symbol, which no kernel can ask.
    shape = (*kernel, *stride, *padding, *dilation, max(padding) == 0, bool(reach >= 2**31))
    arguments = (x, *images.stride(), *images.shape[2:], rows, columns)
    return Place(arguments, tuple(map(int, shape[:8])) + shape[8:], patches, entries, x)


@triton.jit
def corners(patch, sb, sh, sw, Ho, Wo, SHAPE: tl.constexpr):
    """Of each patch: where its first entry lies from x on, and the row and column of its upper left corner."""
    image = patch // (Ho * Wo)
    within = patch % (Ho * Wo)
    row = within // Wo * SHAPE[STRIDE_H] - SHAPE[PAD_H]
    column = within % Wo * SHAPE[STRIDE_W] - SHAPE[PAD_W]
    return image.to(tl.int64) * sb + row.to(tl.int64) * sh + column.to(tl.int64) * sw, row, column


@triton.jit
def taps(entry, sc, sh, sw, SHAPE: tl.constexpr):
    """Of each entry: where it lies from its patch's first on, and how many rows and columns below its corner."""
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
def load_patches(x, start, row, column, known, offset, down, right, within, H, W, SHAPE: tl.constexpr):
    """[patches, entries] of x; 0 in the padding, in a patch not ``known`` and in an entry not ``within``."""
    inside = known[:, None] & within[None, :]
    if not SHAPE[INSIDE]:
        y = row[:, None] + down[None, :]
        z = column[:, None] + right[None, :]
        inside = inside & (y >= 0) & (y < H) & (z >= 0) & (z < W)
    return tl.load(x + start[:, None] + offset[None, :], mask=inside, other=0.0)
