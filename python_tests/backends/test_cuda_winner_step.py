"""winner_step_ by the CUDA kernels: how many launches a step takes, lists that are cut, rows that do not learn."""

import pytest
import torch

import calls
import cases
import hebbkern as hk
from on_cuda import DEVICE, HOST, NOTE, ONLY_NOTE, UNSEEN, needs_emulation, noted
from test_cuda_accumulate import LENGTHS, lists_of
from test_winner_step import RULES, in_parts, labels_for, of_kind, same


@pytest.fixture(autouse=True)
def by_cuda():
    with hk.backend("cuda"):
        yield


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("inputs", [40, 33])
def test_labels_of_lists_that_just_fit_and_just_do_not(inputs, dtype, poison):
    poison()
    count = sum(LENGTHS) + 5
    x, weight = cases.tensors(cases.Layer((count, inputs), (len(LENGTHS), inputs)), dtype, DEVICE)
    labels, frozen = lists_of(LENGTHS, count)[:, 0], cases.some(len(LENGTHS), DEVICE, share=0.3)
    for patches in cases.PATCHES:
        rule, before = hk.Supervised(patches=patches), weight.clone()
        assert same(rule, weight, x, labels, frozen, {})
        moved = (weight != before).any(1).tolist()
        assert moved == [length > 0 and not still for length, still in zip(LENGTHS, frozen.tolist(), strict=True)]


@pytest.mark.parametrize("rule", RULES[:-2], ids=str)
def test_one_neuron_wins_everything(rule):
    """Beside others that learn nothing, or only from second places; more entries than one block sorts."""
    x = cases.random((4200, 33), device=DEVICE).abs()
    weight = cases.random((9, 33), device=DEVICE, scale=0.01)
    weight[4] = 1.0
    for patches in ("raw", "centred"):
        assert same(of_kind(rule, patches), weight.clone(), x, None, None, {})


@needs_emulation
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_any_order_of_threads(rule):
    x, weight = cases.tensors(cases.Layer((300, 33), (7, 33)), torch.float32, DEVICE)
    results = []
    try:
        for seed in range(3):
            HOST.seed(seed)
            results.append(in_parts(rule, weight, x, 0.1, labels_for(rule, x, 7), None, {}))
            results.append(weight.clone())
            rule.step_(results[-1], x, lr=0.1, labels=labels_for(rule, x, 7))
    finally:
        HOST.seed(1)
    assert all(calls.same_bits(results[:1], [other]) for other in results[1:])


@needs_emulation
@pytest.mark.parametrize("patches", ["raw", "standardised"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_launches(rule, patches):
    """Four after the contest, whose patches may want to be known, weights to be powers and shares to be merged."""
    for count in (64, 5000):
        x, weight = cases.tensors(cases.Layer((count, 20), (10, 20)), torch.float32, DEVICE)
        with noted(NOTE):
            of_kind(rule, patches).step_(weight, x, lr=0.1, labels=labels_for(rule, x, 10))
            kernels = [launch[0].partition("<")[0] for launch in HOST.launches()]
        rest = [kernel for kernel in kernels if not kernel.startswith(("compete", "moments"))]
        if isinstance(rule, hk.Supervised):
            assert rest.pop(0) == "accumulate.name"
        assert rest[0] in ("sort.few", "sort.starts")
        assert rest[1:] == ["accumulate.gather", "apply.survey", "apply.step"]
        assert len(kernels) <= 8 and (patches != "raw" or not isinstance(rule, hk.Supervised) or len(kernels) == 5)


@needs_emulation
def test_launches_of_a_depthwise_layer():
    """As many as of a layer without groups."""
    x, weight = torch.ones(64, 128, 28, 28), torch.ones(128, 1, 3, 3)
    with noted(ONLY_NOTE):
        hk.WTA().step_(weight, x, lr=0.1, groups=128, padding=1)
        kernels = [launch[0] for launch in HOST.launches()]
    steps = ["sort.starts", "accumulate.gather", "apply.survey", "apply.step"]
    assert kernels == ["moments", "compete.few", *steps]


@needs_emulation
def test_labels_of_other_groups_teach_a_patch_nothing():
    """A label beyond the last neuron of all groups makes the step one that is skipped, where values are not read."""
    x, weight = cases.random((6, 4, 5, 5)), cases.random((4, 2, 3, 3))
    before, labels = weight.clone(), torch.tensor([0, 1, 1, 3, -1, 3])
    with noted(UNSEEN):
        hk.Supervised().step_(weight, x, lr=0.1, labels=labels, groups=2)
    assert HOST.skipped(0) == 0 and torch.equal(weight[2], before[2])
    for j, images, channels in ((0, [0], slice(0, 2)), (1, [1, 2], slice(0, 2)), (3, [3, 5], slice(2, 4))):
        mean = x[images, channels].unfold(2, 3, 1).unfold(3, 3, 1).mean((0, 2, 3))
        torch.testing.assert_close(weight[j], before[j] + 0.1 * (mean - before[j]))
    with noted(UNSEEN):
        hk.Supervised().step_(weight, x, lr=0.1, labels=labels + 1, groups=2)
    assert HOST.skipped(0) == 1


def test_coefficients_of_every_rank():
    """As many as a contest can have, every other one silent."""
    x, weight = cases.tensors(cases.Layer((70, 12), (80, 12)), torch.float32, DEVICE)
    c = [(-1) ** (r // 2) / (r + 1) if r % 2 else 0.0 for r in range(64)]
    for by_response in (False, True):
        winners, responses = hk.ops.compete(x, weight, 64)
        each = torch.tensor(c, device=DEVICE)
        each = responses.clamp(min=0) * each if by_response else each
        total, decay, _ = hk.ops.accumulate(x, winners, each, neurons=80)
        want, got = weight.clone(), weight.clone()
        hk.ops.apply_(want, total, decay=decay, lr=0.1)
        hk.ops.winner_step_(got, x, lr=0.1, k=64, coefficients=c, by_response=by_response)
        assert calls.same_bits([got], [want]) and not calls.same_bits([got], [weight])


@needs_emulation
def test_a_step_whose_values_are_not_read_is_skipped_and_counted():
    """A NaN in one patch, or a label beyond the last neuron: the weights stay as they are."""
    x, weight = cases.tensors(cases.Layer((300, 12), (5, 12)), torch.float32, DEVICE)
    before, labels = weight.clone(), torch.arange(300) % 5
    spoilt, wrong = x.clone(), labels.clone()
    spoilt[123, 4], wrong[200] = float("nan"), 5
    HOST.skipped(0)
    for given, how in ((spoilt, {}), (spoilt, {"labels": labels}), (x, {"labels": wrong})):
        with noted(UNSEEN):
            hk.ops.winner_step_(weight, given, lr=0.1, **how)
        assert calls.same_bits([weight], [before]) and HOST.skipped(0) == 1
    with noted(UNSEEN):
        hk.ops.winner_step_(weight, x, lr=0.1, labels=labels)
    assert HOST.skipped(0) == 0 and not calls.same_bits([weight], [before])
