"""The paper's listing of DHP Softmax, and the layers and batches on which DHPLinear is compared with it."""

import torch

from cases import random
from hebbkern.nn import DHPLinear

CLOSE = {"rtol": 1e-11, "atol": 1e-13}
LABELS = torch.tensor([3, 0, 3, -1, 4, 3, 0])  # classes 1 and 2 are absent, sample 3 is of no class
ABSENT, PRESENT = [1, 2], [0, 3, 4]
PARTS = ("weight", "alpha", "eta")


def listing(h, labels, hebb, weight, alpha, eta):
    """Listing 1 of the paper with its loop over classes, for weights [K, N]: z and the trace, differentiable."""
    hebb = hebb.clone()
    for c in torch.unique(labels):
        if c >= 0:
            mean = h[labels == c].sum(0) / (labels == c).sum()
            rate = eta[c] if eta.dim() else eta
            hebb[c] = (1 - rate) * hebb[c].clone() + rate * mean
    return h @ (weight + alpha * hebb).T, hebb


def head(inputs=6, classes=5, dtype=torch.float64, **options):
    """A layer of which every part affects the output, with a trace that is not 0 and different η."""
    torch.manual_seed(0)
    layer = DHPLinear(inputs, classes, dtype=dtype, **options)
    with torch.no_grad():
        layer.alpha.copy_(random((classes, inputs), dtype, seed=1))
        layer.trace.copy_(random((classes, inputs), dtype, seed=2))
        layer.eta.copy_(random(tuple(layer.eta.shape), dtype, seed=3, scale=0.1, offset=0.3))
    return layer


def leaves(layer):
    return [getattr(layer, name) for name in PARTS]


def batch(seed=4, count=7, dtype=torch.float64):
    return random((count, 6), dtype, seed=seed).requires_grad_()
