"""Computes what the tables need, each thing once: stages, features, networks, readouts.

    runner = Runner(data, cache, Settings(PAPER), seed=0)
    runner.measure(Source("HPCA", "BH"), "SGD")     # {"test": ..., "validation": ..., "epoch": ..., "seconds": ...}

A source is a method and a pattern of stages. Stages learn from the first to the last, each on the features of those
below it, so patterns that begin alike share what they have learnt: BHHBB and BHBBB share the second stage, and both
share the first one of the network trained by backprop. The B's above an H are trained together, with a classifier, on
fixed features. In a pattern the H's are adjacent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn

from examples.papers.common.held_out import HeldOutData
from examples.papers.hebbian_cnn import recipes
from examples.papers.hebbian_cnn.cache import Cache
from examples.papers.hebbian_cnn.network import PAPER, Shape, build, outputs, set_statistics
from examples.papers.hebbian_cnn.recipes import Source
from examples.papers.hebbian_cnn.training import (
    SHC,
    Best,
    Hebbian,
    Plan,
    Samples,
    accuracy,
    fit,
    fit_centroids,
    learn,
    readout,
)
from examples.papers.hebbian_cnn.vae import VAE
from hebbkern import datasets
from hebbkern.rules import Rule

WHOLE = "BBBBB"


@dataclass
class Data(HeldOutData):
    """Images [n, 3, H, W] from 0 to 1. The first `fitted` ones are learnt from, the rest validate.

    Args:
        name: of the data set, part of the keys of the cache.
    """

    fitted: int
    classes: int
    name: str

    def __post_init__(self):
        self.train, self.held_out = slice(0, self.fitted), slice(self.fitted, len(self.x))
        self.tested = slice(len(self.x), len(self.x) + len(self.x_test))
        self.inputs = cache(self._inputs)
        some = [part[::101].contiguous().numpy().tobytes() for part in (self.x, self.y, self.x_test)]
        self.digest = hashlib.sha256(repr((self.fitted, self.tested)).encode() + b"".join(some)).hexdigest()[:16]

    def labels(self, part: slice) -> Tensor:
        return self.y_test if part == self.tested else self.y[part]

    def _inputs(self, whitened: bool, mirrored: bool) -> Tensor:
        """Returns all images, standardised or whitened by the training part; mirrored, only that part."""
        if mirrored:
            return self.inputs(whitened, False)[self.train].flip(3)
        fitted = (datasets.zca if whitened else datasets.standardise)(self.x[self.train])
        return fitted.apply_(torch.cat([self.x, self.x_test]))


@dataclass(frozen=True)
class Settings:
    """All that a figure depends on besides the data and the seed."""

    shapes: tuple[Shape, ...]
    hebbian: dict[str, Hebbian] = field(default_factory=lambda: recipes.HEBBIAN)
    backprop: Plan = recipes.BACKPROP
    autoencoder: Plan = recipes.AUTOENCODER
    readout: Plan = recipes.READOUT
    centroids: SHC = recipes.CENTROIDS
    latent: int = 256

    def plans(self, source: Source) -> tuple[Hebbian | Plan, ...]:
        """Returns the plans that a source depends on."""
        plans = [self.hebbian[source.method]] if "H" in source.pattern else []
        if "B" in source.pattern:
            plans.append(self.autoencoder if source.method == "VAE" else self.backprop)
        return tuple(plans)

    def recipe(self, source: Source, classifier: str) -> str:
        """Returns the plans behind a figure as text, by which results are known."""
        more = {"SGD": (self.readout,), "SHC": (self.centroids,)}.get(classifier, ())
        return "; ".join(map(repr, (*self.plans(source), *more)))


def settings_of(data: str, shapes: tuple[Shape, ...] = PAPER) -> Settings:
    """Returns the recipes of a data set; digits are not mirrored and have their own rates."""
    settings = Settings(shapes, recipes.DIGITS if data == "MNIST" else recipes.HEBBIAN)
    if data in recipes.MIRRORED:
        return settings
    plans = {name: replace(getattr(settings, name), mirror=False) for name in ("backprop", "readout")}
    return replace(settings, **plans)


class Runner:
    """Computes figures of one data set and one seed, and keeps what they share in the cache."""

    def __init__(self, data: Data, cache: Cache, settings: Settings, seed: int, *, progress: bool = False):
        self.data, self.cache, self.settings, self.seed, self.progress = data, cache, settings, seed, progress

    def _key(self, *parts) -> str:
        about = self.data.name, self.data.digest, self.seed, self.settings.shapes, self.settings.latent
        return " ".join(map(repr, (*about, *parts)))

    def state(self, key: str, make: Callable[[], dict]) -> dict:
        """Returns what `make` learns from these images, cached."""
        return self.cache.state(self._key(key), make)

    def features(self, source: Source, mirrored: bool = False) -> Tensor:
        """Returns the outputs of the source's last stage, cached: [images, values] bfloat16.

        They are of all images, or, mirrored, of those of the training part.
        """
        if not source.pattern:
            return self.data.inputs(source.method in recipes.WHITENED, mirrored)
        if set(source.pattern) == {"B"} and source.method != "VAE":
            source = Source("backprop", source.pattern)
        count = self.data.fitted if mirrored else self.data.tested.stop
        stage, key = self.stage(source), self._key("features", self.settings.plans(source), source, mirrored)

        def fill(out: Tensor) -> None:
            outputs(nn.Sequential(stage), self.features(source._replace(pattern=source.pattern[:-1]), mirrored), out)

        return self.cache.features(key, (count, stage.outputs.numel()), fill)

    def _stages(self, pattern: str, rule: Rule | None = None) -> nn.Sequential:
        """Returns the initial stages of a pattern; the seed draws the same weights for all methods."""
        torch.manual_seed(self.seed)
        return build(pattern, self.settings.shapes, self.data.x.shape[1:], rule)

    def stage(self, source: Source) -> nn.Module:
        """Returns the last stage of a source, learnt."""
        at = len(source.pattern) - 1
        if source.pattern[-1] == "B":
            whole = source if source.method == "VAE" else Source("backprop", WHOLE)
            return self.network(whole._replace(pattern=WHOLE))[0][at]
        plan = self.settings.hebbian[source.method]
        stage = self._stages("H" * (at + 1), plan.rule)[at]

        def make() -> dict:
            below = self.features(source._replace(pattern=source.pattern[:-1]))
            learn(stage, below[self.data.train], plan, at=at, seed=self.seed, progress=self.progress)
            return stage.state_dict()

        stage.load_state_dict(self.cache.state(self._key("stage", self.settings.plans(source), source), make))
        return stage.eval()

    def network(self, source: Source) -> tuple[nn.Sequential, nn.Module | None, Best]:
        """Returns the stages of a pattern's last B's, their classifier (the VAE has none), and their best epoch."""
        first = source.pattern.rfind("H") + 1
        stages = self._stages(WHOLE)[first:]
        plan = self.settings.autoencoder if source.method == "VAE" else self.settings.backprop
        below = Source(source.method, source.pattern[:first])
        head = None if source.method == "VAE" else readout(stages[-1].outputs.numel(), self.data.classes, plan.dropout)

        def make() -> dict:
            if head is None:
                best = self._fit_autoencoder(stages, plan)
            else:
                best = self._fit_classifier(nn.Sequential(stages, head), below, plan)
            states = {"stages": stages.state_dict(), "best": tuple(best)}
            return states if head is None else states | {"head": head.state_dict()}

        state = self.cache.state(self._key("network", self.settings.plans(source), source), make)
        stages.load_state_dict(state["stages"])
        if head is not None:
            head.load_state_dict(state["head"])
        return stages.eval(), head, Best(*state["best"])

    def _fit_classifier(self, model: nn.Module, below: Source, plan: Plan) -> Best:
        """Trains `model` by gradients on the features of the source below it."""
        x = self.features(below)
        mirrored = self.features(below, mirrored=True) if plan.mirror else None
        return fit(
            model,
            Samples(x[self.data.train], self.data.y[self.data.train], mirrored),
            plan,
            seed=self.seed,
            validate=lambda: self._accuracy(model, x, self.data.held_out),
            progress=self.progress,
        )

    def _fit_autoencoder(self, stages: nn.Sequential, plan: Plan) -> Best:
        """Trains the stages as the encoder of a VAE."""
        x = self.data.inputs(False, False)
        model = VAE(stages, self.settings.latent)

        @torch.no_grad()
        def validate() -> float:
            model.eval()
            return -model.loss(x[self.data.held_out][:2000]).item()

        def loss(model: VAE, x: Tensor, labels: Tensor) -> Tensor:
            return model.loss(x)

        samples = Samples(x[self.data.train], self.data.y[self.data.train])
        best = fit(model, samples, plan, seed=self.seed, loss=loss, validate=validate, progress=self.progress)
        set_statistics(stages, x[self.data.train][:5000])
        return best

    def _accuracy(self, model: nn.Module, x: Tensor, part: slice) -> float:
        return accuracy(model, x[part], self.data.labels(part), recipes.TOP.get(self.data.name, 1))

    def classifier(self, source: Source, kind: str) -> tuple[nn.Module, Tensor, Best]:
        """Returns a classifier, its inputs for all images, and its validation accuracy.

        Args:
            kind: "head": the one trained with the source. "SGD" or "SHC": a new one on the source's features.
        """
        if kind == "head":
            stages, head, best = self.network(source)
            below = source.pattern[: source.pattern.rfind("H") + 1]
            return nn.Sequential(stages, head), self.features(source._replace(pattern=below)), best
        x = self.features(source)
        if kind == "SGD":
            torch.manual_seed(self.seed)
            model = readout(x.shape[1], self.data.classes, self.settings.readout.dropout)
            return model, x, self._fit_classifier(model, source, self.settings.readout)
        model, best = fit_centroids(
            x[self.data.train],
            self.data.y[self.data.train],
            self.data.classes,
            self.settings.centroids,
            seed=self.seed,
            validate=lambda model: self._accuracy(model, x, self.data.held_out),
        )
        return model, x, best

    def measure(self, source: Source, kind: str) -> dict:
        """Returns test and validation accuracies in percent, the best epoch, the seconds, and the recipe.

        It reads the test set, once for each source, kind and seed.
        """
        start = time.perf_counter()
        model, x, best = self.classifier(source, kind)
        self.data.test(*source, kind, self.seed)
        figures = {
            "test": self._accuracy(model, x, self.data.tested),
            "validation": best.validation,
            "epoch": best.epoch,
        }
        figures["seconds"] = round(time.perf_counter() - start, 1)
        return figures | {"recipe": self.settings.recipe(source, kind)}
