"""learning: inside it, every Hebbian layer of a model learns as data passes through."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Lesson(NamedTuple):
    """What a layer is told while it learns."""

    lr: float
    labels: Tensor | None
    lr_tensor: Tensor  # the same rate, for compiled models: they are not compiled anew when it changes


class Hebbian:
    """The mark of a layer that learns locally. `lesson` is None except inside `learning`."""

    lesson: Lesson | None = None


class learning:
    """Context in which every Hebbian layer of `model`, itself included, learns from each input before it answers.

        with hk.learning(model, lr=1e-3):
            model(x)

    Layers learn in the order in which data reaches them, each on the output of the layers before it, computed with
    their new weights (PyTorch-Hebbian, section 4.1), in training and in evaluation mode alike. Contexts nest: the
    innermost one that holds a layer counts. On leaving, also by an exception, each layer is as it was before.

    Args:
        model: a module that holds at least one Hebbian layer.
        lr: learning rate, finite; the same for every layer (nest contexts, or call `layer.learn`, for others).
        labels: [B] integers for layers whose rule is Teacher; the other rules ignore them. See `HebbianLinear.learn`.

    Raises:
        ValueError: the model has no Hebbian layer, or lr is not finite.
    """

    def __init__(self, model: nn.Module, lr: float, labels: Tensor | None = None):
        self.layers = [module for module in model.modules() if isinstance(module, Hebbian)]
        if not self.layers:
            name = type(model).__name__
            raise ValueError(f"hebbkern.learning: model must hold a Hebbian layer (see hk.nn.convert), got {name}")
        if not math.isfinite(lr):
            raise ValueError(f"hebbkern.learning: lr must be finite, got {lr}")
        self.lesson = Lesson(float(lr), labels, torch.tensor(lr, dtype=torch.float64, device="cpu"))
        self.before: list[list[Lesson | None]] = []

    def __enter__(self) -> learning:
        self.before.append([layer.lesson for layer in self.layers])
        for layer in self.layers:
            layer.lesson = self.lesson
        return self

    def __exit__(self, *error) -> None:
        for layer, lesson in zip(self.layers, self.before.pop(), strict=True):
            layer.lesson = lesson
