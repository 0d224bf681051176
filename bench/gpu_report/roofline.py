"""How fast an H100 could run a step: bytes and flops of its launches against what the chip can move and compute.

A model, not a measurement. Of every launch it knows what all its programs together read and write (traffic.py; by
default each tensor argument once): the traffic between the L2 cache and the multiprocessors. Of that, device memory
sees each tensor once a launch if the tensor fits into the L2 cache, otherwise every read of it; where all tensors of a
step fit together, each once in the whole step. A launch takes the longest of its three times (device memory, L2,
arithmetic), and LAUNCH more; with fewer programs than multiprocessors the others idle. ATen's operators read and write
each of their tensors once, at full speed.
"""

from dataclasses import replace

from hebbkern.backends.triton.launch import PROCESSORS, name_of
from hebbkern.benchmark.report import aligned, duration

from . import cuda_traffic
from .triton_recording import AtenCall, trace
from .triton_traffic import device_bytes, use
from .workloads import bare_forward

# NVIDIA H100 SXM5 by its data sheet, dense rates; the rate of the L2 cache is what others have measured.
MEMORY = 3.35e12  # bytes a second of device memory
CACHE = 5.5e12  # bytes a second between L2 and the multiprocessors
FLOPS = {"fp64": 67e12, "fp32": 67e12, "tf32": 495e12, "tf32x3": 495e12 / 3, "half": 990e12}
LAUNCH = 2.5e-6  # seconds from the end of one kernel to the start of the next

HEAD = ("step", "launches", "ATen's", "unavoidable", "moved", "of unavoidable", "L2", "Gflop", "predicted", "forward")
HEAD += ("predicted / forward",)
BESIDE = ("step", "Triton", "launches", "CUDA", "launches", "least", "forward", "Triton by stage", "CUDA by stage")
STAGES = {  # of a step, by the modules that hold their kernels
    "competition": ("compete", "screen", "mma", "walk"),
    "search": ("nearest_patch",),
    "lists": ("sort", "accumulate"),
    "dense": ("responses", "activate", "residual", "on_chip", "finish", "dense_update"),
}
LEGEND = (
    "Predictions for an H100 SXM from bytes and flops, not measurements. unavoidable: inputs and results once; moved: "
    "device memory, all launches; L2: between the L2 cache and the multiprocessors; forward: the bare forward pass "
    "(for dense rules with its weight gradient, for kwinners topk + scatter) under the same model."
)


def row(workload, traced, cuda=None):
    """One row of the prediction; ``traced`` is the Trace of ``workload``, ``cuda`` that of cuda_recording."""
    uses = [use(work) for work in traced.order]
    bare = trace(replace(workload, run=lambda x, w, **_: bare_forward(workload)(x, w)()))
    predicted, forward = seconds(uses), seconds([use(work) for work in bare.order])
    device = sum(device_bytes(uses))
    return {
        "step": workload.id,
        "launches": len(traced.launches),
        "kernels": [name_of(launch.kernel) for launch in traced.launches],
        "aten": [call.name for call in traced.aten],
        "unavoidable": traced.unavoidable,
        "device": device,
        "of_unavoidable": device / traced.unavoidable,
        "cache": sum(each.cache for each in uses),
        "flops": sum(each.flops for each in uses),
        "predicted": predicted,
        "forward": forward,
        "ratio": predicted / forward,
        "least": traced.unavoidable / MEMORY,
        "stages": _stages([name_of(work.kernel) for work in traced.launches], traced.order, uses),
        "cuda": None if cuda is None else _of_cuda(cuda),
    }


def _of_cuda(order):
    uses = cuda_traffic.uses(order)
    launches = [work for work in order if not isinstance(work, AtenCall)]
    aten = [work.name for work in order if isinstance(work, AtenCall)]
    return {
        "launches": sum(each.launches for each in uses) - len(aten),
        "kernels": [launch.kernel for launch in launches],
        "aten": aten,
        "device": sum(device_bytes(uses)),
        "cache": sum(each.cache for each in uses),
        "flops": sum(each.flops for each in uses),
        "predicted": seconds(uses),
        "stages": _stages([launch.kernel for launch in launches], order, uses),
    }


def _stages(names, order, uses):
    """{stage: seconds} of a step."""
    stages, names = {}, iter(names)
    for work, time in zip(order, each_second(uses), strict=True):
        module = "ATen" if isinstance(work, AtenCall) else next(names).partition(".")[0]
        stage = next((stage for stage, modules in STAGES.items() if module in modules), module)
        stages[stage] = stages.get(stage, 0) + time
    return stages


def seconds(uses):
    """The predicted time of launches one after the other."""
    return sum(each_second(uses))


def each_second(uses):
    """The predicted time of each launch."""
    for each, device in zip(uses, device_bytes(uses), strict=True):
        busy = min(1, (each.programs or PROCESSORS) / PROCESSORS)
        longest = max(device / MEMORY, each.cache / CACHE / busy, each.flops / FLOPS[each.rate] / busy)
        yield longest + LAUNCH * each.launches


def text(rows):
    """The table of predictions."""
    return "\n".join([*aligned([HEAD, *map(_cells, rows)]), "", LEGEND])


def beside(rows):
    """The table of Triton's kernels beside those of csrc/cuda."""
    legend = "least: unavoidable bytes at the rate of device memory; forward: as above. Predictions of the same model."
    return "\n".join([*aligned([BESIDE, *map(_beside, rows)]), "", legend])


def _beside(row):
    cuda = row["cuda"]
    counts = duration(row["predicted"]), str(row["launches"] + len(row["aten"]))
    compiled = (duration(cuda["predicted"]), str(cuda["launches"] + len(cuda["aten"]))) if cuda else ("-", "-")
    stages = _by_stage(row["stages"]), _by_stage(cuda["stages"]) if cuda else "-"
    return row["step"], *counts, *compiled, f"{row['least'] * 1e6:.1f} µs", duration(row["forward"]), *stages


def _by_stage(stages):
    return ", ".join(f"{stage} {time * 1e6:.0f}" for stage, time in stages.items())


def _cells(row):
    counts = row["step"], str(row["launches"]), str(len(row["aten"]))
    moved = _megabytes(row["unavoidable"]), _megabytes(row["device"]), f"{row['of_unavoidable']:.2f}"
    times = duration(row["predicted"]), duration(row["forward"]), f"{row['ratio']:.2f}"
    return *counts, *moved, _megabytes(row["cache"]), f"{row['flops'] / 1e9:.2f}", *times


def _megabytes(number):
    return f"{number / 1e6:.1f} MB"
