"""Choosing a backend, and what is said when there is none."""

import os
import subprocess
import sys

import pytest
import torch

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
    return torch.ops.hebbkern.compete.default(x * 2, weight, 2, 2.0, False, "centred", (1, 1), (0, 0), (1, 1), None)

with FakeTensorMode():
    tensors = torch.empty(64, 20, device="cuda"), torch.empty(300, 20, device="cuda")
    print([str(node.target) for node in make_fx(dispatch_functionalize(step))(*tensors).graph.nodes])
"""


def test_torch_compile_sees_into_tritons_kernels():
    """As into torch.library.triton_op's, found without a GPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    seen = python(TRACED, HOME=os.environ.get("HOME", ""))
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
