"""What learns in which epoch of a training, and at which rate: all layers together, or one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn

from ignite.handlers.state_param_scheduler import StateParamScheduler

from hebbkern.nn.lesson import Hebbian
from hebbkern.training.step import Step

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
    only sets it in the first epoch of all and leaves it to others from then on.
    """

    def __init__(self, step: Step, stages: list[Stage], lr: float, decay: str):
        if decay not in DECAYS:
            raise ValueError(f'hebbkern.training: decay must be "linear", "cosine" or "constant", got "{decay}"')
        super().__init__("lr")
        self.step, self.stages, self.lr, self.decay = step, stages, lr, decay

    @property
    def epochs(self) -> int:
        return sum(stage.epochs for stage in self.stages)

    def __call__(self, engine) -> None:
        self.event_index = engine.state.epoch - 1
        if self.decay != "constant" or self.event_index == 0:
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
