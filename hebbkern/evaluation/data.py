"""Labelled data in the two forms that every evaluation takes, and features in memory: float32, bfloat16 or not at all.

A source of data is a pair of tensors (x, labels), or anything that yields such pairs, batch by batch, as a DataLoader
and `hebbkern.training.Batches` do (Batches leaves out what does not fill a whole batch unless told otherwise).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

MEMORY = 2**31  # bytes that features may take: 2 GiB
SIZE = 256  # samples a forward pass


def is_pair(source) -> bool:
    return isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(x, Tensor) for x in source)


def batches(source, size: int = SIZE) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, labels) batch by batch, in the source's own order. ValueError where labels are missing or do not fit."""
    if not is_pair(source) and not isinstance(source, Iterable):
        kind = type(source).__name__
        raise ValueError(f"hebbkern.evaluation: data must be a pair (x, labels) or batches of such, got {kind}")
    for x, labels in [source] if is_pair(source) else source:
        if not isinstance(labels, Tensor) or labels.shape != x.shape[:1]:
            got = list(labels.shape) if isinstance(labels, Tensor) else labels
            raise ValueError(f"hebbkern.evaluation: labels must be one a sample ({len(x)}), got {got}")
        yield from zip(x.split(size), labels.long().split(size), strict=True)


def storage(numbers: int, memory: int) -> torch.dtype | None:
    """float32 where so many numbers fit into `memory` bytes, else bfloat16 where those do, else None."""
    fitting = (dtype for dtype in (torch.float32, torch.bfloat16) if numbers * dtype.itemsize <= memory)
    return next(fitting, None)


class Store:
    """Features of several layers, gathered batch by batch: float32 while all fit into `memory`, then bfloat16.

    Args:
        memory: bytes. count: how many samples will come, if known; the choice is then made with the first of them.
    """

    def __init__(self, memory: int, count: int | None = None):
        self.memory, self.count, self.dtype = memory, count, torch.float32
        self.parts: dict[str, list[Tensor]] = {}
        self.labels: list[Tensor] = []

    def add(self, features: dict[str, Tensor], labels: Tensor) -> None:
        """Raises ValueError, saying how much it would take, where not even bfloat16 fits."""
        self.labels.append(labels)
        samples = max(self.count or 0, sum(map(len, self.labels)))
        numbers = samples * sum(tensor[0].numel() for tensor in features.values())
        dtype = storage(numbers, self.memory)
        if dtype is None:
            raise ValueError(
                f"hebbkern.evaluation: memory must hold the features in bfloat16 ({2 * numbers} bytes), "
                f"got {self.memory}; pool them, or take fewer layers or samples"
            )
        for name, tensor in features.items():
            parts = self.parts.setdefault(name, [])
            if dtype is not self.dtype:
                parts[:] = [part.to(dtype) for part in parts]
            parts.append(tensor.to(dtype))
        self.dtype = dtype

    def take(self) -> tuple[dict[str, Tensor], Tensor]:
        """Everything, joined; ValueError where nothing came. The store is empty afterwards."""
        if not self.labels:
            raise ValueError("hebbkern.evaluation: data must hold at least one batch, got none")
        joined = {name: torch.cat(self.parts.pop(name)) for name in list(self.parts)}
        return joined, torch.cat(self.labels)
