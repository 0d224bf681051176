"""from_avalanche: streams of the library Avalanche (ContinualAI) as lists of tasks, without importing Avalanche."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hebbkern.continual.tasks import Task


def from_avalanche(experiences: Iterable[Any]) -> list[Task]:
    """Converts a stream of a benchmark, such as `benchmark.train_stream` or `benchmark.test_stream`, to tasks.

    Each batch is read from the benchmark's data set, item by item, with the transformations that are active there.
    Nothing is copied, augmentations are drawn anew each time, and a sample takes as long to read as in Avalanche.

    Args:
        experiences: objects with a `dataset`, whose items are (x, label, ...) with a tensor x and whose `targets` are
            the labels. The classes of a task are the sorted `classes_in_this_experience`, or if there are none the
            labels that occur. Task labels are dropped; `zip(experiences, tasks)` pairs them with the tasks.

    Returns:
        One task for each experience.

    Raises:
        ValueError: experiences is not such a stream, an experience has no samples, x is not a tensor (use Avalanche's
            `transform=ToTensor()`), or a label differs from that in `targets` (the first item of each class is
            checked).
    """
    if not isinstance(experiences, Iterable):
        kind = type(experiences).__name__
        raise ValueError(f"hebbkern.continual: experiences must be a stream (benchmark.train_stream), got {kind}")
    return [_task(f"experience {position + 1}", experience) for position, experience in enumerate(experiences)]


def _task(name: str, experience: Any) -> Task:
    dataset: Any = getattr(experience, "dataset", None)
    if not hasattr(dataset, "targets"):
        kind = type(experience if dataset is None else dataset).__name__
        raise ValueError(f"hebbkern.continual: {name} must have a dataset with targets, got {kind}")
    labels = torch.tensor([int(label) for label in dataset.targets], dtype=torch.int64)
    present = labels.unique().tolist()
    task = Task(
        x=dataset,
        labels=labels,
        indices=torch.arange(len(labels), device="cpu"),
        classes=tuple(sorted(getattr(experience, "classes_in_this_experience", None) or present)),
        name=name,
    )
    for label in present:
        x, item_label, *_ = dataset[int((labels == label).nonzero()[0])]
        if not isinstance(x, Tensor):
            raise ValueError(f"hebbkern.continual: samples of {name} must be tensors, got {type(x).__name__}")
        if int(item_label) != label:
            raise ValueError(
                f"hebbkern.continual: labels of {name} must be its targets ({label}), got {int(item_label)}"
            )
    return task
