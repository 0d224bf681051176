"""KWinners: the activation that keeps the k highest entries, with boosting against neurons that never win."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hebbkern import ops
from hebbkern.checks import check_tensor, fail


class KWinners(nn.Module):
    """Keeps the k highest entries along `dim` and sets the others to zero; of equal entries the lower index wins.

    The sparse representation of HebbCL (equation 1). Gradients pass to the winners only, and not to a winner of exactly
    zero. Deterministic.

    Boosting lets neurons win that rarely do (Ahmad and Scheinkman, How can we be so dense?, 2019): winners are the k
    highest of y_i exp(strength (a − d_i)), with d_i the duty cycle of neuron i, the share of positions in which it won,
    and a the share k / neurons that all would have. The output is y, not the boosted y. Training mode moves the duty
    cycles, d ← d + (share in this batch − d) / period; evaluation mode boosts by those learnt. Negative entries are
    boosted downwards: put a ReLU before it.

    Args:
        k: number of entries to keep, at least 1.
        dim: the dimension along which entries compete; 1 is that of neurons or channels.
        percent_on: share of the entries to keep, above 0 and at most 1, in place of k; at least one is kept.
        eval_k: the number in evaluation mode, e.g. 1.5 k; None for the same as in training.
        boost_strength: strength of boosting, at least 0; 0 for none, 1 to 2 is usual.
        neurons: the number of entries along `dim`, which boosting needs.
        duty_cycle_period: batches over which duty cycles are averaged, at least 1.

    Attributes:
        duty_cycle: float32 [neurons], a buffer in the state dict; None without boosting. Of several processes each has
            its own, as running statistics of batch norm are.

    Raises:
        ValueError: an argument is out of range, not exactly one of k and percent_on is given, or in the forward pass k
            is larger than the dimension or `neurons` is not its size.
    """

    duty_cycle: Tensor | None

    def __init__(
        self,
        k: int | None = None,
        dim: int = 1,
        *,
        percent_on: float | None = None,
        eval_k: int | None = None,
        boost_strength: float = 0.0,
        neurons: int | None = None,
        duty_cycle_period: int = 1000,
    ) -> None:
        super().__init__()
        if percent_on is None or k is not None:
            _check_whole("k", k)
        if percent_on is not None:
            if k is not None:
                fail("KWinners", "k", "be None where percent_on is given", k)
            _check_number("percent_on", percent_on, "above 0 and at most 1", lambda share: 0 < share <= 1)
        if eval_k is not None:
            _check_whole("eval_k", eval_k)
        _check_number("boost_strength", boost_strength, "finite and at least 0", lambda beta: 0 <= beta < math.inf)
        _check_whole("duty_cycle_period", duty_cycle_period)
        self.k, self.dim, self.percent_on, self.eval_k = k, dim, percent_on, eval_k
        self.boost_strength, self.neurons, self.duty_cycle_period = boost_strength, neurons, duty_cycle_period
        if boost_strength:
            _check_whole("neurons", neurons)
        self.register_buffer("duty_cycle", torch.empty(neurons or 0) if boost_strength else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the duty cycles to the share that all neurons would have."""
        if self.duty_cycle is not None:
            self.duty_cycle.fill_(self._number(len(self.duty_cycle)) / len(self.duty_cycle))

    def forward(self, y: Tensor) -> Tensor:
        """y with all but the k highest entries along `dim` set to zero, of y's shape and dtype."""
        k = self.k if self.training or self.eval_k is None else self.eval_k
        rate = 1 / self.duty_cycle_period if self.training else 0.0
        return keep_winners(y, k, self.percent_on, self.dim, self.duty_cycle, self.boost_strength, rate)

    def _number(self, entries: int) -> int:
        return number(self.k, self.percent_on, entries)

    def extra_repr(self) -> str:
        named = {"percent_on": self.percent_on, "eval_k": self.eval_k, "boost_strength": self.boost_strength or None}
        named = {"k": self.k, "dim": self.dim, **named}
        return ", ".join(f"{name}={value}" for name, value in named.items() if value is not None)


def number(k: int | None, percent_on: float | None, entries: int) -> int:
    """How many of the entries are kept."""
    return max(1, round((percent_on or 0) * entries)) if k is None else k


@torch.fx.wrap  # torch.fx records the call: a proxy has neither a device nor requires_grad
def keep_winners(
    y: Tensor,
    k: int | None,
    percent_on: float | None,
    dim: int,
    duty_cycle: Tensor | None,
    strength: float,
    rate: float,
) -> Tensor:
    """The forward pass of `KWinners`; `rate` > 0 moves the duty cycles."""
    check_tensor("KWinners", "y", y)
    if duty_cycle is None:
        kept = ops.kwinners(y.detach(), number(k, percent_on, y.shape[dim]), dim)
        return torch.where(kept != 0, y, 0) if y.requires_grad else kept
    entries = y.shape[dim]
    if entries != len(duty_cycle):
        fail("KWinners", "y", f"have the {len(duty_cycle)} neurons along dim {dim}", entries)
    k = number(k, percent_on, entries)
    boost = torch.exp(strength * (k / entries - duty_cycle)).to(y.dtype)
    on = ops.kwinners(y.detach().movedim(dim, -1) * boost, k).movedim(-1, dim) != 0
    if rate:
        duty_cycle.lerp_(on.movedim(dim, 0).flatten(1).to(duty_cycle.dtype).mean(1), rate)
    return torch.where(on, y, 0)


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        fail("KWinners", name, "be a whole number of at least 1", value)


def _check_number(name: str, value: Any, wanted: str, test: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not test(float(value)):
        fail("KWinners", name, f"be {wanted}", value)
