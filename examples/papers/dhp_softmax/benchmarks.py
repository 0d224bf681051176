"""The streams of tasks of the DHP experiments, with networks for them.

    sets = {"mnist": hk.datasets.load("MNIST")}
    benchmark = build("split", sets, seed=0)

A twelfth of each task's training samples is held out: for early stopping, and to choose by.
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

HELD_OUT = 12  # one in so many samples
COUNTED = 0  # the seed of which samples Imbalanced Permuted MNIST leaves out: one for all runs (appendix A.2)
MNIST = 60000  # training images that the counts are of
MIXTURE = ("mnist", "notmnist", "fashionmnist", "svhn", "cifar10")
NEEDS = {
    "permuted": ("mnist",),
    "imbalanced": ("mnist",),
    "split": ("mnist",),
    "mixture": MIXTURE,
    "cifar": ("cifar10", "cifar100"),
}


def build(name: str, sets: Mapping[str, Dataset], seed: int) -> Benchmark:
    """A benchmark by its name, a key of `NEEDS`.

    Args:
        sets: the data sets that there are: all that the benchmark needs; the mixture takes those it finds.
        seed: of the permutations, which differ from run to run.

    Raises ValueError for another name, or where sets lacks what is needed.
    """
    if name not in NEEDS:
        raise ValueError(f"dhp_benchmarks: name must be one of {', '.join(NEEDS)}, got {name}")
    missing = [needed for needed in NEEDS[name] if needed not in sets]
    if missing and (name != "mixture" or len(missing) == len(MIXTURE)):
        raise ValueError(f"dhp_benchmarks: sets must hold {' and '.join(NEEDS[name])}, got no {', '.join(missing)}")
    train, test = STREAMS[name](sets, seed)
    train, test = streams.relabel(train), streams.relabel(test, like=train)
    kept, out = zip(*map(held_out, train), strict=True)
    classes = tuple(len(task.classes) for task in train)

    def network(heads: str, readout: Callable[[int, int], nn.Module]) -> Network:
        body, width = BODIES[name]()
        return Network(body, width, Heads(heads, classes), readout)

    return Benchmark(name, list(kept), list(out), test, network)


def permuted(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """Ten orders of MNIST's pixels."""
    data = sets["mnist"]
    parts = (data.x_train, data.y_train), (data.x_test, data.y_test)
    train, test = (streams.permuted(*part, tasks=10, seed=seed) for part in parts)
    return train, test


def imbalanced(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """The same with as many samples of each class in each task as Table 2 says; tested on all.

    Of a smaller MNIST as large a share, as far as there are so many.
    """
    train, test = permuted(sets, seed)
    there = train[0].labels.bincount().tolist()
    share = len(train[0].labels) / MNIST
    counts = [[min(round(share * n), most) for n in row] for row, most in zip(streams.DHP_COUNTS, there, strict=True)]
    return streams.imbalanced(train, counts, seed=COUNTED), test


def split(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """0/1, 2/3, 4/5, 6/7, 8/9: the order is the paper's for every seed."""
    data = sets["mnist"]
    return streams.split(data.x_train, data.y_train, 5), streams.split(data.x_test, data.y_test, 5)


def mixture(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """A data set a task, in the paper's order, those that are there."""
    there = [sets[name] for name in MIXTURE if name in sets]
    train = streams.mixture((data.name, data.x_train, data.y_train) for data in there)
    return train, streams.mixture((data.name, data.x_test, data.y_test) for data in there)


def cifar(sets: Mapping[str, Dataset], seed: int) -> tuple[list[Task], list[Task]]:
    """All of CIFAR-10, then five times ten classes of CIFAR-100, in their order (Figure 8)."""
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
    """The task without a twelfth of its samples, and those; the same places for tasks of one size."""
    order = torch.randperm(task.samples, generator=torch.Generator().manual_seed(task.samples))
    cut = task.samples // HELD_OUT
    return tuple(
        replace(task, indices=task.indices[part], labels=task.labels[part.to(task.labels.device)])
        for part in (order[cut:].sort().values, order[:cut].sort().values)
    )
