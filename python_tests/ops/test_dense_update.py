"""dense_update: the dense rules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cases
import hebbkern as hk
import oracle
from hebbkern.backends import dense

RULES = [
    {"activation": activation, "decay": decay}
    for activation in ("linear", "relu", "tanh", "softmax")
    for decay in ("triangular", "diagonal", "activity", "none")
    if activation != "softmax" or decay in ("diagonal", "none")
]
MANY_PATCHES = [  # for which the compiled kernels make a matrix of neurons x neurons
    cases.Layer((1300, 37), (53, 37)),
    cases.Layer((1300, 90), (101, 90)),
    cases.Layer((9, 3, 16, 13), (20, 3, 3, 3), {"padding": 1}),
]


def name(rule):
    return f"{rule['activation']}-{rule['decay']}"


def scaled(layer, dtype, device=None, seed=0):
    """Responses of about 1, so that tanh and softmax bend."""
    x, weight = cases.tensors(layer, dtype, device, seed)
    return x, (weight / weight[0].numel() ** 0.5).to(dtype)


@pytest.mark.parametrize("rule", RULES, ids=name)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", cases.LAYERS + MANY_PATCHES, ids=str)
def test_sums(backend, layer, dtype, patches, rule):
    x, weight = scaled(layer, dtype, backend.device)
    options = {**rule, "patches": patches, **layer.geometry}
    oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("layer", cases.FEW + MANY_PATCHES[1:], ids=str)
def test_layouts(backend, layer, of_x, of_weight):
    for dtype in cases.DTYPES:
        x, weight = scaled(layer, dtype, backend.device)
        x, weight = cases.laid_out(x, of_x), cases.laid_out(weight, of_weight)
        oracle.check_dense_update(hk.ops.dense_update(x, weight, **layer.geometry), x, weight, **layer.geometry)


@pytest.mark.parametrize("layer", cases.LARGE, ids=str)
def test_large_layers(backend, layer):
    x, weight = scaled(layer, torch.float32, backend.device)
    for rule in ({}, {"activation": "tanh", "decay": "diagonal"}, {"activation": "softmax", "decay": "none"}):
        options = {**rule, "patches": "centred", **layer.geometry}
        oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("at_once", [1, 500, 2**25])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last"])
@pytest.mark.parametrize("layer", cases.CONVOLUTION, ids=str)
def test_products_with_patches_of_images(layer, layout, at_once, monkeypatch):
    """YᵀX of the dense rules on a GPU, however many patches are written out at a time."""
    monkeypatch.setattr(dense, "UNFOLDED", at_once)
    x = cases.laid_out(cases.random(layer.x, torch.float64), layout)
    geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    geometry |= {name: value if isinstance(value, tuple) else (value, value) for name, value in layer.geometry.items()}
    X = hk.reference.unfold(x.numpy(), layer.kernel, **geometry)
    y = cases.random((len(X), layer.neurons), torch.float64, seed=1)
    want = y.T @ torch.tensor(X)
    assert torch.allclose(dense.gradient(y, x, layer.kernel, *geometry.values()), want)
    as_given = torch.nn.functional.conv2d(x, torch.zeros(layer.weight, dtype=x.dtype), **geometry).permute(0, 2, 3, 1)
    as_given = y.reshape(as_given.shape).permute(0, 3, 1, 2)
    assert torch.allclose(dense.gradient(as_given, x, layer.kernel, *geometry.values()), want)


@pytest.mark.parametrize("channels, kernel, whole", [(28, 3, False), (29, 3, True), (200, 1, False), (300, 1, True),
                                                     (40, 5, False)])  # fmt: skip
def test_patches_of_many_inputs_are_not_written_out(backend, channels, kernel, whole, monkeypatch):
    """More than 256 inputs of a kernel that is at most 3x3; sums and gram are the oracle's on both sides."""
    seen, gradient = [], dense.gradient
    monkeypatch.setattr(dense, "gradient", lambda y, *rest: seen.append(y.dim()) or gradient(y, *rest))
    layer = cases.Layer((2, channels, 6, 7), (70, channels, kernel, kernel), {"padding": kernel // 2})
    x, weight = scaled(layer, torch.float32, backend.device)
    for rule in ({}, {"decay": "diagonal", "patches": "standardised"}):
        options = {**rule, **layer.geometry}
        oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)
    assert backend.name in ("cpu", "eager") or set(seen) == {4 if whole else 2}


@given(drawn=cases.drawn(), data=st.data())
def test_drawn_layers(backend, drawn, data):
    layer, x, weight, geometry = drawn
    frozen = cases.some(layer.neurons) if data.draw(st.booleans()) else None
    options = {**data.draw(st.sampled_from(RULES)), "frozen": frozen, **geometry}
    options["temperature"] = data.draw(st.sampled_from([0.5, 1.0, 3.0]))
    oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("decay", ["triangular", "diagonal", "activity", "none"])
@pytest.mark.parametrize(
    "shape", [(300, 20, 65), (20, 65, 300), (64, 257, 257), (1, 40, 130), (1600, 65, 20), (1600, 20, 130)], ids=str
)
def test_more_patches_than_neurons_and_fewer(backend, shape, decay):
    """Both orders in which the triangular decay can be worked out."""
    batch, inputs, neurons = shape
    x, weight = scaled(cases.Layer((batch, inputs), (neurons, inputs)), torch.float32, backend.device)
    for activation in ("linear", "relu"):
        got = hk.ops.dense_update(x, weight, activation=activation, decay=decay)
        oracle.check_dense_update(got, x, weight, activation, decay)


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_frozen_neurons_take_part_but_learn_nothing(backend, rule):
    for layer in (cases.FEW[1], cases.FEW[2], MANY_PATCHES[1]):
        x, weight = scaled(layer, torch.float32, backend.device)
        frozen = cases.some(layer.neurons, backend.device)
        total, _ = hk.ops.dense_update(x, weight, frozen=frozen, **rule, **layer.geometry)
        plain, _ = hk.ops.dense_update(x, weight, **rule, **layer.geometry)
        assert not total[frozen].any() and torch.equal(total[~frozen], plain[~frozen])


@pytest.mark.slow(20, on="triton")
def test_integers_are_exact(backend):
    exact = [rule for rule in RULES if rule["activation"] in ("linear", "relu")]
    for layer in cases.FEW if backend.name == "triton" else cases.LAYERS + MANY_PATCHES:
        x = cases.integers(layer.x, -1, 1, torch.float64, backend.device)
        weight = cases.integers(layer.weight, -1, 1, torch.float64, backend.device, seed=1)
        for rule in exact:
            got, _ = hk.ops.dense_update(x, weight, **rule, **layer.geometry)
            want, _ = hk.reference.dense(oracle.exact(x), oracle.exact(weight), **rule, **layer.geometry)
            assert (oracle.exact(got) == want).all()


def test_softmax_of_large_responses_is_finite(backend):
    x, weight = cases.random((20, 30), scale=1e3), cases.random((12, 30), seed=1, scale=1e2)
    got = hk.ops.dense_update(x, weight, activation="softmax", decay="diagonal", temperature=0.1)
    assert got[0].isfinite().all() and got[0].any()


def test_softmax_ties_are_won_by_the_lower_index(backend):
    x, weight = torch.ones(1, 2), torch.ones(4, 2)
    total, _ = hk.ops.dense_update(x, weight, activation="softmax", decay="none")
    assert torch.equal(total, torch.tensor([0.25, -0.25, -0.25, -0.25])[:, None].expand(4, 2))


def test_sums_add_up_over_parts_of_a_batch(backend):
    for layer in cases.FEW:
        x, weight = scaled(layer, torch.float64, backend.device)
        for rule in RULES:
            whole, first, second = (
                hk.ops.dense_update(part, weight, **rule, **layer.geometry)
                for part in (x, x[: len(x) // 2], x[len(x) // 2 :])
            )
            assert torch.allclose(whole[0], first[0] + second[0], rtol=1e-11, atol=1e-11)
            assert whole[1] == first[1] + second[1]
