"""The supervised part of examples.papers.hebbcl and its baselines on small made-up images."""

from dataclasses import replace

import pytest
import torch

import hebbkern as hk
from examples.papers.hebbcl import baselines, supervised
from examples.papers.hebbcl.supervised import Answer, Recipe

SMALL = Recipe(per_class=3, epochs=3, batch=20)
TEST = 60  # images, as many as no other part of the data has


@pytest.fixture
def data():
    """Four classes of noisy bars, [n, 1, 6, 6], in two tasks: x, y, x_test, y_test."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200 + TEST) % 4
    x = torch.rand(len(y), 1, 6, 6, generator=generator) * 0.3
    x[torch.arange(len(y)), 0, y + 1] += 0.7
    return x[:-TEST], y[:-TEST], x[-TEST:], y[-TEST:]


@pytest.fixture
def model(data):
    return supervised.trained(SMALL, data[0].flatten(1), data[1], seed=0)


def test_the_average_is_over_tasks_not_over_images():
    y = torch.tensor([5, 0, 1, 0, 1, 0, 1, 7])
    correct = torch.tensor([1, 1, 0, 1, 0, 0, 0, 1]).bool()
    assert supervised.task_average(correct, y) == pytest.approx(100 * (2 / 6 + 2 / 2) / 2)


@pytest.fixture
def noise():
    """Images on which answers differ: [TEST, 36]."""
    return torch.randn(TEST, 36, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_an_answer_at_power_1_is_the_models_own(model, noise, k):
    model.k = k
    answers = list(supervised.predictions(model, noise, [(3, 2.0), (k, 1), (20, 1)]))
    assert torch.equal(answers[1], model.predict(noise))


def test_a_sharpened_answer_sums_powers_of_the_positive_winners(model, noise):
    model.k = 8
    sums = torch.zeros(TEST, 4, dtype=torch.float64)
    for image, winners in enumerate(model.transform(noise).double()):
        for neuron, activation in enumerate(winners.tolist()):
            sums[image, neuron // 3] += max(activation, 0) ** 4
    plain, sharp = supervised.predictions(model, noise, [(8, 1), (8, 4)])
    assert torch.equal(sharp, sums.argmax(1)) and not torch.equal(sharp, plain)


def test_accuracies_are_of_these_answers(model, noise, data):
    predicted = model.predict(noise)
    wanted = supervised.task_average(predicted == data[3], data[3])
    assert supervised.accuracy(model, noise, data[3], [(model.k, 1)]) == [pytest.approx(wanted)]
    assert supervised.accuracy(model, noise, predicted, [(model.k, 1)]) == [100]


def test_whitening_has_seen_the_first_task_alone(data):
    x, y = data[0].repeat(2, 1, 1, 1), data[1].repeat(2)
    other = x.clone()
    other[y >= 2] = 7
    kept = supervised.whitening(0.1, x, y)(x)
    assert kept.shape == (len(x), 36) and torch.equal(kept, supervised.whitening(0.1, other, y)(x))
    other[y == 1] *= 2
    assert not torch.equal(kept, supervised.whitening(0.1, other, y)(x))
    assert torch.equal(supervised.whitening(None, x, y)(x), x.flatten(1))


def test_a_model_learns_the_tasks_one_after_the_other(data, model):
    x, y = data[0].flatten(1), data[1]
    first = supervised.trained(SMALL, x[y < 2], y[y < 2], seed=0)
    assert model.classes.tolist() == [0, 1, 2, 3] and first.classes.tolist() == [0, 1]
    assert torch.equal(model.weight[:6], first.weight), "later classes changed the neurons of earlier ones"
    assert torch.equal(supervised.trained(SMALL, x, y, seed=0).weight, model.weight)
    for recipe in (replace(SMALL, hebb=False), replace(SMALL, hebb=False, start="normal")):
        starts = [supervised.trained(recipe, x, y, seed=seed).weight for seed in (0, 1)]
        assert not torch.equal(*starts)


def test_the_seed_draws_the_order_of_the_images(data, monkeypatch):
    orders = []
    monkeypatch.setattr(hk.continual.HebbCL, "partial_fit", lambda self, X, y, **options: orders.append(X))
    for seed in (0, 0, 1):
        supervised.trained(replace(SMALL, epochs=2), data[0].flatten(1), data[1], seed)
    first, again, other = orders[:4], orders[4:8], orders[8:]
    assert all(map(torch.equal, first, again)) and not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1]) and torch.allclose(first[0].sum(0), first[1].sum(0))


def test_the_rate_falls_with_the_epochs_of_each_task(data, monkeypatch):
    rates = []
    monkeypatch.setattr(hk.continual.HebbCL, "partial_fit", lambda *of, lr, **options: rates.append(lr))
    supervised.trained(replace(SMALL, lr=0.6), data[0].flatten(1), data[1], seed=0)
    assert rates == pytest.approx([0.6, 0.4, 0.2] * 2)


def test_rows_share_models_and_look_at_the_test_set_once_a_seed(data, monkeypatch):
    looks, learnt = [], []
    accuracy, trained = supervised.accuracy, supervised.trained
    monkeypatch.setattr(supervised, "accuracy", lambda *of: looks.append(len(of[2])) or accuracy(*of))
    monkeypatch.setattr(supervised, "trained", lambda *of: learnt.append(of[0]) or trained(*of))
    untaught = replace(SMALL, hebb=False, start="normal")
    table = [Answer("a", SMALL, 1, paper=93.25), Answer("b", SMALL, 2, 3.0), Answer("c", untaught, 1)]
    rows = list(supervised.supervised_rows("mnist", *data, seeds=2, table=table))
    assert looks == [TEST] * 6 and learnt == [SMALL] * 2 + [untaught] * 2
    assert [row["row"] for row in rows] == ["a", "b", "c"] and [row["paper"] for row in rows] == [93.25, None, None]
    assert all(len(row["values"]) == len(row["seconds"]) == 2 for row in rows)
    assert min(rows[0]["values"]) > 95 > 60 > max(rows[2]["values"])
    assert supervised.clearly_above(rows[0]["values"], rows[2]["values"])


def test_clearly_above_is_by_two_standard_errors():
    others = [10.0, 12.0, 14.0, 12.0]  # variance 8/3, of the mean 2/3
    error = (2 * 2 / 3) ** 0.5  # of the difference of two such
    assert supervised.clearly_above([value + 2.01 * error for value in others], others)
    assert not supervised.clearly_above([value + 1.99 * error for value in others], others)


def test_search_learns_from_what_it_does_not_validate_on(data, monkeypatch):
    x, y = data[:2]
    monkeypatch.setattr(supervised, "VALIDATION", 80)
    kept = list(supervised.search("mnist", x, y, candidates=[SMALL]))
    scrambled = y.clone()
    scrambled[-80:] = 3 - y[-80:]
    other = list(supervised.search("mnist", x, scrambled, candidates=[SMALL]))
    assert kept[0]["plain"][0] > 95 and other[0]["plain"][0] < 5, "the labels of the validation images were learnt"
    assert kept[0]["recipe"]["per_class"] == 3 and kept[0]["plain"][2] == 1
    assert kept[0]["sharpened"][0] >= kept[0]["plain"][0]


def test_the_neurons_of_a_class_as_images(model):
    assert torch.equal(supervised.class_weights(model, 2, (1, 6, 6)), model.weight[6:9].view(3, 1, 6, 6))


def test_pictures_are_of_the_classes_asked_for(data, monkeypatch):
    monkeypatch.setattr(supervised, "CENTRED", SMALL)
    pictures = supervised.pictured(*data[:2], labels=(0, 3))
    for label, rows in pictures.items():
        assert rows.shape == (3, 1, 6, 6)
        assert rows.mean((0, 1, 3)).argmax() == label + 1, "the bar of the class is not the brightest line"


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_tables_are_what_was_searched(name):
    assert {answer.recipe for answer in supervised.TABLE[name]} <= set(supervised.CANDIDATES[name])
    for baseline in baselines.TABLE[name]:
        assert baseline.lr in baselines.RATES[name] and baseline.strength in baselines.STRENGTHS[baseline.row]


@pytest.mark.parametrize("row", baselines.STRENGTHS)
def test_each_baseline_learns_and_answers(data, row):
    state = torch.get_rng_state()
    baseline = baselines.Baseline(row, 0.1, 0.1 if row != "SGD" else 0)
    networks = [baselines.finetuned(baseline, *data[:2], hidden=8, seed=seed) for seed in (0, 0, 1)]
    weights = [torch.nn.utils.parameters_to_vector(network.parameters()) for network in networks]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers were drawn from"
    assert 0 <= baselines.accuracy(networks[0], *data[2:]) <= 100


def test_the_seed_draws_the_weights_and_the_order(data, monkeypatch):
    sgd = {lr: baselines.Baseline("SGD", lr) for lr in (0.0, 0.1)}
    weights = [baselines.finetuned(sgd[0.0], *data[:2], hidden=8, seed=seed)[1].weight for seed in (0, 1)]
    assert not torch.equal(*weights)
    monkeypatch.setattr(baselines.torch, "manual_seed", lambda seed, real=torch.manual_seed: real(0))
    for lr, same in ((0.0, True), (0.1, False)):
        weights = [baselines.finetuned(sgd[lr], *data[:2], hidden=8, seed=seed)[1].weight for seed in (0, 1)]
        assert torch.equal(*weights) == same


def test_a_strong_baseline_stays_at_the_first_task(data):
    """λ Σ (θ − θ*)² with 2 λ lr = 1 draws the weights back to those of the first task at every step."""
    x, y = data[:2]
    first = baselines.finetuned(
        baselines.Baseline("SGD", 0.5), x[y < 2].repeat(40, 1, 1, 1), y[y < 2].repeat(40), **TINY
    )
    assert baselines.accuracy(first, data[2][data[3] < 2], data[3][data[3] < 2]) == 100
    both = x.repeat(40, 1, 1, 1), y.repeat(40)
    forgot = baselines.finetuned(baselines.Baseline("SGD", 0.5), *both, **TINY)
    held = baselines.finetuned(baselines.Baseline("L2", 0.5, 0.99), *both, **TINY)
    old = data[3] < 2
    assert baselines.accuracy(forgot, data[2][old], data[3][old]) == 0
    assert baselines.accuracy(held, data[2][old], data[3][old]) > 90


TINY = {"hidden": 8, "seed": 0}


def test_baseline_rows(data, monkeypatch):
    monkeypatch.setitem(baselines.HIDDEN, "mnist", 8)
    table = [baselines.Baseline("SGD", 0.1, paper=19.01), baselines.Baseline("LwF", 0.1, 1.0)]
    rows = list(baselines.baseline_rows("mnist", *data, seeds=2, table=table))
    assert [row["row"] for row in rows] == ["SGD", "LwF"] and [row["paper"] for row in rows] == [19.01, None]
    assert all(len(row["values"]) == len(row["seconds"]) == 2 for row in rows)
    assert {*rows[0]} == {*next(supervised.supervised_rows("mnist", *data, seeds=1, table=[Answer("a", SMALL, 1)]))}


def test_the_search_of_baselines_validates_on_what_it_does_not_learn_and_notes_what_diverged(data, monkeypatch):
    x, y = data[0].repeat(80, 1, 1, 1), data[1].repeat(80)
    monkeypatch.setattr(baselines, "VALIDATION", 12_000)
    monkeypatch.setitem(baselines.HIDDEN, "mnist", 8)
    monkeypatch.setitem(baselines.RATES, "mnist", (0.3,))
    monkeypatch.setattr(baselines, "STRENGTHS", {"SGD": (0.0,), "L2": (1e9,)})
    kept = list(baselines.baseline_search("mnist", x, y, seeds=2))
    assert [(row["row"], row["lr"], row["strength"]) for row in kept] == [("SGD", 0.3, 0.0), ("L2", 0.3, 1e9)]
    assert kept[1]["values"] == [None, None]
    assert all(50 <= value < 75 for value in kept[0]["values"]), "the last task is known, the first forgotten"
    swapped = torch.cat((y[:-12_000], torch.where(y[-12_000:] < 2, y[-12_000:], 5 - y[-12_000:])))
    assert next(baselines.baseline_search("mnist", x, swapped))["values"][0] < 25, "labels were learnt"


def test_a_baseline_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"hebbcl baselines: row must be one of SGD, .*, got Adam"):
        baselines.consolidation(baselines.Baseline("Adam", 0.1), torch.nn.Linear(2, 2), 0)
