"""Linear readouts: multinomial logistic regression on frozen features, and on every layer of a model (probes)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.evaluation.features import (
    BATCH_SIZE,
    MEMORY,
    Pair,
    Store,
    batches,
    check_samples,
    is_pair,
    modules_by_name,
    taps,
)
from hebbkern.nn.learning import check_any, hebbian_layers

DECAYS = (1e-5, 1e-4)
HELD_OUT = 5  # every fifth training sample is held out and decides the decay
POOLS: dict[str, tuple[Callable[..., Any], ...]] = {  # over one, two and three axes
    "average": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "max": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}


@dataclass(frozen=True)
class Readout:
    """Accuracies from 0 to 1, and the weight decay that was the best on held-out training samples."""

    train: float
    held_out: float
    test: float
    decay: float


def rectified_power(x: Tensor, weight: Tensor, power: float) -> Tensor:
    """Computes ReLU(cos(x, w_j))^power, the rectified polynomial unit (RePU) on normalised inputs and neurons.

    Krotov and Hopfield 2019 and PyTorch-Hebbian (supplement, section 2.1) take this power of w·x. The cosine removes
    the scale of an input and of a neuron that has not converged.

    Args:
        x: [n, N].
        weight: [K, N].
        power: at least 1; the higher, the fewer neurons contribute.

    Returns:
        [n, K] features.
    """
    return (F.normalize(x) @ F.normalize(weight).T).relu_().pow_(power)


def linear_readout(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    decays: Iterable[float] = DECAYS,
    iterations: int = 40,
) -> Readout:
    """Fits a linear classifier to features and measures it on test features, which decide nothing.

    Features are standardised by the training set's mean and deviation and divided by √inputs. The loss is the mean
    cross-entropy plus decay/2 · ‖weights‖², minimised over the whole set by L-BFGS from zero. Each decay is tried on
    four fifths of the training set. The decay that is best on the remaining fifth (the larger one on ties) is used to
    fit all training samples. Deterministic on the same number of threads.

    Args:
        train, test: [n, inputs] floats.
        train_labels, test_labels: [n] int64, at least 0.
        decays: candidates.
        iterations: of L-BFGS, at most.

    Returns:
        The accuracies and the decay.

    Raises:
        ValueError: a shape is wrong, features are not finite, or a label is below 0.
    """
    train, test = train.detach(), test.detach()
    train_labels, test_labels = check_samples("train", train, train_labels), check_samples("test", test, test_labels)
    # Without classes that nobody has, whose weights would take memory.
    names, both = torch.cat([train_labels, test_labels]).unique(return_inverse=True)
    classes, (train_labels, test_labels) = len(names), both.split([len(train), len(test)])
    mean, deviation = train.mean(0), train.std(0)
    scale = deviation.clamp(min=1e-3 * float(deviation.max()) or 1.0) * train.shape[1] ** 0.5
    train, test = (train - mean) / scale, (test - mean) / scale
    held_out = torch.arange(len(train)) % HELD_OUT == 0
    fit, check = (train[~held_out], train_labels[~held_out]), (train[held_out], train_labels[held_out])
    tried = {decay: _accuracy(_fit(*fit, classes, decay, iterations), *check) for decay in sorted(decays, reverse=True)}
    best = max(tried, key=tried.__getitem__)
    weight = _fit(train, train_labels, classes, best, iterations)
    accuracies = _accuracy(weight, train, train_labels), tried[best], _accuracy(weight, test, test_labels)
    return Readout(*accuracies, best)


def _fit(x: Tensor, labels: Tensor, classes: int, decay: float, iterations: int) -> Tensor:
    """[inputs + 1, classes]; the last row is the bias."""
    weight = x.new_zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.addmm(weight[-1], x, weight[:-1]), labels)
        value = value + decay / 2 * weight[:-1].square().sum()
        value.backward()
        return value.item()

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach()


def _accuracy(weight: Tensor, x: Tensor, labels: Tensor) -> float:
    return (torch.addmm(weight[-1], x, weight[:-1]).argmax(1) == labels).double().mean().item()


def linear_probes(
    model: nn.Module,
    train: Pair | Iterable[Pair],
    test: Pair | Iterable[Pair],
    layers: Iterable[str] | None = None,
    *,
    activation: Callable[[Tensor], Tensor] | None = torch.relu,
    most: int = 2048,
    pool: str = "average",
    memory: int = MEMORY,
    batch_size: int = BATCH_SIZE,
    **readout: Any,
) -> dict[str, Readout]:
    """Fits a linear readout to every layer, after one pass over the data.

        learnt, random = (linear_probes(net, train, test) for net in (model, randomised(model)))

    A probe reads activation(output of the layer), made smaller by `pooled`, and is fitted by `linear_readout`. The
    model is in evaluation mode and is left exactly as it was. Deterministic on the same number of threads.

    Args:
        model: any module.
        train, test: pairs of tensors (x, labels), or batches of such (see `hebbkern.evaluation.features`).
        layers: names as in `model.named_modules()`; None = every Hebbian layer.
        activation: applied before pooling, because a Hebbian layer's own output is linear in its input; None = none.
        most: features a sample above which a layer is pooled.
        pool: "average" or "max".
        memory: bytes for the features of all layers, of train and of test each: float32 if they fit, else bfloat16.
            Fitting takes another three times the float32 features of one layer.
        batch_size: samples a forward pass.
        readout: decays and iterations of `linear_readout`.

    Returns:
        {layer: Readout}, in the order of `layers`.

    Raises:
        ValueError: a layer does not exist or is not reached, features exceed memory or are not finite, or labels do
            not fit.
    """
    if pool not in POOLS:
        raise ValueError(f'hebbkern.evaluation: pool must be "average" or "max", got {pool!r}')
    names = _hebbian_names(model) if layers is None else list(dict.fromkeys(layers))
    if not names:
        raise ValueError("hebbkern.evaluation: layers must name one layer or more, got none")

    def keep(layer: nn.Module, output: Tensor) -> Tensor:
        output = output.float() if activation is None else activation(output.float())
        return pooled(output, most, pool, sequence=not isinstance(layer, nn.Conv1d)).flatten(1).clone()

    with taps(model, names, keep=keep) as read:
        (fit, fit_labels), (check, check_labels) = (_gather(read, data, memory, batch_size) for data in (train, test))
    return {
        name: linear_readout(fit.pop(name).float(), fit_labels, check.pop(name).float(), check_labels, **readout)
        for name in names
    }


def _gather(
    read: Callable[[Tensor], dict[str, Tensor]], source: Pair | Iterable[Pair], memory: int, batch_size: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The features of all layers on all samples, and their labels."""
    store = Store(memory, len(source[1]) if is_pair(source) else None)
    for x, labels in batches(source, batch_size):
        features = read(x)
        store.add(features, labels.to(next(iter(features.values())).device))
    return store.take()


def pooled(x: Tensor, most: int, pool: str = "average", *, sequence: bool = True) -> Tensor:
    """Reduces x to at most `most` features a sample, as far as pooling over positions can.

    Larger maps [B, C, ...] of one to three axes are pooled ("average" or "max") to the largest side s of all axes with
    C · s^axes ≤ most, at least 1; larger sequences [B, T, N], as which a map of one axis counts unless `sequence` is
    False, are averaged over T; vectors stay.
    """
    axes = x.dim() - 2
    if x[0].numel() <= most or axes < 1:
        return x
    if axes == 1 and sequence:
        return x.mean(1)
    side = 1
    while x.shape[1] * (side + 1) ** axes <= most:
        side += 1
    return POOLS[pool][axes - 1](x, tuple(min(side, size) for size in x.shape[2:]))


def randomised(
    model: nn.Module,
    *,
    seed: int = 0,
    layers: Iterable[str] | None = None,
    draw: Callable[[Tensor, torch.Generator], object] | None = None,
) -> nn.Module:
    """Copies `model` with new random weights in its Hebbian layers: the baseline of random filters.

    Args:
        model: stays as it is.
        seed: the same seed gives the same weights.
        layers: names of modules with a weight; None = every Hebbian layer.
        draw: fills a weight in place from a CPU generator, e.g. `lambda w, g: nn.init.normal_(w, generator=g)`. By
            default weights are normal with the mean and the deviation of the layer's present weight. Biases, and all
            other layers, are copied.

    Returns:
        The copy.

    Raises:
        ValueError: a name is unknown, or its module has no weight.
    """
    copied = copy.deepcopy(model)
    modules = modules_by_name(copied)
    generator = torch.Generator().manual_seed(seed)
    for name in _hebbian_names(copied) if layers is None else layers:
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


def _hebbian_names(model: nn.Module) -> list[str]:
    """The first name of each Hebbian layer. Raises ValueError if there are none."""
    layers = hebbian_layers(model)
    check_any("evaluation", model, layers)
    first = {layer: name for name, layer in reversed(list(layers.items()))}
    return [name for name, layer in layers.items() if first[layer] == name]
