"""Every rule against hebbkern.reference in float64; updates that add up; settings that are refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import calls
import hebbkern as hk
import oracle
from cases import random
from hebbkern.specifications import KEPT, _kept, constant

GEOMETRIES = {
    "linear": ((60, 20), (12, 20), {}),
    "convolution": ((3, 2, 9, 8), (7, 2, 3, 3), {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}),
}
RULES = [
    (hk.KrotovHopfield(), hk.reference.krotov_hopfield, {}),
    (hk.KrotovHopfield(p=3, k=4, delta=0.2), hk.reference.krotov_hopfield, {"p": 3, "k": 4, "delta": 0.2}),
    (hk.WTA(), hk.reference.wta, {}),
    (
        hk.WTA(k=3, similarity="dot", normalise="row_max"),
        hk.reference.wta,
        {"k": 3, "similarity": "dot", "normalise": "row_max"},
    ),
    (
        hk.WTA(k=2, coefficient="response", average=False, normalise="row_l2"),
        hk.reference.wta,
        {"k": 2, "coefficient": "response", "average": False, "normalise": "row_l2"},
    ),
    (hk.Supervised(), hk.reference.supervised, {}),
    (hk.Supervised(average=False), hk.reference.supervised, {"average": False}),
    (hk.Sanger(), hk.reference.sanger, {}),
    (hk.Sanger(activation="tanh"), hk.reference.sanger, {"activation": "tanh"}),
    (hk.Oja(), hk.reference.oja, {}),
    (hk.Hebb(activation="relu"), hk.reference.hebb, {"activation": "relu"}),
    (hk.SoftWTA(), hk.reference.soft_wta, {}),
    (hk.SoftWTA(temperature=0.5, rate_power=0), hk.reference.soft_wta, {"temperature": 0.5, "rate_power": 0}),
    (hk.SoftWTA(normalise="global_max"), hk.reference.soft_wta, {"normalise": "global_max"}),
]
rules = pytest.mark.parametrize(("rule", "reference", "settings"), RULES, ids=[str(case[0]) for case in RULES])
geometries = pytest.mark.parametrize(("x", "weight", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES)


def layer(x, weight, dtype=torch.float64):
    return random(weight, dtype, seed=1), random(x, dtype, seed=2, offset=0.3)


def labels_for(rule, x, neurons):
    return torch.arange(len(x)) * 5 % (neurons + 1) - 1 if isinstance(rule, hk.Supervised) else None


@pytest.mark.parametrize("patches", ["raw", "centred", "standardised"])
@pytest.mark.parametrize("with_frozen", [False, True])
@geometries
@rules
def test_step_is_the_reference(backend, rule, reference, settings, x, weight, geometry, with_frozen, patches):
    weight, x = layer(x, weight)
    frozen = torch.arange(len(weight)) % 3 == 0 if with_frozen else None
    labels = labels_for(rule, x, len(weight))
    settings = dict(settings, frozen=frozen, patches=patches, **geometry)
    if labels is not None:
        settings["labels"] = labels
    numbers = {key: oracle.exact(v) if isinstance(v, torch.Tensor) else v for key, v in settings.items()}
    want, before = reference(oracle.exact(weight), oracle.exact(x), lr=0.1, **numbers), weight.clone()
    rule = replace(rule, patches=patches)
    rule.step_(weight, x, lr=0.1, labels=labels, frozen=frozen, **geometry)
    np.testing.assert_allclose(oracle.exact(weight), want, rtol=1e-10, atol=1e-12)
    assert not torch.equal(weight, before)
    if with_frozen:
        assert torch.equal(weight[frozen], before[frozen])


@geometries
@rules
def test_updates_add_up(backend, rule, reference, settings, x, weight, geometry):
    weight, x = layer(x, weight)
    labels = labels_for(rule, x, len(weight))
    whole, cut = weight.clone(), len(x) // 3
    rule.step_(whole, x, lr=0.1, labels=labels, **geometry)
    first, second = (labels[:cut], labels[cut:]) if labels is not None else (None, None)
    update = rule.update(weight, x[:cut], labels=first, **geometry)
    update = update + rule.update(weight, x[cut:], labels=second, **geometry)
    rule.apply_(weight, update, lr=0.1)
    torch.testing.assert_close(weight, whole, rtol=1e-11, atol=1e-13)


@rules
def test_an_empty_batch_teaches_nothing(backend, rule, reference, settings):
    for x, weight, geometry in GEOMETRIES.values():
        weight, x = layer((0, *x[1:]), weight, torch.float32)
        before = weight.clone()
        labels = torch.zeros(0, dtype=torch.int64) if isinstance(rule, hk.Supervised) else None
        rule.step_(weight, x, lr=0.1, labels=labels, **geometry)
        assert torch.equal(weight, before)


@geometries
@rules
def test_same_bits_on_any_number_of_threads(backend, threads, rule, reference, settings, x, weight, geometry):
    weight, x = layer((2000, *x[1:]) if len(x) == 2 else (40, *x[1:]), weight, torch.float32)
    labels = labels_for(rule, x, len(weight))
    results = []
    for count in (1, *backend.threads) if backend.any_threads else (1, 1):
        threads(count)
        learnt = weight.clone()
        rule.step_(learnt, x, lr=0.1, labels=labels, **geometry)
        results.append(learnt)
    assert all(torch.equal(results[0], other) for other in results[1:])


@rules
def test_a_step_compiles_without_a_break(rule, reference, settings):
    weight, x = layer((6, 2, 9, 8), (7, 2, 3, 3), torch.float32)
    labels = labels_for(rule, x, len(weight))
    eager, frozen = weight.clone(), torch.arange(7) == 2

    def step(weight, x):
        rule.step_(weight, x, lr=0.1, labels=labels, frozen=frozen, padding=1)

    step(eager, x)
    torch.compiler.reset()
    torch.compile(step, fullgraph=True, backend="aot_eager")(weight, x)
    assert torch.equal(weight, eager)


@geometries
def test_soft_wta_by_the_largest_entry(backend, x, weight, geometry):
    """w += lr · |‖w‖ − 1|^power · Δ / max|Δ|: the longest step, by its neuron's rate, is lr, however many patches."""
    weight, x = layer(x, weight)
    rule, rate = hk.SoftWTA(rate_power=0.25, normalise="global_max"), (weight.flatten(1).norm(dim=1) - 1).abs() ** 0.25
    delta, moved = rule.update(weight, x, **geometry).sum, weight.clone()
    rule.step_(moved, x, lr=0.1, **geometry)
    rate = rate.reshape(-1, *[1] * (weight.dim() - 1))
    torch.testing.assert_close(moved, weight + 0.1 * rate * delta / delta.abs().max(), rtol=1e-11, atol=1e-13)
    assert math.isclose(((moved - weight) / rate).abs().max().item(), 0.1, rel_tol=1e-9)
    twice = weight.clone()
    rule.step_(twice, torch.cat([x, x]), lr=0.1, **geometry)
    torch.testing.assert_close(twice, moved, rtol=1e-11, atol=1e-13)


def test_a_parameter_is_moved_in_place_and_its_version_counts():
    weight = torch.nn.Parameter(random((5, 8)))
    version = weight._version
    x = random((4, 8)).requires_grad_()
    hk.WTA().step_(weight, x, lr=0.1)
    assert weight._version > version and weight.grad_fn is None
    assert not hk.WTA().update(weight, x).sum.requires_grad


def test_coefficients_are_made_once_for_each_dtype():
    weight, x = layer((4, 8), (5, 8), torch.bfloat16)
    first = constant((1.0, 0.5), x)
    assert first.dtype == torch.float32 and first is constant((1.0, 0.5), weight)
    assert constant((1.0, 0.5), x.double()).dtype == torch.float64


def test_coefficients_kept_are_bounded():
    """A schedule of delta must not keep a tensor for each of its values."""
    weight, x = layer((4, 8), (5, 8))
    for step in range(KEPT + 50):
        hk.KrotovHopfield(delta=step / 1000).update(weight, x)
    assert _kept.cache_info().currsize <= KEPT


REFUSED = [
    (hk.KrotovHopfield, {"k": 1}, "k must be at least 2, got 1"),
    (hk.KrotovHopfield, {"k": 2.0}, "k must be a whole number, got 2.0"),
    (hk.KrotovHopfield, {"k": True}, "k must be a whole number, got True"),
    (hk.KrotovHopfield, {"p": 0.5}, "p must be a finite number of at least 1, got 0.5"),
    (hk.KrotovHopfield, {"p": math.inf}, "p must be a finite number of at least 1, got inf"),
    (hk.KrotovHopfield, {"delta": math.nan}, "delta must be a finite number, got nan"),
    (hk.KrotovHopfield, {"patches": "rwa"}, 'patches must be "raw", "centred" or "standardised", got "rwa"'),
    (hk.WTA, {"k": 0}, "k must be at least 1, got 0"),
    (hk.WTA, {"similarity": "cos"}, 'similarity must be "cosine" or "dot", got "cos"'),
    (hk.WTA, {"coefficient": "two"}, 'coefficient must be "one" or "response", got "two"'),
    (hk.WTA, {"average": 1}, "average must be True or False, got 1"),
    (hk.WTA, {"normalise": "l2"}, 'normalise must be "none", "row_max" or "row_l2", got "l2"'),
    (hk.Supervised, {"average": None}, "average must be True or False, got None"),
    (hk.Sanger, {"activation": "softmax"}, 'activation must be "linear", "relu" or "tanh", got "softmax"'),
    (hk.Oja, {"activation": None}, 'activation must be "linear", "relu" or "tanh", got None'),
    (hk.Hebb, {"patches": 3}, 'patches must be "raw", "centred" or "standardised", got 3'),
    (hk.SoftWTA, {"temperature": 0}, "temperature must be a finite number above 0, got 0"),
    (hk.SoftWTA, {"rate_power": -1.0}, "rate_power must be a finite number of at least 0, got -1.0"),
    (hk.SoftWTA, {"normalise": "row_max"}, 'normalise must be "none" or "global_max", got "row_max"'),
]


@pytest.mark.parametrize(("rule", "settings", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_settings_are_refused(rule, settings, message):
    with pytest.raises(ValueError) as error:
        rule(**settings)
    assert str(error.value) == f"hebbkern.{rule.__name__}: {message}"


LABELS = [
    (None, "None"),
    ([0, 1, 2, 3], "list"),
    (torch.zeros(4), "float32 of shape [4]"),
    (torch.zeros(3, dtype=torch.int64), "int64 of shape [3]"),
    (torch.zeros(4, 1, dtype=torch.int64), "int64 of shape [4, 1]"),
]


@pytest.mark.parametrize(("labels", "got"), LABELS, ids=[case[1] for case in LABELS])
def test_labels_are_refused(labels, got):
    weight, x = layer((4, 8), (5, 8))
    before = weight.clone()
    with pytest.raises(ValueError) as error:
        hk.Supervised().step_(weight, x, labels=labels, lr=0.1)
    wanted = "labels must be int64 or int32 of shape [4], the class of each sample"
    assert str(error.value) == f"hebbkern.Supervised: {wanted}, got {got}"
    assert torch.equal(weight, before)


MISMATCHED = [
    ((4, 6), (5, 7), "float32", "weight must have x's 7 inputs, got 6"),
    ((4, 3, 2, 2), (5, 7), "float32", "weight must be [neurons, inputs] like x's 2 dimensions, got shape [4, 3, 2, 2]"),
    ((4, 7), (5, 3, 6, 6), "float32", "weight must be [neurons, channels, height, width] like x's 4 dimensions, got"),
    ((4, 2, 2, 2), (5, 3, 6, 6), "float32", "weight must have x's 3 channels, got 2"),
    ((4, 3, 7, 7), (5, 3, 6, 6), "float32", "weight must fit into the padded image 6x6, got a kernel that spans 7x7"),
    ((4, 7), (5, 7), "bfloat16", "weight must have x's dtype bfloat16, got float32"),
    ((4, 7), (5,), "float32", "x must be [batch, inputs] or [batch, channels, height, width], got shape [5]"),
    ((4, 7), (), "float32", "x must be [batch, inputs] or [batch, channels, height, width], got shape []"),
]


@pytest.mark.parametrize(("weight", "x", "dtype", "message"), MISMATCHED, ids=[row[3] for row in MISMATCHED])
def test_supervised_compares_x_with_the_weight(weight, x, dtype, message):
    """As the other rules do; no operator that it calls sees both."""
    weight, x = torch.ones(weight), torch.ones(x, dtype=getattr(torch, dtype))
    labels = torch.zeros(x.shape[:1], dtype=torch.int64)
    with pytest.raises(ValueError) as error:
        hk.Supervised().update(weight, x, labels=labels)
    assert f"hebbkern.Supervised: {message}" in str(error.value)


@pytest.mark.parametrize("wrong", [5, -2])
def test_a_label_without_a_neuron_is_refused(backend, wrong):
    weight, x = layer((4, 8), (5, 8))
    before = weight.clone()
    with calls.refused(weight.device, f"labels must name neurons 0 to 4, .* got {wrong}"):
        hk.Supervised().step_(weight, x, labels=torch.tensor([0, 1, wrong, 2]), lr=0.1)
    assert torch.equal(weight, before)


def test_updates_of_different_layers_do_not_add():
    one = hk.WTA().update(*layer((4, 8), (5, 8)))
    other = hk.WTA().update(*layer((4, 8), (6, 8)))
    with pytest.raises(ValueError, match=r"of the same rule and layer \[\[5, 8\], \[5\], \[5\]\], got \[\[6, 8\]"):
        one + other
    with pytest.raises(TypeError):
        one + 1


def test_updates_sum_as_numbers_do():
    updates = [hk.WTA().update(*layer((4, 8), (5, 8))) for _ in range(3)]
    total, pairwise = sum(updates), updates[0] + updates[1] + updates[2]
    assert torch.equal(total.sum, pairwise.sum) and torch.equal(total.decay, pairwise.decay)
    assert total.denominator is total.decay
    with pytest.raises(TypeError):
        sum(updates, start=1)


def test_numpy_integers_are_integers():
    one, two, three = map(np.int64, (1, 2, 3))
    weight, x = layer((3, 2, 9, 8), (7, 2, 3, 3))
    for rule in (hk.WTA(k=two), hk.KrotovHopfield(k=np.int32(3), p=three), hk.SoftWTA(temperature=np.float32(0.5))):
        update = rule.update(weight, x, stride=two, padding=(one, 0), dilation=[one, two])
        same = replace(rule).update(weight, x, stride=2, padding=(1, 0), dilation=(1, 2))
        assert torch.equal(update.sum, same.sum)
    assert type(hk.WTA(k=two).k) is int and hk.WTA(k=two) == hk.WTA(k=2)
    assert hk.ops.compete(x, weight, two, stride=two)[0].shape[1] == 2
    assert torch.equal(hk.ops.kwinners(x, two, one), hk.ops.kwinners(x, 2, 1))
    targets, ones = torch.zeros(3 * 7 * 6, 1, dtype=torch.int32), torch.ones(1, dtype=torch.float64)
    assert hk.ops.accumulate(x, targets, ones, neurons=three, kernel=three)[0].shape == (3, 2, 3, 3)


def test_all_reduce_asks_for_a_group():
    with pytest.raises(RuntimeError, match="must be initialised"):
        hk.WTA().update(*layer((4, 8), (5, 8))).all_reduce()
