"""Task: some samples of a data set, which is not copied, and a transformation of each batch of them.

A task takes 16 bytes of memory for each sample, its index and its label, whatever the size of the samples: ten
permutations of MNIST take the memory of one MNIST. A batch of neighbouring samples is a view of the data set; only
other batches are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BATCH_SIZE = 100
ORDER, PERMUTATION, REMOVAL = range(3)  # the purposes for which numbers are drawn from a seed


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled samples of a data set, in their own order; iterating yields batches (x, labels) of 100.

    `batches` yields batches of another size or order. `task[3:7]` or `task[positions]` (int64 [m]) are the samples at
    these positions as one pair, `task[:]` all of them. Samples of dtype uint8 are images and become float32 from 0 to
    1, batch by batch. If the samples of a batch are neighbours in the data set and there is no transform, the batch is
    a view, which must not be changed in place. A task has no `len`, which could mean samples or batches; use
    `task.samples` or `len(task.batches(batch_size))`.

    Args:
        x: the whole data set, [n, ...] on any device; or a map-style data set, as for torch.utils.data, whose items
            are sequences that begin with the sample, a tensor. Its items are read anew for each batch.
        labels: int64 [samples], one for each of `indices`.
        indices: int64 [samples] on the CPU, the samples of x in the order of the task.
        classes: the labels of the task, in their order. A class may have few samples or none.
        transform: a function of a batch, or None.
        name: for tables and messages.

    Raises:
        ValueError: labels and indices differ in length, an index is outside of x, or there are no samples.
    """

    x: Tensor | Any
    labels: Tensor
    indices: Tensor
    classes: tuple[int, ...]
    transform: Callable[[Tensor], Tensor] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        indices = self.indices
        if not isinstance(indices, Tensor):
            raise ValueError(f"hebbkern.continual: indices must be a tensor, got {type(indices).__name__}")
        if indices.dtype != torch.int64 or indices.ndim != 1 or indices.device.type != "cpu":
            got = f"{_name(indices.dtype)} {list(indices.shape)} on {indices.device}"
            raise ValueError(f"hebbkern.continual: indices must be int64 [samples] on the CPU, got {got}")
        if len(indices) == 0:
            raise ValueError(f"hebbkern.continual: task {self.name!r} must hold at least one sample, got none")
        least, most = indices.aminmax()
        if least < 0 or most >= len(self.x):
            raise ValueError(
                f"hebbkern.continual: indices must be from 0 to {len(self.x) - 1}, got {int(least)} to {int(most)}"
            )
        check_labels(self.labels, len(indices))

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(self.indices)

    def __getitem__(self, positions: slice | Tensor) -> tuple[Tensor, Tensor]:
        """(x, labels) of the samples at these positions of the task: a slice, or int64 [m] on the CPU."""
        x = _gather(self.x, self.indices[positions])
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        labels = self.labels[positions if isinstance(positions, slice) else positions.to(self.labels.device)]
        return x if self.transform is None else self.transform(x), labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches())

    def batches(
        self, batch_size: int = BATCH_SIZE, *, seed: int | None = None, epoch: int = 0, partial: bool = True
    ) -> Batches:
        """The batches of the task, which can be iterated repeatedly.

        Args:
            batch_size: samples in a batch; values above the number of samples mean all of them.
            seed: None keeps the order of the samples; a number shuffles them, by (seed, epoch) alone.
            epoch: see seed.
            partial: whether a last batch with fewer samples is included.

        Raises:
            ValueError: batch_size is below 1, or seed or epoch below 0.
        """
        return Batches(self, batch_size, seed, epoch, partial)


class Batches:
    """The batches (x, labels) of a task, see `Task.batches`; `len` is their number.

    `hebbkern.training.train` accepts them, and selects the order of each epoch by `seek`.
    """

    def __init__(self, task: Task, batch_size: int, seed: int | None, epoch: int, partial: bool) -> None:
        check_whole("batch_size", batch_size, 1)
        if seed is not None:
            check_whole("seed", seed, 0)
        check_whole("epoch", epoch, 0)
        self.task, self.seed, self.epoch, self.first = task, seed, epoch, 0
        self.batch_size, self.partial = min(batch_size, task.samples), partial

    def __len__(self) -> int:
        return (self.task.samples + (self.batch_size - 1 if self.partial else 0)) // self.batch_size

    def seek(self, iteration: int) -> None:
        """Makes later iterators start after `iteration` batches, counted from the beginning of epoch 0."""
        self.epoch, self.first = divmod(iteration, len(self))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = None
        if self.seed is not None:
            generator = generator_for(self.seed, ORDER, self.epoch)
            order = torch.randperm(self.task.samples, generator=generator, device="cpu")
        for batch in range(self.first, len(self)):
            positions = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield self.task[positions if order is None else order[positions]]


def _gather(x: Tensor | Any, indices: Tensor) -> Tensor:
    """The samples at `indices`: a view if they are neighbours in a tensor, otherwise a copy."""
    if not isinstance(x, Tensor):
        return torch.stack([x[index][0] for index in indices.tolist()])
    if len(indices):
        first = int(indices[0])
        if torch.equal(indices, torch.arange(first, first + len(indices), device="cpu")):
            return x[first : first + len(indices)]
    return x.index_select(0, indices.to(x.device))


def generator_for(seed: int, *purpose: int) -> torch.Generator:
    """A generator seeded by these numbers alone, each at least 0; other numbers give independent draws."""
    state = np.random.SeedSequence(int(seed), spawn_key=purpose).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError unless value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"hebbkern.continual: {name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"hebbkern.continual: {name} must be at least {least}, got {value}")


def check_labels(labels: object, samples: int) -> None:
    """Raises ValueError unless labels are int64 [samples]."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"hebbkern.continual: labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64 or labels.shape != (samples,):
        got = f"{_name(labels.dtype)} {list(labels.shape)}"
        raise ValueError(f"hebbkern.continual: labels must be int64 [{samples}], one for each sample, got {got}")


def check_data(x: object, labels: object) -> None:
    """Raises ValueError unless x is a tensor [n, ...] of at least one sample and labels are int64 [n]."""
    if not isinstance(x, Tensor):
        raise ValueError(f"hebbkern.continual: x must be a tensor, got {type(x).__name__}")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"hebbkern.continual: x must be [n, ...] with at least one sample, got {list(x.shape)}")
    check_labels(labels, len(x))


def check_classes(classes: Sequence[int] | None, labels: Tensor) -> tuple[int, ...]:
    """`classes`, by default all labels in order. Raises ValueError for a repeated class or one without samples."""
    present = labels.unique().tolist()
    if classes is None:
        return tuple(present)
    result = tuple(int(label) for label in classes)
    if len(set(result)) != len(result) or not set(result) <= set(present):
        raise ValueError(
            f"hebbkern.continual: classes must be labels that occur ({present}), each once, got {list(result)}"
        )
    return result
