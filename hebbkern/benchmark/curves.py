"""How the cost of a step grows: time against patches, neurons, inputs and batch, memory against batch, with the slopes.

Slope 1 in a log-log picture: twice as much takes twice as long. A linear layer has one patch a sample; in convolutions
the patches grow with the image. Memory is the peak's rise in a process of its own (properties.py).
"""

import time

import numpy as np

import hebbkern as hk
from hebbkern.benchmark import properties
from hebbkern.benchmark.contest import images, weights
from hebbkern.benchmark.report import machine
from hebbkern.benchmark.timing import race

GROWTH = (1, 2, 4, 8, 16)
RULES = ("KrotovHopfield", "WTA", "Sanger")


def linear(patches=256, neurons=256, inputs=256):
    return (patches, inputs), (neurons, inputs)


def convolution(side=8, neurons=32, inputs=8, batch=16):
    """Kernels of 3x3 on images that leave side x side patches; inputs are channels."""
    return (batch, inputs, side + 2, side + 2), (neurons, inputs, 3, 3)


def sizes(rule, growth=GROWTH):
    """axis -> [(size, x_shape, w_shape)] for one rule."""
    if rule == "KrotovHopfield":
        axes = {"patches": 256, "neurons": 256, "inputs": 256}
        return {a: [(n * start, *linear(**{a: n * start})) for n in growth] for a, start in axes.items()}
    axes = {"neurons": 32, "inputs": 8, "batch": 16}
    found = {a: [(n * start, *convolution(**{a: n * start})) for n in growth] for a, start in axes.items()}
    found["inputs"] = [(9 * n, *shapes) for n, *shapes in found["inputs"]]
    sides = [round(8 * n**0.5) for n in growth]
    return {"patches": [(16 * side * side, *convolution(side)) for side in sides], **found}


def run(rounds, growth=GROWTH, say=lambda line: None):
    """The rows of the report: for each rule and axis the sizes, the values and the slope of their log-log fit."""
    rows, start = [], time.perf_counter()
    for rule in RULES:
        for axis, points in sizes(rule, growth).items():
            say(f"{rule}, {axis}")
            values = [step_seconds(rule, *shapes, rounds) * 1e3 for _, *shapes in points]
            rows.append(row(rule, axis, [size for size, *_ in points], values, "ms"))
    for rule in RULES:
        say(f"{rule}, memory")
        points = [
            (64 * n, *(linear(64 * n, 512, 3072) if rule == "KrotovHopfield" else convolution(32, batch=64 * n)))
            for n in growth
        ]
        values = [properties.rise(rule, *shapes) for _, *shapes in points]
        if None not in values:
            rows.append(row(rule, "batch, memory", [size for size, *_ in points], values, "MiB"))
    return {"seconds": round(time.perf_counter() - start), "rounds": rounds, "rows": rows}


def row(rule, axis, sizes, values, unit):
    slope = float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-3)), 1)[0])
    return {"rule": rule, "axis": axis, "sizes": sizes, "values": values, "unit": unit, "slope": slope}


def step_seconds(rule, x_shape, w_shape, rounds):
    rule, x, w = getattr(hk, rule)(), images(*x_shape), weights(*w_shape)
    return race({"hebbkern": (lambda: rule.step_(w, x, lr=1e-5), None)}, rounds)["hebbkern"]


def text(report):
    lines = [f"{row['rule']:<16} {row['axis']:<14} {_points(row)}  slope {row['slope']:.2f}" for row in report["rows"]]
    return "\n".join(lines)


def markdown(report):
    """The slopes, a row a rule."""
    axes = list(dict.fromkeys(row["axis"] for row in report["rows"]))
    lines = [machine(report), "", f"| slope against | {' | '.join(axes)} |", f"|{' --- |' * (len(axes) + 1)}"]
    for rule in RULES:
        found = {row["axis"]: row for row in report["rows"] if row["rule"] == rule}
        slopes = (f"{found[axis]['slope']:.2f}" if axis in found else "" for axis in axes)
        lines.append(f"| {rule} | {' | '.join(slopes)} |")
    return "\n".join(lines)


def _points(row):
    pairs = zip(row["sizes"], row["values"], strict=True)
    return "  ".join(f"{size}: {value:.3g} {row['unit']}" for size, value in pairs)
