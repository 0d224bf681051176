"""The walk of a competition: tiles of patches, and every neuron's response to them, of which the strongest stay."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hebbkern.backends.triton.arithmetic import precision, product
from hebbkern.backends.triton.launch import block, power_of_2, processors
from hebbkern.backends.triton.lists import empty_lists, insert
from hebbkern.backends.triton.moments import Moments
from hebbkern.backends.triton.patches import PatchView, load_entries


class Tile(NamedTuple):
    """Patches, neurons and inputs that a program multiplies at a time, its warps, and stages of loads in flight."""

    patches: int
    neurons: int
    inputs: int
    warps: int
    stages: int
    registers: int | None = None  # the most that a thread may have

    @property
    def launch_options(self) -> dict[str, Any]:
        return {"warps": self.warps, "stages": self.stages, "registers": self.registers}


# The first of each list is the default.
# Half types: a step of 64 x 128 reads 192 rows for 8192 products an input: 43 products a word, where an H100's tensor
# cores need about 30 from L2. 3 stages of (64 + 128) x 64 x 2 bytes are 74 kB, so that two or three blocks share a
# multiprocessor, and one multiplies while another ranks. More patches read less, but one block fills a processor.
# Float32 on tensor cores (tf32x3) holds six tiles of halves and remainders: 64 x 32, two blocks of 4 warps.
# Without them ("ieee") a thread multiplies 16 pairs from registers: 64 x 64 and 8 warps hide the loads.
TILES = {
    "half": (Tile(64, 128, 64, 4, 3, registers=255), Tile(64, 64, 64, 4, 4), Tile(128, 64, 64, 8, 3)),
    "tf32x3": (Tile(64, 32, 32, 4, 3, registers=255), Tile(32, 64, 32, 4, 3), Tile(64, 64, 32, 8, 3)),
    "ieee": (Tile(64, 64, 16, 8, 4, registers=255), Tile(64, 32, 32, 4, 3), Tile(32, 32, 32, 4, 3)),
    "double": (Tile(32, 64, 16, 4, 2, registers=255), Tile(32, 32, 16, 4, 3)),
}
# Responses and indices of the lists, patches x k of each, have 4 registers a thread: more winners, fewer patches.
LISTED = 256
MOST_SHARES = 16  # programs to a tile of patches; merging reads k winners from each


@triton.jit
def walk(
    x, corner, valid, layout, weight, offset, scale, total, inverse, eligible, begin, end, N,
    SHAPE: tl.constexpr, TOP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The lists of the TOP strongest of neurons ``begin`` to ``end`` for each patch of this offset and scale.

    A response that is no finite number counts as +inf: it wins, so that the step finds it.
    """
    wide = tl.float64 if weight.dtype.element_ty == tl.float64 else tl.float32
    # Of cosines both factors have norm 1 before they are multiplied, so that no product overflows or vanishes; half
    # types are multiplied as they are, exactly.
    UNIT: tl.constexpr = inverse is not None and weight.dtype.element_ty.primitive_bitwidth > 16
    best, index = empty_lists(valid.shape[0], TOP, wide)
    for first in range(begin, end, BLOCK_K):
        neuron = first + tl.arange(0, BLOCK_K)
        exists = neuron < end
        response = tl.zeros([valid.shape[0], BLOCK_K], wide)
        if inverse is not None:
            unit = tl.load(inverse + neuron, mask=exists, other=0)
        for first_entry in range(0, N, BLOCK_N):
            tile, entry = load_entries(x, corner, valid, first_entry, N, layout, SHAPE, BLOCK_N)
            at = weight + neuron[None, :].to(tl.int64) * N + entry[:, None]
            rows = tl.load(at, mask=exists[None, :] & (entry < N)[:, None], other=0.0)
            tile = tile.to(rows.dtype)
            if UNIT:
                tile *= scale[:, None]
                rows *= unit[None, :]
            response = product(tile, rows, response, PRECISION)
        if offset is not None:  # (x - offset) . w
            less, sums = offset, tl.load(total + neuron, mask=exists, other=0)
            if UNIT:
                less *= scale
                sums *= unit
            response -= less[:, None] * sums[None, :]
        if not UNIT:
            if inverse is not None:
                response *= unit[None, :]
            if scale is not None:  # 0 for a flat patch, to which all responses are equal
                response *= scale[:, None]
        response = tl.where(tl.abs(response) < float("inf"), response, float("inf"))
        if eligible is not None:
            exists = exists & tl.load(eligible + neuron, mask=exists, other=0).to(tl.int1)
        best, index = insert(best, index, tl.where(exists[None, :], response, float("-inf")), neuron[None, :])
    return best, index


class Keys(NamedTuple):
    """What accumulate groups by, for the last kernel of a competition to write."""

    keys: Tensor | None = None  # int32 [P * k]
    coefficients: tuple = ()  # of each rank; nothing learns where it is 0
    frozen: Tensor | None = None
    by_response: bool = False

    @property
    def zero_ranks(self) -> int:
        """The ranks of coefficient 0, as bits of an int64."""
        ranks = sum(1 << rank for rank, c in enumerate(self.coefficients) if c == 0)
        return ranks - (1 << 64) if ranks >= 1 << 63 else ranks


class Competition(NamedTuple):
    """What a competition reads, and where its last kernel writes."""

    view: PatchView
    rows: Tensor  # [K, N], the weights to the power p - 1
    moments: Moments
    eligible: Tensor | None  # bool [K]
    k: int
    winners: Tensor  # int32 [P, k]
    responses: Tensor  # [P, k]
    keys: Keys

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Patches P and neurons K of a group, inputs N."""
        (K, N), groups = self.rows.shape, self.view.groups
        return self.view.patches // groups, K // groups, N


def tiles_of(task: Competition, dtype: torch.dtype) -> tuple[Tile, ...]:
    """The tiles of TILES for weights of this dtype, no larger than the layer; each once."""
    kind = "double" if dtype == torch.float64 else precision() if dtype == torch.float32 else "half"
    return tuple(dict.fromkeys(fitted(tile, task, LISTED // power_of_2(task.k)) for tile in TILES[kind]))


def fitted(tile: Tile, task: Competition, most_patches: int) -> Tile:
    """``tile`` cut to the layer; smaller for a convolution, whose addresses take registers."""
    neurons, inputs, (P, K, N) = tile.neurons, tile.inputs, task.sizes
    if task.view.x.dim() == 4:
        neurons, inputs = max(neurons // 2, 32), max(inputs // 2, 16)
    return tile._replace(
        patches=power_of_2(P, 16, block(min(tile.patches, max(most_patches, 16)))),
        neurons=power_of_2(K, 16, neurons),
        inputs=power_of_2(N, 16, block(inputs)),
    )


def shares_of(task: Competition, tile: Tile) -> tuple[int, int]:
    """How many programs share the neurons among them for each tile of patches, and how many neurons each has.

    Two programs a multiprocessor hide each other's ranking; a share is a whole number of tiles of neurons.
    """
    P, K, _ = task.sizes
    blocks = max(task.view.groups * triton.cdiv(P, tile.patches), 1)
    shares = min(triton.cdiv(2 * processors(task.rows), blocks), triton.cdiv(K, tile.neurons), MOST_SHARES)
    share = triton.cdiv(triton.cdiv(K, shares), tile.neurons) * tile.neurons
    return triton.cdiv(K, share), share
