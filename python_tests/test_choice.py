"""The table by which compiled and Triton's kernels share the work on a GPU, found without one."""

import math
from types import SimpleNamespace

import pytest
import torch

import calls
import hebbkern as hk
from hebbkern import backends, choice
from hebbkern.ops import library


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def positional(operator, layer=calls.LINEAR, **changes):
    """The arguments of a good call in the order of the schema."""
    given = []

    def spy(*arguments):
        given.extend(arguments)
        return torch.zeros(1), torch.zeros(1), torch.zeros(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(library.chosen, operator, spy)
        calls.run(operator, calls.call(operator, layer) | changes)
    return given


def test_every_operator_has_an_entry_and_a_reason():
    assert set(choice.TABLE) == set(library.chosen)
    assert all(entry.why for entry in choice.TABLE.values())


@pytest.mark.parametrize("operator", ["compete", "match", "sanger", "learn_dense_", "learn_winners_"])
def test_work_is_patches_times_neurons_times_inputs(operator):
    # 2 images of 9 x 8, kernel 4 x 3, stride (2, 1), padding (1, 0), dilation (1, 2): 4 x 4 positions.
    assert choice.products(operator, *positional(operator)) == 64 * 10 * 20
    assert choice.products(operator, *positional(operator, calls.CONVOLUTION)) == 2 * (4 * 4) * 10 * (3 * 4 * 3)


def test_small_competitions_are_compiled_large_ones_tritons(precision):
    small, large = (torch.empty(8, 4, device="meta"), torch.empty(2**27 // 4 // 1000 + 1, 4, device="meta"))
    for name in ("compete", "match"):
        assert choice.chosen(name, small, torch.empty(1000, 4, device="meta")) == "cuda"
    assert choice.chosen("compete", large, torch.empty(1000, 4, device="meta")) == "triton"
    assert choice.chosen("match", large, torch.empty(1000, 4, device="meta")) == "cuda"
    assert choice.chosen("match", large.bfloat16(), torch.empty(1000, 4, device="meta")) == "triton"
    torch.set_float32_matmul_precision("high")
    assert choice.chosen("match", large, torch.empty(1000, 4, device="meta")) == "triton"
    assert choice.chosen("kwinners", large) == "cuda" and choice.TABLE["kwinners"].exact == math.inf


@pytest.mark.parametrize("bad", [{"stride": (0, 1)}, {"stride": (1, 1, 1)}, {"weight": torch.tensor(1.0)}], ids=str)
def test_what_an_operator_will_refuse_is_left_to_it(bad):
    arguments = positional("compete", calls.CONVOLUTION, **bad)
    assert choice.products("compete", *arguments) == 0 and choice.chosen("compete", *arguments) == "cuda"
    lesson = {"coefficients": [1, 0], "k": 2, **bad}
    assert choice.products("learn_winners_", *positional("learn_winners_", calls.CONVOLUTION, **lesson)) == 0


@pytest.mark.parametrize(
    ("capability", "served"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((9, 0), False), ((12, 1), True)]
)
def test_kernels_serve_gpus_that_they_hold_code_for(monkeypatch, capability, served):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: SimpleNamespace(architectures="800,1000"))
    assert backends._compiled_for.__wrapped__(0) == served


@pytest.mark.parametrize("operator", calls.OPERATORS)
def test_the_compiled_kernels_serve_every_operator(operator):
    """Where they do not, the backend's tests would run the CPU's own kernels."""
    if reason := backends.available()["cuda"]:
        pytest.skip(reason)
    key = "CPU" if backends.emulated() else "CUDA"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hebbkern::{operator}.cuda", key)


def test_tensors_elsewhere_take_the_kernels_of_their_device():
    """The overload itself serves no device but the one that kernels were compiled for."""
    y = torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.equal(torch.ops.hebbkern.kwinners.cuda(y, 1, 1), hk.ops.kwinners(y, 1))
