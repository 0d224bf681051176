"""Corners of the range of numbers and of memory, in which the backends of a CPU answer, and refuse, the same."""

import pytest
import torch

import hebbkern as hk

NAMES = ["eager", "cpu", pytest.param("triton", marks=pytest.mark.triton), "cuda"]
EACH = pytest.mark.parametrize("name", NAMES)
BY_DOUBLES = pytest.mark.parametrize("name", NAMES[:2])  # kernels that take norms in double; those of GPUs do not


@pytest.fixture
def on(name):
    if reason := hk.backends.available()[name]:
        pytest.skip(reason)
    if name in ("cuda", "triton") and torch.cuda.is_available():
        pytest.skip("on a GPU no operator looks at values")
    with hk.backend(name):
        yield


@EACH
@pytest.mark.parametrize("x", [1e-40, 1e-37])
def test_nearest_patch_refuses_a_nearest_distance_that_overflows(on, x):
    """|w - x|^2 / |x|_1 = 102 / (102 x) is beyond float32 for x = 1e-40, and 1e37 for x = 1e-37."""
    patch, weight = torch.full((3, 102), x), torch.ones(5, 102)
    if x == 1e-40:
        with pytest.raises(ValueError, match="nearest_patch: x and weight must give finite responses, got an overflow"):
            hk.ops.nearest_patch(patch, weight)
    else:
        nearest, distance = hk.ops.nearest_patch(patch, weight)
        assert nearest.tolist() == [0] * 5
        torch.testing.assert_close(distance, torch.full((5,), 1 / x))


@EACH
def test_nearest_patch_refuses_a_patch_by_whose_length_nothing_can_be_divided(on):
    with pytest.raises(ValueError, match="nearest_patch: x and weight must give finite responses, got an overflow"):
        hk.ops.nearest_patch(torch.tensor([[1e-40], [2.0]]), torch.ones(5, 1))


@EACH
def test_nearest_patch_takes_a_far_patch_whose_distance_overflows(on):
    x = torch.stack([torch.full((102,), 1e-40), torch.full((102,), 2.0)])
    nearest, distance = hk.ops.nearest_patch(x, torch.ones(5, 102))
    assert nearest.tolist() == [1] * 5
    torch.testing.assert_close(distance, torch.full((5,), 0.5))  # 102 / 204


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_exact_ties_of_ternary_patches_go_to_the_lower_index(on, dtype):
    """Patches of n ones are at the distance n / n from zeros, but n (1 / n) rounds to less than 1 for some n."""
    x = torch.ones(100, 100, dtype=dtype).tril() * torch.tensor([1, -1], dtype=dtype).repeat(50)
    nearest, distance = hk.ops.nearest_patch(x, torch.zeros(3, 100, dtype=dtype))
    assert nearest.tolist() == [0] * 3 and distance.tolist() == [1] * 3


@EACH
def test_a_neuron_that_is_not_eligible_may_overflow(on):
    x, weight, eligible = torch.rand(7, 6) + 0.1, torch.rand(4, 6) + 0.1, torch.tensor([True, False, True, True])
    huge = weight.clone()
    huge[1] = 1e30
    for call in (
        lambda w: hk.ops.nearest_patch(x, w, eligible=eligible),
        lambda w: hk.ops.compete(x, w, k=2, p=3.0, eligible=eligible),
        lambda w: hk.ops.compete(x, w, k=2, cosine=True, eligible=eligible),
    ):
        for got, want in zip(call(huge), call(weight), strict=True):
            assert torch.equal(got, want)


@EACH
@pytest.mark.parametrize("shift", [1, 6, -6])
def test_apply_refuses_a_sum_that_overlaps_the_weight(on, shift):
    """As torch refuses x[1:].copy_(x[:-1]) in its own operators in place."""
    memory = torch.rand(40)
    weight, total = memory[8:20].view(2, 6), memory[8 + shift : 20 + shift].view(2, 6)
    before = memory.clone()
    with pytest.raises(ValueError, match="apply_: sum must not share memory with weight, got one that overlaps it"):
        hk.ops.apply_(weight, total, lr=0.1)
    with pytest.raises(ValueError, match="apply_: decay must not share memory with weight, got one that overlaps it"):
        hk.ops.apply_(weight, torch.zeros(2, 6), decay=memory[9:11], lr=0.1)
    assert torch.equal(memory, before)


@EACH
def test_apply_takes_a_sum_beside_the_weight_or_the_weight_itself(on):
    memory = torch.rand(24)
    weight, total = memory[:12].view(2, 6), memory[12:].view(2, 6)
    want = weight + 0.5 * total
    hk.ops.apply_(weight, total, lr=0.5)
    torch.testing.assert_close(weight, want)
    want = weight * 1.5
    hk.ops.apply_(weight, weight, lr=0.5)
    torch.testing.assert_close(weight, want)
    columns = memory.view(2, 12)
    want = columns[:, ::2] + 0.5 * columns[:, 1::2]
    hk.ops.apply_(columns[:, ::2], columns[:, 1::2], lr=0.5)
    torch.testing.assert_close(columns[:, ::2], want)


def test_memory_that_a_kernel_does_not_get_is_one_sentence(capfd):
    if reason := hk.backends.available()["cpu"]:
        pytest.skip(reason)
    x, targets = torch.rand(3, 10**6), torch.zeros(3, 1, dtype=torch.int32)
    with hk.backend("cpu"), pytest.raises(RuntimeError) as error:
        hk.ops.accumulate(x, targets, torch.ones(3, 1), neurons=2**31 - 1)
    want = "hebbkern: memory must suffice for what a kernel allocates, got no 8.192e+09 MiB"
    assert str(error.value).splitlines()[0] == want and str(error.value).count("\n") == 0
    assert capfd.readouterr().err == ""


@EACH
def test_nearest_patch_breaks_exact_ties_by_the_lower_index(on):
    """Ternary numbers: squares and lengths are exact, so equal quotients are equal distances."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x, weight = (torch.randint(-1, 2, (count, 45), generator=generator).float() for count in (60, 1000))
        squares = (weight.square().sum(1)[:, None] + x.square().sum(1) - 2 * weight @ x.T).double()
        distances = squares / x.abs().sum(1).double()
        first = (distances == distances.amin(1, keepdim=True)).int().argmax(1)
        assert torch.equal(hk.ops.nearest_patch(x, weight)[0], first.int())


@EACH
@pytest.mark.parametrize("size", [1.4e-45, 2e-39, 1e-37, 3e38])
def test_apply_divides_by_any_denominator(on, size):
    weight = torch.zeros(2, 3)
    hk.ops.apply_(weight, torch.full((2, 3), size), denominator=torch.full((2,), size), lr=1.0)
    torch.testing.assert_close(weight, torch.ones(2, 3))


@EACH
@pytest.mark.parametrize(("largest", "lr"), [(1e-30, 1e9), (1e33, 1e-6), (3e38, 1e-30)])
def test_apply_divides_by_any_global_maximum(on, largest, lr):
    weight, shares = torch.zeros(2, 3), torch.tensor([[1.0, 0.5, 0.25], [-1.0, -0.5, 0.0]])
    hk.ops.apply_(weight, shares * largest, lr=lr, normalise="global_max")
    torch.testing.assert_close(weight, shares * lr, rtol=1e-6, atol=0)


@BY_DOUBLES
def test_norms_beyond_float32_rank_and_move_as_they_should(on):
    weight = torch.tensor([[3e38, 3e38, 3e38], [3e38, -3e38, 3e38]])  # norms 5.2e38
    winners, responses = hk.ops.compete(torch.ones(1, 3), weight, cosine=True)
    assert winners.tolist() == [[0]]
    torch.testing.assert_close(responses, torch.ones(1, 1))
    weight, total = torch.full((2, 4), 2e38), torch.tensor([[1.0], [0.0]]).expand(2, 4).clone()  # norms 4e38
    hk.ops.apply_(weight, total, lr=1e10, rate_power=0.5)  # moves by 1e10 sqrt(4e38) = 2e29
    torch.testing.assert_close(weight, torch.tensor([[2e38 + 2e29], [2e38]]).expand(2, 4), rtol=1e-6, atol=0)


@BY_DOUBLES
def test_a_row_that_does_not_move_may_have_an_infinite_rate(on):
    weight, frozen = torch.full((2, 3), 1e30), torch.tensor([True, False])
    before = weight.clone()
    hk.ops.apply_(weight, torch.tensor([[1.0] * 3, [0.0] * 3]), lr=1.0, rate_power=2.0, frozen=frozen)
    assert torch.equal(weight, before)


@BY_DOUBLES
def test_a_flat_patch_whose_norm_overflows_is_blank(on):
    x = torch.full((1, 6), 3e38)
    for patches in ("centred", "standardised"):
        sums, *_ = hk.ops.accumulate(x, torch.zeros(1, 1).int(), torch.ones(1, 1), neurons=2, patches=patches)
        assert not sums.any()
