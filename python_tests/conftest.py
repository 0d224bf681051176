"""The backends that the suite runs on, and what it reports at the end."""

import contextlib
import itertools
import os
from dataclasses import dataclass

# Before NumPy and torch start their threads: waiting ones would take the processors from each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

import cuda_host

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if file := cuda_host.built():
        os.environ.setdefault("HEBBKERN_CUDA_HOST", str(file))

from hypothesis import HealthCheck, settings

import cases
import hebbkern as hk
import oracle
from hebbkern import backends

settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("suite")


def hasten_the_interpreter():
    """Triton's interpreter prepares its language anew at each call of a device function; once is enough."""
    with contextlib.suppress(ImportError):
        from triton.runtime.interpreter import InterpretedFunction

        first, called = InterpretedFunction.__call__, set()

        def call(self, *arguments, **named):
            # The kernel has prepared the language for our own functions; what a library function prepares stays so.
            if self.fn in called or self.fn.__module__.startswith("hebbkern."):
                return self.rewrite()(*arguments, **named)
            called.add(self.fn)
            return first(self, *arguments, **named)

        InterpretedFunction.__call__ = call


if os.environ.get("TRITON_INTERPRET") == "1":
    hasten_the_interpreter()


INTERPRETABLE = 4e6  # products of a layer, a second or so


@dataclass(frozen=True)
class Backend:
    name: str
    device: str
    any_threads: bool  # the same bits on any number of threads
    threads: tuple = (1, 2, 3, 7)  # on how many that is tried

    @property
    def choice(self):
        """What hebbkern.backend calls it: "cuda-host" are the kernels of "cuda", compiled for the CPU."""
        return self.name.removesuffix("-host")


BACKENDS = [
    Backend("eager", device="cpu", any_threads=False),
    Backend("cpu", device="cpu", any_threads=True),
    Backend("triton", device="cuda" if torch.cuda.is_available() else "cpu", any_threads=True, threads=(2,)),
    # The kernels of csrc/cuda: on a GPU, or compiled for the CPU by cuda_host.py.
    Backend(*(("cuda", "cuda") if torch.cuda.is_available() else ("cuda-host", "cpu")), any_threads=True, threads=(2,)),
]


def pytest_addoption(parser):
    parser.addoption("--all-combinations", action="store_true", help="of parameters, in Triton's interpreter too")
    parser.addoption("--thin", type=float, metavar="PRODUCTS", help="thin out cuda-host too, layers up to these")


def pytest_collection_modifyitems(config, items):
    """Triton's interpreter is slow: there each two values of parameters meet in some test, but not all in all.

    Nor does it take the layers that are large for the CPU's kernels; test_triton_*.py have some of several tiles.
    Sanitizers (cuda_sanitized.py) have the emulated CUDA kernels thinned out the same way.
    """
    if config.getoption("all_combinations") or torch.cuda.is_available():
        return
    largest = {"triton": INTERPRETABLE} | ({"cuda-host": thin} if (thin := config.getoption("thin")) else {})
    met, left_out = set(), []
    for item in items:
        slow = next((name for name in largest if name in item.name), None)
        if not slow or not hasattr(item, "callspec"):
            continue
        values = sorted((name, repr(value)) for name, value in item.callspec.params.items())
        pairs = {(item.path, item.originalname, *pair) for pair in itertools.combinations(values, 2)}
        if cases.products(item.callspec.params.get("layer")) > largest[slow] or (pairs and pairs <= met):
            left_out.append(item)
        else:
            met |= pairs
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        leaving = set(left_out)
        items[:] = [item for item in items if item not in leaving]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    reason = backends.available()[request.param.choice]
    if reason:
        pytest.skip(reason)
    # Triton's interpreter computes with NumPy, which warns where a processor does not.
    quiet = np.errstate(all="ignore") if request.param.name == "triton" else contextlib.nullcontext()
    with hk.backend(request.param.choice), quiet, tensors_on(request.param.device):
        yield request.param


@contextlib.contextmanager
def tensors_on(device):
    """Within, tensors are made on ``device`` unless something else is said, and no step that was skipped is untold."""
    if device == "cpu":
        yield
        return
    for _ in range(2):  # of the compiled kernels, and of Triton's
        with contextlib.suppress(RuntimeError):
            hk.synchronize()
    with torch.device(device):
        yield


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poison():
    """Call it, and uninitialised memory that torch hands out is NaN (floats) or the largest number (integers)."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield lambda: torch.use_deterministic_algorithms(True)
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter):
    for op, (compared, near) in sorted(oracle.near_ties.items()):
        terminalreporter.write_line(f"{op}: {compared} winners compared, {near} left out as nearer than rounding")
