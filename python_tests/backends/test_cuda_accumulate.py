"""accumulate by the CUDA kernels: lists about as long as a piece, warps and blocks that add, the sort of entries."""

import pytest
import torch

import calls
import cases
import hebbkern as hk
import oracle
from on_cuda import DEVICE, HOST, NOTE, UNSEEN, needs_emulation, noted

PIECE, ALONE = 256, 32  # entries of a list that are added in one go, and by one warp
ONE_BLOCK = 4096  # entries that one block sorts
LENGTHS = [PIECE, 0, 1, PIECE - 1, ALONE + 1, 2 * PIECE, ALONE, PIECE + 1, 0, ALONE - 1, 2 * PIECE + 1, 3, 0]
LAYERS = [
    cases.Layer((sum(LENGTHS), 40), (13, 40)),  # read in groups of 16 bytes, of which a tile is not full
    cases.Layer((sum(LENGTHS), 33), (13, 33)),
    cases.Layer((sum(LENGTHS) // 37 + 1, 2, 1, 74), (13, 2, 3, 2), {"stride": (1, 2), "padding": (1, 0)}),
]


@pytest.fixture(autouse=True)
def by_cuda():
    with hk.backend("cuda"):
        yield


def lists_of(lengths, count, seed=0):
    """[count, 1]: neuron j learns from lengths[j] of the patches, in random order; no neuron from the others."""
    targets = torch.full((count,), -1, dtype=torch.int32)
    names = torch.repeat_interleave(torch.arange(len(lengths), dtype=torch.int32), torch.tensor(lengths))[:count]
    targets[: len(names)] = names
    return targets[torch.randperm(count, generator=torch.Generator().manual_seed(seed))][:, None].to(DEVICE)


def call(layer, dtype, lengths=LENGTHS, **options):
    """Arguments of accumulate: coefficients and responses of every entry."""
    x, _ = cases.tensors(layer, dtype, DEVICE)
    count = len(hk.reference.unfold(torch.zeros(layer.x), layer.kernel, **layer.geometry))
    c, s = (cases.random((count, 1), oracle.result_dtype(dtype), DEVICE, seed) for seed in (3, 4))
    where = {"neurons": len(lengths), "kernel": layer.kernel, "responses": s, **layer.geometry}
    return (x, lists_of(lengths, count), c), where | options


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_lists_that_just_fit_and_just_do_not(layer, dtype, poison):
    poison()
    for patches in cases.PATCHES:
        arguments, options = call(layer, dtype, patches=patches)
        got = hk.ops.accumulate(*arguments, **options)
        oracle.check_accumulate(got, *arguments, **options)
        assert got[2].tolist() == LENGTHS


@pytest.mark.parametrize("inputs", [1, 31, 32, 127, 128, 129, 300])
def test_column_tiles(inputs):
    """Of 32 lanes, of one input or of 16 bytes each."""
    for dtype in cases.DTYPES:
        x = cases.random((150, inputs), dtype, DEVICE)
        targets, c = lists_of([70, 0, 5, 40], 150), torch.ones(1, dtype=oracle.result_dtype(dtype), device=DEVICE)
        oracle.check_accumulate(hk.ops.accumulate(x, targets, c, neurons=4), x, targets, c, 4)


@pytest.mark.parametrize("count", [2 * PIECE, ONE_BLOCK - 1, ONE_BLOCK, ONE_BLOCK + 1, 3 * ONE_BLOCK + 7])
def test_one_neuron_takes_every_entry(count):
    """The first, the last, or both alternately; of neurons that far apart a warp writes where their lists begin."""
    x = cases.integers((count, 3), -3, 3, device=DEVICE)
    x[:, 2] = 1  # no patch is blank
    for names in ([0], [699], [0, 699], [350]):
        targets = torch.tensor(names, device=DEVICE).repeat(count // len(names) + 1)[:count, None]
        total, decay, sizes = hk.ops.accumulate(x, targets, torch.ones(1, device=DEVICE), neurons=700)
        assert sizes.sum() == count and torch.equal(decay, sizes)
        for name in range(700):
            mine = targets[:, 0] == name
            if name in names:
                assert torch.equal(total[name], x[mine].sum(0)) and sizes[name] == mine.sum()
        assert not total[[j for j in range(700) if j not in names]].any()


def test_a_neuron_learns_the_same_whoever_else_is_there():
    """Alone in a block or side by side with others, and whatever they learn, in whatever place of the batch."""
    arguments, options = call(LAYERS[1], torch.float32)
    few = hk.ops.accumulate(*arguments, **options)
    for neurons in (14, 200):
        many = hk.ops.accumulate(*arguments, **options | {"neurons": neurons})
        for a, b in zip(few, many, strict=True):
            assert calls.same_bits([a], [b[: len(LENGTHS)]]) and not b[len(LENGTHS) :].any()
    x, targets, c = arguments
    for name in range(len(LENGTHS)):
        others = torch.where(targets == name, targets, -1)
        alone = hk.ops.accumulate(x, others, c, **options)
        assert all(calls.same_bits([a[name]], [b[name]]) for a, b in zip(few, alone, strict=True))


def test_equal_keys_keep_their_order():
    """Sums of numbers that cancel only in patch order."""
    for count in (300, 2 * ONE_BLOCK):
        x = torch.zeros(count, 1, device=DEVICE)
        x[:3, 0] = torch.tensor([1e8, -1e8, 1.0])
        targets = (torch.arange(count) >= 3).int()[:, None].to(DEVICE)  # the last ones are of neuron 1
        total, _, _ = hk.ops.accumulate(x, targets, torch.ones(1, device=DEVICE), neurons=2)
        assert total.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("groups, each", [(5, 1), (2, 3)])
def test_a_group_learns_what_it_learns_alone(groups, each, dtype, poison):
    """Lists of several pieces, of which some begin in a group and end where the next one's begin."""
    x, count = cases.random((7, 2 * groups, 13, 11), dtype, DEVICE), 7 * 12 * 9
    x[:2] = 0
    c, s = (cases.random((groups * count, 2), oracle.result_dtype(dtype), DEVICE, seed) for seed in (3, 4))
    own = cases.integers((groups * count, 2), -1, each - 1, torch.int32, DEVICE)
    group = torch.arange(groups, device=DEVICE, dtype=torch.int32).repeat_interleave(count)[:, None]
    targets, options = torch.where(own < 0, own, own + group * each), {"kernel": (2, 3)}
    poison()
    for patches in cases.PATCHES:
        whole = hk.ops.accumulate(
            x, targets, c, neurons=groups * each, groups=groups, responses=s, patches=patches, **options
        )
        chunks = (part.chunk(groups) for part in (own, c, s, *whole))
        for image, named, values, factors, *got in zip(x.chunk(groups, 1), *chunks, strict=True):
            alone = hk.ops.accumulate(image, named, values, neurons=each, responses=factors, patches=patches, **options)
            assert calls.same_bits(got, alone)


@needs_emulation
def test_a_target_of_another_group_is_seen_in_every_sum():
    """Where values are not read."""
    x, targets = cases.random((1, 4, 3, 3)), torch.tensor([[1], [2]], dtype=torch.int32)
    with noted(UNSEEN):
        total, _, count = hk.ops.accumulate(x, targets, torch.ones(1), neurons=4, kernel=3, groups=2)
        assert total.isfinite().all() and count.tolist() == [0, 1, 1, 0]
        for wrong in (0, 1, 4):
            targets[1] = wrong
            total, decay, _ = hk.ops.accumulate(x, targets, torch.ones(1), neurons=4, kernel=3, groups=2)
            assert total.isnan().all() and decay.isnan().all()


@needs_emulation
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_any_order_of_threads(layer):
    arguments, options = call(layer, torch.float32, patches="standardised")
    results = []
    try:
        for seed in range(4):
            HOST.seed(seed)
            results.append(hk.ops.accumulate(*arguments, **options))
    finally:
        HOST.seed(1)
    assert all(calls.same_bits(results[0], other) for other in results[1:])


@needs_emulation
@pytest.mark.parametrize("patches", ["raw", "standardised"])
def test_launches(patches):
    """However many entries there are: CUB's own beside, where one block cannot sort them."""
    for count, sort in ((ONE_BLOCK, "sort.few"), (ONE_BLOCK + 1, "sort.starts")):
        x = cases.random((count, 2))
        with noted(NOTE):
            hk.ops.accumulate(x, torch.zeros(count, 1, dtype=torch.int32), torch.ones(1), neurons=5, patches=patches)
            kernels = [launch[0].partition("<")[0] for launch in HOST.launches()]
        known = ["moments"] if patches != "raw" else []
        assert kernels == [*known, "accumulate.name", sort, "accumulate.gather", "accumulate.combine"]


@needs_emulation
@pytest.mark.parametrize("what", ["target", "coefficient", "response"])
def test_one_broken_entry_is_seen_in_every_sum(what):
    """Where values are not read."""
    (x, targets, c), options = call(LAYERS[0], torch.float32)
    flaws = {"target": (targets, (13, 12345, -2)), "coefficient": (c, (float("nan"), float("inf")))}
    flaws["response"] = options["responses"], (float("nan"), -float("inf"))
    spoilt, values = flaws[what]
    before = spoilt[77].clone()
    for value in values:
        spoilt[77] = value
        with noted(UNSEEN):
            total, decay, _ = hk.ops.accumulate(x, targets, c, **options)
        assert total.isnan().all() and decay.isnan().all()
    spoilt[77] = before
    with noted(UNSEEN):
        got = hk.ops.accumulate(x, targets, c, **options)
    oracle.check_accumulate(got, x, targets, c, **options)
