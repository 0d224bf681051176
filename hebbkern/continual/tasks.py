"""Task: some samples of a data set that is kept by reference, and what is done to each batch of them.

A task costs 16 bytes a sample, its place in the data set and its label, whatever the samples are: ten permutations of
MNIST take the memory of one. Batches of neighbouring samples are views of the data set, others gather their own
samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = 100  # samples a batch, where none is asked for
ORDER, PERMUTATION, REMOVAL = range(3)  # what is drawn from a seed


@dataclass(frozen=True, eq=False)
class Task:
    """Labelled samples, in an order of their own. Iterating gives them in batches of 100, as pairs (x, labels).

    `batches` cuts them otherwise and shuffles; `task[3:7]` or `task[positions]` (int64 [m]) gives the samples at these
    positions as one pair, `task[:]` all of them. Samples of uint8 are taken for images and become float32 from 0 to 1,
    batch by batch. Where samples are neighbours in the data set and nothing is done to them, the batch is a view: to be
    read, not changed in place. There is no length, which would be samples to one reader and batches to another:
    `task.samples` and `len(task.batches(size))`.

    Args:
        x: the whole data set, [n, ...] on any device; or a map-style data set whose items begin with the sample, a
            tensor, as those of torch.utils.data do. Those are read item by item, each time anew.
        labels: int64 [samples], one for each of `indices`.
        indices: int64 [samples] on the CPU, where in x the samples are, in the order of the task.
        classes: the labels that the task is about, in their order. Samples of each may be few, or missing.
        transform: function of a batch, None for none.
        name: for tables and messages.

    Raises:
        ValueError: labels that are not one an index, indices outside of x, no samples.
    """

    x: Tensor | Any
    labels: Tensor
    indices: Tensor
    classes: tuple[int, ...]
    transform: Callable[[Tensor], Tensor] | None = None
    name: str = ""

    def __post_init__(self):
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
        return len(self.indices)

    def __getitem__(self, positions: slice | Tensor) -> tuple[Tensor, Tensor]:
        """(x, labels) of the samples at these positions of the task: a slice, or int64 [m] on the CPU."""
        rows = self.indices[positions]
        x = _rows(self.x, rows)
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        labels = self.labels[positions if isinstance(positions, slice) else positions.to(self.labels.device)]
        return x if self.transform is None else self.transform(x), labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches())

    def batches(self, size: int = SIZE, *, seed: int | None = None, epoch: int = 0, partial: bool = True) -> Batches:
        """The task cut into batches, which can be iterated as often as wanted.

        Args:
            size: samples a batch; at most as many as there are count.
            seed: None leaves the samples in their order; a number shuffles them, from (seed, epoch) alone.
            epoch: see seed.
            partial: what is left over after the last whole batch is one too.

        Raises:
            ValueError: size below 1, seed or epoch below 0.
        """
        return Batches(self, size, seed, epoch, partial)


class Batches:
    """What `Task.batches` gives: pairs (x, labels); its length is the number of batches.

    `hebbkern.training.train` takes it too, and shuffles each epoch anew by `seek`.
    """

    def __init__(self, task: Task, size: int, seed: int | None, epoch: int, partial: bool):
        check_whole("size", size, 1)
        if seed is not None:
            check_whole("seed", seed, 0)
        check_whole("epoch", epoch, 0)
        self.task, self.seed, self.epoch, self.first = task, seed, epoch, 0
        self.size, self.partial = min(size, task.samples), partial

    def __len__(self) -> int:
        return (self.task.samples + (self.size - 1 if self.partial else 0)) // self.size

    def seek(self, iteration: int) -> None:
        """Lets the next iterator start after `iteration` batches, counted from the beginning of epoch 0."""
        self.epoch, self.first = divmod(iteration, len(self))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = (
            None
            if self.seed is None
            else torch.randperm(self.task.samples, generator=drawn(self.seed, ORDER, self.epoch), device="cpu")
        )
        for batch in range(self.first, len(self)):
            positions = slice(batch * self.size, (batch + 1) * self.size)
            yield self.task[positions if order is None else order[positions]]


def _rows(x, rows: Tensor) -> Tensor:
    """The samples at `rows`: a view where they are neighbours in a tensor, otherwise a copy."""
    if not isinstance(x, Tensor):
        return torch.stack([x[row][0] for row in rows.tolist()])
    if len(rows) and torch.equal(rows, torch.arange(rows[0], rows[0] + len(rows), device="cpu")):
        return x[rows[0] : rows[0] + len(rows)]
    return x.index_select(0, rows.to(x.device))


def drawn(seed: int, *purpose: int) -> torch.Generator:
    """A generator that hangs on these numbers alone, each at least 0; other numbers give unrelated draws."""
    state = np.random.SeedSequence(int(seed), spawn_key=purpose).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_whole(name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"hebbkern.continual: {name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"hebbkern.continual: {name} must be at least {least}, got {value}")


def check_labels(labels, samples: int) -> None:
    if not isinstance(labels, Tensor):
        raise ValueError(f"hebbkern.continual: labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64 or labels.shape != (samples,):
        got = f"{_name(labels.dtype)} {list(labels.shape)}"
        raise ValueError(f"hebbkern.continual: labels must be int64, one a sample ([{samples}]), got {got}")


def check_data(x, labels) -> None:
    """A tensor with at least one sample, and int64 labels that fit: what all streams of tensors ask for."""
    if not isinstance(x, Tensor):
        raise ValueError(f"hebbkern.continual: x must be a tensor, got {type(x).__name__}")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"hebbkern.continual: x must be [n, ...] with at least one sample, got {list(x.shape)}")
    check_labels(labels, len(x))


def check_classes(classes: Sequence[int], labels: Tensor) -> tuple[int, ...]:
    """`classes` as a tuple, each once and each among the labels; by default all labels there are, sorted."""
    there = labels.unique().tolist()
    if classes is None:
        return tuple(there)
    given = tuple(int(label) for label in classes)
    if len(set(given)) != len(given) or not set(given) <= set(there):
        raise ValueError(
            f"hebbkern.continual: classes must be labels that occur ({there}), each once, got {list(given)}"
        )
    return given
