"""apply_ by the CUDA kernels: all or nothing, the same bits in any layout and order, two launches, skipped steps."""

import contextlib
import itertools
import sys
import types

import pytest
import torch

import calls
import cases
import hebbkern as hk
from hebbkern.backends import extensions
from hebbkern.checks import result_dtype
from on_cuda import HOST, ONLY_NOTE, UNSEEN, needs_emulation, noted
from test_apply import NORMALISE, apply_and_check, arguments, bits

FLAWS = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(autouse=True)
def by_cuda():
    with hk.backend("cuda"):
        yield


@pytest.fixture
def unseen():
    """Values are not read, as on a GPU."""
    with noted(UNSEEN):
        yield
    HOST.skipped(0)


@contextlib.contextmanager
def in_order(seed):
    """Threads and blocks take turns in another order."""
    HOST.seed(seed)
    try:
        yield
    finally:
        HOST.seed(1)


def one_is_skipped():
    with pytest.raises(RuntimeError, match="1 step was skipped on cpu, the weights left as before"):
        hk.synchronize()
    hk.synchronize()  # raised once


def test_the_kernels_are_there():
    key = "CPU" if HOST else "CUDA"
    assert torch._C._dispatch_has_kernel_for_dispatch_key("hebbkern::apply_.cuda", key)


@needs_emulation
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_two_launches(dtype):
    for shape, normalise, power in itertools.product([(1, 1), (300, 2304), (96, 3, 5, 5)], NORMALISE, (0.0, 0.5)):
        weight, step = arguments(shape, dtype)
        before = weight.clone()
        with noted(ONLY_NOTE):
            hk.ops.apply_(weight, **step, lr=0.1, normalise=normalise, rate_power=power, frozen=cases.some(shape[0]))
            launches = HOST.launches()
        assert [name for name, *_ in launches] == ["apply.survey", "apply.step"]
        assert torch.equal(weight, before)
        assert all(grid[0] <= 8 * 132 and shared == 0 for _, grid, _, shared, *_ in launches)


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("shape", [(40000, 3), (2, 20000), (1100, 260), (300, 1), (1, 5000)], ids=str)
def test_many_rows_and_few(shape, normalise):
    """Rows of a few threads and of a block, read in several goes; more groups than blocks."""
    for dtype, power in ((torch.float32, 0.5), (torch.bfloat16, 0.0)):
        weight, step = arguments(shape, dtype)
        apply_and_check(weight, {**step, "lr": 0.1, "normalise": normalise, "rate_power": power})


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_bits_do_not_depend_on_layouts(dtype, normalise):
    """Rows in packs of 16 bytes, at addresses that are no multiple of it, or anywhere."""
    for shape in ((37, 1056), (70, 36), (19, 9, 4, 3)):
        weight, step = arguments(shape, dtype)
        settings = {"lr": 0.1, "normalise": normalise, "rate_power": 0.5, "frozen": cases.some(shape[0])}
        want = weight.clone()
        hk.ops.apply_(want, **step, **settings)
        assert not torch.equal(want, weight)
        for of_weight, of_sum in itertools.product(cases.LAYOUTS, cases.LAYOUTS[:2]):
            got = cases.laid_out(weight.clone(), of_weight)
            total = cases.laid_out(step["sum"], of_sum)
            hk.ops.apply_(got, **{**step, "sum": total}, **settings)
            assert calls.same_bits([got], [want]), (shape, of_weight, of_sum)
        shifted = step["sum"].new_zeros(step["sum"].numel() + 1)[1:].view(shape).copy_(step["sum"])
        got = weight.clone()
        hk.ops.apply_(got, **{**step, "sum": shifted}, **settings)
        assert calls.same_bits([got], [want])


@pytest.mark.parametrize("normalise", ["none", "row_max", "row_l2"])
@pytest.mark.parametrize("inputs", [3, 40, 260, 1030])
def test_a_row_moves_the_same_whatever_others_are_there(inputs, normalise):
    for dtype in cases.DTYPES:
        weight, step = arguments((150, inputs), dtype)
        single = [weight[j : j + 1].clone() for j in range(0, 150, 7)]
        settings = {"lr": 0.1, "normalise": normalise, "rate_power": 0.5}
        for row, j in zip(single, range(0, 150, 7), strict=True):
            hk.ops.apply_(row, **{name: value[j : j + 1] for name, value in step.items()}, **settings)
        hk.ops.apply_(weight, **step, **settings)
        assert calls.same_bits(single, [weight[j : j + 1] for j in range(0, 150, 7)])


@needs_emulation
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("shape", [(33, 70), (70, 1028)], ids=str)
def test_bits_do_not_depend_on_the_order_of_threads(shape, normalise):
    results = []
    for seed in range(5):
        weight, step = arguments(shape, torch.float32)
        with in_order(seed):
            hk.ops.apply_(weight, **step, lr=0.1, normalise=normalise, rate_power=0.5)
        results.append(weight)
    assert all(calls.same_bits(results[:1], [other]) for other in results[1:])


@needs_emulation
@pytest.mark.parametrize("flaw", FLAWS, ids=str)
@pytest.mark.parametrize("normalise", NORMALISE)
def test_all_or_nothing(unseen, normalise, flaw):
    """A flaw in the last row, in each argument in turn, leaves every weight as it was, and is reported once."""
    for shape, dtype in itertools.product([(70, 36), (70, 37), (3, 4100)], cases.DTYPES):
        for argument in ("weight", "sum", "decay", "denominator"):
            weight, step = arguments(shape, dtype)
            {"weight": weight, **step}[argument].view(-1)[-1] = flaw
            before = bits(weight)
            hk.ops.apply_(weight, **step, lr=0.1, normalise=normalise)
            assert torch.equal(bits(weight), before), (shape, dtype, argument)
            one_is_skipped()


@needs_emulation
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_step_that_overflows_is_skipped_and_the_next_one_says_so(unseen, dtype, normalise):
    weight, total = torch.ones(70, 20, dtype=dtype), torch.ones(70, 20, dtype=result_dtype(dtype))
    weight[-1, -1] = total[-1] = torch.finfo(dtype).max
    before, lr = bits(weight), torch.finfo(dtype).max
    hk.ops.apply_(weight, total, lr=float(lr), normalise=normalise)
    small = torch.zeros(2, 3)
    if normalise.startswith("row") and dtype == torch.float16:  # finite in float32, and then normalised
        assert not torch.equal(bits(weight), before)
        return
    assert torch.equal(bits(weight), before)
    with pytest.raises(RuntimeError, match="1 step was skipped on cpu"):
        hk.ops.apply_(small, torch.ones(2, 3), lr=1.0)
    assert small.eq(0).all()
    hk.ops.apply_(small, torch.ones(2, 3), lr=1.0)
    assert small.eq(1).all()
    hk.synchronize("cpu")


@needs_emulation
def test_skipped_steps_are_counted(unseen):
    weight, other = torch.full((3, 5), torch.nan), torch.zeros(2, 2)
    hk.ops.apply_(weight, torch.ones(3, 5), lr=1.0)
    assert HOST.stepped() == [0] and HOST.skipped(0) == 1 and HOST.skipped(0) == 0 and HOST.skipped(5) == 0
    hk.ops.apply_(other, torch.ones(2, 2), lr=1.0)
    assert HOST.skipped(0) == 0 and other.eq(1).all()


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_frozen_row_of_large_weights_bounds_nothing(normalise):
    """Nor does it enter the largest step; its numbers must be finite all the same."""
    largest = torch.finfo(torch.float32).max
    weight = torch.ones(40, 12)
    weight[7], frozen = largest, torch.zeros(40, dtype=torch.bool)
    frozen[7] = True
    total = torch.ones(40, 12)
    total[7] = largest
    hk.ops.apply_(weight, total, lr=0.5, normalise=normalise, frozen=frozen)
    assert weight[7].eq(largest).all()
    want = 1.0 if normalise == "row_max" else 12**-0.5 if normalise == "row_l2" else 1.5
    assert torch.allclose(weight[~frozen], torch.tensor(want))


def test_synchronize_asks_every_device_that_took_steps(monkeypatch):
    """As on a machine with GPUs: it waits for a device before it reads its count, and leaves the others alone."""
    calls_made, counts = [], {0: 0, 2: 3}

    def skipped(index):
        calls_made.append(("skipped", index))
        number, counts[index] = counts[index], 0
        return number

    module = types.SimpleNamespace(stepped=lambda: [0, 2], skipped=skipped)
    monkeypatch.setattr(extensions, "load", lambda name: (module, None))
    monkeypatch.setattr(extensions, "emulated", lambda: None)
    monkeypatch.delitem(sys.modules, "hebbkern.backends.triton.status", raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls_made.append(("wait", device.index)))
    hk.synchronize("cuda:0")
    assert calls_made == [("wait", 0), ("skipped", 0)]
    with pytest.raises(RuntimeError, match="3 steps were skipped on cuda:2, the weights left as before"):
        hk.synchronize()
    assert calls_made[2:] == [("wait", 0), ("skipped", 0), ("wait", 2), ("skipped", 2)]
    hk.synchronize()
