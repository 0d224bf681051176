"""The runs that rows of the tables need, and the result file that keeps them."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from examples.papers.common.results import deviation
from examples.papers.dhp_softmax import pictures, recipes
from examples.papers.dhp_softmax.benchmarks import NEEDS, build
from examples.papers.dhp_softmax.recipes import Row
from examples.papers.dhp_softmax.training import Benchmark, Settings, learn, side_by_side
from hebbkern import datasets
from hebbkern.continual import metrics

FAST, FAST_CONVOLUTIONS = (("train", 3000), ("test", 1000)), (("train", 600), ("test", 300))  # images of each set
MEASURES = {
    "average accuracy": (metrics.average_accuracy, "%", 0),
    "backward transfer": (lambda matrix: metrics.backward_transfer(matrix) / 100, "", 1),
}


class Experiment:
    """The data, loaded when first needed, the runs that are known, and those that rows need."""

    def __init__(self, arguments: argparse.Namespace, runs: list[dict]):
        self.arguments, self.runs = arguments, {key(run): run for run in runs}
        self.data, self.sets, self.benchmark = cache(self._data), cache(self._sets), cache(self._benchmark)

    def _data(self, name: str, inputs: str, images: tuple[tuple[str, int], ...]) -> datasets.Dataset:
        """Returns a data set on the device of the runs; of each part in `images` that many, drawn from all classes."""
        options = self.arguments
        data = datasets.load(getattr(options, name), root=options.root, download=options.download, preprocess=inputs)
        parts = {"x_train": data.x_train, "y_train": data.y_train, "x_test": data.x_test, "y_test": data.y_test}
        for part, most in images:
            kept = balanced(parts[f"y_{part}"], most)
            parts |= {key: parts[key][kept] for key in (f"x_{part}", f"y_{part}")}
        return replace(data, name=name, **{key: tensor.to(options.device) for key, tensor in parts.items()})

    def _sets(self, name: str, inputs: str) -> dict[str, datasets.Dataset]:
        """Returns the data sets that a benchmark needs; missing ones are named once and left out."""
        images = (FAST if NEEDS[name] == ("mnist",) else FAST_CONVOLUTIONS) if self.arguments.fast else ()
        sets = {}
        for source in filter(partial(getattr, self.arguments), NEEDS[name]):
            try:
                sets[source] = self.data(source, inputs, images)
            except FileNotFoundError as error:
                print(f"{name}: without {source}: {error}", flush=True)
        return sets

    def _benchmark(self, name: str, inputs: str, seed: int) -> Benchmark | None:
        """Returns a benchmark, or None where its data are missing; the mixture needs two of its data sets."""
        sets = self.sets(name, inputs)
        enough = len(sets) > 1 if name == "mixture" else len(sets) == len(NEEDS[name])
        return build(name, sets, seed) if enough else None

    def has(self, name: str) -> bool:
        """Returns whether the data of a benchmark are given; the mixture needs two of its data sets."""
        given = [bool(getattr(self.arguments, source)) for source in NEEDS[name]]
        return sum(given) > 1 if name == "mixture" else all(given)

    def settings(self, row: Row) -> Settings:
        """Returns the settings of a row; with --fast fewer epochs of smaller batches."""
        settings = row.settings
        fast = {"epochs": 2, "most": 3, "patience": min(settings.patience, 1), "batch": 16}
        return replace(settings, **fast) if self.arguments.fast else settings

    def missing(self, rows: list[tuple[Row, range]]) -> Iterator[Iterator[dict | None]]:
        """Yields the runs that these rows need and that are not known, ready to start."""
        known = set(self.runs)
        for row, seeds in rows:
            settings = self.settings(row)
            for seed in seeds:
                identity = self.key(row, seed)
                if identity not in known:
                    known.add(identity)
                    benchmark = self.benchmark(row.benchmark, settings.inputs, seed)
                    if benchmark is not None:
                        yield learn(benchmark, settings, seed, self.arguments.device, on=row.on)

    def compute(self, rows: list[tuple[Row, range]]) -> Iterator[dict]:
        """Yields the runs that are missing, as they are done."""
        for run in side_by_side(self.missing(rows), self.arguments.device, self.arguments.at_once):
            run = run | {"settings": brief(run["settings"])}
            self.runs[key(run)] = run
            yield run

    def key(self, row: Row, seed: int) -> tuple:
        """Returns the key of a run of this row."""
        settings = brief(self.settings(row))
        return key({"benchmark": row.benchmark, "settings": settings, "on": row.on, "seed": seed})

    def of(self, row: Row, seeds: range) -> list[dict]:
        """Returns the known runs of a row."""
        keys = [self.key(row, seed) for seed in seeds]
        return [self.runs[key] for key in keys if key in self.runs]

    def lines(self, row: Row, seeds: range) -> list[dict]:
        """Returns the lines of the result file: one per measure, with the standard error, for each set of data."""
        runs, lines = self.of(row, seeds), []
        for sets in sorted({tuple(run.get("tasks", ())) for run in runs}):
            own = [run for run in runs if tuple(run.get("tasks", ())) == sets]
            whole = len(sets) in (0, len(NEEDS["mixture"]))
            table = f"{row.table} of {', '.join(sets)}" if sets else row.table
            for name, (measure, unit, which) in MEASURES.items():
                values = [measure(filled(run["R"])) for run in own if run["R"]]
                paper = row.paper[which] if whole else None
                about = name if row.on == "test" else f"{name}, validation"
                head = {"table": table, "row": row.row, "measure": about, "unit": unit, "paper": paper}
                lines.append(head | statistic(values, len(own)) | {"chosen_on": row.chosen_on})
        return lines

    def chosen(self, benchmark: str) -> list[Settings]:
        """Returns the settings of each method with the highest accuracy in the search."""
        best: dict[str, tuple[float, Settings]] = {}
        for row in recipes.grid(benchmark):
            method = row.settings.method
            for run in self.of(row, range(1)):
                value = metrics.average_accuracy(run["R"]) if run["R"] else 0.0
                if value > best.get(method, (0.0, None))[0]:
                    best[method] = value, row.settings
        return [settings for _, settings in best.values()]

    def parts(self) -> dict[str, tuple[list[Row], range]]:
        """Returns rows and seeds by the name of a part, for the benchmarks whose data are given."""
        seeds, mnist = range(self.arguments.seeds), ("permuted", "imbalanced", "split")
        parts = {f"table1 {name}": (recipes.table1(name), seeds) for name in (*mnist, "mixture")}
        parts["figure8 cifar"] = recipes.table1("cifar"), seeds
        for kind in ("alike", "bounded", "unalike", "literal"):
            parts |= {f"{kind} {name}": (getattr(recipes, kind)(name), seeds) for name in mnist}
        parts |= {f"stopped {name}": (recipes.stopped(name), seeds) for name in ("permuted", "imbalanced")}
        parts |= {f"eta {name}": (recipes.table4(name), seeds) for name in mnist}
        parts["protocols"] = recipes.protocols(), seeds
        parts |= {f"search {name}": (recipes.grid(name), range(1)) for name in mnist}
        parts |= {f"chosen {name}": (recipes.second(name, self.chosen(name)), seeds) for name in mnist}
        return {name: part for name, part in parts.items() if self.has(name.partition(" ")[2] or "split")}


def statistic(values: list[float], runs: int) -> dict:
    """Returns mean, deviation, standard error and the number of runs that diverged; None where all did."""
    result = {"mean": None, "std": None, "seeds": len(values), "error": None}
    if values:
        result |= {"mean": statistics.fmean(values), "std": deviation(values)}
        result["error"] = result["std"] / len(values) ** 0.5
    return result | ({"diverged": runs - len(values)} if len(values) < runs else {})


def balanced(labels: Tensor, most: int) -> Tensor:
    """Returns the indices of about `most` random samples, equally many and at least one of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    each = max(1, most // int(labels.max() + 1))
    kept = [order[labels[order] == label][:each] for label in labels.unique()]
    return torch.cat(kept).sort().values


def brief(settings: Settings) -> dict:
    """Returns the settings that differ from the defaults; results depend on these defaults, so they must not change."""
    defaults = asdict(Settings())
    return {name: value for name, value in asdict(settings).items() if value != defaults[name]}


def key(run: dict) -> tuple:
    """Returns what tells a run from others."""
    return run["benchmark"], json.dumps(run["settings"], sort_keys=True), run["on"], run["seed"]


def filled(matrix: list[list[float | None]]) -> list[list[float]]:
    """Returns R for `metrics`; Scratch, whose networks know one task each, gets the accuracy of each task's network."""
    tasks = len(matrix)
    return [pictures.at_last(matrix[:learnt]) + [float("nan")] * (tasks - learnt) for learnt in range(1, tasks + 1)]


def text(row: dict) -> str:
    paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
    name = f"{row['table']:<36} {row['row']:<64} {row['measure']:<18}"
    value = "" if row["mean"] is None else f"{row['mean']:6.2f} ± {row['error']:.2f}"
    diverged = f"  {row['diverged']} diverged" if "diverged" in row else ""
    return f"{name} {value:>13} {paper:>7}{diverged}"


def save(experiment: Experiment, path: Path, about: dict) -> dict:
    """Writes the rows that have runs, and the runs, each on a line; returns the content of the file."""
    rows = [
        line for part, seeds in experiment.parts().values() for row in part for line in experiment.lines(row, seeds)
    ]
    runs = [run for _, run in sorted(experiment.runs.items())]
    seconds = round(sum(run["seconds"] for run in runs), 1)
    content = about | {"seconds": seconds, "rows": rows, "runs": runs}
    lines = ",\n".join(map(json.dumps, runs))
    written = json.dumps(content | {"runs": []}, indent=1).replace('"runs": []', f'"runs": [\n{lines}\n]')
    unfinished = path.with_suffix(".part")
    unfinished.write_text(written + "\n")
    unfinished.replace(path)
    return content


def read(paths: list[Path]) -> list[dict]:
    """Returns the runs of these files, each once."""
    files = [json.loads(file.read_text())["runs"] for file in paths if file.exists()]
    return list({key(run): run for runs in files for run in runs}.values())
