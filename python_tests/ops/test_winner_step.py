"""winner_step_ gives, bit for bit, what compete, accumulate and apply_ give one after the other."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given

import calls
import cases
import hebbkern as hk

RULES = [
    hk.KrotovHopfield(),
    hk.KrotovHopfield(p=3, k=4, delta=0.2),
    hk.WTA(),
    hk.WTA(k=3, similarity="dot", normalise="row_max"),
    hk.WTA(k=2, coefficient="response", normalise="row_l2"),
    hk.WTA(k=2, coefficient="response", similarity="dot", average=False),
    hk.Supervised(),
    hk.Supervised(average=False),
]
LARGE = [*cases.LARGE, cases.Layer((2000, 33), (7, 33)), cases.Layer((9, 3, 20, 19), (5, 3, 5, 5), {"padding": 2})]


def of_kind(rule, patches):
    return replace(rule, patches=patches)


def labels_for(rule, x, neurons, dtype=torch.int64):
    return torch.arange(len(x), dtype=dtype) * 5 % (neurons + 1) - 1 if isinstance(rule, hk.Supervised) else None


def in_parts(rule, weight, x, lr, labels, frozen, geometry):
    weight = weight.clone()
    rule.apply_(weight, rule.update(weight, x, labels=labels, frozen=frozen, **geometry), lr=lr, frozen=frozen)
    return weight


def same(rule, weight, x, labels, frozen, geometry):
    want = in_parts(rule, weight, x, 0.1, labels, frozen, geometry)
    before = weight.clone()
    rule.step_(weight, x, lr=0.1, labels=labels, frozen=frozen, **geometry)
    assert calls.same_bits([weight], [want])
    if frozen is not None:
        assert calls.same_bits([weight[frozen]], [before[frozen]])
    return not calls.same_bits([weight], [before])


@pytest.mark.slow(44, on="triton")
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_bits_of_the_three_operators(backend, rule, dtype):
    moved, layers = 0, cases.FEW[1:3] if backend.name == "triton" else cases.FEW
    for layer, patches, with_frozen in itertools.product(layers, cases.PATCHES, (False, True)):
        x, weight = cases.tensors(layer, dtype, backend.device)
        frozen = cases.some(layer.neurons) if with_frozen else None
        labels = labels_for(rule, x, layer.neurons, torch.int32 if with_frozen else torch.int64)
        moved += same(of_kind(rule, patches), weight, x, labels, frozen, layer.geometry)
    assert moved >= 3 * len(layers)


@pytest.mark.slow(10, on="triton")
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_same_behind_any_strides(backend, rule, layout):
    for layer, dtype in itertools.product((cases.LINEAR[3], cases.CONVOLUTION[2]), (torch.float32, torch.bfloat16)):
        x, weight = cases.tensors(layer, dtype, backend.device)
        want = in_parts(rule, weight, x, 0.1, labels_for(rule, x, layer.neurons), None, layer.geometry)
        weight = cases.laid_out(weight, layout)
        labels = labels_for(rule, x, layer.neurons)
        labels = labels if labels is None else torch.stack([labels, labels + 1], dim=1)[:, 0]
        rule.step_(weight, cases.laid_out(x, layout), lr=0.1, labels=labels, **layer.geometry)
        if backend.any_threads:  # ATen's products depend on the strides
            assert calls.same_bits([weight], [want])
        else:
            torch.testing.assert_close(weight, want)


@pytest.mark.slow(8, on="triton")
@pytest.mark.parametrize("layer", LARGE, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_same_where_work_is_cut_in_pieces(backend, threads, rule, layer):
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    labels = labels_for(rule, x, layer.neurons)
    for count in backend.threads if backend.any_threads else (2,):
        threads(count)
        assert same(rule, weight.clone(), x, labels, cases.some(layer.neurons, share=0.1), layer.geometry)


@given(cases.drawn())
def test_the_same_on_any_layer(drawn):
    layer, x, weight, geometry = drawn
    for rule in (
        hk.KrotovHopfield(k=2) if layer.neurons > 1 else hk.WTA(),
        hk.WTA(coefficient="response"),
        hk.Supervised(),
    ):
        rule = of_kind(rule, geometry["patches"])
        same(rule, weight.clone(), x, labels_for(rule, x, layer.neurons), None, layer.geometry)


@pytest.mark.slow(10, on="triton")
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("normalise", ["none", "row_max", "row_l2", "global_max"])
def test_settings_that_no_rule_combines(backend, normalise, dtype):
    x, weight = cases.tensors(calls.LINEAR, dtype, backend.device)
    coefficients = torch.tensor([0.7, 0.0, -0.3], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for by_response, decay_by_response, average in itertools.product((False, True), repeat=3):
        winners, responses = hk.ops.compete(x, weight, 3)
        c = responses.clamp(min=0) * coefficients if by_response else coefficients
        decays = responses if decay_by_response else None
        total, decay, _ = hk.ops.accumulate(x, winners, c, neurons=len(weight), responses=decays)
        want, got = weight.clone(), weight.clone()
        denominator = decay if average else None
        hk.ops.apply_(want, total, decay=decay, denominator=denominator, lr=0.1, normalise=normalise)
        how = {"by_response": by_response, "decay_by_response": decay_by_response, "average": average}
        how |= {"coefficients": coefficients.tolist(), "normalise": normalise}
        hk.ops.winner_step_(got, x, lr=0.1, k=3, **how)
        assert calls.same_bits([got], [want]) and not calls.same_bits([got], [weight])


class Doubled(hk.WTA):
    def apply_(self, weight, update, *, lr, frozen=None):
        super().apply_(weight, update, lr=2 * lr, frozen=frozen)


class Deaf(hk.KrotovHopfield):
    def update(self, weight, x, **options):
        return super().update(weight, 0 * x, **options)


class Quiet:
    def update(self, weight, x, **options):
        return super().update(weight, 0.5 * x, **options)


class QuietSupervised(Quiet, hk.Supervised):
    pass


class Renamed(hk.WTA):
    """Changes nothing."""


@pytest.mark.parametrize("rule", [Doubled(), Deaf(), QuietSupervised(), type("Below", (Doubled,), {})()], ids=str)
def test_a_rule_with_its_own_parts_steps_by_them(backend, rule):
    x, weight = cases.tensors(calls.LINEAR, torch.float32, backend.device)
    labels, plain = labels_for(rule, x, len(weight)), weight.clone()
    base = next(base for base in type(rule).__mro__ if base.__module__ == hk.rules.__name__)
    base.step_(base(), plain, x, lr=0.1, labels=labels)
    want = in_parts(rule, weight, x, 0.1, labels, None, {})
    rule.step_(weight, x, lr=0.1, labels=labels)
    assert calls.same_bits([weight], [want]) and not calls.same_bits([weight], [plain])


def test_a_rule_without_takes_one_operator(backend, monkeypatch):
    weight, x = cases.random((5, 8)), cases.random((4, 8))
    monkeypatch.setattr(hk.rules.Rule, "update", lambda *arguments, **options: pytest.fail("went in parts"))
    for rule in (Renamed(), hk.WTA(), hk.KrotovHopfield(), hk.Supervised()):
        rule.step_(weight, x, lr=0.1, labels=torch.arange(4))


@pytest.mark.slow(9, on="triton")
def test_a_rate_in_a_tensor_goes_in_parts(backend):
    x, weight = cases.tensors(calls.LINEAR, torch.float32, backend.device)
    for rule in RULES:
        got, want, labels = weight.clone(), weight.clone(), labels_for(rule, x, len(weight))
        rule.step_(want, x, lr=0.1, labels=labels)
        rule.step_(got, x, lr=torch.tensor(0.1, dtype=torch.float64, device="cpu"), labels=labels)
        assert calls.same_bits([got], [want])


def test_nothing_is_written_when_the_last_neuron_overflows(backend):
    """All others could have been stepped by then."""
    x = torch.eye(300)
    weight = 0.5 * torch.eye(300)
    weight[-1, -1] = 3.3e38
    before = weight.clone()
    with calls.refused(backend.device, "weight must stay finite"):
        hk.ops.winner_step_(weight, x, lr=-30.0)
    assert calls.same_bits([weight], [before])


def test_a_saved_weight_is_known_to_have_changed(backend):
    weight = cases.random((3, 4)).requires_grad_()
    loss, version = (weight * weight).sum(), weight._version
    hk.ops.winner_step_(weight, torch.ones(2, 4), lr=0.1)
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
