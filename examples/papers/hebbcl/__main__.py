"""HebbCL's experiments: one layer that learns a stream of classes by a local rule, freezes and grows. Tables 1 to 3.

    python examples/hebbcl.py --omniglot omniglot.npz --download             # all tables and pictures, five seeds
    python examples/hebbcl.py --omniglot omniglot.npz --download --search    # how the unsupervised settings were chosen
    python examples/hebbcl.py --fast --parts "*mnist"                        # small: a minute or two on two cores

Hebbian Continual Representation Learning (Tables 1 to 3, Figures 1 to 5). Parts, chosen by --parts:

    unsupervised mnist, unsupervised omniglot    Tables 1 and 3: hebbcl_unsupervised.py has the protocol
    supervised mnist, supervised cifar10         Table 2: hebbcl_supervised.py
    baselines mnist, baselines cifar10           Table 2: hebbcl_baselines.py
    pictures                                     Figures 1 to 5, as far as their data are there

Settings were found on a held-out share of the training sets (hebbcl_search.py, and `search` of the other two) and stand
in hebbcl_recipes.py and in the tables of the other two; each row sees the test set once a seed. Beside what is learnt
there are always random neurons, neurons on samples that learn nothing, and pixels, all read in the same way.

--omniglot takes a .npz file with x_train, y_train, x_test, y_test of uint8 [n, 105, 105], alphabets as labels, 15
drawers of each character to train and 5 to test. Rows are written one by one, trials of the search too; those that are
there, by the same settings and seeds, are not computed again. The number of threads changes the last bits of products,
and so results a little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import hebbkern as hk
from examples.papers.hebbcl import baselines, pictures, supervised
from examples.papers.hebbcl.recipes import RECIPES
from examples.papers.hebbcl.search import Search
from examples.papers.hebbcl.unsupervised import Sets, blurred_, pixels, rows_for, unsupervised_rows
from examples.papers.krotov_hopfield.report import command, deviation, write
from hebbkern import datasets
from hebbkern.cli import doctor

FAST = {"train": 6000, "test": 1000, "seeds": 1, "trials": 4}
FIRST_TASK = {"cifar10": 20_000}  # training images with --fast: as many as its whitening needs
USUAL = {"seeds": 5, "trials": 60}
FINALISTS, SEARCH_SEEDS = 4, 3
INVERTED = 0.5  # images of a higher mean are dark on white: 1 − x is learnt
SAME = ("part", "table", "row", "measure")  # what a run is known by


@dataclass(frozen=True)
class Part:
    """Some rows, each a value with a name .row, and what computes them: rows → figures as they are done."""

    name: str
    rows: list
    compute: Callable[[list], Iterator[dict]]
    settings: Callable[[object], object]


class Experiment:
    """The data, read when first asked for, and the parts."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.images, self.flat = cache(self._images), cache(self._flat)

    def _images(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, y, x_test, y_test; with --fast a part of each, drawn from all classes."""
        given = self.arguments
        data = datasets.load(getattr(given, name), root=given.root, download=given.download)
        sets = []
        for x, y, most in ((data.x_train, data.y_train, "train"), (data.x_test, data.y_test, "test")):
            if given.fast:
                count = FIRST_TASK.get(name, FAST["train"]) if most == "train" else FAST[most]
                kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count].sort().values
                x, y = x[kept], y[kept]
            sets += [x, y]
        return tuple(sets)

    def _flat(self, name: str) -> Sets:
        x, y, x_test, y_test = self.images(name)
        dark, shape, blur, sharp = x.mean() > INVERTED, tuple(x.shape[2:]), self.recipe(name).blur, None
        flat = [images.flatten(1) for images in (x, x_test)]
        for images in flat if dark else ():
            images.neg_().add_(1)
        if blur:
            sharp = tuple(pixels(images, shape).clone() for images in flat)
            for images in flat:
                blurred_(images, shape, blur)
        return Sets(flat[0], y, flat[1], y_test, shape, sharp)

    def there(self, *names: str) -> bool:
        return all(getattr(self.arguments, name) for name in names)

    def recipe(self, name: str):
        """With --fast batches are a quarter, as the stream is shorter."""
        recipe = RECIPES[name]
        return replace(recipe, batch=max(1, recipe.batch // 4)) if self.arguments.fast else recipe

    def parts(self) -> list[Part]:
        """All whose data are there."""
        parts, seeds = [], self.arguments.seeds
        for name in filter(self.there, ("mnist", "omniglot")):
            recipe = self.recipe(name)

            def compute(rows, name=name, recipe=recipe):
                return unsupervised_rows(name, self.flat(name), seeds=seeds, recipe=recipe, rows=rows)

            parts.append(
                Part(f"unsupervised {name}", rows_for(recipe), compute, lambda row, recipe=recipe: row.recipe(recipe))
            )
        kinds = {
            "supervised": (supervised, supervised.supervised_rows),
            "baselines": (baselines, baselines.baseline_rows),
        }
        for kind, (module, rows_of) in kinds.items():
            for name in filter(self.there, ("mnist", "cifar10")):

                def compute(rows, name=name, rows_of=rows_of):
                    return rows_of(name, *self.images(name), seeds=seeds, table=rows)

                parts.append(Part(f"{kind} {name}", module.TABLE[name], compute, lambda row: row))
        return parts

    def draw(self, folder: Path) -> None:
        """Figures 1 to 5, as far as their data are there."""
        for name in filter(self.there, ("mnist", "omniglot")):
            pictures.weights(name, self.flat(name), self.recipe(name), folder)
        if self.there("mnist"):
            pictures.forgetting(self.flat("mnist"), self.recipe("mnist"), folder)
        if self.there("cifar10"):
            pictures.classes(supervised.pictured(*self.images("cifar10")[:2]), folder)


def table(experiment: Experiment, path: Path, told: Callable[[], dict]) -> None:
    """Computes the rows asked for that are not there yet, and writes after each."""
    arguments = experiment.arguments
    files = [json.loads(file.read_text()) for file in (path, *arguments.also) if file.exists()]
    there = {tuple(run[key] for key in SAME): run for found in reversed(files) for run in found["runs"]}
    runs = [run for run in there.values() if not (arguments.again and fnmatch(run["part"], arguments.parts))]
    commands = [command for found in files for command in found["command"].split(" && ")] if runs else []
    parts = experiment.parts()
    order = [(part.name, row.row) for part in parts for row in part.rows]

    def place(run: dict) -> tuple:
        at = run["part"], run["row"]
        return order.index(at) if at in order else len(order), run["table"]

    def keep() -> None:
        about = told()
        runs.sort(key=place)
        about["machine"] = "; ".join(dict.fromkeys(run["machine"] for run in runs))
        about["command"] = " && ".join(dict.fromkeys([*commands, about["command"]]))
        about["seconds"] = round(sum(run["wall"] for run in runs), 1)
        write(path, about | {"rows": [line(run) for run in runs], "runs": runs})

    for part in parts:
        if not fnmatch(part.name, arguments.parts):
            continue
        marks = {row.row: mark(part.settings(row), arguments) for row in part.rows}
        done = {(run["row"], run["settings"]) for run in runs if run["part"] == part.name}
        missing = [row for row in part.rows if (row.row, marks[row.row]) not in done]
        begin = time.perf_counter()
        for found in part.compute(missing) if missing else ():
            now = time.perf_counter()
            found = {"part": part.name} | found | {"settings": marks[found["row"]], "wall": round(now - begin, 1)}
            found["machine"] = told()["machine"]
            begin = now
            runs = [run for run in runs if any(run[key] != found[key] for key in SAME)] + [found]
            print(words(line(found)), flush=True)
            keep()
    if arguments.also and runs:
        keep()


def mark(settings: object, arguments: argparse.Namespace) -> str:
    """By what a row was computed: it is not computed again with the same."""
    return f"{settings}, {arguments.seeds} seeds" + ", fast" * arguments.fast


def line(run: dict) -> dict:
    """In the format of results/*.json."""
    values = run["values"]
    kept = {key: run[key] for key in ("table", "row", "measure", "unit", "paper")}
    found = {
        "mean": statistics.fmean(values),
        "std": deviation(values),
        "seeds": len(values),
        "chosen_on": run["chosen_on"],
    }
    return kept | found


def words(row: dict) -> str:
    paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
    name = f"{row['table']}  {row['row']:<32} {row['measure']:<52}"
    return f"{name} {row['mean']:6.2f} ± {row['std']:.2f} {paper:>7}"


def show(found: dict) -> None:
    print(f"\n{'ours':>102} {'paper':>15}")
    for row in sorted(found["rows"], key=lambda row: row["table"]):
        print(words(row))


def search(experiment: Experiment, path: Path, told: Callable[[], dict]) -> None:
    """Of the data sets that are there; what was found of the others stays."""
    arguments = experiment.arguments
    for name in filter(experiment.there, ("mnist", "omniglot")):
        if fnmatch(f"unsupervised {name}", arguments.parts):
            before = json.loads(path.read_text())["searches"] if path.exists() else {}
            known = () if arguments.again else before.get(name, {}).get("trials", ())

            def tell(found, name=name, before=before):
                write(path, told() | {"searches": before | {name: found}})

            trials = Search(name, experiment.flat(name), tell, known)
            print(name, trials.run(arguments.trials, FINALISTS, min(SEARCH_SEEDS, arguments.seeds)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", default="MNIST", help="a data set of torchvision, a .npz file, or '' for none")
    parser.add_argument("--cifar10", default="CIFAR10", help="the same")
    parser.add_argument("--omniglot", default="", help="a .npz file (see above); without it its rows are left out")
    parser.add_argument("--root", default="data", help="where torchvision keeps its files")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parser.add_argument("--parts", default="*", help="a pattern, e.g. 'unsupervised *'; the other rows stay")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="results/hebbcl.json of other runs, to join")
    parser.add_argument("--again", action="store_true", help="compute rows that are there once more")
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


def main(argv: list[str] | None = None) -> None:
    start, arguments = time.perf_counter(), parse(argv)
    folder = Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(arguments)

    def told() -> dict:
        """How it was computed, without paths of this machine."""
        return {
            "command": command("hebbcl", argv),
            "version": hk.__version__,
            "machine": f"{doctor.processor()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "seconds": round(time.perf_counter() - start, 1),
        }

    if arguments.search:
        search(experiment, folder / "hebbcl_search.json", told)
        return
    table(experiment, path := folder / "hebbcl.json", told)
    if fnmatch("pictures", arguments.parts):
        experiment.draw(folder)
    if path.exists():
        show(json.loads(path.read_text()))
        print(path)


if __name__ == "__main__":
    main()
