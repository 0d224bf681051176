"""Pictures of learnt weights, as the papers of this field show them: a grid of neurons, blue to white to red."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from torch import Tensor


def weight_grid(
    weight: Tensor,
    path: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Path:
    """Writes the incoming weights of each neuron as one tile of a grid, and a colour bar.

    Colours are symmetric around 0 (blue negative, red positive) and the same in all tiles; the 0.2 % largest weights
    are clipped. Filters of three channels are drawn in RGB, 0 as grey.

    Args:
        weight: [K, N], or filters [K, C, kh, kw] with 1 or 3 channels (others: the mean over channels).
        path: file to write, its ending chooses the format; its folder is made.
        shape: of a tile when weight is [K, N]: (height, width) or (channels, height, width); by default a square.
        columns: tiles in a row; by default the grid is about square.
        title: above the grid.

    Returns:
        path. The same weights give the same picture.

    Raises:
        ValueError: shape does not fit. ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("hebbkern.plots: matplotlib is missing: pip install 'hebbkern[demo]'") from error
    tiles = _tiles(weight.detach().float().cpu().numpy(), shape)
    limit = float(np.quantile(np.abs(tiles), 0.998)) or 1.0
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    grid = _arrange(np.clip(tiles / limit, -1, 1), columns)
    colour = grid.shape[-1] == 3
    rows = grid.shape[0] / grid.shape[1]
    figure = Figure(figsize=(7.4, 7.4 * rows), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(
        grid / 2 + 0.5 if colour else grid[..., 0] * limit, cmap="bwr", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=10)
    if not colour:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.02, label="weight")
        bar.outline.set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None} if path.suffix == ".png" else None)
    return path


def _tiles(weight: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """[K, height, width, channels], channels 1 or 3"""
    if weight.ndim == 2:
        side = math.isqrt(weight.shape[1])
        shape = shape or (side, side)
        if math.prod(shape) != weight.shape[1]:
            raise ValueError(f"hebbkern.plots: shape must fit the {weight.shape[1]} inputs, got {tuple(shape)}")
        weight = weight.reshape(len(weight), *(shape if len(shape) == 3 else (1, *shape)))
    weight = weight if weight.shape[1] in (1, 3) else weight.mean(axis=1, keepdims=True)
    return weight.transpose(0, 2, 3, 1)


def _arrange(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles side by side, with white (in RGB black) lines of one pixel, or more for large tiles, between them."""
    count, height, width, channels = tiles.shape
    gap, rows = max(1, height // 14), math.ceil(count / columns)
    blank = -1.0 if channels == 3 else 0.0
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), blank)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        grid[top : top + height, left : left + width] = tile
    return grid
