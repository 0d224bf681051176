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
import platform
import shlex
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import hebbkern as hk
import krotov_recipes as recipes
from hebbkern import datasets, plots
from krotov_filters import Moments, Recipe, effective_rank, make, moments
from krotov_network import Network, Readout, Schedule, features, fit, measure, pixels

TABLE = "PyTorch-Hebbian, Table 1"
PAPER = {"learnt": {"test": 91.44, "train": 98.64}, "backprop": {"test": 91.94, "train": 99.98}, "random": {}}
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


class Experiment:
    """The rows of the table, each for a seed, and what they cost."""

    def __init__(self, sets: Sets, arguments: argparse.Namespace):
        self.sets, self.arguments, self.shape = sets, arguments, sets.x.shape[1:]
        self.moments: Moments = moments(sets.x[: sets.fitted])
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, work):
        start = time.perf_counter()
        result = work()
        if self.sets.x.is_cuda:
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def filters(self, recipe: Recipe, seed: int) -> Tensor:
        part = self.sets.x[: self.sets.fitted]
        options = {"count": self.arguments.filters, "seed": seed, "progress": self.arguments.progress}
        return self.timed("learning filters", lambda: make(recipe, part, self.moments, **options))

    def features(self, images: Tensor, filters: Tensor) -> Tensor:
        return self.timed("features", lambda: features(images, filters, self.moments, pool=self.arguments.pool))

    def readout(self, recipe: Recipe, seed: int) -> Readout:
        torch.manual_seed(seed)
        count = self.arguments.filters
        inputs = count * pixels(self.shape, self.arguments.pool)
        return Readout(count, inputs, self.sets.classes, repu=recipe.repu).to(self.sets.x.device)

    def validated(self, new_model, x: Tensor, plan: Schedule, seed: int, part: str):
        """A model that was trained on the fitted part up to its best epoch on the rest."""
        cut, y, model = self.sets.fitted, self.sets.y, new_model()
        found = self.timed(part, lambda: fit(model, x[:cut], y[:cut], plan, seed=seed, validation=(x[cut:], y[cut:])))
        return model, found

    def tested(self, row: str, new_model, x: Tensor, x_test, plan: Schedule, seed: int, part: str) -> dict[str, float]:
        """Percentages: validation, then train and test of a model trained anew on everything."""
        _, found = self.validated(new_model, x, plan, seed, part)
        model = new_model()
        self.timed(part, lambda: fit(model, x, self.sets.y, plan, seed=seed, rates=found.rates))
        train = measure(model, x, self.sets.y)
        images, labels = self.sets.test(row, seed)
        test = measure(model, x_test(images), labels)
        return {
            "validation": 100 * found.validation,
            "train": 100 * train,
            "test": 100 * test,
            "epochs": len(found.rates),
        }

    def frozen_row(self, row: str, recipe: Recipe, plan: Schedule, seed: int) -> tuple[dict, Tensor]:
        filters = self.filters(recipe, seed)
        x = self.features(self.sets.x, filters)
        figures = self.tested(
            row,
            lambda: self.readout(recipe, seed),
            x,
            lambda images: self.features(images, filters),
            plan,
            seed,
            "readout",
        )
        return figures | {f"rank, {name}": value for name, value in effective_rank(filters).items()}, filters

    def backprop_row(self, row: str, plan: Schedule, seed: int) -> tuple[dict, Tensor]:
        models = []

        def network():
            torch.manual_seed(seed)
            filters = torch.randn(self.arguments.filters, self.shape[0], 5, 5) / 5  # torch's own scale, about
            model = Network(filters, self.shape, self.sets.classes, pool=self.arguments.pool)
            models.append(model.to(self.sets.x.device, memory_format=torch.channels_last))
            return models[-1]

        figures = self.tested(row, network, self.sets.x, lambda images: images, plan, seed, "backprop")
        return figures, models[-1].conv.weight.detach()

    def trial(self, recipe: Recipe, plan: Schedule, seed: int) -> dict:
        """Validation only."""
        filters = self.filters(recipe, seed)
        x = self.features(self.sets.x, filters)
        _, found = self.validated(lambda: self.readout(recipe, seed), x, plan, seed, "readout")
        return {"validation": 100 * found.validation, "epochs": len(found.rates)} | effective_rank(filters)


def search(experiment: Experiment, arguments: argparse.Namespace) -> dict:
    """Schedules on random and centred filters alike, then recipes by seed 0, then the best of them by all seeds.

    It stops trying when --limit seconds are over; nothing here sees the test set.
    """
    start, trials = time.perf_counter(), {}

    def trial(recipe: Recipe, schedule: str, seed: int, share: float = 1.0) -> float:
        key = (recipe.name, schedule, seed)
        if key not in trials and time.perf_counter() - start < share * arguments.limit:
            trials[key] = experiment.trial(recipe, recipes.SCHEDULES[schedule], seed)
            tqdm.write(f"{recipe.name:<48} {schedule:<42} seed {seed}  {trials[key]['validation']:.2f} %")
        return trials[key]["validation"] if key in trials else float("-inf")

    random, learnt = recipes.random_recipes(), recipes.learnt_recipes()
    schedules = {name: trial(recipes.RANDOM, name, 0) + trial(learnt[1], name, 0) for name in recipes.SCHEDULES}
    schedule = max(schedules, key=schedules.get)
    chosen = {"schedule": schedule}
    for kind, candidates, finalists in (("random", random, 2), ("learnt", learnt, 5)):
        tried = tqdm(candidates, disable=not arguments.progress)
        ranked = sorted(tried, key=lambda recipe: -trial(recipe, schedule, 0, share=0.7))[:finalists]
        runs = [[trial(recipe, schedule, seed) for recipe in ranked] for seed in range(arguments.seeds)]
        complete = [run for run in runs if min(run) > float("-inf")] or runs[:1]
        means = dict(
            zip((recipe.name for recipe in ranked), map(statistics.fmean, zip(*complete, strict=True)), strict=True)
        )
        chosen[kind] = max(means, key=means.get)
        chosen[f"{kind} finalists"] = {"seeds": len(complete), "validation": means}
        print(f"chosen: {chosen[kind]}, {means[chosen[kind]]:.2f} % on validation data, mean of {len(complete)} seeds")
    rows = [
        {"recipe": recipe, "schedule": plan, "seed": seed} | figures for (recipe, plan, seed), figures in trials.items()
    ]
    return {"chosen": chosen, "chosen_on": "validation", "trials": rows}


def table(experiment: Experiment, arguments: argparse.Namespace) -> dict:
    """Every row for every seed, and the pictures of the first seed's filters."""
    plan = recipes.SCHEDULES[arguments.schedule]
    if arguments.fast:
        plan = Schedule(**{**vars(plan), "epochs": FAST["epochs"]})
    best, fair = recipes.by_name(arguments.best), recipes.by_name(arguments.random)
    kinds = {
        recipes.RAW.name: ("learnt", recipes.RAW),
        recipes.CENTRED.name: ("learnt", recipes.CENTRED),
        f"best learnt: {best.name}": ("learnt", best),
        "random": ("random", recipes.RANDOM),
        f"best random: {fair.name}": ("random", fair),
        "end-to-end backprop": ("backprop", None),
    }
    found: dict[str, list[dict]] = {row: [] for row in kinds}
    drawn = {}
    with tqdm(total=len(kinds) * arguments.seeds, disable=not arguments.progress) as bar:
        for seed in range(arguments.seeds):
            for row, (kind, recipe) in kinds.items():
                make_row = experiment.backprop_row if kind == "backprop" else experiment.frozen_row
                figures, filters = make_row(row, *([] if recipe is None else [recipe]), plan, seed)
                found[row].append(figures)
                drawn.setdefault(row, filters)
                tqdm.write(
                    f"seed {seed}  {row:<56} " + "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
                )
                bar.update()
    for row, filters in drawn.items():
        draw(row, filters, arguments.results)
    rows = [line for row, (kind, _) in kinds.items() for line in lines(row, kind, found[row])]
    show(rows)
    names = list(kinds)
    differences = {
        f"{names[2]} less {other}": difference(*([run["test"] for run in found[row]] for row in (names[2], other)))
        for other in names[3:]
    }
    for name, (value, error) in differences.items():
        print(f"{name}: {value:+.2f} points, standard error {error:.2f}")
    return {
        "rows": rows,
        "differences": {
            name: {"points": value, "standard_error": error} for name, (value, error) in differences.items()
        },
        "test_set_used": len(experiment.sets.opened),
        "runs": found,
    }


def lines(row: str, kind: str, runs: list[dict]) -> list[dict]:
    """The row's lines in the format of the results of this repository."""
    measures = {"test": "test accuracy", "train": "train accuracy", "validation": "validation accuracy"}
    measures |= {"rank, entropy": "effective rank (entropy of singular values)"}
    made = []
    for name, measure_name in measures.items():
        if name not in runs[0]:
            continue
        values = [run[name] for run in runs]
        made.append(
            {
                "table": TABLE,
                "row": row,
                "measure": measure_name,
                "unit": "" if name.startswith("rank") else "%",
                "paper": PAPER[kind].get(name),
                "mean": statistics.fmean(values),
                "std": deviation(values),
                "seeds": len(values),
                "chosen_on": "validation",
            }
        )
    return made


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def difference(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Of the means, and its standard error (two independent samples)."""
    error = (deviation(ours) ** 2 / len(ours) + deviation(theirs) ** 2 / len(theirs)) ** 0.5
    return statistics.fmean(ours) - statistics.fmean(theirs), error


def show(rows: list[dict]) -> None:
    print(f"\n{'':<58}{'':<44} {'ours':>14} {'paper':>7}")
    for line in rows:
        paper = "" if line["paper"] is None else f"{line['paper']:.2f}"
        print(f"{line['row']:<58}{line['measure']:<44} {line['mean']:6.2f} ± {line['std']:.2f} {paper:>8}")


def draw(row: str, filters: Tensor, folder: str) -> None:
    """Each filter less its mean, by its largest weight: batch norm leaves neither scale."""
    stem = row.split(":")[0].replace("Krotov-Hopfield, ", "").replace(" ", "_")
    tiles = filters.float() / filters.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    plots.weight_grid(tiles, Path(folder) / f"krotov_cnn_filters_{stem}.png", title=f"{row}: {len(filters)} filters")


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
    Path(arguments.results).mkdir(parents=True, exist_ok=True)
    experiment = Experiment(load(arguments), arguments)
    found = (search if arguments.search else table)(experiment, arguments)
    for name, value in experiment.seconds.items():
        print(f"{name:<20} {value:7.1f} s")
    seconds = time.perf_counter() - start
    print(f"{'in all':<20} {seconds:7.1f} s")
    given = sys.argv[1:] if argv is None else argv
    device = torch.cuda.get_device_name() if experiment.sets.x.is_cuda else platform.processor() or platform.machine()
    report = {
        "command": shlex.join(["python", "examples/krotov_cnn.py", *given]),
        "version": hk.__version__,
        "machine": device,
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "parts": {name: round(value, 1) for name, value in experiment.seconds.items()},
        "settings": {
            name: getattr(arguments, name) for name in ("filters", "pool", "seeds", "schedule", "best", "random")
        },
    } | found
    path = Path(arguments.results) / ("krotov_cnn_search.json" if arguments.search else "krotov_cnn.json")
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path)
    return report


if __name__ == "__main__":
    main()
