"""The search that chooses schedules and recipes on validation data; it never reads the test set."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable

from tqdm import tqdm

from examples.papers.common.readouts import mean_of, measure
from examples.papers.krotov_hopfield import recipes
from examples.papers.krotov_hopfield.experiment import Experiment
from examples.papers.krotov_hopfield.filters import Recipe


class Search:
    """Trials on validation data, each written as soon as it is done.

    Args:
        seeds: of the finalists; the other trials have seed 0.
        write: called with the content of the result file after each trial.
        known: trials of an earlier search, which are not repeated.
    """

    def __init__(self, experiment: Experiment, seeds: int, write: Callable[[dict], None], known: Iterable[dict]):
        self.experiment, self.seeds, self.write = experiment, seeds, write
        self.trials = {(trial["recipe"], trial["schedule"], trial["seed"]): trial["validation"] for trial in known}

    def trial(self, recipe: Recipe, schedules: list[str], seed: int) -> list[float]:
        """Returns the validation accuracy in percent by each schedule, all of them on the same features."""
        if not all((recipe.name, schedule, seed) in self.trials for schedule in schedules):
            y, cut = self.experiment.data.y, self.experiment.data.fitted
            x = self.experiment.features(self.experiment.data.x, self.experiment.filters(recipe, seed))
            x -= mean_of(x[:cut])
            model = self.experiment.readouts(x[:cut], y[:cut], [recipes.SCHEDULES[name] for name in schedules], seed)
            for schedule, share in zip(schedules, measure(model, x[cut:], y[cut:]), strict=True):
                self.trials[recipe.name, schedule, seed] = round(100 * share, 4)
                tqdm.write(f"{recipe.name:<56} {schedule:<24} seed {seed}  {100 * share:.2f} %")
            self.save()
        return [self.trials[recipe.name, schedule, seed] for schedule in schedules]

    def save(self, **more) -> None:
        keys = "recipe", "schedule", "seed"
        trials = [dict(zip(keys, key, strict=True)) | {"validation": share} for key, share in self.trials.items()]
        self.write({"chosen_on": "validation"} | more | {"trials": trials})

    def best(self, candidates: list[Recipe], schedule: str, finalists: int) -> dict:
        """Returns the candidate with the best mean over all seeds, among the finalists of seed 0."""
        tried = {recipe: self.trial(recipe, [schedule], 0)[0] for recipe in candidates}
        last = sorted(candidates, key=tried.get)[-finalists:]
        seeds = range(self.seeds)
        means = {
            recipe.name: statistics.fmean(self.trial(recipe, [schedule], seed)[0] for seed in seeds) for recipe in last
        }
        return {"recipe": max(means, key=means.get), "seeds": self.seeds, "finalists": means}

    def run(self) -> None:
        """Chooses the schedule by a random and a learnt recipe together, then the random and the learnt recipe."""
        random, learnt, names = recipes.random_recipes(), recipes.learnt_recipes(), list(recipes.SCHEDULES)
        sums = [sum(pair) for pair in zip(*(self.trial(kind[0], names, 0) for kind in (random, learnt)), strict=True)]
        schedule = names[sums.index(max(sums))]
        chosen = {"schedule": schedule}
        for kind, candidates in {"random": random, "learnt": learnt}.items():
            chosen[kind] = self.best(candidates, schedule, 2)
        self.save(chosen=chosen)
        print(json.dumps(chosen, indent=2))
