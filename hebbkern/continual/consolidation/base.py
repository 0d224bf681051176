"""Consolidation and Quadratic: the calls of the training loop, and the quadratic penalty λ Σ Ω (θ − θ*)²."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hebbkern import _torch_private
from hebbkern.nn.learning import Hebbian
from hebbkern.nn.wrappers import plain_name, plain_names, unwrapped

Outputs = Callable[[nn.Module, Tensor], Tensor]


class Consolidation:
    """Finetuning, which keeps nothing: the base class of all methods, with the calls that a training loop makes.

    All methods are deterministic, draw no global random numbers and restore the training mode of the model.

    Attributes:
        tasks: number of tasks learned so far.
    """

    tasks: int = 0

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The scalar to add to the loss, differentiable twice; 0 before the end of the first task.

        Args:
            model: the network with its present parameters.
            x: [B, ...], this batch. Only `LwF` uses it.
            out: [B, K], the output of the model for x, if it is known. Only `LwF` uses it.

        Raises:
            ValueError: the model lacks a parameter, or one has another shape than the remembered one.
        """
        return zero_penalty(model)

    def add_gradient(self, model: nn.Module, x: Tensor | None = None, *, scaler: Any = None) -> None:
        """Adds the gradient of the penalty to .grad; call it between backward and the step of the optimizer.

        The gradient equals that of loss + penalty up to rounding, and takes a third of the time for quadratic
        penalties. Parameters that require no gradient are left alone, except weights of Hebbian layers, which
        optimizers step too (`hebbkern.learning` with into="grad").

        Args:
            model, x: see `penalty`.
            scaler: the torch.amp.GradScaler of the loss, where .grad is still multiplied by its scale; None where it is
                not, also after `scaler.unscale_`.

        Raises:
            ValueError: as `penalty`.
            RuntimeError: scaler has divided the gradients by its scale already.
        """
        penalty = self.penalty(model, x)
        if penalty.requires_grad:
            (penalty * loss_scale(scaler)).backward()

    def after_step(self) -> None:
        """To be called after each step of the optimizer, while .grad still has the gradients of this step."""

    def after_task(self, model: nn.Module, data: Iterable[Any] | None = None, outputs: Outputs | None = None) -> None:
        """To be called at the end of a task: stores what the penalty needs. An error changes nothing.

        Args:
            model: the network, which is run in evaluation mode.
            data: the task, an iterable of batches (x [B, ...], labels [B] int64 or None); read once and in order.
            outputs: (model, x) -> [B, K], the outputs of this task for networks with several heads; None for model(x).
                Labels are indices of the K outputs. `model` is the one inside torch.compile and
                DistributedDataParallel.

        Raises:
            ValueError: data is missing or empty or lacks labels although they are needed, an importance is not finite,
                or the model lacks a parameter or has one of another shape.
        """
        self.tasks += 1

    def state_dict(self) -> dict[str, Any]:
        """The state as nested dicts of tensors, numbers and strings; `hebbkern.training.Safetensors` can save it."""
        return {"method": type(self).__name__, "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies the state of a method of the same class.

        Args:
            state: the result of its `state_dict()`.

        Raises:
            ValueError: the state belongs to another method or to other parameters. Nothing is changed.
        """
        if state.get("method") != type(self).__name__:
            raise ValueError(
                f"hebbkern.continual: state must be of {type(self).__name__}, got that of {state.get('method')}"
            )
        self.tasks = state["tasks"]


class Quadratic(Consolidation):
    """λ · factor · (Σ Ω (θ − θ*)² + offset) over chosen parameters. Subclasses compute Ω in `after_task`.

    A parameter may gain rows, as a head for more classes does: the new rows have importance 0 until the next
    `after_task`. The methods take the model with or without torch.compile and DistributedDataParallel around it.

    Args:
        parameters: a module (all its parameters that require a gradient), or names of parameters as
            `named_parameters` gives them; its (name, parameter) pairs are accepted too.
        strength: λ, finite and at least 0.

    Attributes:
        names: of the parameters, without `_orig_mod.` of torch.compile and `module.` of DistributedDataParallel.
        anchor: θ*, one tensor for each name; empty before the end of the first task.
        importance: Ω, one tensor for each name.
        offset: a constant.

    Raises:
        ValueError: there is no parameter, a name is repeated, or strength is out of range.
    """

    factor: float = 1.0
    GROWING: ClassVar[dict[str, bool]] = {"anchor": True, "importance": False}  # whether new rows are the weights'

    def __init__(self, parameters: nn.Module | Iterable[Any], strength: float) -> None:
        self.names = parameter_names(parameters)
        self.strength = check_number("strength", strength, "finite and at least 0", lambda value: value >= 0)
        self.anchor: list[Tensor] = []
        self.importance: list[Tensor] = []
        self.offset = 0.0
        self._gradients: list[Tensor] = []  # 2Ω(θ − θ*) of this step; the next step reuses the memory
        self._version = 0  # how often they were computed

    @property
    def scale(self) -> float:
        """The factor of Σ Ω (θ − θ*)² + offset."""
        return self.strength * self.factor

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        weights = self._weights_of(model)
        if not self.anchor:
            return zero_penalty(model)
        differentiable = torch.is_grad_enabled()
        with torch.no_grad():
            gradients = self._compute_gradients(weights, keep=differentiable)
            value = sum(
                torch.dot(gradient.flatten(), (weight - anchor).flatten())
                for gradient, weight, anchor in zip(gradients, weights, self.anchor, strict=True)
            )
            value = (value / 2 + self.offset) * self.scale
        return _QuadraticPenalty.apply(value, self, gradients, self.importance, self.anchor, *weights)

    def add_gradient(self, model: nn.Module, x: Tensor | None = None, *, scaler: Any = None) -> None:
        weights = self._weights_of(model)
        if not self.anchor:
            return
        scale = self.scale * loss_scale(scaler)
        stepped = _steppable(model, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, self._compute_gradients(weights), strict=True):
                if weight not in stepped:
                    continue
                if weight.grad is None:
                    weight.grad = (gradient * scale).to(weight.dtype)
                else:
                    weight.grad.add_(gradient, alpha=scale)

    def state_dict(self) -> dict[str, Any]:
        tensors = {"anchor": self._by_name(self.anchor), "importance": self._by_name(self.importance)}
        return super().state_dict() | {"offset": self.offset} | tensors

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        anchor, importance = (self._in_order(key, state) for key in ("anchor", "importance"))
        super().load_state_dict(state)
        self.anchor, self.importance, self.offset = anchor, importance, state.get("offset", 0.0)
        self._gradients = []

    def _by_name(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True)) if tensors else {}

    def _in_order(self, key: str, state: Mapping[str, Any]) -> list[Tensor]:
        """Copies of the tensors of state[key], in the order of the names."""
        saved = state.get(key, {})
        tensors = dict(zip(plain_names(list(saved)), saved.values(), strict=True))
        if tensors and set(tensors) != set(self.names):
            odd = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"hebbkern.continual: state must be of the parameters chosen here, got others: {odd}")
        return [tensors[name].clone() for name in self.names] if tensors else []

    def _remember(self, anchor: list[Tensor], importance: list[Tensor], offset: float = 0.0) -> None:
        """Stores θ*, Ω and offset if they are finite; otherwise raises ValueError."""
        for name, omega, theta in zip(self.names, importance, anchor, strict=True):
            for kind, tensor in {"importance": omega, "weights": theta}.items():
                if not tensor.isfinite().all():
                    raise ValueError(
                        f"hebbkern.continual: {kind} must be finite to be remembered, got {name} with "
                        "NaN or infinity; nothing was merged"
                    )
        self.anchor, self.importance, self.offset, self._gradients = anchor, importance, offset, []

    def _weights_of(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters in the order of the names, to which all that is remembered is fitted."""
        weights = parameters_of(model, self.names)
        kept = [own for key in self.GROWING if (own := getattr(self, key))]
        for name, weight, old in zip(self.names, weights, *kept[:1], strict=True) if kept else ():
            if weight.shape != old.shape and (weight.shape[1:] != old.shape[1:] or weight.numel() <= old.numel()):
                raise ValueError(
                    f"hebbkern.continual: model must have {name} of the remembered shape {list(old.shape)}, or with "
                    f"more rows, got {list(weight.shape)}"
                )
        pairs = [pair for own in kept for pair in zip(own, weights, strict=True)]
        if any(old.shape != weight.shape or old.device != weight.device for old, weight in pairs):
            self._fit(weights)
        return weights

    def _fit(self, weights: list[nn.Parameter]) -> None:
        """Moves what is remembered to the devices of the weights, and adds the rows that they have gained."""
        for key, from_weights in self.GROWING.items():
            if own := getattr(self, key):
                fitted = [_grown(old, weight, from_weights) for old, weight in zip(own, weights, strict=True)]
                setattr(self, key, fitted)
        self._gradients = []

    def _compute_gradients(self, weights: list[nn.Parameter], keep: bool = True) -> list[Tensor]:
        """2Ω(θ − θ*), by the gradient of squared errors: one operator and one pass over each parameter."""
        gradients = (keep and self._gradients) or [torch.empty_like(anchor) for anchor in self.anchor]
        for gradient, weight, anchor, omega in zip(gradients, weights, self.anchor, self.importance, strict=True):
            theta = weight.detach().to(anchor.dtype)
            torch.ops.aten.mse_loss_backward.grad_input(omega, theta, anchor, 0, grad_input=gradient)
        if keep:
            self._gradients, self._version = gradients, self._version + 1
        return gradients


class _QuadraticPenalty(torch.autograd.Function):
    """`value`, with scale · `gradients` as its gradient to the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        method: Quadratic,
        gradients: list[Tensor],
        importance: list[Tensor],
        anchor: list[Tensor],
        *weights: Tensor,
    ) -> Tensor:
        ctx.method, ctx.scale, ctx.version = method, method.scale, method._version
        ctx.gradients, ctx.importance, ctx.anchor = gradients, importance, anchor
        ctx.save_for_backward(*weights)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors  # torch raises if a weight has changed since; `gradients` would not show it
        overwritten = ctx.method._version != ctx.version  # by a later penalty
        if overwritten or torch.is_grad_enabled():  # create_graph=True needs the dependence on the weights
            triples = zip(ctx.importance, weights, ctx.anchor, strict=True)
            gradients = [2 * omega * (weight - anchor) for omega, weight, anchor in triples]
        else:
            gradients = ctx.gradients
        return None, None, None, None, None, *(gradient * (grad * ctx.scale) for gradient in gradients)


def parameter_names(parameters: nn.Module | Iterable[Any]) -> list[str]:
    """The names of the chosen parameters. Raises ValueError if there are none or one is repeated."""
    if isinstance(parameters, nn.Module):
        model, named = parameters, parameters.named_parameters()
        parameters = [plain_name(model, name) for name, parameter in named if parameter.requires_grad]
    entries: list[Any] = [entry[0] if isinstance(entry, tuple) and entry else entry for entry in parameters]
    if isinstance(parameters, str) or not entries or not all(isinstance(name, str) for name in entries):
        got = repr(parameters) if isinstance(parameters, str) else [type(name).__name__ for name in entries[:3]]
        raise ValueError(
            f"hebbkern.continual: parameters must be a module or names of parameters, at least one, got {got}"
        )
    if len(set(entries)) < len(entries):
        raise ValueError(
            "hebbkern.continual: parameters must be named once each, got "
            f"{sorted({name for name in entries if entries.count(name) > 1})} more often"
        )
    return plain_names(entries)


def own_names(model: nn.Module, names: list[str]) -> list[str]:
    """The names that `unwrapped(model)` itself has for parameters of these plain names.

    Raises:
        ValueError: the model lacks one.
    """
    parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
    if all(name in parameters for name in names):
        return names
    own = {plain_name(unwrapped(model), name): name for name in parameters}
    own |= dict(zip(plain_names(list(own)), own.values(), strict=True))
    if missing := [name for name in names if name not in own]:
        raise ValueError(f'hebbkern.continual: parameters must be of the model, got a name it lacks: "{missing[0]}"')
    return [own[name] for name in names]


def parameters_of(model: nn.Module, names: list[str]) -> list[nn.Parameter]:
    """The parameters of these plain names. Raises ValueError if the model lacks one."""
    inner = unwrapped(model)
    try:
        return [inner.get_parameter(name) for name in names]
    except AttributeError:
        return [inner.get_parameter(name) for name in own_names(model, names)]


def loss_scale(scaler: Any) -> float:
    """The factor of the gradients of a loss that `scaler` scales; 1.0 for None.

    Raises:
        ValueError: scaler is no torch.amp.GradScaler.
        RuntimeError: it has divided the gradients by the factor already.
    """
    if scaler is None:
        return 1.0
    if not isinstance(scaler, torch.amp.GradScaler):
        got = type(scaler).__name__
        raise ValueError(f"hebbkern.continual: scaler must be a torch.amp.GradScaler or None, got {got}")
    if _torch_private.has_unscaled(scaler):
        raise RuntimeError(
            "hebbkern.continual: scaler must be None after scaler.unscale_, got a GradScaler that has divided the "
            "gradients by its scale"
        )
    return scaler.get_scale()


def _steppable(model: nn.Module, weights: list[nn.Parameter]) -> set[nn.Parameter]:
    """The weights that an optimizer may step: those that require a gradient, and those of Hebbian layers."""
    stepped = {weight for weight in weights if weight.requires_grad}
    if len(stepped) < len(weights):
        stepped |= {layer.weight for layer in model.modules() if isinstance(layer, Hebbian)}
    return stepped


def _grown(old: Tensor, weight: nn.Parameter, from_weights: bool) -> Tensor:
    """`old` on the weight's device, with the rows that it lacks: those of the weight, or zeros."""
    if old.shape == weight.shape:
        return old.to(weight.device)
    new = weight.detach().to(old.dtype, copy=True) if from_weights else torch.zeros_like(weight, dtype=old.dtype)
    new[: len(old)] = old
    return new


def check_number(name: str, value: Any, wanted: str, test: Callable[[float], bool]) -> float:
    """value as a float. Raises ValueError unless it is finite and passes the test."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(float(value)) or not test(float(value)):
        raise ValueError(f"hebbkern.continual: {name} must be {wanted}, got {value}")
    return float(value)


def copies_of(weights: list[nn.Parameter]) -> list[Tensor]:
    """Detached copies, at least of float32."""
    return [weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True) for weight in weights]


def zero_penalty(model: nn.Module) -> Tensor:
    """A scalar 0 on the device of the model."""
    parameter = next(model.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)
