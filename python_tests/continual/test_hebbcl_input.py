"""HebbCL: inputs of every kind, and wrong ones, which leave the model unchanged."""

import copy

import numpy as np
import pytest
import torch

from cases import random
from hebbcl_models import N, model_and_next, same, stream
from hebbkern.continual import HebbCL


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
def test_blank_samples_change_nothing(patches):
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
    supervised.learn(blank, labels=torch.tensor([4]))
    assert supervised.classes.tolist() == [4] and supervised.weight.isfinite().all()


def test_wrong_batches_change_nothing():
    """A NaN, an infinity, another width, wrong labels and a class too many raise, and the model is unchanged."""
    for model, labels in ((model_and_next(False)[0], None), (model_and_next(True)[0], torch.tensor([0, 1, 0, 9]))):
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
                model.learn(x, labels=labels)
            assert str(error.value).startswith("hebbkern.HebbCL: ") and message in str(error.value)
            assert same(before, model)
        with pytest.raises(ValueError, match=r"lr must be finite, got nan"):
            model.learn(good, labels=labels, lr=float("nan"))
    labels = [None, torch.zeros(4), torch.zeros(3, dtype=torch.int64), [0, 0, 0, 0]]
    for wrong, got in zip(labels, ("None", "float32 of shape [4]", "int64 of shape [3]", "list"), strict=True):
        with pytest.raises(ValueError) as error:
            model.learn(good, labels=wrong)
        assert f"labels must be [4] integers, the class of each sample, got {got}" in str(error.value)
        assert same(before, model)
    model.max_neurons = 8
    with pytest.raises(ValueError, match=r"max_neurons must be at least 9 for the new classes \[9\], got 8"):
        model.learn(good, labels=torch.tensor([0, 9, 0, 1]))
    assert same(before, model)


def test_a_step_that_fails_changes_nothing(monkeypatch):
    """An error after the step of the winners, after new classes, or between two classes."""
    for model, labels in ((model_and_next(False)[0], None), (model_and_next(True)[0], torch.tensor([1, 0, 7, 8] * 5))):
        before, x = copy.deepcopy(model), stream(2, 20, dtype=torch.float32)[1]
        calls, divide = [], model._normalise_matrix

        def fails(*arguments, calls=calls, divide=divide, allowed=int(model.supervised)):
            calls.append(arguments)
            if len(calls) > allowed:
                raise RuntimeError("half way")
            return divide(*arguments)

        monkeypatch.setattr(model, "_normalise_matrix", fails)
        with pytest.raises(RuntimeError, match="half way"):
            model.learn(x, labels=labels)
        assert calls and same(before, model)
        monkeypatch.undo()
        model.learn(x, labels=labels)
        before.learn(x, labels=labels)
        assert same(before, model) and len(model.weight) == len(model.converged)


def test_wrong_data_is_found_before_learning():
    """partial_fit adds no classes and fit does not reset the model."""
    x, y = random((30, N)).abs(), torch.arange(30) % 2 + 5
    spoilt = x.clone()
    spoilt[29, 3] = float("nan")
    for model in (model_and_next(True)[0], model_and_next(False)[0]):
        before = copy.deepcopy(model)
        for learn in (model.partial_fit, model.fit):
            for arguments, options in [
                ((spoilt, y), {}),
                ((x, y), {"lr": float("nan")}),
                ((x, y), {"batch_size": 0}),
                ((x[:, 1:], y), {}),
            ]:
                with pytest.raises(ValueError):
                    learn(*arguments, **options)
                assert same(before, model)


def test_numbers_too_large_to_be_squared_are_refused():
    for model in (HebbCL(N, 6), HebbCL(N, per_class=2)):
        before = copy.deepcopy(model)
        with pytest.raises(ValueError, match="x must be small enough to be squared and added, got up to 1e\\+20"):
            model.learn(torch.full((3, N), 1e20), labels=torch.tensor([0, 1, 2]))
        assert same(before, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{"patches": "standardised"}, {"similarity": "cosine"}], ids=str)
def test_half_precision_with_blank_samples(options, dtype):
    model = HebbCL(N, 6, dtype=dtype, threshold=0.2, lr=0.3, **options)
    x = stream(1, dtype=dtype)[0]
    x[3] = 0
    model.learn(x)
    y = model.transform(x)
    assert (
        y.isfinite().all()
        and (y[3] == 0).all()
        and model.transform(x.float().numpy()).dtype in (np.float16, np.float32)
    )


SETTINGS = [
    ({"per_class": 3, "grow": False}, "grow must be True with per_class, which adds neurons for each class, got False"),
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
