"""compete: winners and responses, ties, masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cases
import hebbkern as hk
import oracle

RESPONSES = [{"p": 1.0}, {}, {"p": 3.0}, {"p": 4.5}, {"cosine": True}]


def most(layer):
    return min(layer.neurons, 64)


@pytest.mark.parametrize("response", RESPONSES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_winners_and_responses(backend, layer, dtype, patches, response):
    x, weight = cases.tensors(layer, dtype, backend.device)
    options = {"k": min(layer.neurons, 5), "patches": patches, **response, **layer.geometry}
    oracle.check_compete(hk.ops.compete(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_one_and_the_most_winners(backend, layer):
    x, weight = cases.tensors(layer, torch.float64, backend.device)
    for k in {1, most(layer) // 2 or 1, most(layer)}:
        oracle.check_compete(hk.ops.compete(x, weight, k, **layer.geometry), x, weight, k, **layer.geometry)


@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_layouts(backend, layer, of_x, of_weight):
    for dtype in cases.DTYPES:
        x, weight = cases.tensors(layer, dtype, backend.device)
        x, weight = cases.laid_out(x, of_x), cases.laid_out(weight, of_weight)
        options = {"k": 3, "patches": "centred", **layer.geometry}
        oracle.check_compete(hk.ops.compete(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("response", [{}, {"p": 3.0}, {"cosine": True}], ids=str)
@pytest.mark.parametrize("layer", cases.LARGE, ids=str)
def test_large_layers(backend, layer, response):
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    options = {"k": 2, "patches": "centred", **response, **layer.geometry}
    oracle.check_compete(hk.ops.compete(x, weight, **options), x, weight, **options)


@given(drawn=cases.drawn(), data=st.data())
def test_drawn_layers(backend, drawn, data):
    layer, x, weight, geometry = drawn
    response = data.draw(st.sampled_from(RESPONSES))
    eligible = cases.some(layer.neurons, seed=data.draw(st.integers(0, 99))) if data.draw(st.booleans()) else None
    options = {"k": data.draw(st.integers(1, most(layer))), "eligible": eligible, **response, **geometry}
    oracle.check_compete(hk.ops.compete(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_masked_neurons_never_win(backend, layer, share):
    x, weight = cases.tensors(layer, torch.float32, backend.device)
    eligible = cases.some(layer.neurons, backend.device, share=share)
    for cosine in (False, True):
        options = {"k": min(layer.neurons, 6), "cosine": cosine, "eligible": eligible, **layer.geometry}
        winners, responses = hk.ops.compete(x, weight, **options)
        oracle.check_compete((winners, responses), x, weight, **options)
        assert (winners == -1).sum() == len(winners) * max(0, options["k"] - int(eligible.sum()))
        assert not responses[winners == -1].any()


def test_only_responses_below_zero(backend):
    """A neuron that may not win, or a rank that is empty, is no better than a negative response."""
    x, weight = -torch.ones(3, 8), torch.ones(5, 8) * torch.arange(1, 6)[:, None]
    eligible = torch.tensor([False, True, False, True, True])
    winners, responses = hk.ops.compete(x, weight, k=4, eligible=eligible)
    assert winners.tolist() == [[1, 3, 4, -1]] * 3
    assert responses.tolist() == [[-16.0, -32.0, -40.0, 0.0]] * 3


@pytest.mark.slow(14, on="triton")
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", cases.LAYERS, ids=str)
def test_ties_go_to_the_lower_index(backend, layer, dtype, p):
    """Responses of whole numbers are exact in any order of summation, and coarse enough to tie all the time."""
    x = cases.integers(layer.x, -1, 1, dtype, backend.device, seed=3)
    weight = cases.integers(layer.weight, -1, 1, dtype, backend.device, seed=4)
    weight[1::3] = weight[0]
    for k in {1, min(2, layer.neurons), most(layer)}:
        winners, responses = hk.ops.compete(x, weight, k, p=p, **layer.geometry)
        want = hk.reference.compete(oracle.exact(x), oracle.exact(weight), k, p, **layer.geometry)
        assert (oracle.exact(winners) == want[0]).all() and (oracle.exact(responses) == want[1]).all()


def test_cosine_ties_of_equal_rows(backend):
    """Rows that are powers of two apart have the same cosine, to the last bit."""
    weight = cases.random((1, 16)) * torch.tensor([2.0, 1.0, 4.0, 0.5, 1.0, 8.0, 1.0, 2.0, 1.0])[:, None]
    winners, _ = hk.ops.compete(cases.random((9, 16), seed=1), weight, k=9, cosine=True)
    assert winners.tolist() == [list(range(9))] * 9


@pytest.mark.slow(25, on="triton")
def test_all_equal(backend):
    patches = 70 if backend.name in ("cpu", "eager") else 7
    for cosine in (False, True):
        winners, responses = hk.ops.compete(torch.ones(patches, 9), torch.ones(300, 9), k=64, cosine=cosine)
        assert (winners == torch.arange(64)).all() and (responses == responses[0, 0]).all()


def test_zero_norms_have_cosine_zero(backend):
    x, weight = torch.tensor([[0.0, 0.0], [-1.0, -1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0], [-2.0, -2.0]])
    winners, responses = hk.ops.compete(x, weight, k=3, cosine=True)
    assert winners.tolist() == [[-1, -1, -1], [2, 1, 0]]
    assert torch.allclose(responses, torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]))


@pytest.mark.parametrize("patches", ["centred", "standardised"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_flat_patches_become_zeros(backend, dtype, patches):
    """A constant patch is its mean: centred, no neuron wins it."""
    x, weight = torch.full((2, 3, 9, 9), 0.1, dtype=dtype), cases.random((4, 3, 5, 5), dtype)
    for cosine in (False, True):
        winners, responses = hk.ops.compete(x, weight, k=4, cosine=cosine, patches=patches)
        assert (winners == -1).all() and not responses.any()


def test_p_norm_of_zero_weights_is_zero(backend):
    for p in (1.0, 1.5, 2.0, 3.0):
        _, responses = hk.ops.compete(torch.ones(2, 3), torch.zeros(4, 3), k=4, p=p)
        assert not responses.any()


def test_numbers_pairs_and_lists_are_the_same(backend):
    x, weight = cases.tensors(cases.CONVOLUTION[1], torch.float32, backend.device)
    first = hk.ops.compete(x, weight, stride=2, padding=1, dilation=1)
    for two, one in (((2, 2), (1, 1)), ([2, 2], [1, 1])):
        again = hk.ops.compete(x, weight, stride=two, padding=one, dilation=one)
        assert all(map(torch.equal, first, again))
