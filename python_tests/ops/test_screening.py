"""Certified winners: screened in bf16 or not, the same winners and the same responses, bit for bit, on every input.

Each test draws many patches, and each patch is a case of its own: together some millions, most of them made to deceive.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import hebbkern as hk

PATCHES = 4096


@pytest.fixture(autouse=True, scope="module")
def unit():
    if hk.backends.available()["cpu"]:
        pytest.skip("no compiled CPU kernels")
    from hebbkern import _cpu

    if not _cpu.matrix_unit:
        pytest.skip("this processor has no bf16 matrix unit")
    return _cpu


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def same(x, weight, k=1, **options):
    """Compares the bits with and without screening; how many patches the screen decided."""
    from hebbkern import _cpu

    with hk.screening(False):
        winners, responses = hk.ops.compete(x, weight, k, **options)
    patches, left = _cpu.screened()
    with hk.screening("always"):
        screened = hk.ops.compete(x, weight, k, **options)
    seen, lost = (after - before for after, before in zip(_cpu.screened(), (patches, left), strict=True))
    assert torch.equal(screened[0], winners)
    assert torch.equal(screened[1], responses)
    return seen - lost


def nudged(rows, seed):
    """Copies of rows in which one entry each is the next float up or down."""
    moved, pick = rows.clone(), generator(seed)
    at = torch.randint(rows.shape[1], (len(rows),), generator=pick)
    towards = torch.where(torch.rand(len(rows), generator=pick) < 0.5, torch.inf, -torch.inf)
    every = torch.arange(len(rows))
    moved[every, at] = torch.nextafter(rows[every, at], towards)
    return moved


def halfway(*shape, seed=0):
    """Numbers halfway between two of bf16: each is off by as much as rounding can make it."""
    bits = normal(*shape, seed=seed).view(torch.int32)
    return ((bits & -65536) | 0x8000).view(torch.float32)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("inputs", [1, 3, 31, 32, 33, 75, 300])
@pytest.mark.parametrize("neurons", [16, 17, 130, 257])
def test_normal_numbers(k, inputs, neurons):
    x, weight = normal(PATCHES, inputs, seed=inputs), normal(neurons, inputs, seed=neurons)
    decided = same(x, weight, k)
    if inputs >= 31 and k <= 2:
        assert decided > PATCHES / 2  # the screen is no mere detour


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_near_ties_and_exact_ones(k, seed):
    base = normal(40, 90, seed=seed)
    weight = torch.cat([base, nudged(base, seed), base[:20]])[torch.randperm(100, generator=generator(seed))]
    same(normal(PATCHES, 90, seed=seed + 100), weight, k)
    same(base.repeat(50, 1), weight, k)


@pytest.mark.parametrize("seed", range(6))
def test_rounding_errors_in_step(seed):
    """Patches whose bf16 error points along a neuron, and neurons whose error points along a patch."""
    x = halfway(PATCHES, 64, seed=seed).abs()
    lost = x - x.bfloat16().float()
    along = F.normalize(lost[:32]) + F.normalize(x[:32])
    weight = torch.cat([along, F.normalize(x[:32]), halfway(64, 64, seed=seed + 1).abs()])
    for k in (1, 2):
        same(x, weight, k)
        same(x[:32].repeat(64, 1), nudged(weight, seed), k)


def hidden_winner(inputs, share):
    """x, a winner that bf16 underrates and a loser that it overrates, both by all that the bound allows.

    x = ±1.5 + 2^-8 is rounded to ±1.5, so its error is 2^-8 everywhere: the winner, all ones, loses |error| |w|, and
    the loser, minus ones with a share of entries moved towards x, gains as much.
    """
    sign = torch.ones(inputs)
    sign[1::2] = -1
    x, winner, loser = 1.5 * sign + 2**-8, torch.ones(inputs), -torch.ones(inputs)
    moved = int(inputs * share) // 2 * 2
    loser[:moved:2] += 2**-8
    loser[1:moved:2] -= 2**-7
    assert torch.equal(loser.bfloat16().float(), loser)
    return x, winner, loser


@pytest.mark.parametrize("inputs", [64, 640])
def test_the_bound_is_needed_in_full(inputs):
    hidden = 0
    for thousandths in range(800, 920, 2):
        x, winner, loser = hidden_winner(inputs, thousandths / 1000)
        also_ran = torch.tensor([0.125, 0.125, -0.125, -0.125]).repeat(30, inputs // 4)  # short, at right angles to all
        also_ran[::2] *= -1  # and nothing in common
        weight = torch.cat([winner[None], loser[None], also_ran])
        hidden += bool((x @ winner > x @ loser) and (x.bfloat16().float() @ winner < x.bfloat16().float() @ loser))
        same(x.repeat(64, 1) * torch.tensor([1.0, 2.0, -4.0, 0.25]).repeat(16)[:, None], weight, 1)
        # The bound's share of a patch is common to a block: that of patches without error must not serve these.
        exact = x.bfloat16().float().repeat(320, 1)
        exact[torch.arange(320) % 16 != 0] = x
        same(exact, weight, 1)
        # The other way about: the error is the neurons', and x is exact.
        turned = torch.cat([x[None], loser[None], also_ran])
        same(x.bfloat16().float().repeat(64, 1), turned, 1)
        same(winner.repeat(64, 1), turned, 2)
    assert hidden > 20


@pytest.mark.parametrize("seed", range(8))
def test_sums_that_depend_on_their_order(seed):
    """Entries that bf16 holds exactly; neurons are permutations of one another, so that only rounding ranks them."""
    entries = torch.ldexp(normal(200, seed=seed), torch.randint(-8, 8, (200,), generator=generator(seed)))
    entries = entries.bfloat16().float()
    orders = [torch.randperm(200, generator=generator(1000 * seed + row)) for row in range(100)]
    weight = torch.stack([entries[order] for order in orders])
    x = torch.ldexp(torch.ones(512, 200), torch.randint(-3, 4, (512, 1), generator=generator(seed)))
    same(x, weight, 1)
    same(x * 3, weight, 4)


def test_products_too_small_for_the_matrix_unit():
    """64 products of 2^-127, which it takes for zero, are more than one of 2^-122."""
    x, weight = torch.full((128, 64), 2.0**-60), torch.zeros(40, 64)
    weight[3:, 5] = 2.0**-62
    weight[7] = 2.0**-67
    same(x, weight, 1)
    with hk.screening("always"):
        assert (hk.ops.compete(x, weight, 1)[0] == 7).all()


@pytest.mark.parametrize("seed", range(4))
def test_cancelling_rows(seed):
    large = normal(PATCHES, 40, seed=seed) * 1e4
    x = torch.cat([large, -large, normal(PATCHES, 16, seed=seed + 1)], dim=1)
    twin = normal(100, 40, seed=seed + 2)
    weight = torch.cat([twin, twin, normal(100, 16, seed=seed + 3)], dim=1)  # the first 80 products cancel
    same(x, weight, 1)
    same(x, weight, 3)
    for patches in ("centred", "standardised"):
        same(x + 1e3, weight, 2, patches=patches)


SIZES = [1e-45, 1e-40, 1.2e-38, 1e-30, 1e-19, 1e-10, 1.0, 1e10, 2.0**47, 2.0**49, 1e19]


@pytest.mark.parametrize("x_size", SIZES)
@pytest.mark.parametrize("w_size", SIZES)
def test_the_range_of_float32(x_size, w_size):
    if x_size * w_size * 64 > 1e36:
        pytest.skip("responses would overflow, which is refused")
    x, weight = normal(1024, 48, seed=1) * x_size, normal(100, 48, seed=2) * w_size
    same(x, weight, 1)
    same(x, weight, 2)
    if x_size > 1e-16:
        same(x, weight, 2, patches="centred")


@pytest.mark.parametrize("seed", range(6))
def test_every_size_in_one_row(seed):
    def wild(*shape, seed):
        exponents = torch.randint(-60, 40, shape, generator=generator(seed))
        return torch.ldexp(normal(*shape, seed=seed + 50), exponents)

    x, weight = wild(PATCHES, 70, seed=seed), wild(120, 70, seed=seed + 10)
    same(x, weight, 1)
    same(x, weight, 2)
    same(x, F.normalize(weight), 2)
    same(x, torch.ldexp(weight, torch.randint(-40, 5, (120, 1), generator=generator(seed))), 4)


@pytest.mark.parametrize("spread", [1e-7, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("seed", range(2))
def test_neurons_that_have_much_in_common(spread, size, seed):
    """The nearer they are, the more float32's own rounding decides: the screen works on what sets them apart."""
    alike = normal(1, 90, seed=seed).abs() * size
    weight = alike + normal(200, 90, seed=seed + 1) * spread * size
    x = torch.rand(PATCHES, 90, generator=generator(seed))
    for patches in ("raw", "centred"):
        decided = same(x, weight, 1, patches=patches)
        same(x - 0.5, weight, 3, patches=patches)
    assert spread < 1e-3 or decided > PATCHES / 2
    same(x, weight, 2, cosine=True)
    same(torch.cat([x[:50], F.normalize(weight)]), weight, 2, p=3.0)
    image = torch.rand(8, 10, 12, 12, generator=generator(seed))
    same(image, weight.reshape(200, 10, 3, 3), 1)


def test_rows_that_are_alike():
    for value in (0.0, 1.0, -1.0, 0.1):
        same(normal(PATCHES, 50), torch.full((64, 50), value), 2)
        same(torch.full((PATCHES, 50), value), normal(64, 50), 2)
        same(torch.full((PATCHES, 50), value), normal(64, 50), 2, patches="centred")
    same(torch.zeros(300, 50), torch.zeros(64, 50), 5)
    same(-torch.zeros(300, 50), normal(64, 50), 3)


def test_single_entries():
    x = torch.eye(64).repeat(64, 1) * normal(PATCHES, 1)
    same(x, normal(90, 64, seed=1), 1)
    same(x, torch.randint(-3, 4, (90, 64), generator=generator(2)).float(), 2)  # ties in plenty


def test_whole_numbers_tie():
    x = torch.randint(-2, 3, (PATCHES, 30), generator=generator(1)).float()
    weight = torch.randint(-2, 3, (200, 30), generator=generator(2)).float()
    for k in (1, 2, 8):
        same(x, weight, k)


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("patches", ["raw", "centred", "standardised"])
def test_powers_and_patches(p, patches):
    same(normal(PATCHES, 77) + 2, normal(150, 77, seed=1), 2, p=p, patches=patches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("patches", ["raw", "centred", "standardised"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 20])
def test_convolutions(dtype, patches, cosine, channels):
    x = torch.rand(16, channels, 13, 11, generator=generator(1)).to(dtype)
    x[::3, :, :6] = 0  # patches that are all zeros, or flat
    weight = normal(70, channels, 3, 5, seed=2).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.to(memory_format=layout), weight.to(memory_format=layout)
        same(*given, 1, cosine=cosine, patches=patches, padding=(2, 1))
        same(*given, 3, cosine=cosine, patches=patches, stride=(1, 2), dilation=(2, 1))


def test_images_that_are_rounded_once():
    """Gaps between channels that hold NaN, every dilation, kernels as wide as the image and as high."""
    whole = torch.rand(8, 9, 12, 12, generator=generator(1)).to(memory_format=torch.channels_last)
    whole[:, 5:] = torch.nan
    image = whole[:, :5]
    for kernel in ((3, 3), (12, 12), (3, 12), (12, 2), (1, 5)):
        weight = normal(70, 5, *kernel, seed=2)
        same(image, weight, 1)
        same(image.contiguous(memory_format=torch.channels_last), weight, 2, cosine=True)
    for dilation in ((1, 2), (3, 1), (2, 5)):
        same(image, normal(70, 5, 3, 3, seed=3), 1, dilation=dilation)
        same(image[::2, :, ::2, 1::2], normal(70, 5, 2, 2, seed=4), 2, dilation=(*dilation[:1], 1), padding=(0, 2))


def test_slices_and_masks():
    x, weight = normal(PATCHES, 120)[:, 10:100], normal(130, 200, seed=1)[:, 50:140]
    eligible = torch.rand(130, generator=generator(3)) < 0.5
    same(x, weight, 2, eligible=eligible)
    same(x.t().contiguous().t(), weight, 2)
    left_out = weight.clone()
    left_out[~eligible] = torch.nan
    with hk.screening("always"), pytest.raises(ValueError, match="weight must be finite"):
        hk.ops.compete(x, left_out, 1, eligible=eligible)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_refused(bad):
    large = (3000, 64), (100, 64)  # where what neurons have in common is looked for
    for shapes, (at, name) in itertools.product([((300, 64), (80, 64)), large], enumerate(("x", "weight"))):
        given = [normal(*shape) for shape in shapes]
        given[at][7, 9] = bad
        with hk.screening("always"), pytest.raises(ValueError, match=f"{name} must be finite"):
            hk.ops.compete(*given, 1)


def test_many_inputs_and_many_neurons():
    assert same(normal(300, 3072), normal(700, 3072, seed=1), 2) > 200
    assert same(torch.rand(700, 784, generator=generator(1)), normal(2000, 784, seed=1), 2) > 600


def test_threads_do_not_matter(threads):
    x, weight, found = normal(1000, 200), normal(300, 200, seed=1), []
    for count in (1, 2, 3, 1):
        threads(count)
        with hk.screening("always"):
            found.append(hk.ops.compete(x, weight, 2))
    for winners, responses in found[1:]:
        assert torch.equal(winners, found[0][0])
        assert torch.equal(responses, found[0][1])


def test_screening_is_chosen_by_shape_and_can_be_switched_off(unit):
    def screened(x, weight):
        before = unit.screened()[0]
        hk.ops.compete(x, weight, 2)
        return unit.screened()[0] - before

    large, small = (normal(512, 784), normal(1000, 784)), (normal(20, 10), normal(5, 10))
    with hk.screening(True):
        assert screened(*large) == 512
        assert screened(*small) == 0
        with hk.screening(False):
            assert screened(*large) == 0
        assert screened(*large) == 512
    alike = torch.ones(512, 784), torch.ones(1000, 784)  # a tie of all neurons: no screen can decide it
    with hk.screening(True):
        assert screened(*alike) == 512
        assert screened(*alike) == 0  # the like of it is spared the detour for a while
        assert screened(torch.ones(512, 783), torch.ones(1000, 783)) == 512
    with pytest.raises(RuntimeError, match="screening must be one of off, auto, always"), hk.screening("perhaps"):
        pass
