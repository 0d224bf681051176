"""accumulate: sums per neuron, entries that teach nobody, frozen neurons."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cases
import hebbkern as hk
import oracle


def entries(layer, dtype, ranks=3, each=True, seed=0, device=None, **geometry):
    """targets with some nobody, coefficients with some zeros, responses."""
    count = len(hk.reference.unfold(np.zeros(layer.x), layer.kernel, **geometry))
    targets = torch.randint(-1, layer.neurons, (count, ranks), **cases.generator(seed), dtype=torch.int32)
    shape, dtype = (count, ranks) if each else (ranks,), oracle.result_dtype(dtype)
    coefficients = cases.random(shape, dtype, seed=seed) * cases.some(shape, seed=seed, share=0.8)
    responses = cases.random((count, ranks), dtype, seed=seed + 1)
    return tuple(tensor.to(cases.here(device)) for tensor in (targets, coefficients, responses))


@pytest.mark.parametrize("each", [True, False], ids=["each", "rank"])
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_sums(backend, layer, dtype, patches, each):
    x, _ = cases.tensors(layer, dtype, backend.device)
    targets, coefficients, responses = entries(layer, dtype, each=each, device=backend.device, **layer.geometry)
    options = {"neurons": layer.neurons, "kernel": layer.kernel, "patches": patches, **layer.geometry}
    for options["responses"], who in ((responses, targets), (None, targets.long())):
        oracle.check_accumulate(hk.ops.accumulate(x, who, coefficients, **options), x, who, coefficients, **options)


@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_layouts(backend, layer, of_x):
    """Of the patches, and of the entries."""
    for dtype in cases.DTYPES:
        x = cases.laid_out(cases.tensors(layer, dtype, backend.device)[0], of_x)
        given = entries(layer, dtype, device=backend.device, **layer.geometry)
        targets, coefficients, responses = (cases.laid_out(tensor, of_x) for tensor in given)
        options = {"neurons": layer.neurons, "kernel": layer.kernel, "responses": responses, **layer.geometry}
        got = hk.ops.accumulate(x, targets, coefficients, **options)
        oracle.check_accumulate(got, x, targets, coefficients, **options)


@pytest.mark.parametrize("layer", cases.LARGE, ids=str)
def test_large_layers(backend, layer):
    x, _ = cases.tensors(layer, torch.float32, backend.device)
    targets, c, responses = entries(layer, torch.float32, device=backend.device, **layer.geometry)
    options = {"neurons": layer.neurons, "kernel": layer.kernel, "responses": responses, **layer.geometry}
    for patches in cases.PATCHES:
        got = hk.ops.accumulate(x, targets, c, patches=patches, **options)
        oracle.check_accumulate(got, x, targets, c, patches=patches, **options)


@given(drawn=cases.drawn(), data=st.data())
def test_drawn_layers(backend, drawn, data):
    layer, x, _, geometry = drawn
    where = {name: value for name, value in geometry.items() if name != "patches"}
    ranks, each = data.draw(st.integers(0, 5)), data.draw(st.booleans())
    targets, coefficients, responses = entries(layer, x.dtype, ranks, each, data.draw(st.integers(0, 99)), **where)
    frozen = cases.some(layer.neurons) if data.draw(st.booleans()) else None
    options = {"neurons": layer.neurons, "kernel": layer.kernel, "frozen": frozen, **geometry}
    options["responses"] = responses if data.draw(st.booleans()) else None
    got = hk.ops.accumulate(x, targets, coefficients, **options)
    oracle.check_accumulate(got, x, targets, coefficients, **options)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_one_neuron_takes_everything(backend, dtype):
    """A list longer than any piece it is cut into, beside neurons that nobody teaches."""
    layer = cases.Layer((3000, 33), (5, 33))
    x, _ = cases.tensors(layer, dtype, backend.device)
    targets = torch.full((3000, 2), 2, dtype=torch.int32)
    targets[:, 1] = -1
    targets[1234, 1] = 4
    coefficients = torch.tensor([1.0, -0.4], dtype=oracle.result_dtype(dtype))
    got = hk.ops.accumulate(x, targets, coefficients, neurons=5)
    oracle.check_accumulate(got, x, targets, coefficients, 5)
    assert got[2].tolist() == [0, 0, 3000, 0, 1] and not got[0][[0, 1, 3]].any()


def test_the_same_neuron_twice_in_a_patch(backend):
    x, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[1, 1, 1]])
    responses = torch.tensor([[10.0, 100.0, 1000.0]])
    for c in (torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[1.0, 2.0, 0.0]])):
        total, decay, count = hk.ops.accumulate(x, targets, c, neurons=2, responses=responses)
        assert total.tolist() == [[0, 0], [3, 6]] and decay.tolist() == [0, 210] and count.tolist() == [0, 2]


def test_frozen_rows_are_zero(backend):
    layer = cases.CONVOLUTION[2]
    x, _ = cases.tensors(layer, torch.float32, backend.device)
    targets, coefficients, responses = entries(layer, torch.float32, device=backend.device, **layer.geometry)
    options = {"neurons": layer.neurons, "kernel": layer.kernel, "responses": responses, **layer.geometry}
    plain = hk.ops.accumulate(x, targets, coefficients, **options)
    frozen = cases.some(layer.neurons, backend.device)
    for result, other in zip(hk.ops.accumulate(x, targets, coefficients, frozen=frozen, **options), plain, strict=True):
        assert not result[frozen].any() and torch.equal(result[~frozen], other[~frozen])


def test_integer_sums_are_exact(backend):
    for layer in cases.LAYERS:
        x = cases.integers(layer.x, -3, 3, device=backend.device)
        targets, _, _ = entries(layer, torch.float32, device=backend.device, **layer.geometry)
        options = {"neurons": layer.neurons, "kernel": layer.kernel, **layer.geometry}
        got = hk.ops.accumulate(x, targets, torch.tensor([1.0, -2.0, 0.5]), **options)
        want = hk.reference.accumulate(oracle.exact(x), oracle.exact(targets), [1.0, -2.0, 0.5], **options)
        assert all((oracle.exact(a) == b).all() for a, b in zip(got, want, strict=True))


def test_winners_of_compete_teach(backend):
    """The stages fit together: the sums of both halves of a batch are the sum of the whole."""
    for layer in cases.FEW:
        x, weight = cases.tensors(layer, torch.float64, backend.device)
        options = {"neurons": layer.neurons, "kernel": layer.kernel, **layer.geometry}
        c, parts = torch.tensor([1.0, -0.4], dtype=torch.float64), []
        for part in (x, x[: len(x) // 2], x[len(x) // 2 :]):
            winners, responses = hk.ops.compete(part, weight, k=2, **layer.geometry)
            parts.append(hk.ops.accumulate(part, winners, c, responses=responses, **options))
        for whole, first, second in zip(*parts, strict=True):
            assert torch.allclose(whole, first + second, rtol=1e-12, atol=1e-12)
