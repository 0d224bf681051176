"""Streams and models for the tests of HebbCL."""

import torch

from cases import random
from hebbkern.continual import HebbCL

N = 12


def stream(batches=15, size=16, seed=0, dtype=torch.float64, device=None):
    """Batches of noisy copies of five patterns of two inputs each, one pattern after the other."""
    patterns = torch.eye(6, dtype=dtype, device=device).repeat_interleave(2, 1)
    noise = random((batches, size, N), dtype, device, seed=seed, scale=0.1).abs()
    return [patterns[index * 5 // batches] + part for index, part in enumerate(noise)]


def train_on(model, batches):
    for x in batches:
        model.learn(x)
    return model


def rows_of(model):
    return model.weight.detach().cpu().clone()


def model_and_next(supervised):
    """A model in the middle of a stream, and a function that learns the next part of it."""
    if supervised:
        model = HebbCL(N, per_class=3, lr=0.2, start="samples").partial_fit(random((30, N)).abs(), torch.arange(30) % 2)
        return model, lambda other: other.partial_fit(random((30, N), seed=2).abs(), torch.arange(30) % 2 + 1)
    model = train_on(HebbCL(N, 6, lr=0.3, threshold=0.15), stream(10, dtype=torch.float32))
    return model, lambda other: train_on(other, stream(10, seed=4, dtype=torch.float32))


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
