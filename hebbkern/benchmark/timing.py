"""How a case is measured: results compared first, then contestants in alternating order, medians of many samples."""

import contextlib
import functools
import statistics
import time

import torch

SAMPLE = 5e-3  # seconds a sample lasts at least; shorter calls are repeated within it
SETTLE = 0.05  # seconds in which idle threads of another library stop spinning (OpenBLAS: 2**26 cycles)
BUDGET = 2.0  # seconds a contestant: whoever needs more for all its samples takes fewer of them, at least one
USUAL = ("hebbkern", "unscreened", "numpy", "eager", "floor")


def agree(case, contestants):
    """Raises AssertionError unless all that hebbkern is measured against compute what NumPy computes."""
    results = {name: to_tensor(run()) for name, (run, to_tensor) in contestants.items() if name != "floor"}
    expected = results.pop("numpy").double()
    for name, result in results.items():
        error = ((result.double() - expected).norm() / expected.norm()).item()
        assert error <= case.tolerance, f"{case.id}: {name} differs from NumPy by {error:.1e} of its norm"


def checked(case, everybody=False):
    """The usual contestants of the case, or everybody, after they have agreed."""
    contestants = _chosen(case.build(), everybody)
    agree(case, _chosen(case.rehearsal(), everybody) if case.rehearsal else contestants)
    return contestants


def race(contestants, rounds):
    """Median seconds a call of every contestant: {"hebbkern": 0.0123, ...}.

    Each round lets everybody run once, the next one in reverse order, so that a drifting clock favours nobody. Between
    two of them a pause lets the threads of the one before fall asleep, and a call that is not timed wakes one's own.
    """
    once = {name: seconds_of(run) for name, (run, _) in contestants.items()}
    samples = {name: [seconds] if seconds > BUDGET else [] for name, seconds in once.items()}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            if number < BUDGET // once[name]:
                time.sleep(SETTLE)
                samples[name].append(_sample(contestants[name][0], once[name]))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def measure(case, rounds, everybody=False):
    """One row of the table: medians, ratios, and whether each limit holds; of the usual contestants or of everybody."""
    if everybody:
        torch.compiler.reset()  # what earlier cases compiled counts towards the limit of recompilations
    with torch.no_grad():
        seconds = race(checked(case, everybody), rounds)
    seconds = {name: value / case.share.get(name, 1) for name, value in seconds.items()}
    row = {"case": case.id, "seconds": seconds, "ratios": ratios(seconds), "floor": case.floor}
    to_floor = {name: value / seconds["floor"] for name, value in seconds.items() if name != "floor"}
    found = row["ratios"]
    holds = {k: found[k] >= limit if k == "numpy" else found[k] <= limit for k, limit in case.limits.items()}
    return row | {"to_floor": to_floor, "share": case.share, "limits": case.limits, "holds": holds}


def ratios(seconds):
    """How many times as fast as NumPy and eager torch hebbkern is, and its time in floors, screened or not."""
    ours, floor = seconds["hebbkern"], seconds["floor"]
    found = {"numpy": seconds["numpy"] / ours, "eager": seconds["eager"] / ours, "floor": ours / floor}
    return found | ({"unscreened": seconds["unscreened"] / floor} if "unscreened" in seconds else {})


@functools.cache
def no_compiler():
    """Why torch.compile cannot run here, or None."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1))
    except Exception as error:  # each backend raises its own
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def _chosen(contestants, everybody):
    def chosen(name):
        return name in USUAL or (everybody and not (name.startswith("compiled") and no_compiler()))

    return {name: contestant for name, contestant in contestants.items() if chosen(name)}


@contextlib.contextmanager
def threads_kept():
    """Afterwards torch has as many threads as before, whatever happens within."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_of(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _sample(run, once):
    repeats = max(1, round(SAMPLE / once))
    if once < BUDGET / 4:
        run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats
