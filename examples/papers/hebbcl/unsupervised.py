"""HebbCL without labels (algorithm 1) on a stream of classes: the rows of Tables 1 and 3.

    for row in unsupervised_rows("mnist", data, seeds=5):
        print(row["table"], row["row"], row["measure"], row["values"])

The classes come one after the other in a single pass, each in an order drawn by the seed; the model gets neither
labels nor the boundaries of classes. Its representations, the k winners of Wx, are then evaluated.

Protocol, the same for every row, also for neurons that do not learn and for pixels:

    scaled        the weakest winner's activation is subtracted (of pixels: the smallest that is not 0), and each
                  representation is scaled to length 1. Rows "as it is" are only scaled to length 1.
    pixels        the inputs of the model; images of more than 40 pixels a side (Omniglot's 105) are averaged over
                  squares of 3, for speed. Omniglot's thin strokes are blurred for all rows but "pixels, not blurred".
    10-NN         cosine neighbours among the whole training set.
    clusters      k-means on the representations of the test set (the best of 3 starts), each cluster named by the
                  majority of its test labels, as we read the paper. "found in training": k-means on 10,000 training
                  images drawn by the seed, named by their labels and evaluated on the test set; needs no test label.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.papers.common.held_out import HeldOutData
from examples.papers.hebbcl.recipes import CLUSTERS, PAPER, RECIPES, Recipe
from hebbkern.continual import HebbCL, streams
from hebbkern.evaluation import cluster_accuracy, knn

NEIGHBOURS = 10
DRAWN = 10_000  # training images for k-means
STARTS = 3  # of k-means
CHUNK = 4096  # images whose activations are computed at a time
LARGE = 40  # pixels a side


@dataclass
class Data(HeldOutData):
    """Images [n, inputs] in [0, 1], 1 = ink.

    Args:
        shape: of an image.
        sharp: pixels of the training and the test images before blurring; None where images are not blurred.
    """

    shape: tuple[int, ...]
    sharp: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Args:
        changes: settings that differ from the recipe; None takes pixels and no model.
        scaled: whether the weakest winner's activation is subtracted.
        sharp: whether pixels are those before blurring.
    """

    row: str
    changes: dict | None
    tables: tuple[str, ...]
    scaled: bool = True
    sharp: bool = False

    def recipe(self, recipe: Recipe) -> Recipe | None:
        """Returns the recipe of the row, None for pixels; without expansion all neurons exist from the start."""
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
    """Returns a task per class, in order, each shuffled by the seed."""
    tasks, generator = streams.split(x, y, len(y.unique())), torch.Generator().manual_seed(seed)
    orders = [torch.randperm(task.samples, generator=generator) for task in tasks]
    return [
        replace(task, labels=task.labels[order], indices=task.indices[order])
        for task, order in zip(tasks, orders, strict=True)
    ]


def untrained(recipe: Recipe, inputs: int, seed: int) -> HebbCL:
    """Returns the model before the stream."""
    return HebbCL(inputs, seed=seed, **recipe.settings())


def trained(recipe: Recipe, x: Tensor, y: Tensor, seed: int) -> HebbCL:
    """Returns the model after one pass through the classes of x [n, inputs] in order.

    The labels y [n] only make the stream. A model that does not learn has as many neurons as the one that does.
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
    """Returns a model after it has learnt the stream."""
    model = untrained(recipe, x.shape[1], seed)
    learn(model, class_stream(x, y, seed), recipe.batch)
    return model


def learn(model: HebbCL, stream: list[streams.Task], batch_size: int) -> None:
    """Trains the model on batches of the stream, some of which span two classes."""
    for images, _ in streams.unbounded(stream, batch_size):
        model.learn(images)


def represented(model: HebbCL, x: Tensor) -> Tensor:
    """Returns the representations [n, width] of x [n, inputs]."""
    return torch.cat([model(part) for part in x.split(CHUNK)])


def pixels(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns images x [n, inputs] of this shape, averaged over squares of 3 where a side is above `LARGE`."""
    if max(shape) <= LARGE:
        return x
    return torch.cat([F.avg_pool2d(part.view(-1, 1, *shape), 3).flatten(1) for part in x.split(CHUNK)])


def blurred_(x: Tensor, shape: tuple[int, ...], side: int) -> None:
    """Averages x [n, inputs] twice over squares of this side, then divides each image by its maximum, in place."""
    for part in x.split(CHUNK):
        images, half = part.view(-1, 1, *shape), side // 2
        for _ in range(2):
            images = F.avg_pool2d(F.avg_pool2d(images, (side, 1), 1, (half, 0)), (1, side), 1, (0, half))
        part.copy_(images.flatten(1))
        part /= part.amax(1, keepdim=True).clamp(min=1e-12)


def read(features: Tensor, scaled: bool) -> Tensor:
    """Returns representations as the protocol says."""
    if scaled:
        least = features.where(features != 0, torch.inf).amin(1, keepdim=True)
        features = (features - least.where(least.isfinite(), 0)).clamp_(min=0)
    return F.normalize(features)


def measures(
    train: Tensor,
    y: Tensor,
    test: Tensor,
    y_test: Tensor,
    tables: tuple[str, ...],
    clusters: dict[str, tuple[int, ...]],
    seed: int,
) -> dict[tuple[str, str], float]:
    """Returns {(table, measure): percent}."""
    error = 100 - 100 * knn(train, y, test, y_test, min(NEIGHBOURS, len(train)), similarity="cosine")
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:DRAWN]
    result = {}
    for table in tables:
        result[table, "10-NN error"] = error
        for count in clusters[table]:
            inside = cluster_accuracy(test, y_test, count, seed, starts=STARTS)
            result[table, f"accuracy of {count} clusters"] = 100 * inside
            if table == "Table 1":
                evaluated = {"test": test, "test_labels": y_test}
                outside = cluster_accuracy(train[drawn], y[drawn], count, seed, starts=STARTS, **evaluated)
                result[table, f"accuracy of {count} clusters found in training"] = 100 * outside
    return result


def rows_for(recipe: Recipe) -> list[Row]:
    """Returns the rows of a data set; images that are not blurred have no row "pixels, not blurred"."""
    return [row for row in ROWS if recipe.blur or not row.sharp]


def unsupervised_rows(
    name: str, data: Data, *, seeds: int = 5, recipe: Recipe | None = None, rows: list[Row] | None = None
) -> Iterator[dict]:
    """Yields the rows of Tables 1 and 3 of one data set, as they are done.

    Args:
        name: "mnist" or "omniglot".
        seeds: models per row, from seed 0 on.
        recipe: replaces the recipe of the data set.
        rows: replaces the rows of the tables.

    Yields:
        table, row, measure, unit, paper, chosen_on, and one item per seed in values (percent), seconds (of the pass
        through the stream) and width (neurons at its end).
    """
    recipe = recipe or RECIPES[name]
    for row in rows_for(recipe) if rows is None else rows:
        runs, seconds, widths = [], [], []
        for seed in range(seeds):
            begin, own = time.perf_counter(), row.recipe(recipe)
            model = own and trained(own, data.x, data.y, seed)
            seconds.append(round(time.perf_counter() - begin, 3))
            x_test, y_test = data.test(name, row.row, seed)
            if model:
                both = (represented(model, x) for x in (data.x, x_test))
            else:
                both = data.sharp if row.sharp else (pixels(x, data.shape) for x in (data.x, x_test))
            train, test = (read(features, row.scaled) for features in both)
            widths.append(train.shape[1])
            runs.append(measures(train, data.y, test, y_test, row.tables, CLUSTERS[name], seed))
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
