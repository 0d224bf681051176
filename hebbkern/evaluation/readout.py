"""A linear readout: multinomial logistic regression on frozen features, its decay chosen on a held-out part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DECAYS = (1e-5, 1e-4)
HELD_OUT = 5  # every fifth training sample chooses the decay


@dataclass(frozen=True)
class Readout:
    """Accuracies in [0, 1], and the decay that was chosen by the best of them on held-out training samples."""

    train: float
    held_out: float
    test: float
    decay: float


def linear_readout(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    decays: tuple[float, ...] = DECAYS,
    iterations: int = 40,
) -> Readout:
    """Fits a linear classifier to features and measures it on the test features, which decide nothing.

    Features are standardised by the training set's mean and deviation and divided by √inputs. The loss is the mean
    cross-entropy plus decay/2 · ‖weights‖², minimised over the whole set by L-BFGS from zero. Each decay is tried on
    four fifths of the training set, the best on the remaining fifth (the larger one on ties) is fitted again to all.

    Args:
        train, test: [n, inputs] floats. train_labels, test_labels: int64 [n].
        decays: candidates.
        iterations: of L-BFGS.

    Deterministic on the same number of threads.
    """
    train, test = train.detach(), test.detach()
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    mean, deviation = train.mean(0), train.std(0)
    scale = deviation.clamp(min=1e-3 * float(deviation.max()) or 1.0) * train.shape[1] ** 0.5
    train, test = (train - mean) / scale, (test - mean) / scale
    held_out = torch.arange(len(train)) % HELD_OUT == 0
    fit, check = (train[~held_out], train_labels[~held_out]), (train[held_out], train_labels[held_out])
    tried = {decay: _accuracy(_fit(*fit, classes, decay, iterations), *check) for decay in sorted(decays, reverse=True)}
    best = max(tried, key=tried.get)
    weight = _fit(train, train_labels, classes, best, iterations)
    accuracies = _accuracy(weight, train, train_labels), tried[best], _accuracy(weight, test, test_labels)
    return Readout(*accuracies, best)


def _fit(x: Tensor, labels: Tensor, classes: int, decay: float, iterations: int) -> Tensor:
    """[inputs + 1, classes], the last row is the bias"""
    weight = x.new_zeros(x.shape[1] + 1, classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(torch.addmm(weight[-1], x, weight[:-1]), labels)
        value = value + decay / 2 * weight[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return weight.detach()


def _accuracy(weight: Tensor, x: Tensor, labels: Tensor) -> float:
    return (torch.addmm(weight[-1], x, weight[:-1]).argmax(1) == labels).double().mean().item()
