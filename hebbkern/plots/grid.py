"""weight_grid: the incoming weights of each neuron as a tile of a grid, as in the papers of this field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from hebbkern.plots.files import TargetT, figure, refuse, styled, write

COLOURS = {"bwr": ("bwr", "0.82"), "grey": ("gray", "white")}  # colour map, and colour of the lines between tiles
CHANNELS = ("auto", "rgb", "mean", "split")
LINE = 16  # cells, the least height of a tile; a line between tiles is an eighth of the height


def weight_grid(
    weight: Tensor,
    path: TargetT,
    *,
    shape: tuple[int, ...] | None = None,
    columns: int | None = None,
    title: str | None = None,
    colours: str = "bwr",
    channels: str = "auto",
) -> TargetT:
    """Draws the incoming weights of each neuron as one tile of a grid, with a colour bar.

    Colours are symmetric around 0 and the same in all tiles; the 0.2 % largest weights are clipped.

    Args:
        weight: [K, N], or filters [K, C, kw], [K, C, kh, kw] or [K, C, kd, kh, kw], of which the slices of all depths
            are drawn one below the other.
        path: see `hebbkern.plots`.
        shape: of a tile when weight is [K, N]: (height, width) or (channels, height, width); by default `tile_shape`.
        columns: neurons in a row; by default the grid is about square.
        title: above the grid.
        colours: "bwr", blue for negative, white for 0, red for positive weights; or "grey", black to white, 0 grey.
        channels: "rgb" draws three channels in colour, 0 as grey; "mean" draws their mean; "split" draws
            all channels of a neuron side by side. "auto" is "rgb" for three channels, else "mean".

    Returns:
        path. The same weights give the same picture.

    Raises:
        ValueError: weight or shape does not fit, or colours or channels is unknown.
        ImportError: matplotlib is missing.
    """
    if colours not in COLOURS:
        refuse("colours", '"bwr" or "grey"', repr(colours))
    tiles = _tiles(weight.detach().float().cpu().numpy(), shape)
    limit, tiles = _by_channel(tiles, channels)
    count, height, width, _ = tiles.shape
    side = columns or min(count, math.ceil(math.sqrt(count * height / width)))
    return _draw(_arrange(tiles, side, gap=_gap(height)), limit, colours, title, path)


def tile_shape(inputs: int) -> tuple[int, ...]:
    """The shape of a tile: a square, three square channels (from 8 x 8 on), or the most square rectangle."""
    side = math.isqrt(inputs)
    if side * side == inputs:
        return side, side
    third = math.isqrt(inputs // 3)
    if third >= 8 and 3 * third * third == inputs:
        return 3, third, third
    height = max(size for size in range(1, side + 1) if inputs % size == 0)
    return height, inputs // height


def _tiles(weight: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """[K, height, width, channels]"""
    if weight.ndim not in (2, 3, 4, 5) or weight.size == 0:
        refuse("weight", "[K, N], or filters of one to three axes, and not empty", f"shape {list(weight.shape)}")
    if weight.ndim == 2:
        shape = shape or tile_shape(weight.shape[1])
        if math.prod(shape) != weight.shape[1]:
            refuse("shape", f"that of the {weight.shape[1]} inputs", tuple(shape))
        weight = weight.reshape(len(weight), *(shape if len(shape) == 3 else (1, *shape)))
    elif weight.ndim != 4:
        weight = weight.reshape(*weight.shape[:2], -1, weight.shape[-1])
    return weight.transpose(0, 2, 3, 1)


def _by_channel(tiles: np.ndarray, channels: str) -> tuple[float, np.ndarray]:
    """The weight of the strongest colour, and tiles of 1 or 3 channels in multiples of it."""
    count = tiles.shape[-1]
    if channels not in CHANNELS:
        refuse("channels", '"auto", "rgb", "mean" or "split"', repr(channels))
    if channels == "rgb" and count != 3:
        refuse("channels", f'other than "rgb" where there are {count}', '"rgb"')
    if channels in ("auto", "mean") and count > 1 and not (channels == "auto" and count == 3):
        tiles = tiles.mean(axis=-1, keepdims=True)
    limit = float(np.quantile(np.abs(tiles), 0.998)) or float(np.abs(tiles).max()) or 1.0
    tiles = np.clip(tiles / limit, -1, 1)
    enlarge = math.ceil(LINE / tiles.shape[1]) if tiles.shape[1] < LINE and tiles.shape[2] < 2 * LINE else 1
    tiles = tiles.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    if channels == "split" and count > 1:
        thin = max(1, _gap(tiles.shape[1]) // 2)
        neurons = (_arrange(np.moveaxis(tile, -1, 0)[..., None], count, thin) for tile in tiles)
        tiles = np.stack(list(neurons))
    return limit, tiles


def _gap(height: int) -> int:
    return max(1, height // 8)


def _arrange(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """Tiles side by side; lines between them, and cells without a tile, are NaN."""
    count, height, width, channels = tiles.shape
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.nan, dtype=np.float32)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = tile
    return grid


def _draw(grid: np.ndarray, limit: float, colours: str, title: str | None, path: Any) -> Any:
    rows = grid.shape[0] / grid.shape[1]
    with styled():
        drawn = figure(7.4, max(7.4 * rows, 1.2)) if rows <= 1.6 else figure(max(11.8 / rows, 2.4), 11.8)
        axes = drawn.add_subplot()
        name, between = COLOURS[colours]
        if grid.shape[-1] == 3:
            axes.imshow(np.nan_to_num(grid / 2 + 0.5, nan=1.0), interpolation="nearest")
        else:
            axes.set_facecolor(between)
            masked = np.ma.masked_invalid(grid[..., 0] * limit)
            shown = axes.imshow(masked, cmap=name, vmin=-limit, vmax=limit, interpolation="nearest")
            bar = drawn.colorbar(shown, ax=axes, shrink=0.6, pad=0.02, label="weight")
            bar.outline.set_visible(False)
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if title:
            axes.set_title(title, fontsize=10)
        return write(drawn, path)
