"""The parts of the experiment, their data, and the result file that grows row by row."""

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

from examples.papers.common.results import deviation, write
from examples.papers.hebbcl import baselines, pictures, supervised
from examples.papers.hebbcl.recipes import RECIPES, Recipe
from examples.papers.hebbcl.search import Search
from examples.papers.hebbcl.unsupervised import Data, blurred_, pixels, rows_for, unsupervised_rows
from hebbkern import datasets

FAST = {"train": 6000, "test": 1000, "seeds": 1, "trials": 4}
FIRST_TASK = {"cifar10": 20_000}  # training images with --fast: whitening needs as many
FINALISTS, SEARCH_SEEDS = 4, 3
INVERTED = 0.5  # images of a higher mean are dark on white: 1 − x is learnt
IDENTITY = ("part", "table", "row", "measure")  # keys that tell runs apart


@dataclass(frozen=True)
class Part:
    """Some rows of the tables.

    Args:
        rows: values with a name .row.
        compute: yields the figures of the rows given to it, as they are done.
        settings: returns all that a row depends on, as a value with a repr.
    """

    name: str
    rows: list
    compute: Callable[[list], Iterator[dict]]
    settings: Callable[[object], object]


class Experiment:
    """The data, loaded when first needed, and the parts."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.images, self.flat = cache(self._images), cache(self._flat)

    def _images(self, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns x, y, x_test, y_test; with --fast a part of each, drawn from all classes."""
        options = self.arguments
        data = datasets.load(getattr(options, name), root=options.root, download=options.download)
        parts = []
        for x, y, kind in ((data.x_train, data.y_train, "train"), (data.x_test, data.y_test, "test")):
            if options.fast:
                count = FIRST_TASK.get(name, FAST["train"]) if kind == "train" else FAST[kind]
                kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count].sort().values
                x, y = x[kept], y[kept]
            parts += [x, y]
        return tuple(parts)

    def _flat(self, name: str) -> Data:
        """Returns images [n, inputs] with ink 1 on paper 0, blurred as the recipe says."""
        x, y, x_test, y_test = self.images(name)
        dark, shape, blur, sharp = x.mean() > INVERTED, tuple(x.shape[2:]), self.recipe(name).blur, None
        flat = [images.flatten(1) for images in (x, x_test)]
        for images in flat if dark else ():
            images.neg_().add_(1)
        if blur:
            sharp = tuple(pixels(images, shape).clone() for images in flat)
            for images in flat:
                blurred_(images, shape, blur)
        return Data(flat[0], y, flat[1], y_test, shape, sharp)

    def has(self, *names: str) -> bool:
        """Returns whether these data sets are given."""
        return all(getattr(self.arguments, name) for name in names)

    def recipe(self, name: str) -> Recipe:
        """Returns the recipe of a data set; with --fast, whose stream is shorter, batches are a quarter."""
        recipe = RECIPES[name]
        return replace(recipe, batch=max(1, recipe.batch // 4)) if self.arguments.fast else recipe

    def parts(self) -> list[Part]:
        """Returns all parts whose data are given."""
        return [*map(self._unsupervised, filter(self.has, ("mnist", "omniglot"))), *self._supervised()]

    def _unsupervised(self, name: str) -> Part:
        recipe = self.recipe(name)

        def compute(rows: list) -> Iterator[dict]:
            return unsupervised_rows(name, self.flat(name), seeds=self.arguments.seeds, recipe=recipe, rows=rows)

        return Part(f"unsupervised {name}", rows_for(recipe), compute, lambda row: row.recipe(recipe))

    def _supervised(self) -> Iterator[Part]:
        kinds = {
            "supervised": (supervised, supervised.supervised_rows),
            "baselines": (baselines, baselines.baseline_rows),
        }
        for kind, (module, rows_of) in kinds.items():
            for name in filter(self.has, ("mnist", "cifar10")):

                def compute(rows: list, name: str = name, rows_of: Callable = rows_of) -> Iterator[dict]:
                    return rows_of(name, *self.images(name), seeds=self.arguments.seeds, table=rows)

                yield Part(f"{kind} {name}", module.TABLE[name], compute, lambda row: row)

    def draw(self, folder: Path) -> None:
        """Draws Figures 1 to 5, of the data that are given."""
        for name in filter(self.has, ("mnist", "omniglot")):
            pictures.weights(name, self.flat(name), self.recipe(name), folder)
        if self.has("mnist"):
            pictures.forgetting(self.flat("mnist"), self.recipe("mnist"), folder)
        if self.has("cifar10"):
            pictures.classes(supervised.pictured(*self.images("cifar10")[:2]), folder)


class ResultFile:
    """results/hebbcl.json: figures of rows, joined with those of other files.

    Args:
        order: the parts and rows in the order of the file.
        provenance: returns the head of the file.
    """

    def __init__(self, path: Path, arguments: argparse.Namespace, order: list[tuple], provenance: Callable[[], dict]):
        self.path, self.order, self.provenance = path, order, provenance
        files = [json.loads(file.read_text()) for file in (path, *arguments.also) if file.exists()]
        by_identity = {tuple(run[key] for key in IDENTITY): run for file in reversed(files) for run in file["runs"]}
        repeated = arguments.parts if arguments.again else ""
        self.runs = [run for run in by_identity.values() if not fnmatch(run["part"], repeated)]
        self.commands = [command for file in files for command in file["command"].split(" && ")] if self.runs else []

    def done(self, part: Part) -> set[tuple[str, str]]:
        """Returns the rows and settings of a part that the file has."""
        return {(run["row"], run["settings"]) for run in self.runs if run["part"] == part.name}

    def add(self, run: dict) -> None:
        """Adds the figures of a row in place of older ones, and writes the file."""
        self.runs = [other for other in self.runs if any(other[key] != run[key] for key in IDENTITY)] + [run]
        self.save()

    def _position(self, run: dict) -> tuple:
        row = run["part"], run["row"]
        return self.order.index(row) if row in self.order else len(self.order), run["table"]

    def save(self) -> None:
        about = self.provenance()
        self.runs.sort(key=self._position)
        about["machine"] = "; ".join(dict.fromkeys(run["machine"] for run in self.runs))
        about["command"] = " && ".join(dict.fromkeys([*self.commands, about["command"]]))
        about["seconds"] = round(sum(run["wall"] for run in self.runs), 1)
        write(self.path, about | {"rows": [line(run) for run in self.runs], "runs": self.runs})


def table(experiment: Experiment, path: Path, provenance: Callable[[], dict]) -> None:
    """Computes the rows that the file does not have, and writes after each."""
    arguments, parts = experiment.arguments, experiment.parts()
    file = ResultFile(path, arguments, [(part.name, row.row) for part in parts for row in part.rows], provenance)
    for part in parts:
        if not fnmatch(part.name, arguments.parts):
            continue
        keys = {row.row: settings_key(part.settings(row), arguments) for row in part.rows}
        done = file.done(part)
        missing = [row for row in part.rows if (row.row, keys[row.row]) not in done]
        begin = time.perf_counter()
        for figures in part.compute(missing) if missing else ():
            now = time.perf_counter()
            run = {"part": part.name} | figures
            run |= {"settings": keys[figures["row"]], "wall": round(now - begin, 1)}
            begin = now
            print(text(line(run)), flush=True)
            file.add(run | {"machine": provenance()["machine"]})
    if arguments.also and file.runs:
        file.save()


def settings_key(settings: object, arguments: argparse.Namespace) -> str:
    """Returns the settings of a row as text; a row in the file with the same text is not computed again."""
    return f"{settings}, {arguments.seeds} seeds" + ", fast" * arguments.fast


def line(run: dict) -> dict:
    """Returns the figures of a run as a line of the result file."""
    values = run["values"]
    return {key: run[key] for key in ("table", "row", "measure", "unit", "paper")} | {
        "mean": statistics.fmean(values),
        "std": deviation(values),
        "seeds": len(values),
        "chosen_on": run["chosen_on"],
    }


def text(row: dict) -> str:
    paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
    name = f"{row['table']}  {row['row']:<32} {row['measure']:<52}"
    return f"{name} {row['mean']:6.2f} ± {row['std']:.2f} {paper:>7}"


def show(content: dict) -> None:
    """Prints the lines of a result file, table by table."""
    print(f"\n{'ours':>102} {'paper':>15}")
    for row in sorted(content["rows"], key=lambda row: row["table"]):
        print(text(row))


def search(experiment: Experiment, path: Path, provenance: Callable[[], dict]) -> None:
    """Searches settings for the data sets that are given; the file keeps those of the others."""
    arguments = experiment.arguments
    for name in filter(experiment.has, ("mnist", "omniglot")):
        if fnmatch(f"unsupervised {name}", arguments.parts):
            before = json.loads(path.read_text())["searches"] if path.exists() else {}
            known = () if arguments.again else before.get(name, {}).get("trials", ())

            def save(content: dict, name: str = name, before: dict = before) -> None:
                write(path, provenance() | {"searches": before | {name: content}})

            trials = Search(name, experiment.flat(name), save, known)
            print(name, trials.run(arguments.trials, FINALISTS, min(SEARCH_SEEDS, arguments.seeds)))
