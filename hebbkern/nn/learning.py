"""learning: inside it, every Hebbian layer of a model learns as data passes through."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hebbkern.ops.checks import FLOATS, fail


class Lesson(NamedTuple):
    """What a layer is told while it learns."""

    lr: float
    labels: Tensor | None
    lr_tensor: Tensor | None  # the same rate, for compiled models: they are not compiled anew when it changes
    into: str = "weight"
    group: Any = None
    then: Callable[[Hebbian], None] | None = None  # called with the layer between learning and answering
    dtype: torch.dtype | None = None  # of the products; None: the weight's


class Hebbian:
    """The mark of a layer that learns locally. `lesson` is None except inside `learning`."""

    lesson: Lesson | None = None


class Taught:
    """Context in which each of `layers` has its lesson; on leaving, also by an exception, each has the one before."""

    def __init__(self, layers: list[Hebbian], lessons: list[Lesson | None]):
        self.layers, self.lessons = layers, lessons
        self.before: list[list[Lesson | None]] = []

    def __enter__(self):
        self.before.append([layer.lesson for layer in self.layers])
        for layer, lesson in zip(self.layers, self.lessons, strict=True):
            layer.lesson = lesson
        return self

    def __exit__(self, *error) -> None:
        for layer, lesson in zip(self.layers, self.before.pop(), strict=True):
            layer.lesson = lesson


class learning(Taught):
    """Context in which every Hebbian layer of `model`, itself included, learns from each input before it answers.

        with hk.learning(model, lr=1e-3):
            model(x)

    Layers learn in the order in which data reaches them, each on the output of the layers before it, computed with
    their new weights (PyTorch-Hebbian, section 4.1), in training and in evaluation mode alike. Contexts nest: the
    innermost one that holds a layer counts. On leaving, also by an exception, each layer is as it was before.

    With into="grad" weights stay and any torch optimizer takes the steps:

        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with hk.learning(model, into="grad"):
            model(x)
        optimizer.step()
        optimizer.zero_grad()

    Each layer's weight.grad then has −lr·Δ added, Δ being the rule's step at lr = 1 from the present weights; frozen
    rows get exactly 0 (but momentum and weight decay of the optimizer still move them). Gradients add up over passes.
    `model.parameters()` must reach the optimizer whole: Hebbian weights have requires_grad=False, yet optimizers
    step whatever has a gradient. Beside a loss that torch.amp.GradScaler scales, take lr=scaler.get_scale(), which its
    unscaling divides out again.

    Args:
        model: a module that holds at least one Hebbian layer.
        lr: learning rate, finite: a number for every layer, or {name or pattern: number}. Names are those of
            `model.named_modules()`, patterns have *, ? or []; later entries count, and Hebbian layers that no entry
            matches do not learn inside. With into="grad" 1.0 unless given.
        labels: [B] integers for layers whose rule is Supervised; the other rules ignore them. See `HebbianLinear.learn`.
        into: "weight", or "grad" (not for rules that renormalise rows: their step is not linear in lr).
        group: a torch.distributed group, whose every process must run the same layers. Updates are summed over it
            before they are applied, so each process takes the step on what all of them saw; a share may be empty.
        dtype: float32, float64, bfloat16 or float16: the update is computed from weight and input rounded to it, and
            applied to the weight as it is. None: the weight's. With bfloat16 the dense rules learn about twice as fast
            on processors that multiply it (see `hebbkern.ops.dense_update` for what that rounds).

    Raises:
        ValueError: the model has no Hebbian layer, lr is missing or not finite, an entry of lr matches no Hebbian
            layer, into or dtype is none of those, or a rule renormalises with into="grad".
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Mapping[str, float] | None = None,
        labels: Tensor | None = None,
        *,
        into: str = "weight",
        group=None,
        dtype: torch.dtype | None = None,
    ):
        layers = [module for module in model.modules() if isinstance(module, Hebbian)]
        check_any("learning", model, layers)
        check_into("learning", into)
        check_dtype("learning", dtype)
        if lr is None and into == "grad":
            lr = 1.0
        if isinstance(lr, Mapping):
            rates = by_name("learning", "lr", lr, hebbian_layers(model))
            rates = [rates.get(layer) for layer in layers]
        else:
            rates = [lr] * len(layers)
        lessons = []
        for layer, rate in zip(layers, rates, strict=True):
            if rate is None and isinstance(lr, Mapping):
                lessons.append(None)
            elif lessons and lessons[-1] is not None and lessons[-1].lr == rate:
                lessons.append(lessons[-1])
            else:
                check_rate("learning", rate)
                scheduled = torch.tensor(rate, dtype=torch.float64, device="cpu")
                lessons.append(Lesson(float(rate), labels, scheduled, into, group, dtype=dtype))
            if into == "grad" and lessons[-1] is not None:
                check_linear("learning", layer.rule)
        super().__init__(layers, lessons)


def hebbian_layers(model: nn.Module) -> dict[str, Hebbian]:
    """The Hebbian layers by name; of a compiled model by the names of what was compiled."""
    modules = model.named_modules(remove_duplicate=False)
    return {name.replace("_orig_mod.", ""): layer for name, layer in modules if isinstance(layer, Hebbian)}


def by_name(where: str, argument: str, entries: Mapping[str, Any], layers: Mapping[str, Hebbian]) -> dict[Hebbian, Any]:
    """The value of each layer that an entry {name or pattern: value} matches; later entries count."""
    chosen = {}
    for name, value in entries.items():
        matches = [layer for other, layer in layers.items() if other == name or fnmatchcase(other, str(name))]
        if not matches:
            known = ", ".join(f'"{other}"' for other in layers)
            raise ValueError(f'hebbkern.{where}: {argument} must match Hebbian layers ({known}), got "{name}"')
        chosen.update(dict.fromkeys(matches, value))
    return chosen


def check_any(where: str, model: nn.Module, layers) -> None:
    """Refuses a model in which no Hebbian layers were found."""
    if not layers:
        name = type(model).__name__
        raise ValueError(f"hebbkern.{where}: model must hold a Hebbian layer (see hk.nn.convert), got {name}")


def check_into(where: str, into: str) -> None:
    if into not in ("weight", "grad"):
        raise ValueError(f'hebbkern.{where}: into must be "weight" or "grad", got {into!r}')


def check_dtype(where: str, dtype) -> None:
    if dtype is not None and dtype not in FLOATS:
        fail(where, "dtype", "be torch.float32, float64, bfloat16 or float16, or None", repr(dtype))


def check_rate(where: str, lr) -> None:
    """A finite number."""
    if not isinstance(lr, numbers.Real) or isinstance(lr, bool):
        raise ValueError(f"hebbkern.{where}: lr must be a number, got {lr!r}")
    if not math.isfinite(lr):
        raise ValueError(f"hebbkern.{where}: lr must be finite, got {lr}")


def check_linear(where: str, rule) -> None:
    """Only of a rule whose step is linear in lr a part can be handed to an optimizer."""
    if getattr(rule, "normalise", "none") in ("row_max", "row_l2"):
        raise ValueError(f'hebbkern.{where}: rule must not renormalise (normalise="none") for into="grad", got {rule}')
