"""HebbianLinear, HebbianConv2d and KWinners as torch layers: output, learning, state dict and errors."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear


def linear(**options):
    torch.manual_seed(0)
    return HebbianLinear(12, 5, rule=hk.WTA(), **options)


def convolution(**options):
    torch.manual_seed(0)
    return HebbianConv2d(3, 6, (3, 2), rule=hk.WTA(), **options)


def test_layers_are_torch_layers():
    torch.manual_seed(0)
    plain = nn.Linear(12, 5, bias=False)
    assert torch.equal(linear().weight, plain.weight)
    x = random((4, 12))
    assert torch.equal(linear()(x), plain(x))
    layer = convolution(stride=2, padding=1, bias=True)
    images = random((2, 3, 8, 8))
    assert torch.equal(layer(images), F.conv2d(images, layer.weight, layer.bias, 2, 1))
    assert isinstance(layer, nn.Conv2d) and isinstance(linear(), nn.Linear)
    assert linear().bias is None and layer.bias.requires_grad and not layer.weight.requires_grad
    assert "rule=WTA(" in repr(layer) and "in_features=12" in repr(linear())


def test_learn_is_a_step_of_the_rule():
    layer, x = linear(), random((7, 12), seed=3)
    layer.frozen[1] = True
    want = layer.weight.clone()
    layer.rule.step_(want, x, lr=0.1, frozen=layer.frozen)
    layer.learn(x, lr=0.1)
    assert torch.equal(layer.weight, want) and not torch.equal(want, linear().weight)
    assert torch.equal(want[1], linear().weight[1])


@pytest.mark.parametrize("shape", [(12,), (2, 3, 12)])
def test_linear_learns_from_any_leading_shape(shape):
    layer, want = linear(), linear()
    layer.learn(random(shape), lr=0.1)
    want.learn(random(shape).reshape(-1, 12), lr=0.1)
    assert torch.equal(layer.weight, want.weight)


def test_convolution_learns_from_a_single_image():
    layer, want, image = convolution(), convolution(), random((3, 8, 8))
    layer.learn(image, lr=0.1)
    want.learn(image[None], lr=0.1)
    assert torch.equal(layer.weight, want.weight)


def test_frozen_filters_stay():
    layer, before = convolution(), convolution().weight
    layer.frozen[:3] = True
    layer.rule = hk.Sanger()
    layer.learn(random((2, 3, 8, 8)), lr=0.1)
    assert (layer.weight == before).flatten(1).all(1).tolist() == [True] * 3 + [False] * 3


def test_supervised_layers_learn_from_labels():
    for layer, x in ((linear(), random((4, 12))), (convolution(), random((4, 3, 8, 8)))):
        layer.rule = hk.Supervised()
        before, labels = layer.weight.clone(), torch.tensor([2, 2, 0, 4])
        layer.learn(x, lr=0.1, labels=labels)
        moved = (layer.weight != before).flatten(1).any(1)
        assert moved.tolist() == [neuron in (0, 2, 4) for neuron in range(len(before))]
        with hk.learning(layer, lr=0.1, labels=labels):
            layer(x)
        with pytest.raises(ValueError, match="labels must be"):
            layer.learn(x, lr=0.1)


PADDED = [
    {"padding": "valid"},
    {"padding": "same"},
    {"padding": "same", "dilation": (1, 3)},
    {"padding": (2, 1), "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "replicate"},
    {"padding": (1, 0), "stride": (1, 2), "dilation": 2},
]


@pytest.mark.filterwarnings("ignore:Using padding:UserWarning")  # torch says that it copies the input
@pytest.mark.parametrize("options", PADDED, ids=str)
def test_convolution_learns_from_its_own_patches(options):
    """The Hebbian update is the product of output and patches, which autograd computes from the output."""
    layer = convolution(dtype=torch.float64, **options)
    layer.rule = hk.Hebb()
    weight, x = layer.weight.clone(), random((2, 3, 9, 8), torch.float64)
    probe = weight.clone().requires_grad_()
    y = copy.deepcopy(layer)._conv_forward(x, probe, None)
    (y**2).sum().backward()
    layer.learn(x, lr=0.1)
    want = weight + 0.1 * probe.grad / 2 / (y.numel() / len(weight))
    torch.testing.assert_close(layer.weight.detach(), want)


def test_inputs_get_gradients_and_weights_do_not():
    model = nn.Sequential(linear(), nn.ReLU(), nn.Linear(5, 2))
    x = random((4, 12)).requires_grad_()
    with hk.learning(model, lr=0.1):
        model(x).sum().backward()
    assert x.grad is not None and model[0].weight.grad is None and model[2].weight.grad is not None


def test_autograd_notices_a_changed_weight():
    layer, x = linear(), random((4, 12)).requires_grad_()
    y = layer(x)
    layer.learn(x, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("make", [linear, convolution])
def test_autocast_is_off_while_learning(backend, make):
    layer, want = make(), make()
    x = random((4, 12) if make is linear else (4, 3, 8, 8), torch.bfloat16)
    with torch.autocast(x.device.type, torch.bfloat16), hk.learning(layer, lr=0.1):
        y = layer(x)
    want.learn(x.float(), lr=0.1)
    assert torch.equal(layer.weight, want.weight) and y.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_a_dtype_that_forward_refuses_changes_nothing():
    layer = linear()
    before = layer.weight.clone()
    with hk.learning(layer, lr=0.1), pytest.raises(ValueError) as error:
        layer(random((4, 12), torch.float64))
    assert str(error.value) == "hebbkern.HebbianLinear: input must have the weight's dtype float32, got float64"
    assert torch.equal(layer.weight, before)


def test_state_dict_copy_and_pickle():
    layer = convolution()
    layer.frozen[[0, 3]] = True
    layer.learn(random((2, 3, 8, 8)), lr=0.1)
    assert set(layer.state_dict()) == {"weight", "frozen"}
    other = convolution()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight) and torch.equal(other.frozen, layer.frozen)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)):
        assert torch.equal(copied.weight, layer.weight) and torch.equal(copied.frozen, layer.frozen)
        assert copied.rule == layer.rule and copied.learning_state is None
    half = copy.deepcopy(layer).bfloat16()
    assert half.frozen.dtype == torch.bool
    half.learn(random((2, 3, 8, 8), torch.bfloat16), lr=0.1)


def test_a_plain_checkpoint_loads_and_freezes_no_neuron():
    plain, layer = nn.Conv2d(3, 6, (3, 2), bias=False), nn.Sequential(convolution())
    layer[0].frozen[2] = True
    state = {"0.weight": plain.weight}
    layer.load_state_dict(state)
    assert torch.equal(layer[0].weight, plain.weight) and not layer[0].frozen.any() and list(state) == ["0.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})


@pytest.mark.parametrize("make", [linear, convolution])
def test_a_layer_built_on_meta_has_no_frozen_neuron(make):
    """Its memory is uninitialised before `reset_parameters` or a checkpoint, which here comes from a plain layer."""
    for fill in ("reset_parameters", "load", "assign"):
        layer, drawn = make(device="meta"), make()
        if fill != "assign":
            layer.to_empty(device="cpu").frozen.fill_(True)  # as uninitialised memory may be
        torch.manual_seed(0)
        if fill == "reset_parameters":
            layer.reset_parameters()
        else:
            layer.load_state_dict({"weight": drawn.weight}, assign=fill == "assign")
        assert torch.equal(layer.weight, drawn.weight)
        assert layer.frozen.tolist() == [False] * len(drawn.weight) and not layer.weight.requires_grad


REFUSED = [
    (
        lambda: HebbianLinear(3, 4, rule="wta"),
        "HebbianLinear: rule must be a hebbkern rule such as hebbkern.WTA(), got",
    ),
    (lambda: HebbianLinear(3, 4, rule=hk.WTA), "HebbianLinear: rule must be a hebbkern rule"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[case[1] for case in REFUSED])
def test_layers_are_refused(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(f"hebbkern.{message}")


def test_labels_of_sequences():
    """x [B, T, N]: one label for all positions of a sample, or one for each position."""
    x, of_sample = random((4, 3, 8)), torch.tensor([0, 2, 1, -1])
    layer = HebbianLinear(8, 3, rule=hk.Supervised())
    start = layer.weight.clone()
    want = start.clone()
    hk.Supervised().step_(want, x.reshape(12, 8), lr=0.1, labels=torch.tensor([0, 0, 0, 2, 2, 2, 1, 1, 1, -1, -1, -1]))
    for labels in (of_sample, of_sample[:, None].expand(4, 3)):
        layer.weight.copy_(start)
        layer.learn(x, lr=0.1, labels=labels)
        assert torch.equal(layer.weight, want)
    layer.weight.copy_(start)
    with hk.learning(layer, lr=0.1, labels=of_sample):
        layer(x)
    assert torch.equal(layer.weight, want)
    with pytest.raises(ValueError, match=r"labels must be int64 or int32 of shape \[12\].* got int64 of shape \[3\]"):
        layer.learn(x, lr=0.1, labels=of_sample[:3])


def test_one_sample_and_its_label():
    layer = HebbianLinear(8, 3, rule=hk.Supervised())
    before = layer.weight.clone()
    layer.learn(torch.ones(8), lr=0.5, labels=torch.tensor(1))
    assert (layer.weight != before).any(1).tolist() == [False, True, False]
