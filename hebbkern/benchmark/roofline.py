"""How fast an H100 could run a step: bytes and flops of its launches against what the chip can move and compute.

A model, not a measurement. Of every launch it knows what all its programs together read and write (traffic.py; by
default each tensor argument once): the traffic between the L2 cache and the multiprocessors. Of that, device memory
sees each tensor once a launch if the tensor fits into the L2 cache, otherwise every read of it; nothing stays in the
cache from one launch to the next, which makes the model slow for small tensors. A launch takes the longest of its three
times (device memory, L2, arithmetic), and LAUNCH more; with fewer programs than multiprocessors the others idle. ATen's
operators read and write each tensor once, at full speed.
"""

from dataclasses import replace

from hebbkern.benchmark.recording import name_of, trace
from hebbkern.benchmark.report import duration
from hebbkern.benchmark.traffic import use
from hebbkern.benchmark.workloads import floor
from hebbkern.triton.launch import PROCESSORS

# NVIDIA H100 SXM5 by its data sheet, dense rates; the rate of the L2 cache is what others have measured.
MEMORY = 3.35e12  # bytes a second of device memory
CACHE = 5.5e12  # bytes a second between L2 and the multiprocessors
FLOPS = {"fp64": 67e12, "fp32": 67e12, "tf32": 495e12, "tf32x3": 495e12 / 3, "half": 990e12}
LAUNCH = 2.5e-6  # seconds from the end of one kernel to the start of the next

HEAD = ("step", "launches", "ATen's", "unavoidable", "moved", "of unavoidable", "L2", "Gflop", "predicted", "floor")
HEAD += ("predicted / floor",)
LEGEND = (
    "Predictions for an H100 SXM from bytes and flops, not measurements. unavoidable: inputs and results once; moved: "
    "device memory, all launches; L2: between the L2 cache and the multiprocessors; floor: the bare forward pass (for "
    "dense rules with its weight gradient, for kwinners topk + scatter) under the same model."
)


def row(workload, found):
    """One row of the prediction; ``found`` is the trace of ``workload``."""
    uses = [use(launch) for launch in found.launches]
    device = sum(each.device for each in uses) + sum(call.bytes for call in found.aten)
    cache = sum(each.cache for each in uses) + sum(call.bytes for call in found.aten)
    bare = trace(replace(workload, run=lambda x, w, **_: floor(workload)(x, w)()))
    predicted, least = seconds(found), seconds(bare)
    return {
        "step": workload.id,
        "launches": len(found.launches),
        "kernels": [name_of(launch.kernel) for launch in found.launches],
        "aten": [call.name for call in found.aten],
        "unavoidable": found.unavoidable,
        "device": device,
        "of_unavoidable": device / found.unavoidable,
        "cache": cache,
        "flops": sum(each.flops for each in (*uses, *found.aten)),
        "predicted": predicted,
        "floor": least,
        "ratio": predicted / least,
    }


def seconds(found):
    """What the model predicts for a trace."""
    ours = (_longest(u.device, u.cache, u.flops, u.rate, u.programs) for u in map(use, found.launches))
    return sum(ours) + sum(_longest(c.bytes, c.bytes, c.flops, c.rate) for c in found.aten)


def _longest(device, cache, flops, rate, programs=PROCESSORS):
    busy = min(1, programs / PROCESSORS)
    return max(device / MEMORY, cache / CACHE / busy, flops / FLOPS[rate] / busy) + LAUNCH


def text(rows):
    """The table of predictions."""
    table = [HEAD, *map(_cells, rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(HEAD))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in table]
    return "\n".join([*lines, "", LEGEND])


def _cells(row):
    counts = row["step"], str(row["launches"]), str(len(row["aten"]))
    moved = _megabytes(row["unavoidable"]), _megabytes(row["device"]), f"{row['of_unavoidable']:.2f}"
    times = duration(row["predicted"]), duration(row["floor"]), f"{row['ratio']:.2f}"
    return *counts, *moved, _megabytes(row["cache"]), f"{row['flops'] / 1e9:.2f}", *times


def _megabytes(number):
    return f"{number / 1e6:.1f} MB"
