"""A blank patch, all zeros or constant where patches are centred, has no winner and teaches no neuron."""

import itertools
from dataclasses import replace

import pytest
import torch

import calls
import cases
import hebbkern as hk
import oracle

RESPONSES = [{}, {"p": 3.0}, {"cosine": True}]
RULES = [
    hk.KrotovHopfield(),
    hk.WTA(),
    hk.WTA(k=2),
    hk.WTA(similarity="dot", coefficient="response"),
    hk.WTA(k=2, coefficient="response", normalise="row_l2"),
    hk.Supervised(),
]
LAYERS = [cases.Layer((41, 70), (35, 70)), cases.Layer((3, 2, 12, 11), (33, 2, 3, 3), {"padding": 1, "stride": 2})]
STRIDED = cases.Layer((2, 3, 14, 9), (5, 3, 2, 2), {"stride": 2, "dilation": (2, 1)})


def partly_blank(layer, dtype, patches, device=None, constant=0.7):
    """x and weight, where about half of the patches are blank."""
    x, weight = cases.tensors(layer, dtype, device)
    part = x[::2] if x.dim() == 2 else x[..., : x.shape[-1] * 2 // 3]
    part.fill_(0 if patches == "raw" else constant)
    return x, weight


def blank(layer, x, patches):
    """bool [P], by the specification."""
    return torch.from_numpy(~hk.reference.unfold(oracle.exact(x), layer.kernel, patches, **layer.geometry).any(1))


@pytest.mark.slow(3, on="triton")
@pytest.mark.parametrize("response", RESPONSES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_nobody_wins_a_blank_patch(backend, dtype, patches, response):
    for layer, k in itertools.product([*LAYERS, STRIDED], (1, 3)):
        x, weight = partly_blank(layer, dtype, patches, backend.device)
        options = {"patches": patches, **response, **layer.geometry}
        winners, responses = hk.ops.compete(x, weight, k, **options)
        oracle.check_compete((winners, responses), x, weight, k, **options)
        nobody = blank(layer, x, patches).to(backend.device)
        assert (winners[nobody] == -1).all() and not responses[nobody].any() and (winners[~nobody] >= 0).all()
        assert 0.2 < nobody.double().mean() < 0.8


@pytest.mark.slow(4, on="triton")
@pytest.mark.parametrize("response", RESPONSES, ids=str)
@pytest.mark.parametrize("patches", cases.PATCHES)
def test_screening_finds_the_same_nobody(backend, patches, response):
    for layer, k in itertools.product(LAYERS, (1, 2)):
        x, weight = partly_blank(layer, torch.float32, patches, backend.device)
        options = {"patches": patches, "eligible": cases.some(layer.neurons, backend.device), **response}
        want, _ = hk.ops.compete(x, weight, k, **options, **layer.geometry)
        with hk.screening("always"):
            winners, _ = hk.ops.compete(x, weight, k, **options, **layer.geometry)
        assert torch.equal(winners, want) and (winners == -1).any()


@pytest.mark.parametrize("k", [1, 3])
def test_a_blank_patch_has_no_winner_in_a_large_layer(backend, k):
    """Where several blocks share the neurons of a patch."""
    x, weight = cases.tensors(cases.Layer((3, 600), (1500, 600)), torch.float32, backend.device)
    x[1] = 0
    winners, responses = hk.ops.compete(x, weight, k)
    assert winners[1].tolist() == [-1] * k and not responses[1].any() and (winners[::2] >= 0).all()


def test_one_entry_that_is_not_zero_is_enough(backend):
    """However small it is, and wherever it lies; and weights of zeros leave the patches what they are."""
    for inputs in (1, 63, 129, 300):
        x = torch.zeros(inputs + 1, inputs)
        x[torch.arange(inputs), torch.arange(inputs)] = 1e-42
        for weight in (torch.zeros(4, inputs), -torch.ones(4, inputs)):
            winners, _ = hk.ops.compete(x, weight, 2) if inputs > 1 else hk.ops.compete(x, weight[:2], 2)
            assert winners.tolist() == [[0, 1]] * inputs + [[-1, -1]]
        total, _, count = hk.ops.accumulate(x, torch.zeros(inputs + 1, 1).int(), torch.ones(1), neurons=1)
        assert count.tolist() == [inputs] and torch.equal(total, x.sum(0, keepdim=True))


@pytest.mark.slow(3, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_named_blank_patches_add_to_no_sum(backend, dtype, patches):
    for layer in [*LAYERS, STRIDED]:
        x, _ = partly_blank(layer, dtype, patches, backend.device)
        nobody = blank(layer, x, patches).to(backend.device)
        wide = oracle.result_dtype(dtype)
        targets = torch.arange(3 * len(nobody), dtype=torch.int64).reshape(-1, 3).to(backend.device) % layer.neurons
        responses = cases.random((len(nobody), 3), wide, seed=3)
        options = {"neurons": layer.neurons, "kernel": layer.kernel, "responses": responses, "patches": patches}
        coefficients = torch.tensor([1.0, -0.5, 2.0], dtype=wide)
        got = hk.ops.accumulate(x, targets, coefficients, **options, **layer.geometry)
        oracle.check_accumulate(got, x, targets, coefficients, **options, **layer.geometry)
        assert got[2].sum() == 3 * (~nobody).sum()
        masked = targets.masked_fill(nobody[:, None], -1)
        assert calls.same_bits(got, hk.ops.accumulate(x, masked, coefficients, **options, **layer.geometry))


@pytest.mark.slow(5, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_step_has_the_bits_of_its_parts(backend, rule, patches):
    rule = replace(rule, patches=patches)
    dtypes = (torch.float32,) if backend.name == "triton" else cases.DTYPES
    for layer, dtype in itertools.product(LAYERS, dtypes):
        x, weight = partly_blank(layer, dtype, patches, backend.device)
        labels = torch.arange(len(x)) % layer.neurons if isinstance(rule, hk.Supervised) else None
        want = weight.clone()
        rule.apply_(want, rule.update(want, x, labels=labels, **layer.geometry), lr=0.1)
        before = weight.clone()
        rule.step_(weight, x, lr=0.1, labels=labels, **layer.geometry)
        assert calls.same_bits([weight], [want]) and not calls.same_bits([weight], [before])


@pytest.mark.slow(3, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("rule", [*RULES, hk.SoftWTA(normalise="global_max")], ids=str)
def test_blank_images_move_no_weight(backend, rule, patches):
    """Rounding leaves a constant patch something around its mean, of which "global_max" would make a whole step."""
    rule = replace(rule, patches=patches)
    for layer, dtype in itertools.product(LAYERS, (torch.float32, torch.bfloat16)):
        weight = cases.tensors(layer, dtype, backend.device)[1]
        numbers = (0.0,) if patches == "raw" else (0.0, 0.1, 0.7, -300.0)
        for number in numbers:
            if number and layer.geometry:  # padding makes patches of two numbers
                continue
            x = torch.full(layer.x, number, dtype=dtype)
            labels = torch.zeros(len(x), dtype=torch.int64) if isinstance(rule, hk.Supervised) else None
            before = weight.clone()
            rule.step_(weight, x, lr=0.1, labels=labels, **layer.geometry)
            assert calls.same_bits([weight], [before])


@pytest.mark.slow(4, on="triton")
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("rule", [hk.WTA(), hk.WTA(k=2), hk.WTA(similarity="dot")], ids=str)
def test_neuron_0_does_not_die_of_blank_patches(backend, rule, patches):
    """32 filters 5x5 over images that are half blank: neuron 0 won every blank patch and shrank to a norm of 0.002."""
    rule, slow = replace(rule, patches=patches), backend.name in ("triton", "cuda-host")
    images = cases.random((2, 1, 12, 20), seed=5, offset=0.5).clamp(min=0)
    images[..., :10] = 0.0
    weight = cases.random((32, 1, 5, 5), seed=6)
    before = weight.flatten(1).norm(dim=1)
    for _ in range(10 if slow else 60):
        rule.step_(weight, images, lr=0.1)
    after = weight.flatten(1).norm(dim=1)
    winners, _ = hk.ops.compete(images, weight, rule.k, cosine=rule.similarity == "cosine", patches=patches)
    nobody = blank(cases.Layer(images.shape, weight.shape), images, patches).to(backend.device)
    assert 0.3 < nobody.double().mean() < 0.5
    assert (winners[nobody] == -1).all() and (winners[~nobody] >= 0).all()
    # A neuron that wins moves to the mean of its patches; one that wins nothing stays.
    least = hk.reference.unfold(oracle.exact(images), (5, 5), patches)[~nobody.cpu().numpy()]
    assert after[0] >= min(before[0].item(), 0.5 * float((least**2).sum(1).mean() ** 0.5))


def test_wins_counts_no_blank_patch(backend):
    layer = hk.nn.HebbianLinear(8, 4, rule=hk.WTA()).to(backend.device)
    x = cases.random((10, 8))
    x[3:7] = 0
    assert hk.evaluation.measures.wins(layer, x).sum() == 6
