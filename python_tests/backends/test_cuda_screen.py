"""Certified winners by the CUDA kernels: screened or not, the same winners and responses to the bit, on every input.

Half types, which the same tensor-core tiles multiply, are compared with the oracle.
"""

import os
import sys

import numpy as np
import pytest
import torch

import cases
import hebbkern as hk
import oracle
from hebbkern import backends

if backends.available()["cuda"]:
    pytest.skip(backends.available()["cuda"], allow_module_level=True)

HOST = sys.modules.get("_cuda_host")
needs_emulation = pytest.mark.skipif(HOST is None, reason="reads counters of the kernels compiled for the CPU")
DEVICE = "cpu" if HOST else "cuda"

LAYERS = [
    cases.Layer((130, 70), (300, 70)),  # tiles and shares, the last ones not full
    cases.Layer((33, 257), (65, 257)),  # rows that are not aligned
    cases.Layer((5, 128), (128, 128)),  # whole tiles
    cases.CONVOLUTION[3],
    cases.CONVOLUTION[4],
    cases.Layer((2, 40, 5, 4), (150, 40, 3, 3), {"padding": 1}),
]
KINDS = [{}, {"cosine": True}, {"p": 3.0}]


@pytest.fixture(autouse=True)
def by_cuda():
    with hk.backend("cuda"):
        yield


def compete(mode, *arguments, **options):
    with hk.screening(mode):
        return hk.ops.compete(*arguments, **options)


def same(x, weight, k=1, **options):
    """Compares the bits with and without screening; how many patches competed again (None on a GPU)."""
    x, weight = x.to(DEVICE), weight.to(DEVICE)
    plain = compete("off", x, weight, k, **options)
    before = HOST.screened() if HOST else None
    screened = compete("always", x, weight, k, **options)
    assert torch.equal(screened[0], plain[0])
    assert torch.equal(screened[1], plain[1])
    if HOST is None:
        return None
    count, left = (after - earlier for after, earlier in zip(HOST.screened(), before, strict=True))
    assert count == len(screened[0])
    return left


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_screened_winners_are_the_winners(layer, kind, patches):
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    for k, mask in ((1, None), (3, None), (8, cases.some(layer.neurons, DEVICE, share=0.3))):
        if k <= layer.neurons:
            same(x, weight, k, patches=patches, eligible=mask, **kind, **layer.geometry)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS[:1] + LAYERS[-1:], ids=str)
def test_any_layout(layer, layout):
    x, weight = cases.tensors(layer, torch.float32, DEVICE)
    same(cases.laid_out(x, layout), weight, 2, patches="centred", **layer.geometry)


@needs_emulation
def test_clear_winners_are_decided_by_few_responses():
    """Random neurons in many dimensions: hardly a patch needs them all."""
    x, weight = cases.tensors(cases.Layer((130, 257), (400, 257)), torch.float32, "cpu", offset=0)
    assert same(x, weight, 2) <= 13


def test_neurons_nearer_than_bfloat16_are_told_apart():
    """More neurons than candidates, all equal in bfloat16: every patch competes again, and the right neuron wins."""
    base = cases.random((1, 64))
    weight = base * (1 + torch.arange(300)[:, None] * 2.0**-17)
    x = base * torch.tensor([1.0, -1.0, 3.0])[:, None]
    winners, _ = compete("always", x.to(DEVICE), weight.to(DEVICE), k=2)
    assert winners.tolist() == [[299, 298], [0, 1], [299, 298]]
    assert same(x, weight, 2) in (3, None)


def test_rounding_that_deceives_is_seen_through():
    """Weights half a bfloat16 apart round to the same side: by what is left the last would come out first."""
    step = 2.0**-8
    weight = torch.ones(40, 64)
    weight[:20] += step * 0.49  # rounded down to 1
    weight[20:] += step * 0.501 - step  # rounded up towards 1 from below
    winners, responses = compete("always", torch.ones(5, 64, device=DEVICE), weight.to(DEVICE), k=4)
    assert winners.tolist() == [[0, 1, 2, 3]] * 5
    torch.testing.assert_close(responses.cpu(), torch.full((5, 4), 64 * (1 + step * 0.49)))


@pytest.mark.parametrize("loser", ["weights", "patches"])
def test_what_rounding_takes_is_in_the_bound(loser):
    """Neuron 7 wins by what bfloat16 takes from it (or from the patch), as the bound must allow for.

    By the rounded numbers neuron 3 is stronger, and so are thirty others, enough for a list of candidates: without the
    loss in the bound neuron 3 would be certified.
    """
    unit = 2.0**-7  # of bfloat16 in [1, 2): what is less than a half above 1 is rounded down to 1
    x, weight = torch.ones(1, 256), torch.ones(40, 256)
    if loser == "weights":
        weight[5:, :51] += unit  # 256 + 51/128
        weight[3, :115] += unit  # neuron 3: 256 + 115/128
        weight[7] = 1 + 0.495 * unit  # 256 + 127/128, rounded 256
    else:
        x[0, :128] += 0.495 * unit
        weight[5:, 128:144] += unit  # 256 + 16/128, and 63/128 for what the patch loses
        weight[3, 128:160] += unit  # neuron 3: 256 + 32/128, and 63/128
        weight[7, :128], weight[7, 128:] = 2, 0  # 256, and 127/128
    winners, _ = compete("always", x.to(DEVICE), weight.to(DEVICE))
    assert winners.tolist() == [[7]]
    assert same(x, weight) in (0, None)


def test_what_float32_itself_adds_is_in_the_bound():
    """One neuron wins because each of its products is rounded up on a large sum that is taken away in the end."""
    weight = torch.zeros(40, 102)
    weight[5:, 0], weight[3, 0] = 2.59375, 2.8125
    weight[7] = 0.75 * 2.0**-5  # beside 2^18 as good as 2^-5: 3.125 in all, not 2.34
    weight[7, 0], weight[7, -1] = 2.0**18, -(2.0**18)
    winners, responses = compete("always", torch.ones(1, 102, device=DEVICE), weight.to(DEVICE))
    assert (winners.tolist(), responses.tolist()) == ([[7]], [[3.125]])
    assert same(torch.ones(1, 102), weight) in (0, None)


@pytest.mark.parametrize("seed", range(3))
def test_near_ties_within_rounding(seed):
    """Pairs of neurons a few float32 apart, in turn: the order in which responses are added up decides."""
    twin = cases.random((150, 100), seed=seed)
    weight = torch.stack([twin, twin * (1 + 2.0**-23), torch.roll(twin, 1, 0) * (1 - 2.0**-24)], 1).reshape(450, 100)
    x = cases.random((70, 100), seed=seed + 5)
    for patches in ("raw", "centred"):
        same(x, weight, 4, patches=patches)
    same(x, weight, 2, cosine=True, patches="centred")


@pytest.mark.parametrize("spread", [1e-7, 1e-4, 0.1])
def test_neurons_that_have_much_in_common(spread):
    alike = cases.random((1, 90)).abs()
    weight = alike + cases.random((200, 90), seed=1, scale=spread)
    x = torch.rand(70, 90, generator=torch.Generator().manual_seed(2))
    for patches in cases.PATCHES:
        same(x, weight, 2, patches=patches)
        same(x, weight, 3, cosine=True, patches=patches)


def test_ties_go_to_the_lower_index():
    x, weight = cases.integers((50, 24), -1, 1, seed=1), cases.integers((400, 24), -1, 1, seed=2)
    winners, responses = compete("always", x.to(DEVICE), weight.to(DEVICE), k=8)
    want = hk.reference.compete(x, weight, 8)
    assert (winners.cpu().numpy() == want[0]).all() and (responses.cpu().numpy() == want[1]).all()


@pytest.mark.parametrize("patches", cases.PATCHES)
def test_empty_patches_are_decided_at_once(patches):
    """As many as a digit's rim has: no neuron wins them, and not all responses need to be computed."""
    x, weight = cases.random((20, 90)), cases.random((200, 90), seed=1)
    x[::2] = 0
    for cosine in (False, True):
        winners, responses = compete("always", x.to(DEVICE), weight.to(DEVICE), 3, patches=patches, cosine=cosine)
        assert (winners[::2] == -1).all() and not responses[::2].any()
        assert same(x, weight, 3, patches=patches, cosine=cosine) in (0, None)
    mask = torch.zeros(200, dtype=torch.bool, device=DEVICE)
    mask[[5, 70, 199]] = True
    winners, _ = compete("always", x.to(DEVICE), weight.to(DEVICE), 4, patches=patches, eligible=mask)
    assert (winners[::2] == -1).all() and (winners[1::2, :3] >= 0).all()
    assert same(x, weight, 4, patches=patches, eligible=mask) in (0, None)


@pytest.mark.parametrize("neurons", [10, 70])  # fewer than candidates, and more
def test_flat_patches_are_no_candidates(neurons):
    x = torch.full((6, 90), 0.1)
    x[3:] += cases.random((3, 90))
    same(x, cases.random((neurons, 90), seed=1), 4, patches="standardised")
    same(x, cases.random((neurons, 90), seed=1), 4, patches="centred")
    same(x, cases.random((neurons, 90), seed=1), 4, patches="centred", cosine=True)


SIZES = [1e-45, 1e-40, 1e-30, 1e-12, 2.0**-21, 1.0, 2.0**19, 1e12, 1e19]


@pytest.mark.parametrize("x_size", SIZES)
@pytest.mark.parametrize("w_size", SIZES)
def test_the_range_of_float32(x_size, w_size):
    if x_size * w_size * 64 > 1e36:
        pytest.skip("responses would overflow, which is refused")
    x, weight = cases.random((9, 48), seed=1) * x_size, cases.random((100, 48), seed=2) * w_size
    left = same(x, weight, 2)
    if max(x_size, w_size) > 2.0**20 or min(x_size, w_size) < 1e-11:
        assert left in (9, None)  # beyond the proof float32 decides
    if x_size > 1e-16:
        same(x, weight, 1, patches="centred")
        if w_size > 1e-16:
            same(x, weight, 1, cosine=True)


@pytest.mark.parametrize("seed", range(3))
def test_every_size_in_one_row(seed):
    def wild(*shape, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.ldexp(cases.random(shape, seed=seed + 50), torch.randint(-40, 20, shape, generator=generator))

    x, weight = wild(20, 70, seed=seed), wild(200, 70, seed=seed + 10)
    same(x, weight, 2)
    same(x, weight, 2, patches="centred", cosine=True)


@pytest.mark.parametrize("offset", [1.0, 100.0, 1e5])
def test_offsets(offset):
    x, weight = cases.random((30, 70), offset=offset), cases.random((150, 70), seed=1)
    for patches in ("centred", "standardised"):
        same(x, weight, 2, patches=patches)
        same(x, weight, 2, patches=patches, cosine=True)


@needs_emulation
def test_the_bound_reaches_as_far_as_rounding_errs():
    """Neurons two by two: w against what bfloat16 makes of it and a little less. Never does the weaker win."""
    for seed, inputs in enumerate((17, 70, 300)):
        x = cases.random((40, inputs), seed=seed, offset=0.3)
        weight = cases.random((100, inputs), seed=seed + 9)
        near = weight.bfloat16().float()
        others = near + (weight - near) * torch.tensor([0.0, 0.9, 0.99])[:, None, None]
        same(x, torch.cat([*others, weight]), 5)


@needs_emulation
def test_tiles_of_patches_that_are_loaded_again():
    """More inputs than shared memory holds of a tile, and two tiles of neurons to a share."""
    x, weight = cases.tensors(cases.Layer((129, 600), (257, 600)), torch.float32, "cpu")
    HOST.note(1)
    same(x, weight, 2, patches="centred")
    (launch,) = [launch for launch in HOST.launches() if launch[0] == "screen"]
    HOST.note(0)
    _, grid, threads, shared, _ = launch
    assert grid == (3, 2, 1) and threads == 256 and shared < 99 * 1024 < shared + 8 * 64 * 64 * 2


@needs_emulation
def test_launches():
    """A competition that is screened takes four launches at most."""
    x, weight = cases.tensors(LAYERS[0], torch.float32, "cpu")
    for patches, cosine, first in (("raw", False, []), ("centred", False, ["moments"]), ("raw", True, ["moments"])):
        HOST.note(1)
        compete("always", x, weight, 2, patches=patches, cosine=cosine)
        names = [launch[0] for launch in HOST.launches()]
        HOST.note(0)
        assert names == [*first, "screen.round", "screen", "screen.decide"]


@needs_emulation
def test_screening_is_done_where_it_is_asked_for_and_can_be():
    def kernels(mode, *sizes, k=2, dtype=torch.float32):
        P, K, N = sizes
        HOST.note(2)
        try:
            compete(mode, torch.zeros(P, N, dtype=dtype), torch.zeros(K, N, dtype=dtype), k)
            return {launch[0] for launch in HOST.launches()}
        finally:
            HOST.note(0)

    large, small = (1024, 2000, 784), (20, 10, 30)
    assert "screen" in kernels("always", *large) and "screen" in kernels("always", *small)
    assert "screen" not in kernels("auto", *large) and "screen" not in kernels("off", *large)
    assert "screen" in kernels("always", *small, k=8) and "screen" not in kernels("always", *small, k=9)
    assert "screen" not in kernels("always", *small, dtype=torch.float64)
    assert kernels("always", *small, dtype=torch.float16) == {"mma", "mma.pad"}
    assert "mma" in kernels("auto", *large, k=50, dtype=torch.bfloat16)


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_order_of_threads_gives_the_same_bits(dtype):
    layer = LAYERS[-1]
    x, weight = cases.tensors(layer, dtype, "cpu")
    weight[100:] = weight[:50]  # ties, and patches that compete again
    results = []
    for seed in (0, 1, 2):
        HOST.seed(seed)
        results.append(compete("always", x, weight, 3, patches="centred", **layer.geometry))
    HOST.seed(int(os.environ.get("CUDAEMU_SEED", 1)))
    for winners, responses in results[1:]:
        assert torch.equal(winners, results[0][0]) and torch.equal(responses, results[0][1])


@pytest.mark.parametrize("P", [0, 1, 64, 65])
@pytest.mark.parametrize("K, N", [(8, 1), (128, 64), (129, 65)])
def test_edges_of_tiles(P, K, N):
    x, weight = cases.tensors(cases.Layer((P, N), (K, N)), torch.float32, "cpu")
    same(x, weight, 8)
    for dtype in (torch.bfloat16, torch.float16):
        got = compete("auto", x.to(DEVICE, dtype), weight.to(DEVICE, dtype), 8)
        oracle.check_compete(got, x.to(dtype), weight.to(dtype), k=8)


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_half_types(layer, patches, dtype):
    x, weight = cases.tensors(layer, dtype, DEVICE)
    for k, cosine, mask in (
        (1, False, None),
        (min(50, layer.neurons), False, None),
        (5, True, cases.some(layer.neurons, DEVICE)),
    ):
        options = {"k": k, "patches": patches, "cosine": cosine, "eligible": mask, **layer.geometry}
        oracle.check_compete(hk.ops.compete(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_types_tie_exactly(dtype):
    x, weight = (
        cases.integers((70, 33), -2, 2, dtype, DEVICE, seed=1),
        cases.integers((300, 33), -2, 2, dtype, DEVICE, seed=2),
    )
    for k in (1, 7, 40):
        winners, responses = hk.ops.compete(x, weight, k)
        want = hk.reference.compete(oracle.exact(x), oracle.exact(weight), k)
        assert (winners.cpu().numpy() == want[0]).all() and (responses.cpu().numpy() == want[1]).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_half_types_in_any_layout(layout, dtype):
    for layer in (LAYERS[2], LAYERS[-1]):
        x, weight = (cases.laid_out(tensor, layout) for tensor in cases.tensors(layer, dtype, DEVICE))
        got = hk.ops.compete(x, weight, 2, **layer.geometry)
        oracle.check_compete(got, x, weight, k=2, **layer.geometry)


@needs_emulation
@pytest.mark.parametrize("mode", ["off", "always"])
def test_keys_that_steps_group_by(mode):
    """Steps of rules with coefficients by rank and by response are the CPU's, screened or not."""
    x, weight = cases.tensors(cases.Layer((70, 40), (150, 40)), torch.float32, "cpu")
    frozen = cases.some(150, share=0.3)
    for rule in (hk.KrotovHopfield(k=3), hk.WTA(k=2, coefficient="response"), hk.WTA(similarity="cosine")):
        stepped, wanted = weight.clone(), weight.clone()
        with hk.screening(mode):
            rule.step_(stepped, x, lr=0.1, frozen=frozen)
        with hk.backend("cpu"):
            rule.step_(wanted, x, lr=0.1, frozen=frozen)
        np.testing.assert_allclose(stepped.numpy(), wanted.numpy(), rtol=0, atol=2e-6)
