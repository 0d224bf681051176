"""nearest_patch: the nearest patch of every neuron."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import calls
import cases
import hebbkern as hk
import oracle


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_nearest_and_distance(backend, layer, dtype, patches):
    x, weight = cases.tensors(layer, dtype, backend.device)
    options = {"patches": patches, **layer.geometry}
    oracle.check_nearest_patch(hk.ops.nearest_patch(x, weight, **options), x, weight, **options)


@pytest.mark.slow(10, on="triton")
@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_layouts(backend, layer, of_x, of_weight):
    for dtype in cases.DTYPES:
        x, weight = cases.tensors(layer, dtype, backend.device)
        x, weight = cases.laid_out(x, of_x), cases.laid_out(weight, of_weight)
        oracle.check_nearest_patch(hk.ops.nearest_patch(x, weight, **layer.geometry), x, weight, **layer.geometry)


@pytest.mark.parametrize("layer", cases.LARGE, ids=str)
def test_large_layers(backend, layer):
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    oracle.check_nearest_patch(hk.ops.nearest_patch(x, weight, **layer.geometry), x, weight, **layer.geometry)


@given(drawn=cases.drawn(), data=st.data())
def test_drawn_layers(backend, drawn, data):
    layer, x, weight, geometry = drawn
    eligible = cases.some(layer.neurons, seed=data.draw(st.integers(0, 99))) if data.draw(st.booleans()) else None
    oracle.check_nearest_patch(
        hk.ops.nearest_patch(x, weight, eligible=eligible, **geometry), x, weight, eligible, **geometry
    )


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_a_patch_that_is_a_weight(backend, layer, dtype):
    """Distance 0 where the difference of large squares must cancel, as for a neuron about to be frozen."""
    x, _ = cases.tensors(layer, dtype, backend.device)
    rows = hk.reference.unfold(oracle.exact(x), layer.kernel, **layer.geometry)
    chosen = np.arange(layer.neurons) * 7 % len(rows)
    weight = torch.from_numpy(rows[chosen]).to(backend.device, dtype).reshape(layer.weight)
    nearest, distance = hk.ops.nearest_patch(x, weight, **layer.geometry)
    assert nearest.tolist() == chosen.tolist()
    assert distance.max() <= 1e-4


@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_ties_go_to_the_first_patch(backend, layer):
    x = cases.integers(layer.x, 0, 1, device=backend.device, seed=3)
    weight = cases.integers(layer.weight, 0, 1, device=backend.device, seed=4)
    x[len(x) // 2 :] = x[: len(x) - len(x) // 2].clone()
    nearest, _ = hk.ops.nearest_patch(x, weight, **layer.geometry)
    want, _ = hk.reference.nearest_patch(oracle.exact(x), oracle.exact(weight), **layer.geometry)
    distances = hk.reference.distances(oracle.exact(x), oracle.exact(weight), **layer.geometry)
    smallest = np.sort(np.unique(distances.round(6), axis=1), axis=1)
    assert (oracle.exact(nearest) == want).all() and smallest.shape[1] > 1


def test_patches_of_zeros_are_never_nearest(backend):
    x, weight = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    nearest, distance = hk.ops.nearest_patch(x, weight)
    assert nearest.tolist() == [1, 1] and torch.allclose(distance, torch.tensor([162 / 18, 128 / 18]))
    for nothing in (x[:1], x[:0]):
        nearest, distance = hk.ops.nearest_patch(nothing, weight)
        assert nearest.tolist() == [-1, -1] and distance.tolist() == [torch.inf] * 2
    nearest, _ = hk.ops.nearest_patch(torch.full((1, 2, 4, 4), 0.3), torch.ones(2, 2, 3, 3), patches="standardised")
    assert nearest.tolist() == [-1, -1]


def test_mask(backend):
    x, weight = cases.tensors(cases.FEW[0], torch.float32, backend.device)
    eligible = cases.some(len(weight), backend.device)
    nearest, distance = hk.ops.nearest_patch(x, weight, eligible=eligible)
    oracle.check_nearest_patch((nearest, distance), x, weight, eligible)
    everyone = hk.ops.nearest_patch(x, weight)
    assert torch.equal(nearest[eligible], everyone[0][eligible]) and torch.equal(
        distance[eligible], everyone[1][eligible]
    )
    assert (nearest[~eligible] == -1).all() and distance[~eligible].isinf().all()


@pytest.mark.slow(8, on="triton")
@pytest.mark.parametrize("neurons", [500, 47])
def test_ties_and_bits_however_the_work_is_shared(backend, threads, neurons):
    """Panels by themselves on few threads, panels times blocks of patches on many: ties between blocks as well."""
    x, weight = cases.integers((300, 20), 0, 3, device=backend.device, seed=5), cases.random((neurons, 20), seed=6)
    x[150:] = x[:150].clone()
    weight = weight.to(backend.device)
    results = []
    for count in backend.threads if backend.any_threads else (2,):
        threads(count)
        results.append(hk.ops.nearest_patch(x, weight))
        assert results[-1][0].max() < 150
        assert calls.same_bits(results[0], results[-1])
    oracle.check_nearest_patch(results[0], x[:150], weight)


@pytest.mark.parametrize("neurons", [1000, 5])
@pytest.mark.parametrize("wrong, want", [(torch.nan, "weight must be finite"), (1e30, "finite")])
def test_one_wrong_weight_among_many(backend, neurons, wrong, want):
    x, weight = cases.random((20, 30)), cases.random((neurons, 30))
    weight[neurons - 2, 29] = wrong
    with calls.refused(backend.device, want, step=False):
        hk.ops.nearest_patch(x, weight)
