"""hk.nn.revert: Hebbian layers become the plain torch layers they were, all or nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear


def network():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, bias=False))
    return nn.Sequential(nn.ModuleDict({"features": features})["features"], nn.Flatten(), nn.Linear(36, 2))


RULES = {"0.*": hk.WTA(), "2": hk.Sanger()}


def images():
    return random((2, 3, 8, 8), seed=1)


def test_convert_and_revert_leave_the_model_as_it_was():
    model = network().eval()
    model[0][2].weight.requires_grad_(False)
    model[0][0].train()
    calls = []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    layers, parameters = list(model.modules()), list(model.parameters())
    kinds = [type(layer) for layer in layers]
    attributes = [set(vars(layer)) for layer in layers]
    required = [parameter.requires_grad for parameter in parameters]
    state, before = copy.deepcopy(model.state_dict()), model(images())
    hk.nn.convert(model, RULES)
    assert hk.nn.revert(model) is model
    assert [type(layer) for layer in model.modules()] == kinds
    assert all(a is b for a, b in zip(model.modules(), layers, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [parameter.requires_grad for parameter in parameters] == required == [True, True, False, True, True]
    assert [set(vars(layer)) for layer in layers] == attributes
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(images()), before) and len(calls) == 2
    assert model[0][0].training and not model[2].training
    model.load_state_dict(state)


def test_what_was_learned_stays():
    model = network()
    hk.nn.convert(model, RULES)
    with hk.learning(model, lr=0.1):
        model(images())
    weights = [parameter.clone() for parameter in model.parameters()]
    want = model(images())
    hk.nn.revert(model)
    assert all(map(torch.equal, model.parameters(), weights)) and torch.equal(model(images()), want)
    assert not torch.equal(weights[0], network()[0][0].weight)
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="model must hold a Hebbian layer"):
        hk.learning(model, lr=0.1)


def test_what_resnet18_has_learnt_loads_into_a_plain_resnet18():
    """The Hebbian state dict has entries `frozen`, that of a reverted copy has not; the forward pass stays."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    plain = models.resnet18().eval()
    rules, x = (
        {"conv1": hk.WTA(patches="centred"), "layer1.0.*": hk.WTA(), "fc": hk.Supervised()},
        random((2, 3, 32, 32)),
    )
    model = copy.deepcopy(plain)
    hk.nn.convert(model, rules)
    with torch.no_grad(), hk.learning(model, lr=0.01, labels=torch.tensor([3, 5])):
        model(x)
    model.layer1[0].conv1.frozen[5] = True
    assert not torch.equal(plain(x), model(x))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(model.state_dict())
    plain.load_state_dict(hk.nn.revert(copy.deepcopy(model)).state_dict())
    assert torch.equal(plain(x), model(x))
    again = copy.deepcopy(plain)
    hk.nn.convert(again, rules)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x)) and again.layer1[0].conv1.frozen.nonzero().tolist() == [[5]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # quantize_dynamic moves to torchao
def test_a_reverted_model_is_quantised():
    """`quantize_dynamic` looks for torch.nn.Linear itself and passes a HebbianLinear over."""
    model = nn.Sequential(HebbianLinear(6, 5, rule=hk.WTA()), nn.ReLU(), nn.Linear(5, 2))
    quantised = torch.ao.quantization.quantize_dynamic(hk.nn.revert(copy.deepcopy(model)), {nn.Linear})
    kind = torch.ao.nn.quantized.dynamic.Linear
    assert [isinstance(layer, kind) for layer in quantised] == [True, False, True]
    x = random((3, 6))
    torch.testing.assert_close(quantised(x), model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_reverts(travel):
    model = network()
    model[2].weight.requires_grad_(False)
    hk.nn.convert(model, RULES)
    model = hk.nn.revert(travel(model))
    assert type(model[2]) is nn.Linear and not model[2].weight.requires_grad and model[0][0].weight.requires_grad


def test_layers_constructed_as_hebbian_ones():
    model = nn.Sequential(
        HebbianConv2d(3, 4, 3, stride=2, rule=hk.Hebb()), HebbianLinear(3, 2, bias=True, rule=hk.WTA())
    )
    model[0].frozen[1] = True
    hk.nn.revert(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Linear]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert set(model.state_dict()) == {"0.weight", "1.weight", "1.bias"} and not hasattr(model[0], "rule")


def test_a_layer_that_was_converted_twice():
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    for required in (False, True):
        layer.weight.requires_grad_(required)
        for rule in (hk.WTA(), hk.Oja()):
            hk.nn.convert(layer, {"": rule})
        assert hk.nn.revert(layer) is layer
        assert type(layer) is nn.Linear and layer.weight.requires_grad is required


def test_layers_that_share_a_weight_and_a_layer_in_two_places():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Linear(3, 3), shared)
    model[1].weight = shared.weight
    hk.nn.convert(model, {"*": hk.WTA()})
    hk.nn.revert(model)
    assert [type(layer) for layer in model] == [nn.Linear] * 3 and shared.weight.requires_grad
    assert model[1].weight is shared.weight


def test_no_gradient_stays_behind():
    layer = HebbianLinear(3, 2, rule=hk.Hebb())
    layer.learn(torch.ones(4, 3), into="grad")
    assert layer.weight.grad is not None and hk.nn.revert(layer).weight.grad is None


def test_other_layers_stay_as_they_are():
    model = nn.Sequential(hk.continual.HebbCL(4, 3), hk.nn.DHPLinear(3, 2), nn.Linear(2, 2))
    kinds = [type(layer) for layer in model]
    assert hk.nn.revert(model) is model and [type(layer) for layer in model] == kinds


def test_a_compiled_model_reverts():
    torch.compiler.reset()
    model = network()
    hk.nn.convert(model, RULES)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = compiled(images())
    hk.nn.revert(compiled)
    assert type(model[2]) is nn.Linear
    torch.testing.assert_close(compiled(images()), want)


class Own(HebbianLinear):
    pass


def computed():
    model = nn.Sequential(HebbianLinear(3, 3, rule=hk.WTA()), HebbianLinear(3, 3, rule=hk.WTA()))
    nn.utils.parametrizations.weight_norm(model[1])
    return model


REFUSED = {
    "subclass": (
        lambda: nn.Sequential(HebbianLinear(3, 3, rule=hk.WTA()), Own(3, 3, rule=hk.WTA())),
        '"1" must be a layer of hebbkern.nn or a converted one, got Own',
    ),
    "parametrization": (
        computed,
        '"1" must have a weight that is a parameter of its own, got a weight computed by torch.nn.utils.parametrize '
        "(_WeightNorm)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_changes_when_one_layer_is_refused(case):
    make, message = REFUSED[case]
    model = make()
    kinds, names = [type(layer) for layer in model], list(model.state_dict())
    with pytest.raises(ValueError) as error:
        hk.nn.revert(model)
    assert str(error.value) == f"hebbkern.nn.revert: {message}"
    assert [type(layer) for layer in model] == kinds and list(model.state_dict()) == names
    assert model[0].rule == hk.WTA() and not model[0].weight.requires_grad


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_a_model_that_is_learning_is_refused():
    model = network()
    hk.nn.convert(model, RULES)
    with hk.learning(model, lr={"2": 0.1}), pytest.raises(ValueError) as error:
        hk.nn.revert(model)
    assert str(error.value) == (
        'hebbkern.nn.revert: "2" must not be inside hebbkern.learning, got a layer that is learning'
    )
    assert type(model[0][0]) is HebbianConv2d and type(model[2]) is HebbianLinear
    hk.nn.revert(model)
    with pytest.raises(ValueError, match=r"hebbkern.nn.revert: model must be a torch.nn.Module, got list"):
        hk.nn.revert([model])
