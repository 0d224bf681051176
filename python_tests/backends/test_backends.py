"""Choosing a backend, and what is said when there is none."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import calls
import hebbkern as hk
from hebbkern import backends
from hebbkern.ops import library

HIDE = "import sys; sys.modules['hebbkern._cpu'] = None\n"  # as if it had not been built
ONCE = """
import warnings, torch
import hebbkern as hk
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        hk.ops.kwinners(torch.ones(2, 3), 1)
        hk.ops.compete(torch.ones(2, 3), torch.ones(4, 3))
print(len(said), *[warning.message for warning in said])
"""


def python(program, **environment):
    path = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env={**path, **environment}, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_eager_is_always_there():
    assert backends.available()["eager"] is None and "cpu" in backends.available()


def test_override_is_undone():
    before = dict(library.chosen)
    with pytest.raises(KeyError), hk.backend("eager"):
        assert backends.current() == "eager"
        assert all(operator._overloadname == "eager" for operator in library.chosen.values())
        with hk.backend("auto"):
            assert library.chosen == before
        assert backends.current() == "eager"
        raise KeyError
    assert library.chosen == before and backends.current() == "auto"


def test_override_changes_compiled_functions():
    compiled = torch.compile(hk.ops.kwinners, fullgraph=True, backend="aot_eager")
    y = torch.tensor([[1.0, 3.0, 2.0]])
    for name in ("eager", "auto"):
        with hk.backend(name):
            assert compiled(y, 1).tolist() == [[0, 3, 0]]


def test_unknown_names():
    with (
        pytest.raises(RuntimeError, match=r"the backend must be one of auto, eager, triton, cpu, cuda, got 'tpu'"),
        hk.backend("tpu"),
    ):
        pass
    assert "must be one of auto, eager, triton, cpu, cuda, got 'tpu'" in python(
        "import hebbkern", HEBBKERN_BACKEND="tpu"
    )


def test_a_missing_backend_says_why():
    assert "RuntimeError: hebbkern: the backend 'cpu' is not available: hebbkern._cpu was not built" in python(
        HIDE + "import hebbkern as hk\nwith hk.backend('cpu'): pass"
    )


def test_environment_variable():
    program = "import hebbkern; from hebbkern import backends; print(backends.current())"
    assert python(program, HEBBKERN_BACKEND="eager").strip() == "eager"
    assert python(program).strip() == "auto"


def test_without_compiled_kernels_one_warning():
    said = python(HIDE + ONCE)
    assert said.startswith("1 hebbkern: no compiled kernels for cpu tensors, plain torch runs instead"), said
    assert "hebbkern._cpu was not built" in said
    assert python(HIDE + ONCE, HEBBKERN_BACKEND="eager").strip() == "0"


TRACED = """
import torch, hebbkern as hk
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

def step(x, weight):
    return torch.ops.hebbkern.compete.OVERLOAD(x * 2, weight, 2, 2.0, False, "centred", (1, 1), (0, 0), (1, 1), None)

with FakeTensorMode():
    tensors = torch.empty(64, 20, device="cuda"), torch.empty(300, 20, device="cuda")
    print([str(node.target) for node in make_fx(dispatch_functionalize(step))(*tensors).graph.nodes])
"""


@pytest.mark.parametrize("overload", ["default", "triton"])
def test_torch_compile_sees_into_tritons_kernels(overload):
    """As into torch.library.triton_op's, found without a GPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    if overload == "default" and torch.cuda.is_available() and backends.available()["cuda"] is None:
        pytest.skip("compiled kernels serve this GPU, into which nobody sees")
    seen = python(TRACED.replace("OVERLOAD", overload), HOME=os.environ.get("HOME", ""))
    assert seen.count("triton_kernel_wrapper_functional") == 3 and "hebbkern" not in seen.splitlines()[-1], seen


def test_triton_without_a_gpu_says_so():
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert "the backend 'triton' is not available: no GPU is found" in python(
        "import hebbkern", HEBBKERN_BACKEND="triton"
    )
    assert python("import hebbkern", HEBBKERN_BACKEND="triton", TRITON_INTERPRET="1") == ""


def test_triton_leaves_the_cpu_its_own_kernels():
    """Where a GPU is served, CPU tensors take the kernels of the CPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    y = torch.tensor([[1.0, 3.0, 2.0]])
    program = (
        "import torch, hebbkern as hk; print(torch.ops.hebbkern.kwinners.triton(torch.tensor([[1.0, 3, 2]]), 1, 1))"
    )
    assert python(program).strip() == str(hk.ops.kwinners(y, 1))


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


@pytest.fixture
def gpu(monkeypatch):
    """A tensor as on GPU 1, and who was called with it, by either kind of kernels, all of which are there."""
    seen = []
    monkeypatch.setattr(backends, "_missing", {})
    monkeypatch.setattr(backends, "emulated", lambda: None)
    monkeypatch.setattr(backends, "_compiled_for", lambda index: index == 1)
    monkeypatch.setattr(backends, "_by_triton", lambda name: lambda *arguments: seen.append("triton"))
    monkeypatch.setitem(library.compiled, "kwinners", lambda *arguments: seen.append("cuda"))
    with hk.backend("auto"):
        yield SimpleNamespace(is_cuda=True, get_device=lambda: 1, device=SimpleNamespace(index=1)), seen


def test_on_a_gpu_compiled_kernels_run_if_they_are_there_else_tritons(gpu):
    tensor, seen = gpu
    run = backends._on_gpu("kwinners")
    run(tensor, 1, 1)
    assert seen == ["cuda"] and library.straight == {1}
    tensor.device.index = 0
    run(tensor, 1, 1)
    backends._missing["cuda"] = "was not built"
    tensor.device.index = 1
    run(tensor, 1, 1)
    assert seen == ["cuda", "triton", "triton"] and library.straight == {1}


def test_public_functions_call_compiled_kernels_straight_once_they_served_a_gpu(gpu, monkeypatch):
    tensor, seen = gpu
    y = torch.tensor([[1.0, 3.0, 2.0]])
    monkeypatch.setattr(torch.Tensor, "get_device", lambda self: 1)
    assert library.serving("kwinners", y) is library.chosen["kwinners"]
    backends._on_gpu("kwinners")(tensor, 1, 1)
    hk.ops.kwinners(y, 1)
    assert seen == ["cuda", "cuda"]
    compiled = torch.compile(hk.ops.kwinners, fullgraph=True, backend="eager")
    assert compiled(y, 1).tolist() == [[0, 3, 0]]  # a graph keeps the overload of any device
    with hk.backend("eager"):
        assert not library.straight and library.serving("kwinners", y) is library.operator("kwinners", "eager")
        backends._on_gpu("kwinners")(tensor, 1, 1)  # which torch.ops reaches whatever was chosen
        assert not library.straight
    assert not library.straight
