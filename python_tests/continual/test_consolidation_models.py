"""Consolidation of models that change between tasks: wrapped, partly frozen, with a larger head, in mixed precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hebbkern as hk
from consolidating import CLOSE, QUADRATIC, mlp, perturbed, same, task, train
from hebbkern.continual.consolidation import EWC, L2, LwF


@pytest.fixture
def alone():
    """A group of this process alone, as DistributedDataParallel needs one."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


def with_a_compiled_part(model):
    model[0] = compiled(model[0])
    return model


DDP = nn.parallel.DistributedDataParallel
WRAPPERS = {
    "compiled": compiled,
    "ddp": DDP,
    "compiled ddp": lambda model: compiled(DDP(model)),
    "ddp of compiled": lambda model: DDP(compiled(model)),
    "part": with_a_compiled_part,
}


def made(name, model, by_name):
    """The method of this name, for all parameters of a model, chosen by the model or by the names that it has."""
    chosen = [parameter for parameter, _ in model.named_parameters()] if by_name else model
    return LwF(1.0) if name == "LwF" else QUADRATIC[name](chosen, 0.5)


def with_prefixes(tensors):
    return {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}


def close(a, b):
    """Asserts that two nested states agree: a compiled model computes in another order."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            close(value, b[key])
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, b[key], **CLOSE)
        else:
            assert value == pytest.approx(b[key])


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", [*QUADRATIC, "LwF"])
@pytest.mark.parametrize("by_name", [False, True], ids=["module", "names"])
def test_the_state_of_a_wrapped_model_is_that_of_the_plain_one(name, wrap, by_name, alone):
    torch.compiler.reset()
    plain, model = mlp(), WRAPPERS[wrap](mlp())
    model(task(0)[0][0])  # compiled before `after_task` adds its hooks
    want, method = (made(name, each, by_name) for each in (plain, model))
    for net, one in ((plain, want), (model, method)):
        if name == "SI":
            train(net, one, task(0))
        one.after_task(net, task(0))
    close(method.state_dict(), want.state_dict())
    x, loaded = task(1)[0][0], made(name, model, by_name)
    loaded.load_state_dict(want.state_dict())
    torch.testing.assert_close(loaded.penalty(model, x), want.penalty(plain, x), **CLOSE)
    state = want.state_dict()
    prefixed = {key: with_prefixes(value) if isinstance(value, dict) else value for key, value in state.items()}
    loaded.load_state_dict(prefixed)
    assert same(loaded.state_dict(), state)


@pytest.mark.parametrize("name", [*QUADRATIC])
def test_a_layer_frozen_after_the_task_does_not_move(name):
    """Nor does its importance get lost: it is computed again at the end of the next task, without a gradient."""
    model, method = mlp(), QUADRATIC[name](mlp(), 0.5)
    train(model, method, task(0))
    method.after_task(model, task(0))
    perturbed(model)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    train(model, method, task(1), add=True)
    assert all(map(torch.equal, model[0].state_dict().values(), before.values())) and model[0].weight.grad is None
    assert model[2].weight.grad is not None
    method.after_task(model, task(1))
    assert not model[0].weight.requires_grad and method.tasks == 2
    if name == "MAS":
        assert (method.importance[0] > 0).any()


def test_hebbian_weights_that_were_chosen_get_the_gradient():
    """They require no gradient, but with into="grad" an optimizer steps them."""
    layer = hk.nn.HebbianLinear(5, 3, rule=hk.WTA())
    method = L2(["weight"], 0.5)
    method.after_task(layer)
    anchor = layer.weight.clone()
    perturbed(layer)
    method.add_gradient(layer)
    torch.testing.assert_close(layer.weight.grad, layer.weight.detach() - anchor)


@pytest.mark.parametrize("name", ["Finetune", *QUADRATIC, "LwF"])
def test_the_penalty_is_not_divided_by_the_scale_of_a_loss(name):
    """Gradients under a GradScaler, unscaled, are those of loss + penalty; the scale is 2**16."""
    x, labels = task(1)[0]
    grads = {}
    for scaled in (False, True, "unscaled"):
        model, scaler = mlp(), torch.amp.GradScaler("cpu")
        others = {"Finetune": hk.continual.Consolidation, "LwF": lambda: LwF(0.5)}
        method = others[name]() if name in others else QUADRATIC[name](model, 0.5)
        train(model, method, task(0))
        method.after_task(model, task(0))
        perturbed(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        if not scaled:
            loss.backward()
            method.add_gradient(model, x)
        elif scaled == "unscaled":
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            with pytest.raises(RuntimeError, match=r"scaler must be None after scaler.unscale_"):
                method.add_gradient(model, x, scaler=scaler) if name != "Finetune" else refuse(model, scaler)
            method.add_gradient(model, x)
        else:
            scaler.scale(loss).backward()
            method.add_gradient(model, x, scaler=scaler)
            scaler.unscale_(optimizer)
        grads[scaled] = [parameter.grad for parameter in model.parameters()]
    for each in (True, "unscaled"):
        for got, want in zip(grads[each], grads[False], strict=True):
            torch.testing.assert_close(got, want, **CLOSE)


def refuse(model, scaler):
    method = L2(model, 1.0)
    method.after_task(model)
    method.add_gradient(model, scaler=scaler)


def test_only_a_scaler_is_a_scaler():
    model, method = mlp(), L2(mlp(), 1.0)
    method.after_task(model)
    with pytest.raises(ValueError, match=r"scaler must be a torch.amp.GradScaler or None, got float"):
        method.add_gradient(model, scaler=2.0)


@pytest.mark.parametrize("name", [*QUADRATIC])
def test_importances_grow_with_the_head(name):
    """The rows of the old classes are held as before; those of the new ones are free until the task ends."""
    model, method = mlp(), QUADRATIC[name](mlp(), 0.5)
    train(model, method, task(0))
    method.after_task(model, task(0))
    before, head = method.state_dict(), model[4]
    model[4] = nn.Linear(6, 7).double()
    with torch.no_grad():
        model[4].weight[:4], model[4].bias[:4] = head.weight, head.bias
    saved = copy.deepcopy(method)
    for one in (method, saved):  # by add_gradient and by penalty
        one.strength = 0.5
    perturbed(model)
    method.add_gradient(model)
    for parameter, rows, key in ((model[4].weight, 4, "4.weight"), (model[4].bias, 4, "4.bias")):
        omega, anchor = before["importance"][key], before["anchor"][key]
        want = 2 * method.scale * omega * (parameter.detach()[:rows] - anchor)
        torch.testing.assert_close(parameter.grad[:rows], want, **CLOSE)
        assert not parameter.grad[rows:].any() and parameter.grad.shape == parameter.shape
        assert not method.state_dict()["importance"][key][rows:].any()
    value = saved.penalty(model)
    want = sum(
        (before["importance"][n] * (p[: len(before["anchor"][n])] - before["anchor"][n]).square()).sum()
        for n, p in model.named_parameters()
    )
    torch.testing.assert_close(value, saved.scale * (want + saved.offset), **CLOSE)
    model.zero_grad()
    train(model, method, task(1, classes=7), add=True)
    method.after_task(model, task(1, classes=7))
    assert method.state_dict()["importance"]["4.weight"].shape == (7, 6) and method.tasks == 2
    if name != "SI":
        assert method.state_dict()["importance"]["4.weight"][4:].any()


def test_a_head_grows_within_the_first_task_of_synaptic_intelligence():
    model, method = mlp(), QUADRATIC["SI"](mlp(), 0.5)
    train(model, method, task(0), add=True)
    path = method.state_dict()["path"]["4.bias"].clone()
    model[4] = nn.Linear(6, 7).double()
    method.penalty(model)
    assert torch.equal(method.state_dict()["path"]["4.bias"], torch.cat([path, path.new_zeros(3)]))
    train(model, method, task(0), add=True)
    method.after_task(model)
    assert method.importance[-1].shape == (7,)


def test_ewc_of_a_grown_head_is_the_sum_over_its_tasks():
    """Kirkpatrick's equation 3 over two tasks, of which the first had fewer classes."""
    model, method, single = mlp(), EWC(mlp(), 0.5), []
    for number, classes in enumerate((4, 6)):
        if number:
            model[4] = nn.Linear(6, classes).double()
        own = EWC(model, 0.5, seed=0)
        own.tasks = number
        for one in (method, own):
            one.after_task(model, task(number, classes=classes))
        single.append(own.state_dict())
        perturbed(model)
    want = 0.0
    for state in single:
        for name, parameter in model.named_parameters():
            rows = len(state["anchor"][name])
            want += (state["importance"][name] * (parameter[:rows] - state["anchor"][name]).square()).sum()
    torch.testing.assert_close(method.penalty(model), 0.25 * want, **CLOSE)
