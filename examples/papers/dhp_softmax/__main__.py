"""DHP Softmax's experiments: tasks learnt one after the other by gradients, with a Hebbian trace in the readout.

    python -m examples.papers.dhp_softmax --download                       # all tables and pictures, three seeds
    python -m examples.papers.dhp_softmax --parts "table1 split"           # one of them
    python -m examples.papers.dhp_softmax --fast                           # small: a minute or two on two cores

Differentiable Hebbian Consolidation for Continual Learning (Table 1, Table 4, Figures 2 to 6 and 8). Parts, chosen by
--parts:

    table1 permuted, imbalanced, split, mixture    Finetune, SI, Online EWC and MAS, without and with DHP (appendix A)
    figure8 cifar                                  CIFAR-10, then five times ten classes of CIFAR-100
    eta permuted, imbalanced, split                Table 4: initial values of η
    alike permuted, imbalanced, split              rows without DHP, whose readouts start as those with DHP
    bounded permuted, imbalanced, split            rows with DHP and a free η, with η kept from 0 to 1
    unalike permuted, imbalanced, split            rows with DHP, whose readouts start as torch's
    literal permuted, imbalanced, split            rows of Table 1 without bounds of η and importances by batch
    stopped permuted, imbalanced                   early stopping, from 10 to 30 epochs
    protocols                                      Split MNIST, in several readings of the text
    search ..., chosen ...                         settings chosen on held-out training samples, and their table
    pictures                                       Figures 2 to 6 and 8, of the runs that are known

A run (benchmark, settings, seed) is computed once: runs in the result file, or in those given by --also, are not
repeated. On a GPU (--device cuda) many runs learn side by side. The paper has ten seeds: --seeds 10.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from examples.papers.common.results import provenance
from examples.papers.dhp_softmax import pictures
from examples.papers.dhp_softmax.experiment import Experiment, filled, read, save, text
from hebbkern.continual import metrics

SOURCES = {  # data sets of torchvision, which has no notMNIST
    "mnist": "MNIST",
    "notmnist": "",
    "fashionmnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
FAST_PARTS = "table1 *,figure8 *,eta split,pictures"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, source in SOURCES.items():
        help = "a data set of torchvision, a .npz file, or '' for none" if name == "mnist" else "the same"
        parser.add_argument(f"--{name}", default=source, help=f"{help} (default {source or 'none'})")
    parser.add_argument("--root", default="data", help="folder of torchvision's files")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing data")
    parts = f"patterns, separated by commas, e.g. 'table1 split,eta *' (default all, with --fast '{FAST_PARTS}')"
    parser.add_argument("--parts", help=parts)
    parser.add_argument("--rows", default="*", help="a pattern of rows, e.g. 'DHP*'")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="result files of other runs, to join")
    parser.add_argument("--fast", action="store_true", help="few images and epochs, one seed, into runs/dhp_softmax")
    parser.add_argument("--seeds", type=int, help="(default 3; the paper has 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--at-once", type=int, default=16, help="number of runs side by side, on a GPU")
    parser.add_argument("--results", help="folder (default results, with --fast runs/dhp_softmax)")
    options = parser.parse_args(argv)
    if options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if missing := [str(path) for path in options.also if not path.exists()]:
        parser.error(f"--also must be files that exist, got {', '.join(missing)}")
    options.parts = options.parts or (FAST_PARTS if options.fast else "*")
    options.seeds = options.seeds or (1 if options.fast else 3)
    options.results = options.results or ("runs/dhp_softmax" if options.fast else "results")
    options.at_once = options.at_once if options.device != "cpu" else 1
    return options


def compute(experiment: Experiment, names: list[str], path: Path, about: dict) -> None:
    """Computes the missing runs of these parts, and writes the file after each."""
    for chosen in (False, True):  # the parts named "chosen" depend on the search
        begin, parts = time.perf_counter(), experiment.parts()
        rows = [parts[name] for name in names if name.startswith("chosen") == chosen]
        rows = [(row, seeds) for part, seeds in rows for row in part if fnmatch(row.row, experiment.arguments.rows)]
        for run in experiment.compute(rows):
            value = f"{metrics.average_accuracy(filled(run['R'])):.2f}" if run["R"] else "diverged"
            line = f"{run['benchmark']} {run['settings']} seed {run['seed']}: {value} in {run['seconds']:.0f} s"
            print(line, flush=True)
            save(experiment, path, about)
        print(f"{time.perf_counter() - begin:.0f} s")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    folder = Path(options.results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dhp_softmax.json"
    experiment = Experiment(options, read([path, *options.also]))
    about = provenance("dhp_softmax", argv, seconds=0, device=options.device)
    patterns = [pattern.strip() for pattern in options.parts.split(",")]
    known = [*experiment.parts(), "pictures"]
    if unknown := [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in known)]:
        sys.exit(f"dhp_softmax: --parts must be of {', '.join(known)}, got {', '.join(unknown)}")
    names = [name for name in known[:-1] if any(fnmatch(name, pattern) for pattern in patterns)]
    compute(experiment, names, path, about)
    if names and not experiment.runs:
        sys.exit("dhp_softmax: no data were found, so nothing was run")
    content = save(experiment, path, about)
    if any(fnmatch("pictures", pattern) for pattern in patterns):
        pictures.draw(experiment, folder)
    for row in content["rows"]:
        print(text(row))
    print(path)


if __name__ == "__main__":
    main()
