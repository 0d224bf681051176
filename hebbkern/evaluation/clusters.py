"""cluster_accuracy: how well k-means finds the classes in the features (pip install 'hebbkern[eval]')."""

from __future__ import annotations

import numpy as np
from torch import Tensor


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
    """Accuracy in [0, 1] when each cluster of scikit-learn's KMeans stands for one class.

    Clusters are fitted to `features` and named by `labels`; measured on the test features if given, else on `features`.
    "majority" is the measure of HebbCL, section 4.

    Args:
        features: [n, inputs] floats. labels: int64 [n], at least 0.
        clusters: at least 1. seed: of the first centres; starts: the best of so many is taken.
        test, test_labels: both or none.
        assignment: "majority", each cluster is the class that most of its samples have (the lower on ties), or
            "one_to_one", no two clusters the same class, chosen for the most hits (scipy's linear_sum_assignment; with
            more clusters than classes, what falls into those left over counts as wrong).

    Deterministic for a seed, on the same number of threads and version of scikit-learn.

    Raises:
        ImportError: scikit-learn is missing. ValueError: assignment, or only one of test and test_labels.
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
    x, y = _array(features), labels.cpu().numpy()
    means = KMeans(clusters, n_init=starts, random_state=seed).fit(x)
    table = np.zeros((clusters, int(y.max()) + 1), dtype=np.int64)
    np.add.at(table, (means.labels_, y), 1)
    named = np.full(clusters, -1)
    if assignment == "majority":
        named[:] = table.argmax(1)
    else:
        rows, columns = linear_sum_assignment(table, maximize=True)
        named[rows] = columns
    found, truth = (means.labels_, y) if test is None else (means.predict(_array(test)), test_labels.cpu().numpy())
    return float((named[found] == truth).mean())


def _array(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())
