"""DHP Softmax's experiments: tasks learnt one after the other by gradients, with a Hebbian trace in the readout.

    python examples/dhp_softmax.py --download                       # all tables and pictures, three seeds
    python examples/dhp_softmax.py --parts "table1 split"           # one of them
    python examples/dhp_softmax.py --fast                           # small: a minute or two on two cores

Differentiable Hebbian Consolidation for Continual Learning (Table 1, Table 4, Figures 2 to 6 and 8). Parts, chosen by
--parts:

    table1 permuted, imbalanced, split, mixture    Finetune, SI, Online EWC and MAS, without and with DHP (appendix A)
    figure8 cifar                                  CIFAR-10, then five times ten classes of CIFAR-100
    eta permuted, imbalanced, split                Table 4: where η starts
    alike permuted, imbalanced, split              the rows without DHP, their readouts started as those with DHP are
    bounded permuted, imbalanced, split            those with DHP and a free η, with η kept from 0 to 1
    unalike permuted, imbalanced, split            the rows with DHP, their readouts started as torch's are
    literal permuted, imbalanced, split            the rows of Table 1 with η bounded or importances by batch, without
    stopped permuted, imbalanced                   early stopping, from 10 to 30 epochs
    protocols                                      Split MNIST in the ways in which the text may be read
    search ..., chosen ...                         settings found on held-out training samples, and their table
    pictures                                       Figures 2 to 6 and 8, of the runs that are there

A run (benchmark, settings, seed) is computed once: those in the results, or in those given by --also, are taken from
there. On a GPU (--device cuda) many learn side by side. The paper's ten seeds: --seeds 10.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

import hebbkern as hk
from examples.papers.dhp_softmax import pictures, recipes
from examples.papers.dhp_softmax.benchmarks import NEEDS, build
from examples.papers.dhp_softmax.recipes import Row
from examples.papers.dhp_softmax.training import Benchmark, Settings, learn, side_by_side
from examples.papers.krotov_hopfield.report import command, deviation
from hebbkern import datasets
from hebbkern.cli import doctor
from hebbkern.continual import metrics

SOURCES = {  # by default classes of torchvision; notMNIST has none there
    "mnist": "MNIST",
    "notmnist": "",
    "fashionmnist": "FashionMNIST",
    "svhn": "SVHN",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
FAST, FAST_CONVOLUTIONS = (("train", 3000), ("test", 1000)), (("train", 600), ("test", 300))  # images of each set
FAST_PARTS = "table1 *,figure8 *,eta split,pictures"
MEASURES = {
    "average accuracy": (metrics.average_accuracy, "%", 0),
    "backward transfer": (lambda matrix: metrics.backward_transfer(matrix) / 100, "", 1),
}


class Experiment:
    """The data, read when first asked for, the runs there are, and those that a row needs."""

    def __init__(self, arguments: argparse.Namespace, runs: list[dict]):
        self.arguments, self.runs = arguments, {key(run): run for run in runs}
        self.data, self.sets, self.benchmark = cache(self._data), cache(self._sets), cache(self._benchmark)

    def _data(self, name: str, inputs: str, images: tuple[tuple[str, int], ...]) -> datasets.Dataset:
        """On the device of the runs; of so many images, drawn from all classes, or of all."""
        given = self.arguments
        data = datasets.load(getattr(given, name), root=given.root, download=given.download, preprocess=inputs)
        parts = {"x_train": data.x_train, "y_train": data.y_train, "x_test": data.x_test, "y_test": data.y_test}
        for part, most in images:
            kept = some(parts[f"y_{part}"], most)
            parts |= {key: parts[key][kept] for key in (f"x_{part}", f"y_{part}")}
        return replace(data, name=name, **{key: tensor.to(given.device) for key, tensor in parts.items()})

    def _sets(self, name: str, inputs: str) -> dict[str, datasets.Dataset]:
        """Those that a benchmark needs; what is not there is told of once."""
        images = (FAST if NEEDS[name] == ("mnist",) else FAST_CONVOLUTIONS) if self.arguments.fast else ()
        sets = {}
        for source in filter(partial(getattr, self.arguments), NEEDS[name]):
            try:
                sets[source] = self.data(source, inputs, images)
            except FileNotFoundError as error:
                print(f"{name}: without {source}: {error}", flush=True)
        return sets

    def _benchmark(self, name: str, inputs: str, seed: int) -> Benchmark | None:
        """None where its data are not there; the mixture does with two sets."""
        sets = self.sets(name, inputs)
        enough = len(sets) > 1 if name == "mixture" else len(sets) == len(NEEDS[name])
        return build(name, sets, seed) if enough else None

    def there(self, name: str) -> bool:
        """Whether the data of a benchmark are; the mixture does with those that are."""
        given = [bool(getattr(self.arguments, source)) for source in NEEDS[name]]
        return sum(given) > 1 if name == "mixture" else all(given)

    def settings(self, row: Row) -> Settings:
        """With --fast fewer epochs, of smaller batches."""
        settings = row.settings
        fast = {"epochs": 2, "most": 3, "patience": min(settings.patience, 1), "batch": 16}
        return replace(settings, **fast) if self.arguments.fast else settings

    def missing(self, rows: list[tuple[Row, range]]) -> Iterator[Iterator[dict | None]]:
        """The runs that these rows need and that are not there."""
        asked = set(self.runs)
        for row, seeds in rows:
            settings = self.settings(row)
            for seed in seeds:
                told = self.key(row, seed)
                if told not in asked:
                    asked.add(told)
                    benchmark = self.benchmark(row.benchmark, settings.inputs, seed)
                    if benchmark is not None:
                        yield learn(benchmark, settings, seed, self.arguments.device, on=row.on)

    def compute(self, rows: list[tuple[Row, range]]) -> Iterator[dict]:
        """The runs that are missing, as they are done."""
        for run in side_by_side(self.missing(rows), self.arguments.device, self.arguments.at_once):
            run = run | {"settings": brief(run["settings"])}
            self.runs[key(run)] = run
            yield run

    def key(self, row: Row, seed: int) -> tuple:
        """What tells a run of this row from others."""
        told = {"benchmark": row.benchmark, "settings": brief(self.settings(row)), "on": row.on}
        return key(told | {"seed": seed})

    def of(self, row: Row, seeds: range) -> list[dict]:
        """The runs of a row that are there."""
        keys = [self.key(row, seed) for seed in seeds]
        return [self.runs[key] for key in keys if key in self.runs]

    def lines(self, row: Row, seeds: range) -> list[dict]:
        """Of results/*.json, one for each measure, with the standard error; of other data apart."""
        runs, found = self.of(row, seeds), []
        for sets in sorted({tuple(run.get("tasks", ())) for run in runs}):
            own = [run for run in runs if tuple(run.get("tasks", ())) == sets]
            whole = len(sets) in (0, len(NEEDS["mixture"]))
            table = f"{row.table} of {', '.join(sets)}" if sets else row.table
            for name, (measure, unit, which) in MEASURES.items():
                values = [measure(filled(run["R"])) for run in own if run["R"]]
                paper = row.paper[which] if whole else None
                about = name if row.on == "test" else f"{name}, validation"
                head = {"table": table, "row": row.row, "measure": about, "unit": unit, "paper": paper}
                found.append(head | statistic(values, len(own)) | {"chosen_on": row.chosen_on})
        return found

    def chosen(self, benchmark: str) -> list[Settings]:
        """For each method the settings of the highest accuracy in the search that is there."""
        best: dict[str, tuple[float, Settings]] = {}
        for row in recipes.grid(benchmark):
            method = row.settings.method
            for run in self.of(row, range(1)):
                value = metrics.average_accuracy(run["R"]) if run["R"] else 0.0
                if value > best.get(method, (0.0, None))[0]:
                    best[method] = value, row.settings
        return [settings for _, settings in best.values()]

    def parts(self) -> dict[str, tuple[list[Row], range]]:
        """Rows and seeds by the name of a part, of the benchmarks whose data are there."""
        seeds, mnist = range(self.arguments.seeds), ("permuted", "imbalanced", "split")
        parts = {f"table1 {name}": (recipes.table1(name), seeds) for name in (*mnist, "mixture")}
        parts["figure8 cifar"] = recipes.table1("cifar"), seeds
        parts |= {f"alike {name}": (recipes.alike(name), seeds) for name in mnist}
        parts |= {f"bounded {name}": (recipes.bounded(name), seeds) for name in mnist}
        parts |= {f"unalike {name}": (recipes.unalike(name), seeds) for name in mnist}
        parts |= {f"literal {name}": (recipes.literal(name), seeds) for name in mnist}
        parts |= {f"stopped {name}": (recipes.stopped(name), seeds) for name in ("permuted", "imbalanced")}
        parts |= {f"eta {name}": (recipes.table4(name), seeds) for name in mnist}
        parts["protocols"] = recipes.protocols(), seeds
        parts |= {f"search {name}": (recipes.grid(name), range(1)) for name in mnist}
        parts |= {f"chosen {name}": (recipes.second(name, self.chosen(name)), seeds) for name in mnist}
        return {name: part for name, part in parts.items() if self.there(name.partition(" ")[2] or "split")}


def statistic(values: list[float], runs: int) -> dict:
    """Mean, deviation and standard error; None where all runs diverged, whose number stands beside."""
    found = {"mean": None, "std": None, "seeds": len(values), "error": None}
    if values:
        found |= {"mean": statistics.fmean(values), "std": deviation(values)}
        found["error"] = found["std"] / len(values) ** 0.5
    return found | ({"diverged": runs - len(values)} if len(values) < runs else {})


def some(labels: Tensor, most: int) -> Tensor:
    """Where about `most` samples are, as many of each class, drawn at random: at least one of each."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    each = max(1, most // int(labels.max() + 1))
    kept = [order[labels[order] == label][:each] for label in labels.unique()]
    return torch.cat(kept).sort().values


def brief(settings: Settings) -> dict:
    """What is not as in `Settings()`: whoever changes a default there gives other meaning to the results there are."""
    usual = asdict(Settings())
    return {name: value for name, value in asdict(settings).items() if value != usual[name]}


def key(run: dict) -> tuple:
    return run["benchmark"], json.dumps(run["settings"], sort_keys=True), run["on"], run["seed"]


def filled(matrix: list[list[float | None]]) -> list[list[float]]:
    """R for `metrics`: a network that starts anew for each task knows what it learnt then."""
    tasks = len(matrix)
    return [pictures.at_last(matrix[:learnt]) + [float("nan")] * (tasks - learnt) for learnt in range(1, tasks + 1)]


def words(row: dict) -> str:
    paper = "" if row["paper"] is None else f"{row['paper']:.2f}"
    name = f"{row['table']:<36} {row['row']:<64} {row['measure']:<18}"
    value = "" if row["mean"] is None else f"{row['mean']:6.2f} ± {row['error']:.2f}"
    lost = f"  {row['diverged']} diverged" if "diverged" in row else ""
    return f"{name} {value:>13} {paper:>7}{lost}"


def keep(experiment: Experiment, path: Path, about: dict) -> dict:
    """Writes the rows of whatever has runs, and the runs, each on a line."""
    rows = [
        line for part, seeds in experiment.parts().values() for row in part for line in experiment.lines(row, seeds)
    ]
    runs = [run for _, run in sorted(experiment.runs.items())]
    seconds = round(sum(run["seconds"] for run in runs), 1)
    found = about | {"seconds": seconds, "rows": rows, "runs": runs}
    lines = ",\n".join(map(json.dumps, runs))
    text = json.dumps(found | {"runs": []}, indent=1).replace('"runs": []', f'"runs": [\n{lines}\n]')
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
    return found


def read(files: list[Path]) -> list[dict]:
    """The runs of these files, each once."""
    found = [json.loads(file.read_text())["runs"] for file in files if file.exists()]
    return list({key(run): run for runs in found for run in runs}.values())


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, source in SOURCES.items():
        help = "a data set of torchvision, a .npz file, or '' for none" if name == "mnist" else "the same"
        parser.add_argument(f"--{name}", default=source, help=f"{help} (default {source or 'none'})")
    parser.add_argument("--root", default="data", help="where torchvision keeps its files")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parts = f"patterns, by commas, e.g. 'table1 split,eta *'; other rows stay (default all, with --fast '{FAST_PARTS}')"
    parser.add_argument("--parts", help=parts)
    parser.add_argument("--rows", default="*", help="a pattern of rows, e.g. 'DHP*'")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="results of other runs, to join")
    parser.add_argument("--fast", action="store_true", help="few images and epochs, one seed, into runs/dhp_softmax")
    parser.add_argument("--seeds", type=int, help="(default 3; the paper has 10)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--at-once", type=int, default=16, help="runs side by side, on a GPU")
    parser.add_argument("--results", help="folder (default results, with --fast runs/dhp_softmax)")
    given = parser.parse_args(argv)
    if given.seeds is not None and given.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {given.seeds}")
    if missing := [str(path) for path in given.also if not path.exists()]:
        parser.error(f"--also must be files that exist, got {', '.join(missing)}")
    given.parts = given.parts or (FAST_PARTS if given.fast else "*")
    given.seeds = given.seeds or (1 if given.fast else 3)
    given.results = given.results or ("runs/dhp_softmax" if given.fast else "results")
    given.at_once = given.at_once if given.device != "cpu" else 1
    return given


def main(argv: list[str] | None = None) -> None:
    given = parse(argv)
    folder = Path(given.results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dhp_softmax.json"
    experiment = Experiment(given, read([path, *given.also]))
    about = {
        "command": command("dhp_softmax", argv),
        "version": hk.__version__,
        "machine": doctor.processor() if given.device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    wanted = [one.strip() for one in given.parts.split(",")]
    known = [*experiment.parts(), "pictures"]
    if strange := [one for one in wanted if not any(fnmatch(name, one) for name in known)]:
        sys.exit(f"dhp_softmax: --parts must be of {', '.join(known)}, got {', '.join(strange)}")
    asked = [name for name in known[:-1] if any(fnmatch(name, one) for one in wanted)]
    for chosen in (False, True):  # what is chosen hangs on the search
        begin, parts = time.perf_counter(), experiment.parts()
        rows = [parts[name] for name in asked if name.startswith("chosen") == chosen]
        rows = [(row, seeds) for of, seeds in rows for row in of if fnmatch(row.row, given.rows)]
        for run in experiment.compute(rows):
            value = f"{metrics.average_accuracy(filled(run['R'])):.2f}" if run["R"] else "diverged"
            print(
                f"{run['benchmark']} {run['settings']} seed {run['seed']}: {value} in {run['seconds']:.0f} s",
                flush=True,
            )
            keep(experiment, path, about)
        print(f"{time.perf_counter() - begin:.0f} s")
    if asked and not experiment.runs:
        sys.exit("dhp_softmax: none of the data are there; nothing was run")
    found = keep(experiment, path, about)
    if any(fnmatch("pictures", one) for one in wanted):
        pictures.draw(experiment, folder)
    for row in found["rows"]:
        print(words(row))
    print(path)


if __name__ == "__main__":
    main()
