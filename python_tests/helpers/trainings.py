"""A model and batches that the tests of the training driver share."""

import pytest
import torch
from torch import nn

import hebbkern as hk
from cases import random
from hebbkern.nn import HebbianConv2d, HebbianLinear

training = pytest.importorskip("hebbkern.training", reason="pytorch-ignite is not installed", exc_type=ImportError)

EPOCHS = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        HebbianConv2d(1, 6, 3, rule=hk.WTA(patches="centred")),
        nn.ReLU(),
        nn.Flatten(),
        HebbianLinear(96, 8, rule=hk.KrotovHopfield()),
        HebbianLinear(8, 3, rule=hk.Supervised()),
    )


def batches(seed=0):
    return training.Batches(random((50, 1, 6, 6), seed=3), torch.arange(50) % 3, batch_size=8, seed=seed)


def train(model, folder=None, **options):
    return training.train(model, batches(), lr=0.1, epochs=EPOCHS, folder=folder, **options)


def write(folder, *iterations, value=0):
    """Checkpoints of these iterations, and the handler that wrote them."""
    handler = training.checkpoint.Safetensors(folder)
    for iteration in iterations:
        handler({"model": {"weight": torch.full((40,), float(iteration + value))}}, f"checkpoint_{iteration}.pt")
    return handler
