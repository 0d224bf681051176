"""Pictures: tiles and their colours, curves, histograms, winners, activations, and the files."""

import io

import numpy as np
import pytest
import torch

from cases import random
from hebbkern import plots
from hebbkern.plots import charts, files, grid

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
image = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def pixels(path):
    return np.asarray(image.open(path).convert("RGB")).astype(int)


@pytest.fixture
def unwritten(monkeypatch):
    """Functions return the Figure instead of writing it."""
    for module in (charts, grid):
        monkeypatch.setattr(module, "write", lambda drawn, path: drawn)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((10, 25), {}),
        ((5, 12), {"shape": (3, 4)}),
        ((5, 13), {"colours": "grey"}),
        ((9, 1, 5, 5), {}),
        ((9, 3, 5, 5), {}),
        ((9, 3, 5, 5), {"channels": "split", "colours": "grey"}),
        ((4, 8, 3, 3), {"columns": 4}),
    ],
)
def test_every_shape_is_drawn_the_same_each_time(tmp_path, shape, options):
    first, second = (plots.weight_grid(random(shape), tmp_path / f"new/{name}.png", **options) for name in "ab")
    assert first.read_bytes() == second.read_bytes() and pixels(first).std() > 10


@pytest.mark.parametrize(
    ("colours", "wanted"),
    [
        ("bwr", [(255, 0, 0), (255, 128, 128), (255, 255, 255), (0, 0, 255)]),
        ("grey", [(255, 255, 255), (191, 191, 191), (128, 128, 128), (0, 0, 0)]),
    ],
)
def test_colours_are_symmetric_around_zero(tmp_path, colours, wanted):
    weight = torch.zeros(1, 4)
    weight[0, 0], weight[0, 1], weight[0, 3] = 1, 0.5, -1
    drawn_pixels = pixels(plots.weight_grid(weight, tmp_path / "a.png", colours=colours))
    tile = len(drawn_pixels) ** 2 / 6  # at least so many pixels of a colour: the bar has some of each
    for colour in wanted:
        assert (np.abs(drawn_pixels - colour).max(-1) < 4).sum() > tile, colour


def test_three_channels_are_red_green_and_blue(unwritten):
    weight = torch.zeros(1, 3, 1, 2)
    weight[0, 0, 0, 0], weight[0, 2, 0, 1] = 1, -1
    shown = plots.weight_grid(weight, None).axes[0].images[0].get_array()
    left, right = np.split(np.asarray(shown), 2, axis=1)
    assert (left == [1, 0.5, 0.5]).all() and (right == [0.5, 0.5, 0]).all()


def test_many_channels_are_their_mean(unwritten):
    weight = torch.tensor([0.0, 1.0, 1.0, 2.0]).view(1, 4, 1, 1)
    assert (plots.weight_grid(weight, None).axes[0].images[0].get_array() == 1.0).all()


def test_split_channels_are_side_by_side(unwritten):
    weight = torch.tensor([[1.0, -1.0], [0.5, 0.0]]).view(2, 2, 1, 1).expand(2, 2, 16, 16)  # two neurons, two channels
    shown = plots.weight_grid(weight, None, channels="split", columns=1).axes[0].images[0].get_array()
    one, two = 16 // 8 // 2, 16 // 8  # cells between channels, and between neurons
    assert shown.shape == (16 + two + 16, 16 + one + 16)
    for top, left, value in ((0, 0, 1), (0, 16 + one, -1), (16 + two, 0, 0.5), (16 + two, 16 + one, 0)):
        tile = shown[top : top + 16, left : left + 16]
        assert not tile.mask.any() and (tile == value).all()
    assert shown[:, 16 : 16 + one].mask.all() and shown[16 : 16 + two].mask.all()


@pytest.mark.parametrize(("filters", "tile"), [((2, 3, 5), (1, 5, 3)), ((2, 4, 2, 3, 5), (6, 5, 4))], ids=str)
def test_filters_of_one_and_three_axes_are_drawn(unwritten, filters, tile):
    """Of three axes the depths are one below the other."""
    weight = np.arange(float(np.prod(filters))).reshape(filters)
    tiles = grid._tiles(weight, None)
    assert tiles.shape == (2, *tile) and (tiles[1, -1, :, 2] == weight[1, 2].reshape(-1, 5)[-1]).all()
    assert plots.weight_grid(torch.from_numpy(weight), None).axes


def test_tiles_keep_their_places():
    tiles = grid._tiles(np.arange(1.0, 13.0).reshape(3, 4), None)
    arranged = np.nan_to_num(grid._arrange(tiles, columns=2, gap=1))[..., 0]
    assert arranged.tolist() == [[1, 2, 0, 5, 6], [3, 4, 0, 7, 8], [0] * 5, [9, 10, 0, 0, 0], [11, 12, 0, 0, 0]]


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [(784, (28, 28)), (3072, (3, 32, 32)), (12, (3, 4)), (192, (3, 8, 8)), (13, (1, 13)), (3, (1, 3)), (1, (1, 1))],
)
def test_the_shape_of_a_tile(inputs, shape):
    assert grid.tile_shape(inputs) == shape


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        ((2, 12), {"shape": (3, 3)}, r"shape must be that of the 12 inputs, got \(3, 3\)"),
        ((12,), {}, r"weight must be \[K, N\], or filters of one to three axes, and not empty, got shape \[12\]"),
        ((2, 12), {"colours": "pink"}, 'colours must be "bwr" or "grey", got \'pink\''),
        ((2, 12), {"channels": "all"}, "channels must be .*, got 'all'"),
        ((2, 2, 3, 3), {"channels": "rgb"}, 'channels must be other than "rgb" where there are 2, got "rgb"'),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, weight, options, message):
    with pytest.raises(ValueError, match=f"hebbkern.plots: {message}"):
        plots.weight_grid(torch.zeros(weight), tmp_path / "a.png", **options)
    assert not (tmp_path / "a.png").exists()


def test_curves_tell_their_points_and_the_best(unwritten):
    curves = {"a": [(1, 0.5), (2, 0.75), (3, float("nan"))], "b": [(2, 0.25)]}
    drawn = plots.learning_curves(curves, None)
    lines = {line.get_label(): line.get_xydata() for line in drawn.axes[0].lines}
    assert np.array_equal(lines["a (max 0.75)"], curves["a"], equal_nan=True)
    assert lines["b (max 0.25)"].tolist() == [[2, 0.25]]
    lowest = plots.learning_curves(curves, None, best="min")
    assert "a (min 0.5)" in {line.get_label() for line in lowest.axes[0].lines}


def test_a_single_epoch_is_in_the_middle(unwritten):
    assert plots.learning_curves({"a": [(1, 0.5)]}, None).axes[0].get_xlim() == (0, 2)


def test_convergence_is_in_percent_of_the_neurons(unwritten):
    axes = plots.convergence({"": [(1, 0.25), (2, 1)]}, None, tolerance=0.1).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.25], [2, 1]] and axes.lines[0].get_label() == "model"
    assert axes.get_ylabel() == "neurons of length 1 ± 0.1"
    assert axes.yaxis.get_major_formatter()(0.25, 0) == "25 %"


def test_histograms_hold_every_weight(unwritten):
    now, before = torch.tensor([0.0, 0.0, 0.0, 6.0]), torch.tensor([-6.0, 0.0])
    axes = plots.weight_histograms({"fc": now, "out": now}, None, before={"fc": before}).axes
    for panel, sets in ((axes[0], (now, before)), (axes[1], (now,))):
        assert len(panel.patches) == len(sets)
        for stairs, x in zip(panel.patches, sets, strict=True):
            heights, edges, _ = stairs.get_data()
            shares = {round(edges[i]): share for i, share in enumerate(heights * np.diff(edges)) if share}
            assert sum(shares.values()) == pytest.approx(1)
            assert max(shares.values()) == pytest.approx((x == x.mode().values).float().mean().item())
    constant = plots.weight_histograms({"": torch.full((2, 3), 2.0)}, None).axes[0].patches[0].get_data()
    assert (constant.values * np.diff(constant.edges)).sum() == pytest.approx(1)


def test_winners_are_shares_and_the_dead_are_marked(unwritten):
    drawn = plots.winners({"fc": torch.tensor([0, 6, 2, 0]), "out": torch.tensor([5, 5])}, None)
    some, none = drawn.axes
    assert some.get_title() == "fc: 2 of 4 dead" and none.get_title() == "out: 0 of 2 dead"
    assert some.patches[0].get_data().values.tolist() == [3, 1]  # an equal share is 8 / 4
    marked = some.patches[1]
    assert (marked.get_x(), marked.get_width()) == (2, 2) and len(none.patches) == 1


def test_all_neurons_may_be_dead(unwritten):
    panel = plots.winners({"": torch.zeros(3, dtype=torch.int64)}, None).axes[0]
    assert panel.get_title() == "model: 3 of 3 dead" and panel.patches[1].get_width() == 3


def test_activations_are_boxes_and_bars(unwritten):
    row = {"mean": 0.5, "q05": -3, "q25": -1, "q50": 0, "q75": 1, "q95": 4}
    row |= {"inactive": 0.625, "silent": 0.125, "sparseness": 0.75}
    spread, sparse = plots.activations({"fc": row}, None).axes
    ends = {round(x, 6) for line in spread.lines for x in line.get_xdata()}
    assert ends == {-3, -1, 0, 0.5, 1, 4}
    assert [bar.get_width() for bar in sparse.patches] == [0.625, 0.75, 0.125]
    assert [label.get_text() for label in spread.get_yticklabels()] == ["fc"]


@pytest.mark.parametrize(
    ("draw", "nothing"),
    [
        (plots.convergence, {}),
        (plots.learning_curves, {"a": []}),
        (plots.weight_histograms, {}),
        (plots.winners, {}),
        (plots.activations, {}),
    ],
)
def test_nothing_is_refused(tmp_path, draw, nothing):
    with pytest.raises(ValueError, match=r"hebbkern.plots: \w+ must be "):
        draw(nothing, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_an_unknown_best_is_refused():
    with pytest.raises(ValueError, match=r"hebbkern.plots: best must be "):
        plots.learning_curves({"a": [(1, 2)]}, io.BytesIO(), best="mean")


@pytest.mark.slow(8)
def test_a_png_is_small_and_goes_into_open_files_too(tmp_path):
    noise = random((400, 3, 28, 28))
    path, file = tmp_path / "a.png", io.BytesIO()
    assert plots.weight_grid(noise, path) == path and plots.weight_grid(noise, file) is file
    assert path.read_bytes() == file.getvalue() and 100_000 < len(file.getvalue()) <= files.MOST_BYTES


def test_the_ending_chooses_the_format(tmp_path):
    path = plots.learning_curves({"a": [(1, 2)]}, tmp_path / "a.svg")
    assert b"<svg" in path.read_bytes()


def test_the_users_own_settings_do_not_matter(tmp_path):
    from matplotlib import rc_context

    first = plots.winners({"fc": torch.tensor([1, 2])}, tmp_path / "a.png")
    with rc_context({"font.size": 30, "axes.facecolor": "black"}):
        second = plots.winners({"fc": torch.tensor([1, 2])}, tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
