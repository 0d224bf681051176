"""What a rule computes, as data: the two specifications that the fused operators execute.

The fields of a specification are arguments of its operator, in the order of the operator's schema, which is made from
them (``schema_of``): they are spelt out once, here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Self, get_type_hints

import torch
from torch import Tensor

from hebbkern.checks import result_dtype

SCHEMA_TYPES = {int: "int", float: "float", bool: "bool", str: "str", tuple[float, ...]: "float[]"}


class WinnerSpecification(NamedTuple):
    """A rule in which each patch teaches its winners, or the neuron that its label names.

    Patch b, unless it is blank (see `hebbkern.ops.compete`), teaches its winner of rank r with the coefficient
    c_br = coefficients[r], times max(response, 0) if `by_response`. The update is Δ_j = Σ c x − decay_j w_j with
    decay_j = Σ c, or Σ c · response if `decay_by_response`; Δ_j is divided by decay_j if `average`.

    Attributes:
        k: winners of a patch, 1 to min(64, neurons).
        p: Lebesgue exponent of the response, at least 1; 2 with cosine.
        cosine: the response is the cosine of patch and weight.
        coefficients: k numbers, one a rank; a rank of coefficient 0 teaches no neuron.
        by_response: the coefficient is multiplied by the response where that is positive, else by 0.
        decay_by_response: the decay sums coefficient · response.
        average: divide by the decay; a neuron of decay 0 does not move.
        normalise: as for `hebbkern.ops.apply_`.
    """

    k: int = 1
    p: float = 2.0
    cosine: bool = False
    coefficients: tuple[float, ...] = (1.0,)
    by_response: bool = False
    decay_by_response: bool = False
    average: bool = False
    normalise: str = "none"

    @classmethod
    def of(cls, arguments: tuple) -> tuple[Self, tuple]:
        """The specification that begins `arguments` of the operator, and the rest of them."""
        return cls(*arguments[: len(cls._fields)]), arguments[len(cls._fields) :]


class DenseSpecification(NamedTuple):
    """A rule in which every patch teaches every neuron by the neuron's own activity y = f(w·x).

    Attributes:
        activation: f, "linear", "relu", "tanh" or "softmax" (over the neurons).
        decay: "triangular" (Sanger), "diagonal" (Oja), "activity" (instar) or "none" (Hebb), see
            `hebbkern.ops.dense_update`.
        temperature: of the softmax, above 0.
        normalise, rate_power: as for `hebbkern.ops.apply_`.
    """

    activation: str = "linear"
    decay: str = "none"
    temperature: float = 1.0
    normalise: str = "none"
    rate_power: float = 0.0

    @property
    def fused(self) -> bool:
        """Whether `hebbkern.ops.dense_step_` executes the whole step."""
        return self.activation != "softmax" and self.normalise == "none" and self.rate_power == 0


def schema_of(specification: type[NamedTuple] | Any, *names: str) -> str:
    """Fields of a specification as arguments of a torch schema; all of them unless `names` are given."""
    types = get_type_hints(specification)
    return ", ".join(f"{SCHEMA_TYPES[types[name]]} {name}" for name in names or specification._fields)


def targets_of_labels(labels: Tensor, groups: int, neurons: int) -> Tensor:
    """[groups, P]: the neuron of the group that each patch teaches, -1 where its label [P] is another group's.

    A label that is no neuron stays in one of the groups, for the operators to refuse.
    """
    own = (labels // (neurons // groups)).clamp(0, groups - 1)
    return labels.expand(groups, -1).masked_fill(own != torch.arange(groups, device=labels.device)[:, None], -1)


KEPT = 256  # tensors of coefficients: of one values, dtype and device each; the least recently used goes


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Coefficients that are the same in every batch, [k], in the result dtype and on the device of `like`.

    The tensor is made once and kept, except while torch.compile traces.
    """
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return torch.tensor(values, dtype=result_dtype(like.dtype), device=like.device)
    return _kept(values, result_dtype(like.dtype), like.device)


@functools.lru_cache(maxsize=KEPT)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
