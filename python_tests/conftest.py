"""The backends that the suite runs on, and what it reports at the end."""

import contextlib
import math
import os
import time
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
    os.environ["HEBBKERN_DEVELOPER"] = "1"  # without it HEBBKERN_CUDA_HOST has no effect
    if file := cuda_host.built():
        os.environ.setdefault("HEBBKERN_CUDA_HOST", str(file))

import hypothesis
from hypothesis import HealthCheck, settings

import cases
import hebbkern as hk
import oracle
import tiers
from hebbkern import backends

FIXTURES = [HealthCheck.function_scoped_fixture]
settings.register_profile("drawn", max_examples=10, deadline=None, database=None, suppress_health_check=FIXTURES)
settings.register_profile("all", settings.get_profile("drawn"), max_examples=80)


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


END = pytest.StashKey[float]()  # of the time that --slice gives
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
    group = parser.getgroup("hebbkern")
    group.addoption("--all", action="store_true", help="every test, not only those that a seed draws")
    group.addoption("--all-combinations", action="store_true", help="--all, and in Triton's interpreter no fewer")
    group.addoption("--seed", metavar="SEED", help="draw other tests (default HEBBKERN_TEST_SEED, else the commit)")
    group.addoption("--slice", metavar="TIME", type=tiers.seconds, help="for 10m, what the seed leaves out")
    group.addoption("--thin", type=float, metavar="PRODUCTS", help="thin out cuda-host too, layers up to these")


def pytest_configure(config):
    option = config.option
    option.seed = option.seed or os.environ.get("HEBBKERN_TEST_SEED") or tiers.commit()  # xdist hands it to its workers
    settings.load_profile("all" if whole(option) else "drawn")
    config.stash[END] = time.monotonic() + option.slice if option.slice else math.inf


def pytest_report_header(config):
    option = config.option
    if option.slice:
        return f"tests: for {option.slice:.0f} s, those that seed {option.seed} leaves out"
    if not whole(option):
        return f"tests: drawn by seed {option.seed} (--seed=SEED draws others, --all runs all)"
    return "tests: all"


def whole(option):
    """Whether no seed chooses."""
    return bool(option.all or option.all_combinations or option.thin)


@pytest.hookimpl(tryfirst=True)  # before -m and -k select
def pytest_collection_modifyitems(config, items):
    for item in items:
        if " at 0x" in item.name:
            raise pytest.UsageError(f"{item.nodeid}: a test needs a name that is the same in every process (ids=)")
        if seconds_of(item) is None:  # slow on other backends only: -m "not slow" takes it
            item.own_markers = [mark for mark in item.own_markers if mark.name != "slow"]
        if kernels_of(item) in ("triton", "cuda"):
            item.add_marker(kernels_of(item))
        if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            hypothesis.seed(config.option.seed)(item.obj)
    option = config.option
    named = any("::" in name for name in config.args)  # single tests, which run whatever the seed
    kept = set(items) if option.all_combinations or torch.cuda.is_available() else affordable(items, option.thin)
    if option.slice or not (whole(option) or named):
        drawn = tiers.drawn([item for item in items if item in kept], kernels_of, seconds_of, option.seed, cost)
        kept = kept - drawn if option.slice else drawn
    if option.slice:  # slow ones run where they fit
        kept = {item for item in kept if (seconds_of(item) or 0) < option.slice / 4}
        items.sort(key=lambda item: tiers.rank(option.seed, item))
    if left_out := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item in kept]


def backend_of(item):
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return next((value for value in values if isinstance(value, Backend)), None)


def kernels_of(item):
    """The backend that the test is about: "eager", "cpu", "triton", "cuda" or None."""
    if backend := backend_of(item):
        return backend.choice
    return next((name for name in ("triton", "cuda") if item.path.name.startswith(f"test_{name}_")), None)


def seconds_of(item):
    """How long a test takes that is marked slow, also slow(seconds, on="triton") on that backend alone; else None."""
    for mark in item.iter_markers("slow"):
        if not mark.args:
            raise pytest.UsageError(f"slow must state seconds, as in slow(20): {item.nodeid}")
        if mark.kwargs.get("on") in (None, kernels_of(item)):
            return mark.args[0]
    return None


def cost(item):
    """The digits of the number of products of its layer."""
    layer = item.callspec.params.get("layer")
    return len(str(round(cases.products(layer)))) if isinstance(layer, cases.Layer) else 0


def affordable(items, thin):
    """The set of items without what Triton's interpreter takes too long for.

    There each two values of parameters meet in some test, but not all in all. Nor does it take the layers that are
    large for the CPU's kernels; test_triton_*.py have some of several tiles. Sanitizers (cuda_sanitized.py) have the
    emulated CUDA kernels thinned out the same way.
    """
    largest = {"triton": INTERPRETABLE} | ({"cuda": thin} if thin else {})
    slow = {}
    for item in items:
        if backend_of(item) and kernels_of(item) in largest:
            slow.setdefault((item.path, item.originalname, kernels_of(item)), []).append(item)
    kept = set(items).difference(*slow.values())
    for (*_, kernels), combinations in slow.items():
        small = [i for i in combinations if cases.products(i.callspec.params.get("layer")) <= largest[kernels]]
        kept.update(tiers.covering(small, 2))
    return kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    turns = hasattr(item.config, "workerinput")  # xdist's
    with tiers.turn(alone=item.get_closest_marker("serial")) if turns else contextlib.nullcontext():
        return (yield)


@pytest.hookimpl(tryfirst=True, specname="pytest_runtest_protocol")
def pytest_end_slice(item):
    """When the time of --slice is over: done with the test, without a report."""
    return True if time.monotonic() > item.config.stash[END] else None


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


def pytest_terminal_summary(terminalreporter, config):
    if failed := [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]:
        terminalreporter.write_line(f'To repeat: python -m pytest --seed={config.option.seed} "{failed[0].nodeid}"')
    for op, (compared, near) in sorted(oracle.near_ties.items()):
        terminalreporter.write_line(f"{op}: {compared} winners compared, {near} left out as nearer than rounding")
