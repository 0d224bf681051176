"""kwinners by the kernels for GPUs: rows in a warp, in tiles, and in strips of a block, around every switch."""

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
GROUP = {dtype: 16 // dtype.itemsize for dtype in cases.DTYPES}
HELD = {dtype: 8192 if dtype == torch.float64 else 16384 for dtype in cases.DTYPES}  # entries of a block's registers


@pytest.fixture(autouse=True)
def _cuda():
    if reason := backends.available()["cuda"]:
        pytest.skip(reason)
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hebbkern::kwinners.cuda", DEVICE.upper())
    with hk.backend("cuda"):
        yield


def check(y, k, dim=-1):
    got = hk.ops.kwinners(y, k, dim)
    assert got.dtype == y.dtype and got.shape == y.shape and got.is_contiguous()
    assert (oracle.exact(got) == hk.reference.kwinners(oracle.exact(y), k, dim)).all()
    return got


def launched(y, k, dim=-1):
    """(kernel, grid, threads) of each launch, of which nothing runs."""
    HOST.note(2)
    try:
        hk.ops.kwinners(y, k, dim)
        return [(launch[0].split("<")[0], launch[1][0], launch[2]) for launch in HOST.launches()]
    finally:
        HOST.note(0)


WIDTHS = [1, 2, 31, 32, 33, 248, 255, 256, 257, 264, 1016, 1023, 1024, 1025, 1032, 1536, 1544]
LONG = [8184, 8192, 8194, 8200, 16376, 16384, 16385, 16392]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS + LONG)
def test_widths(width, dtype):
    rows = 5 if width < 2000 else 1
    for k in {1, width // 7 or 1, max(width - 1, 1), width} if width < 2000 else {1, width // 7}:
        check(cases.random((rows, width), dtype, DEVICE), k)
        check(cases.integers((rows, width), -2, 2, dtype, DEVICE), k)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("width", [256, 1024, 1025, 2048, 16400], ids=str)
def test_of_equals_the_first_are_kept(width, dtype):
    """k around what a lane holds, what a warp reads at a time, and a warp's strip."""
    y = torch.full((2, width), -1.5, dtype=dtype, device=DEVICE)
    y[1, ::3] = -2
    edges = {GROUP[dtype], 32, 32 * GROUP[dtype], 512, 1024, 1040}
    for k in sorted({edge + more for edge in edges for more in (-1, 0, 1)}) if width < 16000 else (511, 1041):
        if k > width:
            continue
        got = check(y, k)
        assert (got[0] != 0).sum() == k and got[0, :k].ne(0).all()


COLUMNS = [(40, 3), (2, 256, 33), (3, 257, 5), (1024, 17), (2, 1025, 7), (1100, 40), (4, 9, 2)]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", COLUMNS, ids=str)
def test_columns(shape, dtype):
    """Rows that lie side by side, where they are read, where they are written, or both."""
    dim = len(shape) - 2
    for y in (cases.random(shape, dtype, DEVICE), cases.integers(shape, -3, 3, dtype, DEVICE, seed=1)):
        across = y.transpose(-1, -2)
        for k in (1, shape[dim] // 3, shape[dim]):
            check(y, k, dim)
            check(across, k)
            check(across.contiguous().transpose(-1, -2), k, dim)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 40), (2, 1100), (2, 5, 260, 3)], ids=str)
def test_layouts(shape, layout):
    for dtype in cases.DTYPES:
        y = cases.laid_out(cases.integers(shape, -9, 9, dtype, DEVICE), layout)
        for dim in range(len(shape)):
            check(y, 2, dim)


def test_rows_that_are_one_row():
    y = cases.random((1, 2048), device=DEVICE).expand(3, -1)
    assert torch.equal(check(y, 30)[0], check(y[2], 30))
    check(cases.random((300, 1), device=DEVICE).expand(-1, 40), 7)


@pytest.mark.parametrize("width", [40, 1024, 1025, 2048])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_every_bit_of_what_is_kept(width, dtype):
    """Zeros of either sign, the smallest and the largest numbers, one unit in the last place apart."""
    limits = torch.finfo(dtype)
    few = [0.0, -0.0, limits.smallest_normal, -limits.smallest_normal, limits.max, limits.min, 1.0, 1 + limits.eps]
    few += [-1.0, -1 - limits.eps, limits.smallest_normal * limits.eps, -limits.smallest_normal * limits.eps]
    y = torch.tensor(few, dtype=dtype, device=DEVICE).repeat(2, width // len(few) + 1)[:, :width]
    for k in range(1, width + 1, max(1, width // 13)):
        got = check(y, k)
        order = torch.sort(y, dim=1, descending=True, stable=True).indices[:, :k]  # zeros tie there as well
        kept = torch.zeros_like(y, dtype=torch.bool).scatter_(1, order, True)
        assert torch.equal(got.signbit(), (y.signbit() & kept)) and torch.equal(got, y.where(kept, 0))


CASES = [  # shape, dim, dtype, kernel, blocks, threads
    ((9, 256), 1, torch.float32, "kwinners.rows", 3, 128),
    ((9, 1024), 1, torch.bfloat16, "kwinners.rows", 3, 128),
    ((9, 1022), 1, torch.float32, "kwinners.tile", 2, 256),
    ((100000, 33), 1, torch.float32, "kwinners.tile", 3125, 256),
    ((64, 512, 49), 1, torch.float32, "kwinners.tile", 392, 256),
    ((1024, 40), 0, torch.float64, "kwinners.tile", 10, 256),
    ((9, 1032), 1, torch.float16, "kwinners.strips", 9, 96),
    ((9, 16384), 1, torch.float32, "kwinners.strips", 9, 1024),
    ((9, 8194), 1, torch.float64, "kwinners.strips", 9, 512),
    ((9, 1025), 1, torch.float32, "kwinners.strips", 9, 512),
    ((1025, 9), 0, torch.float32, "kwinners.strips", 2, 512),
]


@pytest.mark.skipif(HOST is None, reason="launches are counted where kernels are compiled for the CPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_launch(case):
    shape, dim, dtype, *launch = case
    assert launched(torch.zeros(shape, dtype=dtype), 5, dim) == [tuple(launch)]


@pytest.mark.skipif(HOST is None, reason="the order of threads is chosen where kernels are compiled for the CPU")
@pytest.mark.parametrize("shape", [(5, 1000), (3, 1001), (2, 1536), (2, 1537), (1100, 9)], ids=str)
def test_any_order_of_threads(shape):
    y, dim = cases.integers(shape, -20, 20), 0 if shape[0] > 5 else 1
    results = []
    for seed in (0, 1, 7, 12345):
        HOST.seed(seed)
        results.append((check(y, 700, dim),))
        assert calls.same_bits(results[0], results[-1])
    HOST.seed(1)
