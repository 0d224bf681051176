"""Choosing a backend, and what is said when there is none."""

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
        pytest.raises(RuntimeError, match=r"the backend must be one of auto, eager, triton, cpu, got 'tpu'"),
        hk.backend("tpu"),
    ):
        pass
    assert "must be one of auto, eager, triton, cpu, got 'tpu'" in python("import hebbkern", HEBBKERN_BACKEND="tpu")


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
