"""Pictures: tiles and their colours, charts, and the files."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch

from cases import random
from hebbkern import plots
from hebbkern.plots import files, grid

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
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
        ((9, 25), {"colours": "grey"}),
        ((5, 8, 3, 3), {"channels": "split"}),
        ((40, 97), {}),
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


def test_grey_is_middle_grey_at_zero(tmp_path):
    weight = torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    seen = pixels(plots.weight_grid(weight, tmp_path / "a.png", colours="grey"))
    area = (np.abs(seen - 128).max(-1) < 3).sum(), (seen.max(-1) < 2).sum()
    assert area[0] > 1.8 * area[1] > len(seen) ** 2 / 4 and (seen[..., 0] == seen[..., 2]).all()


def test_tiles_keep_their_places():
    gap = np.nan
    tiles = grid._tiles(np.arange(8.0).reshape(2, 4), None)
    np.testing.assert_array_equal(
        grid._arrange(tiles, columns=2, gap=1)[..., 0], [[0, 1, gap, 4, 5], [2, 3, gap, 6, 7]]
    )
    assert grid._arrange(tiles, columns=1, gap=2).shape == (6, 2, 1)


def test_channels_are_mixed_averaged_or_side_by_side():
    weight = np.zeros((2, 16, 16, 3))
    weight[0, ..., 0], weight[0, ..., 1], weight[1, ..., 2] = 1.0, 0.5, -1.0
    limit, rgb = grid._by_channel(weight, "auto")
    assert limit == 1 and rgb.shape == (2, 16, 16, 3) and rgb[0, 3, 3].tolist() == [1, 0.5, 0]
    limit, mean = grid._by_channel(weight, "mean")
    assert limit == 0.5 and mean[0, 3, 3].tolist() == [1.0] and mean[1, 3, 3] == pytest.approx([-2 / 3])
    _, split = grid._by_channel(weight, "split")
    assert split.shape == (2, 16, 3 * 16 + 2, 1)
    assert split[0, 5, [0, 15, 17, 32, 34, 49], 0].tolist() == [1, 1, 0.5, 0.5, 0, 0] and np.isnan(split[0, 5, 16, 0])
    assert split[1, 5, [0, 17, 34], 0].tolist() == [0, 0, -1]


@pytest.mark.parametrize(
    ("inputs", "shape"), [(784, (28, 28)), (3072, (3, 32, 32)), (12, (3, 4)), (97, (1, 97)), (27, (3, 9)), (2, (1, 2))]
)
def test_the_default_shape_of_a_tile(inputs, shape):
    assert grid.tile_shape(inputs) == shape


def test_a_shape_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"hebbkern.plots: shape must be that of the 12 inputs, got \(3, 3\)"):
        plots.weight_grid(torch.zeros(2, 12), tmp_path / "a.png", shape=(3, 3))
    for options in ({"colours": "red"}, {"channels": "blue"}, {"channels": "rgb"}):
        with pytest.raises(ValueError, match=f"hebbkern.plots: {next(iter(options))} must be"):
            plots.weight_grid(torch.zeros(2, 12), tmp_path / "a.png", **options)
    with pytest.raises(ValueError, match=r"weight must be \[K, N\] or .*, got shape \[0, 12\]"):
        plots.weight_grid(torch.zeros(0, 12), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


STATISTICS = {
    "mean": 0.1, "q05": -1.0, "q25": -0.5, "q50": 0.0, "q75": 0.5, "q95": 1.0,
    "inactive": 0.5, "silent": 0.2, "sparseness": 0.8,
}  # fmt: skip
CHARTS = {
    "convergence": ({"a": [(1, 0.0), (2, 0.5)], "b": [(1, 0.2)]}, {"tolerance": 0.1, "title": "lengths"}),
    "learning_curves": ({"train": [(1, 0.5), (2, 0.9)], "test": [(1, 0.4), (2, float("nan"))]}, {"best": "min"}),
    "weight_histograms": ({"a": random((5, 4)), "": torch.ones(3)}, {"before": {"a": random((20,), seed=1)}}),
    "winners": ({"a": torch.tensor([0, 5, 1, 0]), "none": torch.zeros(3, dtype=torch.int64)}, {}),
    "activations": ({"a": STATISTICS, "": STATISTICS}, {"title": "epoch 3"}),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_the_same_each_time_whatever_the_users_style(tmp_path, name):
    what, options = CHARTS[name]
    draw = getattr(plots, name)
    assert draw(what, tmp_path / "new/a.png", **options) == tmp_path / "new/a.png"
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        draw(what, buffer, **options)
    assert (tmp_path / "new/a.png").read_bytes() == buffer.getvalue() and pixels(buffer).std() > 10
    draw(what, tmp_path / "a.svg", **options)
    assert "<svg" in (tmp_path / "a.svg").read_text()
    with pytest.raises(ValueError, match=r"hebbkern.plots: .* must be .*one"):
        draw({}, tmp_path / "b.png")


def near(seen, colour):
    return (np.abs(seen - colour).max(-1) < 12).sum()


def test_dead_units_are_red_in_proportion(tmp_path):
    red = []
    for dead in (0, 10, 30):
        wins = torch.tensor([0] * dead + [4] * (40 - dead))
        seen = pixels(plots.winners({"layer": wins}, tmp_path / "a.png"))
        red.append(near(seen, (243, 202, 173)))  # #d55e00 at 35 % on white
    assert red[0] < 50 and red[2] == pytest.approx(3 * red[1], rel=0.1) and red[1] > 5000


def test_the_best_point_is_told(tmp_path):
    curve = {"test": [(1, 0.25), (2, 0.75), (3, 0.5)]}
    for best, value in (("max", "0.75"), ("min", "0.25")):
        axes = plots.charts._curves(curve, best)[1]
        assert [line.get_label() for line in axes.lines][-1] == f"test ({best} {value})"
        assert axes.lines[0].get_xydata().tolist() == [[2, 0.75] if best == "max" else [1, 0.25]]


def test_noise_stays_under_300_kb(tmp_path):
    path = plots.weight_grid(random((1500, 784)), tmp_path / "a.png")
    assert 100_000 < path.stat().st_size < 300_000 == files.MOST_BYTES and pixels(path).shape[1] > 550


def test_pyplot_stays_out_of_it():
    code = """
import sys, io, torch
from hebbkern import plots
plots.winners({"a": torch.tensor([1, 0])}, io.BytesIO()), plots.weight_grid(torch.rand(2, 4), io.BytesIO())
assert "matplotlib.pyplot" not in sys.modules
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
plots.winners({"a": torch.tensor([1, 0])}, io.BytesIO())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: hebbkern.plots: matplotlib is missing: pip install 'hebbkern[demo]'" in done.stderr
