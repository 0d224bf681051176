"""hk.nn.convert on existing models: weights kept, all or nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear


def network():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, bias=False))
    grouped = nn.Conv2d(4, 4, 1, groups=2)
    return nn.ModuleDict(
        {"features": features, "grouped": grouped, "head": nn.Linear(4, 2), "attention": nn.MultiheadAttention(4, 2)}
    )


def test_layers_keep_everything_but_their_class():
    model = network().double().eval()
    layer, head = model["features"][0], model["head"]
    weight, bias, state = layer.weight, layer.bias, copy.deepcopy(model.state_dict())
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    x = random((2, 3, 8, 8), torch.float64)
    before = model["features"](x)
    converted = hk.nn.convert(model, {"head": hk.Sanger(), "features.0": hk.WTA()})
    assert list(converted.items()) == [("features.0", layer), ("head", head)]
    assert model["features"][0] is layer and type(layer) is HebbianConv2d and type(head) is HebbianLinear
    assert layer.weight is weight and layer.bias is bias and not layer.training and layer.frozen.tolist() == [False] * 6
    assert not weight.requires_grad and bias.requires_grad
    assert layer.rule == hk.WTA() and head.rule == hk.Sanger()
    assert torch.equal(model["features"](x), before) and len(calls) == 2
    assert set(model.state_dict()) == {*state, "features.0.frozen", "head.frozen"}
    model.load_state_dict(state)
    with hk.learning(model, lr=0.1):
        model["features"](x)
    assert not torch.equal(weight, state["features.0.weight"])


def test_patterns_and_precedence():
    model = network()
    hk.nn.convert(model, {"features.*": hk.WTA(), "features.2": hk.Hebb()})
    assert [type(layer).__name__ for layer in model["features"]] == ["HebbianConv2d", "ReLU", "HebbianConv2d"]
    assert model["features"][0].rule == hk.WTA() and model["features"][2].rule == hk.Hebb()
    assert type(model["head"]) is nn.Linear


def test_a_hebbian_layer_only_changes_its_rule():
    model = network()
    hk.nn.convert(model, {"head": hk.WTA()})
    model["head"].frozen[1] = True
    hk.nn.convert(model, {"head": hk.Oja()})
    assert model["head"].rule == hk.Oja() and model["head"].frozen.tolist() == [False, True]


def test_a_model_that_is_one_layer_and_layers_that_are_shared():
    layer = nn.Linear(3, 2)
    assert hk.nn.convert(layer, {"": hk.WTA()}) == {"": layer}
    assert type(layer) is HebbianLinear
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert hk.nn.convert(model, {"2": hk.WTA()}) == {"0": shared}
    assert model[0] is model[2] is shared and shared.rule == hk.WTA()


OUT_PROJ = (
    '"attention.out_proj" must be called by the module that holds it, got the out_proj of a MultiheadAttention, which '
    "uses its weight only"
)


def is_a_layer(name, layer):
    return layer is not None


def is_no_layer(name, layer):
    return name == "features.1"  # a ReLU


REFUSED = [
    ("body", 'name must be a layer of the model ("features.0", "features.2", "grouped", "head", "attention.out_proj")'),
    ("features.1", '"features.1" must be a torch.nn.Linear, Conv1d, Conv2d or Conv3d, got ReLU'),
    ("features", '"features" must be a torch.nn.Linear, Conv1d, Conv2d or Conv3d, got Sequential'),
    ("attention.out_proj", OUT_PROJ),
    ("a*", OUT_PROJ),
    (nn.Linear, OUT_PROJ),
    (is_a_layer, OUT_PROJ),
    ("*.7", '"*.7" must match a Linear, Conv1d, Conv2d or Conv3d layer, got none'),
    (nn.Conv3d, "Conv3d must match a Linear, Conv1d, Conv2d or Conv3d layer, got none"),
    (nn.ReLU, "ReLU must match a Linear, Conv1d, Conv2d or Conv3d layer, got none"),
    (is_no_layer, "is_no_layer must match a Linear, Conv1d, Conv2d or Conv3d layer, got none"),
    (0, "name must be a name, a pattern, a type or a function, got 0"),
]


@pytest.mark.parametrize(
    ("name", "message"), REFUSED, ids=[getattr(case[0], "__name__", str(case[0])) for case in REFUSED]
)
def test_nothing_changes_when_one_name_is_wrong(name, message):
    model = network()
    with pytest.raises(ValueError) as error:
        hk.nn.convert(model, {"head": hk.WTA(), name: hk.WTA()})
    assert str(error.value).startswith(f"hebbkern.nn.convert: {message}")
    assert type(model["head"]) is nn.Linear and model["head"].weight.requires_grad


OWN = '"1" must have a weight that is a parameter of its own, got a weight computed from other tensors (%s)'
COMPUTED = {  # the older weight_norm keeps the class, as pruning does; a parametrization changes it
    "weight_norm": (torch.nn.utils.weight_norm, OWN % "WeightNorm"),
    "pruning": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), OWN % "L1Unstructured"),
    "parametrization": (
        torch.nn.utils.parametrizations.weight_norm,
        OWN.replace("from other tensors (%s)", "by torch.nn.utils.parametrize (_WeightNorm)"),
    ),
}


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_computed_weight_is_refused(computed):
    make, message = COMPUTED[computed]
    model = nn.Sequential(nn.Linear(3, 3), make(nn.Linear(3, 3)))
    kinds, names = [type(layer) for layer in model], list(model.state_dict())
    with pytest.raises(ValueError) as error:
        hk.nn.convert(model, {"0": hk.WTA(), "1": hk.WTA()})
    assert str(error.value) == f"hebbkern.nn.convert: {message}"
    assert [type(layer) for layer in model] == kinds and list(model.state_dict()) == names


def test_no_gradient_stays_behind():
    model = nn.Sequential(nn.Linear(3, 3))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.ones(2, 3)).sum().backward()
    hk.nn.convert(model, {"0": hk.WTA()})
    before = model[0].weight.clone()
    optimiser.step()
    assert torch.equal(model[0].weight, before)


def test_a_value_that_is_not_a_rule_is_refused():
    model = network()
    with pytest.raises(ValueError, match=r"hebbkern.nn.convert: rule must be a hebbkern rule .* got 'wta'"):
        hk.nn.convert(model, {"features.0": hk.WTA(), "head": "wta"})
    assert type(model["features"][0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("name", "rules", "size"),
    [
        ("resnet18", {"conv1": hk.WTA(), "layer1.*": hk.Sanger(), "fc": hk.Supervised()}, 64),
        ("alexnet", {"features.0": hk.WTA(), "features.3": hk.KrotovHopfield(patches="centred")}, 96),
    ],
)
def test_torchvision_models(name, rules, size):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model = getattr(models, name)().eval()
    x = random((2, 3, size, size), seed=1)
    with torch.no_grad():
        before, weights = model(x), copy.deepcopy(dict(model.named_parameters()))
        hk.nn.convert(model, rules)
        assert torch.equal(model(x), before)
        with hk.learning(model, lr=0.01, labels=torch.tensor([3, 5])):
            model(x)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, weights[name])}
    hebbian = {f"{name}.weight" for name, layer in model.named_modules() if hasattr(layer, "rule")}
    assert moved == hebbian and len(moved) == (6 if name == "resnet18" else 2)
