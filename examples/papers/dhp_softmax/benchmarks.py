"""The streams of tasks of the DHP experiments, with networks for them.

    datasets = {"mnist": hk.datasets.load("MNIST")}
    benchmark = build("split", datasets, seed=0)

A twelfth of each task's training samples is held out, for early stopping and to choose settings by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from examples.papers.dhp_softmax.networks import Heads, Network, cifar_body, mixture_body, perceptron
from examples.papers.dhp_softmax.training import Benchmark
from hebbkern.continual import streams
from hebbkern.continual.streams import Task
from hebbkern.datasets import Dataset

HELD_OUT = 12  # one sample in 12
COUNTED = 0  # seed of the samples that Imbalanced Permuted MNIST leaves out, the same in all runs (appendix A.2)
MNIST = 60000  # training images, to which the counts refer
MIXTURE = ("mnist", "notmnist", "fashionmnist", "svhn", "cifar10")
NEEDS = {
    "permuted": ("mnist",),
    "imbalanced": ("mnist",),
    "split": ("mnist",),
    "mixture": MIXTURE,
    "cifar": ("cifar10", "cifar100"),
}


def build(name: str, sets: Mapping[str, Dataset], seed: int) -> Benchmark:
    """Returns a benchmark by its name, a key of `NEEDS`.

    Args:
        sets: data sets by name: all that the benchmark needs; the mixture takes those that are given.
        seed: of the permutations, which differ from run to run.

    Raises:
        ValueError: the name is unknown, or a data set is missing.
    """
    if name not in NEEDS:
        raise ValueError(f"dhp_softmax benchmarks: name must be one of {', '.join(NEEDS)}, got {name}")
    missing = [needed for needed in NEEDS[name] if needed not in sets]
    if missing and (name != "mixture" or len(missing) == len(MIXTURE)):
        raise ValueError(
            f"dhp_softmax benchmarks: sets must hold {' and '.join(NEEDS[name])}, got no {', '.join(missing)}"
        )
    train, test = STREAMS[name](sets, seed)
    train, test = streams.relabel(train), streams.relabel(test, like=train)
    kept, out = zip(*map(held_out, train), strict=True)
    classes = tuple(len(task.classes) for task in train)

    def network(heads: str, readout: Callable[[int, int], nn.Module]) -> Network:
        body, width = BODIES[name]()
        return Network(body, width, Heads(heads, classes), readout)

    return Benchmark(name, list(kept), list(out), test, network)


def permuted(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """Returns training and test tasks: ten permutations of MNIST's pixels."""
    data = sets["mnist"]
    parts = (data.x_train, data.y_train), (data.x_test, data.y_test)
    train, test = (streams.permuted(*part, tasks=10, seed=seed) for part in parts)
    return train, test


def imbalanced(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """Returns the permuted tasks with the class counts of Table 2, tested on all samples.

    A smaller MNIST gets the same shares of its samples.
    """
    train, test = permuted(sets, seed)
    there = train[0].labels.bincount().tolist()
    share = len(train[0].labels) / MNIST
    counts = [[min(round(share * n), most) for n in row] for row, most in zip(streams.DHP_COUNTS, there, strict=True)]
    return streams.imbalanced(train, counts, seed=COUNTED), test


def split(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """Returns the tasks 0/1, 2/3, 4/5, 6/7, 8/9, in the paper's order for every seed."""
    data = sets["mnist"]
    return streams.split(data.x_train, data.y_train, 5), streams.split(data.x_test, data.y_test, 5)


def mixture(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """Returns a task per given data set, in the paper's order."""
    there = [sets[name] for name in MIXTURE if name in sets]
    train = streams.mixture((data.name, data.x_train, data.y_train) for data in there)
    return train, streams.mixture((data.name, data.x_test, data.y_test) for data in there)


def cifar(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """Returns CIFAR-10 and five times ten classes of CIFAR-100, in order (Figure 8)."""
    ten, hundred = sets["cifar10"], sets["cifar100"]
    train = streams.split(ten.x_train, ten.y_train, 1)
    train += streams.split(hundred.x_train, hundred.y_train, 5, classes=range(50))
    test = streams.split(ten.x_test, ten.y_test, 1)
    return train, test + streams.split(hundred.x_test, hundred.y_test, 5, classes=range(50))


STREAMS = {"permuted": permuted, "imbalanced": imbalanced, "split": split, "mixture": mixture, "cifar": cifar}
BODIES = {
    "permuted": lambda: (perceptron(784, 400, 400), 400),
    "imbalanced": lambda: (perceptron(784, 400, 400), 400),
    "split": lambda: (perceptron(784, 256, 256), 256),
    "mixture": mixture_body,
    "cifar": cifar_body,
}


def held_out(task: Task) -> tuple[Task, Task]:
    """Returns the task without a twelfth of its samples, and these; tasks of one size hold out the same positions."""
    order = torch.randperm(task.samples, generator=torch.Generator().manual_seed(task.samples))
    cut = task.samples // HELD_OUT
    return tuple(
        replace(task, indices=task.indices[part], labels=task.labels[part.to(task.labels.device)])
        for part in (order[cut:].sort().values, order[:cut].sort().values)
    )
