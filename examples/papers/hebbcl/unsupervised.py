"""HebbCL without labels (algorithm 1) on a stream of classes: the rows of Tables 1 and 3.

    for row in unsupervised_rows("mnist", sets, seeds=5):
        print(row["table"], row["row"], row["measure"], row["values"])

The classes come one after the other, in a single pass, each in an order drawn by the seed; the model sees neither
labels nor where a class ends. What it has learnt is then measured on representations, the k winners of Wx.

Protocol, the same for every row, untaught ones and pixels included:

    scaled        each activation less the weakest winner's (of pixels: the weakest that is not 0), and each
                  representation of length 1. Rows "as it is" leave out the first.
    pixels        as the model sees them; those of more than 40 a side (Omniglot's 105) averaged over squares of 3, for
                  time. Omniglot's thin strokes are blurred for all rows but "pixels, not blurred".
    10-NN         cosine neighbours among the whole training set.
    clusters      k-means on the representations of the test set (the best of 3 starts), each cluster named by the
                  majority of its test labels, as we read the paper; "found in training": k-means on 10,000 training
                  images drawn by the seed, named by their labels: needs no test label, and is measured on the test set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.papers.common import held_out as once
from examples.papers.hebbcl.recipes import CLUSTERS, PAPER, RECIPES, Recipe
from hebbkern.continual import HebbCL, streams
from hebbkern.evaluation import cluster_accuracy, knn

NEIGHBOURS = 10
DRAWN = 10_000  # training images in which clusters are found
STARTS = 3  # of k-means
CHUNK = 4096  # images whose activations are computed at a time
LARGE = 40  # pixels a side


@dataclass
class Sets(once.Sets):
    """Images [n, inputs] in [0, 1], 1 = ink, and labels; `shape` of an image; pixels before blurring, where it was."""

    shape: tuple[int, ...]
    sharp: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """A row of the tables: how the model differs from the recipe, or pixels = no model; and how it is read."""

    row: str
    changes: dict | None
    tables: tuple[str, ...]
    scaled: bool = True
    sharp: bool = False  # pixels before blurring

    def recipe(self, recipe: Recipe) -> Recipe | None:
        """Without expansion all neurons are there from the start."""
        if self.changes is None:
            return None
        wide = {} if self.changes.get("grow", True) else {"neurons": recipe.max_neurons}
        return replace(recipe, **wide, **self.changes)


BOTH = ("Table 1", "Table 3")
ROWS = [
    Row("HebbCL", {}, BOTH),
    Row("HebbCL, as it is", {}, ("Table 1",), scaled=False),
    Row("without freezing", {"freeze": False}, ("Table 3",)),
    Row("without expansion", {"grow": False}, ("Table 3",)),
    Row("without freezing and expansion", {"freeze": False, "grow": False}, ("Table 3",)),
    Row("without k-winners", {"sparse": False}, ("Table 3",)),
    Row("Hebbian learning only", {"freeze": False, "grow": False, "sparse": False}, ("Table 3",)),
    Row("untaught, on samples", {"untaught": "samples"}, BOTH),
    Row("untaught, uniform", {"untaught": "uniform"}, BOTH),
    Row("untaught, normal", {"untaught": "normal"}, BOTH),
    Row("pixels", None, BOTH),
    Row("pixels, not blurred", None, BOTH, sharp=True),
]


def class_stream(x: Tensor, y: Tensor, seed: int) -> list[streams.Task]:
    """A task a class, in order, each shuffled by the seed."""
    tasks, generator = streams.split(x, y, len(y.unique())), torch.Generator().manual_seed(seed)
    orders = [torch.randperm(task.samples, generator=generator) for task in tasks]
    return [
        replace(task, labels=task.labels[order], indices=task.indices[order])
        for task, order in zip(tasks, orders, strict=True)
    ]


def untrained(recipe: Recipe, inputs: int, seed: int) -> HebbCL:
    """The model before the stream."""
    return HebbCL(inputs, seed=seed, **recipe.settings())


def taught(recipe: Recipe, x: Tensor, y: Tensor, seed: int) -> HebbCL:
    """The model after one pass through the classes of x [n, inputs] in order; y [n] makes the stream, no more.

    An untaught one has as many neurons as the one that learnt.
    """
    model = streamed(replace(recipe, untaught=""), x, y, seed)
    if not recipe.untaught:
        return model
    model = untrained(replace(recipe, neurons=model.width, start=recipe.untaught), x.shape[1], seed)
    if recipe.untaught == "samples":
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: model.width]
        model.weight.data.copy_(x[chosen])
    return model


def streamed(recipe: Recipe, x: Tensor, y: Tensor, seed: int) -> HebbCL:
    """A model that learnt the stream."""
    model = untrained(recipe, x.shape[1], seed)
    learn(model, class_stream(x, y, seed), recipe.batch)
    return model


def learn(model: HebbCL, stream: list[streams.Task], batch: int) -> None:
    for images, _ in streams.unbounded(stream, batch):
        model.learn(images)


def represented(model: HebbCL, x: Tensor) -> Tensor:
    """[n, width] of x [n, inputs]."""
    return torch.cat([model(part) for part in x.split(CHUNK)])


def pixels(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x [n, inputs], images of this shape, with fewer pixels where these are many."""
    if max(shape) <= LARGE:
        return x
    return torch.cat([F.avg_pool2d(part.view(-1, 1, *shape), 3).flatten(1) for part in x.split(CHUNK)])


def blurred_(x: Tensor, shape: tuple[int, ...], side: int) -> None:
    """x [n, inputs] in place: averaged over squares of so many pixels, twice, each image then by its largest value."""
    for part in x.split(CHUNK):
        images, half = part.view(-1, 1, *shape), side // 2
        for _ in range(2):
            images = F.avg_pool2d(F.avg_pool2d(images, (side, 1), 1, (half, 0)), (1, side), 1, (0, half))
        part.copy_(images.flatten(1))
        part /= part.amax(1, keepdim=True).clamp(min=1e-12)


def read(features: Tensor, scaled: bool) -> Tensor:
    """As the protocol says."""
    if scaled:
        least = features.where(features != 0, torch.inf).amin(1, keepdim=True)
        features = (features - least.where(least.isfinite(), 0)).clamp_(min=0)
    return F.normalize(features)


def measures(
    train: Tensor, y: Tensor, test: Tensor, y_test: Tensor, tables: tuple[str, ...], clusters: dict, seed: int
) -> dict[tuple[str, str], float]:
    """{(table, measure): percent}."""
    error = 100 - 100 * knn(train, y, test, y_test, min(NEIGHBOURS, len(train)), similarity="cosine")
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:DRAWN]
    found = {}
    for table in tables:
        found[table, "10-NN error"] = error
        for count in clusters[table]:
            inside = cluster_accuracy(test, y_test, count, seed, starts=STARTS)
            found[table, f"accuracy of {count} clusters"] = 100 * inside
            if table == "Table 1":
                sets = {"test": test, "test_labels": y_test}
                outside = cluster_accuracy(train[drawn], y[drawn], count, seed, starts=STARTS, **sets)
                found[table, f"accuracy of {count} clusters found in training"] = 100 * outside
    return found


def rows_for(recipe: Recipe) -> list[Row]:
    """Those that say something where images are blurred, or are not."""
    return [row for row in ROWS if recipe.blur or not row.sharp]


def unsupervised_rows(
    name: str, sets: Sets, *, seeds: int = 5, recipe: Recipe | None = None, rows: list[Row] | None = None
) -> Iterator[dict]:
    """The rows of Tables 1 and 3 of one data set, as they are done.

    Args:
        name: "mnist" or "omniglot", of the recipe, the clusters and the paper's figures.
        seeds: models a row, from seed 0 on. recipe, rows: others than the tables'.

    Yields:
        table, row, measure, unit, paper, chosen_on; values: of each seed; seconds: of the pass through the stream,
        and width: neurons at its end, one a seed each.
    """
    recipe = recipe or RECIPES[name]
    for row in rows_for(recipe) if rows is None else rows:
        runs, seconds, widths = [], [], []
        for seed in range(seeds):
            begin, how = time.perf_counter(), row.recipe(recipe)
            model = how and taught(how, sets.x, sets.y, seed)
            seconds.append(round(time.perf_counter() - begin, 3))
            x_test, y_test = sets.test(name, row.row, seed)
            if model:
                seen = (represented(model, x) for x in (sets.x, x_test))
            else:
                seen = sets.sharp if row.sharp else (pixels(x, sets.shape) for x in (sets.x, x_test))
            train, test = (read(features, row.scaled) for features in seen)
            widths.append(train.shape[1])
            runs.append(measures(train, sets.y, test, y_test, row.tables, CLUSTERS[name], seed))
            del train, test
        for table, measure in runs[0]:
            yield {
                "table": table,
                "row": row.row,
                "measure": f"{name} {measure}",
                "unit": "%",
                "paper": PAPER.get((table, row.row, name), {}).get(measure.removesuffix(" found in training")),
                "chosen_on": "validation",
                "values": [run[table, measure] for run in runs],
                "seconds": seconds,
                "width": widths,
            }
