"""What all methods share: the calls of the training loop, and the quadratic penalty λ Σ Ω (θ − θ*)²."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

Outputs = Callable[[nn.Module, Tensor], Tensor]


class Consolidation:
    """Finetuning: holds nothing. The base of every method, with the calls that a training loop makes.

    All methods are deterministic, draw no global random numbers and leave the model in the mode they found it in.
    """

    tasks = 0  # that were learnt

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The scalar to add to the loss, differentiable (twice too); 0 before the first task.

        Args:
            model: with the parameters as they are now.
            x: [B, ...] this batch, and out: what the model gives on it, if at hand. Only `LwF` looks at them.

        Raises:
            ValueError: the model lacks a parameter, or has one of another shape than is remembered.
        """
        return nothing(model)

    def add_gradient(self, model: nn.Module, x: Tensor | None = None) -> None:
        """Adds the penalty's gradient to .grad: call it between backward and the optimizer's step.

        The same gradient as by loss + penalty, up to rounding, at a third of the cost for the quadratic penalties.
        """
        penalty = self.penalty(model, x)
        if penalty.requires_grad:
            penalty.backward()

    def after_step(self) -> None:
        """Call after each step of the optimizer, while .grad still holds the gradients of that step."""

    def after_task(self, model: nn.Module, data: Iterable | None = None, outputs: Outputs | None = None) -> None:
        """Call when a task is learnt: takes down what matters to it. On an error nothing is changed.

        Args:
            model: as learnt. It is looked at in evaluation mode.
            data: the task: batches (x [B, ...], labels [B] int64 or None), gone through once, in the order given.
            outputs: (model, x) -> [B, K], for networks of several heads: what counts as output in this task; the
                default is model(x). labels are indices of these K.

        Raises:
            ValueError: data is missing, empty or without labels where they are needed, the importance found is not
                finite, or the model lacks a parameter or has one of another shape than before.
        """
        self.tasks += 1

    def state_dict(self) -> dict:
        """Tensors, numbers and strings in nested dicts, as `hebbkern.training.Safetensors` saves them."""
        return {"method": type(self).__name__, "tasks": self.tasks}

    def load_state_dict(self, state: Mapping) -> None:
        """Goes on from `state_dict()` of a method of the same kind; the tensors are copied.

        Raises:
            ValueError: of another method, or of other parameters. Nothing is changed then.
        """
        if state.get("method") != type(self).__name__:
            raise ValueError(
                f"hebbkern.continual: state must be of {type(self).__name__}, got that of {state.get('method')}"
            )
        self.tasks = state["tasks"]


class Quadratic(Consolidation):
    """λ · factor · (Σ Ω (θ − θ*)² + offset) over chosen parameters. Subclasses find Ω and merge it in `after_task`.

    Args:
        parameters: a module (all its parameters that require a gradient), or the names of parameters as
            `named_parameters` gives them (its pairs are taken too).
        strength: λ, finite and at least 0.
    """

    factor = 1.0

    def __init__(self, parameters: nn.Module | Iterable, strength: float):
        self.names = names_of(parameters)
        self.strength = number("strength", strength, "finite and at least 0", lambda value: value >= 0)
        self.anchor: list[Tensor] = []  # θ*, one a name; empty before the first task
        self.importance: list[Tensor] = []  # Ω
        self.offset = 0.0
        self._pulls: list[Tensor] = []  # 2Ω(θ − θ*) of this step, in memory that the next uses again
        self._made = 0  # how often they were computed

    @property
    def scale(self) -> float:
        """What Σ Ω (θ − θ*)² is multiplied by."""
        return self.strength * self.factor

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        weights = self._chosen(model)
        if not self.anchor:
            return nothing(model)
        stepping = torch.is_grad_enabled()  # otherwise it is only looked at
        with torch.no_grad():
            pulls = self._pull(weights, keep=stepping)
            value = sum(
                torch.dot(pull.flatten(), (weight - anchor).flatten())
                for pull, weight, anchor in zip(pulls, weights, self.anchor, strict=True)
            )
            value = (value / 2 + self.offset) * self.scale
        return _Elastic.apply(value, self, pulls, self.importance, self.anchor, *weights)

    def add_gradient(self, model: nn.Module, x: Tensor | None = None) -> None:
        weights = self._chosen(model)
        if not self.anchor:
            return
        with torch.no_grad():
            for weight, pull in zip(weights, self._pull(weights), strict=True):
                if weight.grad is None:
                    weight.grad = (pull * self.scale).to(weight.dtype)
                else:
                    weight.grad.add_(pull, alpha=self.scale)

    def state_dict(self) -> dict:
        own = {"anchor": self.anchor, "importance": self.importance}
        return super().state_dict() | {"offset": self.offset} | {name: self._named(of) for name, of in own.items()}

    def load_state_dict(self, state: Mapping) -> None:
        own = {name: self._unnamed(name, state) for name in ("anchor", "importance")}
        own["offset"] = state.get("offset", 0.0)
        super().load_state_dict(state)
        vars(self).update(own, _pulls=[])

    def _named(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, tensors, strict=True)) if tensors else {}

    def _unnamed(self, what: str, state: Mapping) -> list[Tensor]:
        tensors = state.get(what, {})
        if tensors and set(tensors) != set(self.names):
            odd = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"hebbkern.continual: state must be of the parameters chosen here, got others: {odd}")
        return [tensors[name].clone() for name in self.names] if tensors else []

    def _remember(self, anchor: list[Tensor], importance: list[Tensor], offset: float = 0.0) -> None:
        """Takes over θ*, Ω and offset, once they are seen to be finite."""
        for name, of, by in zip(self.names, importance, anchor, strict=True):
            for what, tensor in {"importance": of, "weights": by}.items():
                if not tensor.isfinite().all():
                    raise ValueError(
                        f"hebbkern.continual: {what} must be finite to be remembered, got {name} with "
                        "NaN or infinity; nothing was merged"
                    )
        self.anchor, self.importance, self.offset, self._pulls = anchor, importance, offset, []

    def _chosen(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters in the order of the names; what is remembered follows them to their device."""
        weights = parameters_of(model, self.names)
        if not self.anchor:
            return weights
        for name, weight, anchor in zip(self.names, weights, self.anchor, strict=True):
            if weight.shape != anchor.shape:
                raise ValueError(
                    f"hebbkern.continual: model must have {name} of the remembered shape {list(anchor.shape)}, "
                    f"got {list(weight.shape)}"
                )
        if self.anchor[0].device != weights[0].device:
            self.anchor, self.importance = _beside(weights, self.anchor), _beside(weights, self.importance)
            self._pulls = []
        return weights

    def _pull(self, weights: list[nn.Parameter], keep: bool = True) -> list[Tensor]:
        """2Ω(θ − θ*): one pass over each parameter, by the operator that is the gradient of squared errors."""
        pulls = (keep and self._pulls) or [torch.empty_like(anchor) for anchor in self.anchor]
        for pull, weight, anchor, importance in zip(pulls, weights, self.anchor, self.importance, strict=True):
            weight = weight.detach().to(anchor.dtype)
            torch.ops.aten.mse_loss_backward.grad_input(importance, weight, anchor, 0, grad_input=pull)
        if keep:
            self._pulls, self._made = pulls, self._made + 1
        return pulls


class _Elastic(torch.autograd.Function):
    """`value`, whose gradient to the weights is the method's scale · pulls."""

    @staticmethod
    def forward(ctx, value, method, pulls, importance, anchor, *weights):
        ctx.method, ctx.scale, ctx.made = method, method.scale, method._made
        ctx.pulls, ctx.importance, ctx.anchor = pulls, importance, anchor
        ctx.save_for_backward(*weights)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        weights = ctx.saved_tensors  # refused by torch where they were changed since, as pulls would not tell
        stale = ctx.method._made != ctx.made  # another penalty, of another model say, was computed since
        if stale or torch.is_grad_enabled():  # create_graph=True: pulls are constants to autograd
            triples = zip(ctx.importance, weights, ctx.anchor, strict=True)
            pulls = [2 * of * (weight - anchor) for of, weight, anchor in triples]
        else:
            pulls = ctx.pulls
        return None, None, None, None, None, *(pull * (gradient * ctx.scale) for pull in pulls)


def names_of(parameters: nn.Module | Iterable) -> list[str]:
    """The names of the parameters chosen, at least one, each once."""
    if isinstance(parameters, nn.Module):
        parameters = [name for name, parameter in parameters.named_parameters() if parameter.requires_grad]
    names = [one[0] if isinstance(one, tuple) and one else one for one in parameters]
    if isinstance(parameters, str) or not names or not all(isinstance(name, str) for name in names):
        got = repr(parameters) if isinstance(parameters, str) else [type(name).__name__ for name in names[:3]]
        raise ValueError(
            f"hebbkern.continual: parameters must be a module or names of parameters, at least one, got {got}"
        )
    if len(set(names)) < len(names):
        raise ValueError(
            "hebbkern.continual: parameters must be named once each, got "
            f"{sorted({name for name in names if names.count(name) > 1})} more often"
        )
    return names


def parameters_of(model: nn.Module, names: list[str]) -> list[nn.Parameter]:
    """The parameters of these names."""
    try:
        return [model.get_parameter(name) for name in names]
    except AttributeError as error:
        raise ValueError(
            f"hebbkern.continual: parameters must be of the model, got a name it lacks: {error}"
        ) from error


def number(name: str, value, wanted: str, test: Callable[[float], bool]) -> float:
    """`value` as a float, which must be finite and pass the test."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not test(value):
        raise ValueError(f"hebbkern.continual: {name} must be {wanted}, got {value}")
    return float(value)


def kept(weights: list[nn.Parameter]) -> list[Tensor]:
    """Copies to remember, of float32 at least."""
    return [weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True) for weight in weights]


def _beside(weights: list[nn.Parameter], tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.to(weight.device) for tensor, weight in zip(tensors, weights, strict=True)]


def nothing(model: nn.Module) -> Tensor:
    parameter = next(model.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)
