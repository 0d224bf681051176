"""Consolidation over time: state dicts, refused arguments, and errors that change nothing."""

import copy

import pytest
import torch
from torch import nn

from consolidating import (
    QUADRATIC,
    mixed,
    mlp,
    perturbed,
    same,
    task,
    train,
    weights,
)
from hebbkern.continual.consolidation import EWC, L2, MAS, SI, Consolidation, LwF, OnlineEWC


def test_weights_changed_before_backward_raise():
    model, method = mlp(), L2(mlp(), 1.0)
    method.after_task(model)
    penalty = method.penalty(perturbed(model))
    perturbed(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


@pytest.mark.parametrize("name", [*QUADRATIC, "LwF"])
def test_a_resumed_training_has_the_same_bits(name, tmp_path):
    """Saved to a checkpoint file in the middle of the second task."""
    checkpoint = pytest.importorskip("hebbkern.training.checkpoint", reason="no pytorch-ignite", exc_type=ImportError)
    make = (lambda: LwF(0.5, units="seen")) if name == "LwF" else (lambda: QUADRATIC[name](mlp(), 0.5))
    model, method = mlp(), make()
    train(model, method, task(0))
    method.after_task(model, task(0))
    train(model, method, task(1)[:2])
    keeper = checkpoint.Safetensors(tmp_path)
    keeper({"model": model.state_dict(), "method": method.state_dict()}, "checkpoint_1.pt")
    state = checkpoint.load(checkpoint.last_checkpoint(tmp_path))
    again, resumed = mlp(5), make()
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["method"])
    for net, one in ((model, method), (again, resumed)):
        train(net, one, task(1)[2:])
        one.after_task(net, task(1))
        train(net, one, task(2), add=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))
    a, b = (one.penalty(perturbed(mlp()), task(2)[0][0]) for one in (method, resumed))
    assert torch.equal(a, b) and method.tasks == resumed.tasks == 2
    before = resumed.penalty(mlp(), task(2)[0][0])
    with pytest.raises(ValueError, match=r"state must be of \w+, got that of other"):
        resumed.load_state_dict(state["method"] | {"method": "other"})
    if name != "LwF":
        with pytest.raises(ValueError, match=r"state must be of the parameters chosen here, got others: \['2.bias'\]"):
            QUADRATIC[name]([n for n, _ in mlp().named_parameters() if n != "2.bias"], 1).load_state_dict(
                state["method"]
            )
    assert torch.equal(before, resumed.penalty(mlp(), task(2)[0][0]))


@pytest.mark.parametrize("name", ["Finetune", *QUADRATIC, "LwF"])
def test_the_penalty_is_0_before_the_first_task(name):
    others = {"Finetune": Consolidation, "LwF": lambda: LwF(0.5)}
    model, method = mlp(), others[name]() if name in others else QUADRATIC[name](mlp(), 0.5)
    penalty = method.penalty(model, task(0)[0][0])
    assert penalty.shape == () and float(penalty) == 0 and not penalty.requires_grad
    method.add_gradient(model)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["EWC", "OnlineEWC", "MAS"])
def test_an_error_in_after_task_changes_nothing(name):
    model, method = mixed(), QUADRATIC[name](mixed(), 0.5)
    data = task(0, shape=(1, 4, 4))
    method.after_task(model, data)
    perturbed(model)
    state = copy.deepcopy(method.state_dict())
    nan = [*data, (torch.full((2, 1, 4, 4), torch.nan).double(), torch.zeros(2, dtype=torch.int64))]
    for given, message in [
        (nan, "importance must be finite to be remembered, got conv.weight with NaN"),
        (None, "data must be given to after_task, got None"),
        ([], "data must hold at least one sample, got none"),
        ([data[0][0]], r"data must give pairs \(x, labels\) of tensors, labels or None, got Tensor"),
        ([(data[0][0], data[0][1][:2])], r"labels must be one for each of 4 samples, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            method.after_task(model, given)
        assert same(method.state_dict(), state)
        assert model.training and not model.conv._forward_hooks and not model.first._forward_hooks
    with pytest.raises(ValueError, match=r"outputs must be \[B, K\] for x \[4, 1, 4, 4\], got \[4\]"):
        method.after_task(model, data, lambda model, x: model(x)[:, 0])
    assert same(method.state_dict(), state)


def test_weights_that_are_not_finite_are_not_remembered():
    model = mlp()
    methods = [L2(model, 1.0), SI(model, 1.0), LwF(1.0)]
    for method in methods:
        train(model, method, task(0))
        method.after_task(model)
        train(model, method, task(1))
    states = [copy.deepcopy(method.state_dict()) for method in methods]
    model[0].weight.data[0, 0] = torch.inf
    for method, state in zip(methods, states, strict=True):
        with pytest.raises(ValueError, match=r"must be finite to be remembered, got 0.weight with NaN or infinity"):
            method.after_task(model)
        assert same(method.state_dict(), state)


@pytest.mark.parametrize("name", [*QUADRATIC, "LwF"])
def test_another_model_is_refused(name):
    model, method = mlp(), LwF(1.0) if name == "LwF" else QUADRATIC[name](mlp(), 1.0)
    train(model, method, task(0))
    method.after_task(model, task(0))
    x = task(0)[0][0]
    for sizes, changed in (
        ((5, 7, 5, 4), r"2.weight .*\[6, 7\].*, got \[5, 7\]"),
        ((5, 8, 6, 4), r"(0|2).weight .*, got"),
    ):
        model, before = mlp(sizes=sizes), copy.deepcopy(method.state_dict())
        with pytest.raises(ValueError, match=f"model must have {changed}"):
            method.penalty(model, x)
        assert same(method.state_dict(), before)
    with pytest.raises(ValueError, match=r"model must have|parameters must be of the model"):
        method.penalty(nn.Linear(5, 4).double(), x)


def test_missing_labels_are_refused():
    x = task(0)[0][0]
    for method in (EWC(mlp(), 1.0, labels="data"), LwF(1.0, units="seen")):
        with pytest.raises(ValueError, match="data must have labels for"):
            method.after_task(mlp(), [(x, None)])
        assert method.tasks == 0


def test_calls_out_of_order_raise():
    model, method = mlp(), SI(mlp(), 1.0)
    with pytest.raises(RuntimeError, match="after_step must follow penalty or add_gradient"):
        method.after_step()
    with pytest.raises(ValueError, match="after_task of SI must follow at least one after_step, got none"):
        method.after_task(model)
    method.penalty(model)
    with pytest.raises(RuntimeError, match="after_step must find the gradients of the step, got none"):
        method.after_step()
    lwf = LwF(1.0)
    lwf.after_task(model)
    with pytest.raises(ValueError, match="x must be given to the penalty of LwF, got None"):
        lwf.penalty(model)
    with pytest.raises(ValueError, match=r"out must be \[4, 4\], got \[4, 3\]"):
        lwf.penalty(model, task(0)[0][0], torch.zeros(4, 3))


@pytest.mark.parametrize("strength", [-1, float("nan"), float("inf"), "1", True, None])
def test_wrong_strengths_are_refused(strength):
    for make in (*(lambda s, m=m: m(mlp(), s) for m in QUADRATIC.values()), LwF):
        with pytest.raises(ValueError, match="strength must be finite and at least 0, got"):
            make(strength)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OnlineEWC(mlp(), 1, decay=1.1), "decay must be from 0 to 1, got 1.1"),
        (lambda: SI(mlp(), 1, xi=0), "xi must be finite and above 0, got 0"),
        (lambda: EWC(mlp(), 1, labels="true"), 'labels must be "model" or "data", got \'true\''),
        (lambda: EWC(mlp(), 1, samples=0), "samples must be a whole number above 0, got 0"),
        (lambda: MAS(mlp(), 1, samples=1.5), "samples must be a whole number above 0, got 1.5"),
        (lambda: LwF(1, temperature=0), "temperature must be finite and above 0, got 0"),
        (lambda: LwF(1, units="old"), 'units must be "all", "seen" or "tasks"'),
        (lambda: EWC([], 1), "parameters must be a module or names of parameters, at least one, got"),
        (
            lambda: EWC("0.weight", 1),
            "parameters must be a module or names of parameters, at least one, got '0.weight'",
        ),
        (lambda: EWC(mlp().parameters(), 1), "parameters must be a module or names of parameters, at least one, got"),
        (lambda: EWC(["a", "b", "a"], 1), r"parameters must be named once each, got \['a'\] more often"),
        (lambda: EWC(["0.w"], 1).penalty(mlp()), "parameters must be of the model, got a name it lacks"),
        (lambda: EWC(["9.weight"], 1).after_task(mlp(), task(0)), "parameters must be of the model, got a name"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bfloat16_weights_are_remembered_in_float32():
    model = mlp().to(torch.bfloat16)
    data = [(x.bfloat16(), labels) for x, labels in task(0)]
    for kind in QUADRATIC.values():
        method = kind(model, 0.1)
        train(model, method, data, add=True)
        method.after_task(model, data)
        train(model, method, data)
        assert {t.dtype for t in method.anchor + method.importance} == {torch.float32}
        assert method.penalty(model).isfinite()


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(5, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x, head):
        return self.heads[head](torch.tanh(self.trunk(x)))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("name", ["Finetune", *QUADRATIC, "LwF"])
def test_one_loop_works_for_all_methods_with_a_head_for_each_task(name, add):
    torch.manual_seed(0)
    model = Heads().double()

    def side_by_side(model, x):
        return torch.cat([model(x, head) for head in range(3)], 1)

    others = {"Finetune": Consolidation, "LwF": lambda: LwF(0.5, outputs=side_by_side)}
    method = others[name]() if name in others else QUADRATIC[name](model, 0.5)
    for head in range(3):
        data = task(head, classes=2)
        train(model, method, data, add=add, outputs=lambda model, x, head=head: model(x, head))
        method.after_task(model, data, lambda model, x, head=head: model(x, head))
        if name in ("EWC", "OnlineEWC", "MAS"):
            of = dict(zip(method.names, method.importance, strict=True))
            assert [bool(of[f"heads.{i}.weight"].abs().max() > 0) for i in range(3)] == [i <= head for i in range(3)]
    assert method.tasks == 3
