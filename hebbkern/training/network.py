"""The network that a run's configuration describes: Hebbian layers, what follows each, and the classifier."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.nn import HebbianConv2d, HebbianLinear, KWinners
from hebbkern.training.config import Config, Layer

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


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm without scale and shift, by the moments of a whole batch that several processes share.

    torch.nn.SyncBatchNorm does so on GPUs only. No gradient passes to the moments, for Hebbian layers take none. Every
    process of the group must call it for the same batches; a share may be empty.
    """

    def __init__(self, neurons: int, group):
        super().__init__(neurons, affine=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, variance = self._moments(x.detach())
        else:
            mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, eps=self.eps)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each neuron over all processes, also taken into the running ones as torch's batch norm does."""
        x = x.double().transpose(0, 1).flatten(1)
        sums = torch.stack([x.sum(1), x.square().sum(1), torch.full_like(x[:, :1].sum(1), x.shape[1])])
        torch.distributed.all_reduce(sums, group=self.group)
        count = sums[2]
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp(min=0)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).float(), self.momentum)
        return mean.float(), variance.float()


def build(config: Config, shape: tuple[int, ...], classes: int, group=None) -> nn.Sequential:
    """The network, its weights drawn by config.seed; modules are named layer1, norm1, ..., layer2, ..., head.

    Args:
        shape: of an input, (channels, height, width) or (inputs,). group: processes that share batches.

    Raises:
        ValueError: a convolution without images or larger than what reaches it, or a rule that does not fit.
    """
    torch.manual_seed(config.seed)
    modules, x = OrderedDict(), torch.zeros(1, *shape)
    for number, layer in enumerate(config.resolved(), start=1):
        for name, module in _parts(layer, tuple(x.shape[1:]), classes, group, f"layers[{number - 1}]"):
            modules[f"{name}{number}"] = module
            x = _through(module, x, f"layers[{number - 1}]")
    if config.head is not None:
        if x.dim() > 2:
            modules["flatten"], x = nn.Flatten(), x.flatten(1)
        if config.head.dropout:
            modules["dropout"] = nn.Dropout(config.head.dropout)
        modules["head"] = nn.Linear(x.shape[1], classes)
    return nn.Sequential(modules)


def optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer | None:
    """Of the classifier, None without one."""
    head = config.head
    if head is None:
        return None
    momentum = {"momentum": 0.9} if head.optimizer == "sgd" else {}
    kind = OPTIMIZERS[head.optimizer]
    return kind(model.head.parameters(), lr=head.lr, weight_decay=head.weight_decay, **momentum)


def _parts(layer: Layer, shape: tuple[int, ...], classes: int, group, place: str):
    """(name, module) of a layer and of what surrounds it."""
    rule = layer.make_rule()
    neurons = classes if layer.rule == "teacher" else layer.neurons
    if layer.kind == "linear":
        if len(shape) > 1:
            yield "flatten", nn.Flatten()
        inputs = torch.Size(shape).numel()
        learner = HebbianLinear(inputs, neurons, rule=rule)
    elif len(shape) != 3:
        raise ValueError(f"hebbkern.training: {place} must be linear on inputs {list(shape)}, got conv")
    else:
        learner = HebbianConv2d(shape[0], neurons, layer.kernel, layer.stride, layer.padding, rule=rule)
    if layer.rule == "krotov":
        nn.init.normal_(learner.weight)
    yield "layer", learner
    if layer.batch_norm:
        kind = nn.BatchNorm1d if layer.kind == "linear" else nn.BatchNorm2d
        yield "norm", kind(neurons, affine=False) if group is None else SharedBatchNorm(neurons, group)
    activations = {"relu": nn.ReLU, "tanh": nn.Tanh, "repu": RePU, "kwinners": KWinners}
    settings = {"repu": (layer.power,), "kwinners": (layer.k,)}
    if layer.activation != "none":
        yield "activation", activations[layer.activation](*settings.get(layer.activation, ()))
    if layer.pool > 1:
        if layer.kind == "linear":
            raise ValueError(f"hebbkern.training: {place}.pool must be 1 after a linear layer, got {layer.pool}")
        yield "pool", nn.MaxPool2d(layer.pool)


@torch.no_grad()
def _through(module: nn.Module, x: Tensor, place: str) -> Tensor:
    """What one input becomes; says which layer it does not fit."""
    try:
        return module.eval()(x)
    except RuntimeError as error:
        raise ValueError(
            f"hebbkern.training: {place} must fit its input {list(x.shape[1:])}, got {module} ({error})"
        ) from error
    finally:
        module.train()
