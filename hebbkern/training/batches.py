"""Batches in a seeded order that can start anywhere, so that an interrupted training goes on exactly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Batches:
    """Tensors cut into batches, in an order drawn anew for each epoch from (seed, epoch) alone.

    Iterating gives the rest of the epoch that `seek` chose, as pairs (x, labels), labels None where none are given.
    What is left over after the last whole batch waits for another epoch; fewer samples than `size` are one batch.

    Args:
        x: [n, ...]. labels: [n] or None. size: samples a batch. seed: of the order.
    """

    def __init__(self, x: Tensor, labels: Tensor | None = None, *, size: int = 100, seed: int = 0):
        if len(x) == 0:
            raise ValueError("hebbkern.training: x must hold at least one sample, got none")
        if labels is not None and len(labels) != len(x):
            raise ValueError(f"hebbkern.training: labels must be one a sample ({len(x)}), got {len(labels)}")
        if size < 1:
            raise ValueError(f"hebbkern.training: size must be at least 1, got {size}")
        self.x, self.labels, self.size, self.seed = x, labels, min(size, len(x)), seed
        self.seek(0)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.x) // self.size

    def seek(self, iteration: int) -> None:
        """Lets the next iterator start after `iteration` batches, counted from the beginning of the training."""
        self.epoch, self.first = divmod(iteration, len(self))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.x), generator=generator)
        for start in range(self.first * self.size, len(self) * self.size, self.size):
            chosen = order[start : start + self.size].to(self.x.device)
            yield self.x[chosen], None if self.labels is None else self.labels[chosen]
