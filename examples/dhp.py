"""A readout with a Hebbian trace: DHP Softmax on tasks that come one after the other.

python examples/dhp.py
"""

import copy

import torch
from torch import nn

import hebbkern as hk
from hebbkern.continual import streams

INPUTS, CLASSES, HIDDEN = 100, 10, 50
torch.manual_seed(0)
centres = torch.randn(CLASSES, INPUTS)


def samples(count: int) -> list[streams.Task]:
    """Returns five tasks of two classes each: samples [n, INPUTS] around the centres of their classes."""
    labels = torch.arange(count) % CLASSES
    x = centres[labels] + 3 * torch.randn(count, INPUTS)
    return streams.relabel(streams.split(x, labels, 5))  # labels count from 0 in each task


train_tasks, test_tasks = samples(2000), samples(1000)
body = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU())  # shared by the tasks, each of which has a readout


def average_accuracy(body: nn.Module, readouts: list[nn.Module]) -> float:
    """Trains the network task by task and returns its average test accuracy on all tasks."""
    torch.manual_seed(0)
    for task, readout in zip(train_tasks, readouts, strict=True):
        optimizer = torch.optim.SGD([*body.parameters(), *readout.parameters()], lr=0.1)
        for _ in range(5):
            for indices in torch.randperm(task.samples).split(20):
                x, labels = task[indices]
                hidden = body(x)
                # With labels, in training mode, the trace moves towards the mean hidden activity of each class.
                logits = readout(hidden, labels) if isinstance(readout, hk.nn.DHPLinear) else readout(hidden)
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, labels).backward()
                optimizer.step()
    with torch.no_grad():
        pairs = [(readout, *task[:]) for readout, task in zip(readouts, test_tasks, strict=True)]
        return sum((readout(body(x)).argmax(1) == labels).double().mean().item() / 5 for readout, x, labels in pairs)


dhp = [hk.nn.DHPLinear(HIDDEN, 2, eta=0.01) for _ in train_tasks]
plain = [nn.Linear(HIDDEN, 2, bias=False) for _ in train_tasks]
for readout, other in zip(plain, dhp, strict=True):
    readout.weight.data.copy_(other.weight)  # both start alike
accuracies = [100 * average_accuracy(copy.deepcopy(body), readouts) for readouts in (dhp, plain)]
print("average accuracy after five tasks: DHP Softmax {:.1f} %, plain softmax {:.1f} %".format(*accuracies))
