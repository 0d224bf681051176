"""HebbCL: the minibatch of algorithm 1 against reference.py, freezing, growth and representation."""

import numpy as np
import pytest
import torch

import hebbkern as hk
from cases import random
from hebbcl_models import N, rows_of, same, stream, train_on
from hebbkern.continual import HebbCL

FOLLOWED = [
    {},
    {"similarity": "cosine", "average": False, "lr": 0.02},
    {"normalise": "row_l2", "patches": "centred", "start": "normal"},
    {"normalise": "matrix_max", "patches": "standardised", "threshold": 0.5},
    {"normalise": "none", "freeze": False},
    {"grow": False},
    {"max_neurons": 9},
]


@pytest.mark.slow(16, on="triton")
@pytest.mark.parametrize("options", FOLLOWED, ids=str)
def test_every_minibatch_matches_the_reference(backend, options):
    options = {"lr": 0.3, "threshold": 0.15, "seed": 3} | options
    dtype = torch.float64 if backend.name in ("cpu", "eager") else torch.float32
    model = HebbCL(N, 6, dtype=dtype, device=backend.device, **options)
    how = {"similarity": model.similarity, "average": model.average, "normalise": model.normalise}
    how |= {"patches": model.patches, "freeze": model.freeze}
    for x in stream(dtype=dtype, device=backend.device):
        before, converged = rows_of(model), np.array(model.converged.tolist())
        model.learn(x)
        want, now = hk.reference.hebbcl(before.double(), converged, x.cpu().double(), model.lr, model.threshold, **how)
        width = len(before)
        np.testing.assert_allclose(rows_of(model)[:width], want, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
        assert model.converged[:width].tolist() == now.tolist() and not model.converged[width:].any()
        added = int(now.sum() - converged.sum()) if model.grow else 0
        assert model.width == min(width + added, model.max_neurons or 99)
    assert model.converged.sum() >= 2
    assert model.width == (6 if not model.grow else model.max_neurons or model.width)


@pytest.mark.slow(22, on="triton")
def test_frozen_rows_keep_their_bits(backend):
    model, kept = HebbCL(N, 6, lr=0.3, threshold=0.15, device=backend.device), {}
    for x in stream(30, dtype=torch.float32, device=backend.device):
        model.learn(x)
        for neuron in model.frozen.nonzero().flatten().tolist():
            kept.setdefault(neuron, rows_of(model)[neuron])
    assert len(kept) >= 4
    assert all(torch.equal(rows_of(model)[neuron], row) for neuron, row in kept.items())


def test_without_freeze_neurons_go_on_learning_and_add_a_neuron_once():
    model = train_on(HebbCL(N, 6, lr=0.3, threshold=0.15, freeze=False), stream(30, dtype=torch.float32))
    assert model.width == 6 + int(model.converged.sum()) > 8 and not model.frozen.any()
    before = rows_of(model)
    winner = int(model(before[:1]).argmax())
    model.learn(before[winner : winner + 1] + 0.1)
    assert not torch.equal(before, rows_of(model)[: len(before)])


def test_growth_does_not_copy_the_weights():
    """Six neurons are added eight times: the storage doubles four times, and otherwise the view gets longer."""
    model, places = HebbCL(4, 6, threshold=1e9), []
    parameter = model.weight
    for _ in range(8):  # all that have not converged do so in each minibatch
        places.append(model.weight.data_ptr())
        model.learn(random((3, 4)).abs())
    moves = [a != b for a, b in zip(places, [*places[1:], model.weight.data_ptr()], strict=True)]
    assert model.width == 54 and model.weight is parameter
    assert moves == [width + 6 in (12, 18, 30, 54) for width in range(6, 54, 6)]


def test_initial_rows_depend_on_seed_and_index_alone():
    """Neither the data nor the way of growing changes the rows that have not learned."""
    wide = HebbCL(N, 6, threshold=1e9, lr=0.0)
    for batch in (3, 5, 7):
        wide.learn(random((batch, N), seed=batch).abs())
    other = HebbCL(N, 6, threshold=1e9, lr=0.0, max_neurons=24)
    other.learn(random((1, N)).abs() + 1)
    resumed = HebbCL(N, 6, threshold=1e9, lr=0.0)
    resumed.load_state_dict(other.state_dict())
    resumed.learn(random((1, N)).abs())
    assert wide.width == 24 and other.width == 12 and resumed.width == 18
    assert torch.equal(wide.weight[:12], other.weight) and torch.equal(wide.weight[:18], resumed.weight)
    assert not torch.equal(HebbCL(N, 6, seed=1).weight, HebbCL(N, 6).weight)
    assert not torch.equal(wide.weight[6:12], wide.weight[:6])


@pytest.mark.parametrize("normalise", ["row_max", "row_l2", "none"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_initial_rows_are_drawn_and_normalised(start, normalise):
    weight = HebbCL(400, 50, start=start, normalise=normalise).weight
    assert (weight >= 0).all() if start == "uniform" else abs(float((weight > 0).double().mean()) - 0.5) < 0.02
    if normalise == "none":
        mean, spread = (0.5, 12**-0.5) if start == "uniform" else (0.0, 1.0)
        assert abs(weight.mean() - mean) < 0.03 and abs(weight.std() - spread) < 0.03
    else:
        norms = torch.linalg.vector_norm(weight, float("inf") if normalise == "row_max" else 2, dim=1)
        torch.testing.assert_close(norms, torch.ones(50))


def test_initial_rows_do_not_depend_on_the_default_device():
    want = HebbCL(N, 6)
    with torch.device("meta"):
        model = HebbCL(N, 6, device="cpu")
    assert torch.equal(model.weight, want.weight)


def test_new_neurons_can_start_on_samples():
    model = HebbCL(N, 6, threshold=1e9, lr=0.0, start="samples", patches="centred", normalise="row_l2")
    x = random((8, N)).abs()
    model.learn(x)
    patches = torch.nn.functional.normalize(x - x.mean(1, keepdim=True))
    nearest = torch.cdist(model.weight[6:], patches).min(1)
    assert nearest.values.max() < 1e-6 and len(set(nearest.indices.tolist())) == 6


def test_the_representation_is_the_k_winners_of_all_responses(backend):
    """Equation 1; ties to the lower index."""
    x = random((9, N), device=backend.device, seed=5)
    for options in ({}, {"patches": "centred"}, {"similarity": "cosine"}, {"patches": "standardised"}):
        model = HebbCL(N, 20, k=4, start="normal", device=backend.device, **options)
        weight = rows_of(model).double().numpy()
        rows = hk.reference.unfold(x.cpu().double(), patches=model.patches)
        want = hk.reference.kwinners(hk.reference.responses(rows, weight, cosine=model.similarity == "cosine"), 4, 1)
        y = model(x)
        np.testing.assert_allclose(y.cpu(), want, atol=1e-5)
        assert ((y != 0).sum(1) == 4).all()
    model = HebbCL(N, 20, k=4, sparse=False, start="normal", device=backend.device)
    torch.testing.assert_close(model(x), x @ model.weight.T)
    assert HebbCL(N, 3, k=7, device=backend.device)(x).shape == (9, 3)


def test_without_hebb_nothing_is_learned():
    model = HebbCL(N, 6, threshold=1e9, hebb=False)
    before = rows_of(model)
    train_on(model, stream(3))
    assert torch.equal(rows_of(model), before) and not model.converged.any()
    model, other = HebbCL(N, per_class=3, hebb=False), HebbCL(N, per_class=3, hebb=False)
    model.learn(random((4, N)), labels=torch.tensor([5, 5, 6, 6]))
    other.learn(random((4, N), seed=1), labels=torch.tensor([5, 5, 6, 6]))
    assert model.width == 6 and torch.equal(model.weight, other.weight)


def test_a_single_neuron_learns_the_mean_of_its_class(backend):
    """With lr = 1 and no normalisation the only neuron of a class becomes the mean of its samples."""
    x, y = random((30, N), device=backend.device), torch.arange(30, device=backend.device) % 3 * 10
    model = HebbCL(N, per_class=1, lr=1.0, normalise="none", device=backend.device)
    model.learn(x, labels=y)
    assert model.classes.tolist() == [0, 10, 20]
    means = torch.stack([x[y == label].mean(0) for label in (0, 10, 20)])
    torch.testing.assert_close(model.weight.detach(), means)


def test_neurons_of_other_classes_keep_their_bits():
    model, x = HebbCL(N, per_class=4, lr=0.2, start="samples"), random((60, N)).abs()
    kept = {}
    for label in (3, 1, 7):
        model.partial_fit(x[:20], torch.full((20,), label), batch_size=6, epochs=2)
        for old, (rows, place) in kept.items():
            assert torch.equal(model.weight[place], rows), old
        place = slice(model.width - 4, model.width)
        kept[label] = model.weight[place].detach().clone(), place
        assert model.converged.tolist() == [True] * (model.width - 4) + [False] * 4
    assert model.classes.tolist() == [3, 1, 7]
    before = rows_of(model)
    model.learn(x[:20], labels=torch.full((20,), 3))  # its time is over
    assert torch.equal(before, rows_of(model))
    model.learn(x[:20], labels=torch.full((20,), 7))
    assert torch.equal(before[:8], rows_of(model)[:8]) and not torch.equal(before[8:], rows_of(model)[8:])


def test_classes_that_are_new_together_learn_together():
    x, y = random((40, N)).abs(), torch.arange(40) % 2
    mixed = HebbCL(N, per_class=3, lr=0.2).partial_fit(x, y, batch_size=10)
    apart = HebbCL(N, per_class=3, lr=0.2, freeze=False)
    apart.learn(x[:0], labels=y[:0])
    for begin in range(0, 40, 10):  # class by class, freezing left out
        for label in (0, 1):
            part = slice(begin, begin + 10)
            apart.learn(x[part][y[part] == label], labels=y[part][y[part] == label])
    assert torch.equal(mixed.weight, apart.weight) and mixed.width == 6
    assert not mixed.converged.any()


def test_the_prediction_is_the_class_of_the_highest_sum_of_winners():
    model = HebbCL(N, per_class=5, k=6, lr=0.2).partial_fit(random((40, N)).abs(), torch.arange(40) % 4 + 3)
    x = random((50, N), seed=9).abs()
    y = x.double().numpy() @ rows_of(model).double().numpy().T
    sums = hk.reference.kwinners(y, 6, 1).reshape(50, 4, 5).sum(2)
    assert model.predict(x).tolist() == (sums.argmax(1) + 3).tolist()
    assert len(set(model.predict(x).tolist())) > 1


def test_without_classes_the_prediction_is_the_winner():
    model, x = HebbCL(N, 6, k=1), -random((9, N)).abs()  # no response is positive, and all but the winner's are zeroed
    assert model.predict(x).tolist() == (x @ model.weight.T).argmax(1).tolist()


def test_a_class_without_a_winner_is_never_predicted():
    model = HebbCL(N, per_class=2, k=1, similarity="cosine", lr=0.5).partial_fit(
        random((40, N)).abs(), torch.arange(40) % 4
    )
    x = -random((30, N), seed=2).abs()
    assert model.predict(x).tolist() == ((x @ torch.nn.functional.normalize(model.weight).T).argmax(1) // 2).tolist()


def test_samples_without_a_class_change_nothing():
    model = HebbCL(N, per_class=2, lr=0.2)
    model.learn(random((4, N)), labels=torch.tensor([-1, -1, -1, -1]))
    assert model.width == 0
    model.learn(random((4, N)), labels=torch.tensor([0, 0, 1, -1]))
    other = HebbCL(N, per_class=2, lr=0.2)
    other.learn(random((4, N))[:3], labels=torch.tensor([0, 0, 1]))
    assert torch.equal(model.weight, other.weight)


@pytest.mark.slow(19, on="triton")
def test_two_runs_and_any_number_of_threads_give_the_same_bits(backend, threads):
    states = []
    for count in (*backend.threads, backend.threads[0]):
        if not (backend.any_threads or count == backend.threads[0]):
            continue
        threads(count)
        model = HebbCL(N, 6, lr=0.3, threshold=0.15, device=backend.device)
        states.append(train_on(model, stream(12, dtype=torch.float32, device=backend.device)))
    assert len(states) > 1 and all(same(states[0], other) for other in states)


def test_gradients_reach_the_layers_before():
    x = random((3, N)).requires_grad_()
    HebbCL(N, 6, sparse=False)(x).sum().backward()
    assert x.grad.abs().sum() > 0
