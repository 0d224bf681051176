"""The three algorithms of the dense rules on kernels compiled for GPUs: sums, steps, launches, thread orders, NaN."""

import dataclasses
import itertools
import sys

import pytest
import torch

import calls
import cases
import hebbkern as hk
import oracle
from hebbkern import backends
from hebbkern.backends import dense
from hebbkern.backends.cuda import stages as cuda

RULES = [("relu", "triangular"), ("tanh", "triangular"), ("linear", "diagonal"), ("tanh", "none")]
SOFT = [("softmax", "diagonal"), ("softmax", "none")]
ALL = [*RULES, ("relu", "activity"), *SOFT]
ALGORITHMS = {"general": ALL, "residual": RULES[:2], "on chip": ALL}
FITTING = [  # at most 64 neurons and inputs
    cases.Layer((1, 1), (1, 1)),
    cases.Layer((37, 63), (33, 63)),
    cases.Layer((150, 20), (64, 20)),
    cases.Layer((2, 3, 9, 8), (17, 3, 4, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    cases.Layer((5, 6, 7, 8), (50, 6, 3, 3), {"padding": 1}),
]
LARGER = [  # several tiles of neurons, inputs and patches, quads or not
    cases.Layer((150, 130), (97, 130)),
    cases.Layer((70, 68), (132, 68)),
    cases.Layer((3, 5, 9, 8), (75, 5, 4, 4), {"padding": 2}),
    cases.Layer((2, 18, 1, 1), (70, 18, 2, 3), {"padding": 2}),
]
LAYERS = {"general": FITTING + LARGER, "residual": FITTING + LARGER, "on chip": FITTING}
LONG = cases.Layer((9000, 33), (40, 33))  # runs of several tiles of patches
WIDE = cases.Layer((200, 520), (1030, 520))  # the larger tiles of neurons and inputs


@pytest.fixture
def device():
    reason = backends.available()["cuda"]
    if reason:
        pytest.skip(reason)
    with hk.backend("cuda"):
        yield "cpu" if "_cuda_host" in sys.modules else "cuda"


@pytest.fixture
def emulated(device):
    if device != "cpu":
        pytest.skip("needs the emulation (HEBBKERN_CUDA_HOST)")
    module = sys.modules["_cuda_host"]
    yield module
    module.note(0)
    module.seed(1)


@pytest.fixture
def force(monkeypatch):
    return lambda algorithm: monkeypatch.setattr(dense, "algorithm", lambda *shapes: algorithm)


def scaled(layer, dtype, device):
    x, weight = cases.tensors(layer, dtype, device)
    return x, (weight / weight[0].numel() ** 0.5).to(dtype)


def on_layers(*algorithms):
    return pytest.mark.parametrize(
        "algorithm, layer",
        [(algorithm, layer) for algorithm in algorithms or ALGORITHMS for layer in LAYERS[algorithm]],
        ids=str,
    )


def test_the_kernels_are_there(emulated):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hebbkern::_residual", "CPU")


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@on_layers()
def test_every_algorithm_gives_the_sums(device, force, algorithm, layer, dtype):
    force(algorithm)
    x, weight = scaled(layer, dtype, device)
    frozen = cases.some(layer.neurons, device)
    for (activation, decay), patches in itertools.product(ALGORITHMS[algorithm], cases.PATCHES):
        options = {"activation": activation, "decay": decay, "patches": patches, "frozen": frozen, **layer.geometry}
        oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@on_layers()
def test_every_algorithm_takes_the_step_of_its_sum(device, force, algorithm, layer, dtype):
    force(algorithm)
    x, weight = scaled(layer, dtype, device)
    frozen = cases.some(layer.neurons, device)
    for patches, mask in (("raw", None), ("centred", frozen)):
        options = {"patches": patches, "frozen": mask, **layer.geometry}
        parts, fused = weight.clone(), weight.clone()
        total, count = hk.ops.dense_update(x, parts, **options)
        hk.ops.apply_(parts, total, denominator=count, lr=0.1, frozen=mask)
        hk.ops.dense_step_(fused, x, lr=0.1, **options)
        assert calls.same_bits([parts], [fused])
        assert mask is None or calls.same_bits([fused[mask]], [weight[mask]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_runs_and_large_tiles(device, dtype):
    for layer, rules in ((LONG, RULES + SOFT), (WIDE, RULES[:1] + RULES[2:3])):
        x, weight = scaled(layer, dtype, device)
        for activation, decay in rules:
            options = {"activation": activation, "decay": decay, "patches": "centred"}
            oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
@pytest.mark.parametrize("of_x", cases.LAYOUTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_layouts(device, force, algorithm, of_x, of_weight):
    force(algorithm)
    for layer in LAYERS[algorithm][1:5] if algorithm == "on chip" else LARGER:
        x, weight = scaled(layer, torch.float32, device)
        x, weight = cases.laid_out(x, of_x), cases.laid_out(weight, of_weight)
        oracle.check_dense_update(hk.ops.dense_update(x, weight, **layer.geometry), x, weight, **layer.geometry)


@on_layers()
def test_threads_in_any_order_give_the_same_bits(emulated, force, algorithm, layer):
    force(algorithm)
    results = []
    for seed in (0, 1, 2, 3):
        emulated.seed(seed)
        x, weight = scaled(layer, torch.float32, "cpu")
        results.append([])
        for activation, decay in ALGORITHMS[algorithm]:
            options = {"activation": activation, "decay": decay, "patches": "standardised", **layer.geometry}
            results[-1].append(hk.ops.dense_update(x, weight, **options)[0])
        hk.ops.dense_step_(weight, x, lr=0.1, **layer.geometry)
        results[-1].append(weight)
    assert all(calls.same_bits(results[0], other) for other in results[1:])


LAUNCHES = {  # of a step with raw patches, and with centred ones
    "general": (["activate", "finish"], ["moments", "activate", "dense_update.add", "finish"]),
    "residual": (["activate", "residual.pack", "residual"], ["moments", "activate", "residual.pack", "residual"]),
    "on chip": (["on_chip", "dense_update.add", "finish"], ["moments", "on_chip", "dense_update.add", "finish"]),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_few_launches(emulated, force, algorithm):
    force(algorithm)
    for patches, names in zip(("raw", "centred"), LAUNCHES[algorithm], strict=True):
        x, weight = scaled(FITTING[2], torch.float32, "cpu")
        emulated.note(1)
        hk.ops.dense_step_(weight, x, lr=0.1, patches=patches)
        assert [kernel for kernel, *_ in emulated.launches()] == [*names, "apply.commit"]


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
@pytest.mark.parametrize("argument", ["x", "weight"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bad_number_reaches_the_sum(device, force, monkeypatch, algorithm, argument, bad):
    """Nothing may turn it into a number: what takes the step is where a GPU finds it."""
    force(algorithm)
    monkeypatch.setattr(cuda, "STAGES", dataclasses.replace(cuda.STAGES, readable=lambda tensor: False))
    for layer, (activation, decay) in itertools.product(FITTING[1:4:2], ALGORITHMS[algorithm]):
        arguments = dict(zip(("x", "weight"), scaled(layer, torch.float32, device), strict=True))
        arguments[argument].view(-1)[-1] = bad
        options = {"activation": activation, "decay": decay, "patches": "centred", **layer.geometry}
        total, _ = hk.ops.dense_update(**arguments, **options)
        assert not total.isfinite().all(), (layer, activation, decay)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_overflow_of_responses_reaches_the_sum(device, force, monkeypatch, algorithm, activation):
    """Of the kind that f would swallow: relu(-inf) is 0, tanh(inf) is 1."""
    force(algorithm)
    monkeypatch.setattr(cuda, "STAGES", dataclasses.replace(cuda.STAGES, readable=lambda tensor: False))
    x, weight = torch.full((20, 30), 3e38), torch.full((10, 30), -3e38 if activation == "relu" else 3e38)
    total, _ = hk.ops.dense_update(x.to(device), weight.to(device), activation=activation)
    assert not total.isfinite().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_that_overflows_leaves_the_weights(emulated, force, monkeypatch, algorithm):
    """Found by the last kernel alone."""
    force(algorithm)
    monkeypatch.setattr(cuda, "STAGES", dataclasses.replace(cuda.STAGES, readable=lambda tensor: False))
    for layer, place in itertools.product(FITTING[1:3], (0, -1)):
        x, weight = scaled(layer, torch.float32, "cpu")
        weight.view(-1)[place] = 3e38
        before = weight.clone()
        with pytest.raises(ValueError, match="weight must stay finite"):
            hk.ops.dense_step_(weight, x, lr=1.0, activation="linear")
        assert calls.same_bits([weight], [before])


def test_the_responses_of_softmax_in_several_tiles(device):
    """Of which the winner of a patch may lie in any, along either axis of U."""
    for layer in (cases.Layer((40, 100), (300, 100)), cases.Layer((3, 8, 6, 6), (200, 8, 3, 3), {"padding": 1})):
        x, weight = scaled(layer, torch.float32, device)
        for patches in cases.PATCHES:
            options = {"activation": "softmax", "decay": "diagonal", "patches": patches, **layer.geometry}
            oracle.check_dense_update(hk.ops.dense_update(x, weight, **options), x, weight, **options)
