"""The random search of the unsupervised settings; it never reads the test set.

    python -m examples.papers.hebbcl --mnist mnist.npz --omniglot omniglot.npz --search

A share of each class of the training set is held out (a sixth of MNIST, a fifth of Omniglot). A model learns the stream
of the other images, and its representation is scored for each k of `KS`: the mean of the two cluster accuracies, with
clusters of the held-out images, less twice the 10-NN error there. The first half of the trials draws every setting from
`SPACE` at random; the second half takes the best settings so far and draws two of them anew. The best of seed 0 are
learnt with all seeds, and the highest mean is chosen.

Two kinds of models do not count: those that would run out of room for neurons before the end of the whole training set,
because they would never learn its last classes, and those with more winners than an eighth of the neurons, because with
ever more winners representations become the pixels again.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from examples.papers.hebbcl.recipes import CLUSTERS, RECIPES, Recipe
from examples.papers.hebbcl.unsupervised import NEIGHBOURS, Data, read, represented, trained
from hebbkern.evaluation import cluster_accuracy, knn
from hebbkern.ops import kwinners

HELD_OUT = {"mnist": 6, "omniglot": 5}  # one image in 6, in 5
KS = (10, 20, 40)
VALIDATION = 4_000  # held-out images that score, at most
SPARSE = 8  # neurons per winner, at least
ERRORS = 2  # weight of the error beside the cluster accuracy
MOST = 500  # neurons, as in the paper
SPACE = {
    "batch": (50, 100, 125, 250, 500, 1000),
    "neurons": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    "lr": (0.1, 0.3, 0.5, 0.7, 1.0),
    "threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0),
    "similarity": ("cosine", "cosine", "dot"),
    "normalise": ("row_max", "row_max", "row_l2"),
    "start": ("samples", "samples", "uniform"),
    "patches": ("raw", "raw", "standardised"),
}
STANDARDISED = {"mnist": 0.1, "omniglot": 0.035}  # unit of the thresholds: 2 / |x|₁ of images of norm 1


def drawn(chance: random.Random, unit: float, near: Recipe | None = None) -> dict:
    """Returns random settings from SPACE, or those of `near` with two drawn anew.

    Args:
        unit: factor of the thresholds of standardised images.
    """
    names = list(SPACE) if near is None else chance.sample(list(SPACE), 2)
    result = {} if near is None else settings(near)
    if result.get("patches") == "standardised":
        result["threshold"] /= unit
    result |= {name: chance.choice(SPACE[name]) for name in names}
    if result["patches"] == "standardised":
        result["threshold"] *= unit
    result["threshold"] = round(result["threshold"], 4)
    return result


def held_out(y: Tensor, one_in: int) -> Tensor:
    """Returns bool [n]: one image in `one_in` of each class, whatever the order of the training set."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        chosen[(y == label).nonzero()[:, 0][one_in - 1 :: one_in]] = True
    return chosen


class Search:
    """Trials of one data set, each written as soon as it is done.

    Args:
        write: called with the content of the data set's search after each trial.
        known: trials of an earlier search, which are not repeated.
    """

    def __init__(self, name: str, data: Data, write: Callable[[dict], None], known: Sequence[dict] = ()):
        self.name, self.write = name, write
        self.blur = RECIPES[name].blur
        self.known = {(self.recipe(trial["recipe"]), trial["seed"]): read_figures(trial) for trial in known}
        self.trials: dict[tuple[Recipe, int], dict] = {}
        apart = held_out(data.y, HELD_OUT[name])
        self.x, self.y, self.whole = data.x[~apart], data.y[~apart], len(data.y)
        places = torch.randperm(int(apart.sum()), generator=torch.Generator().manual_seed(0))[:VALIDATION]
        self.x_held, self.y_held = data.x[apart][places], data.y[apart][places]

    def trial(self, recipe: Recipe, seed: int) -> dict[int, float]:
        """Returns {k: score} of the recipe; empty where it does not count."""
        if (recipe, seed) not in self.trials:
            self.trials[recipe, seed] = self.known.get((recipe, seed)) or self.learnt(recipe, seed)
            self.save()
        trial = self.trials[recipe, seed]
        return {k: score for k, score in trial["scores"].items() if SPARSE * k <= trial["width"]}

    def learnt(self, recipe: Recipe, seed: int) -> dict:
        """Returns the figures of a trial."""
        begin, figures = time.perf_counter(), {}
        model = trained(recipe, self.x, self.y, seed)
        seconds = round(time.perf_counter() - begin, 2)
        if max(KS) <= model.width <= MOST * len(self.x) / self.whole:
            model.sparse = False
            train, held = (represented(model, x) for x in (self.x, self.x_held))
            for k in KS:
                figures[k] = self.score(*(read(kwinners(y, k), True) for y in (train, held)))
        scores = {k: round(accuracy - ERRORS * error, 2) for k, (accuracy, error) in figures.items()}
        figures = {k: [round(value, 2) for value in score] for k, score in figures.items()}
        return {"width": model.width, "seconds": seconds, "scores": scores, "found": figures}

    def score(self, train: Tensor, held: Tensor) -> tuple[float, float]:
        """Returns the mean cluster accuracy and the 10-NN error in percent."""
        right = knn(train, self.y, held, self.y_held, min(NEIGHBOURS, len(train)), similarity="cosine")
        counts = CLUSTERS[self.name]["Table 1"]
        clusters = [cluster_accuracy(held, self.y_held, count, 0, starts=1) for count in counts]
        return 100 * statistics.fmean(clusters), 100 - 100 * right

    def recipe(self, settings: dict) -> Recipe:
        """Returns a recipe with these settings; k is chosen later."""
        return Recipe(**settings, k=1, max_neurons=MOST, blur=self.blur)

    def save(self, **more) -> None:
        every = self.known | self.trials
        trials = [{"recipe": settings(recipe), "seed": seed} | figures for (recipe, seed), figures in every.items()]
        self.write({"chosen_on": "validation"} | more | {"trials": trials})

    def run(self, count: int, finalists: int, seeds: int) -> Recipe:
        """Returns the chosen recipe with its k, after `count` trials with seed 0 and the finalists with all seeds."""
        chance, tried, unit = random.Random(0), {}, STANDARDISED[self.name]
        at_hand = [recipe for recipe, seed in self.known if seed == 0] or [self.recipe(settings(RECIPES[self.name]))]
        for index in range(max(count, len(at_hand))):
            best = max(tried, key=tried.get) if tried and index >= count // 2 else None
            recipe = at_hand[index] if index < len(at_hand) else self.recipe(drawn(chance, unit, best))
            while (recipe, 0) in self.trials:
                recipe = self.recipe(drawn(chance, unit, best))
            if scores := self.trial(recipe, 0):
                tried[recipe] = max(scores.values())
        best = sorted(tried, key=tried.get, reverse=True)[:finalists]
        means = {}
        for recipe in best:
            runs = [self.trial(recipe, seed) for seed in range(seeds)]
            for k in KS:
                if all(k in scores for scores in runs):
                    means[replace(recipe, k=k)] = statistics.fmean(scores[k] for scores in runs)
        if not means:
            raise ValueError("hebbcl search: no settings left room for neurons; raise --trials")
        chosen = max(means, key=means.get)
        self.save(chosen=asdict(chosen), score=round(means[chosen], 2))
        return chosen


def settings(recipe: Recipe) -> dict:
    """Returns the settings that the search draws."""
    return {name: getattr(recipe, name) for name in SPACE}


def read_figures(trial: dict) -> dict:
    """Returns the figures of a trial that was read from a file, whose k are strings."""
    by_k = {name: {int(k): value for k, value in trial[name].items()} for name in ("scores", "found")}
    return {"width": trial["width"], "seconds": trial["seconds"]} | by_k
