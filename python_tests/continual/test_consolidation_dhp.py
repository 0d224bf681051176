"""Consolidation of a network with a DHPLinear head: of the slow weights, and not of alpha, eta and the trace."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from consolidating import CLOSE, perturbed, task
from hebbkern.continual.consolidation import EWC, MAS, SI, OnlineEWC
from hebbkern.nn import DHPLinear

SLOW = ["body.weight", "body.bias", "head.weight", "head.bias"]
METHODS = {
    "EWC": lambda names: EWC(names, 0.7, labels="data"),
    "OnlineEWC": lambda names: OnlineEWC(names, 0.7, labels="data"),
    "SI": lambda names: SI(names, 0.7, xi=0.01),
    "MAS": lambda names: MAS(names, 0.7),
}


class Plastic(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 6), DHPLinear(6, 4, bias=True, eta=0.2, **options)

    def forward(self, x, labels=None):
        return self.head(torch.tanh(self.body(x)), labels)


def plastic(**options):
    """A network after a forward pass of each batch, so that the trace is not 0."""
    model = perturbed(Plastic(**options).double())
    for x, labels in task(7):
        model(x, labels)
    return model


def answer(model, weights, x):
    """The output of the network for one sample, as a formula of its slow weights."""
    body, bias, head, shift = weights
    return (head + model.head.alpha.detach() * model.head.trace) @ torch.tanh(body @ x + bias) + shift


def each_sample(model, data, score, measure):
    weights = [model.get_parameter(name).detach().clone().requires_grad_() for name in SLOW]
    total, number = [torch.zeros_like(weight) for weight in weights], 0
    for x, labels in data:
        for row, label in zip(x, labels, strict=True):
            gradients = torch.autograd.grad(score(answer(model, weights, row), label), weights)
            total, number = [a + measure(g) for a, g in zip(total, gradients, strict=True)], number + 1
    return [a / number for a in total]


def learn(model, method, data):
    """Learns a task; returns the path integral −Σ g Δθ of the slow weights, g the gradient of the loss alone."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    slow = [model.get_parameter(name) for name in SLOW]
    path = [torch.zeros_like(weight) for weight in slow]
    for x, labels in data:
        loss = F.cross_entropy(model(x, labels), labels)
        gradients = torch.autograd.grad(loss, slow, retain_graph=True)
        before = [weight.detach().clone() for weight in slow]
        optimizer.zero_grad()
        loss.backward()
        method.add_gradient(model)
        optimizer.step()
        method.after_step()
        path = [w - g * (p.detach() - q) for w, g, p, q in zip(path, gradients, slow, before, strict=True)]
    return path


@pytest.mark.parametrize("per_connection", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_importances_of_the_slow_weights(name, per_connection):
    model, data = plastic(per_connection=per_connection), task(1)
    method = METHODS[name](SLOW)
    start = [model.get_parameter(one).detach().clone() for one in SLOW]
    path = learn(model, method, data)
    trace = model.head.trace.clone()
    method.after_task(model, data)
    assert torch.equal(model.head.trace, trace) and model.training and model.head.training
    if name == "SI":
        moved = zip(path, map(model.get_parameter, SLOW), start, strict=True)
        wanted = [w / ((p.detach() - q) ** 2 + 0.01) for w, p, q in moved]
    elif name == "MAS":
        wanted = each_sample(model, data, lambda out, _: out.square().sum(), torch.abs)
    else:
        wanted = each_sample(model, data, lambda out, label: out.log_softmax(0)[label], torch.square)
    torch.testing.assert_close(method.importance, wanted, **CLOSE)
    assert all(of.abs().max() > 0 for of in wanted)


@pytest.mark.parametrize("name", METHODS)
def test_alpha_and_eta_are_free(name):
    """Only the slow weights get a gradient of the penalty, however much the others have changed."""
    model = plastic()
    method = METHODS[name](SLOW)
    for seed in range(2):
        learn(model, method, task(seed))
        method.after_task(model, task(seed))
    penalty = method.penalty(perturbed(model))
    parameters = dict(model.named_parameters())
    assert set(parameters) - set(SLOW) == {"head.alpha", "head.eta"}
    gradients = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
    held = {one: g for one, g in zip(parameters, gradients, strict=True) if g is not None}
    assert set(held) == set(SLOW) and all(g.abs().max() > 0 for g in held.values())
    before = penalty.item()
    with torch.no_grad():
        model.head.alpha += 1
        model.head.eta += 1
        model.head.trace += 1
    assert method.penalty(model).item() == before
    model.head.alpha.grad, model.head.eta.grad = torch.ones_like(model.head.alpha), None
    method.add_gradient(model)
    assert model.head.alpha.grad.eq(1).all() and model.head.eta.grad is None
    assert set(method.state_dict()["importance"]) == set(SLOW)
