"""What learns in which epoch of a training, and at which rate: all layers together, or one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from ignite.handlers.state_param_scheduler import StateParamScheduler

from hebbkern.evaluation.features import eval_mode
from hebbkern.nn.learning import by_name
from hebbkern.training.step import Step, pair

DECAYS = ("linear", "cosine", "constant")


class Stage(NamedTuple):
    """Epochs in a row in which the same layers learn."""

    layer: str | None  # the one that learns; None for all
    supervised: bool
    epochs: int


class Schedule(StateParamScheduler):
    """Sets `engine.state.lr` and `engine.state.layer`, and who learns in `step`, at the beginning of each epoch.

    A state scheduler of ignite whose index is the epoch, so that a resumed training goes on where it was. Within each
    stage the rate falls from lr: lr·(1 − e/epochs) or lr·(1 + cos(π e/epochs))/2 in its epoch e from 0; "constant"
    only sets it before the first batch of all and leaves it to others from then on.
    """

    def __init__(self, step: Step, stages: list[Stage], lr: float, decay: str):
        super().__init__("lr")
        self.step, self.stages, self.lr, self.decay = step, stages, lr, decay
        rates = {name: step.rates[layer] * lr for name, layer in step.layers.items()}
        self.settings = {"stages": [list(stage) for stage in stages], "lr": rates, "decay": decay}
        self.settings["dtype"] = None if step.dtype is None else str(step.dtype)
        self._state_attrs = [*self._state_attrs, "settings"]

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def __call__(self, engine) -> None:
        self.event_index = engine.state.epoch - 1
        if self.decay != "constant" or engine.state.iteration == 0:  # a first epoch may be resumed
            engine.state.lr = self.get_param()
        stage, _ = self._now()
        engine.state.layer = stage.layer
        self.step.only = self.step.layers.get(stage.layer)
        self.step.learns = stage.layer is None or self.step.only is not None
        self.step.supervises = stage.supervised

    def get_param(self) -> float:
        stage, epoch = self._now()
        if self.decay == "linear":
            return self.lr * (1 - epoch / stage.epochs)
        if self.decay == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2
        return self.lr

    def _now(self) -> tuple[Stage, int]:
        """The stage of this epoch, and the epoch within it."""
        epoch = self.event_index
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage, epoch
            epoch -= stage.epochs
        return self.stages[-1], self.stages[-1].epochs


def check_schedule(lr, epochs, order: str, decay: str) -> None:
    """Refuses settings that no model could be trained by."""
    if order not in ("together", "greedy"):
        raise ValueError(f'hebbkern.training: order must be "together" or "greedy", got {order!r}')
    if decay not in DECAYS:
        raise ValueError(f'hebbkern.training: decay must be "linear", "cosine" or "constant", got {decay!r}')
    if isinstance(epochs, Mapping) and order != "greedy":
        raise ValueError('hebbkern.training: epochs must be a number unless order="greedy", got a dict')
    for number in epochs.values() if isinstance(epochs, Mapping) else [epochs]:
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"hebbkern.training: epochs must be a whole number of at least 1, got {number!r}")


def plan(step: Step, batches, order: str, epochs, supervised_from: str | None) -> list[Stage]:
    """The stages of a training; a greedy one has one for each layer that data reaches and that is not frozen."""
    if order == "together":
        return [Stage(None, supervised_from is not None, epochs)]
    parts = dict(step.layers)
    if supervised_from is not None:
        parts.setdefault(supervised_from, None)
    of_part = by_name("training", "epochs", epochs if isinstance(epochs, Mapping) else {"*": epochs}, parts)
    learners = [name for name, layer in step.layers.items() if layer in of_part and not layer.frozen.all()]
    if len(learners) > 1:
        learners = _in_order_of_data(step, learners, batches)
    stages = [Stage(name, False, of_part[step.layers[name]]) for name in learners]
    if supervised_from is not None:
        if parts[supervised_from] not in of_part:
            raise ValueError(f'hebbkern.training: epochs must have an entry for "{supervised_from}", got none')
        stages.append(Stage(supervised_from, True, of_part[parts[supervised_from]]))
    if not stages:
        raise ValueError("hebbkern.training: model must hold a layer that learns, got only frozen or unreached ones")
    return stages


def _in_order_of_data(step: Step, names: list[str], batches) -> list[str]:
    """The names in the order in which a batch reaches their layers; it leaves nothing changed."""
    model, reached = getattr(step.model, "_orig_mod", step.model), []
    hooks = [
        step.layers[name].register_forward_pre_hook(lambda layer, inputs, name=name: reached.append(name))
        for name in names
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            model(step.moved(pair(next(iter(batches)))[0]))
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(reached))
