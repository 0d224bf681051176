"""hk.nn.convert by type and by function, of subclasses and of lazy layers: converted, or refused by name."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import copies
import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv1d, HebbianConv2d, HebbianConv3d, HebbianLinear
from hebbkern.nn.layers import HebbianLayer


class Labelled(nn.Conv2d):
    """A subclass whose forward pass is torch's."""

    name = "lazy"

    def __init__(self, *arguments, name="stem", **options):
        super().__init__(*arguments, **options)
        self.name = name

    def extra_repr(self):
        return f"{self.name}, {super().extra_repr()}"

    def shout(self):
        return self.name.upper()


class Same(nn.Conv2d):
    """As timm's Conv2dSame: pads by the size of the input."""

    def forward(self, input):
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / weight.std(), bias)


class LowRank(nn.Linear):
    """As a LoRA layer that is a Linear itself."""

    def forward(self, input):
        return super().forward(input) + input.mean()


class Ruled(nn.Linear):
    rule = "of grammar"


class LazyLabelled(nn.LazyConv2d):
    cls_to_become = Labelled


class LazySame(nn.LazyConv2d):
    cls_to_become = Same


def mobile():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv1d(6, 4, 1),
        Labelled(4, 4, 3, groups=2),
        nn.Linear(4, 2),
    )


def hebbian(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, HebbianLayer)]


def is_grouped(name, layer):
    return getattr(layer, "groups", 1) > 1


def is_odd(name, layer):
    return int(name) % 2


def is_any(name, layer):
    return True


def named(key):
    return getattr(key, "__name__", str(key))


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (nn.Conv2d, ["0", "1", "3"]),
        (Labelled, ["3"]),
        (nn.Linear, ["4"]),
        (nn.Module, ["0", "1", "2", "3", "4"]),
        (is_grouped, ["1", "3"]),
        (is_odd, ["1", "3"]),
        ("[02]", ["0", "2"]),
        ("*", ["0", "1", "2", "3", "4"]),
    ],
    ids=named,
)
def test_layers_are_chosen_by_type_function_and_pattern(key, names):
    model = mobile()
    converted = hk.nn.convert(model, {key: hk.WTA()})
    assert list(converted) == hebbian(model) == names
    assert all(converted[name] is model[int(name)] for name in names)


def test_later_entries_override_earlier_ones_of_any_kind():
    model = mobile()
    depthwise = hk.Sanger()
    rules = {nn.Conv2d: hk.WTA(), (lambda name, layer: getattr(layer, "groups", 1) == 6): depthwise, "3": hk.Oja()}
    converted = hk.nn.convert(model, rules)
    assert [layer.rule for layer in converted.values()] == [hk.WTA(), depthwise, hk.Oja()]
    assert list(hk.nn.convert(model, {HebbianConv2d: hk.Hebb()})) == ["0", "1", "3"] and model[3].rule == hk.Hebb()
    assert hk.nn.convert(model, {}) == {}


def test_a_subclass_stays_one():
    model, x = nn.Sequential(Labelled(3, 4, 3, name="first")), random((2, 3, 6, 6))
    layer, before, twin = model[0], model(x), HebbianConv2d(3, 4, 3, bias=True, rule=hk.WTA())
    twin.load_state_dict(layer.state_dict())
    assert hk.nn.convert(model, {"0": hk.WTA()}) == {"0": layer}
    assert (
        isinstance(layer, Labelled) and isinstance(layer, HebbianConv2d) and type(layer).__name__ == "HebbianLabelled"
    )
    assert layer.shout() == "FIRST" and "HebbianLabelled(first, 3, 4" in repr(model) and "rule=WTA(" in repr(model)
    assert torch.equal(model(x), before)
    for each in (model, twin):
        with hk.learning(each, lr=0.1, strict=True):
            each(x)
    assert torch.equal(layer.weight, twin.weight)
    hk.nn.revert(model)
    assert type(layer) is Labelled and layer.weight.requires_grad and list(model.state_dict()) == ["0.weight", "0.bias"]
    assert torch.equal(model(x), twin(x))


COPIES = copies.COPIES | {"old pickle": lambda model: pickle.loads(pickle.dumps(model, protocol=0))}


@pytest.mark.parametrize("travel", COPIES.values(), ids=COPIES)
def test_a_converted_subclass_travels(travel):
    model = nn.Sequential(Labelled(3, 4, 3))
    hk.nn.convert(model, {Labelled: hk.WTA()})
    model[0].frozen[1] = True
    twin, x = travel(model), random((2, 3, 6, 6))
    assert type(twin[0]) is type(model[0]) and twin[0] is not model[0]
    assert twin[0].rule == hk.WTA() and twin[0].frozen.tolist() == [False, True, False, False]
    for each in (model, twin):
        each[0].learn(x, lr=0.1)
    assert torch.equal(twin[0].weight, model[0].weight)
    assert type(hk.nn.revert(twin)[0]) is Labelled and twin[0].shout() == "STEM"


def test_a_converted_subclass_is_loaded_by_another_process(tmp_path):
    """Where no layer of its class has been converted: the pickle says how its class is made."""
    layer = nn.modules.linear.NonDynamicallyQuantizableLinear(3, 2)
    hk.nn.convert(layer, {"": hk.WTA()})
    text = pickle.dumps(layer)
    assert b"new_layer" in text and b"HebbianNonDynamicallyQuantizableLinear" not in text
    from hebbkern.nn.conversion import hebbian_class

    known = type(layer)
    hebbian_class.cache_clear()  # as in a new process
    loaded = pickle.loads(text)
    assert type(loaded) is not known and type(loaded).__name__ == known.__name__ and loaded.rule == hk.WTA()
    assert type(hk.nn.revert(loaded)) is nn.modules.linear.NonDynamicallyQuantizableLinear


@pytest.mark.slow(8)
def test_a_converted_subclass_compiles():
    torch.compiler.reset()
    model, twin = (nn.Sequential(Labelled(4, 4, 3, groups=2)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        hk.nn.convert(each, {"0": hk.WTA()})
    compiled, x = torch.compile(model, fullgraph=True, backend="aot_eager"), random((2, 4, 6, 6))
    for each, call in ((model, compiled), (twin, twin)):
        with hk.learning(each, lr=0.1):
            call(x)
    torch.testing.assert_close(model[0].weight, twin[0].weight)


def set_forward(layer):
    layer.forward = lambda input: input
    return layer


FORWARD = "must have the forward pass of torch.nn."
REFUSED = {
    "its own padding": (lambda: Same(3, 3, 3), f"{FORWARD}Conv2d, got Same.forward"),
    "its own weight": (lambda: Standardised(3, 3, 3), f"{FORWARD}Conv2d, got Standardised._conv_forward"),
    "low rank": (lambda: LowRank(3, 3), f"{FORWARD}Linear, got LowRank.forward"),
    "a forward that was set": (
        lambda: set_forward(nn.Linear(3, 3)),
        f"{FORWARD}Linear, got a forward that was set on the layer",
    ),
    "a rule": (lambda: Ruled(3, 3), "must not have an attribute rule, which Hebbian layers have, got Ruled"),
    "a lazy one": (lambda: LazySame(3, 3), f"{FORWARD}Conv2d, got Same.forward"),
}


@pytest.mark.parametrize("key", ["1", "*", nn.Module, is_any], ids=named)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_by_name(case, key):
    make, message = REFUSED[case]
    model = nn.Sequential(nn.Linear(3, 3), make())
    kinds = [type(layer) for layer in model]
    with pytest.raises(ValueError) as error:
        hk.nn.convert(model, {"0": hk.WTA(), key: hk.WTA()})
    assert str(error.value) == f'hebbkern.nn.convert: "1" {message}'
    assert [type(layer) for layer in model] == kinds and model[0].weight.requires_grad


def test_attention_is_converted_but_for_what_it_never_calls():
    """`out_proj` of torch's own attention is a weight only; a subclass that calls it may learn."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(
        ValueError, match=r'"self_attn.out_proj" must be called by the module that holds it, got the out'
    ):
        hk.nn.convert(encoder, {nn.Linear: hk.WTA()})
    assert list(hk.nn.convert(encoder, {"linear*": hk.WTA()})) == ["linear1", "linear2"]

    class Called(nn.MultiheadAttention):
        def forward(self, query):
            return self.out_proj(query)

    model = Called(8, 2)
    hk.nn.convert(model, {"out_proj": hk.WTA()})
    before = model.out_proj.weight.clone()
    with hk.learning(model, lr=0.1, strict=True):
        model(random((3, 8)))
    assert not torch.equal(model.out_proj.weight, before)


LAZY = {
    "linear": (lambda: nn.LazyLinear(5), HebbianLinear, (4, 7)),
    "conv1d": (lambda: nn.LazyConv1d(5, 3), HebbianConv1d, (4, 3, 7)),
    "conv2d": (lambda: nn.LazyConv2d(6, 3, groups=3, bias=False), HebbianConv2d, (4, 3, 7, 6)),
    "conv3d": (lambda: nn.LazyConv3d(5, 2), HebbianConv3d, (4, 2, 3, 4, 3)),
    "subclass": (lambda: LazyLabelled(5, 3), Labelled, (4, 3, 7, 6)),
}
lazy = pytest.mark.parametrize("case", LAZY)


@lazy
def test_a_lazy_layer_learns_from_its_first_forward_pass(case):
    make, kind, shape = LAZY[case]
    model, x = nn.Sequential(make()), random(shape)
    converted = hk.nn.convert(model, {"0": hk.WTA()})
    layer = converted["0"]
    assert isinstance(layer, HebbianLayer) and not layer.weight.requires_grad and len(layer.frozen) in (5, 6)
    layer.frozen[1] = True
    with torch.random.fork_rng(), hk.learning(model, lr=0.1, strict=True):
        torch.manual_seed(3)
        y = model(x)
    assert (
        isinstance(layer, kind)
        and isinstance(layer, HebbianLayer)
        and not isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    )
    plain = nn.Sequential(make())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        plain(x)
    twin = nn.Sequential(copy.deepcopy(plain[0]))
    hk.nn.convert(twin, {"0": hk.WTA()})
    twin[0].frozen[1] = True
    twin[0].learn(x, lr=0.1)
    assert torch.equal(layer.weight, twin[0].weight) and not torch.equal(layer.weight, plain[0].weight)
    assert torch.equal(layer.weight[1], plain[0].weight[1]) and torch.equal(y, twin(x))
    assert not layer.weight.requires_grad and type(hk.nn.revert(model)[0]) is type(plain[0])


@lazy
def test_a_lazy_layer_copies_loads_and_reverts_before_its_first_forward_pass(case):
    make, kind, shape = LAZY[case]
    model, x = nn.Sequential(make()), random(shape)
    hk.nn.convert(model, {"*": hk.Oja()})
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with hk.learning(twin, lr=0.1, strict=True):
            twin(x)
        assert isinstance(twin[0], kind) and twin[0].rule == hk.Oja()
    other = copy.deepcopy(model)
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other[0].weight, twin[0].weight) and torch.equal(other(x), twin(x))
    plain = nn.Sequential(make())
    plain(x)
    other = copy.deepcopy(model)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(x), plain(x)) and not other[0].frozen.any()
    reverted = hk.nn.revert(model)
    assert type(reverted[0]) is type(make())
    assert (
        type(reverted(x)) is torch.Tensor and type(reverted[0]) is type(plain[0]) and reverted[0].weight.requires_grad
    )


@lazy
@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_a_lazy_layer_without_a_size_says_so(case):
    make, _, shape = LAZY[case]
    layer = make()
    hk.nn.convert(layer, {"": hk.WTA()})
    with pytest.raises(ValueError, match="weight must have a size, which the first forward pass gives it"):
        layer.learn(random(shape), lr=0.1)
    with pytest.raises(ValueError, match="layer must have a size, which the first forward pass gives it"):
        hk.nn.init_from_samples_(layer, random(shape))
    with pytest.raises(RuntimeError, match="every layer with a rate must learn"), hk.learning(layer, 0.1, strict=True):
        pass


@pytest.mark.slow(3)
def test_every_convolution_of_a_mobilenet_learns():
    """Depthwise ones included."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    model = models.mobilenet_v3_small().eval()
    convolutions = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    x, before = random((2, 3, 32, 32)), {name: layer.weight.clone() for name, layer in convolutions.items()}
    assert hk.nn.convert(model, {nn.Conv2d: hk.WTA()}) == convolutions and len(convolutions) > 40
    with torch.no_grad(), hk.learning(model, lr=0.1, strict=True):
        model(x)
    assert any(layer.groups == layer.in_channels > 1 for layer in convolutions.values())
    assert not any(torch.equal(layer.weight, before[name]) for name, layer in convolutions.items())
