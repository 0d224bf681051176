"""How a case is measured: results compared first, then contestants in alternating order, medians of many samples."""

import statistics
import time

import torch

SAMPLE = 5e-3  # seconds a sample lasts at least; shorter calls are repeated within it
SETTLE = 0.05  # seconds in which idle threads of another library stop spinning (OpenBLAS: 2**26 cycles)


def agree(case, contestants):
    """Raises AssertionError unless hebbkern and eager torch compute what NumPy computes."""
    results = {name: to_tensor(run()) for name, (run, to_tensor) in contestants.items() if name != "floor"}
    expected = results.pop("numpy").double()
    for name, result in results.items():
        error = ((result.double() - expected).norm() / expected.norm()).item()
        assert error <= case.tolerance, f"{case.id}: {name} differs from NumPy by {error:.1e} of its norm"


def race(contestants, rounds):
    """Median seconds a call of every contestant: {"hebbkern": 0.0123, ...}.

    Each round lets everybody run once, the next one in reverse order, so that a drifting clock favours nobody. Between
    two of them a pause lets the threads of the one before fall asleep, and a call that is not timed wakes one's own.
    """
    repeats = {name: _repeats(run) for name, (run, _) in contestants.items()}
    samples = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            run, _ = contestants[name]
            time.sleep(SETTLE)
            run()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            samples[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def measure(case, rounds):
    """One row of the table: medians, ratios, and whether each limit holds."""
    with torch.no_grad():
        contestants = case.build()
        agree(case, contestants)
        seconds = race(contestants, rounds)
    ours = seconds["hebbkern"]
    ratios = {"numpy": seconds["numpy"] / ours, "eager": seconds["eager"] / ours, "floor": ours / seconds["floor"]}
    holds = {k: ratios[k] >= limit if k == "numpy" else ratios[k] <= limit for k, limit in case.limits.items()}
    row = {"case": case.id, "seconds": seconds, "ratios": ratios, "floor": case.floor}
    return row | {"limits": case.limits, "holds": holds}


def _repeats(run):
    start = time.perf_counter()
    run()
    return max(1, round(SAMPLE / (time.perf_counter() - start)))
