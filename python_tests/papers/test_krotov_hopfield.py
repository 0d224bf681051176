"""examples.papers.krotov_hopfield on small made-up images: figures, files, and that the test set stays unread."""

# ruff: noqa: E402 (the modules import packages that may be missing)

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import hebbkern as hk

for package in ("ignite", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from examples.papers.common import readouts
from examples.papers.krotov_hopfield import __main__ as command_line
from examples.papers.krotov_hopfield import experiment, network, recipes, search
from examples.papers.krotov_hopfield import filters as filters_of

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
    sizes, measure = [], readouts.measure

    def count(model, x, y):
        sizes.append(len(y))
        return measure(model, x, y)

    for module in (experiment, search):
        monkeypatch.setattr(module, "measure", count)
    return sizes


def options(data, tmp_path, *more):
    folder = tmp_path / "results"
    small = ["--filters", "9", "--pool", "4", "--seeds", "2", "--device", "cpu", "--no-progress"]
    return ["--data", str(data), "--results", str(folder), *small, *more], folder


@pytest.fixture
def quick(monkeypatch):
    """Few windows and epochs, of every kind of recipe."""

    def small(recipe):
        return replace(recipe, images=120, epochs=1)

    learnt = [small(recipe) for recipe in (recipes.krotov(p=3.0, k=4), recipes.krotov(p=3.0, k=8))]
    learnt.append(small(recipes.winner_takes_all(0.1, 0.1)))
    monkeypatch.setattr(recipes, "learnt_recipes", lambda: learnt)
    for name in ("RAW", "CENTRED"):
        monkeypatch.setattr(recipes, name, small(getattr(recipes, name)))
    plans = {name: replace(plan, epochs=2, batch=20) for name, plan in recipes.SCHEDULES.items()}
    monkeypatch.setattr(recipes, "SCHEDULES", plans)
    monkeypatch.setattr(recipes, "BACKPROP", readouts.Schedule(epochs=2, batch=20))


@pytest.mark.slow(60)
@pytest.mark.usefixtures("quick")
def test_the_table_has_every_row_and_sees_the_test_set_once_for_each(data, tmp_path, measured, capsys):
    command, folder = options(data, tmp_path, "--best", "WTA whitened eps0.1 contrast0.1")
    command_line.main(command)
    report, printed = json.loads((folder / "krotov_cnn.json").read_text()), capsys.readouterr().out
    assert measured.count(TEST_IMAGES) == measured.count(120) == 2 * ROWS
    assert {"command", "version", "machine", "seconds", "rows"} <= set(report)
    wanted = {"table", "row", "measure", "unit", "paper", "mean", "std", "seeds", "chosen_on"}
    assert all(set(row) == wanted and row["seeds"] == 2 for row in report["rows"])
    tests = [row for row in report["rows"] if row["measure"] == "test accuracy"]
    assert [row["paper"] for row in tests] == [91.44, None, None, 91.44, 91.44, 91.94]
    for row in tests:
        runs = [run["test"] for run in report["runs"][row["row"]]]
        assert row["mean"] == pytest.approx(np.mean(runs)) and row["std"] == pytest.approx(np.std(runs, ddof=1))
        assert row["row"] in printed
    assert len(list(folder.glob("krotov_cnn_filters_*.png"))) == ROWS


@pytest.mark.usefixtures("quick")
def test_rows_are_written_one_by_one(data, tmp_path, monkeypatch):
    row, done = experiment.Experiment.row, []

    def interrupted(self, name, recipe, plan, seed):
        if len(done) == 8:
            raise KeyboardInterrupt
        done.append((name, seed))
        return row(self, name, recipe, plan, seed)

    monkeypatch.setattr(experiment.Experiment, "row", interrupted)
    command, folder = options(data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        command_line.main(command)
    report = json.loads((folder / "krotov_cnn.json").read_text())
    names = list(recipes.rows(recipes.BEST, recipes.BEST_RANDOM))
    assert [len(report["runs"][name]) for name in names] == [2, 2, 1, 1, 1, 1]
    assert done == [*((name, 0) for name in names), *((name, 1) for name in names[:2])]


@pytest.mark.usefixtures("quick")
def test_rows_can_be_added_and_replaced(data, tmp_path):
    reports = []
    for rows, filters in (("*backprop", "9"), ("random", "9"), ("random", "9"), ("random", "10")):
        command, folder = options(data, tmp_path, "--rows", rows, "--filters", filters)
        command_line.main(command)
        reports.append(json.loads((folder / "krotov_cnn.json").read_text()))
    assert [list(report["runs"]) for report in reports] == [
        ["end-to-end backprop"],
        ["random", "end-to-end backprop"],
        ["random", "end-to-end backprop"],
        ["random"],  # of another network
    ]
    assert reports[1]["runs"]["end-to-end backprop"] == reports[0]["runs"]["end-to-end backprop"]
    assert [report["command"].count("--rows") for report in reports] == [1, 2, 2, 1]
    assert str(tmp_path) not in str(reports)


@pytest.mark.usefixtures("quick")
def test_the_search_never_sees_the_test_set(data, tmp_path, measured, monkeypatch):
    command, folder = options(data, tmp_path, "--search")
    fitted, fit = set(), readouts.fit

    def count(model, x, y, *rest, **more):
        fitted.add(len(y))
        fit(model, x, y, *rest, **more)

    monkeypatch.setattr(experiment, "fit", count)
    command_line.main(command)
    report = json.loads((folder / "krotov_cnn_search.json").read_text())
    assert set(measured) == {20} and fitted == {100}  # the last sixth of the training set validates
    trials, chosen = report["trials"], report["chosen"]
    assert {trial["recipe"] for trial in trials} == {
        recipe.name for recipe in (*recipes.random_recipes(), *recipes.learnt_recipes())
    }
    assert {trial["schedule"] for trial in trials} == set(recipes.SCHEDULES) and chosen["schedule"] in recipes.SCHEDULES
    for kind in ("learnt", "random"):
        name, means = chosen[kind]["recipe"], chosen[kind]["finalists"]
        same = [trial for trial in trials if (trial["recipe"], trial["schedule"]) == (name, chosen["schedule"])]
        by_seed = {trial["seed"]: trial["validation"] for trial in same}
        assert set(by_seed) == {0, 1} and max(means.values()) == means[name] == np.mean(list(by_seed.values()))
        assert name.startswith("random") == (kind == "random")
    monkeypatch.delattr(experiment, "fit")  # all is known
    command_line.main(command)
    again = json.loads((folder / "krotov_cnn_search.json").read_text())
    assert again["chosen"] == chosen and again["trials"] == trials and again["seconds"] >= report["seconds"]


def test_the_test_set_opens_once_for_a_row_and_seed():
    data = experiment.Data(*[torch.zeros(1)] * 4, fitted=1, classes=2)
    data.test("row", 0)
    data.test("row", 1)
    with pytest.raises(AssertionError, match="row has seen the test set with seed 1"):
        data.test("row", 1)


def published(pool):
    """The network as torch has it, in float64, some of whose scales are negative."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 7, 5, bias=False), torch.nn.BatchNorm2d(7), torch.nn.ReLU(), torch.nn.MaxPool2d(pool)]
    whole = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(7 * (8 // pool) ** 2, 3)).double()
    with torch.no_grad():
        whole[0].weight.normal_()
        whole[1].weight.copy_(torch.linspace(-2, 2, 7))
        whole[1].bias.uniform_(-1, 1)
    return whole


def by_place(weight, filters=7):
    """[classes, K·h·w] of torch's linear layer, as [classes, h·w·K]."""
    return weight.unflatten(1, (filters, -1)).mT.flatten(1)


@pytest.mark.parametrize("pool", [2, 4])
def test_end_to_end_is_torchs_network_gradients_too(images, pool):
    whole, images, labels = published(pool), images.double(), torch.arange(30) % 3
    moments = filters_of.moments(images)
    ours = network.Network(7, moments, images.shape[1:], 3, pool=pool).double()
    ours.dtype, linear = torch.float64, ours.readout.each[0]
    with torch.no_grad():
        for mine, theirs in ((ours.conv, whole[0].weight), (linear, by_place(whole[5].weight))):
            mine.weight.copy_(theirs)
        for mine, theirs in ((ours.scale, whole[1].weight), (ours.shift, whole[1].bias), (linear.bias, whole[5].bias)):
            mine.copy_(theirs)
    logits, wanted = ours(images)[:, 0], whole(images)
    torch.testing.assert_close(logits, wanted, atol=1e-9, rtol=0)
    for each in (logits, wanted):
        torch.nn.functional.cross_entropy(each, labels).backward()
    torch.testing.assert_close(ours.conv.weight.grad, whole[0].weight.grad, atol=1e-9, rtol=0)
    torch.testing.assert_close(ours.scale.grad, whole[1].weight.grad, atol=1e-9, rtol=0)
    torch.testing.assert_close(ours.shift.grad, whole[1].bias.grad, atol=1e-9, rtol=0)
    torch.testing.assert_close(linear.weight.grad, by_place(whole[5].weight.grad), atol=1e-9, rtol=0)
    ours.mean, ours.covariance = 255 * moments.mean, 255**2 * moments.raw
    torch.testing.assert_close(ours.eval()(images)[:, 0], logits, atol=1e-4, rtol=0)
    assert not torch.allclose(ours(images[:5])[:, 0], ours.train()(images[:5])[:, 0], atol=1e-2)


def test_the_gradient_of_a_pool_goes_to_one_of_equal_places():
    seen = torch.ones(4, 6, 25)  # every place of every pool sees the same
    weight = torch.ones(25, 2, requires_grad=True)
    network.pooled(seen, weight, 1).sum().backward()
    assert torch.equal(weight.grad, torch.full((25, 2), 6.0))


def test_cached_features_are_pooled_standardised_responses(images):
    whole, images = published(2), (images * 255).round() / 255
    with torch.no_grad():
        whole[1].weight.fill_(1)
        whole[1].bias.zero_()
        wanted = torch.nn.functional.max_pool2d(whole[1](whole[0](images.double())), 2).flatten(2).mT.flatten(1).relu()
    cached = network.features(images, whole[0].weight.detach().float(), filters_of.moments(images), pool=2)
    assert cached.shape == (30, 16 * 7) and cached.dtype == torch.bfloat16
    torch.testing.assert_close(cached.double(), wanted, atol=0.03, rtol=0.01)


def test_moments_are_those_of_the_patches(images):
    patches = images.unfold(2, 5, 1).unfold(3, 5, 1).reshape(-1, 25).double()
    moments = filters_of.moments(images)
    torch.testing.assert_close(moments.mean, patches.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(moments.raw, patches.T.cov(correction=0), atol=1e-5, rtol=0)
    centred = patches - patches.mean(1, keepdim=True)
    torch.testing.assert_close(moments.centred, centred.T.cov(correction=0), atol=1e-5, rtol=0)


def test_whitened_patches_are_white_but_for_their_mean(images):
    matrix = filters_of.whitener(filters_of.moments(images), 1e-6).double()
    patches = filters_of.unfold(images).double() @ matrix
    wanted = torch.eye(25, dtype=torch.float64) - 1 / 25
    torch.testing.assert_close(patches.T.cov(correction=0), wanted, atol=2e-3, rtol=0)


def test_whitening_is_folded_into_the_filters(images):
    moments = filters_of.moments(images)
    plain, whitened = (
        filters_of.make(filters_of.Recipe("random", whiten=whiten), images, moments, count=4, seed=3)
        for whiten in (None, 0.1)
    )
    on_white = filters_of.unfold(images) @ filters_of.whitener(moments, 0.1) @ plain.flatten(1).T
    torch.testing.assert_close(filters_of.unfold(images) @ whitened.flatten(1).T, on_white, atol=1e-4, rtol=1e-4)


def test_windows_are_pieces_of_their_images(images):
    cut = filters_of.windows(images, 8, torch.Generator().manual_seed(0))
    assert cut.shape == (30, 1, 8, 8)
    every = images.unfold(2, 8, 1).unfold(3, 8, 1)[:, 0].flatten(1, 2)  # [30, 25, 8, 8]
    places = (every == cut).all((2, 3))
    assert (places.sum(1) == 1).all() and len(places.nonzero()[:, 1].unique()) > 5


def test_learning_follows_the_seed(images):
    recipe = filters_of.Recipe("KH", hk.KrotovHopfield(k=2, patches="centred"), images=60, epochs=2, patches=32)
    moments = filters_of.moments(images)
    first, again, other = (filters_of.make(recipe, images, moments, count=5, seed=seed) for seed in (0, 0, 1))
    start, elsewhere = (
        filters_of.make(filters_of.Recipe("random"), images, moments, count=5, seed=seed) for seed in (0, 1)
    )
    assert not torch.equal(start, elsewhere)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, start)


def test_effective_rank_counts_equal_directions():
    for rank in (1, 7, 25):
        filters = torch.eye(25)[torch.arange(50) % rank].view(50, 1, 5, 5)
        ranks = filters_of.effective_rank(filters)
        even = np.bincount(np.arange(50) % rank) ** 0.5  # singular values
        shares = even / even.sum()
        assert ranks["entropy"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        assert ranks["participation"] == pytest.approx((even**2).sum() ** 2 / (even**4).sum())


def test_readouts_train_by_adam_whose_rate_falls_to_0_each_by_its_own_schedule(images):
    x, y = images.flatten(1), torch.arange(30) % 3
    first = readouts.Schedule(rate=0.01, epochs=3, batch=10, smoothing=0.2)
    plans = [first, replace(first, rate=0.002, decay=0.5, smoothing=0.0)]
    torch.manual_seed(0)
    model = readouts.Readouts(x.shape[1], 3, 2)
    single = [torch.nn.Linear(x.shape[1], 3) for _ in plans]
    for mine, theirs in zip(model.each, single, strict=True):
        theirs.load_state_dict(mine.state_dict())
    readouts.fit(model, x, y, plans, seed=5)
    order, orders = torch.Generator().manual_seed(5), []
    for _ in range(3):
        orders += torch.randperm(3, generator=order).tolist()
    for mine, layer, plan in zip(model.each, single, plans, strict=True):
        optimiser = torch.optim.AdamW(layer.parameters(), weight_decay=plan.decay)
        for step, index in enumerate(orders):
            optimiser.param_groups[0]["lr"] = plan.rate * (9 - step) / 9
            optimiser.zero_grad()
            batch = slice(10 * index, 10 * index + 10)
            torch.nn.functional.cross_entropy(layer(x[batch]), y[batch], label_smoothing=plan.smoothing).backward()
            optimiser.step()
        torch.testing.assert_close(mine.weight, layer.weight, atol=1e-5, rtol=1e-4)
    assert readouts.measure(model, x, y) == [
        pytest.approx((layer(x).argmax(1) == y).float().mean().item()) for layer in single
    ]


def test_what_was_chosen_is_known():
    assert recipes.by_name(recipes.BEST).rule is not None
    assert recipes.by_name(recipes.BEST_RANDOM).rule is None
    rows = list(recipes.rows(recipes.BEST, recipes.BEST_RANDOM).values())
    rules = [recipe and recipe.rule for recipe in rows]
    as_published = [hk.KrotovHopfield(p=4.0, k=4, delta=0.4, patches=patches) for patches in ("centred", "raw")]
    assert rules == [recipes.by_name(recipes.BEST).rule, None, None, *as_published, None]
    assert len(rows) == ROWS and rows[5] is None
    assert recipes.BEST_SCHEDULE in recipes.SCHEDULES
    names = [recipe.name for recipe in (*recipes.random_recipes(), *recipes.learnt_recipes())]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match=r"recipe must be one of .*random centred.*, got nothing"):
        recipes.by_name("nothing")
