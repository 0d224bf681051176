"""Metrics of continual learning: worked by hand from the papers' formulas."""

import numpy as np
import pytest
import torch

from hebbkern.continual import metrics

R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.6, 1.0]]
LEARNT = [row[: i + 1] for i, row in enumerate(R)]


@pytest.mark.parametrize("rows", [R, LEARNT, np.array(R), torch.tensor(R, dtype=torch.float64)])
def test_the_papers_formulas(rows):
    assert metrics.average_accuracy(rows) == pytest.approx((0.5 + 0.6 + 1.0) / 3)
    assert metrics.average_accuracies(rows).tolist() == pytest.approx([0.9, (0.7 + 0.8) / 2, 0.7])
    assert metrics.backward_transfer(rows) == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)
    assert metrics.forgetting(rows) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)


def test_forward_transfer_is_over_a_random_network():
    assert metrics.forward_transfer(R, [np.nan, 0.15, 0.1]) == pytest.approx(((0.2 - 0.15) + (0.3 - 0.1)) / 2)


def test_forgetting_is_from_the_best_and_not_from_the_diagonal():
    rows = [[0.5], [0.9, 0.8], [0.6, 0.9, 1.0]]
    assert metrics.forgetting(rows) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)
    assert metrics.backward_transfer(rows) == pytest.approx(((0.6 - 0.5) + (0.9 - 0.8)) / 2)


def test_forgetting_counts_what_was_known_before():
    assert metrics.forgetting([[0.9, 0.95, 0.0], [0.9, 0.8, 0.0], [0.9, 0.7, 1.0]]) == pytest.approx((0 + 0.25) / 2)


def test_missing_entries_are_nan():
    matrix = metrics.accuracy_matrix(LEARNT)
    assert matrix.shape == (3, 3) and np.isnan(matrix[np.triu_indices(3, 1)]).all()
    assert np.array_equal(matrix[np.tril_indices(3)], np.array(R)[np.tril_indices(3)])
    with pytest.raises(ValueError, match="R and baseline must be finite for each task before it is learnt"):
        metrics.forward_transfer(LEARNT, [0, 0, 0])


def test_one_task():
    assert metrics.average_accuracy([[0.9]]) == 0.9
    for metric in (metrics.backward_transfer, metrics.forgetting):
        with pytest.raises(ValueError, match="R must be of at least two tasks, got one"):
            metric([[0.9]])


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "R must have at least one row, got none"),
        ([[0.9], [0.8]], r"row 1 of R must hold 2 to 2 accuracies, got shape \[1\]"),
        ([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1]], r"row 0 of R must hold 1 to 2 accuracies, got shape \[3\]"),
        ([0.9, 0.8], r"row 0 of R must hold 1 to 2 accuracies, got shape \[\]"),
        ([[0.9], [np.nan, 0.7]], "row 1 of R must be finite for tasks learnt by then"),
    ],
)
def test_wrong_accuracy_matrices_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        metrics.average_accuracy(rows)
    with pytest.raises(ValueError, match=message):
        metrics.forgetting(rows)


def test_a_baseline_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"baseline must have one accuracy for each of 3 tasks, got shape \[2\]"):
        metrics.forward_transfer(R, [0.1, 0.1])
