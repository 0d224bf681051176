"""What a launch of a kernel of csrc/cuda reads and writes, beside traffic.py: one short description a kernel.

Of a launch its grid is known, the instance of its kernel, and the operator's call that it belongs to. A description
takes these (``a.grid``, ``a.P`` patches, ``a.K`` neurons, ``a.N`` inputs, ``a.R`` ranks, ``a.stored`` and ``a.wide``:
bytes of a number as it is stored and as it is computed with, and the call's arguments) and returns {tensor: bytes that
all blocks together read}, or (read, written); under "flops" and "rate" what traffic.py has there, and under "launches"
how many there are in truth (those of CUB are not noted down). Tensors are the call's arguments, or those of SCRATCH.
Where the data decides, neurons are taught by as many patches as their neighbours.
"""

import math
from types import SimpleNamespace

import torch

from hebbkern.benchmark.recording import AtenCall, place, size
from hebbkern.benchmark.traffic import Use
from hebbkern.benchmark.traffic import use as of_aten

PIECE = 256  # accumulate.cuh
GROUPS = 1024  # rows.cuh, most_groups
DIGIT = 8  # bits that a pass of CUB's sort takes


def use(work):
    """The Use of one entry of cuda_recording.trace; KeyError names a kernel without a description."""
    if isinstance(work, AtenCall):
        return of_aten(work)
    a = arguments(work)
    described, tensors = TRAFFIC[work.kernel](a), []
    flops, rate = described.pop("flops", 0), described.pop("rate", "fp32")
    launches = described.pop("launches", 1)
    for name, moved in described.items():
        read, written = moved if isinstance(moved, tuple) else (moved, 0)
        tensor = getattr(work.call, name, None)
        if isinstance(tensor, torch.Tensor):
            tensors.append((place(tensor), size(tensor), read, written))
        elif name in SCRATCH:
            tensors.append(((id(work.call), name), SCRATCH[name](a), read, written))
    return Use(tensors, flops, rate, math.prod(work.grid), launches)


def arguments(launch):
    """What descriptions take."""
    call, grid = launch.call, launch.grid
    x = getattr(call, "x", None)
    x = next(t for t in (x, getattr(call, "y", None), getattr(call, "weight", None)) if t is not None)
    wide = max(x.element_size(), 4)
    rate = {8: "fp64", 4: "fp32", 2: "half"}[x.element_size()]
    found = SimpleNamespace(**vars(call))
    found.grid, found.instance, found.stored, found.wide, found.rate = (
        grid,
        launch.instance,
        x.element_size(),
        wide,
        rate,
    )
    weight = getattr(call, "weight", None)
    if weight is not None:
        found.K, found.N, kernel = len(weight), weight[0].numel(), weight.shape[2:]
    elif hasattr(call, "neurons"):
        found.K, kernel = call.neurons, call.kernel
        found.N = x.shape[1] * math.prod(kernel)
    if hasattr(call, "stride"):
        found.P = len(x) * _places(x, kernel, call)
        found.centred = call.patches != "raw"
    found.R = _ranks(call)
    return found


def _places(x, kernel, call):
    """Patches of an image."""
    if x.dim() == 2:
        return 1
    across = zip(x.shape[2:], kernel, call.stride, call.padding, call.dilation, strict=True)
    return math.prod(
        (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, padding, dilation in across
    )


def _ranks(call):
    if hasattr(call, "taught"):
        return call.taught.shape[1]
    return 1 if getattr(call, "labels", None) is not None else getattr(call, "k", 1)


def _pieces(a):
    """Pieces of all lists that were cut; 0: none was."""
    each = -(-a.P * a.R // a.K)
    return a.K * -(-each // PIECE) if each > PIECE else 0


SCRATCH = {
    "winners": lambda a: 4 * a.P * a.R,
    "responses": lambda a: a.wide * a.P * a.R,
    "offset": lambda a: a.wide * a.P,
    "scale": lambda a: a.wide * a.P,
    "of_rows": lambda a: a.wide * a.K,
    "keys": lambda a: 4 * a.P * a.R,
    "sorted": lambda a: 4 * a.P * a.R,
    "order": lambda a: 4 * a.P * a.R,
    "starts": lambda a: 4 * (a.K + 3),
    "partial": lambda a: a.wide * a.N * _pieces(a),
    "total": lambda a: a.wide * a.K * a.N,
    "decay": lambda a: a.wide * a.K,
    "rows": lambda a: 4 * a.wide * a.K,
    "findings": lambda a: 4 * a.wide * min(a.K, GROUPS),
    "moved": lambda a: a.stored * a.K * a.N,
    "sound": lambda a: 4 * a.K,
    "out": lambda a: size(a.y),
}


def _patches(a, times=1):
    """All entries of all patches, ``times`` over."""
    return times * a.P * a.N * a.stored


def _moments(a):
    """Largest and sum first, then squares: two passes over patches, and over the rows of a competition."""
    cosine = getattr(a, "cosine", False)
    found = {"x": _patches(a, 2 * (a.centred or cosine)), "offset": (0, a.wide * a.P), "scale": (0, a.wide * a.P)}
    if getattr(a, "weight", None) is not None:
        found |= {"weight": 2 * a.stored * a.K * a.N, "of_rows": (0, a.wide * a.K)}
    return found


def _name(a):
    named = next(t for t in (getattr(a, "taught", None), getattr(a, "labels", None)) if t is not None)
    return {"taught": size(named), "labels": size(named), "keys": (0, 4 * a.P * a.R)}


def _sort_few(a):
    entries = 4 * a.P * a.R
    return {"keys": entries, "sorted": (0, entries), "order": (0, entries), "starts": (0, 4 * (a.K + 3))}


def _sort_many(a):
    """The entries' numbers; then CUB: keys counted, prefix sums, and of every digit a pass over keys and entries."""
    entries = 4 * a.P * a.R
    passes = -(-(a.K + 1).bit_length() // DIGIT)
    once = passes * entries
    return {"keys": once + entries, "sorted": (0, once), "order": (once, once + entries), "launches": 3 + passes}


def _sort_starts(a):
    return {"sorted": 2 * 4 * a.P * a.R, "starts": (0, 4 * (a.K + 3))}


def _gather(a):
    """Every entry of every list reads its patch; each tile of inputs the lists."""
    entries, pieces = a.P * a.R, _pieces(a)
    found = {"x": entries * a.N * a.stored, "order": a.grid[1] * 4 * entries, "flops": 2 * entries * a.N}
    found["partial" if pieces else "total"] = (0, a.wide * a.N * (pieces or a.K))
    return found | {"offset": a.centred * a.grid[1] * a.wide * entries, "rate": "fp64" if a.wide == 8 else "fp32"}


def _combine(a):
    pieces = _pieces(a)
    sums = {"partial": a.wide * a.N * pieces, "total": (0, a.wide * a.N * a.K)} if pieces else {}
    return sums | {"starts": 4 * a.K, "decay": (0, a.wide * a.K)}


def _given(a):
    """Which tensor holds the sums of a step, and how many bytes it has."""
    return "sum" if hasattr(a, "sum") else "total"


def _survey(a):
    """Lists that were cut are put together on the way."""
    sums, whole = _given(a), a.wide * a.K * a.N
    pieces = _pieces(a) if hasattr(a, "P") else 0
    found = {"partial": a.wide * a.N * pieces, sums: (0, whole)} if pieces else {sums: whole}
    passes = 1 + (getattr(a, "rate_power", 0) != 0)
    return found | {"weight": passes * size(a.weight), "rows": (0, 4 * a.wide * a.K), "findings": (0, 4 * a.wide * a.K)}


def _step(a):
    """Every block reads what all groups of the survey were found to hold."""
    passes = 2 if a.normalise == "row_l2" else 1
    found = {_given(a): passes * a.wide * a.K * a.N, "weight": (passes * size(a.weight), size(a.weight))}
    return found | {"rows": 4 * a.wide * a.K, "findings": a.grid[0] * 4 * a.wide * min(a.K, GROUPS)}


def _commit(a):
    return {"moved": size(a.weight), "weight": (0, size(a.weight)), "sound": a.grid[0] * 4}


def _kwinners(a):
    return {"y": size(a.y), "out": (0, size(a.y))}


def _strips(a):
    """Rows that no block can hold are read once for each digit of a key, and once to write."""
    held = a.instance.rstrip("> ").endswith("true")
    return {"y": size(a.y) if held else (a.stored + 1) * size(a.y), "out": (0, size(a.y))}


TRAFFIC = {
    "accumulate.combine": _combine,
    "accumulate.gather": _gather,
    "accumulate.name": _name,
    "apply.commit": _commit,
    "apply.step": _step,
    "apply.survey": _survey,
    "kwinners.rows": _kwinners,
    "kwinners.strips": _strips,
    "kwinners.tile": _kwinners,
    "moments": _moments,
    "sort.few": _sort_few,
    "sort.number": _sort_many,
    "sort.starts": _sort_starts,
}
