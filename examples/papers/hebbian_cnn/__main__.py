"""Deep Hebbian networks: HWTA and HPCA in five stages, hybrids with backprop, supervised Hebbian classifiers, SoftHebb.

    python examples/hebbian_cnn.py --table 5 --download         # CIFAR-10, classifiers on each layer; three seeds
    python examples/hebbian_cnn.py --table 5 6 7 8 --seeds 5    # all of the paper's on CIFAR-10, as many seeds as there
    python examples/hebbian_cnn.py --softhebb                   # soft competition: SoftHebb's four layers
    python examples/hebbian_cnn.py --time                       # an epoch of HPCA, of HWTA, of all five layers
    python examples/hebbian_cnn.py --table 1 --fast             # small: a minute or two on two cores

Comparing the Performance of Hebbian against Backpropagation Learning Using Convolutional Neural Networks: Tables 1 to
4 are on MNIST, 5 to 8 on CIFAR-10, 9 to 12 on CIFAR-100 (top-5): in turn classifiers on each layer, hybrid networks,
the upper layers trained again, and classifiers by SHC and by SGD. Random filters, the same network with weights as they
were drawn, stand beside every learnt ones. What is learnt and the features of each layer are kept below runs/ (9 GB a
method and seed on CIFAR-10; --gigabytes limits them) and shared by the tables, of SoftHebb only what is learnt, not its
features; each figure is computed once and written at once: a run may be interrupted and go on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import torch

from examples.papers.common import memory
from examples.papers.hebbian_cnn import network, recipes, report, softhebb, timing
from examples.papers.hebbian_cnn.cache import Cache
from examples.papers.hebbian_cnn.recipes import Cell, Source
from examples.papers.hebbian_cnn.report import Runs
from examples.papers.hebbian_cnn.runner import Laboratory, Sets, settings_of
from hebbkern import datasets

SIDE = 32  # of the images that the network takes
FAST = {"train": 4200, "test": 400}  # images; whitening needs more than 3072 to learn from


def load(name: str, source: str, arguments: argparse.Namespace) -> Sets:
    """RGB images of 32x32, smaller ones framed in black; those that validate come last, as many as the test has."""
    data = datasets.load(source, root=arguments.root, download=arguments.download)
    frame = (SIDE - data.x_train.shape[-1]) // 2
    x, x_test = (
        torch.nn.functional.pad(part, [frame] * 4).expand(-1, 3, -1, -1) for part in (data.x_train, data.x_test)
    )
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    most = FAST if arguments.fast else {"train": len(x), "test": len(x_test)}
    order, test = order[: most["train"]], slice(most["test"])
    held_out = min(len(x_test), len(order) // (6 if name == "MNIST" else 5))
    sets = x[order], data.y_train[order], x_test[test], data.y_test[test]
    return Sets(*sets, fitted=len(order) - held_out, classes=data.classes, name=name)


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[str, int, list[Cell]]]:
    """Data set, seed and cells of every table asked for; all of one seed comes before the next."""
    for seed in range(arguments.seeds):
        for data in recipes.DATA:
            tables = [
                table for name, table in recipes.tables().items() if name in arguments.table and table.data == data
            ]
            cells = [cell for table in tables for cell in table.cells]
            if cells := [cell for cell in cells if fnmatch(name(cell), arguments.rows)]:
                yield data, seed, cells


def name(cell: Cell) -> str:
    return f"{cell.row} {cell.measure} {cell.source.pattern}"


def compute(arguments: argparse.Namespace, runs: Runs, argv: list[str] | None) -> None:
    """Every figure that is missing."""
    cache, sets = Cache(Path(arguments.cache), arguments.gigabytes), {}
    for data, seed, cells in jobs(arguments):
        settings = settings_of(data, network.FAST if arguments.fast else network.PAPER)
        for cell in cells:
            if runs.get(data, cell, seed):
                continue
            if data not in sets:
                sets[data] = load(data, arguments.data or data, arguments)
            lab = Laboratory(sets[data], cache, settings, seed, progress=arguments.progress)
            for source, figures in measured(cell, lab, arguments):
                key = Runs.key(data, source, cell.classifier, seed)
                numbers = {what: value for what, value in figures.items() if what != "recipe"}
                print(f"{key:<48} " + "  ".join(f"{what} {value:.2f}" for what, value in numbers.items()), flush=True)
                runs.add(key, figures | ({"note": arguments.note} if arguments.note else {}), argv)


def measured(cell: Cell, lab: Laboratory, arguments: argparse.Namespace) -> Iterator[tuple[Source, dict]]:
    """What the cell asks for, and what else the same work tells."""
    if cell.classifier == "time":
        images = lab.sets.inputs(False, False)
        for way, figures in timing.epochs(images, lab.settings.shapes, 3 if arguments.fast else 60).items():
            yield cell.source._replace(method=way), figures
    elif cell.classifier == "SoftHebb":
        start = time.perf_counter()
        options = {"fast": arguments.fast, "progress": arguments.progress, "keep": lab.state}
        for result in softhebb.run(lab.sets, seeds=[lab.seed], **options):
            figures = {"test": result.test, "validation": result.validation, "epoch": result.readout.epochs}
            method = "SoftHebb" if result.kind == "learnt" else "random SoftHebb"
            yield cell.source._replace(method=method), figures | {"seconds": time.perf_counter() - start}
            start = time.perf_counter()
    else:
        yield cell.source, lab.measure(cell.source, cell.classifier)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="*", default=[], choices=recipes.tables(), metavar="N", help="1 to 12")
    parser.add_argument("--softhebb", action="store_true", help="SoftHebb's network on CIFAR-10")
    parser.add_argument("--time", action="store_true", help="seconds an epoch of 40,000 images takes")
    parser.add_argument("--rows", default="*", help='a pattern of "row method pattern of stages", e.g. "*HPCA*"')
    parser.add_argument("--data", help="a .npz file in place of torchvision's data set")
    parser.add_argument("--note", help="of the data, for the titles of tables")
    parser.add_argument("--root", default="data", help="where torchvision keeps its files")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parser.add_argument("--seeds", type=int, help="(default 3 where tables of CIFAR-10 are asked for, otherwise 1)")
    parser.add_argument("--fast", action="store_true", help="few images and neurons, one seed, into runs/hebbian_cnn")
    parser.add_argument("--cache", help="folder (default runs/hebbian_cnn/cache)")
    parser.add_argument("--gigabytes", type=float, default=30, help="of features kept there (default 30)")
    parser.add_argument("--results", help="folder (default results, with --fast runs/hebbian_cnn)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty())
    arguments = parser.parse_args(argv)
    arguments.table += [name for name in ("softhebb", "time") if getattr(arguments, name)]
    asked = {recipes.tables()[name].data for name in arguments.table}
    if not asked:
        parser.error("name what to compute: --table, --softhebb or --time")
    if arguments.data and len(asked) > 1:
        parser.error(f"--data is one data set's, and these tables are of {', '.join(sorted(asked))}")
    usual = 3 if "CIFAR10" in asked else 1
    arguments.seeds = arguments.seeds or (1 if arguments.fast else usual)
    arguments.cache = arguments.cache or f"runs/hebbian_cnn/{'fast' if arguments.fast else 'cache'}"
    arguments.results = arguments.results or ("runs/hebbian_cnn" if arguments.fast else "results")
    return arguments


def main(argv: list[str] | None = None) -> None:
    start, arguments = time.perf_counter(), parse(argv)
    memory.keep()
    path = Path(arguments.results) / ("hebbian_cnn_fast.json" if arguments.fast else "hebbian_cnn.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = Runs(path)
    compute(arguments, runs, argv)
    report.show(runs.found, arguments.table)
    print(f"{path}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
