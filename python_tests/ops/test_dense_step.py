"""dense_step_: a dense rule's step as one operator, bit for bit dense_update and then apply_."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import calls
import cases
import hebbkern as hk

RULES = [
    {"activation": activation, "decay": decay}
    for activation in ("linear", "relu", "tanh")
    for decay in ("triangular", "diagonal", "activity", "none")
]
FEW_PATCHES = [  # of a compiled kernel's own order: tails of neurons, inputs and patches
    cases.Layer((64, 257), (700, 257)),
    cases.Layer((1, 65), (130, 65)),
    cases.Layer((17, 1201), (333, 1201)),
    cases.Layer((3, 5, 7, 6), (257, 5, 3, 3), {"padding": 1}),
    cases.Layer((2, 20, 4, 4), (99, 20, 3, 3), {"stride": 2}),
]
MANY_CHUNKS = cases.Layer((3100, 49), (900, 49))


def in_parts(weight, x, lr, frozen=None, **options):
    total, count = hk.ops.dense_update(x, weight, frozen=frozen, **options)
    hk.ops.apply_(weight, total, denominator=count, lr=lr, frozen=frozen)


def compare(layer, x, weight, lr=0.1, **options):
    """Moves weight as one operator and in parts; the new weight."""
    parts = weight.clone()
    in_parts(parts, x, lr, **options, **layer.geometry)
    assert hk.ops.dense_step_(weight, x, lr=lr, **options, **layer.geometry) is None
    assert calls.same_bits([parts], [weight])
    return weight


def scaled(layer, dtype, device=None):
    x, weight = cases.tensors(layer, dtype, device)
    return x, (weight / weight[0].numel() ** 0.5).to(dtype)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", [*cases.LAYERS, *FEW_PATCHES, MANY_CHUNKS], ids=str)
def test_bits_of_sanger_and_apply(backend, layer, dtype, rule):
    for patches in cases.PATCHES:
        x, weight = scaled(layer, dtype, backend.device)
        before = weight.clone()
        compare(layer, x, weight, patches=patches, **rule)
        assert patches != "raw" or not torch.equal(before, weight)


@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("layer", FEW_PATCHES[1:], ids=str)
def test_layouts(backend, layer, of_x, of_weight):
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = scaled(layer, dtype, backend.device)
        plain = compare(layer, x, weight.clone())
        laid = cases.laid_out(weight, of_weight)
        hk.ops.dense_step_(laid, cases.laid_out(x, of_x), lr=0.1, **layer.geometry)
        assert torch.allclose(laid, plain, rtol=0.02, atol=1e-3)


def test_only_the_view_is_written(backend):
    larger = cases.random((300, 90))
    before, x = larger.clone(), cases.random((8, 70), seed=1)
    hk.ops.dense_step_(larger[10:290, 5:75], x, lr=0.1)
    inside = torch.zeros_like(larger, dtype=torch.bool)
    inside[10:290, 5:75] = True
    assert torch.equal(larger[~inside], before[~inside]) and (larger != before)[inside].any()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", FEW_PATCHES, ids=str)
def test_frozen_rows_keep_their_bits(backend, layer, dtype):
    x, weight = scaled(layer, dtype, backend.device)
    weight[:, ::3] = -0.0
    frozen, before = cases.some(layer.neurons, backend.device), weight.clone()
    compare(layer, x, weight, frozen=frozen)
    assert calls.same_bits([weight[frozen]], [before[frozen]])
    assert (weight != before).flatten(1).any(1)[~frozen].any()


def test_a_step_of_zeros_keeps_every_bit(backend):
    weight = cases.random((200, 60))
    weight[:, ::3] = -0.0
    before = weight.clone()
    largest = 1e300 if backend.name == "cpu" else 1e30  # the first is infinite in float32
    for x, lr in ((torch.zeros(4, 60), 1.0), (torch.zeros(4, 60), largest), (cases.random((4, 60)), 0.0)):
        hk.ops.dense_step_(weight, x, lr=lr)
        assert calls.same_bits([weight], [before])
    hk.ops.dense_step_(weight, torch.zeros(0, 60), lr=1.0)
    assert calls.same_bits([weight], [before])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_an_overflow_leaves_the_weights(backend, dtype):
    """In a response, in the step, and in what the stored dtype can hold."""
    layer, largest = FEW_PATCHES[0], torch.finfo(dtype).max
    wide = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max
    sizes = [(100, 1, wide / 100), (largest / 16, largest / 16, 1.0)] + [(1, 1, 1e6)] * (dtype == torch.float16)
    for x_size, w_size, lr in sizes:
        x, weight = scaled(layer, dtype, backend.device)
        x, weight = x * x_size, weight * w_size
        before = weight.clone()
        with calls.refused(backend.device):
            hk.ops.dense_step_(weight, x, lr=lr)
        assert calls.same_bits([weight], [before])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule.values()))
def test_extreme_numbers_are_finite_or_refused(backend, rule, dtype):
    layer = FEW_PATCHES[1]
    for x_size, w_size, lr in itertools.product((1e-42, 1e-6, 1e4, 3e38), (1e-42, 1e-6, 1e4, 3e38), (1e-42, 1, 1e38)):
        x, weight = (cases.random(shape, seed=seed).sign() for seed, shape in enumerate((layer.x, layer.weight)))
        x, weight = (x * x_size).to(dtype), (weight * w_size).to(dtype)
        before = weight.clone()
        try:
            hk.ops.dense_step_(weight, x, lr=lr, **rule)
            hk.synchronize()
        except (ValueError, RuntimeError):
            assert calls.same_bits([weight], [before])
        else:
            assert weight.isfinite().all(), (x_size, w_size, lr)


@pytest.mark.parametrize("place", [(0, 0), (699, 256), (350, 100)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_leaves_the_weights(backend, place, bad):
    x, weight = scaled(FEW_PATCHES[0], torch.float32)
    weight[place] = bad
    before = weight.clone()
    with calls.refused(backend.device, r"hebbkern.dense_step_: weight must be finite"):
        hk.ops.dense_step_(weight, x, lr=0.1)
    assert calls.same_bits([weight], [before])


def test_the_same_bits_on_any_number_of_threads(backend, threads):
    if not backend.any_threads:
        pytest.skip("only compiled kernels promise it")
    for layer in FEW_PATCHES[1:] if backend.name == "triton" else (*FEW_PATCHES, MANY_CHUNKS):
        results = []
        for count in backend.threads:
            threads(count)
            x, weight = scaled(layer, torch.float32)
            hk.ops.dense_step_(weight, x, lr=0.1, **layer.geometry)
            results.append(weight)
        assert all(calls.same_bits(results[:1], [other]) for other in results[1:])


@given(drawn=cases.drawn(), data=st.data())
def test_drawn_layers(backend, drawn, data):
    layer, x, weight, geometry = drawn
    frozen = cases.some(layer.neurons) if data.draw(st.booleans()) else None
    rule, lr = data.draw(st.sampled_from(RULES)), data.draw(st.sampled_from([0.0, 0.01, -1.0]))
    parts = weight.clone()
    options = {"frozen": frozen, **rule, **geometry}
    in_parts(parts, x, lr, **options)
    hk.ops.dense_step_(weight, x, lr=lr, **options)
    if backend.name == "cpu":  # the others call ATen's products, which depend on the strides, and parts is contiguous
        assert calls.same_bits([parts], [weight])
    else:
        torch.testing.assert_close(weight, parts)
