"""How hebbcl.py's unsupervised settings were chosen: a random search that never sees the test set.

    python examples/hebbcl.py --mnist mnist.npz --omniglot omniglot.npz --search

A share of each class of the training set is held out (a sixth of MNIST, a fifth of Omniglot). A model goes through the
stream of what is left, and its representation is scored for each k of `KS`: the mean of the two cluster accuracies, in
clusters found among the held-out images, less twice the 10-NN error there. The first half of the trials draws every
setting from `SPACE` at random, the second takes the best so far and draws two settings anew. Models that would run out
of room for neurons before the end of the whole training set do not count, as they would never learn its last classes,
nor do those of which more than an eighth of the neurons would be winners: with ever more of them representations come
to be the pixels again. The best of seed 0 are learnt by all seeds; the highest mean is chosen.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import Tensor

from examples.papers.hebbcl.recipes import CLUSTERS, RECIPES, Recipe
from examples.papers.hebbcl.unsupervised import NEIGHBOURS, Sets, read, represented, taught
from hebbkern.evaluation import cluster_accuracy, knn
from hebbkern.ops import kwinners

HELD_OUT = {"mnist": 6, "omniglot": 5}  # one in so many
KS = (10, 20, 40)
VALIDATION = 4_000  # held-out images that score, at most
SPARSE = 8  # neurons for each winner, at least
ERRORS = 2  # a point of error counts as so many of cluster accuracy
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
STANDARDISED = {"mnist": 0.1, "omniglot": 0.035}  # of the thresholds: 2 / |x|₁ of images that are brought to norm 1


def drawn(chance: random.Random, unit: float, near: Recipe | None = None) -> dict:
    """Settings from SPACE, or those of `near` with two drawn anew; thresholds of standardised images times `unit`."""
    names = list(SPACE) if near is None else chance.sample(list(SPACE), 2)
    found = {} if near is None else settings(near)
    if found.get("patches") == "standardised":
        found["threshold"] /= unit
    found |= {name: chance.choice(SPACE[name]) for name in names}
    if found["patches"] == "standardised":
        found["threshold"] *= unit
    found["threshold"] = round(found["threshold"], 4)
    return found


def held_out(y: Tensor, one_in: int) -> Tensor:
    """bool [n]: every so many-th image of each class, the training set being in whatever order it is."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        chosen[(y == label).nonzero()[:, 0][one_in - 1 :: one_in]] = True
    return chosen


class Search:
    """Trials of one data set; each is told to `write` at once, and those in `known` are not tried again."""

    def __init__(self, name: str, sets: Sets, write: Callable[[dict], None], known: list[dict] = ()):
        self.name, self.write = name, write
        self.blur = RECIPES[name].blur
        self.known = {(self.made(trial["recipe"]), trial["seed"]): figures(trial) for trial in known}
        self.trials: dict[tuple[Recipe, int], dict] = {}
        apart = held_out(sets.y, HELD_OUT[name])
        self.x, self.y, self.whole = sets.x[~apart], sets.y[~apart], len(sets.y)
        places = torch.randperm(int(apart.sum()), generator=torch.Generator().manual_seed(0))[:VALIDATION]
        self.x_held, self.y_held = sets.x[apart][places], sets.y[apart][places]

    def trial(self, recipe: Recipe, seed: int) -> dict[int, float]:
        """{k: score} of what the recipe learns; empty where that does not count."""
        if (recipe, seed) not in self.trials:
            self.trials[recipe, seed] = self.known.get((recipe, seed)) or self.learnt(recipe, seed)
            self.tell()
        found = self.trials[recipe, seed]
        return {k: score for k, score in found["scores"].items() if SPARSE * k <= found["width"]}

    def learnt(self, recipe: Recipe, seed: int) -> dict:
        """What came of a trial."""
        begin, found = time.perf_counter(), {}
        model = taught(recipe, self.x, self.y, seed)
        seconds = round(time.perf_counter() - begin, 2)
        if max(KS) <= model.width <= MOST * len(self.x) / self.whole:
            model.sparse = False
            train, held = (represented(model, x) for x in (self.x, self.x_held))
            for k in KS:
                found[k] = self.score(*(read(kwinners(y, k), True) for y in (train, held)))
        scores = {k: round(accuracy - ERRORS * error, 2) for k, (accuracy, error) in found.items()}
        found = {k: [round(value, 2) for value in score] for k, score in found.items()}
        return {"width": model.width, "seconds": seconds, "scores": scores, "found": found}

    def score(self, train: Tensor, held: Tensor) -> tuple[float, float]:
        """(mean cluster accuracy, 10-NN error) in percent."""
        right = knn(train, self.y, held, self.y_held, min(NEIGHBOURS, len(train)), similarity="cosine")
        counts = CLUSTERS[self.name]["Table 1"]
        clusters = [cluster_accuracy(held, self.y_held, count, 0, starts=1) for count in counts]
        return 100 * statistics.fmean(clusters), 100 - 100 * right

    def made(self, found: dict) -> Recipe:
        """A recipe of these settings; k is found later."""
        return Recipe(**found, k=1, max_neurons=MOST, blur=self.blur)

    def tell(self, **more) -> None:
        every = self.known | self.trials
        trials = [{"recipe": settings(recipe), "seed": seed} | found for (recipe, seed), found in every.items()]
        self.write({"chosen_on": "validation"} | more | {"trials": trials})

    def run(self, count: int, finalists: int, seeds: int) -> Recipe:
        """The recipe with its k, after `count` trials by seed 0 and the finalists by all seeds."""
        chance, tried, unit = random.Random(0), {}, STANDARDISED[self.name]
        at_hand = [recipe for recipe, seed in self.known if seed == 0] or [self.made(settings(RECIPES[self.name]))]
        for index in range(max(count, len(at_hand))):
            best = max(tried, key=tried.get) if tried and index >= count // 2 else None
            recipe = at_hand[index] if index < len(at_hand) else self.made(drawn(chance, unit, best))
            while (recipe, 0) in self.trials:
                recipe = self.made(drawn(chance, unit, best))
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
            raise ValueError("hebbcl_search: no settings had room for neurons; try more of them")
        chosen = max(means, key=means.get)
        self.tell(chosen=asdict(chosen), score=round(means[chosen], 2))
        return chosen


def settings(recipe: Recipe) -> dict:
    return {name: getattr(recipe, name) for name in SPACE}


def figures(trial: dict) -> dict:
    """What came of a trial that was read from a file, where the k are words."""
    by_k = {name: {int(k): value for k, value in trial[name].items()} for name in ("scores", "found")}
    return {"width": trial["width"], "seconds": trial["seconds"]} | by_k
