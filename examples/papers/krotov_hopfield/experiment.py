"""The rows of the table: filters, their features, the readout, and the accuracies."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from examples.papers.common.held_out import HeldOutData
from examples.papers.common.readouts import Readouts, Schedule, fit, mean_of, measure
from examples.papers.krotov_hopfield import recipes, report
from examples.papers.krotov_hopfield.filters import Moments, Recipe, effective_rank, make, moments
from examples.papers.krotov_hopfield.network import Network, features

Result = TypeVar("Result")


@dataclass
class Data(HeldOutData):
    """Images on the device. The search fits on the first `fitted` training images and validates on the others."""

    fitted: int
    classes: int


class Experiment:
    """What the rows of the table and the trials of the search share, with the seconds that each part takes."""

    def __init__(self, data: Data, arguments: argparse.Namespace):
        self.data, self.arguments, self.shape = data, arguments, data.x.shape[1:]
        self.seconds: dict[str, float] = {}
        self.images = data.x[: data.fitted] if arguments.search else data.x  # from which filters learn
        self.moments: Moments = self.timed("moments", lambda: moments(self.images))

    def timed(self, part: str, work: Callable[[], Result]) -> Result:
        """Returns what `work` returns and adds its seconds to those of the part."""
        start = time.perf_counter()
        result = work()
        if self.data.x.is_cuda:
            torch.cuda.synchronize()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
        return result

    def filters(self, recipe: Recipe, seed: int) -> Tensor:
        options = {"count": self.arguments.filters, "seed": seed, "progress": self.arguments.progress}
        return self.timed("learning filters", lambda: make(recipe, self.images, self.moments, **options))

    def features(self, images: Tensor, filters: Tensor) -> Tensor:
        return self.timed("features", lambda: features(images, filters, self.moments, pool=self.arguments.pool))

    def readouts(self, x: Tensor, y: Tensor, schedules: list[Schedule], seed: int) -> Readouts:
        """Returns readouts trained on these features, one per schedule."""
        torch.manual_seed(seed)
        model = Readouts(x.shape[1], self.data.classes, len(schedules)).to(x.device)
        self.timed("training readouts", lambda: fit(model, x, y, schedules, seed=seed))
        return model

    def network(self, x: Tensor, y: Tensor, schedule: Schedule, seed: int) -> Network:
        """Returns the network trained end to end on these images."""
        torch.manual_seed(seed)
        options = self.arguments
        model = Network(options.filters, self.moments, self.shape, self.data.classes, pool=options.pool).to(x.device)
        model.centre(x[:2000])
        self.timed("training networks", lambda: fit(model, x, y, [schedule], seed=seed))
        return model

    def row(self, row: str, recipe: Recipe | None, schedule: Schedule, seed: int) -> tuple[dict[str, float], Tensor]:
        """Returns the accuracies in percent and the ranks of a row, and its filters.

        Args:
            row: its name, under which the test set is read.
            recipe: of the filters; None trains the whole network by backpropagation.
        """
        x, y, model = self.data.x, self.data.y, None
        if recipe is None:
            model = self.network(x, y, schedule, seed)
            filters = model.conv.weight.detach()
        else:
            filters = self.filters(recipe, seed)
            x = self.features(x, filters)
            x -= (mean := mean_of(x))
            model = self.readouts(x, y, [schedule], seed)
        figures = {"train": 100 * measure(model, x, y)[0]}
        x, y = self.data.test(row, seed)
        if recipe is not None:
            x = self.features(x, filters).sub_(mean)
        return figures | {"test": 100 * measure(model, x, y)[0]} | effective_rank(filters), filters


def table(experiment: Experiment, write: Callable[[dict[str, list[dict]]], None]) -> None:
    """Computes the rows that the arguments name, with every seed, and draws the filters of seed 0.

    Args:
        write: called with the figures of all rows, {row: one dict per seed}, after each row and seed.
    """
    arguments = experiment.arguments
    rows = recipes.rows(arguments.best, arguments.random)
    runs: dict[str, list[dict]] = {row: [] for row in rows if fnmatch(row, arguments.rows)}
    jobs = [(row, seed) for seed in range(arguments.seeds) for row in runs]
    for row, seed in tqdm(jobs, disable=not arguments.progress):
        schedule = recipes.SCHEDULES[arguments.schedule] if rows[row] else recipes.BACKPROP
        if arguments.epochs:
            schedule = replace(schedule, epochs=arguments.epochs)
        start = time.perf_counter()
        figures, filters = experiment.row(row, rows[row], schedule, seed)
        text = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
        tqdm.write(f"seed {seed}  {row:<54} {text}")
        figures |= {"seconds": round(time.perf_counter() - start, 1), "schedule": asdict(schedule)}
        runs[row].append(figures)
        if seed == 0:
            report.draw(row, filters, Path(arguments.results))
        write(runs)
