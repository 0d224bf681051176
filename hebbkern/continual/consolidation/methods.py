"""EWC, Online EWC, SI, MAS and L2: where the importance Ω of each parameter comes from, and how tasks add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.continual.consolidation.base import Outputs, Quadratic, kept, number
from hebbkern.continual.consolidation.sensitivity import Sensitivity, batches_of


class L2(Quadratic):
    """λ Σ (θ − θ*)² towards the weights after the last task: every parameter matters as much as any other."""

    def after_task(self, model: nn.Module, data: Iterable | None = None, outputs: Outputs | None = None) -> None:
        anchor = kept(self._chosen(model))
        self._remember(anchor, [torch.ones_like(weight) for weight in anchor])
        self.tasks += 1


class EWC(Quadratic):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, equation 3): λ/2 Σ_t Σ F_t (θ − θ*_t)² over all tasks t.

    F is the diagonal of the Fisher information: the mean over samples of (∂ log p(y | x, θ)/∂θ)², p the softmax of the
    outputs. The sum over tasks is kept as one square around Σ F_t θ*_t / Σ F_t and a constant, which is the same
    number, so that neither memory nor time grows with the tasks.

    Args:
        parameters, strength: see `Quadratic`.
        labels: "model" draws y from p, once a sample, as the Fisher information asks (its expectation is over the
            model's own labels); "data" takes the labels of the data (the "empirical Fisher").
        samples: of each task to look at, the first in its data's order; None: all.
        seed: of the labels drawn, with the number of the task.
        per_sample: False squares each batch's mean gradient instead (at most 1024 samples), as much code in circulation
            does: F is then about as many times smaller as a batch has samples.
    """

    factor = 0.5

    def __init__(
        self,
        parameters: nn.Module | Iterable,
        strength: float,
        *,
        labels: str = "model",
        samples: int | None = None,
        seed: int = 0,
        per_sample: bool = True,
    ):
        super().__init__(parameters, strength)
        if labels not in ("model", "data"):
            raise ValueError(f'hebbkern.continual: labels must be "model" or "data", got {labels!r}')
        self.labels, self.samples, self.seed = labels, _whole("samples", samples), seed
        self.per_sample = per_sample

    def after_task(self, model: nn.Module, data: Iterable | None = None, outputs: Outputs | None = None) -> None:
        self._merge(kept(self._chosen(model)), self._fisher(model, data, outputs))
        self.tasks += 1

    def _merge(self, weights: list[Tensor], fisher: list[Tensor]) -> None:
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

    def _fisher(self, model: nn.Module, data: Iterable | None, outputs: Outputs | None) -> list[Tensor]:
        generator = torch.Generator("cpu").manual_seed(self.seed * 1_000_003 + self.tasks)
        fisher = Sensitivity(model, self.names, outputs, _log_likelihood, torch.square)
        for x, labels in batches_of(data, self.samples):
            if self.labels == "data" and labels is None:
                raise ValueError('hebbkern.continual: data must have labels for labels="data", got None')
            add = fisher.add if self.per_sample else fisher.add_batch
            add(x, lambda out, labels=labels: labels if self.labels == "data" else _draw(out, generator))
        return fisher.mean()


class OnlineEWC(EWC):
    """Online EWC (Schwarz et al. 2018, section 3.2): λ/2 Σ γF (θ − θ*)², F ← γF + F_t, θ* those after the last task.

    The λ of the DHP paper's appendix A (100, 400) is this strength.

    Args:
        parameters, strength, labels, samples, seed, per_sample: see `EWC`.
        decay: γ, from 0 to 1: how much of the Fisher information of earlier tasks stays; 1 forgets nothing.
    """

    def __init__(self, parameters: nn.Module | Iterable, strength: float, *, decay: float = 1.0, **options):
        super().__init__(parameters, strength, **options)
        self.decay = number("decay", decay, "from 0 to 1", lambda value: 0 <= value <= 1)

    @property
    def scale(self) -> float:
        return super().scale * self.decay

    def _merge(self, weights: list[Tensor], fisher: list[Tensor]) -> None:
        if self.anchor:
            fisher = [self.decay * old + new for old, new in zip(self.importance, fisher, strict=True)]
        self._remember(weights, fisher)


class MAS(Quadratic):
    """Memory aware synapses (Aljundi et al. 2018, section 4): λ Σ Ω (θ − θ*)², Ω summed over tasks.

    Ω_t is the mean over samples of |∂ ‖f(x; θ)‖²/∂θ|, f the outputs (before the softmax); labels are not looked at.
    The λ of the DHP paper's appendix A (0.1, 1.0, 1.5) is this strength.

    Args:
        parameters, strength: see `Quadratic`.
        samples: of each task to look at, the first in its data's order; None: all.
        per_sample: False takes the absolute value of each batch's mean gradient instead (at most 1024 samples), as
            much code in circulation does: gradients of opposite sign cancel, and Ω is smaller the larger the batch.
    """

    def __init__(
        self, parameters: nn.Module | Iterable, strength: float, *, samples: int | None = None, per_sample: bool = True
    ):
        super().__init__(parameters, strength)
        self.samples, self.per_sample = _whole("samples", samples), per_sample

    def after_task(self, model: nn.Module, data: Iterable | None = None, outputs: Outputs | None = None) -> None:
        anchor = kept(self._chosen(model))
        omega = Sensitivity(model, self.names, outputs, _squared_length, torch.abs)
        for x, _ in batches_of(data, self.samples):
            add = omega.add if self.per_sample else omega.add_batch
            add(x, lambda out: out[:, 0])
        self._remember(anchor, _sum(self.importance, omega.mean()))
        self.tasks += 1


class SynapticIntelligence(Quadratic):
    """Synaptic intelligence (Zenke et al. 2017, equations 3 to 5): c Σ Ω (θ − θ*)², Ω summed over tasks.

    Ω_t = ω / (Δ² + ξ): ω = −Σ g (θ' − θ) over the steps of the task, g the gradient of the task's loss, without the
    penalty, and θ' − θ what the step did; Δ what the task did. Learnt while training: `after_task` needs no data.

    Each step needs `penalty` or `add_gradient` before it and `after_step` after it, the first task's too. The .grad
    that `after_step` finds is taken for that of loss + penalty (penalty once, as it is), by which the penalty's part
    is known and taken out again. Leave `after_step` out where the optimizer's step was left out.

    Args:
        parameters, strength: see `Quadratic`; strength is c, and the λ of the DHP paper's appendix A (0.1, 1.0).
        xi: ξ > 0, the damping (0.1 in Zenke et al. and, but for split MNIST's 0.001, in DHP).
        clip: importances below 0, which steps against the gradient (momentum, noise) leave, count as 0; the
            equations keep them, and a penalty with such has no lower bound.
    """

    def __init__(self, parameters: nn.Module | Iterable, strength: float, *, xi: float = 0.1, clip: bool = False):
        super().__init__(parameters, strength)
        self.xi, self.clip = number("xi", xi, "finite and above 0", lambda value: value > 0), clip
        self.path: list[Tensor] = []  # ω of this task
        self.start: list[Tensor] = []  # θ before its first step
        self._before: list[Tensor] = []  # θ before this step
        self._weights: list[nn.Parameter] = []  # of a step that is under way

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        penalty = super().penalty(model)
        if torch.is_grad_enabled():
            self._begin(model)
        return penalty

    def add_gradient(self, model: nn.Module, x: Tensor | None = None) -> None:
        super().add_gradient(model)
        self._begin(model)

    def after_step(self) -> None:
        """Adds this step's −g (θ' − θ) to ω.

        Raises:
            RuntimeError: no penalty before the step, or the gradients are gone. Nothing is changed then.
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
                    pull = self._pulls[i]
                    gradient = torch.sub(gradient, pull, alpha=self.scale, out=pull)
                path.addcmul_(gradient, torch.sub(weight, before, out=before), value=-1)
        self._weights = []

    def after_task(self, model: nn.Module, data: Iterable | None = None, outputs: Outputs | None = None) -> None:
        weights = kept(self._chosen(model))
        if not self.path:
            raise ValueError("hebbkern.continual: after_task of SI must follow at least one after_step, got none")
        new = [
            path / ((weight - start).square() + self.xi)
            for path, weight, start in zip(self.path, weights, self.start, strict=True)
        ]
        importance = _sum(self.importance, new)
        self._remember(weights, [of.clamp(min=0) for of in importance] if self.clip else importance)
        self.path, self.start, self._before, self._weights = [], [], [], []
        self.tasks += 1

    def state_dict(self) -> dict:
        return super().state_dict() | {"path": self._named(self.path), "start": self._named(self.start)}

    def load_state_dict(self, state: Mapping) -> None:
        own = {name: self._unnamed(name, state) for name in ("path", "start")}
        super().load_state_dict(state)
        vars(self).update(own, _before=[], _weights=[])

    def _begin(self, model: nn.Module) -> None:
        self._weights = self._chosen(model)
        if not self.path:
            self.start = kept(self._weights)
            self.path = [torch.zeros_like(start) for start in self.start]
        if not self._before:
            self._before = [torch.empty_like(path) for path in self.path]
        for before, weight in zip(self._before, self._weights, strict=True):
            before.copy_(weight.detach())


def _sum(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(old, new, strict=True)] if old else new


def _log_likelihood(out: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(out, dim=1).gather(1, labels[:, None])[:, 0]


def _squared_length(out: Tensor, _) -> Tensor:
    return out.square().sum(1)


def _draw(out: Tensor, generator: torch.Generator) -> Tensor:
    """[B] labels from softmax(out), by uniform numbers of the CPU's generator: the same on every device."""
    cumulative = out.double().softmax(1).cumsum(1)
    uniform = torch.rand(len(out), 1, generator=generator, dtype=torch.float64, device="cpu").to(out.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn[:, 0].clamp(max=out.shape[1] - 1)


def _whole(name: str, value: int | None) -> int | None:
    return (
        None if value is None else int(number(name, value, "a whole number above 0", lambda n: n >= 1 and n == int(n)))
    )
