"""What a launch reads and writes: one short description a kernel, the rest from its arguments.

A description takes the launch's arguments and settings by name (``a.x``, ``a.BLOCK_P``, ``a.grid``) and returns
{argument: bytes that all programs together read}, or (read, written), for arguments for which that is not the size
of the tensor once; and under "flops" the additions and multiplications, under "rate" how fast they go (roofline.FLOPS).
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from hebbkern.benchmark.recording import size

L2 = 50e6  # bytes of an H100


@dataclass
class Use:
    """Of one launch: bytes of device memory, bytes between L2 and the multiprocessors, flops and their rate."""

    device: int
    cache: int
    flops: int
    rate: str


def use(launch):
    """The Use of one recorded launch."""
    named = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.settings
    described = TRAFFIC.get(launch.kernel.__name__, lambda a: {})(SimpleNamespace(**named, grid=launch.grid))
    device = cache = 0
    for name, tensor in named.items():
        if isinstance(tensor, torch.Tensor):
            once = size(tensor)
            read, written = (
                described[name] if isinstance(described.get(name), tuple) else (described.get(name, once), 0)
            )
            cache += read + written
            device += min(read, once) + min(written, once) if once <= L2 else read + written
    return Use(device, cache, described.get("flops", 0), described.get("rate", "fp32"))


def _moments(a):
    taken = a.offset is not None or a.scale is not None
    patches = 2 * a.P * a.N * a.x.element_size() * taken
    return {"x": patches, "weight": 2 * size(a.weight)} if a.weight is not None else {"x": patches}


TRAFFIC = {"moments_kernel": _moments}
