"""What the table reports besides ratios: extra memory, overhead of a step, speed and bits by the number of threads."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import torch

import hebbkern as hk
from hebbkern.benchmark.case import Run, images, shapes, weights
from hebbkern.benchmark.timing import keep_threads, race

MEBIBYTES = 64  # the limit of the extra memory
SPEEDUP = 1.7  # of two threads
MICROSECONDS = 25  # of a step that has next to nothing to compute

Shape = tuple[int, ...]
LINEAR, CONVOLUTION = ((1024, 784), (2000, 784)), ((64, 96, 14, 14), (128, 96, 3, 3))
LARGE = ((hk.KrotovHopfield(), LINEAR), (hk.WTA(), CONVOLUTION), (hk.Sanger(), CONVOLUTION))

# Runs in a process of its own: the peak of the resident memory is reset once everything is loaded and warm.
STEP = """
import json, sys, torch, hebbkern as hk
from hebbkern.benchmark.case import images, weights
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
name, x_shape, w_shape = json.loads(sys.argv[1])
rule, x, w = getattr(hk, name)(), images(*x_shape), weights(*w_shape)
rule.step_(w, x[:2], lr=1e-5)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
rule.step_(w, x, lr=1e-5)
print(peak() - before)
"""


def rise(rule: str, x_shape: Shape, w_shape: Shape) -> float | None:
    """MiB by which a step of the rule raises the peak of the resident memory; None where that is unknown."""
    if not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, "-c", STEP, json.dumps([rule, x_shape, w_shape])]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _row(name: str, case: str, unit: str, value: float, limit: float, holds: bool) -> dict[str, Any]:
    return {"property": name, "case": case, unit: value, "limit": limit, "holds": holds}


def memory() -> list[dict[str, Any]]:
    """The extra memory of an HWTA step on 512x3x32x32, 96 filters 5x5: a row, or none where it is unknown."""
    x_shape, w_shape = (512, 3, 32, 32), (96, 3, 5, 5)
    extra = rise("WTA", x_shape, w_shape)
    if extra is None:
        return []
    name = f"WTA step, {shapes(x_shape, w_shape)}"
    return [_row("extra memory", name, "MiB", extra, MEBIBYTES, extra < MEBIBYTES)]


def scaling(rounds: int) -> list[dict[str, Any]]:
    """How many times as fast two threads are as one, on the large cases. One row a rule."""
    rows = []
    for rule, (x_shape, w_shape) in LARGE:
        x, w = images(*x_shape), weights(*w_shape)
        with keep_threads():
            seconds = race({threads: _threaded(rule, w, x, threads) for threads in (1, 2)}, rounds)
        times, name = seconds[1] / seconds[2], f"{type(rule).__name__} step, {shapes(x_shape, w_shape)}"
        rows.append(_row("scaling", name, "times", times, SPEEDUP, times >= SPEEDUP))
    return rows


def _threaded(rule: hk.Rule, w: torch.Tensor, x: torch.Tensor, threads: int) -> Run:
    def step() -> None:
        torch.set_num_threads(threads)
        rule.step_(w, x, lr=1e-5)

    return step


def overhead(rounds: int) -> list[dict[str, Any]]:
    """Time of a step on 4 samples, 4 inputs and 4 neurons: its 150 multiplications take well under a microsecond."""
    rule, x, w = hk.KrotovHopfield(), images(4, 4), weights(4, 4)
    us = race({"step": lambda: rule.step_(w, x, lr=1e-5)}, rounds)["step"] * 1e6
    return [_row("overhead", "KrotovHopfield step, 4 x 4 x 4", "us", us, MICROSECONDS, us < MICROSECONDS)]


def determinism() -> list[dict[str, Any]]:
    """How many different weights three steps leave with 1 and 2 threads, twice each; 1 is right. One row a rule."""
    linear, conv = ((256, 784), (300, 784)), ((16, 3, 32, 32), (96, 3, 5, 5))
    rules = ((hk.KrotovHopfield(), linear), (hk.WTA(), conv), (hk.Sanger(), conv), (hk.SoftWTA(), linear))
    rows = []
    for rule, layer in rules:
        with keep_threads():
            results = len({_digest(rule, *layer, threads) for threads in (1, 2, 1, 2)})
        name = f"{type(rule).__name__}, 1 and 2 threads, twice each"
        rows.append(_row("determinism", name, "results", results, 1, results == 1))
    return rows


def _digest(rule: hk.Rule, x_shape: Shape, w_shape: Shape, threads: int) -> str:
    torch.set_num_threads(threads)
    x, w = images(*x_shape), weights(*w_shape)
    for _ in range(3):
        rule.step_(w, x, lr=1e-3)
    return hashlib.sha256(w.contiguous().numpy().tobytes()).hexdigest()
