"""Benchmarks of the library Avalanche (ContinualAI) as streams of tasks. Avalanche itself is not imported."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hebbkern.continual.tasks import Task


def from_avalanche(experiences: Iterable) -> list[Task]:
    """A stream of a benchmark, such as `benchmark.train_stream` or `benchmark.test_stream`, as tasks.

    Samples are read from the benchmark's data sets batch by batch, with the transformations that are in force there:
    nothing is copied, augmentations are drawn anew each time, and what a sample costs is what it costs in Avalanche.

    Args:
        experiences: each with a `dataset` of items (x, label, ...), x a tensor, and of `targets`, the labels. Its
            `classes_in_this_experience`, sorted, become the task's classes; without it, the labels that occur do. Task
            labels are left behind: `zip(experiences, tasks)` has them.

    Raises:
        ValueError: something else than experiences, an experience without samples, items whose x is no tensor
            (Avalanche takes `transform=ToTensor()`) or whose label is not the one in `targets` (the first of each
            class is looked at).
    """
    if not isinstance(experiences, Iterable):
        kind = type(experiences).__name__
        raise ValueError(f"hebbkern.continual: experiences must be a stream (benchmark.train_stream), got {kind}")
    return [_task(f"experience {position + 1}", experience) for position, experience in enumerate(experiences)]


def _task(name: str, experience) -> Task:
    dataset = getattr(experience, "dataset", None)
    if not hasattr(dataset, "targets"):
        kind = type(experience if dataset is None else dataset).__name__
        raise ValueError(f"hebbkern.continual: {name} must have a dataset with targets, got {kind}")
    labels = torch.tensor([int(label) for label in dataset.targets], dtype=torch.int64)
    there = labels.unique().tolist()
    task = Task(
        x=dataset,
        labels=labels,
        indices=torch.arange(len(labels), device="cpu"),
        classes=tuple(sorted(getattr(experience, "classes_in_this_experience", None) or there)),
        name=name,
    )
    for label in there:
        x, seen, *_ = dataset[int((labels == label).nonzero()[0])]
        if not isinstance(x, Tensor):
            raise ValueError(f"hebbkern.continual: samples of {name} must be tensors, got {type(x).__name__}")
        if int(seen) != label:
            raise ValueError(f"hebbkern.continual: labels of {name} must be its targets ({label}), got {int(seen)}")
    return task
