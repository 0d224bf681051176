"""Metrics of forgetting, computed from the accuracies R[i][j] on task j after learning task i.

    R = []
    for task in stream:
        learn(task)
        R.append([accuracy(test) for test in tests])    # of all tasks, or of those learned so far
    metrics.average_accuracy(R), metrics.backward_transfer(R), metrics.forgetting(R)

R is a square array, or a list of rows of which row i has at least i + 1 entries; missing entries and NaN were not
measured. Accuracies can be fractions or per cent, and results have the same unit. Any other measure works too if higher
values are better.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def accuracy_matrix(R: Any) -> np.ndarray:
    """R as a float64 array [T, T], with NaN where nothing was measured.

    Args:
        R: T rows, row i with at least i + 1 and at most T accuracies.

    Raises:
        ValueError: R has no rows, a row is too short or too long, or the accuracy on a task that was learned before is
            missing.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in R]
    if not rows:
        raise ValueError("hebbkern.continual: R must have at least one row, got none")
    matrix = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        if row.ndim != 1 or not i < len(row) <= len(rows):
            raise ValueError(
                f"hebbkern.continual: row {i} of R must hold {i + 1} to {len(rows)} accuracies, "
                f"got shape {list(row.shape)}"
            )
        if not np.isfinite(row[: i + 1]).all():
            raise ValueError(f"hebbkern.continual: row {i} of R must be finite for tasks learnt by then, got {row}")
        matrix[i, : len(row)] = row
    return matrix


def average_accuracies(R: Any) -> np.ndarray:
    """[T]: for each task i, the mean of R[i, 0] to R[i, i], the tasks learned so far (DHP, figure 2).

    Raises:
        ValueError: as `accuracy_matrix`.
    """
    matrix = accuracy_matrix(R)
    return np.array([row[: i + 1].mean() for i, row in enumerate(matrix)])


def average_accuracy(R: Any) -> float:
    """ACC: the mean over all tasks after the last one (Lopez-Paz and Ranzato 2017, equation 2).

    Raises:
        ValueError: as `accuracy_matrix`.
    """
    return float(average_accuracies(R)[-1])


def backward_transfer(R: Any) -> float:
    """BWT: mean over i < T of R[T, i] − R[i, i], negative if tasks are forgotten (Lopez-Paz and Ranzato, equation 3).

    Raises:
        ValueError: as `accuracy_matrix`, or R has fewer than two tasks.
    """
    matrix = _two_tasks(R)
    return float((matrix[-1] - matrix.diagonal())[:-1].mean())


def forgetting(R: Any) -> float:
    """F: mean over tasks j < T of the best accuracy on j after any earlier task minus that after the last task.

    Chaudhry et al. 2018, section 4.1. Accuracies on task j from before it was learned count if they were measured.

    Raises:
        ValueError: as `accuracy_matrix`, or R has fewer than two tasks.
    """
    matrix = _two_tasks(R)[:, :-1]
    return float((np.fmax.reduce(matrix[:-1]) - matrix[-1]).mean())


def forward_transfer(R: Any, baseline: Any) -> float:
    """FWT: mean over i > 1 of R[i − 1, i] − b_i (Lopez-Paz and Ranzato 2017, equation 4).

    Args:
        R: accuracies that include R[i − 1, i], on each task before it is learned.
        baseline: b [T], the accuracy on each task at random initialisation; the first is ignored.

    Raises:
        ValueError: as `accuracy_matrix`, R has fewer than two tasks, or baseline has another length, or an accuracy is
            missing.
    """
    matrix, reference = _two_tasks(R), np.asarray(baseline, dtype=np.float64)
    if reference.shape != (len(matrix),):
        raise ValueError(
            f"hebbkern.continual: baseline must have one accuracy for each of {len(matrix)} tasks, "
            f"got shape {list(reference.shape)}"
        )
    ahead = matrix.diagonal(1) - reference[1:]
    if not np.isfinite(ahead).all():
        raise ValueError("hebbkern.continual: R and baseline must be finite for each task before it is learnt, got NaN")
    return float(ahead.mean())


def _two_tasks(R: Any) -> np.ndarray:
    """`accuracy_matrix(R)`, of at least two tasks."""
    matrix = accuracy_matrix(R)
    if len(matrix) < 2:
        raise ValueError("hebbkern.continual: R must be of at least two tasks, got one")
    return matrix
