"""apply_: the step in place, renormalisation, rows that keep their bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import calls
import cases
import hebbkern as hk
import oracle

SHAPES = [(1, 1), (1, 63), (100, 257), (63, 100), (257, 1), (7, 3, 3, 3), (100, 1, 1, 1), (33, 63, 3, 2)]
NORMALISE = ["none", "row_max", "row_l2", "global_max"]
DENOMINATORS = ["none", "rows", "one"]


def bits(tensor):
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(size).clone()


def arguments(shape, dtype, decay=True, denominator="rows", device=None, seed=0):
    """weight and a step for it in which some denominators are 0."""
    weight, wide = cases.random(shape, dtype, device, seed), oracle.result_dtype(dtype)
    step = {"sum": cases.random(shape, wide, device, seed + 1)}
    step["decay"] = cases.random(shape[:1], wide, device, seed + 2) if decay else None
    rows = cases.integers(shape[:1], 0, 5, wide, device, seed + 3)
    step["denominator"] = {"none": None, "rows": rows, "one": rows.new_tensor([3.0])}[denominator]
    return weight, step


def apply_and_check(weight, step):
    before, version = weight.clone(), weight._version
    assert hk.ops.apply_(weight, **step) is None
    assert weight._version > version
    oracle.check_apply(weight, before, **step)
    return before


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps(backend, shape, dtype, normalise, denominator):
    for decay in (True, False):
        for rate_power in (0.0, 0.5):
            weight, step = arguments(shape, dtype, decay, denominator, backend.device)
            apply_and_check(weight, {**step, "lr": 0.1, "normalise": normalise, "rate_power": rate_power})


@pytest.mark.parametrize("of_sum", cases.LAYOUTS)
@pytest.mark.parametrize("of_weight", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(63, 100), (33, 5, 3, 2)], ids=str)
def test_layouts(backend, shape, of_weight, of_sum):
    for dtype in cases.DTYPES:
        weight, step = arguments(shape, dtype, device=backend.device)
        weight, step["sum"] = cases.laid_out(weight, of_weight), cases.laid_out(step["sum"], of_sum)
        apply_and_check(weight, {**step, "lr": 0.1, "normalise": "row_l2"})


def test_only_the_view_is_written(backend):
    larger = cases.random((9, 8, 7))
    before = larger.clone()
    hk.ops.apply_(larger[1:8:2, 2:7, 3], torch.ones(4, 5), lr=1.0)
    moved = torch.zeros_like(larger, dtype=torch.bool)
    moved[1:8:2, 2:7, 3] = True
    assert torch.equal(larger[~moved], before[~moved]) and torch.equal(larger[moved], before[moved] + 1)


@given(st.data())
def test_drawn_steps(backend, data):
    rank = data.draw(st.sampled_from([2, 4]))
    shape = tuple(data.draw(st.lists(st.integers(1, 40 if rank == 2 else 6), min_size=rank, max_size=rank)))
    dtype, seed = data.draw(st.sampled_from(cases.DTYPES)), data.draw(st.integers(0, 2**20))
    weight, step = arguments(
        shape, dtype, data.draw(st.booleans()), data.draw(st.sampled_from(DENOMINATORS)), seed=seed
    )
    weight = cases.laid_out(weight, data.draw(st.sampled_from(cases.LAYOUTS)))
    step |= {"lr": data.draw(st.sampled_from([0.0, 1e-3, 0.5, -1.0])), "rate_power": data.draw(st.sampled_from([0, 1]))}
    step["frozen"] = cases.some(shape[0], seed=seed) if data.draw(st.booleans()) else None
    before = apply_and_check(weight, {**step, "normalise": data.draw(st.sampled_from(NORMALISE))})
    if step["frozen"] is not None:
        assert torch.equal(bits(weight[step["frozen"]]), bits(before[step["frozen"]]))


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(100, 257), (33, 63, 3, 2)], ids=str)
def test_rows_that_do_not_move_keep_their_bits(backend, shape, dtype, normalise):
    """Frozen, untaught (denominator 0), or with a step of zeros: not even the sign of a zero changes."""
    weight, step = arguments(shape, dtype, device=backend.device)
    weight[:, ::3] = -0.0
    frozen = cases.some(shape[0], backend.device)
    still = frozen | (step["denominator"] == 0)
    still[5], step["sum"][5], step["decay"][5] = True, 0, 0
    before = bits(weight)
    hk.ops.apply_(weight, **step, lr=0.1, normalise=normalise, frozen=frozen)
    assert torch.equal(bits(weight)[still], before[still])
    assert (bits(weight) != before).flatten(1).any(1)[~still].all()
    before = bits(weight)
    hk.ops.apply_(weight, **step, lr=0.0, normalise=normalise)
    assert torch.equal(bits(weight), before)


def test_frozen_rows_never_enter_the_largest_entry(backend):
    weight, total = torch.zeros(3, 2), torch.tensor([[100.0, 0.0], [2.0, -4.0], [1.0, 1.0]])
    hk.ops.apply_(weight, total, lr=1.0, normalise="global_max", frozen=torch.tensor([True, False, False]))
    assert weight.tolist() == [[0.0, 0.0], [0.5, -1.0], [0.25, 0.25]]


def test_largest_entry_of_a_step_of_zeros(backend):
    weight = torch.ones(3, 2)
    hk.ops.apply_(weight, torch.zeros(3, 2), lr=1.0, normalise="global_max")
    assert torch.equal(weight, torch.ones(3, 2))
    weight.zero_()
    hk.ops.apply_(weight, torch.full((3, 2), 1e-36), lr=1.0, normalise="global_max")
    assert torch.allclose(weight, torch.tensor(1e-6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("normalise", ["row_max", "row_l2"])
def test_a_row_that_became_zero_stays_zero(backend, normalise):
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    hk.ops.apply_(weight, torch.tensor([[-1.0, -2.0], [0.0, 0.0]]), lr=1.0, normalise=normalise)
    assert weight.tolist() == [[0.0, 0.0], [3.0, 4.0]]


def test_half_weights_are_rounded_once(backend):
    """1 + 2^-9 is between bfloat16 numbers: worked out in float32 and halved it is 0.5 + 2^-10, rounded to 0.5."""
    weight = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    hk.ops.apply_(weight, torch.tensor([[2.0**-9, 2.0**-6]]), lr=1.0, normalise="row_max")
    want = torch.tensor([[(1 + 2.0**-9) / (2 + 2.0**-6), 1.0]]).bfloat16()
    assert torch.equal(weight, want)


def test_rate_of_a_row_of_length_one_is_zero(backend):
    weight = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    hk.ops.apply_(weight, torch.ones(2, 2), lr=1.0, rate_power=2.0)
    assert weight.tolist() == [[1.0, 0.0], [7.0, 4.0]]


@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_overflow_leaves_the_weights(backend, dtype, normalise):
    """The last row overflows; the rows before it are not written either."""
    wide = oracle.result_dtype(dtype)
    weight = cases.random((70, 20), dtype, backend.device)
    total = torch.ones(70, 20, dtype=wide)
    total[-1] = torch.finfo(wide).max
    weight[-1, -1] = torch.finfo(dtype).max if normalise == "global_max" else 1
    lr = torch.finfo(dtype).max if normalise == "global_max" else 1e5
    before = bits(weight)
    with calls.refused(backend.device, r"hebbkern\.apply_: weight must stay finite, got a step that"):
        hk.ops.apply_(weight, total, lr=float(lr), normalise=normalise)
    assert torch.equal(bits(weight), before)


@pytest.mark.parametrize(
    ("lr", "size", "options"),
    [
        (1e39, 1e-3, {}),  # beyond float32, though each step would be within
        (1e10, 1e-31, {"normalise": "global_max"}),  # divided by at least 1e-30
        (1e-4, 0.5, {"rate_power": 20.0}),  # a rate of (1000 - 1)^20
    ],
)
def test_rates_beyond_float32_are_refused(backend, lr, size, options):
    weight = torch.full((4, 100), 100.0, device=backend.device)
    sum = torch.zeros_like(weight)
    sum[:, ::2] = size
    before = weight.clone()
    try:
        hk.ops.apply_(weight, sum, lr=lr, **options)
        hk.synchronize()
    except (ValueError, RuntimeError) as error:
        assert "finite" in str(error) or "skipped on cuda" in str(error)
        assert torch.equal(weight, before)
    assert weight.isfinite().all()
