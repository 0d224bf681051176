"""The steps of workloads.py on a GPU: checked against the CPU, then timed against their floors and eager torch.

Times are medians between two events on the device. Contestants alternate, and each call takes the next of so many
copies of its inputs that the L2 cache has forgotten them when they come round again.
"""

import statistics

import torch

import hebbkern as hk
from hebbkern import backends
from hebbkern.benchmark import contest
from hebbkern.benchmark.report import aligned, duration
from hebbkern.benchmark.workloads import floor, settings_of

SAMPLE = 2e-3  # seconds a sample lasts at least, so that launches queue up and the device, not the CPU, is timed
WARM = 3  # rounds of calls before the first sample: kernels are compiled then
MOST = 256  # copies of the inputs
HEAD = ("work", "floor", "hebbkern", "eager", "hebbkern / floor", "eager / floor", "off the CPU's result")
LEGEND = (
    "Medians between CUDA events, in alternating order, on inputs that are not in the L2 cache. The floor is the bare "
    "forward pass (for dense rules with its weight gradient, for kwinners topk + scatter) with the same precision."
)


class Cuda:
    """The clock of a GPU."""

    @staticmethod
    def event():
        return torch.cuda.Event(enable_timing=True)

    @staticmethod
    def synchronize():
        torch.cuda.synchronize()


def race(contestants, rounds, clock=Cuda, sample=SAMPLE):
    """Median seconds a call: {name: seconds} of {name: [a function for each copy of its inputs]}.

    Each round lets everybody take one sample, the next round in reverse order, so that a changing clock favours nobody.
    """
    turns = {name: _endless(runs) for name, runs in contestants.items()}
    for name, turn in turns.items():
        for _ in range(WARM * min(len(contestants[name]), 8)):
            next(turn)()
    clock.synchronize()
    repeats = {name: max(1, round(sample / max(_timed(turn, 8, clock), 1e-9))) for name, turn in turns.items()}
    samples = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            samples[name].append(_timed(turns[name], repeats[name], clock))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def _endless(runs):
    while True:
        yield from runs


def _timed(turn, repeats, clock):
    """Seconds a call, of ``repeats`` in a row."""
    start, end = clock.event(), clock.event()
    start.record()
    for _ in range(repeats):
        next(turn)()
    end.record()
    clock.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def copies(workload, l2):
    """How many copies of the inputs are more than twice the L2 cache, of ``l2`` bytes."""
    entries = sum(torch.Size(shape).numel() for shape in (workload.x, workload.w))
    return min(MOST, 2 * l2 // (entries * workload.dtype.itemsize) + 2)


def inputs(workload, device):
    """x, w and what else the workload takes, with the same values on every device."""
    w = contest.weights(*workload.w) if len(workload.w) > 1 else torch.zeros(workload.w)
    x, w = (t.to(device=device, dtype=workload.dtype) for t in (contest.images(*workload.x), w))
    return x, w, workload.extra(x, w)


def difference(workload, device):
    """How far the result on ``device`` is from the CPU's, of the norm of the latter; of steps, how far w moved."""
    results = []
    for where, name in ((device, "triton"), ("cpu", "auto" if backends.available()["cpu"] is None else "eager")):
        x, w, extra = inputs(workload, where)
        start = w.clone()
        with hk.backend(name):
            result = workload.run(x, w, **extra)
        results.append((w - start if result is None else result).cpu().double())
    found, expected = results
    return ((found - expected).norm() / expected.norm()).item()


def measure(workload, rounds, *, device="cuda", clock=Cuda, l2=50 << 20, sample=SAMPLE):
    """One row of the table. Raises AssertionError where the result is not the CPU's: nobody is timed then."""
    with settings_of(workload), torch.no_grad():
        error = difference(workload, device)
        assert error <= workload.tolerance, f"{workload.id}: differs from the CPU by {error:.1e} of its norm"
        contestants = {"hebbkern": [], "eager": [], "floor": []}
        for _ in range(copies(workload, l2)):
            x, w, extra = inputs(workload, device)
            contestants["hebbkern"].append(_ours(workload, x, w, extra))
            contestants["eager"].append(workload.eager(x, w, **extra))
            contestants["floor"].append(floor(workload)(x, w.clone()))
        with hk.backend("triton"):
            seconds = race(contestants, rounds, clock, sample)
    to_floor = {name: seconds[name] / seconds["floor"] for name in ("hebbkern", "eager")}
    return {"case": workload.id, "seconds": seconds, "to_floor": to_floor, "difference": error}


def _ours(workload, x, w, extra):
    return lambda: workload.run(x, w, **extra)


def text(rows):
    """The table of ``measure``'s rows."""
    return "\n".join([*aligned([HEAD, *map(_cells, rows)]), "", LEGEND])


def _cells(row):
    if "failed" in row:
        return row["case"], "-", "-", "-", "-", "-", row["failed"]
    times = (duration(row["seconds"][name]) for name in ("floor", "hebbkern", "eager"))
    ratios = (f"{row['to_floor'][name]:.2f}" for name in ("hebbkern", "eager"))
    return row["case"], *times, *ratios, f"{row['difference']:.1e}"
