"""kwinners and nearest_patch by Triton: every path, however the work is cut, what they launch, and no stray stores."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cases
import hebbkern as hk
import interpreted
import oracle
from hebbkern import backends

if backends.available()["triton"]:
    pytest.skip(backends.available()["triton"], allow_module_level=True)

from hebbkern.backends.triton import kwinners, nearest_patch
from hebbkern.backends.triton.launch import recorded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATHS = {  # shape and dim -> which kernel, and along which axis of its tile entries compete
    "a row": ((1, 700), 1, ("kwinners_kernel", 1)),
    "several rows": ((37, 20), 1, ("kwinners_kernel", 1)),
    "columns": ((3, 50, 7), 1, ("kwinners_kernel", 0)),
    "one column": ((90, 1), 0, ("kwinners_kernel", 1)),
    "long rows": ((2, 300), 1, ("kwinners_long_kernel", None)),
    "long columns": ((2, 300, 3), 1, ("kwinners_long_kernel", None)),
}


@pytest.fixture
def guarded(monkeypatch):
    with interpreted.guarded(monkeypatch) as buffers:
        yield buffers


@pytest.fixture
def short(monkeypatch):
    """Rows of more than 128 entries are long, and come in chunks of 64."""
    monkeypatch.setattr(kwinners, "LONGEST", dict.fromkeys(kwinners.LONGEST, 128))
    monkeypatch.setattr(kwinners, "CHUNK", 64)


def expect_kwinners(y, k, dim):
    got = kwinners.kwinners(y, k, dim)
    assert got.is_contiguous() and got.dtype == y.dtype
    assert (oracle.exact(got) == hk.reference.kwinners(oracle.exact(y), k, dim)).all()


def launches_of(function):
    with FakeTensorMode(), recorded() as launches:
        function()
    return launches


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_kwinners(request, guarded, path, dtype):
    shape, dim, kernel = PATHS[path]
    if kernel[0] == "kwinners_long_kernel":
        request.getfixturevalue("short")
    (launch,) = launches_of(lambda: kwinners.kwinners(torch.empty(shape, dtype=dtype, device="cuda"), 1, dim))
    assert (launch.kernel.__name__, launch.settings.get("AXIS")) == kernel
    guarded.clear()  # of what was only recorded
    for k in {1, shape[dim] // 3, shape[dim] - 1, shape[dim]}:
        expect_kwinners(cases.random(shape, dtype, DEVICE), k, dim)
        expect_kwinners(cases.integers(shape, -2, 2, dtype, DEVICE), k, dim)
    assert guarded


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_ties_across_chunks(short, dtype):
    """Equal entries in four chunks, one higher among them: those that fit are the first."""
    y = torch.zeros(1, 250, dtype=dtype, device=DEVICE)
    y[0, [3, 63, 64, 130, 249]] = 5
    y[0, 128] = 7
    for k in range(1, 9):
        expect_kwinners(y, k, 1)
        expect_kwinners(-y, 240 + k, 1)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("size", [40, 250], ids=["in registers", "in chunks"])
def test_bits_are_kept(short, size, dtype):
    """The numbers nearest to zero and the largest, of either sign, compete exactly and come back as they were."""
    extremes = [oracle.SMALLEST[dtype], torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal]
    numbers = torch.tensor([number * sign for number in extremes for sign in (1, -1)] + [0.0, -0.0], dtype=dtype)
    y = numbers.repeat(size // 8 + 1)[None, :size].to(DEVICE)
    for k in (1, 3, size // 2, size - 3, size):
        expect_kwinners(y, k, 1)
    assert torch.equal(kwinners.kwinners(y, size, 1).signbit(), y.signbit())


@pytest.mark.parametrize("size", [40, 250], ids=["in registers", "in chunks"])
def test_exactly_k_of_nans(monkeypatch, short, size):
    """On a GPU, where values are not read, k entries are kept all the same."""
    monkeypatch.setattr(kwinners, "readable", lambda tensor: False)
    y = torch.ones(2, size, device=DEVICE)
    y[:, ::3], y[:, 1::5] = torch.nan, -torch.nan
    for k in (1, 7, size - 1):
        assert ((kwinners.kwinners(y, k, 1) != 0).sum(1) == k).all()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("layer", cases.FEW, ids=str)
def test_nearest_patch_writes_its_results_only(guarded, layer, patches, dtype):
    x, weight = cases.tensors(layer, dtype, DEVICE)
    mask = cases.some(layer.neurons, DEVICE)
    geometry = [tuple(torch.tensor(layer.geometry.get(n, v)).expand(2).tolist()) for n, v in GEOMETRY.items()]
    got = nearest_patch.nearest_patch(x, weight, patches, *geometry, 1, mask)
    oracle.check_nearest_patch(got, x, weight, mask, patches=patches, **layer.geometry)
    assert guarded


@pytest.mark.parametrize("patches", cases.PATCHES)
def test_nearest_patch_of_groups_writes_its_results_only(guarded, patches):
    layer = cases.Layer((2, 8, 9, 20), (16, 2, 3, 2))
    x, weight = cases.tensors(layer, torch.float32, DEVICE)
    mask = cases.some(layer.neurons, DEVICE)
    nearest, distance = nearest_patch.nearest_patch(x, weight, patches, (1, 3), (0, 1), (1, 1), 4, mask)
    with hk.backend("eager"):
        geometry = {"stride": (1, 3), "padding": (0, 1), "groups": 4}
        want = hk.ops.nearest_patch(x, weight, eligible=mask, patches=patches, **geometry)
    assert torch.equal(nearest, want[0]) and guarded
    torch.testing.assert_close(distance, want[1])


GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}
LINEAR = ("raw", (1, 1), (0, 0), (1, 1), 1)


@pytest.mark.parametrize("programs", [1, 3, 256])
def test_ties_across_runs(monkeypatch, programs):
    """The same patches again in later tiles and runs, and two neurons' nearest at the two ends of a run."""
    monkeypatch.setattr(nearest_patch, "PROGRAMS", programs)
    x = cases.integers((300, 20), 0, 3, device=DEVICE, seed=5)
    x = x.repeat(3, 1)
    weight = cases.integers((70, 20), 0, 3, device=DEVICE, seed=6)
    weight[0], weight[1] = x[127], x[128]
    nearest, distance = nearest_patch.nearest_patch(x, weight, *LINEAR, None)
    want, smallest = hk.reference.nearest_patch(oracle.exact(x), oracle.exact(weight))
    assert nearest.tolist() == want.tolist() and nearest.max() < 300
    torch.testing.assert_close(distance.cpu().double(), torch.from_numpy(smallest), rtol=1e-6, atol=0)


@pytest.mark.parametrize("eligible", [[], [0], [64], [130, 131]], ids=str)
def test_tiles_of_neurons_that_are_not_eligible(eligible):
    x, weight = cases.random((50, 33), device=DEVICE), cases.random((132, 33), device=DEVICE, seed=1)
    mask = torch.zeros(132, dtype=torch.bool, device=DEVICE)
    mask[eligible] = True
    nearest, distance = nearest_patch.nearest_patch(x, weight, *LINEAR, mask)
    everyone = nearest_patch.nearest_patch(x, weight, *LINEAR, None)
    assert torch.equal(nearest[mask], everyone[0][mask]) and torch.equal(distance[mask], everyone[1][mask])
    assert (nearest[~mask] == -1).all() and distance[~mask].isposinf().all()


def test_near_ties_are_decided_by_the_differences():
    """Patches a millionth apart, far from zero: too near for the expansion, not for the differences."""
    weight = cases.random((20, 64), offset=100.0, device=DEVICE)
    x = weight.repeat(2, 1)
    x[:20, 0] += 2e-3
    nearest, distance = nearest_patch.nearest_patch(x, weight, *LINEAR, None)
    assert nearest.tolist() == list(range(20, 40)) and not distance.any()


def test_what_is_not_finite_is_never_nearest(monkeypatch):
    """On a GPU, where values are not read, such patches and neurons match nothing, and no other result changes."""
    monkeypatch.setattr(nearest_patch, "readable", lambda tensor: False)
    x, weight = cases.random((40, 30), device=DEVICE), cases.random((20, 30), device=DEVICE, seed=1)
    x[7, 3], x[9, 4], weight[5, 2], weight[6, 2] = torch.nan, torch.inf, torch.nan, 1e30
    nearest, distance = nearest_patch.nearest_patch(x, weight, *LINEAR, None)
    sound, rows = [p for p in range(40) if p not in (7, 9)], [k for k in range(20) if k not in (5, 6)]
    want = nearest_patch.nearest_patch(x[sound], weight[rows], *LINEAR, None)
    assert nearest[[5, 6]].tolist() == [-1, -1] and distance[[5, 6]].isposinf().all()
    assert nearest[rows].tolist() == [sound[p] for p in want[0].tolist()] and torch.equal(distance[rows], want[1])


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_launches(device, dtype):
    """Without reading a value: one launch for kwinners, three for nearest_patch, whatever the patches and the layer."""

    def empty(*shape, kind=dtype):
        return torch.empty(shape, dtype=kind, device=device)

    for shape in [(4, 100), (4, 100000), (2, 64, 7, 7)]:
        assert len(launches_of(lambda shape=shape: kwinners.kwinners(empty(*shape), 10, 1))) == 1
    for patches in cases.PATCHES:
        geometry = (patches, (1, 1), (0, 0), (1, 1), 1)
        for sizes in [((1000, 784), (500, 784)), ((4, 3, 32, 32), (96, 3, 5, 5))]:
            launches = launches_of(
                lambda sizes=sizes, geometry=geometry: nearest_patch.nearest_patch(
                    empty(*sizes[0]), empty(*sizes[1]), *geometry, empty(sizes[1][0], kind=torch.bool)
                )
            )
            assert [launch.kernel.__name__ for launch in launches] == [
                "lengths_kernel",
                "search_kernel",
                "nearest_kernel",
            ]
