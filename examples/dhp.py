"""A readout with a Hebbian trace: DHP Softmax on tasks that come one after the other.

python examples/dhp.py
"""

import torch
from torch import nn

import hebbkern as hk
from hebbkern.continual import streams

TASKS, INPUTS, CLASSES = 5, 100, 10
torch.manual_seed(0)
centres = torch.randn(CLASSES, INPUTS)


def samples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns samples [count, INPUTS] around the centres of their classes, and labels."""
    labels = torch.arange(count) % CLASSES
    return centres[labels] + 2 * torch.randn(count, INPUTS), labels


x, labels = samples(2000)
x_test, test_labels = samples(500)
train_tasks = streams.permuted(x, labels, tasks=TASKS)  # each task permutes the inputs in its own way
test_tasks = streams.permuted(x_test, test_labels, tasks=TASKS)


def average_accuracy(readout: nn.Module) -> float:
    """Trains a network with this readout task by task and returns its average test accuracy on all tasks."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 100), nn.ReLU())
    optimizer = torch.optim.SGD([*body.parameters(), *readout.parameters()], lr=0.05)
    for task in train_tasks:
        for _ in range(3):
            for indices in torch.randperm(task.samples).split(50):
                images, targets = task[indices]
                hidden = body(images)
                # With labels, in training mode, the trace moves towards the mean hidden activity of each class.
                logits = readout(hidden, targets) if isinstance(readout, hk.nn.DHPLinear) else readout(hidden)
                optimizer.zero_grad()
                nn.functional.cross_entropy(logits, targets).backward()
                optimizer.step()
    with torch.no_grad():
        pairs = [task[:] for task in test_tasks]
        right = [(readout(body(images)).argmax(1) == targets).float().mean() for images, targets in pairs]
    return torch.stack(right).mean().item()


plain = average_accuracy(nn.Linear(100, CLASSES, bias=False))
trace = average_accuracy(hk.nn.DHPLinear(100, CLASSES, eta=0.01))
print(f"average accuracy after {TASKS} tasks: DHP Softmax {100 * trace:.1f} %, plain softmax {100 * plain:.1f} %")
