"""Data whose test set each row of a table may see once a seed: what all examples are held to."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Sets:
    """Samples and labels, to learn from and to test with."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    opened: list[tuple] = field(default_factory=list, kw_only=True)

    def test(self, *who) -> tuple[Tensor, Tensor]:
        """The test set, for a row by its name or names, and the seed."""
        *row, seed = who
        assert who not in self.opened, f"{' '.join(row)} has seen the test set with seed {seed}"
        self.opened.append(who)
        return self.x_test, self.y_test
