"""hk.learning: which layers learn inside it, in which order, and that the model is as before on leaving."""

import math

import numpy as np
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


def test_each_layer_learns_before_its_forward_pass():
    model, twin = network(), network()
    with hk.learning(model, lr=0.1):
        y = model(images())
    twin[0].learn(images(), lr=0.1)
    hidden = twin[2](twin[1](twin[0](images())))
    twin[3].learn(hidden, lr=0.1)
    assert torch.equal(y, twin[3](hidden))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_contexts_nest_and_the_innermost_counts():
    model = network()
    first, last = model[0], model[3]
    with hk.learning(model, lr=0.1):
        with hk.learning(last, lr=0.5):
            assert (first.learning_state.lr, last.learning_state.lr) == (0.1, 0.5)
        assert (first.learning_state.lr, last.learning_state.lr) == (0.1, 0.1)
    assert first.learning_state is None and last.learning_state is None


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_a_context_can_be_entered_again():
    model = network()
    context = hk.learning(model, lr=0.1)
    for _ in range(2):
        with context as same:
            assert same is context
            with context:
                assert model[0].learning_state.lr == 0.1
            assert model[0].learning_state.lr == 0.1
        assert model[0].learning_state is None


def test_an_exception_ends_learning():
    model = network()
    with pytest.raises(KeyError), hk.learning(model, lr=0.1):
        raise KeyError
    assert model[0].learning_state is None
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="finite"), hk.learning(model, lr=0.1):
        model(images() * math.nan)
    assert model[3].learning_state is None and torch.equal(model[0].weight, before)


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


def rates_of(**options):
    """The rates at which the layers of a network learn."""
    model = network()
    with hk.learning(model, **options):
        return [layer.learning_state and layer.learning_state.lr for layer in (model[0], model[3])]


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_lr_by_name_and_pattern():
    assert rates_of(lr={"0": 0.1, "3": 0.2}) == [0.1, 0.2]
    assert rates_of(lr={"*": 0.1, "3": 0.2}) == [0.1, 0.2]
    assert rates_of(lr={"3": 0.2, "[0-9]": 0.1}) == [0.1, 0.1]
    assert rates_of(lr={"3": 0.2}) == [None, 0.2]
    model, twin = network(), network()
    with hk.learning(model, lr={"3": 0.2}):
        model(images())
    twin[3].learn(twin[:3](images()), lr=0.2)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_layers_without_lr_in_an_inner_context_do_not_learn():
    model = network()
    with hk.learning(model, lr=0.1), hk.learning(model, lr={"3": 0.2}):
        assert model[0].learning_state is None and model[3].learning_state.lr == 0.2


@pytest.mark.parametrize("name", ["1", "4", "conv*", ""])
def test_lr_for_no_hebbian_layer_is_refused(name):
    with pytest.raises(ValueError) as error:
        hk.learning(network(), lr={"0": 0.1, name: 0.2})
    assert str(error.value) == f'hebbkern.learning: lr must match Hebbian layers ("0", "3"), got "{name}"'


def test_lr_is_required():
    with pytest.raises(ValueError, match=r"hebbkern.learning: lr must be a number, got None"):
        hk.learning(network())
    with pytest.raises(ValueError, match=r"hebbkern.HebbianLinear.learn: lr must be a number, got None"):
        network()[3].learn(random((2, 64)))


LABELS = torch.arange(9) % 5
STEPS = [
    (hk.Hebb(), lambda w, x: hk.reference.hebb(w, x, lr=1.0)),
    (hk.Sanger(), lambda w, x: hk.reference.sanger(w, x, lr=1.0)),
    (hk.SoftWTA(), lambda w, x: hk.reference.soft_wta(w, x, lr=1.0)),
    (hk.SoftWTA(normalise="global_max"), lambda w, x: hk.reference.soft_wta(w, x, lr=1.0, normalise="global_max")),
    (hk.WTA(), lambda w, x: hk.reference.wta(w, x, lr=1.0)),
    (hk.KrotovHopfield(), lambda w, x: hk.reference.krotov_hopfield(w, x, lr=1.0)),
    (hk.Supervised(), lambda w, x: hk.reference.supervised(w, x, LABELS.numpy(), lr=1.0)),
]


def layer_of(rule, dtype=torch.float32):
    layer = HebbianLinear(12, 5, rule=rule, dtype=dtype)
    layer.weight.copy_(random((5, 12), dtype, seed=1))
    return layer


@pytest.mark.parametrize(("rule", "stepped"), STEPS, ids=lambda value: getattr(type(value), "__name__", ""))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_minus_the_step(rule, stepped, dtype):
    layer, x = layer_of(rule, dtype), random((9, 12), dtype, seed=2)
    before = layer.weight.clone()
    with hk.learning(layer, labels=LABELS, into="grad"):
        layer(x)
    want = before.double().numpy() - stepped(before.double().numpy(), x.double().numpy())
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    got = layer.weight.grad
    assert got.dtype == dtype and torch.equal(layer.weight, before)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=0, atol=tolerance * np.abs(want).max())


def test_gradients_add_up_and_lr_scales_them():
    layer, x = layer_of(hk.Hebb()), random((9, 12), seed=2)
    for lr, part in ((None, x[:4]), (3.0, x[4:])):
        layer.learn(part, lr=lr, into="grad")
    y = x @ layer.weight.T
    want = -(y[:4].T @ x[:4] / 4 + 3 * (y[4:].T @ x[4:] / 5))
    torch.testing.assert_close(layer.weight.grad, want, rtol=1e-5, atol=1e-5)


def test_a_small_gradient_of_a_large_weight_is_not_rounded_away():
    layer, x = layer_of(hk.Hebb()), random((9, 12), seed=2, scale=1e-5)
    layer.weight.fill_(1000.0)
    layer.learn(x, into="grad")
    want = -(x.double() @ layer.weight.double().T).T @ x.double() / 9  # below the spacing of float32 at 1000
    torch.testing.assert_close(layer.weight.grad.double(), want, rtol=1e-4, atol=1e-3 * want.abs().max().item())


def test_frozen_rows_have_no_gradient():
    for rule in (hk.Sanger(), hk.KrotovHopfield(), hk.WTA()):
        layer = layer_of(rule)
        layer.frozen[[1, 3]] = True
        layer.learn(random((90, 12), seed=2), into="grad")
        assert (layer.weight.grad != 0).any(1).tolist() == [True, False, True, False, True]


def test_optimizers_step_along_local_gradients():
    """Momentum on Hebb's rule by hand, for two layers; the second gets the output of the first before its step."""
    model, x = nn.Sequential(layer_of(hk.Hebb()), HebbianLinear(5, 3, rule=hk.Hebb())), random((9, 12), seed=2)
    first, second = (layer.weight.clone() for layer in model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    speed = [0.0, 0.0]
    for _ in range(3):
        with hk.learning(model, into="grad"):
            model(x)
        optimizer.step()
        optimizer.zero_grad()
        y = x @ first.T
        speed = [0.9 * speed[0] + y.T @ x / 9, 0.9 * speed[1] + (y @ second.T).T @ y / 9]
        first, second = first + 0.01 * speed[0], second + 0.01 * speed[1]
    torch.testing.assert_close(model[0].weight.detach(), first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[1].weight.detach(), second, rtol=1e-4, atol=1e-4)


def test_beside_a_loss_that_is_scaled():
    """The scaler divides lr=scaler.get_scale() out again, as the docstring says."""
    layer, x = layer_of(hk.Hebb()), random((9, 12), seed=2)
    model = nn.Sequential(layer, nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    want = layer.weight + 0.5 * (x @ layer.weight.T).T @ x / 9
    with hk.learning(model, lr=scaler.get_scale(), into="grad"):
        loss = model(x).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(layer.weight.detach(), want.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_rules_without_gradient_are_refused():
    layer = layer_of(hk.WTA(normalise="row_l2"))
    for refused in (lambda: hk.learning(layer, into="grad"), lambda: layer.learn(random((9, 12)), into="grad")):
        with pytest.raises(
            ValueError, match=r'rule must not renormalise \(normalise="none"\) for into="grad", got WTA'
        ):
            refused()
    for refused in (lambda: hk.learning(layer, 0.1, into="w"), lambda: layer.learn(random((9, 12)), lr=0.1, into="w")):
        with pytest.raises(ValueError, match='into must be "weight" or "grad", got \'w\''):
            refused()
    with pytest.raises(ValueError, match="lr must be finite, got nan"):
        layer_of(hk.WTA()).learn(random((9, 12)), lr=math.nan, into="grad")
    assert layer.weight.grad is None
    with hk.learning(nn.Sequential(layer, layer_of(hk.Hebb())), lr={"1": 1.0}, into="grad"):
        assert layer.learning_state is None


def test_compiled_models_have_the_same_gradients():
    torch.compiler.reset()
    model, twin = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for lr in (1.0, 0.5):
        with hk.learning(model, lr=lr, into="grad"):
            compiled(images())
        with hk.learning(twin, lr=lr, into="grad"):
            twin(images())
    for layer, same in ((model[0], twin[0]), (model[3], twin[3])):
        torch.testing.assert_close(layer.weight.grad, same.weight.grad, rtol=1e-5, atol=1e-6)
        assert torch.equal(layer.weight, same.weight) and layer.weight.grad.abs().sum() > 0
