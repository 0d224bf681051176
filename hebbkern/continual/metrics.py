"""What a learner of tasks in a row has kept: numbers from its accuracies, R[i][j] on task j after learning task i.

    R = []
    for task in stream:
        learn(task)
        R.append([accuracy(test) for test in tests])    # or of the tasks learnt so far
    metrics.average_accuracy(R), metrics.backward_transfer(R), metrics.forgetting(R)

R is a square array, or rows: row i, at least i + 1 long, ends where nothing was measured. NaN is "not measured" too.
Accuracies may be fractions or per cent; what comes out is of the same unit. Any other measure that is better the
higher it is serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def accuracy_matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """[T, T] float64 from T rows, row i of at least i + 1 and at most T accuracies; NaN where nothing was measured.

    Raises:
        ValueError: no rows, a row that is too short or too long, or no accuracy for a task that was learnt by then.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in rows]
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


def average_accuracies(R: Sequence[Sequence[float]]) -> np.ndarray:
    """[T]: after each task i, the mean over the tasks learnt so far, R[i, 0] to R[i, i] (DHP, figure 2)."""
    matrix = accuracy_matrix(R)
    return np.array([row[: i + 1].mean() for i, row in enumerate(matrix)])


def average_accuracy(R: Sequence[Sequence[float]]) -> float:
    """ACC: the mean over all tasks after the last one (Lopez-Paz and Ranzato 2017, equation 2)."""
    return float(average_accuracies(R)[-1])


def backward_transfer(R: Sequence[Sequence[float]]) -> float:
    """BWT: mean over i < T of R[T, i] − R[i, i], below 0 where tasks are forgotten (Lopez-Paz and Ranzato, equation 3).

    Raises:
        ValueError: of `accuracy_matrix`, or fewer than two tasks.
    """
    matrix = _of_two(R)
    return float((matrix[-1] - matrix.diagonal())[:-1].mean())


def forgetting(R: Sequence[Sequence[float]]) -> float:
    """F: mean over j < T of the best accuracy on j after any task before the last, less that after the last.

    Chaudhry et al. 2018, section 4.1. The best counts from before task j was learnt too, where it was measured.

    Raises:
        ValueError: of `accuracy_matrix`, or fewer than two tasks.
    """
    matrix = _of_two(R)[:, :-1]
    return float((np.fmax.reduce(matrix[:-1]) - matrix[-1]).mean())


def forward_transfer(R: Sequence[Sequence[float]], baseline: Sequence[float]) -> float:
    """FWT: mean over i > 1 of R[i − 1, i] − b_i (Lopez-Paz and Ranzato 2017, equation 4).

    Args:
        R: measured on the next task after each.
        baseline: b [T], the accuracy on each task at random initialisation; that of the first is not looked at.

    Raises:
        ValueError: of `accuracy_matrix`, fewer than two tasks, a baseline of another length, or what is not measured.
    """
    matrix, baseline = _of_two(R), np.asarray(baseline, dtype=np.float64)
    if baseline.shape != (len(matrix),):
        raise ValueError(
            f"hebbkern.continual: baseline must be one a task ({len(matrix)}), got shape {list(baseline.shape)}"
        )
    ahead = matrix.diagonal(1) - baseline[1:]
    if not np.isfinite(ahead).all():
        raise ValueError("hebbkern.continual: R and baseline must be finite for each task before it is learnt, got NaN")
    return float(ahead.mean())


def _of_two(R: Sequence[Sequence[float]]) -> np.ndarray:
    matrix = accuracy_matrix(R)
    if len(matrix) < 2:
        raise ValueError("hebbkern.continual: R must be of at least two tasks, got one")
    return matrix
