"""PyTorch-Hebbian's experiment on Fashion-MNIST: a convolution learns without labels, a linear layer reads it out.

    python -m examples.papers.krotov_hopfield --download             # the table, three seeds: half an hour on two cores
    python -m examples.papers.krotov_hopfield --download --search    # how its settings were chosen
    python -m examples.papers.krotov_hopfield --fast --download      # small: a minute or two on two cores

Results are written after each row and each trial; --rows replaces some rows and keeps the others, --search continues.

The network has 400 filters of 5x5, batch norm, ReLU, max pool and a linear layer (supplementary material, section 2).
Rows:

    best learnt                 the learnt filters that --search found best on validation data
    random                      filters that stay as drawn from N(0, 1); the paper has no such baseline
    best random                 random filters, centred or whitened, whichever is best on validation data
    Krotov-Hopfield, centred    p = 4, k = 4, Δ = 0.4, rate 0.04 falling to 0, on patches less their means
    Krotov-Hopfield, raw        as published: the same on patches as they are, two images per step
    end-to-end backprop         the whole network by backpropagation

All rows have the same network and data. The paper trains with ReduceLROnPlateau and early stopping. Here a schedule is
chosen beforehand on validation data (the last sixth of the shuffled training set): Adam, batches of 256, label
smoothing, 10 epochs, a rate that falls linearly to 0. Backprop has 8 epochs and the best of three rates after two
epochs of 15,000 images; more epochs would improve it. Each row and seed then learns once from the whole training set
and reads the test set once. Pools are 4x4 in every row, where the paper's are 2x2: a quarter of the features, which two
CPU cores read out in one to two seconds per epoch. The number of threads changes the last bits of the products, and
with them the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.papers.common import results
from examples.papers.krotov_hopfield import recipes, report
from examples.papers.krotov_hopfield.experiment import Data, Experiment, table
from examples.papers.krotov_hopfield.search import Search
from hebbkern import datasets

USUAL = {"filters": 400, "pool": 4, "seeds": 3, "epochs": None}
FAST = {"filters": 64, "pool": 4, "seeds": 1, "epochs": 4}
FAST_IMAGES = {"train": 3600, "test": 1000}


def load(arguments: argparse.Namespace) -> Data:
    """Returns the images; those of the training set in a random order, so that a batch of features can be a view."""
    data = datasets.load(arguments.data, root=arguments.root, download=arguments.download)
    train, test = (FAST_IMAGES["train"], FAST_IMAGES["test"]) if arguments.fast else (None, None)
    order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[:train]
    tensors = data.x_train[order], data.y_train[order], data.x_test[:test], data.y_test[:test]
    x, y, x_test, y_test = (tensor.to(arguments.device) for tensor in tensors)
    return Data(x, y, x_test, y_test, len(x) - len(x) // 6, data.classes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="FashionMNIST", help="a data set of torchvision, or a .npz file")
    parser.add_argument("--root", default="data", help="folder of torchvision's files")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--search", action="store_true", help="choose settings on validation data; no table")
    parser.add_argument("--fast", action="store_true", help="few images, few filters, one seed, into runs/krotov_cnn")
    parser.add_argument("--filters", type=int, help="(default 400)")
    parser.add_argument(
        "--pool", type=int, help="side of the max pool (default 4; 2 as in the paper takes 4 times the memory)"
    )
    parser.add_argument("--seeds", type=int, help="(default 3)")
    parser.add_argument("--rows", default="*", help="a pattern of rows to compute; the file keeps the other rows")
    parser.add_argument("--best", default=recipes.BEST, help="recipe of the row best learnt")
    parser.add_argument("--random", default=recipes.BEST_RANDOM, help="recipe of the row best random")
    parser.add_argument("--schedule", default=recipes.BEST_SCHEDULE, choices=recipes.SCHEDULES)
    parser.add_argument("--results", help="folder (default results, with --fast runs/krotov_cnn)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty())
    arguments = parser.parse_args(argv)
    for name, value in (FAST if arguments.fast else USUAL).items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    arguments.results = arguments.results or ("runs/krotov_cnn" if arguments.fast else "results")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    start, arguments = time.perf_counter(), parse(argv)
    folder = Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("krotov_cnn_search.json" if arguments.search else "krotov_cnn.json")
    experiment = Experiment(load(arguments), arguments)

    def provenance() -> dict:
        seconds = time.perf_counter() - start
        about = results.provenance("krotov_hopfield", argv, seconds=seconds, device=arguments.device)
        return about | {"settings": {name: getattr(arguments, name) for name in ("filters", "pool")}}

    if arguments.search:
        known = report.known(path, provenance()["settings"])
        before = known.get("seconds", 0.0)

        def write(content: dict) -> None:
            about = provenance()
            results.write(path, about | {"seconds": round(before + about["seconds"], 1)} | content)

        Search(experiment, arguments.seeds, write, known.get("trials", [])).run()
    else:
        order = list(recipes.rows(arguments.best, arguments.random))
        table(experiment, lambda runs: results.write(path, report.merged(runs, provenance(), path, order)))
        report.show(json.loads(path.read_text()))
    for name, value in (experiment.seconds | {"in all": time.perf_counter() - start}).items():
        print(f"{name:<20} {value:7.1f} s")
    print(path)


if __name__ == "__main__":
    main()
