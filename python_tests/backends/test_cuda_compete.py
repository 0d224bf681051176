"""compete by the CUDA kernels: tiles, shares of neurons, lists of many winners, orders of threads, launches."""

import sys

import pytest
import torch

import calls
import cases
import hebbkern as hk
import oracle
from hebbkern import backends

if reason := backends.available()["cuda"]:
    pytest.skip(reason, allow_module_level=True)

HOST = sys.modules.get("_cuda_host")
needs_emulation = pytest.mark.skipif(HOST is None, reason="reads counters of the kernels compiled for the CPU")
DEVICE = "cpu" if HOST else "cuda"

LAYERS = [
    cases.Layer((33, 70), (300, 70)),  # one by one; blocks that share the neurons
    cases.Layer((40, 68), (130, 68)),  # 128 bits at a time, the last step not full
    cases.Layer((140, 24), (130, 24)),  # blocks of 128 patches
    cases.CONVOLUTION[3],
    cases.Layer((3, 4, 9, 9), (70, 4, 3, 3), {"padding": 1}),  # neurons 128 bits at a time, patches one by one
]


@pytest.fixture(autouse=True)
def by_cuda():
    with hk.backend("cuda"), hk.screening(False):
        yield


@pytest.fixture
def orders():
    """Calls a function in several orders of threads and blocks."""
    yield lambda f: [f() for number in range(4) if HOST is None or HOST.seed(number) is None]
    if HOST:
        HOST.seed(1)


def noted(mode, *arguments, **options):
    """Launches of a competition; mode 1: that runs, 2: on a larger GPU, without running there."""
    HOST.note(mode)
    try:
        hk.ops.compete(*arguments, **options)
        return HOST.launches()
    finally:
        HOST.note(0)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_any_order_of_threads_gives_the_same_bits(layer, dtype, orders, poison):
    x, weight = cases.tensors(layer, dtype, DEVICE)
    poison()
    for options in ({"k": 1}, {"k": 3, "p": 3.0, "patches": "centred"}, {"k": 40, "cosine": True}):
        results = orders(lambda options=options: hk.ops.compete(x, weight, **options, **layer.geometry))
        oracle.check_compete(results[0], x, weight, **options, **layer.geometry)
        assert all(calls.same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("groups, each, channels, k", [(7, 1, 1, 1), (3, 8, 2, 3), (2, 9, 20, 9), (2, 66, 1, 3)])
def test_a_group_wins_what_it_wins_alone(groups, each, channels, k, dtype, orders, poison):
    """Few neurons a group or several tiles; half types alone are added up in another order, by tensor cores."""
    layer = cases.Layer((3, groups * channels, 6, 8), (groups * each, channels, 3, 4), {"padding": 1})
    x, weight = cases.tensors(layer, dtype, DEVICE)
    x[0] = 0
    mask = cases.some(layer.neurons, DEVICE, share=0.8)
    poison()
    for options in ({}, {"cosine": True, "patches": "standardised"}, {"p": 3.0, "patches": "centred"}):

        def compete(options=options):
            return hk.ops.compete(x, weight, k, eligible=mask, groups=groups, padding=1, **options)

        results = orders(compete)
        with hk.screening("always"):  # only of one group
            results.append(compete())
        assert all(calls.same_bits(results[0], other) for other in results[1:])
        chunks = (tensor.chunk(groups) for tensor in (weight, mask, *results[0]))
        for group, (image, own, some, winners, responses) in enumerate(zip(x.chunk(groups, 1), *chunks, strict=True)):
            alone = hk.ops.compete(image, own, k, eligible=some, padding=1, **options)
            got = torch.where(winners < 0, winners, winners - group * each), responses
            if dtype.itemsize > 2:
                assert calls.same_bits(got, alone)
            else:
                assert (got[0] != alone[0]).float().mean() < 0.01
                torch.testing.assert_close(got[1], alone[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 32, 33, 64])
@pytest.mark.parametrize("patches", [3, 20, 130])
def test_everybody_enters_the_lists(patches, k):
    """Neurons from the weakest to the strongest, the other way around, equal in fives, and all equal."""
    strength = torch.arange(300, dtype=torch.float32, device=DEVICE)
    x = torch.ones(patches, 5, device=DEVICE)
    fives = strength.div(5).floor()
    for rising in (strength, -strength, fives, -fives, strength * 0):
        weight = rising[:, None].expand(300, 5)
        winners, responses = hk.ops.compete(x, weight, k)
        first = torch.sort(rising, descending=True, stable=True)
        assert (winners == first.indices[:k]).all()
        assert (responses == 5 * first.values[:k]).all()


@pytest.mark.parametrize("options", [{}, {"cosine": True}, {"patches": "standardised", "p": 3.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_response_is_the_same_in_any_company(dtype, options):
    """To the bit, however large the blocks and whether they share the neurons; so are the winners."""
    x, weight = cases.tensors(cases.Layer((400, 70), (260, 70)), dtype, DEVICE)
    mask = cases.some(260, DEVICE, share=0.8)
    for k in (1, 7):
        whole = hk.ops.compete(x, weight, k, eligible=mask, **options)
        for some in (slice(0, 1), slice(5, 38), slice(100, 270)):
            part = hk.ops.compete(x[some], weight, k, eligible=mask, **options)
            assert calls.same_bits(part, tuple(result[some].contiguous() for result in whole))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_rows_of_any_alignment(dtype):
    """Contiguous tensors that begin anywhere, patches that begin anywhere, and rows that overlap."""
    memory = cases.random((4000,), dtype, DEVICE)
    for offset in range(9):
        for inputs in (24, 28):
            weight = memory[offset : offset + 70 * inputs].view(70, inputs)
            for step in (inputs, inputs + 1, inputs + 4, 8):
                x = memory.as_strided((20, inputs), (step, 1), offset)
                oracle.check_compete(hk.ops.compete(x, weight, 2), x, weight, 2)


@pytest.mark.parametrize("size", [1e-25, 1e25])
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_cosines_of_any_scale(layer, patches, size):
    x, weight = cases.tensors(layer, torch.float32, DEVICE)
    options = {"k": 2, "cosine": True, "patches": patches, **layer.geometry}
    winners, cosines = hk.ops.compete(x * size, weight * size, **options)
    want = hk.ops.compete(x, weight, **options)
    assert torch.equal(winners, want[0])
    torch.testing.assert_close(cosines, want[1])


@pytest.mark.parametrize("patches", cases.PATCHES)
def test_moments_of_long_patches(patches):
    """More entries than lanes, of patches whose mean hides what differs."""
    for layer in (cases.Layer((5, 1000), (3, 1000)), cases.Layer((1, 40, 7, 7), (3, 40, 5, 5), {"padding": 1})):
        x, weight = cases.tensors(layer, torch.float32, DEVICE, offset=3.0)
        for options in ({}, {"cosine": True}):
            got = hk.ops.compete(x, weight, k=3, patches=patches, **options, **layer.geometry)
            oracle.check_compete(got, x, weight, k=3, patches=patches, **options, **layer.geometry)


def test_whole_numbers_are_divided_exactly():
    """Images beyond the first, taps beyond the first channel: their addresses come from multiplications and shifts."""
    x = cases.integers((7, 13, 5, 11), -2, 2, device=DEVICE)
    weight = cases.integers((9, 13, 2, 3), -2, 2, device=DEVICE, seed=1)
    for geometry in ({}, {"stride": (2, 3), "padding": (1, 2), "dilation": (3, 4)}):
        got = hk.ops.compete(x, weight, 9, **geometry)
        want = hk.reference.compete(oracle.exact(x), oracle.exact(weight), 9, **geometry)
        assert (oracle.exact(got[0]) == want[0]).all() and (oracle.exact(got[1]) == want[1]).all()


@needs_emulation
def test_launches():
    for patches, neurons, p, expected in (
        (1, 130, 2.0, ["moments", "compete", "compete.merge"]),
        (400, 60, 2.0, ["moments", "compete"]),
        (1, 130, 3.0, ["compete.powers", "moments", "compete", "compete.merge"]),
    ):
        x, weight = torch.ones(patches, 9), torch.ones(neurons, 9)
        launches = noted(1, x, weight, k=2, p=p, patches="centred")
        assert [launch[0] for launch in launches] == expected
        assert [launch[0] for launch in noted(1, x, weight, k=2, p=p)] == [n for n in expected if n != "moments"]
    assert noted(1, torch.ones(0, 9), torch.ones(3, 9)) == []


@needs_emulation
def test_groups_take_no_launches_of_their_own():
    x = torch.ones(64, 128, 28, 28)
    for groups, kernels in (
        (128, ["moments", "compete.few"]),
        (2, ["moments", "compete"]),
        (1, ["moments", "compete"]),
    ):
        launches = noted(2, x, torch.ones(128, 128 // groups, 3, 3), cosine=True, padding=1, groups=groups)
        assert [launch[0] for launch in launches] == kernels
        assert launches[-1][1][0] >= 64 * 28 * 28 * groups // 256


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 16, 17, 64])
@pytest.mark.parametrize("patches", [1, 17, 64, 1000, 10**6])
def test_blocks_fit_any_gpu(patches, k, dtype):
    """99 kB of shared memory are what the smallest has; as many lists as are merged."""
    x, weight = torch.ones(1, 1, dtype=dtype).expand(patches, 40), torch.ones(2000, 40, dtype=dtype)
    for name, grid, threads, shared, *_ in noted(2, x, weight, k=k):
        assert threads in (32, 64, 128, 256) and shared <= 98 * 1024 and grid[1] * k <= 1024, name
