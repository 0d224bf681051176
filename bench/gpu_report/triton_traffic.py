"""What a launch of a Triton kernel reads and writes: one short description a kernel, the rest from its arguments.

A description takes the launch's arguments and settings by name (``a.x``, ``a.BLOCK_P``, ``a.grid``) and returns
{argument: bytes that all programs together read}, or (read, written), for arguments for which that is not the size
of the tensor once; and under "flops" the additions and multiplications, under "rate" how fast they go (roofline.FLOPS).
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from hebbkern.backends.triton.launch import name_of

from .triton_recording import AtenCall, address, size

L2 = 50e6  # bytes of an H100


@dataclass
class Use:
    """Of one launch: [(address, size, bytes read, bytes written)] of tensors, flops, how fast, how many programs."""

    tensors: list
    flops: int
    rate: str
    programs: int | None = None  # None: enough of them
    launches: int = 1

    @property
    def cache(self):
        """Bytes between the L2 cache and the multiprocessors."""
        return sum(read + written for _, _, read, written in self.tensors)


def use(work):
    """The Use of one entry of Trace.order."""
    if isinstance(work, AtenCall):
        return Use([(address(tensor), size(tensor), size(tensor), 0) for tensor in work.tensors], work.flops, work.rate)
    named = dict(zip(work.kernel.arg_names, work.arguments, strict=False)) | work.settings
    described = TRAFFIC.get(name_of(work.kernel), lambda a: {})(SimpleNamespace(**named, grid=work.grid))
    tensors = []
    for name, tensor in named.items():
        if isinstance(tensor, torch.Tensor):
            moved = described.get(name, size(tensor))
            tensors.append((address(tensor), size(tensor), *(moved if isinstance(moved, tuple) else (moved, 0))))
    return Use(tensors, described.get("flops", 0), described.get("rate", "fp32"), math.prod(work.grid))


def device_bytes(uses):
    """The bytes of device memory that each Use moves: those that the L2 cache does not spare.

    A tensor that fits into it is moved once a launch; if all tensors of all uses fit together, once in all of them.
    """
    sizes = {at: once for each in uses for at, once, *_ in each.tensors}
    all_fit, loaded, moved = sum(sizes.values()) <= L2, set(), []
    for each in uses:
        total = 0
        for at, once, read, written in each.tensors:
            fits, known = once <= L2, all_fit and at in loaded
            total += 0 if known else min(read, once) if fits else read
            total += min(written, once) if fits else written
            loaded.add(at)
        moved.append(total)
    return moved


def _rate(tensor, precision):
    """How fast products of ``tensor``'s dtype are computed."""
    if tensor.dtype == torch.float32:
        return "fp32" if precision == "ieee" else precision
    return "fp64" if tensor.dtype == torch.float64 else "half"


def _patches(a, times=1):
    """All entries of all patches, ``times`` over."""
    return times * a.P * a.N * a.x.element_size()


def _moments(a):
    """Sums and largest, then squares, then what rounding takes; of patches the first two only for offset and scale."""
    rounding = a.rounded is not None
    of_rows = a.total is not None or a.inverse is not None or rounding
    traffic = {"x": _patches(a, 2 * (a.offset is not None or a.scale is not None) + rounding)}
    return traffic | ({} if a.weight is None else {"weight": (2 + rounding) * of_rows * size(a.weight)})


def _compete(a):
    """A tile of patches is read again for every tile of neurons, and every neuron again for every tile of patches."""
    tiles = {"x": _patches(a, -(-a.K // a.BLOCK_K)), "weight": a.grid[0] * size(a.weight)}
    return tiles | {"flops": 2 * a.P * a.K * a.N, "rate": _rate(a.weight, a.PRECISION)}


def _screen(a):
    """As _compete, on rounded weights."""
    tiles = {"x": _patches(a, -(-a.K // a.BLOCK_K)), "rounded": a.grid[0] * size(a.rounded)}
    return tiles | {"flops": 2 * a.P * a.K * a.N, "rate": "half"}


def _decide(a):
    """Every patch once; of its candidates those that may win, which are some 2 k (docs/speed.md, certified winners)."""
    rows = {"weight": 2 * a.k * a.P * a.N * a.weight.element_size()}
    return {"x": _patches(a)} | rows | {"flops": 4 * a.k * a.P * a.N}


def _lengths(a):
    """Centring takes two passes before the lengths'."""
    return {"x": _patches(a, 1 if a.offset is None else 3)}


def _search(a):
    tiles = {"x": _patches(a, a.grid[0]), "weight": -(-a.P // a.BLOCK_P) * size(a.weight)}
    return tiles | {"flops": 2 * a.P * a.K * a.N, "rate": _rate(a.x, a.PRECISION)}


def _nearest(a):
    """Two candidates a neuron."""
    numbers = dict.fromkeys(("offset", "scale", "length"), 2 * a.K * a.length.element_size())
    return numbers | {"x": 2 * a.K * a.N * a.x.element_size(), "weight": 2 * size(a.weight), "flops": 6 * a.K * a.N}


def _survey(a):
    return {"weight": (1 + (a.POWER != 0)) * size(a.weight)}


def _step(a):
    """Every program reads the results of all programs of the survey."""
    passes = {"row_max": 2, "row_l2": 3}.get(a.NORMALISE, 1)
    traffic = {"weight": ((passes + (a.POWER != 0)) * size(a.weight), size(a.weight)), "total": passes * size(a.total)}
    tables = {name: getattr(a, name) for name in ("sound", "largest", "top", "steepest")}
    return traffic | {name: a.grid[0] * size(table) for name, table in tables.items() if table is not None}


def _commit(a):
    return {"sound": a.grid[0] * a.grid[1] * size(a.sound), "weight": (0, size(a.weight))}


def _long_rows(a):
    """Once for each digit of the k-th highest key, and once to write."""
    return {"y": (a.BITS // 8 + 1) * size(a.y)}


def _activate(a):
    return {"u": (2 if a.ACTIVATION == "softmax" else 1) * size(a.u)}


def _finish(a):
    """The triangle: half of the Gram matrix for every tile of inputs, for a tile of neurons the weights down to it."""
    own = size(a.weight) * (a.moved is not None)
    if a.gram is None:
        return {"weight": own + size(a.weight) * (a.diagonal is not None)}
    triangle = {"gram": size(a.gram) // 2 * -(-a.N // a.BLOCK_N)}
    rows = sum(min(last, a.K) for last in range(a.BLOCK_K, a.K + a.BLOCK_K, a.BLOCK_K))
    triangle["weight"] = own + size(a.weight) // a.K * rows
    return triangle | {"flops": a.K * (a.K + a.BLOCK_K) * a.N, "rate": _rate(a.gradient, a.PRECISION)}


def _residual(a):
    """Each program reads all responses; chunks of patches pass over the weights again."""
    chunks = -(-a.P // a.BLOCK_P)
    traffic = {
        "x": _patches(a),
        "y": a.grid[0] * size(a.y),
        "weight": (chunks + (a.moved is not None)) * size(a.weight),
    }
    if a.partial is not None:
        traffic["partial"] = (chunks - 1) * size(a.partial), chunks * size(a.partial)
    gram = a.grid[0] * a.BLOCK_K * a.P * a.K
    flops = 2 * (gram + 2 * a.P * a.K * a.N + chunks * a.BLOCK_K * a.K * a.N)
    return traffic | {"flops": flops, "rate": _rate(a.y, a.PRECISION)}


def _gather(a):
    products = 2 * a.K * a.N + (a.K * a.K if a.DECAY == "triangular" else 0)
    traffic = {"x": _patches(a), "weight": a.grid[0] * size(a.weight)}
    return traffic | {"flops": 2 * a.P * products, "rate": _rate(a.runs, a.PRECISION)}


def _keys(a):
    """Of raw patches that are not blank, the first entries."""
    return {"x": (a.scale is None) * a.P * min(a.N, a.BLOCK_N) * a.x.element_size()}


def _targets(a):
    """Every entry of every list reads its patch, and every tile of inputs the lists themselves."""
    return {"x": a.E * a.N * a.x.element_size(), "order": a.grid[1] * size(a.order), "flops": 2 * a.E * a.N}


TRAFFIC = {
    "accumulate.gather_kernel": _targets,
    "accumulate.keys_kernel": _keys,
    "apply.commit_kernel": _commit,
    "apply.step_kernel": _step,
    "apply.survey_kernel": _survey,
    "compete.compete_kernel": _compete,
    "finish.finish_kernel": _finish,
    "kwinners.kwinners_long_kernel": _long_rows,
    "nearest_patch.lengths_kernel": _lengths,
    "nearest_patch.nearest_kernel": _nearest,
    "nearest_patch.search_kernel": _search,
    "moments.moments_kernel": _moments,
    "on_chip.gather_kernel": _gather,
    "residual.residual_kernel": _residual,
    "responses.activate_kernel": _activate,
    "screen.decide_kernel": _decide,
    "screen.screen_kernel": _screen,
}
