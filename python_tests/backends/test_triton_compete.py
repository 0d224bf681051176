"""compete by Triton: shares that are merged, certified winners, values that a GPU does not read."""

import functools
import importlib

import numpy as np
import pytest
import torch

import calls
import cases
import hebbkern as hk
import interpreted
import oracle

pytestmark = interpreted.needs_interpreter
screen = importlib.import_module("hebbkern.backends.triton.screen")
walk = importlib.import_module("hebbkern.backends.triton.walk")

LAYERS = [
    cases.Layer((130, 70), (300, 70)),
    cases.Layer((33, 257), (65, 257)),
    cases.CONVOLUTION[3],
    cases.CONVOLUTION[4],
]
KINDS = [{}, {"cosine": True}, {"p": 3.0}]


@pytest.fixture(autouse=True)
def by_triton():
    with hk.backend("triton"), np.errstate(all="ignore"):  # NumPy warns where a processor does not
        yield


@pytest.fixture
def undecided(monkeypatch):
    """int32 [P] that screening fills with which patches needed every response."""
    flags = torch.full((4096,), -1, dtype=torch.int32)
    with monkeypatch.context() as patch:
        patch.setattr(screen, "screened", functools.partial(screen.screened, undecided=flags))
        yield flags


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_screened_winners_are_the_winners(layer, kind, patches, undecided):
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    for k in (1, 2, 5):
        for mask in (None, cases.some(layer.neurons, share=0.3)):
            options = {"k": k, "patches": patches, "eligible": mask, **kind, **layer.geometry}
            with hk.screening("always"):
                got = hk.ops.compete(x, weight, **options)
            oracle.check_compete(got, x, weight, **options)
            assert (undecided[: len(got[0])] >= 0).all()


def test_clear_winners_are_decided_by_few_responses(undecided):
    """Random neurons in many dimensions: hardly a patch needs them all."""
    x, weight = cases.tensors(cases.Layer((130, 257), (400, 257)), torch.float32, "cpu", offset=0)
    with hk.screening("always"):
        hk.ops.compete(x, weight, k=2)
    assert (undecided[:130] == 1).sum() <= 13


def test_neurons_nearer_than_bfloat16_are_told_apart(undecided):
    """More neurons than candidates, all equal in bfloat16: every patch competes again, and the right neuron wins."""
    base = cases.random((1, 64))
    weight = base * (1 + torch.arange(100)[:, None] * 2.0**-17)
    x = base * torch.tensor([1.0, -1.0, 3.0])[:, None]
    with hk.screening("always"):
        winners, _ = hk.ops.compete(x, weight, k=2)
    assert winners.tolist() == [[99, 98], [0, 1], [99, 98]] and (undecided[:3] == 1).all()


def test_misleading_rounding_changes_no_winner(undecided):
    """Weights half a bfloat16 apart round to the same side: by the rounded numbers the last neurons would win."""
    step = 2.0**-8
    weight = torch.ones(40, 64)
    weight[:20] += step * 0.49  # rounded down to 1
    weight[20:] += step * 0.501 - step  # rounded up towards 1 from below
    with hk.screening("always"):
        winners, responses = hk.ops.compete(torch.ones(5, 64), weight, k=4)
    assert winners.tolist() == [[0, 1, 2, 3]] * 5
    torch.testing.assert_close(responses, torch.full((5, 4), 64 * (1 + step * 0.49)))


def test_ties_are_certified_to_the_lower_index(undecided):
    x, weight = cases.integers((50, 24), -1, 1, seed=1), cases.integers((200, 24), -1, 1, seed=2)
    with hk.screening("always"):
        winners, responses = hk.ops.compete(x, weight, k=8)
    want = hk.reference.compete(x, weight, 8)
    assert (winners.numpy() == want[0]).all() and (responses.numpy() == want[1]).all()


@pytest.mark.parametrize("patches", ["raw", "centred"])
def test_empty_patches_are_decided_at_once(undecided, patches):
    """As many as a digit's rim has: no neuron wins them, also where some may not win, and no walk is needed."""
    x, weight = cases.random((20, 90)), cases.random((70, 90), seed=1)
    x[::2] = 0
    with hk.screening("always"):
        winners, responses = hk.ops.compete(x, weight, k=3, patches=patches)
        assert (winners[::2] == -1).all() and not responses[::2].any() and not undecided[:20].any()
        mask = torch.arange(70) >= 5
        winners, _ = hk.ops.compete(x, weight, k=3, patches=patches, eligible=mask)
        assert (winners[::2] == -1).all() and (winners[1::2] >= 5).all()


@pytest.mark.parametrize("mode", ["off", "always"])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_cosines_of_any_scale(mode, size):
    x, weight = cases.tensors(cases.Layer((20, 70), (100, 70)), torch.float32, "cpu")
    with hk.screening(mode):
        winners, cosines = hk.ops.compete(x * size, weight * size, k=2, cosine=True, patches="centred")
        want = hk.ops.compete(x, weight, k=2, cosine=True, patches="centred")
    assert torch.equal(winners, want[0])
    torch.testing.assert_close(cosines, want[1])


@pytest.mark.parametrize("P, N", [(50, 300), (33, 64), (17, 1), (0, 64), (1, 1)])
@pytest.mark.parametrize("mode", ["off", "always"])
def test_launches_of_any_size_are_made_of_powers_of_two(mode, P, N, monkeypatch):
    """Kernels compile only so; with the tiles of a GPU, not the interpreter's larger ones."""
    monkeypatch.setattr(walk, "block", lambda size: size)
    call = 2, 2.0, False, "centred", (1, 1), (0, 0), (1, 1), 1, None
    x, weight = torch.empty(P, N, device="meta"), torch.empty(2000, N, device="meta")
    with hk.screening(mode):
        for launch in interpreted.recorded("compete", x, weight, *call):
            for name, value in launch.settings.items():
                assert not name.startswith("BLOCK") or value & (value - 1) == 0, (launch.kernel.__name__, name, value)


def test_groups_are_not_screened(undecided):
    x, weight = cases.random((2, 6, 5, 4)), cases.random((12, 2, 3, 3), seed=1)
    want = hk.ops.compete(x, weight, k=2, groups=3)
    with hk.screening("always"):
        got = hk.ops.compete(x, weight, k=2, groups=3)
    assert calls.same_bits(got, want) and (undecided == -1).all()


@pytest.mark.parametrize("neurons", [10, 70])  # fewer than candidates, and more
def test_flat_patches_are_no_candidates(undecided, neurons):
    """Their bounds come from rounding alone; standardised they are zeros, which no neuron wins."""
    x = torch.full((6, 90), 0.1)
    x[3:] += cases.random((3, 90))
    with hk.screening("always"):
        winners, responses = hk.ops.compete(x, cases.random((neurons, 90), seed=1), k=4, patches="standardised")
    assert winners[:3].tolist() == [[-1] * 4] * 3 and not responses[:3].any() and responses[3:].all()


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_beyond_the_bound_nothing_is_certified(size, undecided):
    """Where norms leave the range of the proof, float32 decides."""
    x, weight = cases.tensors(cases.Layer((20, 70), (100, 70)), torch.float32, "cpu")
    with hk.screening("always"):
        got = hk.ops.compete(x * size, weight, k=2)
    oracle.check_compete(got, x * size, weight, k=2)
    assert (undecided[:20] == 1).all()


def test_the_bound_holds_for_real_rounding():
    """|x.w - x̂.ŵ| against a |w| + b |w - ŵ|, the product of bfloat16 numbers summed in float32 that is cut off."""
    for seed, n in enumerate((17, 70, 784)):
        x, weight = (oracle.exact(cases.random((40, n), seed=seed + i, offset=0.3)) for i in (0, 9))
        x, weight = (a.astype(np.float32).astype(np.float64) for a in (x, weight))
        x_near, w_near = (oracle.exact(torch.from_numpy(a).bfloat16()) for a in (x, weight))
        sums = np.zeros((40, 40))
        for i in range(n):
            sums = sums + np.outer(x_near[:, i], w_near[:, i])
            sums = (sums.astype(np.float32).view(np.int32) & ~1).view(np.float32).astype(np.float64)
        size, slip = np.linalg.norm(x_near, axis=1), np.linalg.norm(x - x_near, axis=1)
        near = slip + (n + 16) * (size * (2**-22 + 2**-23) + slip * 2**-23)
        bound = np.outer(near, np.linalg.norm(weight, axis=1)) + np.outer(size, np.linalg.norm(weight - w_near, axis=1))
        off = np.abs(x @ weight.T - sums)
        assert (off <= bound).all() and off.max() > bound.max() / 50, "neither broken nor idle"


@pytest.mark.slow(13)
def test_any_number_of_shares_gives_the_same_bits(monkeypatch):
    layer = cases.Layer((33, 70), (300, 70))
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    mask = cases.some(300, share=0.6)
    for mode, k in (("off", 20), ("off", 1), ("always", 3)):
        results = []
        for processors in (1, 2, 8):
            monkeypatch.setattr(walk, "processors", lambda tensor, number=processors: number)
            with hk.screening(mode):
                results.append(hk.ops.compete(x, weight, k=k, eligible=mask, patches="centred"))
        assert all(calls.same_bits(results[0], other) for other in results[1:])


@pytest.mark.parametrize("mode", ["off", "always"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_nothing_is_stored_beyond_the_results(layer, mode, monkeypatch):
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    for patches, cosine in (("raw", False), ("standardised", True)):
        options = {"k": 3, "patches": patches, "cosine": cosine, **layer.geometry}
        with hk.screening(mode), interpreted.guarded(monkeypatch):
            got = hk.ops.compete(x, weight, **options)
        oracle.check_compete(got, x, weight, **options)


def test_guards_see_a_stray_store(monkeypatch):
    with pytest.raises(AssertionError, match="beyond its result"), interpreted.guarded(monkeypatch) as allocated:
        torch.zeros(1).new_empty(3)
        allocated[0][0][WIDTH_BEFORE] = 1


WIDTH_BEFORE = interpreted.WIDTH - 1


@pytest.mark.parametrize("mode", ["off", "always"])
def test_what_is_not_finite_wins_where_values_are_not_read(mode, monkeypatch):
    """On a GPU the response to a patch with a NaN is infinite, and so is the step, which is then skipped."""
    x, weight = cases.tensors(cases.Layer((9, 20), (40, 20)), torch.float32, "cpu")
    clean = hk.ops.compete(x, weight, k=2)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x[4, 3] = bad
        with hk.screening(mode), interpreted.unreadable(monkeypatch):
            winners, responses = hk.ops.compete(x, weight, k=2)
        assert responses[4].isinf().all() and (winners[4] >= 0).all()
        rest = torch.arange(9) != 4
        assert torch.equal(winners[rest], clean[0][rest])


@pytest.mark.parametrize(
    "mode, most", [("off", ["moments", "compete", "merge"]), ("always", ["moments", "screen", "decide"])]
)
def test_at_most_three_launches(mode, most):
    geometry = (1, 1), (0, 0), (1, 1), 1
    for P, K in ((64, 2000), (1024, 2000), (100000, 64)):
        x, weight = torch.empty(P, 100, device="meta"), torch.empty(K, 100, device="meta")
        for patches in cases.PATCHES:
            with hk.screening(mode):
                arguments = x, weight, 2, 2.0, True, patches, *geometry, None
                names = interpreted.launches("compete", *arguments)
            assert [name.removesuffix("_kernel") for name in names] in (most, most[:2])


def tf32(numbers):
    """float32 rounded to tf32's 10 bits, halves away from zero, as the interpreter does not."""
    bits = numbers.astype(np.float32).view(np.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("inputs", [1, 33, 784])
def test_three_products_of_tf32_are_as_good_as_one_of_float32(inputs):
    """tf32x3 stays within what the suite grants float32; a single product of tf32 does not."""
    layer = cases.Layer((60, inputs), (70, inputs))
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    bound = oracle.response_bound(x, weight)
    x, weight = oracle.exact(x), oracle.exact(weight)
    high, low = zip(*((tf32(a), tf32(a - tf32(a))) for a in (x, weight)), strict=True)
    one, split = high[0] @ high[1].T, high[0] @ low[1].T + low[0] @ high[1].T
    assert (np.abs(one + split - x @ weight.T) <= bound / 4).all()
    assert (np.abs(one - x @ weight.T) > bound).any()
