"""HebbCL's experiments: one layer that learns a stream of classes by a local rule, freezes and grows. Tables 1 to 3.

    python -m examples.papers.hebbcl --omniglot omniglot.npz --download            # all tables and pictures, five seeds
    python -m examples.papers.hebbcl --omniglot omniglot.npz --download --search   # search of the unsupervised settings
    python -m examples.papers.hebbcl --fast --parts "*mnist"                       # small: a minute or two on two cores

Hebbian Continual Representation Learning (Tables 1 to 3, Figures 1 to 5). Parts, chosen by --parts:

    unsupervised mnist, unsupervised omniglot    Tables 1 and 3: unsupervised.py has the protocol
    supervised mnist, supervised cifar10         Table 2: supervised.py
    baselines mnist, baselines cifar10           Table 2: baselines.py
    pictures                                     Figures 1 to 5, of the data that are given

Settings were chosen on a held-out share of the training sets (search.py, and `search` of supervised.py and
baselines.py); each row reads the test set once per seed. Random neurons, neurons on samples that do not learn, and
pixels stand beside what is learnt, evaluated in the same way.

--omniglot takes a .npz file with x_train, y_train, x_test, y_test of uint8 [n, 105, 105], alphabets as labels, 15
drawers of each character to train and 5 to test. Rows are written one by one, trials of the search too; those in the
file with the same settings and seeds are not computed again. The number of threads changes the last bits of the
products, and with them the results a little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from examples.papers.common import results
from examples.papers.hebbcl.experiment import FAST, Experiment, search, show, table

USUAL = {"seeds": 5, "trials": 60}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default="MNIST", help="a data set of torchvision, a .npz file, or '' for none")
    parser.add_argument("--cifar10", default="CIFAR10", help="the same")
    parser.add_argument("--omniglot", default="", help="a .npz file (see above); without it its rows are left out")
    parser.add_argument("--root", default="data", help="folder of torchvision's files")
    parser.add_argument("--download", action="store_true", help="let torchvision download missing data")
    parser.add_argument("--parts", default="*", help="a pattern, e.g. 'unsupervised *'; the file keeps other rows")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="result files of other runs, to join")
    parser.add_argument("--again", action="store_true", help="compute rows again that the file has")
    parser.add_argument("--search", action="store_true", help="choose the unsupervised settings; no table")
    parser.add_argument("--trials", type=int, help="of the search (default 60)")
    parser.add_argument("--fast", action="store_true", help="few images, one seed, into runs/hebbcl")
    parser.add_argument("--seeds", type=int, help="(default 5)")
    parser.add_argument("--results", help="folder (default results, with --fast runs/hebbcl)")
    arguments = parser.parse_args(argv)
    for name in USUAL:
        if getattr(arguments, name) is None:
            setattr(arguments, name, (FAST if arguments.fast else USUAL)[name])
    arguments.results = arguments.results or ("runs/hebbcl" if arguments.fast else "results")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    start, arguments = time.perf_counter(), parse(argv)
    folder = Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(arguments)

    def provenance() -> dict:
        return results.provenance("hebbcl", argv, seconds=time.perf_counter() - start, threads=True)

    if arguments.search:
        search(experiment, folder / "hebbcl_search.json", provenance)
        return
    table(experiment, path := folder / "hebbcl.json", provenance)
    if fnmatch("pictures", arguments.parts):
        experiment.draw(folder)
    if path.exists():
        show(json.loads(path.read_text()))
        print(path)


if __name__ == "__main__":
    main()
