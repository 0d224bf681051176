"""The steps of workloads.py on a GPU: checked against the CPU, then timed against their floors and eager torch.

Times are medians between two events on the device. Contestants alternate, and each call takes the next of so many
copies of its inputs that the L2 cache has forgotten them when they come round again.
"""

import contextlib
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
KINDS = ("cuda", "triton")  # of kernels, as hebbkern.backend names them; without a choice the first that is there runs
NAMES = (*KINDS, "eager")  # what is measured against the floor
HEAD = ("work", "floor", *NAMES, *(f"{name} / floor" for name in NAMES), "off the CPU's result")
LEGEND = (
    "Medians between CUDA events, in alternating order, on inputs that are not in the L2 cache. The floor is the bare "
    "forward pass (for dense rules with its weight gradient, for kwinners topk + scatter) with the same precision. "
    "cuda are hebbkern's compiled kernels, which run where they are built, triton those that run elsewhere."
)
NOISE = 1.1  # whoever is not this many times as fast is not called faster


class Cuda:
    """The clock of a GPU."""

    @staticmethod
    def event():
        return torch.cuda.Event(enable_timing=True)

    @staticmethod
    def synchronize():
        torch.cuda.synchronize()


def race(contestants, rounds, clock=Cuda, sample=SAMPLE, around=contextlib.nullcontext):
    """Median seconds a call: {name: seconds} of {name: [a function for each copy of its inputs]}.

    Each round lets everybody take one sample, the next round in reverse order, so that a changing clock favours nobody.
    Whoever runs does so within ``around(name)``.
    """
    turns = {name: _endless(runs) for name, runs in contestants.items()}
    for name, turn in turns.items():
        with around(name):
            for _ in range(WARM * min(len(contestants[name]), 8)):
                next(turn)()
    clock.synchronize()

    def timed(name, calls):
        with around(name):
            return _timed(turns[name], calls, clock)

    repeats = {name: max(1, round(sample / max(timed(name, 8), 1e-9))) for name in turns}
    samples = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            samples[name].append(timed(name, repeats[name]))
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


def ours():
    """The kinds of kernels that can be timed."""
    return [name for name in KINDS if backends.available()[name] is None]


def difference(workload, device, backend):
    """How far the result on ``device`` is from the CPU's, of the norm of the latter; of steps, how far w moved."""
    results = []
    for where, name in ((device, backend), ("cpu", "auto" if backends.available()["cpu"] is None else "eager")):
        x, w, extra = inputs(workload, where)
        start = w.clone()
        with hk.backend(name):
            result = workload.run(x, w, **extra)
        results.append((w - start if result is None else result).cpu().double())
    found, expected = results
    return ((found - expected).norm() / expected.norm()).item()


def checked(workload, device):
    """The largest difference of all kinds of kernels. Raises AssertionError where one is not the CPU's result."""
    worst = 0.0
    for name in ours():
        error = difference(workload, device, name)
        assert error <= workload.tolerance, f"{workload.id}: {name} differs from the CPU by {error:.1e} of its norm"
        worst = max(worst, error)
    return worst


def _served(name):
    """Within, operators run as the contestant ``name`` has them run."""
    return hk.backend(name) if name in NAMES else contextlib.nullcontext()


def measure(workload, rounds, *, device="cuda", clock=Cuda, l2=50 << 20, sample=SAMPLE):
    """One row of the table. Raises AssertionError where a result is not the CPU's: nobody is timed then."""
    with settings_of(workload), torch.no_grad():
        error = checked(workload, device)
        contestants = {name: [] for name in (*ours(), "eager", "floor")}
        for _ in range(copies(workload, l2)):
            x, w, extra = inputs(workload, device)
            for name in ours():
                contestants[name].append(_ours(workload, x, w, extra))
            contestants["eager"].append(workload.eager(x, w, **extra))
            contestants["floor"].append(floor(workload)(x, w.clone()))
        seconds = race(contestants, rounds, clock, sample, _served)
    to_floor = {name: seconds[name] / seconds["floor"] for name in NAMES if name in seconds}
    return {"case": workload.id, "seconds": seconds, "to_floor": to_floor, "difference": error}


def _ours(workload, x, w, extra):
    return lambda: workload.run(x, w, **extra)


def faster(rows):
    """A sentence for each row in which somebody is faster than the kernels that run without a choice."""
    found = []
    for row in rows:
        seconds = {name: row.get("seconds", {}).get(name) for name in NAMES}
        there = [name for name in NAMES if seconds[name]]
        best = min(there, key=seconds.get, default=None)
        if best and seconds[there[0]] > NOISE * seconds[best]:
            found.append(
                f"- {best} is {seconds[there[0]] / seconds[best]:.2f} times as fast as {there[0]}: {row['case']}."
            )
    return found


def text(rows):
    """The table of ``measure``'s rows, and who is faster than hebbkern."""
    return "\n".join([*aligned([HEAD, *map(_cells, rows)]), "", *faster(rows), "", LEGEND])


def markdown(found):
    """What bench/gpu.py found, for a page: where, the table in multiples of the floor, and what failed."""
    titles = ("work", "floor", *NAMES, "off the CPU's result")
    timed = [row for row in found["rows"] if "failed" not in row]
    lines = [" | ".join(("", *titles, "")).strip(), "| --- " * len(titles) + "|"]
    for row in timed:
        ratios = (f"{row['to_floor'][name]:.2f}" if name in row["to_floor"] else "" for name in NAMES)
        cells = row["case"], duration(row["seconds"]["floor"]), *ratios, f"{row['difference']:.1e}"
        lines.append(" | ".join(("", *cells, "")).strip())
    failed = [f"- Not timed: {row['case']} ({row['failed'].rstrip(':')})." for row in found["rows"] if "failed" in row]
    where = f"{found['gpu']}, torch {found['torch']}, Triton {found['triton']}: `{found['command']}`"
    return "\n".join([where, "", *lines, "", *failed, *faster(timed), "", LEGEND])


def _cells(row):
    if "failed" in row:
        return row["case"], *["-"] * (1 + 2 * len(NAMES)), row["failed"]
    seconds, to_floor = row["seconds"], row["to_floor"]
    times = (duration(seconds[name]) if name in seconds else "-" for name in ("floor", *NAMES))
    ratios = (f"{to_floor[name]:.2f}" if name in to_floor else "-" for name in NAMES)
    return row["case"], *times, *ratios, f"{row['difference']:.1e}"
