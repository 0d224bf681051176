"""PyTorch-Hebbian's experiment on Fashion-MNIST: a convolution that learns without labels, read out by backprop.

    python examples/krotov_cnn.py --data FashionMNIST --download             # the table, three seeds
    python examples/krotov_cnn.py --data FashionMNIST --download --search    # how its settings were chosen
    python examples/krotov_cnn.py --fast                                     # small: a minute or two on two cores

Results are written after each row and each trial; --rows adds some rows to those that are there, --search goes on.

400 filters of 5x5, batch norm, RePU, max pool, linear (supplementary material, section 2). Rows:

    best learnt                 what --search found best on validation data
    random                      filters that stay as drawn from N(0, 1): the baseline that the paper left out
    best random                 the same, centred or whitened, whichever was best on validation data
    Krotov-Hopfield, centred    p = 4, k = 4, Δ = 0.4, rate 0.04 falling to 0, on patches less their means
    Krotov-Hopfield, raw        as published: the same on patches as they are, two images a step
    end-to-end backprop         the whole network, no Hebbian learning

All rows have the same network and data. The paper trains by ReduceLROnPlateau with early stopping; here a schedule is
fixed beforehand on validation data (the last sixth of the training set, shuffled): Adam, batches of 256, label
smoothing, 10 epochs, a rate that falls linearly to 0; 8 epochs for backprop, whose rate was the best of three after two
epochs of 15,000 images, and which would gain by more. Each row and seed then learns once on the whole training set and
sees the test set once. Pools are 4x4 in every row, where the paper's are 2x2: a quarter of the features, which two CPU
cores read out in one to two seconds an epoch. The number of threads changes the last bits of products, and so results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import hebbkern as hk
from examples.papers.common import held_out as once
from examples.papers.krotov_hopfield import recipes, report
from examples.papers.krotov_hopfield.filters import Moments, Recipe, effective_rank, make, moments
from examples.papers.krotov_hopfield.network import Network, Readouts, Schedule, features, fit, mean_of, measure
from hebbkern import datasets
from hebbkern.cli import doctor

USUAL = {"filters": 400, "pool": 4, "seeds": 3}
FAST = {"filters": 64, "pool": 4, "seeds": 1, "train": 3600, "test": 1000, "epochs": 4}


@dataclass
class Sets(once.Sets):
    """The data on the device. `fitted` of the training images fit what is chosen, the rest validates."""

    fitted: int
    classes: int


class Experiment:
    """What rows and trials have in common, and what their parts cost."""

    def __init__(self, sets: Sets, arguments: argparse.Namespace):
        self.sets, self.arguments, self.shape = sets, arguments, sets.x.shape[1:]
        self.seconds: dict[str, float] = {}
        self.learnt_from = sets.x[: sets.fitted] if arguments.search else sets.x
        self.moments: Moments = self.timed("moments", lambda: moments(self.learnt_from))

    def timed(self, part: str, work: Callable):
        """What `work` gives; its seconds are added to those of the part."""
        start = time.perf_counter()
        result = work()
        if self.sets.x.is_cuda:
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return result

    def filters(self, recipe: Recipe, seed: int) -> Tensor:
        options = {"count": self.arguments.filters, "seed": seed, "progress": self.arguments.progress}
        return self.timed("learning filters", lambda: make(recipe, self.learnt_from, self.moments, **options))

    def features(self, images: Tensor, filters: Tensor) -> Tensor:
        return self.timed("features", lambda: features(images, filters, self.moments, pool=self.arguments.pool))

    def readouts(self, x: Tensor, y: Tensor, plans: list[Schedule], seed: int) -> Readouts:
        """Trained on these features, one for each plan."""
        torch.manual_seed(seed)
        model = Readouts(x.shape[1], self.sets.classes, len(plans)).to(x.device)
        self.timed("training readouts", lambda: fit(model, x, y, plans, seed=seed))
        return model

    def network(self, x: Tensor, y: Tensor, plan: Schedule, seed: int) -> Network:
        """Trained end to end on these images."""
        torch.manual_seed(seed)
        given = self.arguments
        model = Network(given.filters, self.moments, self.shape, self.sets.classes, pool=given.pool).to(x.device)
        model.centre(x[:2000])
        self.timed("training networks", lambda: fit(model, x, y, [plan], seed=seed))
        return model

    def row(self, row: str, recipe: Recipe | None, plan: Schedule, seed: int) -> tuple[dict[str, float], Tensor]:
        """Percentages and ranks of a row, and its filters; no recipe = end-to-end backprop."""
        x, y, model = self.sets.x, self.sets.y, None
        if recipe is None:
            model = self.network(x, y, plan, seed)
            filters = model.conv.weight.detach()
        else:
            filters = self.filters(recipe, seed)
            x = self.features(x, filters)
            x -= (mean := mean_of(x))
            model = self.readouts(x, y, [plan], seed)
        figures = {"train": 100 * measure(model, x, y)[0]}
        x, y = self.sets.test(row, seed)
        if recipe is not None:
            x = self.features(x, filters).sub_(mean)
        return figures | {"test": 100 * measure(model, x, y)[0]} | effective_rank(filters), filters


class Search:
    """Trials on validation data, never of the test set. Those in `known` are not tried again."""

    def __init__(self, experiment: Experiment, seeds: int, write: Callable[[dict], None], known: list[dict]):
        self.experiment, self.seeds, self.write = experiment, seeds, write
        self.trials = {(trial["recipe"], trial["schedule"], trial["seed"]): trial["validation"] for trial in known}

    def trial(self, recipe: Recipe, schedules: list[str], seed: int) -> list[float]:
        """Validation accuracy in percent by each schedule, all of them on the same features; written at once."""
        if not all((recipe.name, schedule, seed) in self.trials for schedule in schedules):
            y, cut = self.experiment.sets.y, self.experiment.sets.fitted
            x = self.experiment.features(self.experiment.sets.x, self.experiment.filters(recipe, seed))
            x -= mean_of(x[:cut])
            model = self.experiment.readouts(x[:cut], y[:cut], [recipes.SCHEDULES[name] for name in schedules], seed)
            for schedule, share in zip(schedules, measure(model, x[cut:], y[cut:]), strict=True):
                self.trials[recipe.name, schedule, seed] = round(100 * share, 4)
                tqdm.write(f"{recipe.name:<56} {schedule:<24} seed {seed}  {100 * share:.2f} %")
            self.tell()
        return [self.trials[recipe.name, schedule, seed] for schedule in schedules]

    def tell(self, **more) -> None:
        keys = "recipe", "schedule", "seed"
        trials = [dict(zip(keys, key, strict=True)) | {"validation": share} for key, share in self.trials.items()]
        self.write({"chosen_on": "validation"} | more | {"trials": trials})

    def best(self, candidates: list[Recipe], schedule: str, finalists: int) -> dict:
        """The best by seed 0 are tried by all seeds; their means decide."""
        tried = {recipe: self.trial(recipe, [schedule], 0)[0] for recipe in candidates}
        last = sorted(candidates, key=tried.get)[-finalists:]
        seeds = range(self.seeds)
        means = {
            recipe.name: statistics.fmean(self.trial(recipe, [schedule], seed)[0] for seed in seeds) for recipe in last
        }
        return {"recipe": max(means, key=means.get), "seeds": self.seeds, "finalists": means}

    def run(self) -> None:
        """Schedules, by random and by learnt filters alike; then random recipes; then learnt ones."""
        random, learnt, names = recipes.random_recipes(), recipes.learnt_recipes(), list(recipes.SCHEDULES)
        sums = [sum(pair) for pair in zip(*(self.trial(kind[0], names, 0) for kind in (random, learnt)), strict=True)]
        schedule = names[sums.index(max(sums))]
        chosen = {"schedule": schedule}
        for kind, candidates in {"random": random, "learnt": learnt}.items():
            chosen[kind] = self.best(candidates, schedule, 2)
        self.tell(chosen=chosen)
        print(json.dumps(chosen, indent=2))


def table(experiment: Experiment, arguments: argparse.Namespace, write: Callable[[dict], None]) -> None:
    """Each row asked for, with every seed, written after each, and the pictures of the first seed's filters."""
    rows = recipes.rows(arguments.best, arguments.random)
    runs: dict[str, list[dict]] = {row: [] for row in rows if fnmatch(row, arguments.rows)}
    jobs = [(row, seed) for seed in range(arguments.seeds) for row in runs]
    for row, seed in tqdm(jobs, disable=not arguments.progress):
        plan = recipes.SCHEDULES[arguments.schedule] if rows[row] else recipes.BACKPROP
        if arguments.fast:
            plan = replace(plan, epochs=FAST["epochs"])
        start = time.perf_counter()
        figures, filters = experiment.row(row, rows[row], plan, seed)
        words = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
        tqdm.write(f"seed {seed}  {row:<54} {words}")
        figures |= {"seconds": round(time.perf_counter() - start, 1), "schedule": asdict(plan)}
        runs[row].append(figures)
        if seed == 0:
            report.draw(row, filters, Path(arguments.results))
        write(runs)


def load(arguments: argparse.Namespace) -> Sets:
    """Training images are shuffled once and for all: batches of what is computed from them need not be gathered."""
    data = datasets.load(arguments.data, root=arguments.root, download=arguments.download)
    device = torch.device(arguments.device)
    train, test = (FAST["train"], FAST["test"]) if arguments.fast else (None, None)
    order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[:train]
    tensors = data.x_train[order], data.y_train[order], data.x_test[:test], data.y_test[:test]
    x, y, x_test, y_test = (tensor.to(device) for tensor in tensors)
    return Sets(x, y, x_test, y_test, len(x) - len(x) // 6, data.classes)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="FashionMNIST", help="a data set of torchvision, or a .npz file")
    parser.add_argument("--root", default="data", help="where torchvision keeps its files")
    parser.add_argument("--download", action="store_true", help="let torchvision download what is missing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--search", action="store_true", help="choose settings on validation data; no table")
    parser.add_argument("--fast", action="store_true", help="few images, few filters, one seed, into runs/krotov_cnn")
    parser.add_argument("--filters", type=int, help="(default 400)")
    parser.add_argument(
        "--pool", type=int, help="of the max pool (default 4; the paper has 2, for four times the memory)"
    )
    parser.add_argument("--seeds", type=int, help="(default 3)")
    parser.add_argument("--rows", default="*", help="a pattern; what the JSON says of the other rows stays")
    parser.add_argument("--best", default=recipes.BEST, help="recipe of the row best learnt")
    parser.add_argument("--random", default=recipes.BEST_RANDOM, help="recipe of the row best random")
    parser.add_argument("--schedule", default=recipes.BEST_SCHEDULE, choices=recipes.SCHEDULES)
    parser.add_argument("--results", help="folder (default results, with --fast runs/krotov_cnn)")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=sys.stderr.isatty())
    arguments = parser.parse_args(argv)
    for name, value in (FAST if arguments.fast else USUAL).items():
        if getattr(arguments, name, 0) is None:
            setattr(arguments, name, value)
    arguments.results = arguments.results or ("runs/krotov_cnn" if arguments.fast else "results")
    return arguments


def about(experiment: Experiment, arguments: argparse.Namespace, given: list[str], seconds: float) -> dict:
    """How results/*.json say that something was computed, without paths of this machine."""
    return {
        "command": report.command("krotov_cnn", given),
        "version": hk.__version__,
        "machine": torch.cuda.get_device_name() if experiment.sets.x.is_cuda else doctor.processor(),
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "settings": {name: getattr(arguments, name) for name in ("filters", "pool")},
    }


def main(argv: list[str] | None = None) -> None:
    start, arguments = time.perf_counter(), parse(argv)
    folder = Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("krotov_cnn_search.json" if arguments.search else "krotov_cnn.json")
    experiment, words = Experiment(load(arguments), arguments), sys.argv[1:] if argv is None else argv

    def told() -> dict:
        return about(experiment, arguments, words, time.perf_counter() - start)

    if arguments.search:
        known = report.known(path, told()["settings"])
        before = known.get("seconds", 0.0)

        def write(found: dict) -> None:
            now = told()
            report.write(path, now | {"seconds": round(before + now["seconds"], 1)} | found)

        Search(experiment, arguments.seeds, write, known.get("trials", [])).run()
    else:
        order = list(recipes.rows(arguments.best, arguments.random))
        table(experiment, arguments, lambda runs: report.write(path, report.merged(runs, told(), path, order)))
        report.show(json.loads(path.read_text()))
    for name, value in (experiment.seconds | {"in all": time.perf_counter() - start}).items():
        print(f"{name:<20} {value:7.1f} s")
    print(path)


if __name__ == "__main__":
    main()
