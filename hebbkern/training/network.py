"""The network of a run's configuration: Hebbian layers, the modules that follow each, and the classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hebbkern.nn import HebbianConv2d, HebbianLinear, KWinners
from hebbkern.rules import KrotovHopfield
from hebbkern.training.config import Config, Layer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class RePU(nn.Module):
    """The rectified polynomial unit of Krotov and Hopfield, ReLU(x)^power."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().pow(self.power)

    def extra_repr(self) -> str:
        return f"power={self.power}"


class SharedBatchNorm(_BatchNorm):
    """Batch norm without scale and shift, by the moments of a whole batch that several processes share.

    torch.nn.SyncBatchNorm does so on GPUs only. No gradient passes to the moments, because Hebbian layers use none.
    Every process of the group must call it for the same batches; a share may be empty.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, neurons: int, group: ProcessGroup | None):
        super().__init__(neurons, affine=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self._moments(x.detach()) if self.training else (self.running_mean, self.running_var)
        return F.batch_norm(x, mean, variance, eps=self.eps)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each neuron over all processes; updates the running ones as torch's batch norm does."""
        x = x.double().transpose(0, 1).flatten(1)
        sums = torch.stack([x.sum(1), x.square().sum(1), torch.full_like(x[:, :1].sum(1), x.shape[1])])
        torch.distributed.all_reduce(sums, group=self.group)
        count = sums[2]
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp(min=0)
        momentum = self.momentum or 0.0
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.float(), momentum)
        self.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).float(), momentum)
        return mean.float(), variance.float()


def build(config: Config, shape: tuple[int, ...], classes: int, group: ProcessGroup | None = None) -> nn.Sequential:
    """Builds the network with modules layer1, norm1, ..., layer2, ..., head; config.seed decides the weights.

    Args:
        config: the run.
        shape: of an input, (channels, height, width) or (inputs,).
        classes: of the labels.
        group: processes that share batches.

    Returns:
        The network, on the CPU and in training mode.

    Raises:
        ValueError: a convolution gets no images or is larger than its input, or a rule does not fit.
    """
    torch.manual_seed(config.seed)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    x = torch.zeros(1, *shape)
    for number, layer in enumerate(config.resolved(), start=1):
        for name, module in _modules(layer, tuple(x.shape[1:]), classes, group, f"layers[{number - 1}]"):
            modules[f"{name}{number}"] = module
            x = _output(module, x, f"layers[{number - 1}]")
    if config.head is not None:
        if x.dim() > 2:
            modules["flatten"], x = nn.Flatten(), x.flatten(1)
        if config.head.dropout:
            modules["dropout"] = nn.Dropout(config.head.dropout)
        modules["head"] = nn.Linear(x.shape[1], classes)
    return nn.Sequential(modules)


def optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer | None:
    """Makes the optimizer of the classifier; None without a classifier."""
    head = config.head
    if head is None:
        return None
    momentum = {"momentum": 0.9} if head.optimizer == "sgd" else {}
    parameters = model.get_submodule("head").parameters()
    return OPTIMIZERS[head.optimizer](parameters, lr=head.lr, weight_decay=head.weight_decay, **momentum)


def _modules(
    layer: Layer, shape: tuple[int, ...], classes: int, group: ProcessGroup | None, where: str
) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of a resolved layer and of the modules around it."""
    rule = layer.make_rule()
    neurons, size = classes if rule.uses_labels else layer.neurons or 0, torch.Size(shape)
    if layer.kind == "linear":
        if len(size) > 1:
            yield "flatten", nn.Flatten()
    elif len(size) != 3:
        raise ValueError(f"hebbkern.training: {where} must be linear on inputs {list(shape)}, got conv")
    try:
        if layer.kind == "linear":
            learner = HebbianLinear(size.numel(), neurons, rule=rule)
        else:
            if size[0] % layer.groups or neurons % layer.groups:
                wanted = f"divide the {size[0]} channels and the {neurons} neurons"
                raise ValueError(f"hebbkern.training: {where}.groups must {wanted}, got {layer.groups}")
            how = {"groups": layer.groups, "rule": rule}
            learner = HebbianConv2d(size[0], neurons, layer.kernel, layer.stride, layer.padding, **how)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"hebbkern.training: {where} must fit into memory, got {neurons} neurons") from error
    if isinstance(rule, KrotovHopfield):
        nn.init.normal_(learner.weight)
    yield "layer", learner
    if layer.batch_norm:
        norm = nn.BatchNorm1d if layer.kind == "linear" else nn.BatchNorm2d
        yield "norm", norm(neurons, affine=False) if group is None else SharedBatchNorm(neurons, group)
    if layer.activation != "none":
        activations = {"relu": nn.ReLU, "tanh": nn.Tanh, "repu": RePU, "kwinners": KWinners}
        settings = {"repu": (layer.power,), "kwinners": (layer.k,)}
        yield "activation", activations[layer.activation](*settings.get(layer.activation, ()))
    if layer.pool > 1:
        if layer.kind == "linear":
            raise ValueError(f"hebbkern.training: {where}.pool must be 1 after a linear layer, got {layer.pool}")
        yield "pool", nn.MaxPool2d(layer.pool)


@torch.no_grad()
def _output(module: nn.Module, x: Tensor, where: str) -> Tensor:
    """The module's output for one input; a ValueError names the layer that the input does not fit."""
    try:
        return module.eval()(x)
    except RuntimeError as error:
        raise ValueError(
            f"hebbkern.training: {where} must fit its input {list(x.shape[1:])}, got {module} ({error})"
        ) from error
    finally:
        module.train()
