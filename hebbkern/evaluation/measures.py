"""Measures of features (k-NN, clusters), classifiers and neurons (lengths, wins, activity); intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern import ops
from hebbkern.evaluation.features import check_samples, device_of, eval_mode
from hebbkern.nn.patches import CONVOLUTIONS
from hebbkern.nn.state import Hebbian
from hebbkern.rules import WTA, KrotovHopfield

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 10,
    *,
    similarity: str = "euclidean",
    chunk: int = 1024,
) -> float:
    """Measures the accuracy of the majority class among the k nearest training samples; ties go to the lower class.

    Distances are float32, of features minus the training mean (which changes no distance and saves digits). Two
    neighbours whose distances differ by rounding only may change places. Deterministic on the same number of threads.

    Args:
        train, test: [n, inputs] floats.
        train_labels, test_labels: [n] int64, at least 0.
        k: neighbours, 1 to the number of training samples.
        similarity: "euclidean" or "cosine".
        chunk: test samples at a time; memory is about chunk · training samples · 4 bytes.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        ValueError: k, similarity or a shape is wrong, features are not finite, or a label is below 0.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"hebbkern.evaluation: k must be 1 to the {len(train)} training samples, got {k}")
    if similarity not in ("euclidean", "cosine"):
        raise ValueError(f'hebbkern.evaluation: similarity must be "euclidean" or "cosine", got {similarity!r}')
    classes, train_labels = check_samples("train", train, train_labels).unique(return_inverse=True)
    test_labels = check_samples("test", test, test_labels)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"hebbkern.evaluation: test must have train's {train.shape[1]} inputs, got {test.shape[1]}")
    train, test = train.detach().float(), test.detach().float()
    mean = train.mean(0)
    train, test = (train - mean, test - mean) if similarity == "euclidean" else (F.normalize(train), F.normalize(test))
    squares = train.square().sum(1) / 2 if similarity == "euclidean" else torch.zeros_like(train[:, 0])
    correct = 0
    for x, labels in zip(test.split(chunk), test_labels.split(chunk), strict=True):
        nearest = torch.addmm(squares, x, train.T, alpha=-1).topk(k, largest=False).indices
        votes = F.one_hot(train_labels[nearest], len(classes)).sum(1)
        correct += int((classes[votes.argmax(1)] == labels).sum())
    return correct / len(test)


def cluster_accuracy(
    features: Tensor,
    labels: Tensor,
    clusters: int,
    seed: int = 0,
    *,
    test: Tensor | None = None,
    test_labels: Tensor | None = None,
    assignment: str = "majority",
    starts: int = 10,
) -> float:
    """Measures the accuracy if each cluster of scikit-learn's KMeans stands for one class (needs hebbkern[eval]).

    Clusters are fitted to `features` and assigned to classes by `labels`. The accuracy is that on the test features if
    they are given, else on `features`. Deterministic for a seed, on the same number of threads and the same version of
    scikit-learn.

    Args:
        features: [n, inputs] floats.
        labels: [n] int64, at least 0.
        clusters: at least 1.
        seed: of the first centres.
        test, test_labels: both or none.
        assignment: "majority" (HebbCL's): a cluster stands for the class of most of its samples (the lower on ties);
            "one_to_one": no two clusters stand for the same class, with the highest accuracy (scipy's
            linear_sum_assignment); samples of clusters beyond the number of classes count as wrong.
        starts: KMeans runs of which the best is taken.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        ValueError: assignment is unknown, only one of test and test_labels is given, features are not finite, or a
            label is below 0.
        ImportError: scikit-learn is missing.
    """
    if assignment not in ("majority", "one_to_one"):
        raise ValueError(f'hebbkern.evaluation: assignment must be "majority" or "one_to_one", got {assignment!r}')
    if (test is None) != (test_labels is None):
        raise ValueError("hebbkern.evaluation: test and test_labels must be given both or not at all, got one")
    try:
        from scipy.optimize import linear_sum_assignment
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError("hebbkern.evaluation: scikit-learn is missing: pip install 'hebbkern[eval]'") from error
    names, classes = np.unique(check_samples("features", features, labels).cpu().numpy(), return_inverse=True)
    options: Any = {"n_init": starts, "random_state": seed}
    means: Any = KMeans(clusters, **options).fit(_array(features))
    counts = np.zeros((clusters, len(names)), dtype=np.int64)
    np.add.at(counts, (means.labels_, classes), 1)
    class_of = np.full(clusters, -1)
    if assignment == "majority":
        class_of[:] = counts.argmax(1)
    else:
        rows, columns = linear_sum_assignment(counts, maximize=True)
        class_of[rows] = columns
    if test is None or test_labels is None:
        return float((class_of[means.labels_] == classes).mean())
    wanted = check_samples("test", test, test_labels).cpu().numpy()
    found = class_of[means.predict(_array(test))]
    return float(((names[found] == wanted) & (found >= 0)).mean())


def _array(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())


def lengths(layer: Hebbian) -> Tensor:
    """[K] float64 on the CPU: the norm of each neuron's weights, with p of Krotov and Hopfield's rule, else p = 2."""
    p = layer.rule.p if isinstance(layer.rule, KrotovHopfield) else 2.0
    return torch.linalg.vector_norm(layer.weight.detach().cpu().double().flatten(1), p, dim=1)


def wins(layer: Any, x: Tensor) -> Tensor:
    """Counts the patches of x that each neuron wins under its rule's similarity and kind of patches.

    With WTA of k winners a patch counts for all k, a blank patch for none. For rules without winners (dense ones,
    Supervised) the winner is the neuron of the largest w·x.

    Args:
        layer: a `HebbianLinear` or a Hebbian convolution.
        x: a batch of its inputs.

    Returns:
        [K] int64.
    """
    rule, weight, k, options = layer.rule, layer._rule_weight(layer.weight.detach()), 1, {}
    if isinstance(rule, KrotovHopfield):
        options = {"p": rule.p}
    elif isinstance(rule, WTA):
        options, k = {"cosine": rule.similarity == "cosine"}, rule.k
    rows, _, geometry = layer._rule_input(x.to(weight.dtype), None)
    winners, _ = ops.compete(rows, weight, k, patches=rule.patches, **options, **geometry)
    return torch.bincount(winners[winners >= 0].long(), minlength=len(weight))


def answers(layer: nn.Module, output: Tensor) -> Tensor:
    """[P, K]: the output of a layer on a batch, one row a patch."""
    if isinstance(layer, CONVOLUTIONS):
        output = output.movedim(1, -1)
    return output.reshape(-1, output.shape[-1])


def activity(y: Tensor) -> dict[str, float]:
    """Computes the distribution and the sparseness of activations over all patches and neurons.

    Args:
        y: [P, K].

    Returns:
        "mean"; "q05", "q25", "q50", "q75", "q95" (quantiles); "inactive", the share of activations at most 0; "silent",
        the share of neurons never above 0; and "sparseness", from 0 (all neurons are equally active) to 1 (one neuron
        alone is): (1 − (Σ r / K)² / (Σ r² / K)) / (1 − 1/K) with r = max(y, 0) over the neurons (Vinje and Gallant,
        Science 2000), the mean over patches with an active neuron (0 if there are none).
    """
    y = y.detach().cpu().double()
    active, rates, neurons = y > 0, y.relu(), y.shape[1]
    statistics = {"mean": y.mean().item(), "inactive": 1 - active.double().mean().item()}
    statistics["silent"] = 1 - active.any(0).double().mean().item()
    statistics |= zip(QUANTILES, np.quantile(y.numpy(), list(QUANTILES.values())).tolist(), strict=True)
    rates = rates[active.any(1)]
    rates = rates / rates.amax(1, keepdim=True)  # so that no square underflows
    evenness = rates.mean(1).square() / rates.square().mean(1)
    sparse = neurons > 1 and len(rates) > 0
    statistics["sparseness"] = (1 - evenness.mean().item()) / (1 - 1 / neurons) if sparse else 0.0
    return statistics


def accuracy(model: nn.Module, x: Tensor, labels: Tensor, *, chunk: int = 1000) -> float:
    """Computes the share of x, from 0 to 1, for which the model's highest output is that of the label.

    Args:
        model: a classifier; it is in evaluation mode and is left exactly as it was.
        x: [n, ...] on any device.
        labels: [n] int64 on the CPU.
        chunk: samples at a time.
    """
    device = device_of(model)
    with eval_mode(model), torch.no_grad():
        correct = [
            (model(part.to(device)).argmax(1).cpu() == wanted).sum().item()
            for part, wanted in zip(x.split(chunk), labels.split(chunk), strict=True)
        ]
    return sum(correct) / len(x)


class Interval(NamedTuple):
    """The mean and sample standard deviation (n − 1) of n values, and the ends of Student's confidence interval."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Computes mean ± t · std / √n, with Student's t of n − 1 degrees of freedom (needs hebbkern[eval]).

    The values are assumed to be normally distributed.

    Args:
        values: one a seed, at least two, finite.
        confidence: above 0, below 1.

    Returns:
        The interval.

    Raises:
        ValueError: values or confidence are outside these ranges.
        ImportError: scipy, which scikit-learn installs, is missing.
    """
    values = [float(value) for value in values]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"hebbkern.evaluation: values must be at least two finite numbers, got {values}")
    if not 0 < confidence < 1:
        raise ValueError(f"hebbkern.evaluation: confidence must be between 0 and 1, got {confidence}")
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError("hebbkern.evaluation: scipy is missing: pip install 'hebbkern[eval]'") from error
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * std / math.sqrt(len(values))
    return Interval(mean, std, mean - half, mean + half, len(values))
