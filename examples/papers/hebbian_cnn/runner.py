"""What the tables of hebbian_cnn.py are computed from, each thing once: stages, features, networks, readouts.

    lab = Laboratory(sets, cache, Settings(PAPER), seed=0)
    lab.measure(Source("HPCA", "BH"), "SGD")        # {"test": ..., "validation": ..., "epoch": ..., "seconds": ...}

A source is a method and a pattern of stages. Stages learn bottom-up, each on the settled features of those below it, so
patterns that begin alike share what they have learnt: BHHBB and BHBBB the second stage, all of them the first one of
the network trained by backprop. B's above an H are trained together, with a classifier, on frozen features. In a
pattern the H's stand together.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor, nn

from examples.papers.common import held_out as once
from examples.papers.hebbian_cnn import recipes
from examples.papers.hebbian_cnn.cache import Cache
from examples.papers.hebbian_cnn.network import PAPER, Shape, build, outputs, settle
from examples.papers.hebbian_cnn.recipes import Source
from examples.papers.hebbian_cnn.training import (
    Best,
    Hebbian,
    Plan,
    Samples,
    Taught,
    accuracy,
    fit,
    learn,
    readout,
    teach,
)
from examples.papers.hebbian_cnn.vae import VAE
from hebbkern import datasets

WHOLE = "BBBBB"


@dataclass
class Sets(once.Sets):
    """x [n, 3, H, W] from 0 to 1: the first `fitted` are learnt from, the rest validate. `name` tells the data set."""

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
        """[images, 3, H, W], standardised or whitened as fitted on those learnt from; mirrored only those."""
        if mirrored:
            return self.inputs(whitened, False)[self.train].flip(3)
        fitted = (datasets.zca if whitened else datasets.standardise)(self.x[self.train])
        return fitted.apply_(torch.cat([self.x, self.x_test]))


@dataclass(frozen=True)
class Settings:
    """All that decides a figure beside the data and the seed."""

    shapes: tuple[Shape, ...]
    hebbian: dict[str, Hebbian] = field(default_factory=lambda: recipes.HEBBIAN)
    backprop: Plan = recipes.BACKPROP
    autoencoder: Plan = recipes.AUTOENCODER
    readout: Plan = recipes.READOUT
    taught: Taught = recipes.TAUGHT
    latent: int = 256

    def plans(self, source: Source) -> tuple[Hebbian | Plan, ...]:
        """Those that a source depends on."""
        plans = [self.hebbian[source.method]] if "H" in source.pattern else []
        if "B" in source.pattern:
            plans.append(self.autoencoder if source.method == "VAE" else self.backprop)
        return tuple(plans)

    def recipe(self, source: Source, kind: str) -> str:
        """The plans that a figure comes from, in words."""
        more = {"SGD": (self.readout,), "SHC": (self.taught,)}.get(kind, ())
        return "; ".join(map(repr, (*self.plans(source), *more)))


def settings_of(data: str, shapes: tuple[Shape, ...] = PAPER) -> Settings:
    """The recipes; digits are not mirrored, and learnt at rates of their own."""
    settings = Settings(shapes, recipes.DIGITS if data == "MNIST" else recipes.HEBBIAN)
    if data in recipes.MIRRORED:
        return settings
    plans = {name: replace(getattr(settings, name), mirror=False) for name in ("backprop", "readout")}
    return replace(settings, **plans)


class Laboratory:
    """Of one data set and one seed."""

    def __init__(self, sets: Sets, cache: Cache, settings: Settings, seed: int, *, progress: bool = False):
        self.sets, self.cache, self.settings, self.seed, self.progress = sets, cache, settings, seed, progress

    def _key(self, *what) -> str:
        about = self.sets.name, self.sets.digest, self.seed, self.settings.shapes, self.settings.latent
        return " ".join(map(repr, (*about, *what)))

    def state(self, key: str, make: Callable[[], dict]) -> dict:
        """What is learnt from these images, cached."""
        return self.cache.state(self._key(key), make)

    def features(self, source: Source, mirrored: bool = False) -> Tensor:
        """[images, values] bfloat16 after the source's last stage, cached; of mirrored images those learnt from."""
        if not source.pattern:
            return self.sets.inputs(source.method in recipes.WHITENED, mirrored)
        if set(source.pattern) == {"B"} and source.method != "VAE":
            source = Source("backprop", source.pattern)
        count = self.sets.fitted if mirrored else self.sets.tested.stop
        stage, key = self.stage(source), self._key("features", self.settings.plans(source), source, mirrored)

        def fill(out: Tensor) -> None:
            outputs(nn.Sequential(stage), self.features(source._replace(pattern=source.pattern[:-1]), mirrored), out)

        return self.cache.features(key, (count, stage.outputs.numel()), fill)

    def _stages(self, pattern: str, rule=None) -> nn.Sequential:
        """As drawn by the seed: the stages of a pattern start alike whatever the method."""
        torch.manual_seed(self.seed)
        return build(pattern, self.settings.shapes, self.sets.x.shape[1:], rule)

    def stage(self, source: Source) -> nn.Module:
        """The last stage of a source, learnt."""
        at = len(source.pattern) - 1
        if source.pattern[-1] == "B":
            whole = source if source.method == "VAE" else Source("backprop", WHOLE)
            return self.network(whole._replace(pattern=WHOLE))[0][at]
        plan = self.settings.hebbian[source.method]
        stage = self._stages("H" * (at + 1), plan.rule)[at]

        def make() -> dict:
            below = self.features(source._replace(pattern=source.pattern[:-1]))
            learn(stage, below[self.sets.train], plan, at=at, seed=self.seed, progress=self.progress)
            return stage.state_dict()

        stage.load_state_dict(self.cache.state(self._key("stage", self.settings.plans(source), source), make))
        return stage.eval()

    def network(self, source: Source) -> tuple[nn.Sequential, nn.Module | None, Best]:
        """Of a pattern that ends with B: the stages of its last B's, their classifier, and when they were best."""
        first = source.pattern.rfind("H") + 1
        stages = self._stages(WHOLE)[first:]
        plan = self.settings.autoencoder if source.method == "VAE" else self.settings.backprop
        below = Source(source.method, source.pattern[:first])
        head = None if source.method == "VAE" else readout(stages[-1].outputs.numel(), self.sets.classes, plan.dropout)

        def make() -> dict:
            best = (
                self._encode(stages, plan) if head is None else self._descend(nn.Sequential(stages, head), below, plan)
            )
            states = {"stages": stages.state_dict(), "best": tuple(best)}
            return states if head is None else states | {"head": head.state_dict()}

        state = self.cache.state(self._key("network", self.settings.plans(source), source), make)
        stages.load_state_dict(state["stages"])
        if head is not None:
            head.load_state_dict(state["head"])
        return stages.eval(), head, Best(*state["best"])

    def _descend(self, model: nn.Module, below: Source, plan: Plan) -> Best:
        """By gradients, on the features of what is below, mirrored at times."""
        x, options = self.features(below), {"seed": self.seed, "progress": self.progress}
        mirrored = self.features(below, mirrored=True) if plan.mirror else None
        samples = Samples(x[self.sets.train], self.sets.y[self.sets.train], mirrored)
        return fit(model, samples, plan, validate=lambda: self._accuracy(model, x, self.sets.held_out), **options)

    def _encode(self, stages: nn.Sequential, plan: Plan) -> Best:
        """By the reconstruction of the images."""
        x = self.sets.inputs(False, False)
        model = VAE(stages, self.settings.latent)

        @torch.no_grad()
        def validate() -> float:
            model.eval()
            return -model.loss(x[self.sets.held_out][:2000]).item()

        def loss(model: VAE, x: Tensor, y: Tensor) -> Tensor:
            return model.loss(x)

        samples = Samples(x[self.sets.train], self.sets.y[self.sets.train])
        best = fit(model, samples, plan, seed=self.seed, loss=loss, validate=validate, progress=self.progress)
        settle(stages, x[self.sets.train][:5000])
        return best

    def _accuracy(self, model: nn.Module, x: Tensor, part: slice) -> float:
        return accuracy(model, x[part], self.sets.labels(part), recipes.TOP.get(self.sets.name, 1))

    def classifier(self, source: Source, kind: str) -> tuple[nn.Module, Tensor, Best]:
        """A classifier, what it reads, and its validation accuracy."""
        if kind == "head":
            stages, head, best = self.network(source)
            return nn.Sequential(stages, head), self.features(source._replace(pattern=self._below(source))), best
        x = self.features(source)
        if kind == "SGD":
            torch.manual_seed(self.seed)
            model = readout(x.shape[1], self.sets.classes, self.settings.readout.dropout)
            return model, x, self._descend(model, source, self.settings.readout)
        model, best = teach(
            x[self.sets.train],
            self.sets.y[self.sets.train],
            self.sets.classes,
            self.settings.taught,
            seed=self.seed,
            validate=lambda model: self._accuracy(model, x, self.sets.held_out),
        )
        return model, x, best

    @staticmethod
    def _below(source: Source) -> str:
        return source.pattern[: source.pattern.rfind("H") + 1]

    def measure(self, source: Source, kind: str) -> dict:
        """Accuracies in percent, the test set seen once, the best epoch, and the seconds all of it took."""
        start = time.perf_counter()
        model, x, best = self.classifier(source, kind)
        self.sets.test(*source, kind, self.seed)
        figures = {
            "test": self._accuracy(model, x, self.sets.tested),
            "validation": best.validation,
            "epoch": best.epoch,
        }
        figures["seconds"] = round(time.perf_counter() - start, 1)
        return figures | {"recipe": self.settings.recipe(source, kind)}
