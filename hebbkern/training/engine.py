"""hebbian_trainer: a pytorch-ignite Engine in which the Hebbian layers of a model learn from each batch."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from hebbkern.nn.learning import (
    by_name,
    check_any,
    check_dtype,
    check_rate,
    groups_of,
    hebbian_layers,
    names_of_layers,
)
from hebbkern.nn.state import Hebbian, LearningState, learning_scope
from hebbkern.nn.weights import check_own_weight
from hebbkern.nn.wrappers import holds_compiled, plain_name

try:
    from ignite.engine import Engine, Events
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LABELS = ("label", "labels", "target", "targets", "y")  # what a batch that is a dict may call its labels
DIVERGED = 1e6  # a loss that is so many times that of the first batch

__all__ = ["Engine", "Events", "Step", "engine_of", "hebbian_trainer", "pair"]


def hebbian_trainer(
    model: nn.Module,
    *,
    lr: float | Mapping[str, float] = 0.0,
    supervised_from: str | None = None,
    optimizer: Optimizer | None = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    group: ProcessGroup | None = None,
    dtype: torch.dtype | None = None,
) -> Engine:
    """Makes an ignite Engine in which the Hebbian layers of `model` learn from batches (x, labels) or x alone.

    Further parts of a batch are ignored. A batch may be a dict, in which "label", "labels", "target", "targets" or "y"
    names the labels and the only other entry is x.

        optimizer = torch.optim.Adam(model.fc.parameters())
        trainer = hk.training.hebbian_trainer(model, lr=0.02, supervised_from="fc", optimizer=optimizer)
        trainer.run(loader, max_epochs=10)

    Each layer learns from the output of the layers before it, as inside `hebbkern.learning`; no gradient is recorded
    for it. The learning rate is `engine.state.lr`, which handlers such as ignite's state schedulers may change, times
    the layer's own factor. Layers whose neurons are all frozen are skipped. x and labels are moved to the model's
    device. Each epoch begins in the training and evaluation modes in which the run began, because evaluators may leave
    others behind.

    If nothing is supervised and the model is made of torch.nn.Sequential, a forward pass ends when the last layer has
    learnt, before that layer computes its output. This requires that the modules after it have no buffers (such as
    running statistics), and that the model is not compiled and has no forward hooks (forward pre-hooks are called up
    to the last layer). Every other model runs its whole forward pass.

    With `group` each process passes its share of a batch, and updates and gradients are averaged over all shares, so
    that all processes keep the same parameters; a share may be empty. Training starts from the parameters and buffers
    of the group's first process, so every process must call this function. Batch norm sees the own share only.

    Args:
        model: holds at least one Hebbian layer. Any module: residual, branching, a layer used twice, compiled.
        lr: learning rate; a number, where `engine.state.lr` starts; or {name or pattern of Hebbian layers: number},
            the factors of `engine.state.lr`, which then starts at 1: layers that no entry matches do not learn, later
            entries take precedence.
        supervised_from: name of a module. It and every module registered after it are trained by backpropagation; the
            gradient ends at its input. Hebbian layers among them learn by their rule.
        optimizer: of torch, over (at least) the parameters of those modules.
        loss: of (model's output, labels), the mean over the samples.
        group: a torch.distributed group; None = this process alone, or for the layers of a DistributedDataParallel its
            process group.
        dtype: of the products that layers learn by, see `hebbkern.learning`; None = each weight's own.

    Returns:
        The engine. `engine.state.output` is None, or of a supervised step {"y_pred", "y", "loss"}, as ignite's metrics
        expect it; loss is that of the own share.

    Raises:
        ValueError: the model has no Hebbian layer, an entry of lr matches none or is not finite, there is no such
            module, the optimizer is missing, holds none of its parameters or has nothing to train, or dtype is not a
            floating dtype or is given for a HebbCL layer. At the end of an epoch of the engine: the mean loss is not
            finite, or a million times that of the first batch.
    """
    return engine_of(Step(model, lr, supervised_from, optimizer, loss, group, dtype))


def engine_of(step: Step) -> Engine:
    """The engine that takes this step on each batch."""
    engine, modes = Engine(step), {}
    engine.logger.setLevel(logging.CRITICAL)  # an error is raised, so the log need not repeat it
    state: Any = engine.state
    state.lr, state.layer = step.lr, None
    engine.state_dict_user_keys.append("lr")

    def restore(engine: Engine) -> None:
        for module, mode in modes.items():
            module.training = mode

    def remember(engine: Engine) -> None:
        modes.update({module: module.training for module in step.model.modules()})

    engine.add_event_handler(Events.STARTED, remember)
    engine.add_event_handler(Events.EPOCH_STARTED, restore)
    EpochLoss().attach(engine)
    return engine


class EpochLoss:
    """Handler that keeps the supervised loss of the present epoch in `engine.state.loss`, which checkpoints hold.

    "sum" and "batches" are of the epoch so far, also if it is resumed within; "mean" is there once the epoch is over;
    "first" is the loss of the first batch of the training. Numbers of the own share, if there is a group.
    """

    def attach(self, engine: Engine) -> None:
        state: Any = engine.state
        state.loss = {"sum": 0.0, "batches": 0, "first": None}
        engine.state_dict_user_keys.append("loss")
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check)

    def start(self, engine: Engine) -> None:
        state: Any = engine.state
        if not state.epoch_length or state.iteration % state.epoch_length == 0:  # else it is resumed
            state.loss = {"sum": 0.0, "batches": 0, "first": state.loss["first"]}

    def add(self, engine: Engine) -> None:
        output, known = engine.state.output, getattr(engine.state, "loss")  # noqa: B009 (not declared by ignite)
        if isinstance(output, dict) and len(output["y"]) > 0:  # an empty share has no loss
            loss = output["loss"]  # stays on the device until the epoch ends
            known |= {"sum": known["sum"] + loss, "batches": known["batches"] + 1}
            known["first"] = loss if known["first"] is None else known["first"]

    def check(self, engine: Engine) -> None:
        """Raises ValueError if the loss has diverged."""
        state: Any = engine.state
        if state.loss["batches"] == 0:
            return
        mean = state.loss["mean"] = float(state.loss["sum"]) / state.loss["batches"]
        most = DIVERGED * max(abs(float(state.loss["first"])), 1.0)
        if not mean <= most or mean == -math.inf:
            raise ValueError(
                f"hebbkern.training: the loss must stay finite and below {most:.3g}, got {mean:.3g} in epoch "
                f"{state.epoch}; lower the optimizer's learning rate"
            )


class Step:
    """The process function of a `hebbian_trainer`; arguments and errors are described there.

    Attributes:
        lr: where `engine.state.lr` starts.
        layers: the Hebbian layers that have a rate, by their first names.
        rates: of each of these layers, the factor of `engine.state.lr`.
        learns: whether layers learn.
        only: the only layer that learns; None for all.
        supervises: whether the supervised part takes its steps.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float | Mapping[str, float],
        supervised_from: str | None,
        optimizer: Optimizer | None,
        loss: Callable[[Any, Any], Tensor],
        group: ProcessGroup | None,
        dtype: torch.dtype | None,
    ):
        layers = hebbian_layers(model)
        check_any("training", model, layers)
        check_dtype("training", dtype)
        entries, self.lr = (lr, 1.0) if isinstance(lr, Mapping) else ({"*": 1.0}, lr)
        factors = by_name("training", "lr", entries, names_of_layers(model))
        for rate in (self.lr, *factors.values()):
            check_rate("training", rate)
        self.rates = {layer: float(factors[layer]) for layer in layers.values() if layer in factors}
        names = {layer: name for name, layer in reversed(layers.items())}
        self.layers = {names[layer]: layer for layer in self.rates}
        if dtype and (growing := [name for name, layer in self.layers.items() if layer.grows]):
            raise ValueError(f'hebbkern.training: dtype must be None for "{growing[0]}", a HebbCL layer, got {dtype}')
        self.model, self.loss, self.group, self.dtype = model, loss, group, dtype
        self.first = next(iter(layers.values()))  # of the model, whether it learns or not
        self.learns = True
        self.only: Hebbian | None = None
        self.groups = groups_of(model.modules(), group)
        for name, layer in self.layers.items():
            check_own_weight("training", f'"{name}"', layer)
        if supervised_from is None and optimizer is not None:
            raise ValueError("hebbkern.training: supervised_from must name a module for the optimizer, got None")
        self.supervised = None
        if supervised_from is not None:
            self.supervised = _Supervised(model, supervised_from, optimizer, loss, group)
        self.supervises = self.supervised is not None
        self._frozen: dict[Hebbian, tuple[Tensor, int, bool]] = {}
        if group is not None:
            for tensor in (*model.parameters(), *model.buffers()):
                torch.distributed.broadcast(tensor.detach(), group=group, group_src=0)

    def __call__(self, engine: Any, batch: Any) -> dict[str, Any] | None:
        x, labels = map(self.to_device, pair(batch))
        states = self._states(engine.state.lr, labels)
        with learning_scope(states):
            if self.supervised and self.supervises:
                return self.supervised.step(x, labels)
            if any(state is not None for state in states.values()):
                with torch.no_grad(), contextlib.suppress(_LastLayerLearnt):
                    self.model(x)
        return None

    def to_device(self, part: Any) -> Any:
        """A tensor on the device of the layers; anything else as it is."""
        device = self.first.weight.device
        return part.to(device, non_blocking=True) if isinstance(part, Tensor) else part

    def _states(self, lr: float, labels: Tensor | None) -> dict[Hebbian, LearningState | None]:
        """The learning state of each layer that has a rate; None for layers that do not learn now."""
        compiled = holds_compiled(self.model)
        learners = [layer for layer in self.rates if self.learns and (self.only or layer) is layer]
        learners = [layer for layer in learners if not self._is_frozen(layer)]
        last = None if compiled or self.supervises else _last_learner(self.model, learners)
        states = dict.fromkeys(self.rates)
        for layer in learners:
            rate, after_learning = self.rates[layer] * lr, _end_pass if layer is last else None
            rate_tensor = torch.tensor(rate, dtype=torch.float64, device="cpu") if compiled else None
            states[layer] = LearningState(
                rate,
                labels,
                rate_tensor,
                group=self.groups.get(layer, self.group),
                after_learning=after_learning,
                dtype=self.dtype,
            )
        return states

    def _is_frozen(self, layer: Hebbian) -> bool:
        """Whether no neuron of the layer learns. A mask is read, which waits for a GPU, only after it has changed."""
        if layer.grows:
            return getattr(layer, "finished")  # noqa: B009 (of HebbCL alone)
        mask = layer.frozen
        known = self._frozen.get(layer)
        if known is None or known[0] is not mask or known[1] != mask._version:
            known = self._frozen[layer] = (mask, mask._version, bool(mask.all()))
        return known[2]


class _LastLayerLearnt(BaseException):
    """Ends a forward pass after its last learning step. Not an Exception, because a model may catch those."""


def _end_pass(layer: Hebbian) -> None:
    raise _LastLayerLearnt


def _last_learner(model: nn.Module, learners: list[Hebbian]) -> Hebbian | None:
    """The layer after whose step a forward pass may end, see `hebbian_trainer`; None if the whole pass must run."""
    chain: list[nn.Module] = [model]
    while any(type(part) is nn.Sequential for part in chain):
        chain = [one for part in chain for one in (part if type(part) is nn.Sequential else [part])]
    if not learners or any(chain.count(layer) != 1 for layer in learners):
        return None
    last = max(learners, key=chain.index)
    after = chain[chain.index(last) + 1 :]
    changes = any(list(part.buffers()) for part in after) or any(part._forward_hooks for part in model.modules())
    return None if changes else last


def pair(batch: Any) -> tuple[Any, Any]:
    """(x, labels) of a batch: the first two of a list or tuple, or x alone; of a dict, what LABELS names and the other.

    Raises:
        ValueError: the batch is of another kind, or its dict has several entries besides the labels.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, list | tuple) and batch:
        return batch[0], batch[1] if len(batch) > 1 else None
    if isinstance(batch, Mapping):
        labels = [name for name in LABELS if name in batch]
        others = [name for name in batch if name not in labels]
        if len(labels) < 2 and len(others) == 1:
            return batch[others[0]], batch[labels[0]] if labels else None
        wanted = f"a dict with one entry for x and at most one for labels, {', '.join(LABELS)}"
        raise ValueError(f"hebbkern.training: each batch must be {wanted}, got the keys {', '.join(map(str, batch))}")
    got = "no part" if isinstance(batch, list | tuple) else type(batch).__name__
    raise ValueError(f"hebbkern.training: each batch must be a tensor x, (x, labels, ...) or a dict of them, got {got}")


class _Supervised:
    """The part of a model that an optimizer trains: a module and every module registered after it."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        optimizer: Optimizer | None,
        loss: Callable[[Any, Any], Tensor],
        group: ProcessGroup | None,
    ):
        names = [plain_name(model, other) for other, _ in model.named_modules()]
        if name not in names:
            known = ", ".join(f'"{other}"' for other in names if other)
            raise ValueError(
                f'hebbkern.training: supervised_from must be a module of the model ({known}), got "{name}"'
            )
        after = list(model.modules())[names.index(name) :]
        own = [parameter for module in after for parameter in module.parameters(recurse=False)]
        self.parameters = list(dict.fromkeys(own))
        self.others = [parameter for parameter in model.parameters() if parameter not in set(own)]
        if optimizer is None:
            raise ValueError(f'hebbkern.training: optimizer must be given to train from "{name}" on, got None')
        held = {parameter for part in optimizer.param_groups for parameter in part["params"]}
        if not held & set(own):
            raise ValueError(f'hebbkern.training: optimizer must hold parameters of "{name}" or after it, got none')
        self.model, self.optimizer, self.loss, self.group = model, optimizer, loss, group

    def step(self, x: Any, labels: Any) -> dict[str, Any]:
        """A forward pass, the gradient of the loss, averaged over the group, and a step of the optimizer."""
        x = x.detach() if isinstance(x, Tensor) else x
        has_samples = self.group is None or len(x) > 0
        with torch.enable_grad(), _without_gradients(self.others):
            output = self.model(x)
            value = self.loss(output, labels) if has_samples else output.new_full((), math.nan)
        self.optimizer.zero_grad()
        if has_samples:
            value.backward()
        if self.group is not None:
            self._average(len(x))
        self.optimizer.step()
        return {"y_pred": output.detach(), "y": labels, "loss": value.detach()}

    def _average(self, samples: int) -> None:
        """Gradients become the mean over the samples of all processes; gradients that no process has stay None."""
        parameters = [parameter for parameter in self.parameters if parameter.requires_grad]
        if not parameters:
            return
        present = [float(parameter.grad is not None) for parameter in parameters]
        head = torch.tensor([samples, *present], dtype=torch.float32, device=parameters[0].device)
        grads = [torch.zeros_like(each) if each.grad is None else each.grad * samples for each in parameters]
        total = torch.cat([head, *(grad.reshape(-1) for grad in grads)])
        torch.distributed.all_reduce(total, group=self.group)
        head, *pieces = total.split([len(head), *(grad.numel() for grad in grads)])
        count, *present = head.tolist()
        for parameter, piece, is_present in zip(parameters, pieces, present, strict=True):
            if is_present:
                parameter.grad = (piece / max(count, 1)).view(parameter.shape).to(parameter.dtype)


@contextlib.contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Context without gradients of these parameters, so that none is recorded before the supervised part."""
    changed = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
