"""Consolidation: each method against its paper's formula written out slowly, sample by sample, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from consolidating import (
    CLOSE,
    QUADRATIC,
    mixed,
    mlp,
    perturbed,
    slow_fisher,
    slow_mas,
    square,
    task,
    train,
    weights,
)
from hebbkern.continual.consolidation import EWC, L2, MAS, SI, LwF, OnlineEWC


@pytest.mark.parametrize("make, shape", [(mlp, (5,)), (mixed, (1, 4, 4))])
def test_the_empirical_fisher_sample_by_sample(make, shape):
    model, data = make(), task(1, shape=shape)
    method = EWC(model, 1.0, labels="data")
    method.after_task(model, data)
    for name, got, wanted in zip(method.names, method.importance, slow_fisher(model, data), strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
        assert wanted.abs().max() > 0 or name.startswith("unused")


@pytest.mark.parametrize("make, shape", [(mlp, (5,)), (mixed, (1, 4, 4))])
def test_the_sensitivity_of_mas_sample_by_sample(make, shape):
    model, data = make(), [(x, None) for x, _ in task(1, shape=shape)]
    method = MAS(model, 1.0)
    method.after_task(model, data)
    for got, wanted in zip(method.importance, slow_mas(model, data), strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


def test_linear_layers_need_no_per_sample_gradients(monkeypatch):
    """Importances are fast because layers that get one vector per sample need no per-sample gradients."""
    from hebbkern.continual.consolidation.sensitivity import Sensitivity

    asked = []
    general = Sensitivity._add_per_sample
    monkeypatch.setattr(
        Sensitivity, "_add_per_sample", lambda self, names, *rest: (asked.extend(names), general(self, names, *rest))
    )
    EWC(mlp(), 1.0).after_task(mlp(), task(1))
    assert asked == []
    EWC(mixed(), 1.0).after_task(mixed(), task(1, shape=(1, 4, 4)))
    kinds = {name.partition(".")[0] for name in asked}
    assert kinds == {"conv", "norm", "twice", "bare", "scale", "unused"}
    assert "scale.weight" in asked and "scale.bias" not in asked


def test_networks_that_vmap_cannot_run():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            return 3 * ctx.saved_tensors[0] ** 2 * g

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x):
            return Cube.apply(F.linear(x, self.layer.weight, self.layer.bias))

    model, data = Net().double(), task(1)
    method = EWC(model, 1.0, labels="data")
    method.after_task(model, data)
    torch.testing.assert_close(method.importance, slow_fisher(model, data), **CLOSE)


def test_the_true_fisher_is_the_expectation_over_the_models_labels():
    """Against Σ_y p(y) (∂ log p(y))² for one x and many draws, within five standard errors."""
    model, x, n = mlp(), task(1, n=1)[0][0], 40_000
    method = EWC(model, 1.0, seed=5)
    method.after_task(model, [(x.expand(n, -1), None)])
    p = model(x)[0].softmax(0).detach()
    each = [slow_fisher(model, [(x, torch.tensor([label]))]) for label in range(4)]
    for i, got in enumerate(method.importance):
        wanted = sum(p[label] * each[label][i] for label in range(4))
        variance = sum(p[label] * each[label][i] ** 2 for label in range(4)) - wanted**2
        assert ((got - wanted).abs() <= 5 * (variance / n).sqrt() + 1e-12).all()
    assert not torch.allclose(each[0][0], each[1][0])


def test_the_labels_are_drawn_by_seed_and_task_alone():
    model, data = mlp(), task(1)

    def fisher(seed, tasks=1):
        method = EWC(model, 1.0, seed=seed)
        for _ in range(tasks):
            before = method.importance
            method.after_task(model, data)
        return method.importance[0] - (before[0] if before else 0)

    state = torch.get_rng_state()
    first = fisher(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(77)
    assert torch.equal(first, fisher(1))
    assert not torch.allclose(first, fisher(2)) and not torch.allclose(first, fisher(1, tasks=2))


def test_ewc_is_a_sum_over_tasks():
    """λ/2 Σ_t Σ F_t (θ − θ*_t)² equals the one square and the constant that are stored."""
    model, method, terms = mlp(), EWC(mlp(), 3.0, labels="data"), []
    for seed in range(3):
        perturbed(model, seed)
        terms.append((slow_fisher(model, task(seed)), weights(model)))
        method.after_task(model, task(seed))
    perturbed(model, 8)
    wanted = 1.5 * sum(square(fisher, model, anchor) for fisher, anchor in terms)
    torch.testing.assert_close(method.penalty(model), wanted, **CLOSE)
    grads = [torch.autograd.grad(of, list(model.parameters())) for of in (method.penalty(model), wanted)]
    torch.testing.assert_close(*grads, **CLOSE)


def test_ewc_where_no_sample_moves_a_weight():
    """F = 0 in the first task, in both, and in the second only: never 0/0."""
    model, method = mlp(), EWC(mlp(), 2.0, labels="data")
    dead = [(torch.zeros_like(x), labels) for x, labels in task(1)]  # the first layer's weights see nothing
    terms = []
    for data in (dead, dead, task(2), dead):
        perturbed(model, len(terms))
        terms.append((slow_fisher(model, data), weights(model)))
        method.after_task(model, data)
    perturbed(model, 8)
    wanted = sum(square(fisher, model, anchor) for fisher, anchor in terms)
    torch.testing.assert_close(method.penalty(model), wanted, **CLOSE)
    assert terms[0][0][0].abs().max() == 0 < terms[2][0][0].abs().max()


@pytest.mark.parametrize("decay", [1.0, 0.7, 0.0])
def test_online_ewc_is_one_decaying_term(decay):
    model, method = mlp(), OnlineEWC(mlp(), 100, labels="data", decay=decay)
    fisher = [torch.zeros_like(p) for p in model.parameters()]
    for seed in range(3):
        perturbed(model, seed)
        fisher = [decay * old + new for old, new in zip(fisher, slow_fisher(model, task(seed)), strict=True)]
        anchor = weights(model)
        method.after_task(model, task(seed))
    perturbed(model)
    torch.testing.assert_close(method.penalty(model), 50 * decay * square(fisher, model, anchor), **CLOSE)


def test_mas_sums_over_tasks():
    model, method, omega = mlp(), MAS(mlp(), 0.1), [torch.zeros_like(p) for p in mlp().parameters()]
    for seed in range(3):
        perturbed(model, seed)
        omega = [old + new for old, new in zip(omega, slow_mas(model, task(seed)), strict=True)]
        anchor = weights(model)
        method.after_task(model, task(seed))
    perturbed(model)
    torch.testing.assert_close(method.penalty(model), 0.1 * square(omega, model, anchor), **CLOSE)


@pytest.mark.parametrize("kind", [MAS, EWC, OnlineEWC])
def test_without_per_sample_it_is_the_measure_of_the_mean_gradient(kind):
    model, data = mlp(), task(1)
    method = kind(model, 1.0, per_sample=False, **({} if kind is MAS else {"labels": "data"}))
    method.after_task(model, data)
    wanted = [torch.zeros_like(p) for p in model.parameters()]
    for x, labels in data:
        out = model(x)
        score = (out**2).sum(1) if kind is MAS else -F.cross_entropy(out, labels, reduction="none")
        gradients = torch.autograd.grad(score.mean(), list(model.parameters()))
        measure = torch.abs if kind is MAS else torch.square
        wanted = [a + measure(g) * len(x) / 11 for a, g in zip(wanted, gradients, strict=True)]
    torch.testing.assert_close(method.importance, wanted, **CLOSE)
    slow = slow_mas(model, data) if kind is MAS else slow_fisher(model, data)
    assert all((a <= b + 1e-12).all() for a, b in zip(wanted, slow, strict=True))  # Jensen


def test_l2_is_the_distance_to_the_last_task():
    model, method = mlp(), L2(mlp(), 0.2)
    for seed in range(2):
        anchor = weights(perturbed(model, seed))
        method.after_task(model)
    perturbed(model)
    ones = [torch.ones_like(p) for p in anchor]
    torch.testing.assert_close(method.penalty(model), 0.2 * square(ones, model, anchor), **CLOSE)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_si_is_the_path_integral_of_the_tasks_loss(add, momentum):
    """ω over three tasks, against a plain loop that computes the gradients of loss and penalty separately."""
    c, xi = 0.4, 0.01
    model, method = mlp(), SI(mlp(), c, xi=xi)
    other = copy.deepcopy(model)
    params, omega, anchor = list(other.parameters()), [torch.zeros_like(p) for p in other.parameters()], weights(other)
    for seed in range(3):
        train(model, method, task(seed), add=add, momentum=momentum)
        method.after_task(model)
        optimizer, path = torch.optim.SGD(params, 0.05, momentum=momentum), [torch.zeros_like(p) for p in params]
        for x, labels in task(seed):
            gradients = torch.autograd.grad(F.cross_entropy(other(x), labels), params)
            pulls = torch.autograd.grad(c * square(omega, other, anchor), params)
            before = weights(other)
            for p, g, pull in zip(params, gradients, pulls, strict=True):
                p.grad = g + pull
            optimizer.step()
            path = [w - g * (p.detach() - q) for w, g, p, q in zip(path, gradients, params, before, strict=True)]
        terms = zip(omega, path, params, anchor, strict=True)
        omega = [of + w / ((p.detach() - q) ** 2 + xi) for of, w, p, q in terms]
        anchor = weights(other)
        torch.testing.assert_close(weights(model), anchor, **CLOSE)
        torch.testing.assert_close(method.importance, omega, **CLOSE)
    perturbed(model), perturbed(other)
    torch.testing.assert_close(method.penalty(model), c * square(omega, other, anchor), **CLOSE)


def test_the_path_integral_is_the_decrease_of_the_loss():
    """Σ ω over all weights approaches the decrease of the loss for small steps (Zenke et al., equation 2)."""
    model, method, data = mlp(), SI(mlp(), 0.1), task(1, size=11)
    before = F.cross_entropy(model(data[0][0]), data[0][1]).item()
    train(model, method, data * 1000, lr=1e-3)
    fall = before - F.cross_entropy(model(data[0][0]), data[0][1]).item()
    assert fall > 0.1 and sum(float(path.sum()) for path in method.path) == pytest.approx(fall, rel=1e-3)


def test_si_with_accumulated_gradients_and_extra_penalties():
    """Two half batches per step, and a penalty computed without gradients during a step, change nothing."""
    model, method = mlp(), SI(mlp(), 0.5)
    other, plain = copy.deepcopy(model), SI(mlp(), 0.5)
    for seed in range(2):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for x, labels in task(seed, n=12):
            optimizer.zero_grad()
            for half in range(2):
                part = slice(2 * half, 2 * half + 2)
                ((F.cross_entropy(model(x[part]), labels[part]) + method.penalty(model)) / 2).backward()
            optimizer.step()
            with torch.no_grad():
                method.penalty(model)
            method.after_step()
        method.after_task(model)
        train(other, plain, task(seed, n=12))
        plain.after_task(other)
    torch.testing.assert_close(method.importance, plain.importance, **CLOSE)


def test_si_can_clip_importances_below_0():
    """Random steps increase and decrease the loss."""
    importances = []
    for clip in (False, True):
        model, method = mlp(), SI(mlp(), 0.5, clip=clip)
        (F.cross_entropy(model(task(0)[0][0]), task(0)[0][1]) + method.penalty(model)).backward()
        perturbed(model)
        method.after_step()
        method.after_task(model)
        importances.append(torch.cat([of.flatten() for of in method.importance]))
    assert (importances[0] < 0).any() and torch.equal(importances[0].clamp(min=0), importances[1])


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_gradient_of_the_penalty(name):
    """First and second derivative by autograd, scaled, and the gradient added in place."""
    model, method = mlp(), QUADRATIC[name](mlp(), 0.7)
    for seed in range(2):
        train(model, method, task(seed))
        method.after_task(model, task(seed))
    anchor, importance = method.anchor, method.importance
    perturbed(model)
    params = list(model.parameters())
    slow = method.scale * (square(importance, model, anchor) + method.offset)
    fast = method.penalty(model)
    torch.testing.assert_close(fast, slow, **CLOSE)
    wanted = torch.autograd.grad(3 * slow, params)
    torch.testing.assert_close(torch.autograd.grad(3 * fast, params, retain_graph=True), wanted, **CLOSE)
    twice = torch.autograd.grad(fast, params, create_graph=True)
    torch.testing.assert_close([g * 3 for g in twice], list(wanted), **CLOSE)
    ones = [torch.ones_like(p) for p in params]
    second = torch.autograd.grad(sum(g.sum() for g in twice), params)
    torch.testing.assert_close(
        list(second), [2 * method.scale * of * one for of, one in zip(importance, ones, strict=True)]
    )
    params[0].grad = None
    for p in params[1:]:
        p.grad = torch.ones_like(p)
    method.add_gradient(model)
    got = [params[0].grad, *(p.grad - 1 for p in params[1:])]
    torch.testing.assert_close(got, [g / 3 for g in wanted], **CLOSE)
    with torch.no_grad():
        assert not method.penalty(model).requires_grad


@pytest.mark.parametrize("units, groups", [("all", [[0, 1, 2, 3]]), ("seen", [[0, 1, 3]]), ("tasks", [[0, 3], [0, 1]])])
def test_lwf_is_the_divergence_at_temperature_from_the_old_network(units, groups):
    model, method = mlp(), LwF(0.5, units=units)
    for labels in ([0, 3, 0], [1, 1, 0]):
        perturbed(model, labels[0])
        method.after_task(model, [(task(1)[0][0][:3], torch.tensor(labels))])
    old = copy.deepcopy(model)
    perturbed(model)
    x = task(4)[0][0]
    wanted = 0
    for group in groups:
        for row in range(len(x)):
            p, q = (net(x)[row][group].div(2).softmax(0) for net in (old, model))
            wanted = wanted + 0.5 * 4 * (p.detach() * (p.detach() / q).log()).sum() / len(x)
    torch.testing.assert_close(method.penalty(model, x), wanted, **CLOSE)
    torch.testing.assert_close(method.penalty(model, x, model(x)), wanted, **CLOSE)
    params = list(model.parameters())
    wanted = torch.autograd.grad(wanted, params)
    torch.testing.assert_close(torch.autograd.grad(method.penalty(model, x), params), wanted, **CLOSE)
    method.add_gradient(model, x)
    torch.testing.assert_close([p.grad for p in params], list(wanted), **CLOSE)


def test_lwf_keeps_buffers_and_the_mode_of_the_model():
    model, method, x = mixed(), LwF(1.0), task(1, shape=(1, 4, 4))[0][0]
    model.conv.eval()
    method.after_task(model)
    old = copy.deepcopy(model).eval()(x)
    model.norm.running_mean += 1
    perturbed(model)
    out = model(x)
    statistics, state = model.norm.running_mean.clone(), torch.get_rng_state()
    penalty = method.penalty(model, x, out)
    assert torch.equal(statistics, model.norm.running_mean) and torch.equal(state, torch.get_rng_state())
    assert model.training and model.norm.training and not model.conv.training
    wanted = 4 * F.kl_div(F.log_softmax(out / 2, 1), F.softmax(old / 2, 1), reduction="batchmean")
    torch.testing.assert_close(penalty, wanted, **CLOSE)


def test_only_the_chosen_parameters_are_consolidated():
    """Slow weights only: their importance is as for the whole network, and the gradients of the others stay."""
    model, data = mlp(), task(1)
    slow = ["0.weight", "4.weight"]
    for parameters in (slow, [(name, None) for name in slow]):
        method = EWC(parameters, 1.0, labels="data")
        method.after_task(model, data)
        fisher = dict(zip([name for name, _ in model.named_parameters()], slow_fisher(model, data), strict=True))
        torch.testing.assert_close(method.importance, [fisher[name] for name in slow], **CLOSE)
    perturbed(model)
    method.add_gradient(model)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == slow
    model[2].weight.requires_grad_(False)
    assert "2.weight" not in MAS(model, 1.0).names and len(MAS(model, 1.0).names) == 5


@pytest.mark.parametrize("samples", [1, 4, 6, 11, 50])
def test_the_first_samples_count(samples):
    model, data = mlp(), task(1)
    method = EWC(model, 1.0, labels="data", samples=samples)
    method.after_task(model, data)
    x, labels = (torch.cat(part)[:samples] for part in zip(*data, strict=True))
    torch.testing.assert_close(method.importance, slow_fisher(model, [(x, labels)]), **CLOSE)


def test_batches_of_any_size_give_the_same(monkeypatch):
    monkeypatch.setattr("hebbkern.continual.consolidation.sensitivity.MAX_SAMPLES", 3)
    monkeypatch.setattr("hebbkern.continual.consolidation.sensitivity.MAX_ENTRIES", 1)
    model, importances = mixed(), []
    for size in (1, 4, 11):
        method = EWC(model, 1.0, seed=2)
        method.after_task(model, task(1, shape=(1, 4, 4), size=size))
        importances.append(method.importance)
    torch.testing.assert_close(importances[0], importances[1], **CLOSE)
    torch.testing.assert_close(importances[0], importances[2], **CLOSE)


@pytest.mark.parametrize("make", [lambda model: L2(model, 1.0), lambda model: MAS(model, 0.5)])
def test_penalties_of_two_models_keep_their_gradients(make):
    """The second penalty is computed before the first is differentiated."""
    first, data = mlp(), task(1)
    method = make(first)
    method.after_task(first, data)
    second = copy.deepcopy(first)
    perturbed(first), perturbed(second, seed=3)
    want = torch.autograd.grad(method.penalty(first), list(first.parameters()))
    one, two = method.penalty(first), method.penalty(second)
    got = torch.autograd.grad(one, list(first.parameters()))
    assert two.requires_grad
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
