"""How long an epoch takes when all five layers learn from each batch, as in the paper.

    epochs(images, PAPER, steps=20)["HPCA"]["epoch_seconds"]

An epoch is the median step times the number of batches. The methods take turns of ten steps, so that noise reaches all
of them alike and weights may stay in the processor's cache, as in an epoch. Forward products are bfloat16 throughout,
updates float32 or bfloat16 (`hk.learning(dtype=)`). "pass" is the bare forward pass through the same network.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import torch
from torch import Tensor

import hebbkern as hk
from examples.papers.hebbian_cnn import recipes
from examples.papers.hebbian_cnn.network import Shape, build, mixed

BATCH_SIZE, IMAGES = 64, 40_000  # of an epoch
RATE = 1e-4  # low, so that weights stay finite
TURN = 10  # steps, after one for warming up


@torch.no_grad()
def epochs(images: Tensor, shapes: tuple[Shape, ...], *, steps: int) -> dict[str, dict]:
    """Returns the seconds per epoch of each method, from at least `steps` steps each."""
    plans = recipes.HEBBIAN
    hpca, hwta = (build("HHHHH", shapes, images.shape[1:], plans[name].rule) for name in ("HPCA", "HWTA"))
    methods = {
        name: (stages, hk.learning(stages, lr=RATE, dtype=plans[name].dtype))
        for name, stages in (("HPCA", hpca), ("HPCA, bfloat16", hpca), ("HWTA", hwta))
    }
    methods["pass"] = hpca, contextlib.nullcontext()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(-(-steps // TURN)):
        for name, (stages, learning) in methods.items():
            for step in range(TURN + 1):
                batch = images[(turn * TURN + step) * BATCH_SIZE % (len(images) - BATCH_SIZE) :][:BATCH_SIZE]
                start = time.perf_counter()
                with mixed(batch), learning:
                    stages(batch)
                if images.is_cuda:
                    torch.cuda.synchronize()
                if step:
                    times[name].append(time.perf_counter() - start)
    return {
        name: {"epoch_seconds": statistics.median(seconds) * IMAGES / BATCH_SIZE, "seconds": round(sum(seconds), 1)}
        for name, seconds in times.items()
    }
