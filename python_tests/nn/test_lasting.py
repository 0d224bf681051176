"""Learning that reaches the weights, or says why not: fast paths, computed weights, layers that were never called."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianLinear


def linear(rule=None, dtype=torch.float32):
    torch.manual_seed(0)
    return HebbianLinear(12, 6, rule=rule or hk.WTA(), dtype=dtype)


X = random((8, 12), seed=3)


@pytest.mark.parametrize("given", ["encoder", "layer"])
def test_a_transformer_encoder_layer_learns_in_evaluation_mode(given):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    hk.nn.convert(encoder, {"linear1": hk.WTA()})
    x, before = random((4, 5, 16), seed=1), encoder.linear1.weight.clone()
    model = encoder if given == "encoder" else nn.TransformerEncoder(encoder, 1).eval()
    layer = encoder.linear1 if given == "encoder" else model.layers[0].linear1
    with torch.no_grad(), hk.learning(model, lr=0.1):
        model(x)
    assert not torch.equal(layer.weight, before)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_fast_path_stays_off_until_the_last_context_ends():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    hk.nn.convert(encoder, {"linear1": hk.WTA()})
    x = random((4, 5, 16), seed=1)
    with hk.learning(encoder, lr=0.1):
        with hk.learning(encoder, lr=0.1):
            encoder(x)
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


COMPUTED = {
    "weight_norm": (parametrizations.weight_norm, r"parametrize \(_WeightNorm\)"),
    "spectral_norm": (parametrizations.spectral_norm, r"parametrize \(_SpectralNorm\)"),
    "orthogonal": (parametrizations.orthogonal, r"parametrize \(_Orthogonal\)"),
    "parametrize": (lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()), r"\(Doubled\)"),
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"other tensors \(L1Unstructured\)"),
    "old weight_norm": (torch.nn.utils.weight_norm, r"other tensors \(WeightNorm\)"),
    "old spectral_norm": (torch.nn.utils.spectral_norm, r"other tensors \(SpectralNorm\)"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("computed", COMPUTED)
def test_a_weight_that_is_computed_from_others_is_refused(computed):
    make, message = COMPUTED[computed]
    model = nn.Sequential(linear())
    make(model[0])
    wanted = rf"must have a weight that is a parameter of its own, got a weight computed .*{message}"
    with pytest.raises(ValueError, match=rf'hebbkern.learning: "0" {wanted}'):
        hk.learning(model, lr=0.1)
    with pytest.raises(ValueError, match=rf"HebbianLinear.learn: layer {wanted}"):
        model[0].learn(X, lr=0.1)


def test_a_computed_weight_without_a_rate_is_no_error():
    model = nn.Sequential(linear(), linear())
    prune.l1_unstructured(model[1], "weight", 0.5)
    with hk.learning(model, lr={"0": 0.1}):
        model[0](X)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.taken, self.other = linear(), linear()

    def forward(self, x):
        return self.taken(x)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight)


def test_strict_learning_names_the_layers_that_did_not_learn():
    model = Branches()
    with (
        pytest.raises(RuntimeError, match=r'every layer with a rate must learn inside the context, got "other"$'),
        hk.learning(model, lr=0.1, strict=True),
    ):
        model(X)
    with hk.learning(model, lr={"taken": 0.1}, strict=True):
        model(X)
    with pytest.raises(KeyError), hk.learning(model, lr=0.1, strict=True):
        raise KeyError
    model.other.weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r'got "other"$'), hk.learning(model, into="grad", strict=True):
        model(X)


def test_a_context_in_which_no_layer_learnt_warns():
    with (
        pytest.warns(UserWarning, match=r'no layer has learnt inside the context \("layer"\)'),
        hk.learning(Functional(), lr=0.1),
    ):
        Functional()(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with hk.learning(model := Branches(), lr=0.1):
            model(X)
        with hk.learning(model, into="grad"):
            model(X)
        with pytest.raises(KeyError), hk.learning(model, lr=0.1):
            raise KeyError


def test_strict_learning_sees_the_steps_of_weights_made_in_inference_mode():
    with torch.inference_mode():
        layer = linear()
        with hk.learning(layer, lr=0.1, strict=True):
            layer(X)


def travelled(dtype, generator=None, steps=100, rule=None):
    """How far 100 WTA steps of lr 1e-4 move the weights."""
    layer = linear(rule, dtype)
    before = layer.weight.detach().clone().float()
    with hk.learning(layer, lr=1e-4, generator=generator):
        for step in range(steps):
            layer(random((64, 12), dtype, seed=step, scale=3.0))
    return layer.weight.float() - before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_travels_as_far_as_float32(dtype):
    want = travelled(torch.float32)
    got = travelled(dtype, torch.Generator().manual_seed(0))
    again = travelled(dtype, torch.Generator().manual_seed(0))
    assert torch.equal(got, again)
    # Along the way of float32: noise of rounding is orthogonal to it on average.
    assert 0.8 < (got * want).sum() / want.square().sum() < 1.2


def test_steps_below_the_precision_of_the_weight_warn_once():
    with pytest.warns(UserWarning, match="more than half of the weights that should move do not") as caught:
        travelled(torch.bfloat16)
    assert len(caught) == 1
    travelled(torch.float32)  # warnings are errors here


def test_stochastic_rounding_is_unbiased_and_keeps_what_is_representable():
    from hebbkern.nn.weights import round_stochastically

    for dtype in (torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(1)
        values = torch.tensor([0.0, 1.0, -1.5, 1e-6, 3.14159, -1000.4, 1 + 2**-12])
        kept = values.to(dtype).float()
        assert torch.equal(round_stochastically(kept, dtype, generator).float(), kept)
        drawn = round_stochastically(values.expand(4000, -1).contiguous(), dtype, generator).float()
        spread = drawn.std(0) / 4000**0.5
        assert ((drawn.mean(0) - values).abs() <= 4 * spread + 1e-9).all()
        assert all(len(column.unique()) <= 2 for column in drawn.T)


def test_frozen_rows_keep_their_bits_under_stochastic_rounding():
    layer = linear(dtype=torch.bfloat16)
    layer.frozen[:3] = True
    before = layer.weight.clone()
    layer.learn(X.bfloat16(), lr=0.1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.weight[:3], before[:3]) and not torch.equal(layer.weight[3:], before[3:])


def test_a_weight_that_overflows_when_rounded_stays():
    layer = linear(hk.Hebb(), torch.float16)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=r"lr must leave weights that torch.float16 holds, got an overflow"):
        layer.learn(X.half() * 100, lr=1e4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.weight, before)


def test_a_generator_is_refused_where_an_optimizer_steps():
    with pytest.raises(ValueError, match='generator must be None with into="grad"'):
        hk.learning(linear(), into="grad", generator=torch.Generator())


def test_functional_call_with_other_tensors_is_an_error():
    layer = linear()
    given = {"weight": layer.weight.detach().clone()}
    before, other = layer.weight.clone(), given["weight"].clone()
    with (
        pytest.raises(RuntimeError, match=r"weight must be the parameter with which hebbkern.learning was entered"),
        hk.learning(layer, lr=0.1),
    ):
        torch.func.functional_call(layer, given, X)
    assert torch.equal(layer.weight, before) and torch.equal(given["weight"], other)
    with hk.learning(layer, lr=0.1):
        with hk.nn.no_learning():
            torch.func.functional_call(layer, given, X)
        torch.func.functional_call(layer, dict(layer.named_parameters()), X)  # its own
    assert not torch.equal(layer.weight, before)


TRANSFORMS = {
    "vmap": lambda layer: torch.vmap(layer)(X[:, None]),
    "grad": lambda layer: torch.func.grad(lambda x: layer(x).sum())(X),
    "jvp": lambda layer: torch.func.jvp(layer, (X,), (X,)),
}


@pytest.mark.filterwarnings("ignore:.*jit.script")  # of torch itself
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_of_torch_func_over_a_learning_layer_are_an_error(transform):
    layer = linear()
    before = layer.weight.clone()
    with (
        pytest.raises(RuntimeError, match=r"input must be an ordinary tensor .* got one of torch.func"),
        hk.learning(layer, lr=0.1),
    ):
        TRANSFORMS[transform](layer)
    assert torch.equal(layer.weight, before)
    with hk.nn.no_learning():
        TRANSFORMS[transform](layer)


@pytest.mark.filterwarnings("ignore:.*no layer has learnt")
def test_symbolic_tracing_teaches_nothing():
    model = nn.Sequential(linear(), nn.ReLU())
    before = model[0].weight.clone()
    with hk.learning(model, lr=0.1):
        graph = torch.fx.symbolic_trace(model)
    assert torch.equal(model[0].weight, before)
    torch.testing.assert_close(graph(X), model(X))
