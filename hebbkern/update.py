"""Update: what one batch taught a layer, before it is applied. Updates add up over micro-batches and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(eq=False, slots=True)
class Update:
    """The sums that a rule gathered over a batch of patches.

    Applied as Δ_j = (sum_j − decay_j·w_j) / denominator_j, see `hebbkern.ops.apply_`. All three are sums over patches,
    hence `update(a) + update(b)` is the update of both batches (up to the order of summation).

    Attributes:
        sum: [K, N] or [K, C, kh, kw], float32 (float64 for float64 weights): Σ coefficient · patch.
        decay: [K], Σ coefficient (or Σ coefficient · response); None where the sum already holds the decay.
        denominator: [K] or [1], what the step is averaged by; None where nothing is averaged.
    """

    sum: Tensor
    decay: Tensor | None = None
    denominator: Tensor | None = None

    def __add__(self, other: Update) -> Update:
        """The update of both batches. Raises ValueError when the two are not of one rule and one layer."""
        if not isinstance(other, Update):
            return NotImplemented
        if _layout(self) != _layout(other):
            raise ValueError(
                f"hebbkern.Update: other must be of the same rule and layer {_layout(self)}, got {_layout(other)}"
            )
        decay = _plus(self.decay, other.decay)
        shared = self.denominator is self.decay and other.denominator is other.decay
        return Update(self.sum + other.sum, decay, decay if shared else _plus(self.denominator, other.denominator))

    def __radd__(self, other) -> Update:
        """0 + update, with which `sum` begins."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def to(self, dtype: torch.dtype) -> Update:
        """The same with every part in this dtype; `self` where that changes nothing."""
        if self.sum.dtype == dtype:
            return self
        decay = None if self.decay is None else self.decay.to(dtype)
        if self.denominator is self.decay:
            return Update(self.sum.to(dtype), decay, decay)
        return Update(self.sum.to(dtype), decay, None if self.denominator is None else self.denominator.to(dtype))

    def all_reduce(self, group: ProcessGroup | None = None) -> Update:
        """Sum this update over all processes of `group`, in one collective that every process must call.

        Every process gets the same bits, so that equal weights stay equal. `self` is not changed.

        Args:
            group: a torch.distributed group; None for the default one.

        Raises:
            RuntimeError: torch.distributed has not been initialised.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError(
                "hebbkern.Update.all_reduce: torch.distributed must be initialised (init_process_group), got no group"
            )
        shared = self.denominator is self.decay
        parts = (self.sum, self.decay, None if shared else self.denominator)
        present = [part for part in parts if part is not None]
        total = torch.cat([part.reshape(-1) for part in present])
        torch.distributed.all_reduce(total, group=group)
        pieces = iter(total.split([part.numel() for part in present]))
        sum, decay, denominator = (part if part is None else next(pieces).view(part.shape) for part in parts)
        assert sum is not None
        return Update(sum, decay, decay if shared else denominator)


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one + other


def _layout(update: Update) -> list:
    """The shape of each part, for comparison and for messages."""
    parts = (update.sum, update.decay, update.denominator)
    return [None if part is None else list(part.shape) for part in parts]
