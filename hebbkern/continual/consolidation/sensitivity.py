"""Sensitivity: the mean over samples of |∂s/∂θ| or (∂s/∂θ)², of which EWC and MAS make their importances.

A linear layer that gets one vector for each sample has the per-sample gradient g aᵀ, with g the gradient of its output
and a its input. Hence Σ_b (g_b a_bᵀ)² = (g²)ᵀ a², and likewise for | |: one matrix product instead of B gradients of
the size of the weights. The type of a module does not tell whether a parameter has such a gradient, so the first
samples do: the gradient of a weighted sum over samples must be the one that g and a give. For other parameters
torch.func computes per-sample gradients, of many samples at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hebbkern.continual.consolidation.base import Outputs, own_names
from hebbkern.nn.state import no_learning
from hebbkern.nn.wrappers import unwrapped

MAX_SAMPLES = 1024  # in one forward pass
MAX_ENTRIES = 1 << 24  # of per-sample gradients, in memory at once


class ModelOutputs(nn.Module):
    """`outputs(model, x)` as a module, so that `functional_call` can run it with other parameters.

    Args:
        model: the network.
        outputs: (model, x) -> [B, K]; None for model(x).
    """

    def __init__(self, model: nn.Module, outputs: Outputs | None) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs or (lambda model, x: model(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B, K]; raises ValueError for any other shape."""
        out = self.outputs(self.model, x)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x):
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"hebbkern.continual: outputs must be [B, K] for x {list(x.shape)}, got {got}")
        return out


def checked_batches(data: Iterable[Any] | None, samples: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches (x, labels) of at most MAX_SAMPLES, of the first `samples` samples; None for all of them.

    Raises:
        ValueError: data is not an iterable of batches (x, labels).
    """
    if data is None:
        raise ValueError("hebbkern.continual: data must be given to after_task, got None")
    left = samples
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            raise ValueError(
                "hebbkern.continual: data must give pairs (x, labels) of tensors, labels or None, got "
                f"{type(batch).__name__}"
            )
        x, labels = batch
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"hebbkern.continual: labels must be one for each of {len(x)} samples, got {len(labels)}")
        for start in range(0, len(x), MAX_SAMPLES):
            end = min(start + MAX_SAMPLES, len(x), len(x) if left is None else start + left)
            if end == start:
                return
            left = None if left is None else left - (end - start)
            yield x[start:end], None if labels is None else labels[start:end]


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in which the model is in evaluation mode and learns nothing; afterwards each module is as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with no_learning():
            yield
    finally:
        for module in training:
            module.training = True


class Sensitivity:
    """Sums measure(∂ objective(out_b, target_b)/∂θ) over samples b; `mean` divides by their number.

    Args:
        model: the network.
        names: of the parameters θ.
        outputs: (model, x) -> [B, K]; None for model(x).
        objective: (out [B, K], targets [B]) -> [B], of which entry b depends on row b alone.
        measure: torch.square or torch.abs, for which measure(g aᵀ) = measure(g) measure(a)ᵀ.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        outputs: Outputs | None,
        objective: Callable[[Tensor, Tensor], Tensor],
        measure: Callable[[Tensor], Tensor],
    ) -> None:
        self.names, model = own_names(model, names), unwrapped(model)
        self.call, self.objective, self.measure = ModelOutputs(model, outputs), objective, measure
        self.parameters = {name: model.get_parameter(name) for name in self.names}
        self.owner = {name: model.get_submodule(name.rpartition(".")[0]) for name in self.names}
        self.total = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
            for name, p in self.parameters.items()
        }
        self.factored: set[str] | None = None  # the names with gradients g aᵀ; None before the first samples
        self.samples = 0

    def add(self, x: Tensor, targets: Callable[[Tensor], Tensor]) -> None:
        """Adds the samples x [B, ...]; `targets` computes the targets [B] from the outputs [B, K]."""
        with self._differentiable():
            with self._recorded() as calls:
                out = self.call(x)
            target = targets(out.detach())
            factors = self._factors(calls, self.objective(out, target))
            for name in factors:
                self.total[name] += self._from_factors(*factors[name], self.measure)
            self._add_per_sample([name for name in self.names if name not in factors], x, target)
        self.samples += len(x)

    def add_batch(self, x: Tensor, targets: Callable[[Tensor], Tensor]) -> None:
        """Adds B · measure(mean gradient of the B samples x), the common approximation of `add`."""
        with self._differentiable():
            out = self.call(x)
            score = self.objective(out, targets(out.detach())).mean()
            gradients = torch.autograd.grad(score, list(self.parameters.values()), materialize_grads=True)
        for total, gradient in zip(self.total.values(), gradients, strict=True):
            total += self.measure(gradient) * len(x)
        self.samples += len(x)

    def mean(self) -> list[Tensor]:
        """One tensor for each parameter, in the order of the names.

        Raises:
            ValueError: no samples were added.
        """
        if self.samples == 0:
            raise ValueError("hebbkern.continual: data must hold at least one sample, got none")
        return [total / self.samples for total in self.total.values()]

    @contextlib.contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Context of gradients to all parameters, frozen ones too, of the model in evaluation mode and not compiled."""
        frozen = [parameter for parameter in self.parameters.values() if not parameter.requires_grad]
        with torch.enable_grad(), eval_mode(self.call.model), torch.compiler.set_stance("force_eager"):
            try:
                for parameter in frozen:
                    parameter.requires_grad_(True)
                yield
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(False)

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[dict[nn.Module, list[tuple[Any, Any]]]]:
        """{module: [(input, output), ...]} for the calls of the modules that own the parameters."""
        calls: dict[nn.Module, list[tuple[Any, Any]]] = {module: [] for module in self.owner.values()}

        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            calls[module].append((inputs[0] if inputs else None, output))
            # A later module may change its input in place, but the gradient of this output is needed.
            return output.clone() if isinstance(output, Tensor) else None

        hooks = [module.register_forward_hook(record) for module in calls]
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()

    def _factors(
        self, calls: dict[nn.Module, list[tuple[Any, Any]]], score: Tensor
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{name: (g [B, K], a [B, N])} for parameters with the gradient g aᵀ; a is None for a bias."""
        candidates: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, parameter in self.parameters.items():
            if self.factored is not None and name not in self.factored:
                continue
            own = calls[self.owner[name]]
            if len(own) == 1 and all(isinstance(t, Tensor) and t.ndim == 2 and len(t) == len(score) for t in own[0]):
                x, out = own[0]
                if out.requires_grad and parameter.shape in ((out.shape[1], x.shape[1]), (out.shape[1],)):
                    candidates[name] = (out, x.detach() if parameter.ndim == 2 else None)
        if self.factored is None:
            candidates = self._verified(candidates, score)
            self.factored = set(candidates)
        if not candidates:
            return {}
        outs = [out for out, _ in candidates.values()]
        gradients = torch.autograd.grad(score.sum(), outs, materialize_grads=True)
        return {name: (g, a) for (name, (_, a)), g in zip(candidates.items(), gradients, strict=True)}

    def _verified(
        self, candidates: dict[str, tuple[Tensor, Tensor | None]], score: Tensor
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The candidates whose factors give the gradient of a weighted sum over the samples."""
        if not candidates:
            return {}
        weighted = (score * torch.linspace(0.5, 1.5, len(score), dtype=score.dtype, device=score.device)).sum()
        tensors = [out for out, _ in candidates.values()] + [self.parameters[name] for name in candidates]
        gradients = torch.autograd.grad(weighted, tensors, retain_graph=True, materialize_grads=True)
        verified = {}
        for (name, (out, a)), g, true in zip(
            candidates.items(), gradients[: len(candidates)], gradients[len(candidates) :], strict=True
        ):
            error, size = (self._from_factors(g, a, lambda t: t) - true).abs().max(), true.abs().max()
            if size > 0 and error <= torch.finfo(true.dtype).eps ** 0.5 * size:  # a gradient of zeros proves nothing
                verified[name] = (out, a)
        return verified

    @staticmethod
    def _from_factors(g: Tensor, a: Tensor | None, measure: Callable[[Tensor], Tensor]) -> Tensor:
        return measure(g).sum(0) if a is None else measure(g).T @ measure(a)

    def _add_per_sample(self, names: list[str], x: Tensor, target: Tensor) -> None:
        """Adds per-sample gradients by torch.func, of as many samples at once as MAX_ENTRIES allows."""
        if not names:
            return
        parameters = {f"model.{name}": self.parameters[name].detach() for name in names}

        def score(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
            out = torch.func.functional_call(self.call, parameters, (x[None],))
            return self.objective(out, target[None])[0]

        per_sample = torch.func.vmap(torch.func.grad(score), in_dims=(None, 0, 0))
        size = max(1, MAX_ENTRIES // max(1, sum(p.numel() for p in parameters.values())))
        for x_part, target_part in zip(x.split(size), target.split(size), strict=True):
            try:
                with torch.no_grad():
                    gradients = per_sample(parameters, x_part, target_part)
            except RuntimeError:  # vmap has no rule for an operator: one sample after the other
                each = [self._one(names, a[None], t[None]) for a, t in zip(x_part, target_part, strict=True)]
                gradients = {
                    f"model.{name}": torch.stack(gs) for name, gs in zip(names, zip(*each, strict=True), strict=True)
                }
            for name in names:
                self.total[name] += self.measure(gradients[f"model.{name}"]).sum(0)

    def _one(self, names: list[str], x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """The gradients of a single sample x [1, ...]."""
        score = self.objective(self.call(x), target).sum()
        return torch.autograd.grad(score, [self.parameters[name] for name in names], materialize_grads=True)
