"""HebbCL: the minibatch of algorithm 1 against reference.py, what is frozen, how it grows, and what it goes on from."""

import copy
import pickle

import numpy as np
import pytest
import torch

import hebbkern as hk
from cases import random
from hebbkern.continual import HebbCL

N = 12


def stream(batches=15, size=16, seed=0, dtype=torch.float64, device=None):
    """Batches of noisy copies of five patterns of two inputs each, one pattern after the other."""
    patterns = torch.eye(6, dtype=dtype, device=device).repeat_interleave(2, 1)
    noise = random((batches, size, N), dtype, device, seed=seed, scale=0.1).abs()
    return [patterns[index * 5 // batches] + part for index, part in enumerate(noise)]


def taught(model, batches):
    for x in batches:
        model.learn(x)
    return model


def rows_of(model):
    return model.weight.detach().cpu().clone()


FOLLOWED = [
    {},
    {"similarity": "cosine", "average": False, "lr": 0.02},
    {"normalise": "row_l2", "patches": "centred", "start": "normal"},
    {"normalise": "matrix_max", "patches": "standardised", "threshold": 0.5},
    {"normalise": "none", "freeze": False},
    {"grow": False},
    {"max_neurons": 9},
]


@pytest.mark.parametrize("options", FOLLOWED, ids=str)
def test_every_minibatch_is_the_reference_s(backend, options):
    options = {"lr": 0.3, "threshold": 0.15, "seed": 3} | options
    dtype = torch.float64 if backend.name in ("cpu", "eager") else torch.float32
    model = HebbCL(N, 6, dtype=dtype, device=backend.device, **options)
    how = {"similarity": model.similarity, "average": model.average, "normalise": model.normalise}
    how |= {"patches": model.patches, "freeze": model.freeze}
    for x in stream(dtype=dtype, device=backend.device):
        before, settled = rows_of(model), np.array(model.settled.tolist())
        model.learn(x)
        want, now = hk.reference.hebbcl(before.double(), settled, x.cpu().double(), model.lr, model.threshold, **how)
        width = len(before)
        np.testing.assert_allclose(rows_of(model)[:width], want, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
        assert model.settled[:width].tolist() == now.tolist() and not model.settled[width:].any()
        added = int(now.sum() - settled.sum()) if model.grow else 0
        assert model.width == min(width + added, model.max_neurons or 99)
    assert model.settled.sum() >= 2
    assert model.width == (6 if not model.grow else model.max_neurons or model.width)


def test_frozen_rows_keep_their_bits(backend):
    model, kept = HebbCL(N, 6, lr=0.3, threshold=0.15, device=backend.device), {}
    for x in stream(30, dtype=torch.float32, device=backend.device):
        model.learn(x)
        for neuron in model.frozen.nonzero().flatten().tolist():
            kept.setdefault(neuron, rows_of(model)[neuron])
    assert len(kept) >= 4
    assert all(torch.equal(rows_of(model)[neuron], row) for neuron, row in kept.items())


def test_neurons_that_are_not_frozen_go_on_learning_and_make_room_once():
    model = taught(HebbCL(N, 6, lr=0.3, threshold=0.15, freeze=False), stream(30, dtype=torch.float32))
    assert model.width == 6 + int(model.settled.sum()) > 8 and not model.frozen.any()
    before = rows_of(model)
    winner = int(model(before[:1]).argmax())
    model.learn(before[winner : winner + 1] + 0.1)
    assert not torch.equal(before, rows_of(model)[: len(before)])


def test_growth_does_not_copy_the_weights():
    """Eight times six neurons more: the room doubles four times, every other growth is a longer view."""
    model, places = HebbCL(4, 6, threshold=1e9), []
    parameter = model.weight
    for _ in range(8):  # all that have not settled do so in each minibatch
        places.append(model.weight.data_ptr())
        model.learn(random((3, 4)).abs())
    moves = [a != b for a, b in zip(places, [*places[1:], model.weight.data_ptr()], strict=True)]
    assert model.width == 54 and model.weight is parameter
    assert moves == [width + 6 in (12, 18, 30, 54) for width in range(6, 54, 6)]


def test_where_a_neuron_starts_depends_on_the_seed_and_its_place_alone():
    """How the width is reached, and on what data, makes no difference to rows that nobody has taught."""
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
def test_starts_are_drawn_as_named_and_normalised(start, normalise):
    weight = HebbCL(400, 50, start=start, normalise=normalise).weight
    assert (weight >= 0).all() if start == "uniform" else abs(float((weight > 0).double().mean()) - 0.5) < 0.02
    if normalise == "none":
        mean, spread = (0.5, 12**-0.5) if start == "uniform" else (0.0, 1.0)
        assert abs(weight.mean() - mean) < 0.03 and abs(weight.std() - spread) < 0.03
    else:
        norms = torch.linalg.vector_norm(weight, float("inf") if normalise == "row_max" else 2, dim=1)
        torch.testing.assert_close(norms, torch.ones(50))


def test_starts_are_the_same_whatever_the_default_device_is():
    want = HebbCL(N, 6)
    with torch.device("meta"):
        model = HebbCL(N, 6, device="cpu")
    assert torch.equal(model.weight, want.weight)


def test_new_neurons_can_start_on_samples():
    model = HebbCL(N, 6, threshold=1e9, lr=0.0, start="samples", patches="centred", normalise="row_l2")
    x = random((8, N)).abs()
    model.learn(x)
    seen = torch.nn.functional.normalize(x - x.mean(1, keepdim=True))
    nearest = torch.cdist(model.weight[6:], seen).min(1)
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


def test_without_hebb_nothing_is_learnt():
    model = HebbCL(N, 6, threshold=1e9, hebb=False)
    before = rows_of(model)
    taught(model, stream(3))
    assert torch.equal(rows_of(model), before) and not model.settled.any()
    model, other = HebbCL(N, per_class=3, hebb=False), HebbCL(N, per_class=3, hebb=False)
    model.learn(random((4, N)), torch.tensor([5, 5, 6, 6]))
    other.learn(random((4, N), seed=1), torch.tensor([5, 5, 6, 6]))
    assert model.width == 6 and torch.equal(model.weight, other.weight)


# ------------------------------------------------------------------------------------------------------- supervised


def test_a_neuron_a_class_learns_the_mean_of_its_class(backend):
    """Whole steps without normalisation: each class's only neuron is the mean of the samples of the class."""
    x, y = random((30, N), device=backend.device), torch.arange(30, device=backend.device) % 3 * 10
    model = HebbCL(N, per_class=1, lr=1.0, normalise="none", device=backend.device)
    model.learn(x, y)
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
        assert model.settled.tolist() == [True] * (model.width - 4) + [False] * 4
    assert model.classes.tolist() == [3, 1, 7]
    before = rows_of(model)
    model.learn(x[:20], torch.full((20,), 3))  # its time is over
    assert torch.equal(before, rows_of(model))
    model.learn(x[:20], torch.full((20,), 7))
    assert torch.equal(before[:8], rows_of(model)[:8]) and not torch.equal(before[8:], rows_of(model)[8:])


def test_classes_that_come_together_learn_together():
    x, y = random((40, N)).abs(), torch.arange(40) % 2
    mixed = HebbCL(N, per_class=3, lr=0.2).partial_fit(x, y, batch_size=10)
    apart = HebbCL(N, per_class=3, lr=0.2, freeze=False)
    apart.learn(x[:0], y[:0])
    for begin in range(0, 40, 10):  # class by class, freezing left out
        for label in (0, 1):
            part = slice(begin, begin + 10)
            apart.learn(x[part][y[part] == label], y[part][y[part] == label])
    assert torch.equal(mixed.weight, apart.weight) and mixed.width == 6
    assert not mixed.settled.any()


def test_the_prediction_is_the_class_of_the_highest_sum_of_winners():
    model = HebbCL(N, per_class=5, k=6, lr=0.2).partial_fit(random((40, N)).abs(), torch.arange(40) % 4 + 3)
    x = random((50, N), seed=9).abs()
    y = x.double().numpy() @ rows_of(model).double().numpy().T
    sums = hk.reference.kwinners(y, 6, 1).reshape(50, 4, 5).sum(2)
    assert model.predict(x).tolist() == (sums.argmax(1) + 3).tolist()
    assert len(set(model.predict(x).tolist())) > 1


def test_without_classes_the_prediction_is_the_winner():
    model, x = HebbCL(N, 6, start="normal"), random((9, N))
    assert model.predict(x).tolist() == (x @ model.weight.T).argmax(1).tolist()


def test_samples_without_a_class_teach_nobody():
    model = HebbCL(N, per_class=2, lr=0.2)
    model.learn(random((4, N)), torch.tensor([-1, -1, -1, -1]))
    assert model.width == 0
    model.learn(random((4, N)), torch.tensor([0, 0, 1, -1]))
    other = HebbCL(N, per_class=2, lr=0.2)
    other.learn(random((4, N))[:3], torch.tensor([0, 0, 1]))
    assert torch.equal(model.weight, other.weight)


# -------------------------------------------------------------------------------------------------------- the state


def both(supervised):
    """A model in the middle of a stream, and what it does next."""
    if supervised:
        model = HebbCL(N, per_class=3, lr=0.2, start="samples").partial_fit(random((30, N)).abs(), torch.arange(30) % 2)
        return model, lambda other: other.partial_fit(random((30, N), seed=2).abs(), torch.arange(30) % 2 + 1)
    model = taught(HebbCL(N, 6, lr=0.3, threshold=0.15), stream(10, dtype=torch.float32))
    return model, lambda other: taught(other, stream(10, seed=4, dtype=torch.float32))


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("supervised", [False, True])
def test_a_resumed_model_ends_with_the_same_bits(supervised, tmp_path):
    model, next_part = both(supervised)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    resumed = HebbCL(N, **({"per_class": 3} if supervised else {"neurons": 6}), lr=model.lr, threshold=model.threshold)
    resumed.start = model.start
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    copies = [resumed, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    width = model.width
    next_part(model)
    assert model.width > width
    for other in copies:
        assert other.width == width
        next_part(other)
        assert same(model, other)


def test_a_narrower_state_is_taken_on_as_well():
    model, _ = both(False)
    model.load_state_dict(HebbCL(N, 6).state_dict())
    assert same(model, HebbCL(N, 6))
    assert same(
        taught(model, stream(3, dtype=torch.float32)),
        taught(HebbCL(N, 6, lr=0.3, threshold=0.15), stream(3, dtype=torch.float32)),
    )


MISFITS = [
    ({"settled": None}, "HebbCL's state must hold weight, settled and classes"),
    ({"weight": torch.zeros(8, N + 1)}, "weight must be [width, 12], got shape [8, 13]"),
    ({"settled": torch.zeros(7, dtype=torch.bool)}, "settled must be one a neuron (8), got shape [7]"),
    ({"classes": torch.zeros(1, dtype=torch.int64)}, "classes must be none, got 1"),
    (
        {"weight": torch.zeros(11, N), "settled": torch.zeros(11, dtype=torch.bool)},
        "max_neurons must be at least the 11",
    ),
]


@pytest.mark.parametrize(("changed", "message"), MISFITS, ids=[message for _, message in MISFITS])
def test_a_state_that_does_not_fit_changes_nothing(changed, message):
    model = taught(HebbCL(N, 6, max_neurons=10, threshold=0.15, lr=0.3), stream(5, dtype=torch.float32))
    before = copy.deepcopy(model)
    state = {
        "weight": torch.zeros(8, N),
        "settled": torch.ones(8, dtype=torch.bool),
        "classes": torch.zeros(0),
    } | changed
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    assert message in str(error.value)
    assert same(model, before)


def test_reset_and_fit_begin_anew():
    model, _ = both(False)
    model.reset()
    assert same(model, HebbCL(N, 6))
    x, y = random((30, N)).abs(), torch.arange(30) % 2
    model = HebbCL(N, per_class=3).fit(x, y)
    assert same(model.fit(x, y), HebbCL(N, per_class=3).partial_fit(x, y)) and model.width == 6


def test_two_runs_and_any_number_of_threads_give_the_same_bits(backend, threads):
    states = []
    for count in (*backend.threads, backend.threads[0]):
        if not (backend.any_threads or count == backend.threads[0]):
            continue
        threads(count)
        model = HebbCL(N, 6, lr=0.3, threshold=0.15, device=backend.device)
        states.append(taught(model, stream(12, dtype=torch.float32, device=backend.device)))
    assert len(states) > 1 and all(same(states[0], other) for other in states)


# ------------------------------------------------------------------------------------------------ input, good and bad


def test_images_bytes_and_arrays():
    images = torch.randint(0, 256, (20, 1, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = images.flatten(1).float() / 255
    want = HebbCL(N, 6, lr=0.3).partial_fit(rows)
    assert same(HebbCL(N, 6, lr=0.3).partial_fit(images), want)
    assert same(HebbCL(N, 6, lr=0.3).partial_fit(rows.double().numpy()), want)
    assert torch.equal(want.transform(images), want(rows)) and want.transform(images[:0]).shape == (0, want.width)
    array = want.transform(rows.numpy())
    assert isinstance(array, np.ndarray) and array.tolist() == want(rows).tolist()
    assert isinstance(want.predict(rows.numpy()), np.ndarray)
    supervised = HebbCL(N, per_class=2, start="samples").partial_fit(images.numpy(), np.arange(20) % 2)
    assert same(supervised, HebbCL(N, per_class=2, start="samples").partial_fit(rows, torch.arange(20) % 2))


@pytest.mark.parametrize("patches", ["raw", "centred"])
def test_blank_samples_teach_nobody(patches):
    x = stream(1, dtype=torch.float32)[0]
    blank = torch.full((1, N), 0.0 if patches == "raw" else 0.7)
    with_blanks, without = (HebbCL(N, 6, lr=0.3, threshold=0.15, patches=patches) for _ in range(2))
    with_blanks.learn(torch.cat((x[:5], blank, x[5:], blank)))
    without.learn(x)
    assert same(with_blanks, without)
    before = copy.deepcopy(without)
    without.learn(blank)
    without.learn(x[:0])
    assert same(before, without)
    supervised = HebbCL(N, per_class=2, patches=patches, start="samples")
    supervised.learn(blank, torch.tensor([4]))
    assert supervised.classes.tolist() == [4] and supervised.weight.isfinite().all()


def test_a_halt_in_mid_stream_loses_nothing():
    """A NaN, an infinity, another width, labels that do not fit, a class too many: refused, and all stays."""
    for model, labels in ((both(False)[0], None), (both(True)[0], torch.tensor([0, 1, 0, 9]))):
        before, good = copy.deepcopy(model), random((4, N)).abs()
        nan, infinite = good.clone(), good.clone()
        nan[3, 5], infinite[1, 0] = float("nan"), -float("inf")
        cases = [
            (nan, "x must be finite, got a NaN or an infinity"),
            (infinite, "x must be finite"),
            (random((4, N + 1)), f"x must be [B, ...] of 12 inputs a sample, got shape [4, {N + 1}]"),
            (random((N,)), "got shape [12]"),
            (torch.ones(4, N, dtype=torch.int64), "x must be floating or uint8, got int64"),
            (good.tolist(), "x must be a tensor, got list"),
        ]
        for x, message in cases:
            with pytest.raises(ValueError) as error:
                model.learn(x, labels)
            assert str(error.value).startswith("hebbkern.HebbCL: ") and message in str(error.value)
            assert same(before, model)
        with pytest.raises(ValueError, match=r"lr must be finite, got nan"):
            model.learn(good, labels, lr=float("nan"))
    labels = [None, torch.zeros(4), torch.zeros(3, dtype=torch.int64), [0, 0, 0, 0]]
    for wrong, got in zip(labels, ("None", "float32 of shape [4]", "int64 of shape [3]", "list"), strict=True):
        with pytest.raises(ValueError) as error:
            model.learn(good, wrong)
        assert f"labels must be [4] integers, the class of each sample, got {got}" in str(error.value)
        assert same(before, model)
    model.max_neurons = 8
    with pytest.raises(ValueError, match=r"max_neurons must be at least 9 for the new classes \[9\], got 8"):
        model.learn(good, torch.tensor([0, 9, 0, 1]))
    assert same(before, model)


SETTINGS = [
    ({"in_features": 0}, "in_features must be at least 1, got 0"),
    ({"neurons": 0}, "neurons must be at least 1, got 0"),
    ({"neurons": 6, "per_class": 3}, "neurons must be left out where per_class is given, got 6"),
    ({"per_class": 0}, "per_class must be at least 1, got 0"),
    ({"max_neurons": 99}, "max_neurons must be at least neurons (100), got 99"),
    ({"max_neurons": 4, "per_class": 5}, "max_neurons must be at least per_class (5), got 4"),
    ({"threshold": -0.1}, "threshold must be a finite number of at least 0, got -0.1"),
    ({"k": 0}, "k must be at least 1, got 0"),
    ({"lr": float("inf")}, "lr must be finite, got inf"),
    ({"similarity": "euclid"}, 'similarity must be "dot" or "cosine", got "euclid"'),
    ({"normalise": "max"}, 'normalise must be "row_max", "row_l2", "matrix_max" or "none", got "max"'),
    ({"start": "zeros"}, 'start must be "uniform", "normal" or "samples", got "zeros"'),
    ({"patches": "white"}, 'patches must be "raw", "centred" or "standardised", got "white"'),
    ({"freeze": 1}, "freeze must be True or False, got 1"),
    ({"seed": -1}, "seed must be at least 0, got -1"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=[message for _, message in SETTINGS])
def test_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError) as error:
        HebbCL(**({"in_features": N} | settings))
    assert str(error.value) == f"hebbkern.HebbCL: {message}"


def test_calls_are_refused_by_name():
    model = HebbCL(N, per_class=2)
    with pytest.raises(ValueError, match="predict needs a class that was learnt, got none yet"):
        model.predict(random((2, N)))
    for name in ("batch_size", "epochs"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
            model.partial_fit(random((2, N)), torch.tensor([0, 1]), **{name: 0})
    with pytest.raises(ValueError, match="x must be"):
        model.partial_fit(random((2, N + 1)), torch.tensor([0, 1]))
    assert model.width == 0


# -------------------------------------------------------------------------------------------- among other people's code


def test_it_learns_inside_learning():
    x, want = stream(1, dtype=torch.float32)[0], HebbCL(N, 6, threshold=0.15)
    model = copy.deepcopy(want)
    with hk.learning(torch.nn.Sequential(model), lr=0.3):
        y = model(x)
    want.learn(x, lr=0.3)
    assert same(model, want) and torch.equal(y, want(x)) and not model.weight.requires_grad
    with pytest.raises(ValueError, match="renormalise"), hk.learning(model, into="grad"):
        model(x)
    plain = HebbCL(N, 6, normalise="none")
    with pytest.raises(ValueError, match='into="weight"'), hk.learning(plain, into="grad"):
        plain(x)


def test_gradients_reach_the_layers_before():
    x = random((3, N)).requires_grad_()
    HebbCL(N, 6, sparse=False)(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_it_fits_a_pipeline_of_scikit_learn():
    pipeline = pytest.importorskip("sklearn.pipeline", reason="scikit-learn is not installed")
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    x = torch.cat(stream(10, dtype=torch.float32)).numpy()
    y = np.repeat(np.arange(5), 32)
    model = pipeline.make_pipeline(HebbCL(N, 20, k=5, lr=0.3), KNeighborsClassifier(3))
    assert cross_val_score(model, x, y, cv=2).mean() > 0.5


def test_the_trainer_trains_it_and_resumes_it(tmp_path):
    """As by hand, with the figures of a width that grows; and from a checkpoint with the same bits."""
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    from ignite.engine import Events

    from hebbkern.training import Batches, train
    from hebbkern.training.checkpoint import last_checkpoint
    from hebbkern.training.handlers import Figures

    def trained(epochs, **options):
        model = torch.nn.Sequential(HebbCL(N, 6, threshold=0.15))
        batches = Batches(torch.cat(stream(dtype=torch.float32)), size=16)
        return model[0], train(model, batches, lr=0.3, epochs=epochs, decay="constant", **options)

    want, by_hand = HebbCL(N, 6, threshold=0.15, lr=0.3), Batches(torch.cat(stream(dtype=torch.float32)), size=16)
    for epoch in range(2):
        by_hand.seek(epoch * len(by_hand))
        taught(want, (x for x, _ in by_hand))
    model, _ = trained(2, handlers=[Figures(torch.nn.Sequential(want))])
    assert same(model, want) and want.width > 6

    def halt(engine):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(2, folder=tmp_path, save_every=10, handlers=[(Events.ITERATION_COMPLETED(once=23), halt)])
    assert last_checkpoint(tmp_path).stem == "checkpoint_20"
    assert same(trained(2, folder=tmp_path, save_every=10, resume=True)[0], want)
    with pytest.raises(ValueError, match=r"fit checkpoint_\d+.safetensors: weight must be \[width, 5\], got shape"):
        train(
            torch.nn.Sequential(HebbCL(5)),
            Batches(torch.ones(240, 5), size=16),
            lr=0.3,
            epochs=2,
            folder=tmp_path,
            resume=True,
        )


def test_figures_tell_of_neurons_that_were_there_when_the_epoch_began():
    pytest.importorskip("ignite", reason="pytorch-ignite is not installed")
    from hebbkern.training import hebbian_trainer
    from hebbkern.training.handlers import Figures

    model = HebbCL(N, 2, threshold=1e9, max_neurons=4, normalise="none")
    before, x = rows_of(model), torch.ones(3, N)
    engine = hebbian_trainer(model)
    engine.state.lr = 1.0
    Figures(model).attach(engine)
    engine.run([x], max_epochs=1)
    assert model.width == 4 and model.settled.tolist() == [True, True, False, False]
    assert engine.state.metrics["dead"] == 0 and engine.state.metrics["change"] == 0  # both have settled since
    model = HebbCL(N, 2, threshold=1e9, max_neurons=4, normalise="none", freeze=False)
    engine = hebbian_trainer(model)
    engine.state.lr = 1.0
    Figures(model).attach(engine)
    engine.run([x], max_epochs=1)
    moved = (1 - before).abs()[int(before.sum(1).argmax())].sum() / (2 * N)  # the winner went all the way to the ones
    assert engine.state.metrics["dead"] == 1 and abs(engine.state.metrics["change"] - moved) < 1e-6
