"""How a case is measured: results are compared first, then all run in alternating order; medians of many samples."""

import contextlib
import functools
import statistics
import time
from collections.abc import Hashable, Iterator
from typing import Any, TypeVar

import torch

from hebbkern.benchmark.case import Case, Implementation, Run

SAMPLE = 5e-3  # seconds a sample lasts at least; shorter calls are repeated within it
PAUSE = 0.05  # seconds in which idle threads of another library stop spinning (OpenBLAS: 2**26 cycles)
BUDGET = 2.0  # seconds for all samples of an implementation; a slower one gets fewer samples, at least one
DEFAULT = ("hebbkern", "unscreened", "numpy", "eager", "forward")  # implementations that are measured without --peers

Name = TypeVar("Name", bound=Hashable)


def check_agreement(case: Case, implementations: dict[str, Implementation]) -> None:
    """Raises AssertionError unless all implementations compute what NumPy (or where it is missing, eager) computes."""
    results = {name: each.result(each.run()) for name, each in implementations.items() if name != "forward"}
    name, label = ("numpy", "NumPy") if "numpy" in results else ("eager", "eager torch")
    expected = results.pop(name).double()
    for name, result in results.items():
        error = ((result.double() - expected).norm() / expected.norm()).item()
        assert error <= case.tolerance, f"{case.id}: {name} differs from {label} by {error:.1e} of its norm"


def checked(case: Case, peers: bool = False) -> dict[str, Implementation]:
    """The default implementations of the case, or with `peers` all of them, after their results have been compared."""
    implementations = _selected(case.build(), peers)
    check_agreement(case, _selected(case.rehearsal(), peers) if case.rehearsal else implementations)
    return implementations


def race(runs: dict[Name, Run], rounds: int) -> dict[Name, float]:
    """The median seconds a call of every function: {"hebbkern": 0.0123, ...}.

    Each round runs all of them once, the next round in reverse order, so that a drifting clock favours none. Between
    two of them a pause lets the threads of the first fall asleep, and a call that is not timed wakes those of the next.
    """
    once = {name: seconds_of(run) for name, run in runs.items()}
    samples = {name: [seconds] if seconds > BUDGET else [] for name, seconds in once.items()}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            if number < BUDGET // once[name]:
                time.sleep(PAUSE)
                samples[name].append(_sample(runs[name], once[name]))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def measure(case: Case, rounds: int, peers: bool = False) -> dict[str, Any]:
    """One row of the table: medians, ratios, and whether each limit holds; with `peers` of all implementations."""
    if peers:
        torch.compiler.reset()  # what earlier cases compiled counts towards the limit of recompilations
    with torch.no_grad():
        seconds = race({name: each.run for name, each in checked(case, peers).items()}, rounds)
    seconds = {name: value / case.share.get(name, 1) for name, value in seconds.items()}
    multiples = ratios(seconds)
    return {
        "case": case.id,
        "seconds": seconds,
        "ratios": multiples,
        "forward_pass": case.forward_pass,
        "to_forward": {name: value / seconds["forward"] for name, value in seconds.items() if name != "forward"},
        "share": case.share,
        "limits": case.limits,
        "holds": {
            k: multiples[k] >= limit if k == "numpy" else multiples[k] <= limit for k, limit in case.limits.items()
        },
    }


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast as NumPy and eager hebbkern is, and its time, screened or not, in bare forward passes."""
    ours, forward = seconds["hebbkern"], seconds["forward"]
    result = {name: seconds[name] / ours for name in ("numpy", "eager") if name in seconds}
    result["forward"] = ours / forward
    return result | ({"unscreened": seconds["unscreened"] / forward} if "unscreened" in seconds else {})


@functools.cache
def no_compiler() -> str | None:
    """Why torch.compile cannot run here, or None."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1))
    except Exception as error:  # each backend raises its own
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def _selected(implementations: dict[str, Implementation], peers: bool) -> dict[str, Implementation]:
    """The default implementations, or with `peers` all that can run here."""
    if peers:
        return {name: each for name, each in implementations.items() if "compiled" not in name or not no_compiler()}
    return {name: implementations[name] for name in DEFAULT if name in implementations}


@contextlib.contextmanager
def keep_threads() -> Iterator[None]:
    """Restores the number of torch's threads at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_of(run: Run) -> float:
    """The seconds that one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _sample(run: Run, once: float) -> float:
    repeats = max(1, round(SAMPLE / once))
    if once < BUDGET / 4:
        run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
