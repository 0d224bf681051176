"""The fine-tuning baselines of Table 2: a network that learns tasks by gradients, with methods against forgetting.

    for row in baseline_rows("mnist", x_train, y_train, x_test, y_test, seeds=5):
        print(row["row"], row["values"])

Class-incremental, as in supervised.py: five tasks of two classes in order, a single head of ten units, the whole
softmax in training and at test time. The paper does not describe the network of its baselines: here it is an MLP with
one hidden layer of ReLUs, as wide as HebbCL for MNIST (640), a quarter of that for CIFAR-10 (500), where 2000 would be
6 million weights and a minute per run. One epoch per task, batches of 100, SGD without momentum, images less 0.5.

Rate and strength of each method are those of the highest final accuracy on the last 10,000 training images after
learning the others (`baseline_search`), with one seed; for MAS on MNIST, where some seeds do far worse than the first,
those of the highest mean of three. Steps with too large a lr · strength · importance diverge; such settings are not
taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.papers.hebbcl.supervised import VALIDATION, row_of, task_average, tasks_of
from hebbkern.continual.consolidation import EWC, L2, MAS, Consolidation, LwF, OnlineEWC, SynapticIntelligence

HIDDEN = {"mnist": 640, "cifar10": 500}
BATCH = 100
SAMPLES = 500  # of a task, from which EWC and MAS estimate importances
RATES = {"mnist": (0.01, 0.03, 0.1), "cifar10": (0.003, 0.01)}


@dataclass(frozen=True)
class Baseline:
    """A method with its learning rate, its strength (λ or c; 0 for SGD) and the paper's figure."""

    row: str
    lr: float
    strength: float = 0.0
    paper: float | None = None


# Chosen by `baseline_search`.
TABLE = {
    "mnist": [
        Baseline("SGD", 0.1, 0.0, 19.01),
        Baseline("L2", 0.1, 0.01, 18.88),
        Baseline("EWC", 0.1, 100.0, 18.90),
        Baseline("Online EWC", 0.1, 10.0, 18.89),
        Baseline("Synaptic Intelligence", 0.1, 1.0, 17.94),
        Baseline("MAS", 0.03, 0.01, 17.38),
        Baseline("LwF", 0.01, 1.5, 49.37),
    ],
    "cifar10": [
        Baseline("SGD", 0.003, 0.0, 15.56),
        Baseline("L2", 0.003, 1.0, 16.31),
        Baseline("EWC", 0.003, 1000.0, 11.83),
        Baseline("Online EWC", 0.003, 1000.0, 15.49),
        Baseline("Synaptic Intelligence", 0.003, 10.0, 17.38),
        Baseline("MAS", 0.01, 1.0, 11.79),
        Baseline("LwF", 0.01, 2.0, 13.89),
    ],
}

# What `baseline_search` tries, with each rate.
STRENGTHS = {
    "SGD": (0.0,),
    "L2": (0.01, 0.1, 1.0),
    "EWC": (10.0, 100.0, 1000.0),
    "Online EWC": (10.0, 100.0, 1000.0),
    "Synaptic Intelligence": (0.1, 1.0, 10.0),
    "MAS": (0.01, 0.1, 1.0, 10.0),
    "LwF": (0.3, 1.0, 1.5, 2.0, 3.0),
}


def baseline_rows(
    name: str,
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    seeds: int = 5,
    table: list[Baseline] | None = None,
) -> Iterator[dict]:
    """Yields the rows of Table 2 that learn by gradients, as they are done; as `supervised_rows`.

    Args:
        y, y_test: labels from 0, int64 [n].
    """
    for baseline in TABLE[name] if table is None else table:
        values, seconds = [], []
        for seed in range(seeds):
            begin = time.perf_counter()
            network = finetuned(baseline, x, y, hidden=HIDDEN[name], seed=seed)
            seconds.append(time.perf_counter() - begin)
            values.append(accuracy(network, x_test, y_test))
        yield row_of(name, baseline, values, seconds)


def baseline_search(name: str, x: Tensor, y: Tensor, *, seeds: int = 1) -> Iterator[dict]:
    """Yields the accuracy of each rate and strength on the last `VALIDATION` training images, as they are done.

    Yields:
        row, lr, strength; values: accuracies in percent, one per seed, None where weights became infinite.
    """
    for row, strengths in STRENGTHS.items():
        for lr, strength in product(RATES[name], strengths):
            baseline, values = Baseline(row, lr, strength), []
            for seed in range(seeds):
                try:
                    network = finetuned(baseline, x[:-VALIDATION], y[:-VALIDATION], hidden=HIDDEN[name], seed=seed)
                    values.append(accuracy(network, x[-VALIDATION:], y[-VALIDATION:]))
                except ValueError as error:  # a step of lr · strength · importance is too large
                    if "must be finite" not in str(error):
                        raise
                    values.append(None)
            yield {"row": row, "lr": lr, "strength": strength, "values": values}


def finetuned(baseline: Baseline, x: Tensor, y: Tensor, *, hidden: int, seed: int) -> nn.Module:
    """Returns a network that learnt the tasks of x, y in order; the seed draws weights and orders."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = mlp(x[0].numel(), hidden, int(y.max()) + 1)
    method = consolidation(baseline, network, seed)
    optimizer = torch.optim.SGD(network.parameters(), baseline.lr)
    for task in tasks_of(x, y):
        batches = task.batches(BATCH, seed=seed)
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            method.add_gradient(network, images)
            optimizer.step()
            method.after_step()
        method.after_task(network, batches)
    return network


def consolidation(baseline: Baseline, network: nn.Module, seed: int) -> Consolidation:
    """Returns the method of a row.

    Raises:
        ValueError: the row is not one of the methods.
    """
    strength = baseline.strength
    methods = {
        "SGD": lambda: Consolidation(),
        "L2": lambda: L2(network, strength),
        "EWC": lambda: EWC(network, strength, samples=SAMPLES, seed=seed),
        "Online EWC": lambda: OnlineEWC(network, strength, samples=SAMPLES, seed=seed),
        "Synaptic Intelligence": lambda: SynapticIntelligence(network, strength),
        "MAS": lambda: MAS(network, strength, samples=SAMPLES),
        "LwF": lambda: LwF(strength),
    }
    if baseline.row not in methods:
        raise ValueError(f"hebbcl baselines: row must be one of {', '.join(methods)}, got {baseline.row}")
    return methods[baseline.row]()


def mlp(inputs: int, hidden: int, classes: int) -> nn.Module:
    """Returns the network: one hidden layer of ReLUs on centred images."""
    return nn.Sequential(Centre(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class Centre(nn.Module):
    """Turns images from 0 to 1 into rows from −0.5 to 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - 0.5


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns the accuracy in percent, averaged over tasks."""
    predicted = torch.cat([network(part).argmax(1) for part in x.split(1000)])
    return task_average(predicted == y, y)
