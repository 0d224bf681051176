"""The linear readout and the features that it reads."""

import torch

from cases import random
from hebbkern.evaluation import linear_readout, rectified_power


def clusters(count, seed):
    labels = torch.arange(count) % 3
    return random((3, 6), seed=9, scale=2.0)[labels] + random((count, 6), seed=seed), labels


def test_the_readout_separates_clusters_and_not_noise():
    train, labels = clusters(300, seed=1)
    test, test_labels = clusters(90, seed=2)
    readout = linear_readout(train, labels, test, test_labels)
    assert readout.test > 0.9 and readout.train > 0.9 and readout.held_out > 0.9 and readout.decay in (1e-5, 1e-4)
    assert linear_readout(random((300, 6)), labels, random((90, 6), seed=3), test_labels).test < 0.6


def test_the_test_set_decides_nothing():
    train, labels = clusters(60, seed=1)
    one = linear_readout(train, labels, train, labels)
    other = linear_readout(train, labels, train, (labels + 1) % 3)
    assert (one.decay, one.train, one.held_out) == (other.decay, other.train, other.held_out)
    assert one.test == one.train and one.test > 0.9 > other.test


def test_scale_and_constant_features_do_not_matter():
    train, labels = clusters(60, seed=1)
    changed = torch.cat([train * 1000, torch.ones(60, 1)], 1)
    plain, scaled = (linear_readout(x, labels, x, labels) for x in (train, changed))
    assert abs(plain.test - scaled.test) < 0.03


def test_rectified_power():
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0], [-1.0, 0.0], [2.0, 0.0]])
    assert torch.allclose(rectified_power(x, weight, 2.0), torch.tensor([[1.0, 0.0, 0.36]]))
