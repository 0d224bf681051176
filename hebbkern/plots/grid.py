"""weight_grid: the incoming weights of each neuron as a tile, as the papers of this field show them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from hebbkern.plots.files import figure, refuse, styled, write

COLOURS = {"bwr": "bwr", "grey": "gray"}
CHANNELS = ("auto", "rgb", "mean", "split")


def weight_grid(
    weight: Tensor,
    path: str | Path | BinaryIO,
    *,
    shape: tuple[int, ...] | None = None,
    columns: int | None = None,
    title: str | None = None,
    colours: str = "bwr",
    channels: str = "auto",
):
    """Writes the incoming weights of each neuron as one tile of a grid, and a colour bar.

    Colours are symmetric around 0 and the same in all tiles; the 0.2 % largest weights are clipped.

    Args:
        weight: [K, N], or filters [K, C, kh, kw].
        path: see `hebbkern.plots`.
        shape: of a tile when weight is [K, N]: (height, width) or (channels, height, width); by default `tile_shape`.
        columns: tiles in a row (with split channels: of each neuron's own row, so it must be left out); by default the
            grid is about square.
        title: above the grid.
        colours: "bwr", blue for negative, white for 0, red for positive weights; or "grey", black to white, 0 grey.
        channels: "rgb" draws three channels in colour, 0 as grey; "mean" draws their mean; "split" draws each channel
            as a tile of its own, a neuron a row (two neurons a row where channels are few). "auto" is "rgb" for three
            channels, else "mean".

    Returns:
        path. The same weights give the same picture.

    Raises:
        ValueError: shape does not fit, or colours, or channels. ImportError: matplotlib is missing.
    """
    if colours not in COLOURS:
        refuse("colours", '"bwr" or "grey"', repr(colours))
    tiles = _tiles(weight.detach().float().cpu().numpy(), shape)
    tiles, columns = _by_channel(tiles, channels, columns)
    limit = float(np.quantile(np.abs(tiles), 0.998)) or float(np.abs(tiles).max()) or 1.0
    grid = _arrange(np.clip(tiles / limit, -1, 1), columns, blank=0.0 if colours == "bwr" else 1.0)
    return _draw(grid, limit, COLOURS[colours], title, path)


def tile_shape(inputs: int) -> tuple[int, ...]:
    """How so many inputs are drawn: a square, a square of three channels, or the rectangle nearest to a square."""
    side = math.isqrt(inputs)
    if side * side == inputs:
        return side, side
    third = math.isqrt(inputs // 3)
    if third > 1 and 3 * third * third == inputs:
        return 3, third, third
    height = max(size for size in range(1, side + 1) if inputs % size == 0)
    return height, inputs // height


def _tiles(weight: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """[K, height, width, channels]"""
    if weight.ndim not in (2, 4) or weight.size == 0:
        refuse("weight", "[K, N] or [K, C, kh, kw] and not empty", f"shape {list(weight.shape)}")
    if weight.ndim == 2:
        shape = shape or tile_shape(weight.shape[1])
        if math.prod(shape) != weight.shape[1]:
            raise ValueError(f"hebbkern.plots: shape must fit the {weight.shape[1]} inputs, got {tuple(shape)}")
        weight = weight.reshape(len(weight), *(shape if len(shape) == 3 else (1, *shape)))
    return weight.transpose(0, 2, 3, 1)


def _by_channel(tiles: np.ndarray, channels: str, columns: int | None) -> tuple[np.ndarray, int]:
    """Tiles of 1 or 3 channels, and how many make a row."""
    count = tiles.shape[-1]
    if channels not in CHANNELS:
        refuse("channels", '"auto", "rgb", "mean" or "split"', repr(channels))
    if channels == "rgb" and count != 3:
        refuse("channels", f'other than "rgb" where there are {count}', '"rgb"')
    if channels == "split" and count > 1:
        if columns is not None:
            refuse("columns", 'left out with channels="split"', columns)
        tiles = np.moveaxis(tiles, -1, 1)
        neurons = max(1, math.isqrt(len(tiles) * count) // count)
        return tiles.reshape(-1, *tiles.shape[2:], 1), count * neurons
    if count > 1 and not (count == 3 and channels in ("auto", "rgb")):
        tiles = tiles.mean(axis=-1, keepdims=True)
    return tiles, columns or math.ceil(math.sqrt(len(tiles)))


def _arrange(tiles: np.ndarray, columns: int, blank: float = 0.0) -> np.ndarray:
    """Tiles side by side, with blank (in RGB black) lines of one pixel, or more for large tiles, between them."""
    count, height, width, channels = tiles.shape
    gap, rows = max(1, height // 14), math.ceil(count / columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), blank)
    if channels == 3:
        grid[:] = -1.0
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = tile
    return grid


def _draw(grid: np.ndarray, limit: float, colours: str, title: str | None, path):
    colour = grid.shape[-1] == 3
    rows = grid.shape[0] / grid.shape[1]
    with styled():
        drawn = figure(7.4, max(7.4 * rows, 1.2)) if rows <= 1.6 else figure(11.8 / rows, 11.8)
        axes = drawn.add_subplot()
        picture = grid / 2 + 0.5 if colour else grid[..., 0] * limit
        shown = axes.imshow(picture, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.axis("off")
        if title:
            axes.set_title(title, fontsize=10)
        if not colour:
            bar = drawn.colorbar(shown, ax=axes, shrink=0.6, pad=0.02, label="weight")
            bar.outline.set_visible(False)
        return write(drawn, path)
