"""torch.compile(fullgraph=True) and torch.export through models that hold Hebbian layers."""

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear, KWinners


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        HebbianConv2d(3, 8, 3, padding="same", rule=hk.WTA(patches="centred")),
        nn.ReLU(),
        HebbianConv2d(8, 4, 3, stride=2, rule=hk.Sanger()),
        KWinners(2),
        nn.Flatten(),
        HebbianLinear(36, 10, rule=hk.KrotovHopfield()),
        HebbianLinear(10, 5, bias=True, rule=hk.Supervised()),
    )


def images():
    return random((4, 3, 8, 8), seed=4)


LABELS = torch.tensor([0, 3, 3, 1])


@pytest.mark.slow(15)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiled_models_match_eager_ones(compiler):
    torch.compiler.reset()
    model, twin = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    for lr in (None, 0.1, 0.1, 0.05, None):
        if lr is None:
            y, want = compiled(images()), twin(images())
        else:
            with hk.learning(model, lr=lr, labels=LABELS):
                y = compiled(images())
            with hk.learning(twin, lr=lr, labels=LABELS):
                want = twin(images())
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        for weight, wanted in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_another_lr_does_not_recompile():
    torch.compiler.reset()
    model, twin = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(20):  # more than the 8 times that torch.compile would compile anew
        for network_, run in ((model, compiled), (twin, twin)):
            with hk.learning(network_, lr=0.1 * (1 - step / 20), labels=LABELS):
                run(images())
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_apply_with_lr_in_a_tensor():
    weight, total, rate = random((5, 8)), random((5, 8), seed=1), torch.tensor(0.1, dtype=torch.float64)
    want = weight.clone()
    hk.ops.apply_(want, total, lr=0.1, normalise="row_l2")
    arguments = (weight, total, None, None, rate, "row_l2", 0.0, None)
    torch.library.opcheck(torch.ops.hebbkern.apply_scheduled_.default, arguments)
    hk.ops.apply_(weight, total, lr=rate, normalise="row_l2")
    assert torch.equal(weight, want)


def test_gradients_pass_through_a_compiled_model():
    torch.compiler.reset()
    model = network()
    x = images().requires_grad_()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    grad, x.grad = x.grad, None
    model(x).sum().backward()
    torch.testing.assert_close(grad, x.grad)
    assert grad.abs().sum() > 0 and model[0].weight.grad is None


def test_learning_inside_the_compiled_function():
    torch.compiler.reset()
    model, twin = network(), network()

    def step(model, x, labels):
        with hk.learning(model, lr=0.1, labels=labels):
            return model(x)

    y = torch.compile(step, fullgraph=True, backend="aot_eager")(model, images(), LABELS)
    torch.testing.assert_close(y, step(twin, images(), LABELS))
    assert torch.equal(model[5].weight, twin[5].weight) and model[0].learning_state is None


def test_models_export():
    model = network()
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), model(images()))
