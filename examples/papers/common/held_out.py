"""Data sets whose test part each row of a table reads once a seed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class HeldOutData:
    """Training samples, and test samples that `test` hands out once for each row and seed.

    Args:
        x, x_test: samples [n, ...].
        y, y_test: labels, int64 [n].
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    opened: list[tuple] = field(default_factory=list, kw_only=True)

    def test(self, *row_and_seed) -> tuple[Tensor, Tensor]:
        """Returns the test samples and labels for a row, given by one or more names, and a seed.

        Raises:
            AssertionError: the row has read the test set with this seed before.
        """
        *row, seed = row_and_seed
        assert row_and_seed not in self.opened, f"{' '.join(row)} has seen the test set with seed {seed}"
        self.opened.append(row_and_seed)
        return self.x_test, self.y_test
