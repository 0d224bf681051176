"""The steps of workloads.py on a GPU: compared with the CPU's results, then timed against forward pass and eager torch.

Times are medians between two events on the device. Implementations alternate. Each call takes the next of so many
copies of its inputs that the L2 cache no longer holds them when they are used again.
"""

import contextlib
import statistics

import torch

import hebbkern as hk
from hebbkern import backends
from hebbkern.benchmark.case import images, weights
from hebbkern.benchmark.report import aligned, duration

from .workloads import bare_forward, settings_of

SAMPLE = 2e-3  # seconds a sample lasts at least: launches queue up, and the device, not the CPU, is timed
WARM = 3  # rounds of calls before the first sample, in which kernels are compiled
MOST = 256  # copies of the inputs
KINDS = ("cuda", "triton")  # backends of the kernels; without a choice the first that is available runs
NAMES = (*KINDS, "eager")  # implementations that are compared with the bare forward pass
HEAD = ("work", "forward pass", *NAMES, *(f"{name} / forward" for name in NAMES), "difference from the CPU")
LEGEND = (
    "Medians between CUDA events, in alternating order, on inputs that are not in the L2 cache. The columns after the "
    "bare forward pass (for dense rules with its weight gradient, for kwinners topk + scatter) are times in multiples "
    "of it, with the same precision. cuda are hebbkern's compiled kernels, which run where they are built, triton "
    "those that run elsewhere."
)
NOISE = 1.1  # an implementation that is not this many times as fast as another is not called faster


class Cuda:
    """The clock of a GPU."""

    @staticmethod
    def event():
        return torch.cuda.Event(enable_timing=True)

    @staticmethod
    def synchronize():
        torch.cuda.synchronize()


def race(runs, rounds, clock=Cuda, sample=SAMPLE, around=contextlib.nullcontext):
    """Median seconds a call: {name: seconds} of {name: [a function for each copy of the inputs]}.

    Each round takes one sample of all, the next round in reverse order, so that a changing clock favours none. The
    functions of a name run within ``around(name)``.
    """
    turns = {name: _endless(functions) for name, functions in runs.items()}
    for name, turn in turns.items():
        with around(name):
            for _ in range(WARM * min(len(runs[name]), 8)):
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


def _endless(functions):
    while True:
        yield from functions


def _timed(turn, repeats, clock):
    """Seconds a call, of ``repeats`` calls in a row."""
    start, end = clock.event(), clock.event()
    start.record()
    for _ in range(repeats):
        next(turn)()
    end.record()
    clock.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def copies(workload, l2):
    """How many copies of the inputs take more than twice the L2 cache, of ``l2`` bytes."""
    entries = sum(torch.Size(shape).numel() for shape in (workload.x, workload.w))
    return min(MOST, 2 * l2 // (entries * workload.dtype.itemsize) + 2)


def inputs(workload, device):
    """x, w and the further arguments of the workload, with the same values on every device."""
    w = weights(*workload.w) if len(workload.w) > 1 else torch.zeros(workload.w)
    x, w = (t.to(device=device, dtype=workload.dtype) for t in (images(*workload.x), w))
    return x, w, workload.extra(x, w)


def available_kinds():
    """The kinds of kernels that can be timed."""
    return [name for name in KINDS if backends.available()[name] is None]


def difference(workload, device, backend):
    """How far the result (of a step: the change of w) is from the CPU's, in parts of the norm of the latter."""
    results = []
    for where, name in ((device, backend), ("cpu", "auto" if backends.available()["cpu"] is None else "eager")):
        x, w, extra = inputs(workload, where)
        start = w.clone()
        with hk.backend(name):
            result = workload.run(x, w, **extra)
        results.append((w - start if result is None else result).cpu().double())
    result, expected = results
    return ((result - expected).norm() / expected.norm()).item()


def checked(workload, device):
    """The largest difference of all kinds of kernels. Raises AssertionError where it is more than the tolerance."""
    worst = 0.0
    for name in available_kinds():
        error = difference(workload, device, name)
        assert error <= workload.tolerance, f"{workload.id}: {name} differs from the CPU by {error:.1e} of its norm"
        worst = max(worst, error)
    return worst


def _on_backend(name):
    """A context in which operators run as the implementation ``name`` needs."""
    return hk.backend(name) if name in NAMES else contextlib.nullcontext()


def measure(workload, rounds, *, device="cuda", clock=Cuda, l2=50 << 20, sample=SAMPLE):
    """One row of the table. Raises AssertionError, before anything is timed, where a result is not the CPU's."""
    with settings_of(workload), torch.no_grad():
        error = checked(workload, device)
        runs = {name: [] for name in (*available_kinds(), "eager", "forward")}
        for _ in range(copies(workload, l2)):
            x, w, extra = inputs(workload, device)
            for name in available_kinds():
                runs[name].append(_bound(workload, x, w, extra))
            runs["eager"].append(workload.eager(x, w, **extra))
            runs["forward"].append(bare_forward(workload)(x, w.clone()))
        seconds = race(runs, rounds, clock, sample, _on_backend)
    to_forward = {name: seconds[name] / seconds["forward"] for name in NAMES if name in seconds}
    return {"case": workload.id, "seconds": seconds, "to_forward": to_forward, "difference": error}


def _bound(workload, x, w, extra):
    return lambda: workload.run(x, w, **extra)


def faster(rows):
    """A sentence for each row in which another implementation is faster than the kernels that run without a choice."""
    sentences = []
    for row in rows:
        seconds = {name: row.get("seconds", {}).get(name) for name in NAMES}
        timed = [name for name in NAMES if seconds[name]]
        best = min(timed, key=seconds.get, default=None)
        if best and seconds[timed[0]] > NOISE * seconds[best]:
            times = seconds[timed[0]] / seconds[best]
            sentences.append(f"- {best} is {times:.2f} times as fast as {timed[0]}: {row['case']}.")
    return sentences


def text(rows):
    """The table of ``measure``'s rows, and the rows in which another implementation is faster than hebbkern."""
    return "\n".join([*aligned([HEAD, *map(_cells, rows)]), "", *faster(rows), "", LEGEND])


def markdown(report):
    """The report of bench/gpu.py for a page: where it was measured, times in forward passes, and what failed."""
    titles = ("work", "forward pass", *NAMES, "difference from the CPU")
    timed = [row for row in report["rows"] if "failed" not in row]
    lines = [" | ".join(("", *titles, "")).strip(), "| --- " * len(titles) + "|"]
    for row in timed:
        ratios = (f"{row['to_forward'][name]:.2f}" if name in row["to_forward"] else "" for name in NAMES)
        cells = row["case"], duration(row["seconds"]["forward"]), *ratios, f"{row['difference']:.1e}"
        lines.append(" | ".join(("", *cells, "")).strip())
    failed = [f"- Not timed: {row['case']} ({row['failed'].rstrip(':')})." for row in report["rows"] if "failed" in row]
    where = f"{report['gpu']}, torch {report['torch']}, Triton {report['triton']}: `{report['command']}`"
    return "\n".join([where, "", *lines, "", *failed, *faster(timed), "", LEGEND])


def _cells(row):
    if "failed" in row:
        return row["case"], *["-"] * (1 + 2 * len(NAMES)), row["failed"]
    seconds, to_forward = row["seconds"], row["to_forward"]
    times = (duration(seconds[name]) if name in seconds else "-" for name in ("forward", *NAMES))
    ratios = (f"{to_forward[name]:.2f}" if name in to_forward else "-" for name in NAMES)
    return row["case"], *times, *ratios, f"{row['difference']:.1e}"
