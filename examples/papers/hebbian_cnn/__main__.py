"""Deep Hebbian networks: HWTA and HPCA in five stages, hybrids with backprop, supervised Hebbian classifiers, SoftHebb.

    python -m examples.papers.hebbian_cnn --table 5 --download         # CIFAR-10, a classifier on each layer, 3 seeds
    python -m examples.papers.hebbian_cnn --table 5 6 7 8 --seeds 5    # all of the paper's tables on CIFAR-10
    python -m examples.papers.hebbian_cnn --softhebb                   # soft competition: SoftHebb's four layers
    python -m examples.papers.hebbian_cnn --time                       # seconds per epoch of HPCA and HWTA, five layers
    python -m examples.papers.hebbian_cnn --table 1 --fast             # small: a minute or two on two cores

Comparing the Performance of Hebbian against Backpropagation Learning Using Convolutional Neural Networks: Tables 1 to
4 are on MNIST, 5 to 8 on CIFAR-10, 9 to 12 on CIFAR-100 (top-5 accuracy). The four tables of a data set have
classifiers on each layer, hybrid networks, networks whose upper layers are trained again, and classifiers by SHC and by
SGD. Random filters, the same network with its initial weights, stand beside all learnt ones.

Learnt weights and the features of each layer are kept in runs/ and shared by the tables (9 GB per method and seed on
CIFAR-10; --gigabytes limits them); of SoftHebb only the learnt weights are kept. Each figure is computed once and
written at once, so an interrupted command can be repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.nn.functional as F

from examples.papers.common import memory
from examples.papers.hebbian_cnn import network, recipes, report, softhebb, timing
from examples.papers.hebbian_cnn.cache import Cache
from examples.papers.hebbian_cnn.recipes import Cell, Source
from examples.papers.hebbian_cnn.report import Runs
from examples.papers.hebbian_cnn.runner import Data, Runner, settings_of
from hebbkern import datasets

SIDE = 32  # of the network's images
FAST = {"train": 4200, "test": 400}  # images; whitening needs more than 3072 training images


def load(name: str, source: str, arguments: argparse.Namespace) -> Data:
    """Returns RGB images of 32x32, smaller ones framed in black, in a random order; the last ones validate.

    As many images validate as the test set has, but at most a fifth of the training images (a sixth for MNIST).
    """
    data = datasets.load(source, root=arguments.root, download=arguments.download)
    frame = (SIDE - data.x_train.shape[-1]) // 2
    x, x_test = (F.pad(part, [frame] * 4).expand(-1, 3, -1, -1) for part in (data.x_train, data.x_test))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    most = FAST if arguments.fast else {"train": len(x), "test": len(x_test)}
    order, test = order[: most["train"]], slice(most["test"])
    held_out = min(len(x_test), len(order) // (6 if name == "MNIST" else 5))
    parts = x[order], data.y_train[order], x_test[test], data.y_test[test]
    return Data(*parts, fitted=len(order) - held_out, classes=data.classes, name=name)


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, int, list[Cell]]]:
    """Yields the data set, the seed and the cells of the tables to compute, seed by seed."""
    for seed in range(arguments.seeds):
        for data in recipes.DATA:
            tables = [
                table for name, table in recipes.tables().items() if name in arguments.table and table.data == data
            ]
            cells = [cell for table in tables for cell in table.cells]
            if cells := [cell for cell in cells if fnmatch(name_of(cell), arguments.rows)]:
                yield data, seed, cells


def name_of(cell: Cell) -> str:
    return f"{cell.row} {cell.measure} {cell.source.pattern}"


def compute(arguments: argparse.Namespace, runs: Runs, argv: Sequence[str] | None) -> None:
    """Computes every missing figure and writes each at once."""
    cache, loaded = Cache(Path(arguments.cache), arguments.gigabytes), {}
    for data, seed, cells in jobs(arguments):
        settings = settings_of(data, network.FAST if arguments.fast else network.PAPER)
        for cell in cells:
            if runs.get(data, cell, seed):
                continue
            if data not in loaded:
                loaded[data] = load(data, arguments.data or data, arguments)
            runner = Runner(loaded[data], cache, settings, seed, progress=arguments.progress)
            for source, figures in measured(cell, runner, arguments):
                key = Runs.key(data, source, cell.classifier, seed)
                numbers = {name: value for name, value in figures.items() if name != "recipe"}
                print(f"{key:<48} " + "  ".join(f"{name} {value:.2f}" for name, value in numbers.items()), flush=True)
                runs.add(key, figures | ({"note": arguments.note} if arguments.note else {}), argv)


def measured(cell: Cell, runner: Runner, arguments: argparse.Namespace) -> Iterator[tuple[Source, dict]]:
    """Yields the figures of the cell, and those of other sources that the same computation gives."""
    if cell.classifier == "time":
        images = runner.data.inputs(False, False)
        steps = 3 if arguments.fast else 60
        for method, figures in timing.epochs(images, runner.settings.shapes, steps=steps).items():
            yield cell.source._replace(method=method), figures
    elif cell.classifier == "SoftHebb":
        start = time.perf_counter()
        options = {"fast": arguments.fast, "progress": arguments.progress, "keep": runner.state}
        for result in softhebb.run(runner.data, seeds=[runner.seed], **options):
            figures = {"test": result.test, "validation": result.validation, "epoch": result.readout.epochs}
            method = "SoftHebb" if result.kind == "learnt" else "random SoftHebb"
            yield cell.source._replace(method=method), figures | {"seconds": time.perf_counter() - start}
            start = time.perf_counter()
    else:
        yield cell.source, runner.measure(cell.source, cell.classifier)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="*", default=[], choices=recipes.tables(), metavar="N", help="1 to 12")
    parser.add_argument("--softhebb", action="store_true", help="SoftHebb's network on CIFAR-10")
    parser.add_argument("--time", action="store_true", help="seconds per epoch of 40,000 images")
    parser.add_argument("--rows", default="*", help='a pattern of "row method pattern of stages", e.g. "*HPCA*"')
    parser.add_argument("--data", help="a .npz file in place of torchvision's data set")
    parser.add_argument("--note", help="a note on the data for the titles of tables")
    parser.add_argument("--root", default="data", help="folder of torchvision's files")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing data")
    parser.add_argument("--seeds", type=int, help="(default 3 with tables of CIFAR-10, otherwise 1)")
    parser.add_argument("--fast", action="store_true", help="few images and neurons, one seed, into runs/hebbian_cnn")
    parser.add_argument("--cache", help="folder (default runs/hebbian_cnn/cache)")
    parser.add_argument("--gigabytes", type=float, default=30, help="of features kept there (default 30)")
    parser.add_argument("--results", help="folder (default results, with --fast runs/hebbian_cnn)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty())
    arguments = parser.parse_args(argv)
    arguments.table += [name for name in ("softhebb", "time") if getattr(arguments, name)]
    needed = {recipes.tables()[name].data for name in arguments.table}
    if not needed:
        parser.error("name what to compute: --table, --softhebb or --time")
    if arguments.data and len(needed) > 1:
        parser.error(f"--data is a single data set, but these tables are of {', '.join(sorted(needed))}")
    usual = 3 if "CIFAR10" in needed else 1
    arguments.seeds = arguments.seeds or (1 if arguments.fast else usual)
    arguments.cache = arguments.cache or f"runs/hebbian_cnn/{'fast' if arguments.fast else 'cache'}"
    arguments.results = arguments.results or ("runs/hebbian_cnn" if arguments.fast else "results")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    start, arguments = time.perf_counter(), parse(argv)
    memory.keep()
    path = Path(arguments.results) / ("hebbian_cnn_fast.json" if arguments.fast else "hebbian_cnn.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = Runs(path)
    compute(arguments, runs, argv)
    report.show(runs.content, arguments.table)
    print(f"{path}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
