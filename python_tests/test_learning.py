"""hk.learning: who learns inside it, in which order, and that it leaves everything as it was."""

import math

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        HebbianConv2d(1, 4, 3, rule=hk.Sanger()), nn.ReLU(), nn.Flatten(), HebbianLinear(64, 5, rule=hk.WTA())
    )


def images():
    return random((3, 1, 6, 6), seed=4)


def test_layers_learn_only_inside():
    model = network()
    before = [weight.clone() for weight in model.parameters()]
    model(images())
    assert all(map(torch.equal, model.parameters(), before))
    with hk.learning(model, lr=0.1):
        model(images())
    assert not any(map(torch.equal, model.parameters(), before))
    after = [weight.clone() for weight in model.parameters()]
    model(images())
    assert all(map(torch.equal, model.parameters(), after))


def test_each_layer_learns_then_answers():
    model, twin = network(), network()
    with hk.learning(model, lr=0.1):
        y = model(images())
    twin[0].learn(images(), lr=0.1)
    hidden = twin[2](twin[1](twin[0](images())))
    twin[3].learn(hidden, lr=0.1)
    assert torch.equal(y, twin[3](hidden))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_contexts_nest_and_the_innermost_counts():
    model = network()
    first, last = model[0], model[3]
    with hk.learning(model, lr=0.1):
        with hk.learning(last, lr=0.5):
            assert (first.lesson.lr, last.lesson.lr) == (0.1, 0.5)
        assert (first.lesson.lr, last.lesson.lr) == (0.1, 0.1)
    assert first.lesson is None and last.lesson is None


def test_a_context_can_be_entered_again():
    model = network()
    lesson = hk.learning(model, lr=0.1)
    for _ in range(2):
        with lesson as same:
            assert same is lesson
            with lesson:
                assert model[0].lesson.lr == 0.1
            assert model[0].lesson.lr == 0.1
        assert model[0].lesson is None


def test_an_exception_ends_learning():
    model = network()
    with pytest.raises(KeyError), hk.learning(model, lr=0.1):
        raise KeyError
    assert model[0].lesson is None
    before = model[0].weight.clone()
    with pytest.raises((ValueError, RuntimeError), match="finite"), hk.learning(model, lr=0.1):
        model(images() * math.nan)
    assert model[3].lesson is None and torch.equal(model[0].weight, before)


def test_learning_works_under_no_grad_and_inference_mode():
    for mode in (torch.no_grad, torch.inference_mode):
        model, twin = network(), network()
        with mode(), hk.learning(model, lr=0.1):
            model(images())
        with hk.learning(twin, lr=0.1):
            twin(images())
        assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_a_model_without_hebbian_layers_is_refused():
    with pytest.raises(ValueError, match=r"hebbkern.learning: model must hold a Hebbian layer .* got Linear"):
        hk.learning(nn.Linear(3, 3), lr=0.1)


@pytest.mark.parametrize("lr", [math.nan, math.inf])
def test_lr_must_be_finite(lr):
    with pytest.raises(ValueError, match=f"hebbkern.learning: lr must be finite, got {lr}"):
        hk.learning(network(), lr=lr)
