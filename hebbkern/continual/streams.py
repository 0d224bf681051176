"""Streams: data sets as lists of tasks that are learned one after the other.

    stream = streams.permuted(x, labels, tasks=10, seed=0)
    for task in stream:
        for x, labels in task.batches(64, seed=0, epoch=0):
            ...

`split` divides the classes among tasks, `permuted` gives each task an order of the inputs, `mixture` a data set.
`imbalanced` and `relabel` make another stream of one, and lists add up. The same call with the test data gives the
tasks to test on: permutations hang on the seed alone. `unbounded` runs through a stream and tells nobody where a task
ends. No data set is copied; see `hebbkern.continual.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern.continual.tasks import PERMUTATION, REMOVAL, SIZE, Task, check_classes, check_data, check_whole, drawn

__all__ = ["DHP_COUNTS", "Task", "imbalanced", "mixture", "permuted", "relabel", "split", "unbounded"]

# Table 2 of DHP Softmax (appendix A.2): how many training images of MNIST each class (row) has in each task (column).
# Task 4 sums to 31,150 here, to 31,120 in the table's last row; the other columns agree.
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
    """Divides the classes among the tasks: Split MNIST is five tasks of two digits each.

    As many tasks as classes make the stream in which one class comes after the other. Within a task the samples keep
    the order of the data set.

    Args:
        x: [n, ...]. labels: int64 [n].
        tasks: divides the number of classes.
        classes: in the order in which they come; others are left out. None for all of them, sorted.

    Raises:
        ValueError: no data, labels that do not fit, classes that do not occur or not once, or that cannot be shared
            out evenly.
    """
    check_data(x, labels)
    check_whole("tasks", tasks, 1)
    classes = check_classes(classes, labels)
    each, rest = divmod(len(classes), tasks)
    if rest or not each:
        raise ValueError(f"hebbkern.continual: tasks must divide the number of classes ({len(classes)}), got {tasks}")
    stream = []
    for own in (classes[first : first + each] for first in range(0, len(classes), each)):
        there = torch.isin(labels, torch.tensor(own, device=labels.device)).nonzero()[:, 0]
        stream.append(Task(x, labels[there], there.cpu(), own, name="/".join(map(str, own))))
    return stream


@dataclass(frozen=True, eq=False)
class Permutation:
    """Gives the inputs of each sample, [B, ...] seen as [B, N], the order `order`, int64 [N]; the shape stays."""

    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.order.to(x.device)).view(x.shape)


def permuted(x: Tensor, labels: Tensor, tasks: int = 10, *, seed: int = 0, identity_first: bool = False) -> list[Task]:
    """All samples in every task, each with its inputs in another order (Goodfellow et al. 2013): Permuted MNIST.

    Args:
        x: [n, ...]: all inputs of a sample take part, the channels of an image too. labels: int64 [n].
        tasks: how many.
        seed: of the permutations: task t's hangs on (seed, t) and the number of inputs alone.
        identity_first: leave the first task as the data are.

    Raises:
        ValueError: no data, labels that do not fit, tasks below 1, seed below 0.
    """
    check_data(x, labels)
    check_whole("tasks", tasks, 1)
    check_whole("seed", seed, 0)
    every, classes = torch.arange(len(x), device="cpu"), check_classes(None, labels)
    stream = []
    for t in range(tasks):
        order = torch.randperm(x[0].numel(), generator=drawn(seed, PERMUTATION, t), device="cpu").to(x.device)
        transform = None if t == 0 and identity_first else Permutation(order)
        stream.append(Task(x, labels, every, classes, transform, f"permutation {t + 1}" if transform else "as it is"))
    return stream


@dataclass(frozen=True)
class Canvas:
    """Images [B, H, W] or [B, C, H, W] in the middle of [B, channels, size, size], the rest 0, grey ones repeated."""

    size: int
    channels: int

    def __call__(self, x: Tensor) -> Tensor:
        x = (x.unsqueeze(1) if x.ndim == 3 else x).expand(-1, self.channels, -1, -1)
        height, width = x.shape[2:]
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return F.pad(x, (left, self.size - width - left, top, self.size - height - top))


def mixture(sets: Iterable[tuple[str, Tensor, Tensor]], *, size: int = 32, channels: int = 3) -> list[Task]:
    """A data set a task, all as images of one shape: MNIST, notMNIST, FashionMNIST, SVHN, CIFAR-10.

    The benchmark is of Ritter et al. 2018. Smaller images get a border of zeros and grey ones are repeated in every
    channel, batch by batch. Labels stay as they are, so that those of different sets collide: for one head over all of
    them, `relabel(stream, shared=True)`.

    Args:
        sets: (name, x [n, H, W] or [n, 1 or channels, H, W], labels int64 [n]) each.
        size: height and width, at least those of all images.
        channels: of the images.

    Raises:
        ValueError: no sets, no data, labels that do not fit, images of other shapes.
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
        transform = None if x.shape[1:] == (channels, size, size) else Canvas(size, channels)
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
    """The stream with fewer samples, another share of each class in each task; the order of the rest stays.

    Imbalanced Permuted MNIST (DHP Softmax, appendix A.2) is `imbalanced(permuted(x, labels))`: each sample is removed
    with a probability drawn from U(0, 1) for its class and task. `imbalanced(permuted(x, labels), DHP_COUNTS)` has the
    numbers that the paper drew.

    Args:
        stream: tasks; if rows are given, as many classes in each as rows, and as many tasks as columns.
        counts: how many samples stay: row c column t of class c of task t, in the order of `task.classes`.
        removal: in place of counts, probabilities from 0 to 1 of being removed.
        seed: which samples stay, and the probabilities where neither counts nor removal is given. A class of a task
            draws from (seed, task, class) alone, so that the same samples are missing whatever the permutations are.

    Raises:
        ValueError: both counts and removal, a table of another shape, counts that are no whole numbers or larger than
            there are, removal not from 0 to 1, a task left without any sample.
    """
    stream = list(stream)
    check_whole("seed", seed, 0)
    if counts is not None and removal is not None:
        raise ValueError("hebbkern.continual: removal must be None where counts are given, got both")
    counts = _table("counts", counts, stream)
    removal = _table("removal", removal, stream)
    thinned = []
    for t, task in enumerate(stream):
        keep = torch.zeros(task.samples, dtype=torch.bool, device="cpu")
        labels = task.labels.cpu()
        for c, label in enumerate(task.classes):
            there = (labels == label).nonzero()[:, 0]
            generator = drawn(seed, REMOVAL, t, c)
            probability = torch.rand((), generator=generator, dtype=torch.float64, device="cpu")
            fate = torch.rand(len(there), generator=generator, dtype=torch.float64, device="cpu")
            if counts is not None:
                if counts[c, t] > len(there):
                    wanted = f"counts of class {label} in {task.name!r} must be at most {len(there)}"
                    raise ValueError(f"hebbkern.continual: {wanted}, as many as there are, got {int(counts[c, t])}")
                keep[there[fate.argsort(stable=True)[: int(counts[c, t])]]] = True
            else:
                keep[there] = fate >= (probability if removal is None else removal[c, t])
        kept = keep.nonzero()[:, 0]
        thinned.append(replace(task, indices=task.indices[kept], labels=task.labels[kept.to(task.labels.device)]))
    return thinned


def _table(name: str, given, stream: list[Task]) -> Tensor | None:
    """`given` as a tensor [classes, tasks]: whole numbers of at least 0 for counts, else float64 from 0 to 1."""
    if given is None:
        return None
    table = torch.as_tensor(given)
    rows = sorted({len(task.classes) for task in stream})
    if len(rows) != 1 or table.shape != (rows[0], len(stream)):
        wanted = (
            f"a row for each class of a task ({' or '.join(map(str, rows))}), a column for each task ({len(stream)})"
        )
        raise ValueError(f"hebbkern.continual: {name} must have {wanted}, got {list(table.shape)}")
    if name == "counts" and (table.is_floating_point() or table.min() < 0):
        raise ValueError(f"hebbkern.continual: counts must be whole numbers of at least 0, got {table.tolist()}")
    if name == "removal" and not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"hebbkern.continual: removal must be probabilities from 0 to 1, got {table.tolist()}")
    return table


def relabel(stream: Iterable[Task], *, shared: bool = False, like: Iterable[Task] | None = None) -> list[Task]:
    """The stream with labels counted from 0, in the order of each task's classes.

    Args:
        stream: tasks.
        shared: False counts anew in each task (a head for each), True goes on from task to task (one head for all, in
            which equal labels of two tasks are two classes).
        like: the stream whose classes are counted: the one that is trained on, where test data may lack some.

    Raises:
        ValueError: `like` has another number of tasks, or lacks a class.
    """
    stream = list(stream)
    models = stream if like is None else list(like)
    if len(models) != len(stream):
        raise ValueError(f"hebbkern.continual: like must have as many tasks ({len(stream)}), got {len(models)}")
    first, renamed = 0, []
    for task, model in zip(stream, models, strict=True):
        missing = set(task.labels.unique().tolist()) - set(model.classes)
        if missing:
            raise ValueError(f"hebbkern.continual: classes must hold all labels of {task.name!r}, got no {missing}")
        names, order = torch.tensor(model.classes, device=task.labels.device).sort()
        labels = order[torch.searchsorted(names, task.labels)] + first
        renamed.append(replace(task, labels=labels, classes=tuple(range(first, first + len(names)))))
        first += len(names) if shared else 0
    return renamed


def unbounded(stream: Iterable[Task], size: int = SIZE, *, partial: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass through all tasks in order, without their boundaries: batches (x, labels) that may span them.

    Args:
        stream: tasks whose samples have one shape once transformed.
        size: samples a batch.
        partial: what is left over at the end is a batch too.

    Raises:
        ValueError: size below 1.
    """
    check_whole("size", size, 1)
    return _unbounded(stream, size, partial)


def _unbounded(stream: Iterable[Task], size: int, partial: bool) -> Iterator[tuple[Tensor, Tensor]]:
    held: list[tuple[Tensor, Tensor]] = []
    missing = size
    for task in stream:
        start = 0
        while start < task.samples:
            held.append(task[start : start + missing])
            start, missing = start + len(held[-1][0]), missing - len(held[-1][0])
            if missing == 0:
                yield _joined(held)
                held, missing = [], size
    if held and partial:
        yield _joined(held)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One batch of several; a single one stays the view that it is."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
