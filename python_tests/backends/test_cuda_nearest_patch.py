"""nearest_patch by the kernels for GPUs: several tiles and runs, launches, any order of threads, extreme numbers."""

import sys

import pytest
import torch

import calls
import cases
import hebbkern as hk
import oracle
from hebbkern import backends

HOST = sys.modules.get("_cuda_host")  # the kernels compiled for the CPU, which record launches and take an order
DEVICE = "cpu" if HOST else "cuda"
on_host = pytest.mark.skipif(HOST is None, reason="needs the kernels compiled for the CPU")


@pytest.fixture(autouse=True)
def _cuda():
    if reason := backends.available()["cuda"]:
        pytest.skip(reason)
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hebbkern::nearest_patch.cuda", DEVICE.upper())
    with hk.backend("cuda"):
        yield


def launched(x, weight, mode=2, **options):
    """(kernel, grid, threads) of each launch; of mode 2 nothing runs."""
    HOST.note(mode)
    try:
        hk.ops.nearest_patch(x, weight, **options)
        return [(launch[0].split("<")[0], *launch[1:-1]) for launch in HOST.launches()]
    finally:
        HOST.note(0)


LAYERS = [  # neurons and patches on both sides of a tile, entries of a step; by 128 bits and one by one
    cases.Layer((65, 32), (65, 32)),
    cases.Layer((130, 48), (64, 48)),
    cases.Layer((129, 33), (16, 33)),
    cases.Layer((63, 1), (129, 1)),
    cases.Layer((192, 17), (3, 17)),
    cases.Layer((5, 3, 6, 6), (66, 3, 3, 3), {"padding": 1}),
    cases.Layer((3, 8, 9, 7), (17, 8, 2, 3), {"stride": 2, "dilation": (1, 2)}),
]


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_several_tiles(layer, dtype, patches):
    x, weight = cases.tensors(layer, dtype, DEVICE)
    options = {"patches": patches, **layer.geometry}
    mask = cases.some(layer.neurons, DEVICE, share=0.7)
    oracle.check_nearest_patch(hk.ops.nearest_patch(x, weight, eligible=mask, **options), x, weight, mask, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("neurons, tiles", [(9, 397), (2000, 13)])
def test_runs_of_several_tiles(neurons, tiles, dtype):
    """More tiles of patches than runs, so that each run walks over two, and the last over one."""
    x = cases.integers((64 * tiles - 5, 5), 0, 9, dtype, DEVICE, seed=2)
    weight = cases.integers((neurons, 5), 0, 9, dtype, DEVICE, seed=3)
    oracle.check_nearest_patch(hk.ops.nearest_patch(x, weight), x, weight)


@pytest.mark.parametrize("apart", [1, 4, 8, 63, 64, 65, 128, 400])
def test_of_equals_the_first_patch(apart):
    """Equal patches, three and more of them, in one lane, in others, in other tiles and runs."""
    x = cases.integers((apart, 12), 1, 5, device=DEVICE, seed=4).repeat(1200 // apart, 1)
    weight = cases.integers((100, 12), 1, 5, device=DEVICE, seed=5)
    nearest, _ = hk.ops.nearest_patch(x, weight)
    want, _ = hk.reference.nearest_patch(oracle.exact(x), oracle.exact(weight))
    assert nearest.max() < apart and (oracle.exact(nearest) == want).all()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_of_equal_quotients_the_first_patch(dtype):
    """|w - x|^2 / |x|_1 = n / n of n ones and a neuron of zeros, where n times a rounded 1 / n is not always 1."""
    x, weight = torch.ones(100, 100, dtype=dtype, device=DEVICE).tril(), torch.zeros(2, 100, dtype=dtype, device=DEVICE)
    for first in range(0, 100, 9):
        nearest, distance = hk.ops.nearest_patch(x.roll(-first, 0), weight)
        assert nearest.tolist() == [0, 0] and distance.tolist() == [1, 1]


def test_a_near_tie_is_measured():
    """Large squares cancel: the search cannot separate the two nearest, their differences can."""
    base = cases.integers((1, 64), 900, 1100, device=DEVICE, seed=5) * 8
    x = torch.cat([base + 1, base + 0.5, base * 2, base * 0.5])
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 0, 1]):
        nearest, distance = hk.ops.nearest_patch(x[order], base)
        assert nearest.item() == order.index(1)
        assert torch.allclose(distance, 64 * 0.25 / x[1].sum(), rtol=1e-6)


def test_patches_of_zeros_between_others():
    x = cases.random((150, 20), device=DEVICE)
    x[::2] = 0
    weight = torch.zeros(70, 20, device=DEVICE)
    nearest, _ = hk.ops.nearest_patch(x, weight)
    assert (nearest % 2 == 1).all()
    oracle.check_nearest_patch(hk.ops.nearest_patch(x, weight + 0.1), x, weight + 0.1)
    for nothing in (x[:0], torch.zeros_like(x)):
        nearest, distance = hk.ops.nearest_patch(nothing, weight)
        assert (nearest == -1).all() and distance.isinf().all()


def test_tiles_of_neurons_that_are_not_eligible():
    x, weight = cases.random((70, 20), device=DEVICE), cases.random((200, 20), device=DEVICE)
    for first in (200, 150, 127):
        mask = torch.arange(200, device=DEVICE) >= first
        nearest, distance = hk.ops.nearest_patch(x, weight, eligible=mask)
        assert (nearest[:first] == -1).all() and distance[:first].isinf().all()
        oracle.check_nearest_patch((nearest, distance), x, weight, mask)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("groups, each, channels", [(5, 1, 1), (3, 65, 2), (2, 70, 17)])
def test_a_group_finds_what_it_finds_alone(groups, each, channels, patches, dtype):
    layer = cases.Layer((3, groups * channels, 9, 8), (groups * each, channels, 2, 3))
    x, weight = cases.tensors(layer, dtype, DEVICE)
    mask = cases.some(layer.neurons, DEVICE, share=0.7)
    nearest, distance = hk.ops.nearest_patch(x, weight, eligible=mask, patches=patches, groups=groups)
    count = 3 * 8 * 6
    parts = zip(*(t.chunk(groups) for t in (nearest, distance, weight, mask)), x.chunk(groups, 1), strict=True)
    for group, (found, far, rows, some, image) in enumerate(parts):
        alone = hk.ops.nearest_patch(image, rows, eligible=some, patches=patches)
        assert calls.same_bits((torch.where(found < 0, found, found - group * count), far), alone)


@on_host
def test_overflow_of_eligible_neurons():
    """1e18 squared and divided by the length 1e-30 of a patch overflows; an ineligible neuron does not count."""
    x, weight = torch.full((1, 3), 1e-30), torch.ones(130, 3)
    weight[129] = 1e18
    with pytest.raises(ValueError, match="x and weight must give finite responses, got an overflow of float32"):
        hk.ops.nearest_patch(x, weight)
    nearest, _ = hk.ops.nearest_patch(x, weight, eligible=torch.arange(130) < 129)
    assert nearest.tolist() == [0] * 129 + [-1]


@on_host
def test_launches():
    x, weight = torch.zeros(1000, 784), torch.zeros(400, 784)
    lengths, nearest = ("nearest_patch.lengths", (175, 1, 1), 256), ("nearest_patch.nearest", (50, 1, 1), 256)
    launches = launched(x, weight)
    assert [launch[:3] for launch in launches] == [lengths, ("nearest_patch.search", (7, 16, 1), 128), nearest]
    launches = launched(x, weight, patches="centred")
    assert [launch[0] for launch in launches] == [
        "moments",
        "nearest_patch.lengths",
        "nearest_patch.search",
        "nearest_patch.nearest",
    ]
    launches = launched(torch.zeros(64, 3, 32, 32), torch.zeros(50, 3, 5, 5), mode=2)
    assert launches[1][:3] == ("nearest_patch.search", (1, 392, 1), 128)
    launches = launched(x.double(), weight.double())
    assert launches[1][:3] == ("nearest_patch.search", (7, 16, 1), 128)
    assert [launch[0] for launch in launched(x[:0], weight)] == ["nearest_patch.lengths", "nearest_patch.nearest"]
    launches = launched(torch.zeros(64, 128, 28, 28), torch.zeros(128, 1, 3, 3), groups=128, padding=1)
    assert [launch[:2] for launch in launches[1:]] == [
        ("nearest_patch.search", (128, 3, 1)),
        ("nearest_patch.nearest", (16, 1, 1)),
    ]


@on_host
@pytest.mark.parametrize("patches", ["raw", "standardised"])
@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[2], LAYERS[5]], ids=str)
def test_any_order_of_threads(layer, patches):
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = cases.tensors(layer, dtype, DEVICE)
        results = []
        for seed in (0, 1, 7, 12345):
            HOST.seed(seed)
            results.append(hk.ops.nearest_patch(x, weight, patches=patches, **layer.geometry))
            assert calls.same_bits(results[0], results[-1])
        oracle.check_nearest_patch(results[0], x, weight, patches=patches, **layer.geometry)
    HOST.seed(1)
