"""What a case of the benchmark is, and the inputs that its implementations share.

Every case has "hebbkern", "eager" and, where NumPy has the computation, "numpy"; they compute the same result. A case
may add the other formulations of peers.py ("reorder", "compiled reorder", ...) and "unscreened", which is hebbkern
without bf16 screening. "forward" is the bare forward pass, the measure of all others: a matmul or a channels-last
convolution on the same inputs, with its weight gradient for rules in which every neuron learns from every patch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from hebbkern.benchmark import baselines

Run = Callable[[], Any]
Shape = tuple[int, ...]


class Implementation(NamedTuple):
    """A function to time, and a function from its return value to the tensor that is compared."""

    run: Run
    result: Callable[[Any], Tensor] = torch.as_tensor


@dataclass(frozen=True)
class Case:
    """One computation on fixed shapes, in several implementations.

    Args:
        stem: the operator, or "rules".
        name: what is computed on which shapes.
        build: makes the inputs and returns {name: Implementation}.
        forward_pass: what the bare forward pass of this case is, in words.
        tolerance: how far a first result may be from NumPy's, in parts of the norm of the latter.
        limits: "numpy": how many times as fast as NumPy hebbkern must be; "forward" and "unscreened": how many times as
            long as the bare forward pass hebbkern, or hebbkern without screening, may take.
        peers: whether `hebbkern bench --peers` measures the case.
        share: {name: the part of the work that this implementation does}; its time is divided by that part.
        rehearsal: a smaller `build` whose results are compared where those of `build` take too long.
    """

    stem: str
    name: str
    build: Callable[[], dict[str, Implementation]]
    forward_pass: str
    tolerance: float = 1e-3
    limits: dict[str, float] = field(default_factory=dict)
    peers: bool = False
    share: dict[str, float] = field(default_factory=dict)
    rehearsal: Callable[[], dict[str, Implementation]] | None = None

    @property
    def id(self) -> str:
        return f"{self.stem}: {self.name}"


class Inputs:
    """The inputs of a case: x and w for hebbkern and the forward pass, plain and W for eager, x64 and W64 for NumPy."""

    def __init__(self, x: Tensor, w: Tensor):
        self.x, self.w = x, w
        self.plain, self.W = x.contiguous(), flat(w)
        self.x64, self.W64 = self.plain.double().numpy(), self.W.double().numpy()

    def X(self) -> Tensor:
        """The patches [P, N] of the eager implementation."""
        return baselines.eager_patches(self.plain, self.w.shape[2:])

    def X64(self) -> baselines.Array:
        """The patches [P, N] of the NumPy implementation."""
        return baselines.numpy_patches(self.x64, self.w.shape[2:])


def images(*shape: int) -> Tensor:
    """Uniform inputs between 0 and 1, channels-last where they are images."""
    return _channels_last(torch.rand(shape, generator=torch.Generator().manual_seed(1)))


def weights(*shape: int, scale: float | None = None) -> Tensor:
    """Normal weights, by default of standard deviation 1 / sqrt(inputs)."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return _channels_last(w * (w[0].numel() ** -0.5 if scale is None else scale))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def forward(x: Tensor, w: Tensor) -> Run:
    """The bare forward pass of winner rules."""
    return (lambda: F.conv2d(x, w)) if x.dim() == 4 else (lambda: x @ w.T)


def forward_and_weight_gradient(x: Tensor, w: Tensor) -> Run:
    """The bare forward pass of dense rules."""
    if x.dim() == 2:
        return lambda: (x @ w.T).T @ x
    return lambda: conv2d_weight(x, w.shape, F.conv2d(x, w))


BARE = {"forward": forward, "forward + weight gradient": forward_and_weight_gradient}


def flat(result: Any) -> Tensor:
    """A copy of a result as a tensor [K, N] in plain order, or in its own shape where it has no kernel axes."""
    tensor = torch.as_tensor(result)
    return tensor.contiguous().flatten(1).clone() if tensor.dim() == 4 else tensor.clone()


def in_place(step: Callable[[Any], Any], w: Any) -> Implementation:
    """The implementation that calls step(w), which changes w; how far w has moved is compared."""
    start = flat(w)
    return Implementation(lambda: step(w), lambda _: flat(w) - start)


def within(context: Callable[[], AbstractContextManager], step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` inside a context that every call enters anew."""

    def inside(*arguments: Any) -> Any:
        with context():
            return step(*arguments)

    return inside


def copy(w: Tensor) -> Tensor:
    """A copy with the same memory format."""
    return w.clone(memory_format=torch.preserve_format)


def shapes(x_shape: Shape, w_shape: Shape) -> str:
    """As in 1024 x 784 x 2000, or 64x3x32x32 to 96 (5x5)."""
    if len(x_shape) == 2:
        return f"{x_shape[0]} x {x_shape[1]} x {w_shape[0]}"
    return f"{'x'.join(map(str, x_shape))} to {w_shape[0]} ({w_shape[2]}x{w_shape[3]})"
