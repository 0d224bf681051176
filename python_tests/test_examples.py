"""The examples, at their smallest, on images that are made up: what they compute, write, and do not look at."""

# ruff: noqa: E402 (the examples import packages that may be missing)

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hebbkern as hk

for package in ("ignite", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import krotov_cnn
import krotov_filters as filters_of
import krotov_network as network
import krotov_recipes as recipes

TEST_IMAGES = 37  # as many as no other part of the data has
ROWS = 6


@pytest.fixture
def images():
    return torch.rand(30, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def data(tmp_path):
    """Three classes of noisy bars, 12x12."""
    rng = np.random.default_rng(0)
    count = 120 + TEST_IMAGES
    labels = np.arange(count) % 3
    pictures = rng.random((count, 12, 12)) * 0.3
    pictures[np.arange(count), 2 + labels * 3] += 0.7
    path = tmp_path / "bars.npz"
    np.savez(path, x_train=pictures[:120], y_train=labels[:120], x_test=pictures[120:], y_test=labels[120:])
    return path


@pytest.fixture
def measured(monkeypatch):
    """How many samples each measured accuracy was of."""
    sizes, measure = [], network.measure

    def count(model, x, y, *rest):
        sizes.append(len(y))
        return measure(model, x, y, *rest)

    monkeypatch.setattr(network, "measure", count)
    monkeypatch.setattr(krotov_cnn, "measure", count)
    return sizes


def options(data, tmp_path, *more):
    folder = tmp_path / "results"
    small = ["--filters", "6", "--pool", "4", "--seeds", "2", "--device", "cpu", "--no-progress"]
    return ["--data", str(data), "--results", str(folder), *small, *more], folder


@pytest.fixture
def quick(monkeypatch):
    """Few windows and epochs, of every kind of recipe."""

    def small(recipe):
        return type(recipe)(**{**vars(recipe), "images": 120, "epochs": 1})

    learnt = [small(recipe) for recipe in (recipes.krotov(p=3.0, k=2), recipes.krotov(p=3.0, k=4))]
    learnt.append(small(recipes.winner_takes_all(0.1, 0.1)))
    monkeypatch.setattr(recipes, "learnt_recipes", lambda: learnt)
    for name in ("RAW", "CENTRED"):
        monkeypatch.setattr(recipes, name, small(getattr(recipes, name)))
    plans = {name: network.Schedule(epochs=2, batch=20) for name in recipes.SCHEDULES}
    monkeypatch.setattr(recipes, "SCHEDULES", plans)


@pytest.mark.usefixtures("quick")
def test_the_table_has_every_row_and_sees_the_test_set_once_for_each(data, tmp_path, measured, capsys):
    command, folder = options(data, tmp_path, "--best", "WTA whitened eps0.1 contrast0.1")
    krotov_cnn.main(command)
    report, printed = json.loads((folder / "krotov_cnn.json").read_text()), capsys.readouterr().out
    assert measured.count(TEST_IMAGES) == report["test_set_used"] == 2 * ROWS
    assert {"command", "version", "machine", "seconds", "rows"} <= set(report)
    wanted = {"table", "row", "measure", "unit", "paper", "mean", "std", "seeds", "chosen_on"}
    assert all(set(row) == wanted and row["seeds"] == 2 for row in report["rows"])
    tests = [row for row in report["rows"] if row["measure"] == "test accuracy"]
    assert [row["paper"] for row in tests] == [91.44, 91.44, 91.44, None, None, 91.94]
    for row in tests:
        runs = [run["test"] for run in report["runs"][row["row"]]]
        assert row["mean"] == pytest.approx(np.mean(runs)) and row["std"] == pytest.approx(np.std(runs, ddof=1))
        assert row["row"] in printed
    assert len(list(folder.glob("krotov_cnn_filters_*.png"))) == ROWS


@pytest.mark.usefixtures("quick")
def test_the_search_never_sees_the_test_set(data, tmp_path, measured):
    command, folder = options(data, tmp_path, "--search")
    krotov_cnn.main(command)
    report = json.loads((folder / "krotov_cnn_search.json").read_text())
    assert TEST_IMAGES not in measured and 20 in measured  # the last sixth of the training set validates
    names = {trial["recipe"] for trial in report["trials"]}
    assert names == {recipe.name for recipe in (*recipes.random_recipes(), *recipes.learnt_recipes())}
    assert report["chosen"]["learnt"]["recipe"] in names and report["chosen"]["random"]["recipe"].startswith("random")
    assert all(report["chosen"][kind]["seeds"] == 2 for kind in ("learnt", "random"))


def test_the_test_set_opens_once_for_a_row_and_seed():
    sets = krotov_cnn.Sets(*[torch.zeros(1)] * 4, fitted=1, classes=2)
    sets.test("row", 0)
    sets.test("row", 1)
    with pytest.raises(AssertionError, match="row has seen the test set with seed 1"):
        sets.test("row", 1)


@pytest.mark.parametrize("repu", [1.0, 2.0])
def test_cached_features_and_readout_are_the_network(images, repu):
    torch.manual_seed(0)
    whole = network.Network(7, images.shape[1:], 3, pool=2, repu=repu)
    with torch.no_grad():
        whole.conv.weight.normal_()
        whole.norm.weight.uniform_(0.5, 2)
        whole.norm.bias.uniform_(-1, 1)
    cached = network.features(images, whole.conv.weight, filters_of.moments(images), pool=2)
    assert cached.shape == (30, 16, 7) and cached.dtype == torch.bfloat16
    part = network.Readout(7, 16, 3, repu=repu)
    with torch.no_grad():
        part.scale.copy_(whole.norm.weight)
        part.shift.copy_(whole.norm.bias)
        part.linear.weight.copy_(whole.linear.weight.view(3, 7, 16).mT.flatten(1))
        part.linear.bias.copy_(whole.linear.bias)
        torch.testing.assert_close(part(cached.float()), whole.train()(images), atol=0.02 * repu**2, rtol=0.02)


def test_moments_are_those_of_the_patches(images):
    patches = images.unfold(2, 5, 1).unfold(3, 5, 1).reshape(-1, 25).double()
    found = filters_of.moments(images)
    torch.testing.assert_close(found.mean, patches.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.raw, patches.T.cov(correction=0), atol=1e-5, rtol=0)
    centred = patches - patches.mean(1, keepdim=True)
    torch.testing.assert_close(found.centred, centred.T.cov(correction=0), atol=1e-5, rtol=0)


def test_whitened_patches_are_white_but_for_their_mean(images):
    matrix = filters_of.whitener(filters_of.moments(images), 1e-6).double()
    patches = filters_of.unfold(images).double() @ matrix
    wanted = torch.eye(25, dtype=torch.float64) - 1 / 25
    torch.testing.assert_close(patches.T.cov(correction=0), wanted, atol=2e-3, rtol=0)


def test_whitening_is_folded_into_the_filters(images):
    found = filters_of.moments(images)
    plain, whitened = (
        filters_of.make(filters_of.Recipe("random", whiten=whiten), images, found, count=4, seed=3)
        for whiten in (None, 0.1)
    )
    on_white = filters_of.unfold(images) @ filters_of.whitener(found, 0.1) @ plain.flatten(1).T
    torch.testing.assert_close(filters_of.unfold(images) @ whitened.flatten(1).T, on_white, atol=1e-4, rtol=1e-4)


def test_windows_are_pieces_of_their_images(images):
    cut = filters_of.windows(images, 8, torch.Generator().manual_seed(0))
    assert cut.shape == (30, 1, 8, 8)
    every = images.unfold(2, 8, 1).unfold(3, 8, 1)[:, 0].flatten(1, 2)  # [30, 25, 8, 8]
    places = (every == cut).all((2, 3))
    assert (places.sum(1) == 1).all() and len(places.nonzero()[:, 1].unique()) > 5


def test_learning_follows_the_seed(images):
    recipe = filters_of.Recipe("KH", hk.KrotovHopfield(k=2, patches="centred"), images=60, epochs=2, patches=32)
    found = filters_of.moments(images)
    first, again, other = (filters_of.make(recipe, images, found, count=5, seed=seed) for seed in (0, 0, 1))
    start, elsewhere = (
        filters_of.make(filters_of.Recipe("random"), images, found, count=5, seed=seed) for seed in (0, 1)
    )
    assert not torch.equal(start, elsewhere)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, start)


def test_effective_rank_counts_equal_directions():
    for rank in (1, 7, 25):
        filters = torch.eye(25)[torch.arange(50) % rank].view(50, 1, 5, 5)
        found = filters_of.effective_rank(filters)
        even = np.bincount(np.arange(50) % rank) ** 0.5  # singular values
        shares = even / even.sum()
        assert found["entropy"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        assert found["participation"] == pytest.approx((even**2).sum() ** 2 / (even**4).sum())


def test_training_stops_falls_back_and_follows_rates(images, monkeypatch):
    labels = torch.arange(30) % 3
    z = network.features(images, torch.ones(4, 1, 5, 5), filters_of.moments(images))
    model, plan = network.Readout(4, 16, 3), network.Schedule(rate=0.01, factor=0.5, wait=0, patience=3, batch=10)
    accuracies, passed = iter([0.5, 0.4, 0.8, 0.7, 0.7, 0.8]), []

    def measure(model, x, y):
        passed.append(model.linear.weight.clone())
        return next(accuracies)

    monkeypatch.setattr(network, "measure", measure)
    found = network.fit(model, z, labels, plan, seed=0, validation=(z, labels))
    assert (found.validation, found.epochs, found.rates) == (0.8, 6, [0.01, 0.01, 0.005])
    assert torch.equal(model.linear.weight, passed[2]) and not torch.equal(passed[2], passed[5])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert network.fit(model, z, labels, plan, seed=0, rates=[0.0, 0.0]).epochs == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    network.fit(model, z, labels, plan, seed=0, rates=[0.0, 1e-3])
    assert not torch.equal(model.linear.weight, before["linear.weight"])


def test_what_was_chosen_is_known():
    assert recipes.by_name(recipes.BEST).rule is not None
    assert recipes.by_name(recipes.BEST_RANDOM).rule is None
    rows = recipes.rows(recipes.BEST, recipes.BEST_RANDOM)
    rules = [recipe and recipe.rule for recipe in rows.values()]
    published = [hk.KrotovHopfield(p=4.0, k=4, delta=0.4, patches=patches) for patches in ("raw", "centred")]
    assert rules == [*published, recipes.by_name(recipes.BEST).rule, None, None, None]
    assert len(rows) == ROWS and list(rows.values())[5] is None
    assert recipes.BEST_SCHEDULE in recipes.SCHEDULES
    names = [recipe.name for recipe in (*recipes.random_recipes(), *recipes.learnt_recipes())]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"recipe must be one of .*random centred.*, got nothing"):
        recipes.by_name("nothing")


def test_drop_in_trains_its_first_layers_locally_and_the_rest_by_backprop(monkeypatch, capsys):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    path = EXAMPLES / "drop_in.py"
    assert len(path.read_text().splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(path), "--images", "60", "--epochs", "1"])
    left = runpy.run_path(str(path))
    assert capsys.readouterr().out.startswith("test accuracy ")
    torch.manual_seed(0)
    model, moved = left["model"], {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            moved[name] = isinstance(layer, hk.nn.HebbianConv2d)
    assert [name for name, hebbian in moved.items() if hebbian] == [
        "conv1",
        *[f"layer1.{block}.conv{index}" for block in (0, 1) for index in (1, 2)],
    ]
    assert all(weight.grad is not None for weight in left["later"])
    assert all(layer.weight.grad is None for layer in model.modules() if isinstance(layer, hk.nn.HebbianConv2d))
