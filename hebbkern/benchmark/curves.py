"""How the cost of a step grows: time against patches, neurons, inputs and batch, memory against batch, with the slopes.

Slope 1 in a log-log picture means that twice as much takes twice as long. A linear layer has one patch a sample; in
convolutions the patches grow with the image. Memory is the rise of the peak in a process of its own (properties.py).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import hebbkern as hk
from hebbkern.benchmark import properties
from hebbkern.benchmark.case import images, weights
from hebbkern.benchmark.report import machine
from hebbkern.benchmark.timing import race

GROWTH = (1, 2, 4, 8, 16)
RULES = ("KrotovHopfield", "WTA", "Sanger")

Layer = tuple[tuple[int, ...], tuple[int, ...]]  # the shapes of x and w


def linear(patches: int = 256, neurons: int = 256, inputs: int = 256) -> Layer:
    """The shapes of a linear layer."""
    return (patches, inputs), (neurons, inputs)


def convolution(side: int = 8, neurons: int = 32, inputs: int = 8, batch: int = 16) -> Layer:
    """Kernels of 3x3 on images that leave side x side patches; inputs are channels."""
    return (batch, inputs, side + 2, side + 2), (neurons, inputs, 3, 3)


def sizes(rule: str, growth: Sequence[int] = GROWTH) -> dict[str, list[tuple[int, Layer]]]:
    """{axis: [(size, layer)]} of one rule."""
    if rule == "KrotovHopfield":
        return {
            axis: [(n * 256, linear(**{axis: n * 256})) for n in growth] for axis in ("patches", "neurons", "inputs")
        }
    sides = [round(8 * n**0.5) for n in growth]
    return {
        "patches": [(16 * side * side, convolution(side)) for side in sides],
        "neurons": [(32 * n, convolution(neurons=32 * n)) for n in growth],
        "inputs": [(9 * 8 * n, convolution(inputs=8 * n)) for n in growth],
        "batch": [(16 * n, convolution(batch=16 * n)) for n in growth],
    }


def run(
    rounds: int, growth: Sequence[int] = GROWTH, say: Callable[[str], object] = lambda line: None
) -> dict[str, Any]:
    """The report: for each rule and axis the sizes, the values and the slope of their log-log fit."""
    rows, start = [], time.perf_counter()
    for rule in RULES:
        for axis, points in sizes(rule, growth).items():
            say(f"{rule}, {axis}")
            values = [step_seconds(rule, *layer, rounds) * 1e3 for _, layer in points]
            rows.append(row(rule, axis, [size for size, _ in points], values, "ms"))
    for rule in RULES:
        say(f"{rule}, memory")
        batches = [64 * n for n in growth]
        linear_rule = rule == "KrotovHopfield"
        layers = [linear(batch, 512, 3072) if linear_rule else convolution(32, batch=batch) for batch in batches]
        rises = [properties.rise(rule, *layer) for layer in layers]
        if values := [rise for rise in rises if rise is not None]:
            rows.append(row(rule, "batch, memory", batches, values, "MiB"))
    return {"seconds": round(time.perf_counter() - start), "rounds": rounds, "rows": rows}


def row(rule: str, axis: str, sizes: list[int], values: list[float], unit: str) -> dict[str, Any]:
    """One curve with its slope."""
    slope = float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-3)), 1)[0])
    return {"rule": rule, "axis": axis, "sizes": sizes, "values": values, "unit": unit, "slope": slope}


def step_seconds(rule: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], rounds: int) -> float:
    """The median seconds of a step."""
    step_, x, w = getattr(hk, rule)().step_, images(*x_shape), weights(*w_shape)
    return race({"step": lambda: step_(w, x, lr=1e-5)}, rounds)["step"]


def text(report: dict[str, Any]) -> str:
    """The curves for a terminal, one a line."""
    lines = [f"{row['rule']:<16} {row['axis']:<14} {_points(row)}  slope {row['slope']:.2f}" for row in report["rows"]]
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """The slopes for a page, a row for each rule."""
    axes = list(dict.fromkeys(row["axis"] for row in report["rows"]))
    lines = [machine(report), "", f"| slope against | {' | '.join(axes)} |", f"|{' --- |' * (len(axes) + 1)}"]
    for rule in RULES:
        slopes = {row["axis"]: f"{row['slope']:.2f}" for row in report["rows"] if row["rule"] == rule}
        lines.append(f"| {rule} | {' | '.join(slopes.get(axis, '') for axis in axes)} |")
    return "\n".join(lines)


def _points(row: dict[str, Any]) -> str:
    pairs = zip(row["sizes"], row["values"], strict=True)
    return "  ".join(f"{size}: {value:.3g} {row['unit']}" for size, value in pairs)
