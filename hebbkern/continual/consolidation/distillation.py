"""LwF: distillation of the network after the last task into the network that learns the next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.continual.consolidation.base import Consolidation, Outputs, check_number, zero_penalty
from hebbkern.continual.consolidation.sensitivity import ModelOutputs, checked_batches, eval_mode
from hebbkern.nn.state import no_learning
from hebbkern.nn.wrappers import plain_name, plain_names, unwrapped


class LwF(Consolidation):
    """Learning without forgetting (Li and Hoiem 2017, section 3): λ T² Σ KL(old ‖ new) of softmaxes at temperature T.

    "Old" is the model after the last task, buffers included, in evaluation mode. The KL divergence is a mean over the
    batch and a sum over groups of output units. It differs from the paper's cross-entropy by a constant; T² keeps the
    size of the gradient at any T (Hinton et al. 2015), which the paper leaves to λ. `penalty` requires x and runs the
    old network, and also the new one unless `out` is given. Give it if a forward pass in training mode changes the
    model (batch normalisation, Hebbian traces) or draws random numbers (dropout).

    Args:
        strength: λ, finite and at least 0.
        temperature: T > 0, 2 in the paper.
        units: the output units of a softmax. "all"; "seen": those of the classes in the data of all tasks learned; or
            "tasks": those of the classes of a task, one softmax for each task. Labels are indices of units.
        outputs: (model, x) -> [B, K], such as all heads side by side; None for model(x). The `outputs` of `after_task`
            are ignored.

    Raises:
        ValueError: strength, temperature or units is out of range.
    """

    def __init__(
        self, strength: float, *, temperature: float = 2.0, units: str = "all", outputs: Outputs | None = None
    ) -> None:
        self.strength = check_number("strength", strength, "finite and at least 0", lambda value: value >= 0)
        self.temperature = check_number("temperature", temperature, "finite and above 0", lambda value: value > 0)
        if units not in ("all", "seen", "tasks"):
            raise ValueError(f'hebbkern.continual: units must be "all", "seen" or "tasks", got {units!r}')
        self.units, self.outputs = units, outputs
        self.old: dict[str, Tensor] = {}  # parameters and buffers
        self.classes: list[list[int]] = []  # of each task

    def penalty(self, model: nn.Module, x: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if not self.old:
            return zero_penalty(model)
        if x is None:
            raise ValueError("hebbkern.continual: x must be given to the penalty of LwF, got None")
        model = unwrapped(model)
        old_tensors = self._checked(model)
        call = ModelOutputs(model, self.outputs)
        with torch.no_grad(), eval_mode(model):
            old = torch.func.functional_call(call, old_tensors, (x,))
        with no_learning():  # the pass of the training loop learns
            new = call(x) if out is None else out
        if new.shape != old.shape:
            raise ValueError(f"hebbkern.continual: out must be {list(old.shape)}, got {list(new.shape)}")
        divergences = [
            F.kl_div(
                F.log_softmax(new[:, group] / self.temperature, 1),
                F.log_softmax(old[:, group] / self.temperature, 1),
                reduction="batchmean",
                log_target=True,
            )
            for group in self._groups()
        ]
        return (self.strength * self.temperature**2) * sum(divergences, torch.zeros_like(divergences[0]))

    def after_task(self, model: nn.Module, data: Iterable[Any] | None = None, outputs: Outputs | None = None) -> None:
        classes = self.classes
        if self.units != "all":
            classes = [*classes, sorted({label for _, labels in checked_batches(data) for label in _classes(labels)})]
            if not classes[-1]:
                raise ValueError("hebbkern.continual: data must hold at least one sample, got none")
        old = {plain_name(model, name): tensor.detach().clone() for name, tensor in _tensors(model)}
        for name, tensor in old.items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"hebbkern.continual: weights must be finite to be remembered, got {name} with "
                    "NaN or infinity; nothing was changed"
                )
        self.old, self.classes = old, classes
        self.tasks += 1

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"old": dict(self.old), "classes": self.classes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state.get("old", {})
        old = {name: saved[key].clone() for name, key in zip(plain_names(list(saved)), saved, strict=True)}
        super().load_state_dict(state)
        self.old, self.classes = old, [list(group) for group in state["classes"]]

    def _groups(self) -> list[Any]:
        """The units of each softmax, as indices of the second dimension of the outputs."""
        if self.units == "all":
            return [slice(None)]
        if self.units == "seen":
            return [sorted({unit for group in self.classes for unit in group})]
        return self.classes

    def _checked(self, model: nn.Module) -> dict[str, Tensor]:
        """The remembered tensors, on the model's devices, by the names that `ModelOutputs` of the model has for them.

        Raises:
            ValueError: the model lacks one, or has it of another shape.
        """
        own = {plain_name(model, name): (name, tensor) for name, tensor in _tensors(model)}
        for name, tensor in self.old.items():
            if name not in own or own[name][1].shape != tensor.shape:
                got = list(own[name][1].shape) if name in own else "none"
                wanted = f"{name} of the remembered shape {list(tensor.shape)}"
                raise ValueError(f"hebbkern.continual: model must have {wanted}, got {got}")
            self.old[name] = tensor.to(own[name][1].device)
        return {f"model.{own[name][0]}": tensor for name, tensor in self.old.items()}


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _classes(labels: Tensor | None) -> list[int]:
    if labels is None:
        raise ValueError('hebbkern.continual: data must have labels for units="seen" and "tasks", got None')
    return labels.unique().tolist()
