"""hebbkern.learning: the context in which the Hebbian layers of a model learn during the forward pass."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from hebbkern.checks import FLOATS, fail
from hebbkern.rules import Rule

LayerT = TypeVar("LayerT")


class LearningState(NamedTuple):
    """The settings with which a layer learns in its forward pass; `hebbkern.learning` has the details.

    Attributes:
        lr: learning rate.
        labels: [B] integers for layers whose rule is Supervised, or None.
        lr_tensor: lr as a float64 tensor on the CPU. Compiled models read it instead of lr, so that another rate does
            not recompile them. None for models that are not compiled.
        into: "weight" or "grad".
        group: the torch.distributed group over which updates are summed, or None.
        after_learning: called with the layer after its step and before its forward pass, or None.
        dtype: of the products of the step; None for the weight's dtype.
    """

    lr: float
    labels: Tensor | None
    lr_tensor: Tensor | None
    into: str = "weight"
    group: Any = None
    after_learning: Callable[[Hebbian], None] | None = None
    dtype: torch.dtype | None = None


class Hebbian(nn.Module):
    """Base class of the layers that learn locally.

    Attributes:
        weight: [K, ...], changed by the rule and not by autograd.
        rule: the learning rule.
        frozen: bool [K], True for a neuron that competes but does not learn.
        learning_state: None except inside `hebbkern.learning`.
    """

    weight: nn.Parameter
    rule: Rule
    frozen: Tensor
    learning_state: LearningState | None = None


class learning_scope:
    """Context in which each of `layers` has the learning state given for it.

    On leaving, also by an exception, each layer gets its previous state back. The context can be entered repeatedly.
    """

    def __init__(self, layers: Sequence[Hebbian], states: Sequence[LearningState | None]) -> None:
        self.layers, self.states = layers, states
        self._previous: list[list[LearningState | None]] = []

    def __enter__(self) -> Self:
        self._previous.append([layer.learning_state for layer in self.layers])
        for layer, state in zip(self.layers, self.states, strict=True):
            layer.learning_state = state
        return self

    def __exit__(self, *error: object) -> None:
        for layer, state in zip(self.layers, self._previous.pop(), strict=True):
            layer.learning_state = state


class learning(learning_scope):
    """Context in which every Hebbian layer of `model`, itself included, learns from each input of its forward pass.

        with hk.learning(model, lr=1e-3):
            model(x)

    A layer first takes a step on its input and then computes its output with the new weights, so that the next layer
    learns from the output of a layer that has learned (PyTorch-Hebbian, section 4.1). Training and evaluation mode make
    no difference. Contexts nest: the innermost one that contains a layer counts. On leaving, also by an exception, each
    layer is as it was before.

    With into="grad" the weights stay and any torch optimizer takes the steps:

        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with hk.learning(model, into="grad"):
            model(x)
        optimizer.step()
        optimizer.zero_grad()

    Each forward pass then adds −lr·Δ to weight.grad, where Δ is the step of the rule at lr = 1 from the present
    weights. Frozen rows get exactly 0, but momentum and weight decay of the optimizer still move them. Pass all of
    `model.parameters()` to the optimizer: Hebbian weights have requires_grad=False, yet optimizers step every parameter
    that has a gradient. Beside a loss that torch.amp.GradScaler scales, use lr=scaler.get_scale(), which the scaler
    divides out again.

    Args:
        model: a module with at least one Hebbian layer.
        lr: learning rate, finite: a number for all layers, or {name or pattern: number}. Names are those of
            `model.named_modules()`, patterns contain *, ? or []. Later entries override earlier ones; Hebbian layers
            that match no entry do not learn. With into="grad" the default is 1.0, otherwise lr is required.
        labels: [B] integers for layers whose rule is Supervised; other rules ignore them. See `HebbianLinear.learn`.
        into: "weight", or "grad" (not for rules that renormalise rows: their step is not linear in lr).
        group: a torch.distributed group. Updates are summed over its processes before they are applied, so that all of
            them take the step of the whole batch. Every process must run the same layers; its share may be empty.
        dtype: float32, float64, bfloat16 or float16. The update is computed from weight and input rounded to this dtype
            and applied to the unrounded weight. None for the weight's dtype. With bfloat16 the dense rules learn about
            twice as fast on processors with bfloat16 products (`hebbkern.ops.dense_update` describes the rounding).

    Raises:
        ValueError: the model has no Hebbian layer, lr is missing or not finite, an entry of lr matches no Hebbian
            layer, into or dtype is not one of the above, or a rule renormalises with into="grad".
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Mapping[str, float] | None = None,
        labels: Tensor | None = None,
        *,
        into: str = "weight",
        group: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
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
        states: list[LearningState | None] = []
        for layer, rate in zip(layers, rates, strict=True):
            last = states[-1] if states else None
            if rate is None and isinstance(lr, Mapping):
                states.append(None)
            elif last is not None and last.lr == rate:
                states.append(last)
            else:
                rate = check_rate("learning", rate)
                lr_tensor = torch.tensor(rate, dtype=torch.float64, device="cpu")
                states.append(LearningState(rate, labels, lr_tensor, into, group, dtype=dtype))
            if into == "grad" and states[-1] is not None:
                check_linear("learning", layer.rule)
        super().__init__(layers, states)


def hebbian_layers(model: nn.Module) -> dict[str, Hebbian]:
    """The Hebbian layers by name. Names inside a compiled model are those of the original model."""
    modules = model.named_modules(remove_duplicate=False)
    return {name.replace("_orig_mod.", ""): layer for name, layer in modules if isinstance(layer, Hebbian)}


def by_name(where: str, argument: str, entries: Mapping[str, Any], layers: Mapping[str, LayerT]) -> dict[LayerT, Any]:
    """{layer: value} from {name or pattern: value}; later entries override earlier ones.

    Raises:
        ValueError: an entry matches no layer. The message names the function `where` and its `argument`.
    """
    values: dict[LayerT, Any] = {}
    for name, value in entries.items():
        matches = [layer for other, layer in layers.items() if other == name or fnmatchcase(other, str(name))]
        if not matches:
            known = ", ".join(f'"{other}"' for other in layers)
            raise ValueError(f'hebbkern.{where}: {argument} must match Hebbian layers ({known}), got "{name}"')
        values.update(dict.fromkeys(matches, value))
    return values


def check_any(where: str, model: nn.Module, layers: Collection[Any]) -> None:
    """Raises ValueError if `layers`, the Hebbian layers of `model`, is empty."""
    if not layers:
        name = type(model).__name__
        raise ValueError(f"hebbkern.{where}: model must hold a Hebbian layer (see hk.nn.convert), got {name}")


def check_into(where: str, into: str) -> None:
    """Raises ValueError unless into is "weight" or "grad"."""
    if into not in ("weight", "grad"):
        raise ValueError(f'hebbkern.{where}: into must be "weight" or "grad", got {into!r}')


def check_dtype(where: str, dtype: object) -> None:
    """Raises ValueError unless dtype is None or a dtype in which rules learn."""
    if dtype is not None and dtype not in FLOATS:
        fail(where, "dtype", "be torch.float32, float64, bfloat16 or float16, or None", repr(dtype))


def check_rate(where: str, lr: object) -> float:
    """lr as a float. Raises ValueError unless it is a finite real number."""
    if not isinstance(lr, numbers.Real) or isinstance(lr, bool):
        raise ValueError(f"hebbkern.{where}: lr must be a number, got {lr!r}")
    if not math.isfinite(lr):
        raise ValueError(f"hebbkern.{where}: lr must be finite, got {lr}")
    return float(lr)


def check_linear(where: str, rule: object) -> None:
    """Raises ValueError if the step of the rule is not linear in lr, as an optimizer requires."""
    if getattr(rule, "normalise", "none") in ("row_max", "row_l2"):
        raise ValueError(f'hebbkern.{where}: rule must not renormalise (normalise="none") for into="grad", got {rule}')
