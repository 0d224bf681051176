"""What the engine does with a batch: a forward pass in which layers learn, and the supervised part's gradient step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hebbkern.nn.learning import (
    Hebbian,
    LearningState,
    by_name,
    check_any,
    check_dtype,
    check_rate,
    hebbian_layers,
    learning_scope,
)


class Step:
    """The process function of a `hebbian_trainer`; arguments and errors as there.

    Attributes:
        layers: the Hebbian layers by their first names, those without a rate left out.
        learns: whether layers learn.
        only: the one of them that does; None for all.
        supervises: whether the supervised part takes its steps.
    """

    def __init__(self, model: nn.Module, rates, supervised_from, optimizer, loss, group, dtype):
        layers = hebbian_layers(model)
        check_any("training", model, layers)
        check_dtype("training", dtype)
        chosen = dict.fromkeys(layers.values(), 1.0) if rates is None else _rates(rates, layers)
        first = {layer: name for name, layer in reversed(layers.items())}
        self.layers = {name: layer for name, layer in layers.items() if layer in chosen and first[layer] == name}
        if growing := [name for name, layer in self.layers.items() if _grows(layer) and dtype]:
            raise ValueError(f'hebbkern.training: dtype must be None for "{growing[0]}", a HebbCL layer, got {dtype}')
        self.model, self.rates, self.loss, self.group, self.dtype = model, chosen, loss, group, dtype
        self.first = next(iter(layers.values()))  # of the model, whether it learns or not
        self.learns, self.only = True, None
        self.supervised = None if supervised_from is None else Supervised(model, supervised_from, optimizer, group)
        if supervised_from is None and optimizer is not None:
            raise ValueError("hebbkern.training: supervised_from must name a module for the optimizer, got None")
        self.supervises = self.supervised is not None
        self._frozen: dict[Hebbian, tuple[Tensor, int, bool]] = {}
        self._passes: dict[tuple, bool] = {}
        if group is not None:
            for tensor in (*model.parameters(), *model.buffers()):
                torch.distributed.broadcast(tensor.detach(), group=group, group_src=0)

    def __call__(self, engine, batch):
        x, labels = map(self.moved, pair(batch))
        compiled = _is_compiled(self.model)
        lessons = self._lessons(engine.state.lr, labels, compiled)
        if self.supervises:
            with learning_scope(list(lessons), list(lessons.values())):
                return self.supervised.step(self.model, x, labels, self.loss)
        if any(lesson is not None for lesson in lessons.values()):
            with torch.no_grad():
                self._pass(x, lessons, compiled)
        return None

    @property
    def modes(self) -> dict[nn.Module, bool]:
        """Of each module of the model: is it in training mode?"""
        return {module: module.training for module in self.model.modules()}

    def moved(self, part):
        """A tensor on the device of the layers; anything else as it is."""
        device = self.first.weight.device
        return part.to(device, non_blocking=True) if isinstance(part, Tensor) else part

    def _lessons(self, lr: float, labels: Tensor | None, compiled: bool) -> dict[Hebbian, LearningState | None]:
        """Of each Hebbian layer with a rate; None for those that do not learn now."""
        lessons = {}
        for layer, rate in self.rates.items():
            idle = not self.learns or (self.only is not None and layer is not self.only) or self._is_frozen(layer)
            rate *= lr
            scheduled = torch.tensor(rate, dtype=torch.float64, device="cpu") if compiled else None
            lessons[layer] = (
                None if idle else LearningState(rate, labels, scheduled, group=self.group, dtype=self.dtype)
            )
        return lessons

    def _is_frozen(self, layer: Hebbian) -> bool:
        """Whether no neuron of the layer learns; looked up anew, which waits for a GPU, only where the mask changed."""
        if _grows(layer):
            return layer.finished
        mask = layer.frozen
        known = self._frozen.get(layer)
        if known is None or known[0] is not mask or known[1] != mask._version:
            known = self._frozen[layer] = (mask, mask._version, bool(mask.all()))
        return known[2]

    def _pass(self, x, lessons: dict[Hebbian, LearningState | None], compiled: bool) -> None:
        """A forward pass that ends once the last layer has learnt, where that changes nothing else.

        It changes nothing where the modules say so, or where a whole pass of this shape has shown it: each layer learnt
        exactly once, and afterwards no buffer (running statistics) changed and no random number was drawn (else a
        training that is resumed, whose first pass is a whole one, would draw others than one that is not).
        """
        learners = [layer for layer, lesson in lessons.items() if lesson is not None]
        key = (getattr(x, "shape", None), self.model.training, *map(id, learners))
        if key not in self._passes and _is_chain(self.model, learners):
            self._passes[key] = True
        watch = _Watch(self.model, learners, stop=self._passes.get(key, False) and not _is_watched(self.model))
        told = [lesson and lesson._replace(after_learning=watch) for lesson in lessons.values()]
        if compiled or not self._passes.get(key, True):
            told = list(lessons.values())
        with learning_scope(list(lessons), told), contextlib.suppress(_Enough):
            self.model(x)
            self._passes[key] = self._passes.get(key, True) and watch.may_stop()


def _grows(layer: Hebbian) -> bool:
    """Whether its neurons are not all there yet, as HebbCL's."""
    return hasattr(layer, "finished")


def pair(batch) -> tuple:
    """(x, labels) of a batch; one without labels is x, or (x,)."""
    if isinstance(batch, Tensor):
        return batch, None
    if not isinstance(batch, list | tuple) or len(batch) not in (1, 2):
        what = f"{len(batch)} parts" if isinstance(batch, list | tuple) else type(batch).__name__
        raise ValueError(f"hebbkern.training: each batch must be a tensor x or a pair (x, labels), got {what}")
    return (*batch, None)[:2]


class Supervised:
    """The part of a model that an optimizer trains: a module and every one registered after it."""

    def __init__(self, model: nn.Module, name: str, optimizer, group):
        names = [other.replace("_orig_mod.", "") for other, _ in model.named_modules()]
        if name not in names:
            known = ", ".join(f'"{other}"' for other in names if other)
            raise ValueError(
                f'hebbkern.training: supervised_from must be a module of the model ({known}), got "{name}"'
            )
        after = [module for _, module in model.named_modules()][names.index(name) :]
        own = [parameter for module in after for parameter in module.parameters(recurse=False)]
        self.parameters = list(dict.fromkeys(own))
        self.others = [parameter for parameter in model.parameters() if parameter not in set(own)]
        if optimizer is None:
            raise ValueError(f'hebbkern.training: optimizer must be given to train from "{name}" on, got None')
        held = {parameter for part in optimizer.param_groups for parameter in part["params"]}
        if not held & set(own):
            raise ValueError(f'hebbkern.training: optimizer must hold parameters of "{name}" or after it, got none')
        self.optimizer, self.group = optimizer, group

    def step(self, model: nn.Module, x: Tensor, labels: Tensor, loss: Callable) -> dict[str, Any]:
        """A forward pass, the gradient of the loss, averaged over the group, and a step of the optimizer."""
        x = x.detach() if isinstance(x, Tensor) else x
        with torch.enable_grad(), _without_gradients(self.others):
            output = model(x)
            taught = self.group is None or len(x) > 0
            value = loss(output, labels) if taught else output.new_full((), math.nan)  # the mean over no samples
        self.optimizer.zero_grad()
        if taught:
            value.backward()
        if self.group is not None:
            self._average(len(x))
        self.optimizer.step()
        return {"y_pred": output.detach(), "y": labels, "loss": value.detach()}

    def _average(self, samples: int) -> None:
        """Gradients become the mean over the samples of all processes; those that no process has stay None."""
        parameters = [parameter for parameter in self.parameters if parameter.requires_grad]
        if not parameters:
            return
        present = [float(parameter.grad is not None) for parameter in parameters]
        head = torch.tensor([samples, *present], dtype=torch.float32, device=parameters[0].device)
        grads = [torch.zeros_like(each) if each.grad is None else each.grad * samples for each in parameters]
        total = torch.cat([head, *(grad.reshape(-1) for grad in grads)])
        torch.distributed.all_reduce(total, group=self.group)
        head, *pieces = total.split([len(head), *(grad.numel() for grad in grads)])
        samples, *present = head.tolist()
        for parameter, piece, there in zip(parameters, pieces, present, strict=True):
            if there:
                parameter.grad = (piece / max(samples, 1)).view(parameter.shape).to(parameter.dtype)


class _Enough(BaseException):
    """Ends a forward pass whose last layer has learnt; not an Exception, which a model may catch."""


class _Watch:
    """Counts who has learnt in a pass, and ends it after the last where it may."""

    def __init__(self, model: nn.Module, learners: list[Hebbian], stop: bool):
        self.counts = dict.fromkeys(learners, 0)
        self.left, self.stop = len(learners), stop
        self.buffers = [] if stop else list(model.buffers())
        self.state: tuple = ()

    def __call__(self, layer: Hebbian) -> None:
        self.counts[layer] += 1
        self.left -= self.counts[layer] == 1
        if not self.left and self.stop:
            raise _Enough
        if not self.left:
            self.state = self._state()

    def may_stop(self) -> bool:
        return set(self.counts.values()) == {1} and self.state == self._state()

    def _state(self) -> tuple:
        """What a module may change by answering: the versions of buffers, the states of random generators."""
        devices = {layer.weight.device for layer in self.counts if layer.weight.is_cuda}
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        return [buffer._version for buffer in self.buffers], [state.numpy().tobytes() for state in states]


def _is_chain(model: nn.Module, learners: list[Hebbian]) -> bool:
    """Whether the model sends data once through each learner and then on to nothing that has buffers."""
    chain = [model]
    while any(type(part) is nn.Sequential for part in chain):
        chain = [one for part in chain for one in (part if type(part) is nn.Sequential else [part])]
    places = [chain.index(layer) for layer in learners if chain.count(layer) == 1]
    after = chain[max(places, default=0) + 1 :]
    return len(places) == len(learners) and not any(list(part.buffers()) for part in after)


def _is_watched(model: nn.Module) -> bool:
    """Whether someone waits for what modules answer."""
    return any(module._forward_hooks for module in model.modules())


def _is_compiled(model: nn.Module) -> bool:
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in model.modules())


@contextlib.contextmanager
def _without_gradients(parameters: list[nn.Parameter]):
    """Inside, no gradient reaches them, so none is recorded up to the first module that has others."""
    changed = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def _rates(rates: Mapping[str, float], layers: Mapping[str, Hebbian]) -> dict[Hebbian, float]:
    chosen = by_name("training", "rates", rates, layers)
    for rate in chosen.values():
        check_rate("training", rate)
    return {layer: float(chosen[layer]) for layer in layers.values() if layer in chosen}
