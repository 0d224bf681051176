"""Pictures of weights: the tiles, their colours, and the file."""

import numpy as np
import pytest
import torch

from cases import random
from hebbkern import plots

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def pixels(path):
    return np.asarray(image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((10, 25), {}),
        ((5, 12), {"shape": (3, 4)}),
        ((9, 1, 5, 5), {}),
        ((9, 3, 5, 5), {}),
        ((4, 8, 3, 3), {"columns": 4}),
    ],
)
def test_every_shape_is_drawn_the_same_each_time(tmp_path, shape, options):
    first, second = (plots.weight_grid(random(shape), tmp_path / f"new/{name}.png", **options) for name in "ab")
    assert first.read_bytes() == second.read_bytes() and pixels(first).std() > 10


def test_colours_are_symmetric_around_zero(tmp_path):
    weight = torch.zeros(1, 4)
    weight[0, 0], weight[0, 1], weight[0, 3] = 1, 0.5, -1
    seen = pixels(plots.weight_grid(weight, tmp_path / "a.png"))
    tile = len(seen) ** 2 / 6  # at least so many pixels of a colour: the bar has some of each
    for colour in ((255, 0, 0), (255, 128, 128), (255, 255, 255), (0, 0, 255)):
        assert (np.abs(seen - colour).max(-1) < 4).sum() > tile, colour


def test_tiles_keep_their_places():
    tiles = plots._tiles(np.arange(8.0).reshape(2, 4), None)
    grid = plots._arrange(tiles, columns=2)[..., 0]
    assert grid.tolist() == [[0, 1, 0, 4, 5], [2, 3, 0, 6, 7]]


def test_a_shape_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hebbkern.plots: shape must fit the 12 inputs, got \(3, 3\)"):
        plots.weight_grid(torch.zeros(2, 12), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
