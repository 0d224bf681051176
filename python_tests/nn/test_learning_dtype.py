"""Learning in another dtype than the weight's: the update of rounded numbers is applied to the unrounded weight."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import calls
import cases
import hebbkern as hk
import oracle
import test_dense_update_bfloat16 as few
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear
from hebbkern.ops.dense_step import fused_rounded_step_

DENSE = [hk.Sanger(), hk.Oja(), hk.Hebb(), hk.SoftWTA()]
RULES = [*DENSE, hk.WTA(), hk.WTA(average=False), hk.KrotovHopfield(), hk.Supervised()]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LABELS = torch.arange(40) % 5


def linear(rule, dtype=torch.float32):
    layer = HebbianLinear(12, 5, rule=rule, dtype=dtype)
    layer.weight.copy_(random((5, 12), torch.float64, seed=1) * (1 + 2.0**-10))  # nothing that bfloat16 holds
    layer.frozen[2] = True
    return layer


def network():
    torch.manual_seed(0)
    first = HebbianConv2d(2, 7, 3, padding=1, rule=hk.Sanger())
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), HebbianLinear(7 * 64, 5, rule=hk.Hebb()))


def images():
    return random((3, 2, 8, 8), seed=4)


def by_hand(layer, x, dtype, lr, **options):
    """The weight after `update` and `apply_` of the rule, with sums in the dtype that apply_ requires."""
    sums = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    update = layer.rule.update(layer.weight.detach().to(dtype), x.to(dtype), frozen=layer.frozen, **options)
    parts = [None if part is None else part.to(sums) for part in (update.sum, update.decay, update.denominator)]
    moved = layer.weight.detach().clone()
    layer.rule.apply_(moved, hk.Update(*parts), lr=lr, frozen=layer.frozen)
    return moved


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("own", DTYPES, ids=str)
def test_the_step_is_that_of_the_rounded_numbers(own, dtype, rule):
    layer, x = linear(rule, own), random((40, 12), own, seed=2)
    before, want = layer.weight.clone(), by_hand(layer, x, dtype, 0.1, labels=LABELS)
    layer.learn(x, lr=0.1, labels=LABELS, dtype=dtype)
    assert layer.weight.dtype == own and torch.equal(layer.weight, want) and not torch.equal(want, before)
    assert torch.equal(layer.weight[2], before[2])
    plain = linear(rule, own)
    plain.learn(x, lr=0.1, labels=LABELS)
    assert own in (torch.bfloat16, torch.float16) or dtype != torch.bfloat16 or not torch.equal(plain.weight, want)


@pytest.mark.slow(12, on="triton")
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("layer", [*few.FEW_PATCHES[1:], few.MANY_PATCHES[2]], ids=str)
def test_the_fused_step_has_the_bits_of_update_and_apply(backend, layer, layout):
    """float32 weights and bfloat16 products; weights are rounded as they are read, or in memory before."""
    for rule in (hk.Sanger(), hk.Oja(activation="tanh"), hk.Hebb(patches="centred")):
        x, weight = few.scaled(layer, torch.float32, backend.device)
        weight = cases.laid_out(weight, layout)
        frozen, before, want = cases.some(layer.neurons, backend.device), weight.clone(), weight.clone()
        rule.step_(weight, x, lr=0.1, frozen=frozen, dtype=torch.bfloat16, **layer.geometry)
        update = rule.update(want.bfloat16(), x.bfloat16(), frozen=frozen, **layer.geometry)
        rule.apply_(want, update, lr=0.1, frozen=frozen)
        assert calls.same_bits([weight.contiguous()], [want]) and calls.same_bits([want[frozen]], [before[frozen]])
        assert bool((want[~frozen] != before[~frozen]).any()) == bool((~frozen).any())


def test_which_steps_are_fused():
    if not oracle.rounds_responses(torch.zeros(1, dtype=torch.bfloat16), "raw"):
        pytest.skip("no processor or no kernels that multiply bfloat16")
    settings = "relu", "triangular", 0.1, "raw", (1, 1), (0, 0), (1, 1), 1, None
    for layer, taken in [(each, True) for each in few.FEW_PATCHES[:4]] + [(few.MANY_PATCHES[0], False)]:
        x, weight = few.scaled(layer, torch.float32)
        before, version = weight.clone(), weight._version
        assert fused_rounded_step_(weight, x.bfloat16(), *settings) == taken
        assert torch.equal(weight, before) != taken and (weight._version > version) == taken
        assert not fused_rounded_step_(weight, x, *settings)
        assert not fused_rounded_step_(weight.double(), x.bfloat16(), *settings)


def test_an_overflow_leaves_the_weights():
    layer = few.FEW_PATCHES[1]
    for x_size, w_size, lr in ((1e30, 1e30, 0.1), (1e18, 1e18, 0.1), (1.0, 1.0, 1e38)):
        x, weight = few.scaled(layer, torch.float32)
        x, weight = x.abs() * x_size, weight.abs() * w_size
        before = weight.clone()
        with pytest.raises(ValueError):
            hk.Sanger().step_(weight, x, lr=lr, dtype=torch.bfloat16)
        assert torch.equal(weight, before)


def test_dtype_none_is_the_weights_dtype():
    for dtype in (None, torch.float32):
        layer, want, x = linear(hk.Sanger()), linear(hk.Sanger()), random((40, 12), seed=2)
        layer.learn(x, lr=0.1, dtype=dtype)
        want.rule.step_(want.weight, x, lr=0.1, frozen=want.frozen)
        assert torch.equal(layer.weight, want.weight)


def test_learning_passes_dtype_to_every_layer():
    model, twin = network(), network()
    with hk.learning(model, lr=0.1, dtype=torch.bfloat16):
        y = model(images())
    first = twin[0]
    first.weight.copy_(by_hand(first, images(), torch.bfloat16, 0.1, padding=1))
    hidden = twin[:3](images())
    twin[3].weight.copy_(by_hand(twin[3], hidden, torch.bfloat16, 0.1))
    assert all(map(torch.equal, model.parameters(), twin.parameters())) and torch.equal(y, twin[3](hidden))
    assert not any(torch.equal(weight, weight.bfloat16().float()) for weight in model.parameters())


def test_inputs_from_autocast_are_not_rounded_again():
    layer, want, x = linear(hk.Sanger()), linear(hk.Sanger()), random((40, 12), torch.bfloat16, seed=2)
    with torch.autocast("cpu", torch.bfloat16), hk.learning(layer, lr=0.1, dtype=torch.bfloat16):
        layer(x)
    assert torch.equal(layer.weight, by_hand(want, x, torch.bfloat16, 0.1))


def test_small_steps_add_up():
    """A bfloat16 weight would lose each step: its numbers around 1 are 2^-7 apart."""
    layer = HebbianLinear(1, 1, rule=hk.Hebb())
    layer.weight.fill_(1.0)
    for _ in range(8):
        layer.learn(torch.ones(1, 1), lr=2.0**-12, dtype=torch.bfloat16)
    assert layer.weight.item() == 1 + 2.0**-9


@pytest.mark.parametrize("own", [torch.float32, torch.float64], ids=str)
def test_gradients_are_minus_the_step(own):
    layer, x = linear(hk.Sanger(), own), random((40, 12), own, seed=2)
    want = layer.weight - by_hand(layer, x, torch.bfloat16, 1.0)
    with hk.learning(layer, into="grad", dtype=torch.bfloat16):
        layer(x)
    assert layer.weight.grad.dtype == own
    torch.testing.assert_close(layer.weight.grad, want.detach(), rtol=1e-5, atol=1e-6)
    assert not layer.weight.grad[2].any()


def test_a_group_sums_the_updates(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for rule in (hk.Sanger(), hk.WTA()):
            layer, x = linear(rule), random((40, 12), seed=2)
            want = by_hand(layer, x, torch.bfloat16, 0.1)
            with hk.learning(layer, lr=0.1, group=dist.group.WORLD, dtype=torch.bfloat16):
                layer(x)
            assert torch.equal(layer.weight, want)
    finally:
        dist.destroy_process_group()


def test_compiled_models_learn_the_same():
    torch.compiler.reset()
    model, twin = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for lr in (0.1, 0.05):
        for one, run in ((model, compiled), (twin, twin)):
            with hk.learning(one, lr=lr, dtype=torch.bfloat16):
                run(images())
    for weight, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.int32, torch.complex64, "bfloat16", torch.float8_e4m3fn, 16], ids=str)
def test_other_dtypes_are_refused(bad):
    layer = linear(hk.Sanger())
    before = layer.weight.clone()
    wanted = "dtype must be torch.float32, float64, bfloat16 or float16, or None, got "
    with pytest.raises(ValueError) as error:
        hk.learning(layer, lr=0.1, dtype=bad)
    assert str(error.value) == f"hebbkern.learning: {wanted}{bad!r}"
    with pytest.raises(ValueError) as error:
        layer.learn(random((4, 12)), lr=0.1, dtype=bad)
    assert str(error.value) == f"hebbkern.HebbianLinear.learn: {wanted}{bad!r}" and torch.equal(layer.weight, before)


def test_bad_numbers_leave_the_weights():
    """A NaN, and a weight that is finite until it is rounded."""
    layer, x = linear(hk.Sanger()), random((40, 12), seed=2)
    before = copy.deepcopy(layer)
    with pytest.raises(ValueError, match="x must be finite"):
        layer.learn(x * float("nan"), lr=0.1, dtype=torch.bfloat16)
    assert torch.equal(layer.weight, before.weight)
    layer.weight[1, 1] = 1e5
    with pytest.raises(ValueError, match="weight must be finite"):
        layer.learn(x, lr=0.1, dtype=torch.float16)
    assert layer.weight[1, 1] == 1e5 and torch.equal(layer.weight[0], before.weight[0])


def test_hebbcl_refuses_a_dtype():
    model = hk.continual.HebbCL(12, 5, normalise="none")
    with pytest.raises(ValueError, match="dtype=None"), hk.learning(model, lr=0.1, dtype=torch.bfloat16):
        model(random((3, 12)))
