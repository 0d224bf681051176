"""Figures 2 to 6 and 8 of DHP Softmax, drawn from the known runs: accuracies, and the plastic part while it learns.

Each method has one colour in all figures. Lines are dashed (bars hollow) without DHP, solid (full) with DHP. Shades and
error bars are standard errors over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.papers.dhp_softmax import recipes
from hebbkern.continual import metrics
from hebbkern.plots import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from examples.papers.dhp_softmax.experiment import Experiment

METHODS = dict(zip((*recipes.METHODS, "Scratch"), (*files.COLOURS[:4], files.COLOURS[6]), strict=True))
MARKERS = dict(zip(recipes.METHODS, "os^v", strict=True))
OVER_TASKS = {"permuted": "Figure 2a", "split": "Figure 2b", "imbalanced": "Figure 5", "mixture": "Figure 6"}
BARS = 0.8  # share of a task's width
PLASTIC = ("mean learnt rate η", "norm of the trace, ‖Hebb‖", "norm of the plasticity, ‖α‖")
BESIDE = "outside right upper"  # of legends, so that they cover no line


def draw(experiment: Experiment, folder: Path) -> list[Path]:
    """Writes dhp_softmax_<name>.png for each figure that has runs, and prints which figures have none.

    Args:
        experiment: an `Experiment`, of which only known runs are read.
        folder: of the pictures.
    """
    wanted = {f"{figure}, {recipes.TITLES[name]}": (over_tasks, name) for name, figure in OVER_TASKS.items()}
    wanted |= {
        "Figure 3, the plastic part": (plastic, "plastic"),
        "Figure 4, where η starts": (etas, "eta"),
        f"Figure 8, {recipes.TITLES['cifar']}": (bars, "cifar"),
    }
    drawn = {}
    for title, (make, name) in sorted(wanted.items()):
        with files.styled():
            if picture := make(experiment, name, title):
                drawn[title] = files.write(picture, folder / f"dhp_softmax_{name}.png")
    if missing := [title for title in sorted(wanted) if title not in drawn]:
        print(f"no picture, because of missing runs: {'; '.join(missing)}")
    return list(drawn.values())


def over_tasks(experiment: Experiment, name: str, title: str) -> Figure | None:
    """Draws Figures 2, 5 and 6: the average accuracy over the tasks so far, a line per row of Table 1."""
    lines = rows_with_runs(experiment, recipes.table1(name))
    if not lines:
        return None
    drawn = files.figure(7.2, 3.8)
    axes = drawn.add_subplot()
    for row, runs in lines:
        method = row.settings.method
        line(axes, row.row, runs, METHODS[method], "-" if row.settings.dhp else "--", MARKERS[method])
    axes.set(title=title, ylabel="average test accuracy in %")
    drawn.legend(loc=BESIDE, handlelength=2.6)
    return drawn


def etas(experiment: Experiment, name: str, title: str) -> Figure | None:
    """Draws Figure 4: the same for several initial η, a panel per benchmark of Table 4."""
    benchmarks = {key: rows_with_runs(experiment, recipes.table4(key)) for key in ("permuted", "imbalanced", "split")}
    benchmarks = {key: lines for key, lines in benchmarks.items() if lines}
    if not benchmarks:
        return None
    drawn, panels = files.panels(len(benchmarks), height=3.6)
    starts = sorted(recipes.ETAS)
    for axes, (benchmark, lines) in zip(panels, benchmarks.items(), strict=True):
        for row, runs in lines:
            index = starts.index(row.settings.eta)
            colour = shades(len(starts))[index]
            line(axes, row.row.replace("eta", "η"), runs, colour, "-", "ovs^D"[index])
        axes.set(title=recipes.TITLES[benchmark])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    panels[0].set_ylabel("average test accuracy in %")
    drawn.suptitle(title, fontsize=10)
    return drawn


def line(axes: Axes, label: str, runs: Sequence[dict], colour: tuple | str, style: str, marker: str) -> None:
    """Draws the average accuracies of these runs, mean and standard error; the legend has the last mean."""
    mean, error = over_seeds([metrics.average_accuracies(run["R"]) for run in runs])
    tasks = np.arange(1, len(mean) + 1)
    options = {"color": colour, "linestyle": style, "linewidth": 1.3}
    marks = {"marker": marker, "markersize": 4, "markerfacecolor": colour if style == "-" else "white"}
    axes.plot(tasks, mean, label=f"{label}: {mean[-1]:.2f}", **options, **marks)
    axes.fill_between(tasks, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel="tasks observed")
    axes.set_xticks(tasks, runs[0].get("tasks", tasks))


def bars(experiment: Experiment, name: str, title: str) -> Figure | None:
    """Draws Figure 8: the accuracy of each task after the last one; Scratch has a network per task."""
    groups = rows_with_runs(experiment, recipes.table1(name))
    if not groups:
        return None
    drawn = files.figure(8.4, 3.6)
    axes = drawn.add_subplot()
    width = BARS / len(groups)
    for index, (row, runs) in enumerate(groups):
        mean, error = over_seeds([at_last(run["R"]) for run in runs])
        at, colour = np.arange(len(mean)) + (index + 0.5) * width - BARS / 2, METHODS[row.settings.method]
        options = {"color": colour} if row.settings.dhp else {"facecolor": "white", "linestyle": "--"}
        label = f"{row.row}: {mean.mean():.2f}"
        axes.bar(at, mean, 0.86 * width, edgecolor=colour, linewidth=1, label=label, **options)
        axes.errorbar(at, mean, error, fmt="none", ecolor="0.25", elinewidth=0.9, capsize=1.6)
    names = ["CIFAR-10", *(f"CIFAR-100,\n{10 * i + 1} to {10 * i + 10}" for i in range(len(mean) - 1))]
    axes.set(title=title, ylabel="test accuracy after the last task, in %")
    axes.set_xticks(np.arange(len(mean)), names)
    axes.grid(False, axis="x")
    drawn.legend(loc=BESIDE)
    return drawn


def plastic(experiment: Experiment, name: str, title: str) -> Figure | None:
    """Draws Figure 3: η, ‖Hebb‖ and ‖α‖ of DHP Softmax on Permuted MNIST, a colour per task; one seed."""
    rows = [row for row in recipes.table1("permuted") if row.row == "DHP Softmax"]
    known = [run for _, runs in rows_with_runs(experiment, rows) for run in runs if run.get("plastic")]
    if not known:
        return None
    run = min(known, key=lambda run: run["seed"])
    drawn, panels = files.panels(len(PLASTIC), height=3)
    each = len(run["plastic"]) // sum(run["epochs"])  # records per epoch: all tasks have the same size
    ends = np.cumsum([0, *run["epochs"]])
    colours = shades(len(run["epochs"]))
    for axes, label, values in zip(panels, PLASTIC, np.transpose(run["plastic"]), strict=True):
        for task, (first, last) in enumerate(pairwise(ends)):
            own = values[first * each : last * each + 1]  # up to the next task's first record
            epochs = first + np.arange(len(own)) / each
            axes.plot(epochs, own, color=colours[task], linewidth=1.4, label=f"task {task + 1}")
        for end in ends[1:-1]:
            axes.axvline(end, color="0.85", linewidth=0.6, zorder=0)
        axes.grid(False, axis="x")
        axes.set(title=label, xlabel="epochs, tasks one after the other")
    drawn.suptitle(f"{title} ({recipes.TITLES['permuted']}, seed {run['seed']})", fontsize=10)
    drawn.legend(*panels[0].get_legend_handles_labels(), loc=BESIDE)
    return drawn


def rows_with_runs(experiment: Experiment, rows: Sequence[recipes.Row]) -> list[tuple[recipes.Row, list[dict]]]:
    """Returns the rows that have runs, with these; runs that diverged have no accuracies and are left out."""
    seeds = range(experiment.arguments.seeds)
    pairs = [(row, [run for run in experiment.of(row, seeds) if run["R"]]) for row in rows]
    return [(row, runs) for row, runs in pairs if runs]


def over_seeds(values: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard error [tasks] of values [seeds, tasks]; the error of a single seed is 0."""
    values = np.asarray(values)
    seeds = len(values)
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(seeds) if seeds > 1 else np.zeros(values.shape[1])


def at_last(matrix: list[list[float | None]]) -> list[float]:
    """Returns the accuracy of each task after the last one or, where there is none, after the task itself."""
    return [matrix[i][i] if value is None else value for i, value in enumerate(matrix[-1][: len(matrix)])]


def shades(count: int) -> list[tuple]:
    """Returns ordered colours that differ in grey too, none as light as the background."""
    from matplotlib import colormaps

    return [colormaps["viridis"](i / max(1, count - 1) * 0.9) for i in range(count)]
