"""The Triton backend under strided masks, autocast, torch's settings of precision and subclasses of Parameter."""

import importlib
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import calls
import cases
import hebbkern as hk
import interpreted
from gpu_report.triton_recording import trace
from gpu_report.workloads import STEPS

pytestmark = interpreted.needs_interpreter
tl, triton = importlib.import_module("triton.language"), interpreted.triton
ordered_sum = importlib.import_module("hebbkern.backends.triton.arithmetic").ordered_sum
patch_view = importlib.import_module("hebbkern.backends.triton.patches").patch_view


@triton.jit
def sum_kernel(tile, total, R: tl.constexpr, C: tl.constexpr):
    row = tl.arange(0, R)
    tl.store(total + row, ordered_sum(tl.load(tile + row[:, None] * C + tl.arange(0, C)[None, :])))


@pytest.fixture(autouse=True)
def by_triton():
    with hk.backend("triton"):
        yield


@pytest.fixture
def settings():
    """torch's settings of precision, put back afterwards."""
    products = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [product.fp32_precision for product in products]
    yield products
    for product, value in zip(products, before, strict=True):
        product.fp32_precision = value


def strided(mask):
    """The same mask, every third byte of a larger one whose other bytes say the opposite."""
    return torch.stack([mask, ~mask, ~mask], dim=1)[:, 0]


@pytest.mark.parametrize("name", [name for name in calls.OPERATORS if name != "kwinners"])
@pytest.mark.parametrize("kind", [strided, lambda mask: mask[:1].expand(len(mask))], ids=["strided", "expanded"])
def test_masks_of_any_stride(name, kind):
    arguments = calls.call(name)
    which = "eligible" if "eligible" in arguments else "frozen"
    laid = kind(arguments[which])
    assert not laid.is_contiguous()
    want = calls.run(name, {**arguments, which: laid.contiguous()})
    assert calls.same_bits(want, calls.run(name, {**arguments, which: laid}))


@pytest.mark.parametrize("layer", [cases.LINEAR[2], cases.CONVOLUTION[7]], ids=str)  # too large to stay on chip
@pytest.mark.parametrize("backend", ["triton", "eager", "auto"])
@pytest.mark.parametrize("name", calls.OPERATORS)
def test_autocast_changes_nothing(name, backend, layer):
    arguments = calls.call(name, layer)
    with hk.backend(backend):
        want = calls.run(name, arguments)
        with torch.autocast("cpu", torch.bfloat16):
            assert calls.same_bits(want, calls.run(name, arguments))


@pytest.mark.parametrize("value", ["ieee", "tf32"])
def test_both_ways_to_set_the_precision(settings, value):
    """torch refuses to mix them; operators read and restore what was set."""
    arguments = {name: calls.call(name) for name in calls.OPERATORS}
    for product in settings:
        product.fp32_precision = value
    for name in calls.OPERATORS:
        calls.run(name, arguments[name])
    assert [product.fp32_precision for product in settings] == [value] * 2
    precision = importlib.import_module("hebbkern.backends.triton.arithmetic").precision
    assert precision() == ("ieee" if value == "ieee" else "tf32x3")


def test_a_skipped_step_of_a_subclass_is_counted(monkeypatch):
    class Special(torch.nn.Parameter):
        pass

    weight, x = Special(cases.random((10, 20))), cases.random((8, 20))
    before, x[0, 0] = weight.detach().clone(), torch.nan
    with interpreted.unreadable(monkeypatch):
        hk.WTA().step_(weight, x, lr=0.1)
        assert torch.equal(weight, before)
        with pytest.raises(RuntimeError, match="1 step was skipped"):
            hk.synchronize()
        hk.synchronize()  # raised once


def test_a_gpu_is_served_by_eager_while_kernels_are_interpreted():
    class Gpu:
        device = torch.device("cuda")

    with hk.backend("auto"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert hk.backends.serving("kwinners", Gpu()).name == "eager"
    with hk.backend("triton"), pytest.raises(ValueError, match="backend must be one that takes tensors on cuda"):
        hk.backends.serving("kwinners", Gpu())


def test_arguments_fit_the_types_that_kernels_name():
    """An argument that is a float takes no None on a GPU, which the interpreter lets pass."""
    with hk.backend("eager"):  # takes the tensors of any device; tracing runs Triton's launchers all the same
        launches = [launch for step in STEPS for launch in trace(step).launches]
    for launch in launches:
        named = getattr(launch.kernel, "fn", launch.kernel).__annotations__
        for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False):
            if "64" in str(named.get(name, "")):
                assert isinstance(value, float), (launch.kernel.__name__, name, value)


RULES = [
    hk.KrotovHopfield(),
    hk.WTA(),
    hk.WTA(k=2, similarity="dot", coefficient="response", normalise="row_max"),
    hk.Supervised(),
    hk.Sanger(),
    hk.Oja(activation="tanh"),
    hk.Hebb(),
    hk.SoftWTA(),
]


@pytest.mark.parametrize("screening", ["off", "always"])
@pytest.mark.parametrize("layer", [cases.LINEAR[2], cases.CONVOLUTION[2], calls.CONVOLUTION], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_steps_are_those_of_the_cpus_kernels(rule, layer, screening):
    if reason := hk.backends.available()["cpu"]:
        pytest.skip(reason)
    x, weight = cases.tensors(layer, torch.float32, "cpu")
    weight /= weight[0].numel() ** 0.5
    labels = torch.arange(len(x)) % layer.neurons
    moved = []
    for backend in ("triton", "cpu"):
        moved.append(weight.clone())
        with hk.backend(backend), hk.screening(screening):
            rule.step_(moved[-1], x, lr=0.05, labels=labels, **layer.geometry)
    step = (moved[1] - weight).norm()
    assert step > 0 and (moved[0] - moved[1]).norm() <= 1e-5 * step


@pytest.mark.parametrize("layer", [calls.LINEAR, calls.CONVOLUTION], ids=str)
def test_no_kernel_is_compiled_for_a_symbol(layer):
    """torch.compile with dynamic shapes: a kernel must be specialised on plain numbers."""
    x, _ = cases.tensors(layer, torch.float32, "cpu")
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        symbolic = mode.from_tensor(x)
        views = [patch_view(symbolic, layer.kernel)]
        if layer is calls.CONVOLUTION:
            views.append(patch_view(symbolic, layer.kernel, groups=3))
    assert isinstance(symbolic.shape[0], torch.SymInt)
    assert all(type(number) in (int, bool) for view in views for number in view.shape)


@pytest.mark.parametrize("inputs", [1, 4, 64])
def test_rows_are_added_up_in_one_order(inputs):
    """Neighbours first: each small number is lost in the large one beside it; from left to right the last is not."""
    tile = torch.tensor([1e8, 1, -1e8, 1]).repeat(4, inputs // 4 or 1)[:, :inputs].contiguous()
    total = torch.empty(4)
    sum_kernel[(1,)](tile, total, 4, inputs)
    assert total.tolist() == [1e8 if inputs == 1 else 0.0] * 4
