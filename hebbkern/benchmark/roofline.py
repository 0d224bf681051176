"""How fast an H100 could run a step: bytes and flops of its launches against what the chip can move and compute.

A model, not a measurement. Of every launch it knows what all its programs together read and write (traffic.py; by
default each tensor argument once): the traffic between the L2 cache and the multiprocessors. Of that, device memory
sees each tensor once a launch if the tensor fits into the L2 cache, otherwise every read of it; where all tensors of a
step fit together, each once in the whole step. A launch takes the longest of its three times (device memory, L2,
arithmetic), and LAUNCH more; with fewer programs than multiprocessors the others idle. ATen's operators read and write
each of their tensors once, at full speed.
"""

from dataclasses import replace

from hebbkern.benchmark.recording import trace
from hebbkern.benchmark.report import aligned, duration
from hebbkern.benchmark.traffic import device_bytes, use
from hebbkern.benchmark.workloads import floor
from hebbkern.triton.launch import PROCESSORS, name_of

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
    uses = [use(work) for work in found.order]
    bare = trace(replace(workload, run=lambda x, w, **_: floor(workload)(x, w)()))
    predicted, least = seconds(uses), seconds([use(work) for work in bare.order])
    device = sum(device_bytes(uses))
    return {
        "step": workload.id,
        "launches": len(found.launches),
        "kernels": [name_of(launch.kernel) for launch in found.launches],
        "aten": [call.name for call in found.aten],
        "unavoidable": found.unavoidable,
        "device": device,
        "of_unavoidable": device / found.unavoidable,
        "cache": sum(each.cache for each in uses),
        "flops": sum(each.flops for each in uses),
        "predicted": predicted,
        "floor": least,
        "ratio": predicted / least,
    }


def seconds(uses):
    """What the model predicts for launches one after the other."""
    total = 0
    for each, device in zip(uses, device_bytes(uses), strict=True):
        busy = min(1, (each.programs or PROCESSORS) / PROCESSORS)
        total += max(device / MEMORY, each.cache / CACHE / busy, each.flops / FLOPS[each.rate] / busy) + LAUNCH
    return total


def text(rows):
    """The table of predictions."""
    return "\n".join([*aligned([HEAD, *map(_cells, rows)]), "", LEGEND])


def _cells(row):
    counts = row["step"], str(row["launches"]), str(len(row["aten"]))
    moved = _megabytes(row["unavoidable"]), _megabytes(row["device"]), f"{row['of_unavoidable']:.2f}"
    times = duration(row["predicted"]), duration(row["floor"]), f"{row['ratio']:.2f}"
    return *counts, *moved, _megabytes(row["cache"]), f"{row['flops'] / 1e9:.2f}", *times


def _megabytes(number):
    return f"{number / 1e6:.1f} MB"
