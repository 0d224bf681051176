"""linear_probes: how much of the classes each layer of a model tells a linear readout; randomised: the baseline."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.evaluation.data import MEMORY, SIZE, Store, batches, is_pair
from hebbkern.evaluation.readout import Readout, linear_readout
from hebbkern.evaluation.taps import hebbian_layers, taps

POOLS = {"average": F.adaptive_avg_pool2d, "max": F.adaptive_max_pool2d}


def linear_probes(
    model: nn.Module,
    train,
    test,
    layers: Iterable[str] | None = None,
    *,
    activation: Callable[[Tensor], Tensor] | None = torch.relu,
    most: int = 2048,
    pool: str = "average",
    memory: int = MEMORY,
    size: int = SIZE,
    **readout,
) -> dict[str, Readout]:
    """A linear readout on every layer, after one pass over the data: one forward pass a batch serves all layers.

        learnt, random = (linear_probes(net, train, test) for net in (model, randomised(model)))

    A probe reads activation(output of the layer), made smaller by `pooled`, and is fitted by `linear_readout`.

    Args:
        model: any module; evaluated in evaluation mode and left exactly as it was.
        train, test: pairs of tensors (x, labels), or batches of such (see `hebbkern.evaluation.data`).
        layers: names as in `model.named_modules()`; None = every Hebbian layer.
        activation: applied before pooling, because a Hebbian layer's own output is linear in its input; None = none.
        most: features a sample that a layer may have before it is pooled. pool: "average" or "max".
        memory: bytes for the features of all layers of train and of test each: float32 where they fit, else bfloat16.
            Fitting takes another three times the float32 features of one layer.
        size: samples a forward pass (of pairs of tensors).
        readout: decays and iterations of `linear_readout`.

    Returns:
        {layer: Readout}, in the order of `layers`. Deterministic on the same number of threads.

    Raises:
        ValueError: a layer that is not there or not reached, features beyond memory, labels that do not fit.
    """
    if pool not in POOLS:
        raise ValueError(f'hebbkern.evaluation: pool must be "average" or "max", got {pool!r}')
    names = list(hebbian_layers(model)) if layers is None else list(layers)

    def keep(output: Tensor) -> Tensor:
        output = output.float()
        return pooled(output if activation is None else activation(output), most, pool).flatten(1).clone()

    with taps(model, names, keep=keep) as read:
        both = []
        for source in (train, test):
            store = Store(memory, len(source[1]) if is_pair(source) else None)
            for x, labels in batches(source, size):
                features = read(x)
                store.add(features, labels.to(next(iter(features.values())).device))
            both.append(store.take())
    (fit, fit_labels), (check, check_labels) = both
    return {
        name: linear_readout(fit.pop(name).float(), fit_labels, check.pop(name).float(), check_labels, **readout)
        for name in names
    }


def pooled(x: Tensor, most: int, how: str = "average") -> Tensor:
    """x with at most `most` features a sample, as far as pooling over positions can make it so.

    Maps [B, C, H, W] of more are pooled ("average" or "max") to the largest s x s with C·s² ≤ most, at least 1 x 1;
    sequences [B, T, N] of more are averaged over T; vectors stay.
    """
    if x[0].numel() <= most or x.dim() < 3:
        return x
    if x.dim() == 3:
        return x.mean(1)
    side = max(1, math.isqrt(most // x.shape[1]))
    return POOLS[how](x, (min(side, x.shape[2]), min(side, x.shape[3])))


def randomised(
    model: nn.Module,
    *,
    seed: int = 0,
    layers: Iterable[str] | None = None,
    draw: Callable[[Tensor, torch.Generator], object] | None = None,
) -> nn.Module:
    """A copy of `model` with fresh random weights in its Hebbian layers: the baseline of random filters.

    Args:
        seed: the same seed, the same weights. layers: names of modules with a weight; None = every Hebbian layer.
        draw: fills a weight in place from a CPU generator, e.g. `lambda w, g: nn.init.normal_(w, generator=g)`. By
            default weights are drawn from the normal distribution with the mean and the deviation that the entries of
            this layer's weight have now. Biases, and whatever follows, are copied.

    `model` stays as it is. Raises ValueError for a name that is not there or has no weight.
    """
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules())
    generator = torch.Generator().manual_seed(seed)
    for name in hebbian_layers(copied) if layers is None else layers:
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f'hebbkern.evaluation: layers must be modules with a weight, got "{name}"')
        fresh = torch.empty(weight.shape)
        with torch.no_grad():
            if draw is None:
                entries = weight.double()
                fresh.normal_(entries.mean().item(), entries.std(correction=0).item(), generator=generator)
            else:
                draw(fresh, generator)
            weight.copy_(fresh)
    return copied
