"""Steps on Triton: how many launches, that nothing waits, skipped steps, and kernels that stay within their outputs."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import calls
import cases
import hebbkern as hk
import interpreted
from hebbkern import backends
from hebbkern.checks import result_dtype

if backends.available()["triton"]:
    pytest.skip("Triton cannot run", allow_module_level=True)

from hebbkern.backends.triton import apply, status
from test_operators import positional

NORMALISE = ["none", "row_max", "row_l2", "global_max"]
FLAWS = [float("nan"), float("inf"), -float("inf")]
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here")


@pytest.fixture(autouse=True)
def by_triton():
    with hk.backend("triton"):
        yield


@pytest.fixture
def unread(monkeypatch):
    """Values are not read, as on a GPU."""
    with interpreted.unreadable(monkeypatch):
        yield
    status.skipped(torch.device("cpu"))


def launches(name, arguments):
    return interpreted.launches(name, *positional(name, arguments))


LEARN = [
    {"k": 1},
    {"k": 4, "coefficients": (1.0, 0.0, 0.0, -0.4), "normalise": "global_max", "decay_by_response": True},
    {"k": 2, "coefficients": (1.0, 1.0), "cosine": True, "by_response": True, "average": True, "normalise": "row_l2"},
    {"k": 1, "p": 3.0, "average": True, "normalise": "row_max"},
]
GROUPED = cases.Layer((2, 8, 9, 20), (16, 2, 3, 2), {"groups": 4, "padding": (0, 1), "stride": (1, 3)})


@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("settings", LEARN, ids=str)
def test_a_step_takes_at_most_six_launches(settings, patches):
    for layer, dtype, frozen in itertools.product(cases.FEW + cases.LARGE, cases.DTYPES, (False, True)):
        x, weight = torch.empty(layer.x, dtype=dtype), torch.empty(layer.weight, dtype=dtype)
        options = {"lr": 0.1, "coefficients": (1.0,), **settings, "patches": patches, **layer.geometry}
        options["frozen"] = torch.empty(layer.neurons, dtype=torch.bool) if frozen else None
        assert 2 < len(launches("winner_step_", {"weight": weight, "x": x, **options})) <= 6
        labels = {"labels": torch.empty(len(x), dtype=torch.int64), "k": 1, "coefficients": (1.0,)}
        off = {"p": 2.0, "cosine": False, "by_response": False, "decay_by_response": False}
        assert 2 < len(launches("winner_step_", {"weight": weight, "x": x, **options, **labels, **off})) <= 5


@pytest.mark.parametrize("name", ["accumulate", "apply_"])
def test_parts_of_a_step_take_few_launches(name):
    for layer, dtype in itertools.product((calls.LINEAR, calls.CONVOLUTION), cases.DTYPES):
        arguments = calls.call(name, layer, dtype)
        assert len(launches(name, arguments)) <= {"accumulate": 4, "apply_": 2}[name]
        for normalise in NORMALISE if name == "apply_" else ():
            assert len(launches(name, arguments | {"normalise": normalise, "rate_power": 0.5})) == 2


@pytest.mark.parametrize("name", [name for name in calls.OPERATORS if name not in ("apply_", "kwinners")])
def test_more_groups_take_no_more_launches(name):
    taken = []
    for groups in (2, 8, 64):
        layer = cases.Layer((50, 128, 9, 8), (256, 128 // groups, 3, 3), {"groups": groups, "padding": 1})
        taken.append(launches(name, calls.call(name, layer)))
    assert taken[0] == taken[1] == taken[2]


def test_reading_a_value_would_have_failed():
    with pytest.raises(Exception, match=r"item|data-dependent|_local_scalar"), FakeTensorMode():
        bool(torch.empty(3, device="cuda").isfinite().all())


@pytest.mark.slow(7)
@on_cpu
def test_a_neuron_learns_the_same_whatever_others_learn():
    """To the bit, also where its list is cut in pieces: 300 and 600 of its patches, among others."""
    x = cases.random((1500, 33))
    targets = torch.full((1500, 1), -1, dtype=torch.int32)
    targets[3::5, 0], targets[4::5, 0], targets[1::5, 0] = 2, 5, 5
    alone = targets.masked_fill(targets != 2, -1), targets.masked_fill(targets != 5, -1)
    others = torch.where(targets < 0, torch.arange(1500, dtype=torch.int32)[:, None] % 2, targets)
    c = torch.tensor([0.7])
    together = hk.ops.accumulate(x, others, c, neurons=6)
    for neuron, part in zip((2, 5), alone, strict=True):
        single = hk.ops.accumulate(x, part, c, neurons=6)
        assert calls.same_bits([t[neuron] for t in together], [t[neuron] for t in single])
        own = (targets == neuron).flatten()
        single = hk.ops.accumulate(x[own], targets[own], c, neurons=6)
        assert calls.same_bits([t[neuron] for t in together], [t[neuron] for t in single])


@on_cpu
@pytest.mark.parametrize("lengths", [(256, 257, 511, 0, 513), (2000,), (1, 255, 700, 2, 260, 256), (257, 257, 257)])
def test_lists_longer_than_pieces(lengths):
    """Whole numbers: every sum is exact, whatever the order."""
    targets = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    shuffled = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    x = cases.integers((len(targets), 17), -3, 3)
    for labels in (targets, shuffled):
        total, decay, count = hk.ops.accumulate(x, labels[:, None], torch.tensor([-2.0]), neurons=len(lengths))
        assert torch.equal(total, torch.zeros(len(lengths), 17).index_add(0, labels, -2 * x))
        assert count.tolist() == list(lengths) and decay.tolist() == [-2.0 * n for n in lengths]


@on_cpu
@pytest.mark.parametrize("flaw", FLAWS, ids=str)
@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_step_that_is_not_finite_is_skipped_and_counted(unread, normalise, flaw):
    for argument in ("sum", "decay", "denominator", "weight"):
        arguments = calls.call("apply_") | {"normalise": normalise, "frozen": None}
        arguments[argument].view(-1)[-1] = flaw
        before = calls.raw(arguments["weight"])
        hk.ops.apply_(**arguments)
        assert calls.raw(arguments["weight"]) == before, argument
        with pytest.raises(RuntimeError, match="1 step was skipped on cpu"):
            hk.synchronize()
        hk.synchronize()


@on_cpu
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_step_that_overflows_is_skipped_and_the_next_one_says_so(unread, dtype, normalise):
    weight, total = torch.ones(70, 20, dtype=dtype), torch.ones(70, 20, dtype=result_dtype(dtype))
    weight[-1, -1] = total[-1] = torch.finfo(dtype).max
    before, lr = calls.raw(weight), torch.finfo(dtype).max
    hk.ops.apply_(weight, total, lr=float(lr), normalise=normalise)
    small = torch.zeros(2, 3)
    if normalise.startswith("row") and dtype == torch.float16:  # finite in float32, and then normalised
        assert calls.raw(weight) != before
        return
    assert calls.raw(weight) == before
    with pytest.raises(RuntimeError, match="1 step was skipped on cpu"):
        hk.ops.apply_(small, torch.ones(2, 3), lr=1.0)
    hk.ops.apply_(small, torch.ones(2, 3), lr=1.0)
    assert small.eq(1).all()
    hk.synchronize("cpu")


@on_cpu
@pytest.mark.parametrize("flaw", FLAWS, ids=str)
def test_a_flawed_batch_changes_no_weight(unread, flaw):
    for how in ({}, {"labels": torch.zeros(64, dtype=torch.int64)}):
        arguments = {"weight": cases.random((10, 20)), "x": cases.random((64, 20)), "lr": 0.1, **how}
        arguments["x"][7, 3] = flaw
        before = calls.raw(arguments["weight"])
        hk.ops.winner_step_(**arguments)
        assert calls.raw(arguments["weight"]) == before
        with pytest.raises(RuntimeError, match="1 step was skipped on cpu"):
            hk.synchronize()


@on_cpu
@pytest.mark.parametrize(
    "wrong", [{"targets": 99}, {"targets": -2}, {"coefficients": FLAWS[0]}, {"responses": FLAWS[1]}]
)
def test_broken_entries_spoil_every_sum(unread, wrong):
    arguments = calls.call("accumulate") | {"frozen": None}
    (argument, bad), *_ = wrong.items()
    arguments[argument].view(-1)[5] = bad
    total, decay, _ = hk.ops.accumulate(**arguments)
    assert total.isnan().all() and decay.isnan().all()


@on_cpu
def test_a_target_of_another_group_spoils_every_sum(unread):
    arguments = calls.call("accumulate", GROUPED) | {"frozen": None}
    targets = arguments["targets"]
    targets.copy_((torch.arange(len(targets)) // (len(targets) // 4) * 4)[:, None])
    assert all(result.isfinite().all() for result in hk.ops.accumulate(**arguments))
    targets[5] = 4
    total, decay, _ = hk.ops.accumulate(**arguments)
    assert total.isnan().all() and decay.isnan().all()


@on_cpu
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(33, 70), (9, 5, 3, 2)], ids=str)
def test_commit(shape, layout):
    for dtype, frozen in itertools.product(cases.DTYPES, (None, cases.some(shape[0]))):
        weight = cases.laid_out(cases.random(shape, dtype), layout)
        before, moved = weight.clone(), cases.random(shape, dtype, seed=1)
        sound = torch.ones(1300, dtype=torch.int32)
        sound[-1] = 0
        with pytest.raises(ValueError, match="weight must stay finite, got a step that overflows it"):
            apply.commit("dense_update", weight, moved.flatten(1), sound, frozen)
        assert calls.same_bits([weight], [before])
        apply.commit("dense_update", weight, moved.flatten(1), torch.ones(1300, dtype=torch.int32), frozen)
        kept = torch.zeros(shape[0], dtype=torch.bool) if frozen is None else frozen
        assert calls.same_bits([weight[kept], weight[~kept]], [before[kept], moved[~kept]])


@on_cpu
@pytest.mark.parametrize("layer", [*cases.FEW, cases.Layer((700, 5), (3, 5)), GROUPED], ids=str)
def test_kernels_stay_within_their_outputs(monkeypatch, layer):
    room = interpreted.WIDTH
    for dtype, patches in itertools.product((torch.float32, torch.bfloat16), cases.PATCHES):
        x, weight = cases.tensors(layer, dtype, "cpu")
        options = {"patches": patches, **layer.geometry}
        larger = torch.full((weight.numel() + 2 * room,), float("nan"), dtype=dtype)
        inner = larger[room:-room].view(weight.shape).copy_(weight)
        with interpreted.guarded(monkeypatch):
            hk.ops.winner_step_(inner, x, lr=0.1, k=2, coefficients=(1.0, -0.4), normalise="global_max", **options)
            winners, responses = hk.ops.compete(x, weight, 2, **options)
            kinds = {"neurons": layer.neurons, "kernel": layer.kernel, "responses": responses, **options}
            hk.ops.accumulate(x, winners, torch.tensor([1.0, -0.4]), **kinds)
        assert inner.isfinite().all()
        assert larger[:room].isnan().all() and larger[-room:].isnan().all()
