"""The three algorithms of the dense rules on Triton: sums, steps, launches, NaN, and guarded outputs."""

import itertools

import pytest
import torch

import calls
import cases
import hebbkern as hk
import interpreted
import oracle

triton = pytest.importorskip("triton", reason="triton is not installed")
import triton.language as tl  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from hebbkern.backends import dense  # noqa: E402
from hebbkern.backends.triton import launch, responses  # noqa: E402
from hebbkern.backends.triton.launchers import LAUNCHERS  # noqa: E402

ALGORITHMS = ["general", "residual", "on chip"]
RULES = [("relu", "triangular"), ("tanh", "triangular"), ("linear", "diagonal"), ("tanh", "none"), ("relu", "activity")]
SOFT = [("softmax", "diagonal"), ("softmax", "none")]
LAYERS = [  # at most 64 neurons and inputs
    cases.Layer((1, 1), (1, 1)),
    cases.Layer((37, 63), (33, 63)),
    cases.Layer((150, 20), (64, 20)),
    cases.Layer((2, 3, 9, 8), (17, 3, 4, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    cases.Layer((5, 6, 7, 8), (50, 6, 3, 3), {"padding": 1}),
]
FAKE = [  # layers for each algorithm
    ("general", (4096, 300), (200, 300), {}),
    ("general", (16, 3, 32, 32), (96, 3, 5, 5), {"padding": 2}),
    ("residual", (64, 2304), (4096, 2304), {}),
    ("residual", (1, 256, 7, 7), (4096, 256, 3, 3), {}),
    ("on chip", (50000, 64), (64, 64), {}),
    ("on chip", (16, 3, 32, 32), (64, 3, 3, 3), {"padding": 1}),
]


@pytest.fixture
def triton_backend():
    reason = hk.backends.available()["triton"]
    if reason:
        pytest.skip(reason)
    with hk.backend("triton"):
        yield "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def force(monkeypatch):
    return lambda algorithm: monkeypatch.setattr(dense, "algorithm", lambda *shapes: algorithm)


def scaled(layer, dtype, device):
    x, weight = cases.tensors(layer, dtype, device)
    return x, (weight / weight[0].numel() ** 0.5).to(dtype)


def rules_of(algorithm):
    return {"general": RULES + SOFT, "residual": RULES[:2], "on chip": RULES + SOFT}[algorithm]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_gives_the_sums(triton_backend, force, algorithm, layer, dtype):
    force(algorithm)
    x, weight = scaled(layer, dtype, triton_backend)
    frozen = cases.some(layer.neurons, triton_backend)
    for (activation, decay), patches in itertools.product(rules_of(algorithm), cases.PATCHES):
        options = {"activation": activation, "decay": decay, "patches": patches, "frozen": frozen, **layer.geometry}
        oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("algorithm", ["general", "on chip"])
def test_decay_by_activity(triton_backend, force, algorithm, layer, dtype):
    """YᵀX - diag(Σ y) W in float64, in a tolerance of the numbers that are summed; steps have the bits of the sum."""
    force(algorithm)
    x, weight = scaled(layer, dtype, triton_backend)
    W = torch.tensor(oracle.exact(weight)).flatten(1)
    for activation, patches in itertools.product(("linear", "relu", "tanh"), cases.PATCHES):
        X = torch.tensor(hk.reference.unfold(oracle.exact(x), layer.kernel, patches, **layer.geometry))
        U = X @ W.T
        Y = {"linear": U, "relu": U.relu(), "tanh": U.tanh()}[activation]
        want, size = Y.T @ X - Y.sum(0)[:, None] * W, Y.abs().T @ X.abs() + Y.abs().sum(0)[:, None] * W.abs()
        options = {"activation": activation, "decay": "activity", "patches": patches, **layer.geometry}
        total, count = hk.ops.dense_update(x, weight, **options)
        eps = torch.finfo(total.dtype).eps
        off = (total.cpu().double().flatten(1) - want).abs()
        assert (off <= 40 * eps * (size + size.max())).all() and count.item() == len(X)
        parts, fused = weight.clone(), weight.clone()
        hk.ops.apply_(parts, total, denominator=count, lr=0.1)
        hk.ops.dense_step_(fused, x, lr=0.1, **options)
        assert calls.same_bits([parts], [fused])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS[1:], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_takes_the_step_of_its_sum(triton_backend, force, algorithm, layer, dtype):
    force(algorithm)
    x, weight = scaled(layer, dtype, triton_backend)
    frozen = cases.some(layer.neurons, triton_backend)
    for patches, mask in (("raw", None), ("standardised", frozen)):
        options = {"patches": patches, "frozen": mask, **layer.geometry}
        parts, fused = weight.clone(), weight.clone()
        total, count = hk.ops.dense_update(x, parts, **options)
        hk.ops.apply_(parts, total, denominator=count, lr=0.1, frozen=mask)
        hk.ops.dense_step_(fused, x, lr=0.1, **options)
        assert calls.same_bits([parts], [fused]) and not torch.equal(fused, weight)


def test_split_products_are_float32(triton_backend, force):
    """The interpreter multiplies tf32x3 as it multiplies float32; what is tested is that every kernel takes it."""
    torch.set_float32_matmul_precision("high")
    try:
        for algorithm, layer in itertools.product(ALGORITHMS, LAYERS[1:4]):
            force(algorithm)
            x, weight = scaled(layer, torch.float32, triton_backend)
            oracle.check_dense_update(hk.ops.dense_update(x, weight, **layer.geometry), x, weight, **layer.geometry)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_settings_of_products_are_put_back():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def settings():
        flags = cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision, matmul.fp32_precision
        return *flags, torch.get_float32_matmul_precision(), torch.get_num_threads()

    x, before = torch.zeros(1), settings()
    with pytest.raises(KeyError), dense.exact_products(x):
        assert settings()[:5] == (False, True, "ieee", "ieee", "highest")
        raise KeyError
    assert settings() == before


def fake(shape, dtype):
    return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("case", FAKE, ids=lambda case: f"{case[0]}-{case[1]}")
def test_few_launches_and_nothing_read(case, patches, dtype):
    """On fake tensors, whose values cannot be read."""
    algorithm, x_shape, w_shape, geometry = case
    where = patches, *(hk.ops.library.pair(geometry.get(key, d)) for key, d in GEOMETRY), 1
    with FakeTensorMode(), launch.recorded() as launches:
        x, weight = fake(x_shape, dtype), fake(w_shape, dtype)
        frozen = fake(w_shape[0], torch.bool)
        total, count = LAUNCHERS["dense_update"](x, weight, "relu", "triangular", 1.0, *where, frozen)
        of_update = [entry.kernel.__name__ for entry in launches]
        LAUNCHERS["dense_step_"](weight, x, "relu", "triangular", 0.1, *where, frozen)
    assert total.shape == weight.shape and total.dtype == torch.float32 and count.shape == (1,)
    marks = {"general": "activate_kernel", "residual": "residual_kernel", "on chip": "gather_kernel"}
    assert marks[algorithm] in of_update and len(of_update) <= 4
    assert 1 < len(launches) - len(of_update) <= 5


GEOMETRY = (("stride", 1), ("padding", 0), ("dilation", 1))


@pytest.mark.parametrize("patches", ["raw", "standardised"])
@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("argument", ["x", "weight"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bad_number_reaches_the_sum(triton_backend, force, monkeypatch, algorithm, argument, bad, patches):
    """Nothing may turn it into a number: apply_ is where a GPU finds it."""
    force(algorithm)
    for layer, (activation, decay) in itertools.product(LAYERS[1:4:2], rules_of(algorithm)):
        arguments = dict(zip(("x", "weight"), scaled(layer, torch.float32, triton_backend), strict=True))
        arguments[argument].view(-1)[-1] = bad
        options = {"activation": activation, "decay": decay, "patches": patches, **layer.geometry}
        with interpreted.unreadable(monkeypatch):
            total, _ = hk.ops.dense_update(**arguments, **options)
        assert not total.isfinite().all(), (layer, activation, decay)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_an_overflow_of_responses_reaches_the_sum(triton_backend, force, monkeypatch, algorithm, activation):
    """Of the kind that f would swallow: relu(-inf) is 0, tanh(inf) is 1."""
    force(algorithm)
    x, weight = torch.full((20, 30), 3e38), torch.full((10, 30), -3e38 if activation == "relu" else 3e38)
    with interpreted.unreadable(monkeypatch):
        total, _ = hk.ops.dense_update(x.to(triton_backend), weight.to(triton_backend), activation=activation)
    assert not total.isfinite().all()


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("activation", ["relu", "tanh", "linear", "softmax"])
def test_an_overflow_of_a_groups_responses_reaches_the_sum(triton_backend, monkeypatch, activation, patches):
    x, weight = cases.random((2, 6, 5, 4), device=triton_backend), cases.random((9, 2, 3, 3), device=triton_backend)
    weight[4] *= 1e38
    x *= 1e5
    options = {"activation": activation, "decay": "diagonal", "patches": patches, "groups": 3}
    total, _ = hk.ops.dense_update(x, weight * 1e-38, **options)
    assert total.isfinite().all()
    with interpreted.unreadable(monkeypatch):
        total, _ = hk.ops.dense_update(x, weight, **options)
    assert not total.isfinite().all()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_is_written_beside_the_outputs(triton_backend, force, monkeypatch, algorithm, layer):
    """The interpreter lets a stray store pass."""
    force(algorithm)
    x, weight = scaled(layer, torch.float32, triton_backend)
    with interpreted.guarded(monkeypatch):
        for activation, decay in rules_of(algorithm):
            options = {"decay": decay, "patches": "standardised", **layer.geometry}
            hk.ops.dense_update(x, weight, activation=activation, **options)
            if activation != "softmax":
                hk.ops.dense_step_(weight.clone(), x, activation=activation, lr=0.1, **options)


@triton.jit
def functions_kernel(u, e, t, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(u + at)
    tl.store(e + at, responses.exponential(-tl.abs(value)))
    tl.store(t + at, responses.hyperbolic_tangent(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponential_and_tanh_are_those_of_torch(triton_backend, dtype):
    sizes = torch.cat([torch.logspace(-30, 2.5, 2000, dtype=torch.float64), torch.linspace(0.4, 0.6, 2000).double()])
    special = torch.tensor([0.0, -0.0, 0.5, -0.5, 1e30, -1e30, float("nan")], dtype=torch.float64)
    u = torch.cat([sizes, -sizes, special]).to(dtype).to(triton_backend)
    u = torch.nn.functional.pad(u, (0, 8192 - len(u)))
    e, t = torch.empty_like(u), torch.empty_like(u)
    launch.launch(functions_kernel, (1,), u, e, t, N=8192)
    unit = torch.finfo(dtype).eps
    for got, want in ((e, torch.exp(-u.double().abs())), (t, torch.tanh(u.double()))):
        off = (got.double() - want).abs()
        smallest = torch.finfo(dtype).tiny  # below which a GPU may flush to zero
        known = ~u.isnan()
        assert got[~known].isnan().all() and (off <= 4 * unit * want.abs() + smallest)[known].all()


def test_shapes_choose_the_algorithm():
    assert dense.algorithm(50000, 64, 64, "triangular") == "on chip"
    assert dense.algorithm(65536, 96, 75, "triangular") == dense.algorithm(64, 4096, 2304, "diagonal") == "general"
    assert dense.algorithm(64, 4096, 2304, "triangular") == "residual"
    assert dense.algorithm(5000, 4096, 2304, "triangular") == "general"
    assert dense.PROCESSORS == launch.PROCESSORS
