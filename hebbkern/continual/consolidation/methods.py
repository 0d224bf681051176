"""EWC, Online EWC, SI, MAS and L2: how each computes the importance Ω of the parameters and merges tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.continual.consolidation.base import Outputs, Quadratic, check_number, copies_of
from hebbkern.continual.consolidation.sensitivity import Sensitivity, checked_batches


class L2(Quadratic):
    """λ Σ (θ − θ*)²: all parameters are equally important, and θ* are the weights after the last task.

    Args:
        parameters, strength: see `Quadratic`.
    """

    def after_task(self, model: nn.Module, data: Iterable[Any] | None = None, outputs: Outputs | None = None) -> None:
        anchor = copies_of(self._weights_of(model))
        self._remember(anchor, [torch.ones_like(weight) for weight in anchor])
        self.tasks += 1


class EWC(Quadratic):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, equation 3): λ/2 Σ_t Σ F_t (θ − θ*_t)² over all tasks t.

    F is the diagonal of the Fisher information: the mean over samples of (∂ log p(y | x, θ)/∂θ)², p the softmax of the
    outputs. The sum over tasks is stored as one square around Σ F_t θ*_t / Σ F_t and a constant, which has the same
    value, so that neither memory nor time grows with the number of tasks.

    Args:
        parameters, strength: see `Quadratic`.
        labels: "model" draws one y from p for each sample, as the definition of the Fisher information demands; "data"
            uses the labels of the data (the "empirical Fisher").
        samples: number of samples of a task that are used, the first of its data; None for all.
        seed: of the labels drawn, together with the number of the task.
        per_sample: False squares the mean gradient of each batch (of at most 1024 samples) instead, as much published
            code does; F is then smaller by about the size of a batch.

    Raises:
        ValueError: an argument is out of range.
    """

    factor: float = 0.5

    def __init__(
        self,
        parameters: nn.Module | Iterable[Any],
        strength: float,
        *,
        labels: str = "model",
        samples: int | None = None,
        seed: int = 0,
        per_sample: bool = True,
    ) -> None:
        super().__init__(parameters, strength)
        if labels not in ("model", "data"):
            raise ValueError(f'hebbkern.continual: labels must be "model" or "data", got {labels!r}')
        self.labels, self.samples, self.seed = labels, _check_count("samples", samples), seed
        self.per_sample = per_sample

    def after_task(self, model: nn.Module, data: Iterable[Any] | None = None, outputs: Outputs | None = None) -> None:
        self._merge(copies_of(self._weights_of(model)), self._fisher(model, data, outputs))
        self.tasks += 1

    def _merge(self, weights: list[Tensor], fisher: list[Tensor]) -> None:
        """Adds the term of one task to those of the tasks before."""
        if not self.anchor:
            return self._remember(weights, fisher)
        anchor, importance, offset = [], [], self.offset
        for theta, new, mean, old in zip(weights, fisher, self.anchor, self.importance, strict=True):
            both = old + new
            share = torch.where(both > 0, new / both, 1)
            # old (θ − mean)² + new (θ − theta)² = both (θ − mean')² + old new / both (theta − mean)²
            offset += float((old * share * (theta - mean).square()).sum())
            anchor.append(mean + share * (theta - mean))
            importance.append(both)
        self._remember(anchor, importance, offset)

    def _fisher(self, model: nn.Module, data: Iterable[Any] | None, outputs: Outputs | None) -> list[Tensor]:
        """The diagonal of the Fisher information of one task, a tensor for each parameter."""
        generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + self.tasks)
        fisher = Sensitivity(model, self.names, outputs, _log_likelihood, torch.square)
        for x, labels in checked_batches(data, self.samples):
            if self.labels == "data" and labels is None:
                raise ValueError('hebbkern.continual: data must have labels for labels="data", got None')
            add = fisher.add if self.per_sample else fisher.add_batch
            given = labels if self.labels == "data" else None
            add(x, lambda out, given=given: _draw(out, generator) if given is None else given)
        return fisher.mean()


class OnlineEWC(EWC):
    """Online EWC (Schwarz et al. 2018, section 3.2): λ/2 Σ γF (θ − θ*)², F ← γF + F_t, θ* those after the last task.

    The λ of the DHP paper's appendix A (100, 400) is this strength.

    Args:
        parameters, strength, labels, samples, seed, per_sample: see `EWC`.
        decay: γ, from 0 to 1, the factor of the Fisher information of earlier tasks; 1 forgets nothing.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, parameters: nn.Module | Iterable[Any], strength: float, *, decay: float = 1.0, **options: Any
    ) -> None:
        super().__init__(parameters, strength, **options)
        self.decay = check_number("decay", decay, "from 0 to 1", lambda value: 0 <= value <= 1)

    @property
    def scale(self) -> float:
        return super().scale * self.decay

    def _merge(self, weights: list[Tensor], fisher: list[Tensor]) -> None:
        if self.anchor:
            fisher = [self.decay * old + new for old, new in zip(self.importance, fisher, strict=True)]
        self._remember(weights, fisher)


class MAS(Quadratic):
    """Memory aware synapses (Aljundi et al. 2018, section 4): λ Σ Ω (θ − θ*)², Ω summed over tasks.

    Ω_t is the mean over samples of |∂ ‖f(x; θ)‖²/∂θ|, f the outputs (before the softmax); labels are ignored.
    The λ of the DHP paper's appendix A (0.1, 1.0, 1.5) is this strength.

    Args:
        parameters, strength: see `Quadratic`.
        samples: number of samples of a task that are used, the first of its data; None for all.
        per_sample: False takes the absolute value of the mean gradient of each batch (of at most 1024 samples) instead,
            as much published code does: gradients of opposite sign cancel, and Ω shrinks as batches grow.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Any],
        strength: float,
        *,
        samples: int | None = None,
        per_sample: bool = True,
    ) -> None:
        super().__init__(parameters, strength)
        self.samples, self.per_sample = _check_count("samples", samples), per_sample

    def after_task(self, model: nn.Module, data: Iterable[Any] | None = None, outputs: Outputs | None = None) -> None:
        anchor = copies_of(self._weights_of(model))
        omega = Sensitivity(model, self.names, outputs, _squared_norm, torch.abs)
        for x, _ in checked_batches(data, self.samples):
            add = omega.add if self.per_sample else omega.add_batch
            add(x, lambda out: out[:, 0])
        self._remember(anchor, _sum(self.importance, omega.mean()))
        self.tasks += 1


class SynapticIntelligence(Quadratic):
    """Synaptic intelligence (Zenke et al. 2017, equations 3 to 5): c Σ Ω (θ − θ*)², Ω summed over tasks.

    Ω_t = ω / (Δ² + ξ), with ω = −Σ g (θ' − θ) over the steps of the task, g the gradient of the task's loss without the
    penalty, θ' − θ the change by a step, and Δ the change by the task. ω is collected during training: `after_task`
    needs no data.

    Each step, also of the first task, requires `penalty` or `add_gradient` before it and `after_step` after it. The
    .grad found by `after_step` must be that of loss + penalty (the penalty once, without a factor); the part of the
    penalty is subtracted. Skip `after_step` whenever the step of the optimizer is skipped.

    Args:
        parameters, strength: see `Quadratic`; strength is c, and the λ of the DHP paper's appendix A (0.1, 1.0).
        xi: ξ > 0, the damping (0.1 in Zenke et al. and, except 0.001 for split MNIST, in DHP).
        clip: True sets negative importances, which steps against the gradient (momentum, noise) cause, to 0. The
            equations keep them, but a penalty with negative importances has no lower bound.

    Raises:
        ValueError: an argument is out of range.
    """

    GROWING: ClassVar[dict[str, bool]] = {**Quadratic.GROWING, "start": True, "path": False}

    def __init__(
        self, parameters: nn.Module | Iterable[Any], strength: float, *, xi: float = 0.1, clip: bool = False
    ) -> None:
        super().__init__(parameters, strength)
        self.xi, self.clip = check_number("xi", xi, "finite and above 0", lambda value: value > 0), clip
        self.path: list[Tensor] = []  # ω of this task
        self.start: list[Tensor] = []  # θ before its first step
        self._before: list[Tensor] = []  # θ before this step
        self._weights: list[nn.Parameter] = []  # between penalty and after_step

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        penalty = super().penalty(model)
        if torch.is_grad_enabled():
            self._begin(model)
        return penalty

    def add_gradient(self, model: nn.Module, x: Tensor | None = None, *, scaler: Any = None) -> None:
        super().add_gradient(model, scaler=scaler)
        self._begin(model)

    def after_step(self) -> None:
        """Adds −g (θ' − θ) of this step to ω.

        Raises:
            RuntimeError: penalty was not called before the step, or there are no gradients. Nothing is changed.
        """
        if not self._weights:
            raise RuntimeError("hebbkern.continual: after_step must follow penalty or add_gradient, got neither before")
        if all(weight.grad is None for weight in self._weights):
            raise RuntimeError(
                "hebbkern.continual: after_step must find the gradients of the step, got none: call it before zero_grad"
            )
        with torch.no_grad():
            for i, (weight, path, before) in enumerate(zip(self._weights, self.path, self._before, strict=True)):
                if weight.grad is None:
                    continue
                gradient = weight.grad
                if self.anchor:
                    own = self._gradients[i]
                    gradient = torch.sub(gradient, own, alpha=self.scale, out=own)
                path.addcmul_(gradient, torch.sub(weight, before, out=before), value=-1)
        self._weights = []

    def after_task(self, model: nn.Module, data: Iterable[Any] | None = None, outputs: Outputs | None = None) -> None:
        weights = copies_of(self._weights_of(model))
        if not self.path:
            raise ValueError("hebbkern.continual: after_task of SI must follow at least one after_step, got none")
        new = [
            path / ((weight - start).square() + self.xi)
            for path, weight, start in zip(self.path, weights, self.start, strict=True)
        ]
        importance = _sum(self.importance, new)
        self._remember(weights, [omega.clamp(min=0) for omega in importance] if self.clip else importance)
        self.path, self.start, self._before, self._weights = [], [], [], []
        self.tasks += 1

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"path": self._by_name(self.path), "start": self._by_name(self.start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        path, start = (self._in_order(key, state) for key in ("path", "start"))
        super().load_state_dict(state)
        self.path, self.start, self._before, self._weights = path, start, [], []

    def _fit(self, weights: list[nn.Parameter]) -> None:
        super()._fit(weights)
        self._before = []

    def _begin(self, model: nn.Module) -> None:
        """Stores θ before a step."""
        self._weights = self._weights_of(model)
        if not self.path:
            self.start = copies_of(self._weights)
            self.path = [torch.zeros_like(start) for start in self.start]
        if not self._before:
            self._before = [torch.empty_like(path) for path in self.path]
        for before, weight in zip(self._before, self._weights, strict=True):
            before.copy_(weight.detach())


def _sum(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(old, new, strict=True)] if old else new


def _log_likelihood(out: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(out, dim=1).gather(1, labels[:, None])[:, 0]


def _squared_norm(out: Tensor, _: Tensor) -> Tensor:
    return out.square().sum(1)


def _draw(out: Tensor, generator: torch.Generator) -> Tensor:
    """[B] labels drawn from softmax(out [B, K]) by a generator of the CPU: every device gets the same labels."""
    cumulative = out.double().softmax(1).cumsum(1)
    uniform = torch.rand(len(out), 1, generator=generator, dtype=torch.float64, device="cpu").to(out.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn[:, 0].clamp(max=out.shape[1] - 1)


def _check_count(name: str, value: int | None) -> int | None:
    """value as an int of at least 1, or None."""
    if value is None:
        return None
    return int(check_number(name, value, "a whole number above 0", lambda n: n >= 1 and n == int(n)))
