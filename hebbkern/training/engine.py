"""hebbian_trainer: a pytorch-ignite Engine in which the Hebbian layers of a model learn from each batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from hebbkern.training.step import Step

try:
    from ignite.engine import Engine, Events
except ImportError as error:
    raise ImportError("hebbkern.training: pytorch-ignite is missing: pip install 'hebbkern[train]'") from error

__all__ = ["Engine", "Events", "engine_of", "hebbian_trainer"]


def hebbian_trainer(
    model: nn.Module,
    *,
    rates: Mapping[str, float] | None = None,
    supervised_from: str | None = None,
    optimizer=None,
    loss: Callable = F.cross_entropy,
    group=None,
    dtype: torch.dtype | None = None,
) -> Engine:
    """An ignite Engine whose batches, (x, labels) or x alone, the Hebbian layers of `model` learn from.

        optimizer = torch.optim.Adam(model.fc.parameters())
        trainer = hk.training.hebbian_trainer(model, supervised_from="fc", optimizer=optimizer)
        trainer.state.lr = 0.02
        trainer.run(loader, max_epochs=10)

    Each layer learns at its rate times `engine.state.lr` (0 until somebody, any ignite state scheduler say, sets it),
    on the output of the layers before it, as inside `hebbkern.learning`; no gradient is recorded for it. Layers whose
    neurons are all frozen are skipped. x and labels are moved to the model's device. Each epoch begins in the
    training or evaluation modes in which the run began, whatever evaluators leave behind.

    Where nothing is supervised a forward pass ends as soon as the last layer has learnt, before it answers. This takes
    one whole pass of each shape of x, in which every layer learnt exactly once and nothing after the last one changed a
    buffer (running statistics) or drew random numbers, and modules without forward hooks (forward pre-hooks see all
    layers), not compiled.

    With `group` each process feeds its share of a batch, and updates and gradients are averaged over all shares, so
    that all processes keep the same parameters; a share may be empty. They begin with the parameters and buffers of
    the group's first process, so all of them must call this. Batch norm sees the own share only.

    Args:
        model: holds at least one Hebbian layer. Any module: residual, branching, a layer used twice, compiled.
        rates: {name or pattern of Hebbian layers: number}, see `hebbkern.learning`; layers no entry matches do not
            learn. None = 1 for all.
        supervised_from: name of a module. It and every module registered after it are trained by backpropagation; the
            gradient ends at its input. Hebbian layers among them learn by their rule.
        optimizer: of torch, over (at least) the parameters of those modules.
        loss: of (model's output, labels), the mean over the samples.
        group: a torch.distributed group; None = this process alone.
        dtype: of the products that layers learn by, see `hebbkern.learning`; None = each weight's own.

    Returns:
        The engine. `engine.state.output` is None, or of a supervised step {"y_pred", "y", "loss"}, as ignite's metrics
        take it; loss is that of the own share.

    Raises:
        ValueError: no Hebbian layer, an entry of rates that matches none or is not finite, no such module, an optimizer
            that is missing, holds none of its parameters or has nothing to train, a dtype that is no float or meets
            a HebbCL layer.
    """
    return engine_of(Step(model, rates, supervised_from, optimizer, loss, group, dtype))


def engine_of(step: Step) -> Engine:
    """The engine that takes this step on each batch."""
    engine = Engine(step)
    engine.logger.setLevel(logging.CRITICAL)  # errors are raised, which says it once
    engine.state.lr, engine.state.layer = 0.0, None
    engine.state_dict_user_keys.append("lr")
    modes = {}
    engine.add_event_handler(Events.STARTED, lambda engine: modes.update(step.modes))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: _set(modes))  # evaluators leave others behind
    return engine


def _set(modes: Mapping[nn.Module, bool]) -> None:
    for module, mode in modes.items():
        module.training = mode
