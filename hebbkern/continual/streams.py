"""Streams: data sets as lists of tasks that are learned one after the other.

    stream = streams.permuted(x, labels, tasks=10, seed=0)
    for task in stream:
        for x, labels in task.batches(64, seed=0, epoch=0):
            ...

`split` divides the classes among tasks, `permuted` gives each task an order of the inputs, `mixture` makes each data
set a task. `imbalanced` and `relabel` change a stream, and lists can be added. The same call with the test data gives
the test tasks: permutations depend on the seed alone. `unbounded` iterates over a stream without marking where a task
ends. No data set is copied; see `hebbkern.continual.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern.continual.tasks import (
    BATCH_SIZE,
    PERMUTATION,
    REMOVAL,
    Task,
    check_classes,
    check_data,
    check_whole,
    generator_for,
)

__all__ = ["DHP_COUNTS", "Task", "imbalanced", "mixture", "permuted", "relabel", "split", "unbounded"]

# Table 2 of DHP Softmax (appendix A.2): training images of MNIST of each class (row) in each task (column).
# Task 4 sums to 31,150 here, but to 31,120 in the last row of the table; the other columns agree.
DHP_COUNTS = (
    (4459, 3780, 1847, 3820, 5867, 122, 1013, 4608, 908, 3933),
    (1872, 3637, 1316, 6592, 1934, 1774, 5533, 2569, 831, 886),
    (2391, 4125, 2434, 4966, 5245, 4593, 4834, 4432, 3207, 3555),
    (4433, 1907, 1682, 278, 3027, 2315, 5761, 3293, 2545, 3749),
    (186, 2728, 2002, 151, 1435, 5829, 1284, 3910, 4593, 927),
    (4292, 2472, 2924, 1369, 4094, 4858, 2265, 3289, 1134, 1413),
    (2339, 3403, 4771, 5569, 1414, 2851, 2921, 4074, 336, 3993),
    (4717, 3090, 4800, 2574, 4086, 1065, 3520, 4705, 5400, 3650),
    (3295, 5493, 76, 4184, 2034, 4672, 682, 196, 2409, 1709),
    (2625, 3880, 4735, 1647, 2645, 3921, 901, 4546, 4649, 2045),
)


def split(x: Tensor, labels: Tensor, tasks: int = 5, *, classes: Sequence[int] | None = None) -> list[Task]:
    """Divides the classes of a data set among tasks: Split MNIST is five tasks of two digits each.

    With as many tasks as classes, one class follows another. Within a task the samples keep the order of the data set.

    Args:
        x: [n, ...].
        labels: int64 [n].
        tasks: number of tasks, a divisor of the number of classes.
        classes: the classes in the order of the stream, others are left out; None for all, sorted.

    Raises:
        ValueError: x or labels do not fit, a class occurs twice or has no samples, or tasks does not divide the
            classes.
    """
    check_data(x, labels)
    check_whole("tasks", tasks, 1)
    order = check_classes(classes, labels)
    size, rest = divmod(len(order), tasks)
    if rest or not size:
        raise ValueError(f"hebbkern.continual: tasks must divide the number of classes ({len(order)}), got {tasks}")
    stream = []
    for group in (order[first : first + size] for first in range(0, len(order), size)):
        indices = torch.isin(labels, torch.tensor(group, device=labels.device)).nonzero()[:, 0]
        stream.append(Task(x, labels[indices], indices.cpu(), group, name="/".join(map(str, group))))
    return stream


@dataclass(frozen=True, eq=False)
class Permutation:
    """Permutes the inputs of each sample, [B, ...] flattened to [B, N], by `order`, int64 [N]; the shape stays."""

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.order.to(x.device)).view(x.shape)


def permuted(x: Tensor, labels: Tensor, tasks: int = 10, *, seed: int = 0, identity_first: bool = False) -> list[Task]:
    """Gives each task all samples with their inputs in another order (Goodfellow et al. 2013): Permuted MNIST.

    Args:
        x: [n, ...]; all inputs of a sample are permuted, also across the channels of an image.
        labels: int64 [n].
        tasks: number of tasks.
        seed: of the permutations; that of task t depends on (seed, t) and the number of inputs alone.
        identity_first: whether the first task keeps the order of the data.

    Raises:
        ValueError: x or labels do not fit, tasks is below 1, or seed is below 0.
    """
    check_data(x, labels)
    check_whole("tasks", tasks, 1)
    check_whole("seed", seed, 0)
    indices, classes = torch.arange(len(x), device="cpu"), check_classes(None, labels)
    stream = []
    for t in range(tasks):
        order = torch.randperm(x[0].numel(), generator=generator_for(seed, PERMUTATION, t), device="cpu").to(x.device)
        transform = None if t == 0 and identity_first else Permutation(order)
        name = "identity" if transform is None else f"permutation {t + 1}"
        stream.append(Task(x, labels, indices, classes, transform, name))
    return stream


@dataclass(frozen=True)
class CenterPad:
    """Pads images [B, H, W] or [B, C, H, W] with zeros to [B, channels, size, size]; grey images are repeated."""

    size: int
    channels: int

    def __call__(self, x: Tensor) -> Tensor:
        x = (x.unsqueeze(1) if x.ndim == 3 else x).expand(-1, self.channels, -1, -1)
        height, width = x.shape[2:]
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return F.pad(x, (left, self.size - width - left, top, self.size - height - top))


def mixture(sets: Iterable[tuple[str, Tensor, Tensor]], *, size: int = 32, channels: int = 3) -> list[Task]:
    """Makes each data set a task, with images of one shape: MNIST, notMNIST, FashionMNIST, SVHN, CIFAR-10.

    The benchmark of Ritter et al. 2018. Each batch of smaller images gets a border of zeros, and grey images are
    repeated in every channel. Labels stay, so that those of different data sets collide; for a single head use
    `relabel(stream, shared=True)`.

    Args:
        sets: (name, x [n, H, W] or [n, 1 or channels, H, W], labels int64 [n]) for each data set.
        size: height and width of the result, at least those of all images.
        channels: of the result.

    Raises:
        ValueError: there are no sets, x or labels do not fit, or an image has another shape.
    """
    check_whole("size", size, 1)
    check_whole("channels", channels, 1)
    stream = []
    for name, x, labels in sets:
        check_data(x, labels)
        shape = x.shape[1:] if x.ndim == 4 else (1, *x.shape[1:])
        if len(shape) != 3 or shape[0] not in (1, channels) or max(shape[1:]) > size:
            wanted = f"[n, H, W] or [n, 1 or {channels}, H, W] with H and W at most {size}"
            raise ValueError(f"hebbkern.continual: images of {name!r} must be {wanted}, got {list(x.shape)}")
        transform = None if x.shape[1:] == (channels, size, size) else CenterPad(size, channels)
        stream.append(Task(x, labels, torch.arange(len(x), device="cpu"), check_classes(None, labels), transform, name))
    if not stream:
        raise ValueError("hebbkern.continual: sets must hold at least one data set, got none")
    return stream


def imbalanced(
    stream: Iterable[Task],
    counts: Sequence[Sequence[int]] | None = None,
    *,
    removal: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
) -> list[Task]:
    """Removes samples, another share of each class in each task; the order of the others stays.

    Imbalanced Permuted MNIST (DHP Softmax, appendix A.2) is `imbalanced(permuted(x, labels))`: each sample is removed
    with a probability that is drawn from U(0, 1) for its class and task. With the numbers that the paper drew it is
    `imbalanced(permuted(x, labels), DHP_COUNTS)`.

    Args:
        stream: tasks with equally many classes.
        counts: [classes, tasks], the number of samples to keep of class c of task t, in the order of `task.classes`.
        removal: [classes, tasks], instead of counts, the probability of removal, from 0 to 1.
        seed: of the samples that are removed, and of the probabilities if neither counts nor removal is given. A class
            of a task draws from (seed, task, class) alone: the permutations do not change which samples are missing.

    Raises:
        ValueError: both counts and removal are given, a table has another shape, counts are not whole numbers or
            exceed the samples, removal is not from 0 to 1, or a task keeps no sample.
    """
    stream = list(stream)
    check_whole("seed", seed, 0)
    if counts is not None and removal is not None:
        raise ValueError("hebbkern.continual: removal must be None where counts are given, got both")
    count_table, removal_table = _table("counts", counts, stream), _table("removal", removal, stream)
    thinned = []
    for t, task in enumerate(stream):
        keep = torch.zeros(task.samples, dtype=torch.bool, device="cpu")
        labels = task.labels.cpu()
        for c, label in enumerate(task.classes):
            positions = (labels == label).nonzero()[:, 0]
            generator = generator_for(seed, REMOVAL, t, c)
            probability = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
            draws = torch.rand(len(positions), generator=generator, dtype=torch.float64, device="cpu")
            if count_table is not None:
                count = int(count_table[c, t])
                if count > len(positions):
                    wanted = f"counts of class {label} in {task.name!r} must be at most {len(positions)}"
                    raise ValueError(f"hebbkern.continual: {wanted}, the number of its samples, got {count}")
                keep[positions[draws.argsort(stable=True)[:count]]] = True
            else:
                keep[positions] = draws >= (probability if removal_table is None else removal_table[c, t])
        kept = keep.nonzero()[:, 0]
        thinned.append(replace(task, indices=task.indices[kept], labels=task.labels[kept.to(task.labels.device)]))
    return thinned


def _table(name: str, entries: Any, stream: list[Task]) -> Tensor | None:
    """`entries` as a tensor [classes, tasks]: whole numbers of at least 0 for counts, else numbers from 0 to 1."""
    if entries is None:
        return None
    table = torch.as_tensor(entries)
    rows = sorted({len(task.classes) for task in stream})
    if len(rows) != 1 or table.shape != (rows[0], len(stream)):
        sizes = " or ".join(map(str, rows))
        wanted = f"a row for each class of a task ({sizes}), a column for each task ({len(stream)})"
        raise ValueError(f"hebbkern.continual: {name} must have {wanted}, got {list(table.shape)}")
    if name == "counts" and (table.is_floating_point() or table.min() < 0):
        raise ValueError(f"hebbkern.continual: counts must be whole numbers of at least 0, got {table.tolist()}")
    if name == "removal" and not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"hebbkern.continual: removal must be probabilities from 0 to 1, got {table.tolist()}")
    return table


def relabel(stream: Iterable[Task], *, shared: bool = False, like: Iterable[Task] | None = None) -> list[Task]:
    """Renumbers the labels from 0, in the order of each task's classes.

    Args:
        stream: tasks.
        shared: False starts at 0 in each task, for one head per task. True goes on from task to task, for one head in
            which equal labels of two tasks are two classes.
        like: a stream whose classes are numbered instead: that of the training data, if test data may lack a class.

    Raises:
        ValueError: `like` has another number of tasks, or lacks a class.
    """
    stream = list(stream)
    numbered = stream if like is None else list(like)
    if len(numbered) != len(stream):
        raise ValueError(f"hebbkern.continual: like must have as many tasks ({len(stream)}), got {len(numbered)}")
    first, renamed = 0, []
    for task, other in zip(stream, numbered, strict=True):
        missing = set(task.labels.unique().tolist()) - set(other.classes)
        if missing:
            raise ValueError(f"hebbkern.continual: classes must hold all labels of {task.name!r}, got no {missing}")
        names, order = torch.tensor(other.classes, device=task.labels.device).sort()
        labels = order[torch.searchsorted(names, task.labels)] + first
        renamed.append(replace(task, labels=labels, classes=tuple(range(first, first + len(names)))))
        first += len(names) if shared else 0
    return renamed


def unbounded(
    stream: Iterable[Task], batch_size: int = BATCH_SIZE, *, partial: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterates once over all tasks in order, in batches (x, labels) that may span two tasks.

    Args:
        stream: tasks whose transformed samples have one shape.
        batch_size: samples in a batch.
        partial: whether a last batch with fewer samples is included.

    Raises:
        ValueError: batch_size is below 1.
    """
    check_whole("batch_size", batch_size, 1)
    return _unbounded(stream, batch_size, partial)


def _unbounded(stream: Iterable[Task], batch_size: int, partial: bool) -> Iterator[tuple[Tensor, Tensor]]:
    parts: list[tuple[Tensor, Tensor]] = []
    missing = batch_size
    for task in stream:
        start = 0
        while start < task.samples:
            parts.append(task[start : start + missing])
            start, missing = start + len(parts[-1][0]), missing - len(parts[-1][0])
            if missing == 0:
                yield _joined(parts)
                parts, missing = [], batch_size
    if parts and partial:
        yield _joined(parts)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The parts as one batch; a single part stays a view."""
    return (
        parts[0] if len(parts) == 1 else (torch.cat([x for x, _ in parts]), torch.cat([labels for _, labels in parts]))
    )
