"""Room for neurons: a weight that grows by rows without being copied at each step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

STARTS = ("uniform", "normal", "samples")
NORMS = {"row_max": float("inf"), "row_l2": 2.0}  # what a row is divided by, as an order of the norm


class Rows:
    """The start of every neuron that a weight [K, N] may ever hold, laid out in room that doubles.

    Section 0 holds the first `least` rows, each further one as many as all before it. The rows of a section are drawn
    from (seed, section) alone: where a row starts depends on no data, and on no other growth, so that a model resumed
    from its weights grows the same rows.
    """

    def __init__(self, inputs: int, least: int, most: int | None, start: str, normalise: str, seed: int):
        self.inputs, self.least, self.most = inputs, least, most
        self.start, self.normalise, self.seed = start, normalise, seed

    def laid_out(self, old: Tensor, count: int) -> Tensor:
        """Room [capacity, N] for at least `count` rows; the first are those of `old` [K, N], the others starts."""
        edges = [0, self.least]
        while edges[-1] < count:
            edges.append(2 * edges[-1])
        if self.most is not None:
            edges[-1] = min(edges[-1], self.most)
        room = old.new_empty((edges[-1], self.inputs))
        room[: len(old)] = old
        for section, (begin, end) in enumerate(pairwise(edges)):
            if end > len(old):
                drawn = self._drawn(section, end - begin).to(room)
                room[max(begin, len(old)) : end] = drawn[max(len(old) - begin, 0) :]
        return room

    def among(self, x: Tensor, count: int, width: int) -> Tensor:
        """[count, N]: rows that start on samples of x [B, N], drawn without repetition while there are enough."""
        generator, order = self._generator(width, 1), []
        while len(order) * len(x) < count:
            order.append(torch.randperm(len(x), generator=generator, device="cpu"))
        return self.normalised(x[torch.cat(order)[:count].to(x.device)])

    def normalised(self, rows: Tensor) -> Tensor:
        """rows, each divided by its norm where the rule does so; a row of zeros stays."""
        if self.normalise not in NORMS:
            return rows
        norms = torch.linalg.vector_norm(rows, NORMS[self.normalise], dim=1, keepdim=True)
        return rows / norms.where(norms > 0, 1)

    def _drawn(self, section: int, count: int) -> Tensor:
        generator = self._generator(section, 0)
        draw = torch.randn if self.start == "normal" else torch.rand
        return self.normalised(draw((count, self.inputs), generator=generator, device="cpu"))

    def _generator(self, *place: int) -> torch.Generator:
        """Of the CPU, so that every device gets the same rows."""
        words = np.random.SeedSequence((self.seed, *place)).generate_state(2)
        return torch.Generator("cpu").manual_seed(int(words[0]) << 31 ^ int(words[1]))
