"""PyTorch-Hebbian's experiment on Fashion-MNIST: a convolution that learns without labels, read out by backprop.

    python examples/krotov_cnn.py --data FashionMNIST --download --device cuda     # the table, three seeds
    python examples/krotov_cnn.py --search --device cuda                           # how its settings were chosen
    python examples/krotov_cnn.py --fast                                           # small: minutes on two CPU cores

400 filters of 5x5, batch norm, RePU, max pool 2x2, linear (supplementary material, section 2). Rows:

    Krotov-Hopfield, raw        as published: p = 4, k = 4, Δ = 0.4, rate 0.04 falling to 0, two images a step
    Krotov-Hopfield, centred    the same, each patch less its mean
    best learnt                 what --search found best on validation data
    random                      filters that stay as drawn from N(0, 1): the baseline that the paper left out
    best random                 the same, centred or whitened, whichever was best on validation data
    end-to-end backprop         the whole network, no Hebbian learning

All rows have the same network, schedule (Adam, batches of 256, ReduceLROnPlateau, early stopping) and data. Every
choice is made on the last sixth of the training set; the readout is then trained anew on all of it, for the epochs
and by the rates found. Filters are learnt, and batch norm's statistics taken, without that sixth (backprop trains
anew on all). The test set is used once for each row and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

import hebbkern as hk
import krotov_recipes as recipes
import krotov_report as report
from hebbkern import datasets
from krotov_filters import Moments, Recipe, effective_rank, make, moments
from krotov_network import Fitted, Network, Readout, Schedule, features, fit, measure, pixels

FAST = {"filters": 64, "pool": 4, "seeds": 1, "train": 3600, "test": 1000, "epochs": 8}


@dataclass
class Sets:
    """The data on the device. `fitted` of the training images fit what is chosen, the rest validates."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    fitted: int
    classes: int
    opened: list[tuple[str, int]] = field(default_factory=list)

    def test(self, row: str, seed: int) -> tuple[Tensor, Tensor]:
        """The test set, which each row may see once a seed."""
        assert (row, seed) not in self.opened, f"{row} has seen the test set with seed {seed}"
        self.opened.append((row, seed))
        return self.x_test, self.y_test


class Subject(NamedTuple):
    """What a row trains, on what: `inputs` of images are what `model()`, always the same new model, takes."""

    row: str
    seed: int
    inputs: Callable[[Tensor], Tensor]
    model: Callable[[], nn.Module]


class Experiment:
    """The rows of the table, each for a seed, and what they cost."""

    def __init__(self, sets: Sets, arguments: argparse.Namespace):
        self.sets, self.arguments, self.shape = sets, arguments, sets.x.shape[1:]
        self.seconds: dict[str, float] = {}
        self.moments: Moments = self.timed("moments", lambda: moments(sets.x[: sets.fitted]))

    def timed(self, part: str, work: Callable):
        """What `work` gives; its seconds are added to those of the part."""
        start = time.perf_counter()
        result = work()
        if self.sets.x.is_cuda:
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return result

    def frozen(self, row: str, recipe: Recipe, seed: int) -> tuple[Subject, Tensor]:
        """A readout of filters by the recipe, and the filters."""
        given, fitted = self.arguments, self.sets.x[: self.sets.fitted]
        options = {"count": given.filters, "seed": seed, "progress": given.progress}
        filters = self.timed("learning filters", lambda: make(recipe, fitted, self.moments, **options))

        def inputs(images):
            return self.timed("features", lambda: features(images, filters, self.moments, pool=given.pool))

        def model():
            torch.manual_seed(seed)
            places = pixels(self.shape, given.pool)
            return Readout(given.filters, places, self.sets.classes, repu=recipe.repu).to(fitted.device)

        return Subject(row, seed, inputs, model), filters

    def whole(self, row: str, seed: int) -> Subject:
        """The network of end-to-end backprop."""

        def model():
            torch.manual_seed(seed)
            network = Network(self.arguments.filters, self.shape, self.sets.classes, pool=self.arguments.pool)
            return network.to(self.sets.x.device, memory_format=torch.channels_last)

        return Subject(row, seed, lambda images: images, model)

    def validate(self, subject: Subject, x: Tensor, plan: Schedule) -> Fitted:
        """Trained on the fitted part up to the best epoch on the rest; x are the inputs of all training images."""
        cut, y, model = self.sets.fitted, self.sets.y, subject.model()
        validation = x[cut:], y[cut:]
        part = f"training {type(model).__name__}"
        return self.timed(part, lambda: fit(model, x[:cut], y[:cut], plan, seed=subject.seed, validation=validation))

    def tested(self, subject: Subject, plan: Schedule) -> tuple[dict[str, float], nn.Module]:
        """Percentages: validation, then train and test of the model trained anew on everything; and the model."""
        x, y, model = subject.inputs(self.sets.x), self.sets.y, subject.model()
        found = self.validate(subject, x, plan)
        part = f"training {type(model).__name__}"
        self.timed(part, lambda: fit(model, x, y, plan, seed=subject.seed, rates=found.rates))
        images, labels = self.sets.test(subject.row, subject.seed)
        shares = {"validation": found.validation, "train": measure(model, x, y)}
        shares["test"] = measure(model, subject.inputs(images), labels)
        return {name: 100 * share for name, share in shares.items()} | {"epochs": len(found.rates)}, model

    def row(self, row: str, recipe: Recipe | None, plan: Schedule, seed: int) -> tuple[dict[str, float], Tensor]:
        """The figures of a row and its filters; no recipe = end-to-end backprop."""
        if recipe is None:
            figures, model = self.tested(self.whole(row, seed), plan)
            filters = model.conv.weight.detach()
        else:
            subject, filters = self.frozen(row, recipe, seed)
            figures, _ = self.tested(subject, plan)
        return figures | effective_rank(filters), filters

    def trial(self, recipe: Recipe, plan: Schedule, seed: int) -> dict[str, float]:
        """Validation only."""
        subject, filters = self.frozen(recipe.name, recipe, seed)
        found = self.validate(subject, subject.inputs(self.sets.x), plan)
        return {"validation": 100 * found.validation, "epochs": len(found.rates)} | effective_rank(filters)


class Search:
    """Trials on validation data until `--limit` seconds are over. It never opens the test set."""

    def __init__(self, experiment: Experiment, arguments: argparse.Namespace):
        self.experiment, self.limit, self.seeds = experiment, arguments.limit, arguments.seeds
        self.hidden, self.start = not arguments.progress, time.perf_counter()
        self.trials: dict[tuple[str, str, int], dict[str, float]] = {}

    def trial(self, recipe: Recipe, schedule: str, seed: int, share: float = 1.0) -> float:
        """Validation accuracy in percent, −inf if `share` of the time was over."""
        key = recipe.name, schedule, seed
        if key not in self.trials and time.perf_counter() - self.start < share * self.limit:
            figures = self.trials[key] = self.experiment.trial(recipe, recipes.SCHEDULES[schedule], seed)
            tqdm.write(f"{recipe.name:<48} {schedule:<42} seed {seed}  {figures['validation']:.2f} %")
        return self.trials[key]["validation"] if key in self.trials else -math.inf

    def best(self, candidates: list[Recipe], schedule: str, finalists: int) -> dict:
        """The best by seed 0 are tried by all seeds; their means decide."""
        tried = {recipe.name: self.trial(recipe, schedule, 0, 0.7) for recipe in tqdm(candidates, disable=self.hidden)}
        last = sorted(candidates, key=lambda recipe: -tried[recipe.name])[:finalists]
        last = [recipe for recipe in last if tried[recipe.name] > 0]
        if not last:
            raise ValueError(f"krotov_cnn: limit must leave time for a recipe of each kind, got {self.limit} seconds")
        runs = [[self.trial(recipe, schedule, seed) for recipe in last] for seed in range(self.seeds)]
        complete = [run for run in runs if min(run) > 0]
        means = {recipe.name: statistics.fmean(run[index] for run in complete) for index, recipe in enumerate(last)}
        return {"recipe": max(means, key=means.get), "seeds": len(complete), "finalists": means}

    def run(self) -> dict:
        """Schedules, by random and by learnt filters alike; then random recipes; then learnt ones."""
        random, learnt = recipes.random_recipes(), recipes.learnt_recipes()
        sums = {name: self.trial(random[0], name, 0) + self.trial(learnt[1], name, 0) for name in recipes.SCHEDULES}
        schedule = max(sums, key=sums.get)
        chosen = {
            "schedule": schedule,
            "random": self.best(random, schedule, 2),
            "learnt": self.best(learnt, schedule, 5),
        }
        for name, value in chosen.items():
            print(f"chosen {name}: {value}")
        keys = "recipe", "schedule", "seed"
        trials = [dict(zip(keys, key, strict=True)) | figures for key, figures in self.trials.items()]
        return {"chosen_on": "validation", "chosen": chosen, "trials": trials}


def table(experiment: Experiment, arguments: argparse.Namespace) -> dict:
    """Every row for every seed, and the pictures of the first seed's filters."""
    plan = recipes.SCHEDULES[arguments.schedule]
    if arguments.fast:
        plan = replace(plan, epochs=FAST["epochs"])
    rows = recipes.rows(arguments.best, arguments.random)
    runs: dict[str, list[dict]] = {row: [] for row in rows}
    with tqdm(total=len(rows) * arguments.seeds, disable=not arguments.progress) as bar:
        for seed in range(arguments.seeds):
            for row, recipe in rows.items():
                figures, filters = experiment.row(row, recipe, plan, seed)
                runs[row].append(figures)
                if seed == 0:
                    report.draw(row, filters, Path(arguments.results))
                words = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
                tqdm.write(f"seed {seed}  {row:<54} {words}")
                bar.update()
    found = report.summary(runs)
    report.show(found)
    return found | {"test_set_used": len(experiment.sets.opened), "runs": runs}


def load(arguments: argparse.Namespace) -> Sets:
    data = datasets.load(arguments.data, root=arguments.root, download=arguments.download)
    device = torch.device(arguments.device)
    train, test = (FAST["train"], FAST["test"]) if arguments.fast else (None, None)
    tensors = data.x_train[:train], data.y_train[:train], data.x_test[:test], data.y_test[:test]
    x, y, x_test, y_test = (tensor.to(device) for tensor in tensors)
    return Sets(x, y, x_test, y_test, len(x) - len(x) // 6, data.classes)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="FashionMNIST", help="a data set of torchvision, or a .npz file")
    parser.add_argument("--root", default="data", help="where torchvision keeps its files")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--search", action="store_true", help="choose settings on validation data; no table")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds after which --search tries nothing new")
    parser.add_argument("--fast", action="store_true", help="few images, few filters, one seed, into runs/krotov_cnn")
    parser.add_argument("--filters", type=int, help="(default 400)")
    parser.add_argument("--pool", type=int, help="of the max pool (default 2; 4 needs a quarter of the memory)")
    parser.add_argument("--seeds", type=int, help="(default 3)")
    parser.add_argument("--best", default=recipes.BEST, help="recipe of the row best learnt")
    parser.add_argument("--random", default=recipes.BEST_RANDOM, help="recipe of the row best random")
    parser.add_argument("--schedule", default=recipes.BEST_SCHEDULE, choices=recipes.SCHEDULES)
    parser.add_argument("--results", help="folder (default results, with --fast runs/krotov_cnn)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty())
    arguments = parser.parse_args(argv)
    usual = FAST if arguments.fast else {"filters": 400, "pool": 2, "seeds": 3}
    for name in ("filters", "pool", "seeds"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual[name])
    arguments.results = arguments.results or ("runs/krotov_cnn" if arguments.fast else "results")
    return arguments


def main(argv: list[str] | None = None) -> dict:
    start, arguments = time.perf_counter(), parse(argv)
    folder = Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(load(arguments), arguments)
    found = Search(experiment, arguments).run() if arguments.search else table(experiment, arguments)
    seconds = experiment.seconds | {"in all": time.perf_counter() - start}
    for name, value in seconds.items():
        print(f"{name:<20} {value:7.1f} s")
    given = [Path(word).name if "/" in word else word for word in (sys.argv[1:] if argv is None else argv)]
    written = {
        "command": shlex.join(["python", "examples/krotov_cnn.py", *given]),
        "version": hk.__version__,
        "machine": torch.cuda.get_device_name() if experiment.sets.x.is_cuda else report.processor(),
        "torch": torch.__version__,
        "seconds": round(seconds["in all"], 1),
        "parts": {name: round(value, 1) for name, value in experiment.seconds.items()},
        "settings": {name: getattr(arguments, name) for name in ("filters", "pool", "seeds", "schedule")},
    } | found
    path = folder / ("krotov_cnn_search.json" if arguments.search else "krotov_cnn.json")
    path.write_text(json.dumps(written, indent=2) + "\n")
    print(path)
    return written


if __name__ == "__main__":
    main()
