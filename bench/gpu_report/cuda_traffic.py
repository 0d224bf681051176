"""What a launch of a kernel of csrc/cuda reads and writes: one short description a kernel.

A description takes the launch's grid, the arguments of the operator's call, and what follows from them (``a.grid``,
``a.P`` patches of ``a.G`` groups, ``a.K`` neurons, ``a.N`` inputs, ``a.R`` ranks, ``a.stored`` and ``a.wide``: bytes of
a number as it is stored and as it is computed with). It returns {tensor: bytes that all blocks together read}, or
(read, written); under "flops" and "rate" the same as in triton_traffic.py; and under "launches" the number of launches,
where it is not one (CUB's are not recorded). Tensors are the call's arguments by name, or scratch memory between its
launches. Where the data decides, all neurons are taken to have won as many patches.
"""

import math
from types import SimpleNamespace

import torch

from .triton_recording import AtenCall, address, size
from .triton_traffic import Use
from .triton_traffic import use as of_aten

PIECE = 256  # accumulate.cuh: entries of a list that are added in one go
GROUPS = 1024  # rows.cuh: most groups of rows
DIGIT = 8  # bits that a pass of CUB's sort takes
WALKED, MULTIPLIED, SEARCHED = (
    64,
    128,
    64,
)  # neurons of a tile in tile.cuh and products.cuh, patches in nearest_patch.cuh
CHUNK, RING = 64, 56 << 10  # products.cuh: entries of a patch at once, bytes on chip that hold no patches
BLOCK, PASS = 16, 64  # residual.cu: neurons of a block, patches of a chunk


def uses(order):
    """The Use of every entry of cuda_recording.trace; scratch memory is as large as what is written there."""
    traffic, sizes = [use(work) for work in order], {}
    for each in traffic:
        for at, once, _, written in each.tensors:
            if once is None:
                sizes[at] = max(sizes.get(at, 0), written)
    for each in traffic:
        each.tensors = [(at, sizes[at] if once is None else once, *moved) for at, once, *moved in each.tensors]
    return traffic


def use(work):
    """Of one entry, where the size of scratch memory is None; KeyError names a kernel without a description."""
    if isinstance(work, AtenCall):
        return of_aten(work)
    a = arguments(work)
    described, tensors = TRAFFIC[work.kernel](a), []
    flops, rate = described.pop("flops", 0), described.pop("rate", a.rate)
    launches = described.pop("launches", 1)
    for name, moved in described.items():
        read, written = moved if isinstance(moved, tuple) else (moved, 0)
        tensor = getattr(work.call, name, None)
        if isinstance(tensor, torch.Tensor):
            tensors.append((address(tensor), size(tensor), read, written))
        else:
            tensors.append(((id(work.call), name), None, read, written))
    return Use(tensors, flops, rate, math.prod(work.grid), launches)


def arguments(launch):
    """What descriptions take."""
    call = launch.call
    a = SimpleNamespace(**vars(call), **{name: getattr(launch, name) for name in ("grid", "shared", "instance")})
    like = next(t for t in map(vars(call).get, ("x", "y", "weight", "u", "gradient")) if t is not None)
    a.stored, a.wide = like.element_size(), max(like.element_size(), 4)
    a.rate = "fp64" if a.wide == 8 else "fp32"
    a.shares = (*launch.before, 1, 1)[1]  # of the launch before
    a.blocks = (*launch.before, 1)[0]
    a.G, kernel = getattr(call, "groups", 1), ()
    if (weight := vars(call).get("weight")) is not None:
        a.K, a.N, kernel = len(weight), weight[0].numel(), weight.shape[2:]
    elif hasattr(call, "neurons"):
        a.K, a.N, kernel = call.neurons, like.shape[1] // a.G * math.prod(call.kernel), call.kernel
    if hasattr(call, "stride"):
        a.P = a.G * len(like) * _positions(like, kernel, call)
        a.centred = getattr(call, "patches", "raw") != "raw" or getattr(call, "offset", None) is not None
    a.R = _ranks(call)
    return a


def _positions(x, kernel, call):
    """The patches of an image."""
    if x.dim() == 2:
        return 1
    along = zip(x.shape[2:], kernel, call.stride, call.padding, call.dilation, strict=True)
    return math.prod((n + 2 * pad - apart * (k - 1) - 1) // step + 1 for n, k, step, pad, apart in along)


def _ranks(call):
    if (targets := getattr(call, "targets", None)) is not None and targets.dim() == 2:
        return targets.shape[1]
    return 1 if getattr(call, "labels", None) is not None else getattr(call, "k", 1)


def _pieces(a):
    """Pieces of all lists that were cut; 0: none was."""
    each = -(-a.P * a.R // a.K)
    return a.K * -(-each // PIECE) if each > PIECE else 0


def _numbers(a):
    """Bytes of the weights as they are computed with."""
    return a.wide * a.K * a.N


def _patches(a, times=1):
    """All entries of all patches, ``times`` over."""
    return times * a.P * a.N * a.stored


def _moments(a):
    """Largest and sum first, then squares: two passes over patches, and over the rows of a competition."""
    cosine = getattr(a, "cosine", False)
    traffic = {"x": _patches(a, 2 * (a.centred or cosine)), "offset": (0, a.wide * a.P), "scale": (0, a.wide * a.P)}
    if getattr(a, "weight", None) is not None:
        traffic |= {"weight": 2 * a.stored * a.K * a.N, "of_rows": (0, a.wide * a.K)}
    return traffic


def _results(a):
    """Winners and responses, or what each of the blocks lists that share a tile's neurons."""
    if a.grid[1] > 1:
        return {"lists": (0, a.grid[1] * a.P * a.R * (4 + a.wide))}
    return {"winners": (0, 4 * a.P * a.R), "responses": (0, a.wide * a.P * a.R)}


def _powers(a):
    return {"weight": a.stored * a.K * a.N, "powers": (0, _numbers(a))}


def _compete(a):
    """A tile of patches is read again for every tile of neurons, and every neuron again for every tile of patches."""
    weight, neurons = "powers" if a.p != 2 else "weight", a.K // a.G
    traffic = {"x": _patches(a, -(-neurons // WALKED)), weight: a.grid[0] * _numbers(a) // a.G}
    return traffic | _results(a) | {"flops": 2 * a.P * neurons * a.N}


def _few(a):
    """A warp reads the neurons of its patches, which are of one group, once for all of them."""
    weight = "powers" if a.p != 2 else "weight"
    traffic = {"x": _patches(a), weight: a.P // 32 * _numbers(a) // a.G}
    return traffic | _results(a) | {"flops": 2 * a.P * a.K // a.G * a.N}


def _multiply(a, weight):
    """As _compete, on 16-bit weights; patches that fit on chip are read once for all neurons of a block."""
    held = a.shared >= RING + -(-a.N // CHUNK) * CHUNK * 2 * 64
    times = a.grid[1] if held else -(-a.K // MULTIPLIED)
    traffic = {"x": _patches(a, times), weight: a.grid[0] * 2 * a.K * a.N}
    return traffic | {"flops": 2 * a.P * a.K * a.N, "rate": "half"}


def _merge(a):
    lists = a.shares * a.P * a.R * (4 + a.wide)
    return {"lists": lists, "winners": (0, 4 * a.P * a.R), "responses": (0, a.wide * a.P * a.R)}


def _round(a):
    return {"x": _patches(a), "weight": 4 * a.K * a.N, "rounded": (0, 2 * a.K * a.N), "lengths": (0, 8 * (a.P + a.K))}


def _candidates(a):
    """Bytes of those that a block lists, of all patches."""
    return 8 * a.P * max(16, 4 * a.R)


def _screen(a):
    traffic = _multiply(a, "rounded")
    return traffic | {"lists": (0, a.grid[1] * _candidates(a)), "lengths": 8 * (a.P + a.grid[0] * a.K)}


def _decide(a):
    """Every patch once; of its candidates those that may win, which are some 2 k (docs/speed.md, certified winners)."""
    traffic = {"x": _patches(a), "weight": 2 * a.R * a.P * a.N * a.stored, "lists": a.shares * _candidates(a)}
    traffic |= {"lengths": 8 * a.P, "winners": (0, 4 * a.P * a.R), "responses": (0, 4 * a.P * a.R)}
    return traffic | {"flops": 4 * a.R * a.P * a.N}


def _lengths(a):
    return {"x": _patches(a), "weight": a.stored * a.K * a.N, "lengths": (0, 4 * a.wide * a.P)}


def _search(a):
    tiles = a.grid[0] // a.G  # of the neurons of a group
    traffic = {"x": _patches(a, tiles), "weight": -(-a.P // SEARCHED) * a.stored * a.K // a.G * a.N}
    traffic |= {"lengths": tiles * 4 * a.wide * a.P, "nearest": (0, a.grid[1] * 2 * a.K * (4 + a.wide))}
    return traffic | {"flops": 2 * a.P * a.K // a.G * a.N}


def _nearest(a):
    """Two candidates a neuron."""
    entries = 2 * a.K * a.N
    traffic = {"nearest": a.shares * 2 * a.K * (4 + a.wide), "x": entries * a.stored, "weight": entries * a.stored}
    return traffic | {"flops": 3 * entries}


def _activate(a):
    """In place, or into another tensor; softmax reads the responses once more, for their maximum."""
    once, neurons = size(a.u), a.u.numel() // max(a.images * a.layout[0], 1)
    reads = 2 * once if a.activation == "softmax" else once
    columns = {"columns": (0, (a.diagonal + a.shift) * a.wide * a.grid[0] * neurons)}
    return columns | ({"u": (reads, once)} if a.scaled is None else {"u": reads, "scaled": (0, once)})


def _add(a):
    """A row for each block of the launch before."""
    row = 32 * a.grid[0] * a.wide
    return {"columns": a.blocks * row, "sums": (0, row)}


def _finish(a):
    """The triangle: half of the Gram matrix for every tile of inputs, for a tile of neurons the weights down to it."""
    side, moving = int(a.instance.rstrip("> ").split(",")[-1]), a.lr is not None
    on_chip = a.operator == "_on_chip"  # whose sums come from a launch before
    triangular = a.decay == "triangular" if on_chip else a.gram is not None
    diagonal = a.decay == "diagonal" if on_chip else a.diagonal is not None
    own = a.K * a.N * a.stored * (moving or diagonal)
    traffic = {"sums" if on_chip else "gradient": _numbers(a), "weight": own, "sound": (0, 4 * a.grid[0])}
    traffic["moved"] = (0, a.K * a.N * (a.stored if moving else a.wide))
    if not triangular:
        return traffic
    rows = sum(min(last, a.K) for last in range(side, a.K + side, side))
    traffic |= {"gram": a.wide * a.K * a.K // 2 * -(-a.N // side), "weight": own + a.stored * a.N * rows}
    return traffic | {"flops": a.K * (a.K + side) * a.N}


def _records(a):
    """Responses in blocks of neurons and chunks of patches, each with its Gram matrix."""
    return a.wide * -(-a.P // PASS) * -(-a.K // BLOCK) * BLOCK * (PASS + BLOCK)


def _pack(a):
    return {"y": size(a.y), "records": (0, _records(a)), "flops": 2 * BLOCK * a.P * a.K}


def _residual(a):
    """Each block of threads reads all responses; chunks of patches pass over the weights again."""
    chunks = -(-a.P // PASS)
    again = (chunks - 1) * _numbers(a)
    traffic = {"x": _patches(a), "records": a.grid[0] * _records(a), "weight": chunks * a.K * a.N * a.stored}
    traffic |= {"partial": (again, again), "moved": (0, a.stored * a.K * a.N), "sound": (0, 4 * a.grid[0])}
    return traffic | {"flops": 4 * a.P * a.K * a.N + 2 * chunks * BLOCK * a.K * a.N}


def _on_chip(a):
    """A run of patches a block, which writes sums of its own."""
    gram = {"triangular": a.K * a.K, "diagonal": a.K}.get(a.decay, 0)
    traffic = {"x": _patches(a), "weight": a.grid[0] * a.stored * a.K * a.N}
    traffic["columns"] = (0, a.grid[0] * a.wide * (a.K * a.N + gram))
    return traffic | {"flops": 2 * a.P * (2 * a.K * a.N + (gram if a.decay == "triangular" else 0))}


def _name(a):
    """Of raw patches that are not blank, the first entries."""
    targets = next(t for t in (getattr(a, "targets", None), getattr(a, "labels", None)) if t is not None)
    seen = a.wide if a.centred else min(a.N, 128) * a.stored
    return {"targets": size(targets), "labels": size(targets), "keys": (0, 4 * a.P * a.R), "x": a.P * seen}


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
    traffic = {"x": entries * a.N * a.stored, "order": a.grid[1] * 4 * entries, "flops": 2 * entries * a.N}
    traffic["partial" if pieces else "total"] = (0, a.wide * a.N * (pieces or a.K))
    return traffic | {"offset": a.centred * a.grid[1] * a.wide * entries}


def _combine(a):
    pieces = _pieces(a)
    sums = {"partial": a.wide * a.N * pieces, "total": (0, a.wide * a.N * a.K)} if pieces else {}
    return sums | {"starts": 4 * a.K, "decay": (0, a.wide * a.K)}


def _given(a):
    """Which tensor holds the sums of a step, and how many bytes it has."""
    return "sum" if hasattr(a, "sum") else "total"


def _survey(a):
    """Lists that were cut in pieces are combined by the survey."""
    sums, whole = _given(a), a.wide * a.K * a.N
    pieces = _pieces(a) if hasattr(a, "P") else 0
    traffic = {"partial": a.wide * a.N * pieces, sums: (0, whole)} if pieces else {sums: whole}
    passes = 1 + (getattr(a, "rate_power", 0) != 0)
    return traffic | {
        "weight": passes * size(a.weight),
        "rows": (0, 4 * a.wide * a.K),
        "findings": (0, 4 * a.wide * a.K),
    }


def _step(a):
    """Every block reads the results of all groups of the survey."""
    passes = 2 if a.normalise == "row_l2" else 1
    traffic = {_given(a): passes * a.wide * a.K * a.N, "weight": (passes * size(a.weight), size(a.weight))}
    return traffic | {"rows": 4 * a.wide * a.K, "findings": a.grid[0] * 4 * a.wide * min(a.K, GROUPS)}


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
    "activate": _activate,
    "activate.soften": _activate,
    "apply.commit": _commit,
    "apply.step": _step,
    "apply.survey": _survey,
    "compete": _compete,
    "compete.few": _few,
    "compete.merge": _merge,
    "compete.powers": _powers,
    "finish": _finish,
    "kwinners.rows": _kwinners,
    "kwinners.strips": _strips,
    "kwinners.tile": _kwinners,
    "nearest_patch.lengths": _lengths,
    "nearest_patch.nearest": _nearest,
    "nearest_patch.search": _search,
    "mma": lambda a: _multiply(a, "weight") | _results(a),
    "mma.merge": _merge,
    "mma.pad": lambda a: {"weight": 2 * a.K * a.N, "rounded": (0, 2 * a.K * a.N)},
    "moments": _moments,
    "on_chip": _on_chip,
    "residual": _residual,
    "residual.pack": _pack,
    "dense_update.add": _add,
    "screen": _screen,
    "screen.decide": _decide,
    "screen.round": _round,
    "sort.few": _sort_few,
    "sort.number": _sort_many,
    "sort.starts": _sort_starts,
}
