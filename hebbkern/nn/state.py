"""What learns when: the settings of a layer's learning, and the contexts in which a layer has them.

Nothing of it is stored on a module. A context belongs to the thread, and to the asynchronous task, that entered it;
copies of a module, other threads, other tasks and forked processes do not learn.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from hebbkern import _torch_private
from hebbkern.rules import Rule


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
        generator: of the stochastic rounding of float16 and bfloat16 weights; None for the nearest number.
    """

    lr: float
    labels: Tensor | None
    lr_tensor: Tensor | None
    into: str = "weight"
    group: Any = None
    after_learning: Any = None
    dtype: torch.dtype | None = None
    generator: torch.Generator | None = None


class Hebbian(nn.Module):
    """Base class of the layers that learn locally.

    Attributes:
        weight: [K, ...], changed by the rule and not by autograd.
        rule: the learning rule.
        frozen: bool [K], True for a neuron that competes but does not learn.

    Class attributes:
        grows: whether learning replaces the weight by a larger one.
    """

    weight: nn.Parameter
    rule: Rule
    frozen: Tensor
    grows: ClassVar[bool] = False

    @property
    def learning_state(self) -> LearningState | None:
        """The state that the innermost context of this thread gives the layer; None where it does not learn."""
        scope = _scope_of(self)
        return None if scope is None or scope.states is None else scope.states[self]


class learning_scope:
    """Context in which each of `layers` has the learning state given for it, in the thread and task that enter it.

    The innermost context that contains a layer counts. Contexts may be left in any order, and entered repeatedly.
    """

    states: dict[Hebbian, LearningState | None] | None  # None: no layer learns

    def __init__(self, states: Mapping[Hebbian, LearningState | None]) -> None:
        self.states = dict(states)
        self.entered = 0
        self.weights: dict[Hebbian, Tensor] = {}  # of the layers that learn, when the context was entered
        self.passes: set[Hebbian] = set()  # layers that have learnt since their last pass was recomputed

    def __enter__(self) -> Self:
        self.entered += 1
        _HERE.scopes = (*_HERE.scopes, self)
        if not torch.compiler.is_compiling():
            _TASK.set((*_TASK.get(), self))
            if self.states is not None:
                learners = (layer for layer, state in self.states.items() if state is not None)
                self.weights = {layer: layer._parameters["weight"] for layer in learners}  # type: ignore[misc]
        return self

    def has_gained(self, layer: Hebbian) -> bool:
        """Whether `layer` has come into the model since the context was made."""
        return False

    def __exit__(self, *error: object) -> None:
        self.entered -= 1
        _HERE.scopes = _without(_HERE.scopes, self)
        if not torch.compiler.is_compiling():
            _TASK.set(_without(_TASK.get(), self))


class no_learning(learning_scope):
    """Context in which no layer learns in its forward pass, also inside `hebbkern.learning`.

        with hk.learning(model, lr=0.1):
            model(x)  # learns
            with hk.nn.no_learning():
                accuracy = evaluate(model)

    It belongs to the thread and task that enter it. A `hebbkern.learning` inside it learns again. The evaluations of
    hebbkern and `after_task` of its consolidation methods run in this context.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.states = None


class _Here(threading.local):
    """The contexts that are open in this thread, in the order in which they were entered."""

    def __init__(self) -> None:
        self.scopes: tuple[learning_scope, ...] = ()  # no class attribute: torch.compile would not watch it


_HERE = _Here()
_TASK: ContextVar[tuple[learning_scope, ...]] = ContextVar("hebbkern.learning", default=())  # of this task


def _forget() -> None:
    _HERE.scopes = ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _without(scopes: tuple[learning_scope, ...], scope: learning_scope) -> tuple[learning_scope, ...]:
    """`scopes` without the last occurrence of `scope`."""
    for index in range(len(scopes) - 1, -1, -1):
        if scopes[index] is scope:
            return (*scopes[:index], *scopes[index + 1 :])
    return scopes


def _scope_of(layer: Hebbian) -> learning_scope | None:
    """The innermost open context of this thread and task that decides whether `layer` learns.

    Raises:
        RuntimeError: there is none, as the layer has come into the model of a context since that was made.
    """
    scopes = _HERE.scopes
    if not scopes:
        return None
    own = None if torch.compiler.is_compiling() else _TASK.get()  # torch.compile does not follow context variables
    for scope in reversed(scopes):
        if scope.entered and (own is None or scope in own) and (scope.states is None or layer in scope.states):
            return scope
    if own is not None and any(scope.entered and scope in own and scope.has_gained(layer) for scope in scopes):
        raise RuntimeError(
            f"hebbkern.{type(layer).__name__}: layer must have been in the model when hebbkern.learning was called, "
            "got one that was added since; call hebbkern.learning after it was added, or use hk.nn.no_learning()"
        )
    return None


def state_of_pass(layer: Hebbian, input: object) -> LearningState | None:
    """The state with which `layer` learns in the forward pass that begins; None where it does not learn.

    A pass that a backward pass recomputes (torch.utils.checkpoint) has learnt already. A symbolic input (torch.fx)
    teaches nothing, nor does one without values or a pass that make_fx records.

    Raises:
        RuntimeError: a pass is recomputed after the layer has learnt again; torch.jit.trace records it; the input is
            one of torch.func's; the weight is not that with which the context was entered; or the layer has come into
            the model since. The weight is unchanged.
    """
    scope = _scope_of(layer)
    if scope is None or scope.states is None or not isinstance(input, Tensor):
        return None
    state = scope.states[layer]
    if state is None or torch.compiler.is_compiling():
        return state
    name = type(layer).__name__
    if _torch_private.is_tracing():
        raise RuntimeError(
            f"hebbkern.{name}: layer must not learn while torch.jit.trace records it, as it calls the model once more "
            "to check the trace; use hk.nn.no_learning() there"
        )
    if _torch_private.is_recorded(input):
        return None
    if _torch_private.in_backward():
        if layer not in scope.passes:
            raise RuntimeError(
                f"hebbkern.{name}: weight must be that of the pass that torch.utils.checkpoint recomputes, got one "
                "that has learnt since; call backward after each forward pass and use the layer once in it, or leave "
                "the layer out of the checkpoint"
            )
        scope.passes.discard(layer)
        return None
    if _torch_private.is_transformed(input):
        raise RuntimeError(
            f"hebbkern.{name}: input must be an ordinary tensor for the layer to learn, got one of torch.func "
            "(vmap, grad); use hk.nn.no_learning() there"
        )
    if layer._parameters["weight"] is not scope.weights.get(layer) and not layer.grows:
        raise RuntimeError(
            f"hebbkern.{name}: weight must be the parameter with which hebbkern.learning was entered, got another one "
            "(functional_call, load_state_dict with assign=True); enter hebbkern.learning after it was replaced, or "
            "use hk.nn.no_learning()"
        )
    scope.passes.add(layer)
    return state
