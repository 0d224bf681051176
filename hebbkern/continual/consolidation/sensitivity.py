"""Mean over samples of |∂s/∂θ| or (∂s/∂θ)², sample by sample: the importances of EWC and MAS.

A linear layer that sees one vector a sample has the per-sample gradient g aᵀ (g that of its output, a its input), so
that Σ_b (g_b a_bᵀ)² = (g²)ᵀ a², and so for | |: one matrix product in place of B gradients the size of the weights.
Which parameters are of this kind is not guessed from the module's type: on the first samples the gradient of a
weighted sum over samples must be what g and a say. The others go by torch.func, many samples at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from hebbkern.continual.consolidation.base import Outputs, parameters_of

_SAMPLES = 1024  # at once, through the network
_NUMBERS = 1 << 24  # at once, of per-sample gradients


class Call(nn.Module):
    """`outputs(model, x)` as a module, so that `functional_call` can run it with other parameters."""

    def __init__(self, model: nn.Module, outputs: Outputs | None):
        super().__init__()
        self.model, self.outputs = model, outputs or (lambda model, x: model(x))

    def forward(self, x: Tensor) -> Tensor:
        out = self.outputs(self.model, x)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x):
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"hebbkern.continual: outputs must be [B, K] for x {list(x.shape)}, got {got}")
        return out


def batches_of(data: Iterable | None, samples: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(x, labels), at most `_SAMPLES` at once and `samples` in all."""
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
            raise ValueError(f"hebbkern.continual: labels must be one a sample ({len(x)}), got {len(labels)}")
        for start in range(0, len(x), _SAMPLES):
            end = min(start + _SAMPLES, len(x), len(x) if left is None else start + left)
            if end == start:
                return
            left = None if left is None else left - (end - start)
            yield x[start:end], None if labels is None else labels[start:end]


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """The model in evaluation mode, each module's own mode given back after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Sensitivity:
    """Adds up measure(∂ objective(out_b, target_b)/∂θ) over samples b; `mean()` divides by their number.

    Args:
        model, names: the parameters θ. outputs: (model, x) -> [B, K].
        objective: (out [B, K], targets [B]) -> [B], each sample's from its own row alone.
        measure: torch.square or torch.abs, for which measure(g aᵀ) = measure(g) measure(a)ᵀ.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        outputs: Outputs | None,
        objective: Callable[[Tensor, Tensor], Tensor],
        measure: Callable[[Tensor], Tensor],
    ):
        self.call, self.names, self.objective, self.measure = Call(model, outputs), names, objective, measure
        self.parameters = dict(zip(names, parameters_of(model, names), strict=True))
        self.owner = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
        self.total = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
            for name, p in self.parameters.items()
        }
        self.factored: set[str] | None = None  # not known before the first samples
        self.samples = 0

    def add(self, x: Tensor, targets: Callable[[Tensor], Tensor]) -> None:
        """Counts these samples in; `targets` gives those of objective, [B], from the outputs [B, K]."""
        with torch.enable_grad(), evaluating(self.call.model):
            with self._recorded() as seen:
                out = self.call(x)
            target = targets(out.detach())
            factors = self._factors(seen, self.objective(out, target))
            for name in factors:
                self.total[name] += self._from_factors(*factors[name], self.measure)
            self._general([name for name in self.names if name not in factors], x, target)
        self.samples += len(x)

    def add_batch(self, x: Tensor, targets: Callable[[Tensor], Tensor]) -> None:
        """Counts in measure(mean gradient of these samples), which batch approximations take for theirs."""
        with torch.enable_grad(), evaluating(self.call.model):
            out = self.call(x)
            score = self.objective(out, targets(out.detach())).mean()
            gradients = torch.autograd.grad(score, list(self.parameters.values()), materialize_grads=True)
        for total, gradient in zip(self.total.values(), gradients, strict=True):
            total += self.measure(gradient) * len(x)
        self.samples += len(x)

    def mean(self) -> list[Tensor]:
        """One tensor a parameter, in the order of the names."""
        if self.samples == 0:
            raise ValueError("hebbkern.continual: data must hold at least one sample, got none")
        return [total / self.samples for total in self.total.values()]

    @contextlib.contextmanager
    def _recorded(self):
        """{module: [(input, output), ...]} of what passes through the modules that own the parameters."""
        seen: dict[nn.Module, list] = {module: [] for module in self.owner.values()}

        def record(module, inputs, output):
            seen[module].append((inputs[0] if inputs else None, output))
            # What comes after may work in place; the gradient is wanted of the output as the layer gave it.
            return output.clone() if isinstance(output, Tensor) else None

        hooks = [module.register_forward_hook(record) for module in seen]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _factors(self, seen: dict, score: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """{name: (g [B, K], a [B, N], or None for a bias)} of the parameters whose gradient is g aᵀ."""
        candidates = {}
        for name, parameter in self.parameters.items():
            if self.factored is not None and name not in self.factored:
                continue
            calls = seen[self.owner[name]]
            if len(calls) == 1 and all(
                isinstance(t, Tensor) and t.ndim == 2 and len(t) == len(score) for t in calls[0]
            ):
                given, out = calls[0]
                if out.requires_grad and parameter.shape in ((out.shape[1], given.shape[1]), (out.shape[1],)):
                    candidates[name] = (out, given.detach() if parameter.ndim == 2 else None)
        outs = [out for out, _ in candidates.values()]
        if self.factored is None:
            candidates = self._proven(candidates, score)
            self.factored, outs = set(candidates), [out for out, _ in candidates.values()]
        if not outs:
            return {}
        gradients = torch.autograd.grad(score.sum(), outs, materialize_grads=True)
        return {name: (g, a) for (name, (_, a)), g in zip(candidates.items(), gradients, strict=True)}

    def _proven(self, candidates: dict, score: Tensor) -> dict:
        """Those candidates whose gradient of a weighted sum over samples is what their factors say it is."""
        if not candidates:
            return {}
        weighted = (score * torch.linspace(0.5, 1.5, len(score), dtype=score.dtype, device=score.device)).sum()
        wanted = [out for out, _ in candidates.values()] + [self.parameters[name] for name in candidates]
        gradients = torch.autograd.grad(weighted, wanted, retain_graph=True, materialize_grads=True)
        proven = {}
        for (name, (out, a)), g, true in zip(
            candidates.items(), gradients[: len(candidates)], gradients[len(candidates) :], strict=True
        ):
            off, size = (self._from_factors(g, a, lambda t: t) - true).abs().max(), true.abs().max()
            if size > 0 and off <= torch.finfo(true.dtype).eps ** 0.5 * size:  # zeros prove nothing
                proven[name] = (out, a)
        return proven

    @staticmethod
    def _from_factors(g: Tensor, a: Tensor | None, measure: Callable[[Tensor], Tensor]) -> Tensor:
        return measure(g).sum(0) if a is None else measure(g).T @ measure(a)

    def _general(self, names: list[str], x: Tensor, target: Tensor) -> None:
        """Per-sample gradients by torch.func, as many samples at once as memory allows."""
        if not names:
            return
        parameters = {f"model.{name}": self.parameters[name].detach() for name in names}

        def score(parameters, x, target):
            out = torch.func.functional_call(self.call, parameters, (x[None],))
            return self.objective(out, target[None])[0]

        gradient = torch.func.grad(score)
        size = max(1, _NUMBERS // max(1, sum(p.numel() for p in parameters.values())))
        for x_part, target_part in zip(x.split(size), target.split(size), strict=True):
            try:
                with torch.no_grad():
                    found = torch.func.vmap(gradient, in_dims=(None, 0, 0))(parameters, x_part, target_part)
            except RuntimeError:  # an operator that vmap knows no rule for: the same, one sample after the other
                each = [self._one(names, a[None], t[None]) for a, t in zip(x_part, target_part, strict=True)]
                found = {
                    f"model.{name}": torch.stack(gs) for name, gs in zip(names, zip(*each, strict=True), strict=True)
                }
            for name in names:
                self.total[name] += self.measure(found[f"model.{name}"]).sum(0)

    def _one(self, names: list[str], x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        score = self.objective(self.call(x), target).sum()
        return torch.autograd.grad(score, [self.parameters[name] for name in names], materialize_grads=True)
