"""How long an epoch of hebbian_cnn.py's network takes: all five layers learn from each batch, as in the paper.

    epochs(images, PAPER, steps=20)["HPCA"]["epoch_seconds"]

A batch goes through all layers, each of which learns from it and then answers; an epoch is as many medians as it has
batches. The ways take turns, so that all see the same noise, ten steps each: as in an epoch, weights may stay in the
processor's cache. Answers are multiplied in bfloat16 throughout, updates in float32 or in bfloat16
(`hk.learning(dtype=)`). Beside them stands the bare pass through the same network, which no learning could be faster
than.
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

SIZE, IMAGES, RATE = 64, 40_000, 1e-4  # of a batch, of an epoch; low, for weights must stay finite
TURN = 10  # steps, after one that warms up


@torch.no_grad()
def epochs(images: Tensor, shapes: tuple[Shape, ...], steps: int) -> dict[str, dict]:
    """Seconds an epoch by each rule and without one, from at least so many steps each."""
    plans = recipes.HEBBIAN
    hpca, hwta = (build("HHHHH", shapes, images.shape[1:], plans[name].rule) for name in ("HPCA", "HWTA"))
    ways = {
        name: (stages, hk.learning(stages, lr=RATE, dtype=plans[name].dtype))
        for name, stages in (("HPCA", hpca), ("HPCA, bfloat16", hpca), ("HWTA", hwta))
    }
    ways["pass"] = hpca, contextlib.nullcontext()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-(-steps // TURN)):
        for name, (stages, lesson) in ways.items():
            for step in range(TURN + 1):
                batch = images[(turn * TURN + step) * SIZE % (len(images) - SIZE) :][:SIZE]
                start = time.perf_counter()
                with mixed(batch), lesson:
                    stages(batch)
                if images.is_cuda:
                    torch.cuda.synchronize()
                if step:
                    times[name].append(time.perf_counter() - start)
    return {
        name: {"epoch_seconds": statistics.median(seconds) * IMAGES / SIZE, "seconds": round(sum(seconds), 1)}
        for name, seconds in times.items()
    }
