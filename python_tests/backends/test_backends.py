"""Choosing a backend: what each name selects, what is said where it cannot run, and that a graph follows the choice."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import calls
import cuda_host
import hebbkern as hk
from hebbkern import backends
from hebbkern._torch_private import has_kernel
from hebbkern.backends import cuda, extensions

HIDE = "import sys; sys.modules['hebbkern._cpu'] = None\n"  # as if it had not been built
ONCE = """
import warnings, torch
import hebbkern as hk
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        hk.ops.kwinners(torch.ones(2, 3), 1)
        hk.ops.compete(torch.ones(2, 3), torch.ones(4, 3))
        torch.ops.hebbkern.kwinners(torch.ones(2, 3), 1, 1)
        hk.ops.kwinners(torch.ones(2, 3, device="meta"), 1)
print(len(caught), *[warning.message for warning in caught])
"""
Y = torch.tensor([[1.0, 3.0, 2.0]])
KEPT = torch.tensor([[0.0, 3.0, 0.0]])


def python(program, **environment):
    path = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env={**path, **environment}, capture_output=True, text=True)
    return done.stdout + done.stderr


def overload(name="kwinners", tensor=Y):
    return backends.kernel(name, tensor)._overloadname


def test_eager_is_always_available():
    assert backends.available()["eager"] is None
    assert list(backends.available()) == ["cpu", "cuda", "eager", "triton"]


def test_each_backend_has_an_overload_of_every_operator():
    for backend in (backends.AUTO, *backends.BACKENDS.values()):
        assert sorted(backend.kernels) == sorted(calls.OPERATORS)
        wanted = "default" if backend is backends.AUTO else backend.name
        assert {operator._overloadname for operator in backend.kernels.values()} == {wanted}


def test_a_choice_selects_what_it_says_and_is_undone():
    automatic = overload()
    with pytest.raises(KeyError), hk.backend("eager"):
        assert backends.current() == "eager" and overload() == "eager"
        with hk.backend("auto"):
            assert overload() == automatic
        assert backends.current() == "eager" and overload() == "eager"
        raise KeyError
    assert overload() == automatic and backends.current() == "auto"


def test_auto_takes_the_compiled_kernels_of_the_cpu():
    """Emulated and interpreted kernels run on CPU tensors too, but only where they are asked for."""
    if reason := backends.available()["cpu"]:
        pytest.skip(reason)
    assert overload() == "cpu"


def test_a_choice_changes_compiled_functions():
    compiled = torch.compile(hk.ops.kwinners, fullgraph=True, backend="aot_eager")
    for name in ("eager", "auto"):
        with hk.backend(name):
            assert torch.equal(compiled(Y, 1), KEPT)


def graph_of(function, *arguments):
    """The operators of hebbkern in the graph that torch.compile hands to its backend."""
    found = []

    def inspect(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes if "hebbkern" in str(node.target))
        return graph

    torch.compiler.reset()
    torch.compile(function, fullgraph=True, backend=torch._dynamo.backends.common.aot_autograd(fw_compiler=inspect))(
        *arguments
    )
    return found


def test_a_graph_holds_the_backend_that_was_chosen():
    """So that no operator in it chooses again when the graph runs."""
    wanted = overload()
    assert graph_of(lambda y: hk.ops.kwinners(y * 2, 1), Y) == [f"hebbkern.kwinners.{wanted}"]
    with hk.backend("eager"):
        assert graph_of(lambda y: hk.ops.kwinners(y * 2, 1), Y) == ["hebbkern.kwinners.eager"]


@pytest.mark.slow(8)
def test_unknown_names():
    wanted = "hebbkern.backend: name must be one of auto, cpu, cuda, eager, triton, got 'tpu'"
    with pytest.raises(ValueError, match=wanted), hk.backend("tpu"):
        pass
    assert wanted in python("import hebbkern", HEBBKERN_BACKEND="tpu")


@pytest.mark.slow(8)
def test_a_missing_backend_says_why():
    assert "RuntimeError: hebbkern: the backend 'cpu' is not available: hebbkern._cpu was not built" in python(
        HIDE + "import hebbkern as hk\nwith hk.backend('cpu'): pass"
    )


@pytest.mark.slow(8)
def test_environment_variable():
    program = "import hebbkern; from hebbkern import backends; print(backends.current())"
    assert python(program, HEBBKERN_BACKEND="eager").strip() == "eager"
    assert python(program).strip() == "auto"


@pytest.mark.slow(9)
def test_without_compiled_kernels_one_warning():
    printed = python(HIDE + ONCE)
    assert printed.startswith("1 hebbkern: no compiled kernels for cpu tensors, plain torch runs instead"), printed
    assert "hebbkern._cpu was not built" in printed
    assert python(HIDE + ONCE, HEBBKERN_BACKEND="eager").strip() == "0"


ELSEWHERE = """
import torch, hebbkern as hk
from hebbkern import backends
from torch._subclasses.fake_tensor import FakeTensorMode
with hk.backend("cpu"), FakeTensorMode():
    for run in (lambda y: hk.ops.kwinners(y, 1), lambda y: backends.BACKENDS["triton"].kernels["kwinners"]):
        try:
            run(torch.empty(2, 3, device="cuda"))
        except ValueError as error:
            print(error)
"""


@pytest.mark.slow(12)
def test_a_backend_refuses_tensors_of_other_devices():
    wanted = "hebbkern.kwinners: backend must be one that takes tensors on cuda:0, got 'cpu'"
    assert wanted in python(ELSEWHERE), python(ELSEWHERE)


@pytest.mark.slow(11)
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_an_overload_refuses_tensors_of_other_devices(name):
    """Without emulation and without the interpreter no kernel of a GPU takes a CPU tensor."""
    program = f"import torch, hebbkern; torch.ops.hebbkern.kwinners.{name}(torch.ones(2, 3), 1, 1)"
    wanted = f"ValueError: hebbkern.kwinners: backend must be one that takes tensors on cpu, got '{name}'"
    assert wanted in python(program), python(program)


def test_what_is_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"hebbkern\.kwinners: y must be a tensor, got list"):
        hk.ops.kwinners([1.0, 2.0], 1)


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


@pytest.mark.slow(10)
@pytest.mark.parametrize("overload", ["default", "triton"])
def test_torch_compile_sees_into_tritons_kernels(overload):
    """As into torch.library.triton_op's, found without a GPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    if overload == "default" and torch.cuda.is_available() and backends.available()["cuda"] is None:
        pytest.skip("compiled kernels serve this GPU, and graphs keep them whole")
    nodes = python(TRACED.replace("OVERLOAD", overload), HOME=os.environ.get("HOME", ""))
    assert nodes.count("triton_kernel_wrapper_functional") == 3 and "hebbkern" not in nodes.splitlines()[-1], nodes


@pytest.mark.slow(9)
def test_triton_without_a_gpu_says_so():
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert "the backend 'triton' is not available: no GPU is found" in python(
        "import hebbkern", HEBBKERN_BACKEND="triton"
    )
    assert python("import hebbkern", HEBBKERN_BACKEND="triton", TRITON_INTERPRET="1") == ""


@pytest.mark.parametrize(
    ("capability", "served"), [((7, 5), False), ((8, 0), True), ((8, 6), True), ((9, 0), False), ((12, 1), True)]
)
def test_kernels_serve_gpus_that_they_hold_code_for(monkeypatch, capability, served):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(extensions, "load", lambda name: (SimpleNamespace(architectures="800,1000"), None))
    assert cuda._has_code_for.__wrapped__(0) == served


@pytest.mark.parametrize("operator", calls.OPERATORS)
def test_the_compiled_kernels_serve_every_operator(operator):
    """Where one is missing, the overload refuses instead; the dense operators of "cuda" are Python compositions."""
    for name, key in (("cpu", "CPU"), ("cuda", "CPU" if extensions.emulated() else "CUDA")):
        if backends.available()[name] is None and operator not in backends.BACKENDS[name].room.kernels():
            assert has_kernel(f"hebbkern::{operator}.{name}", key)


@pytest.fixture
def gpu(monkeypatch):
    """Stand-ins for tensors of GPUs 0 and 1; the compiled kernels hold code for GPU 1 only."""
    monkeypatch.setattr(extensions, "load", lambda name: (SimpleNamespace(), None))
    monkeypatch.setattr(extensions, "emulated", lambda: None)
    monkeypatch.setattr(cuda, "_has_code_for", lambda index: index == 1)
    monkeypatch.setattr(backends.triton, "_interpreted", lambda: False)
    monkeypatch.setattr(backends.triton, "_installed", lambda: True)
    with hk.backend("auto"):
        yield [SimpleNamespace(device=torch.device("cuda", index)) for index in (0, 1)]


def test_a_gpu_takes_compiled_kernels_if_they_have_its_code_else_tritons_else_plain_torch(gpu, monkeypatch):
    assert [overload(tensor=tensor) for tensor in gpu] == ["triton", "cuda"]
    backends.select("auto")
    monkeypatch.setattr(backends.triton, "_installed", lambda: False)
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no compiled kernels for cuda tensors"):
        assert overload(tensor=gpu[0]) == "eager"
    assert overload(tensor=gpu[1]) == "cuda"


def test_while_kernels_are_interpreted_plain_torch_serves_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr(backends.triton, "_interpreted", lambda: True)
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning):
        assert overload(tensor=gpu[0]) == "eager"


@pytest.mark.parametrize(("developer", "honoured"), [(None, False), ("0", False), ("1", True)])
def test_a_library_that_the_environment_names_is_loaded_for_developers_only(monkeypatch, developer, honoured):
    monkeypatch.setenv("HEBBKERN_CUDA_HOST", "/tmp/other.so")
    monkeypatch.delenv("HEBBKERN_DEVELOPER", raising=False)
    if developer:
        monkeypatch.setenv("HEBBKERN_DEVELOPER", developer)
    warned = contextlib.nullcontext() if honoured else pytest.warns(RuntimeWarning, match="has no effect without")
    with warned:
        assert extensions.emulated.__wrapped__() == ("/tmp/other.so" if honoured else None)


@pytest.mark.slow(10)
@pytest.mark.skipif(cuda_host.built() is None, reason="csrc/cuda was not compiled for the CPU (cuda_host.py)")
def test_a_process_does_not_load_a_library_by_one_variable():
    code = "import sys, hebbkern; print('_cuda_host' in sys.modules)"
    environment = os.environ | {"HEBBKERN_CUDA_HOST": str(cuda_host.built()), "HEBBKERN_DEVELOPER": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "False\n" and "no effect without HEBBKERN_DEVELOPER=1" in done.stderr
