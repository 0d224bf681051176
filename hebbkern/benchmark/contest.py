"""What a case of the benchmark is, and the inputs that its contestants share.

"hebbkern", "numpy" and "eager" are in every case and compute the same thing; so do the other formulations of peers.py
("reorder", "compiled reorder", ...) and "unscreened", hebbkern with its bf16 screening off, where a case has them.
"floor" is the bare forward pass, a matmul or channels-last convolution, for the dense rules with its weight gradient:
what the cheapest network that looks at the same inputs would take.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

import hebbkern as hk
from hebbkern.benchmark import baselines


@dataclass(frozen=True)
class Case:
    """``build()`` makes the inputs and returns contestant -> (function to time, function from its result to a tensor).

    The tensors of the first calls are compared: they may differ from NumPy's by ``tolerance`` of its norm. ``limits``:
    hebbkern must be at least so many times as fast as "numpy", and take at most so many times as long as the "floor";
    "unscreened" is the same for hebbkern without screening. ``share``: contestant -> the part of the work that it does,
    its time is divided by it. ``rehearsal``: a smaller build, compared in place of one that takes too long.
    """

    stem: str
    name: str
    build: Callable[[], dict]
    floor: str
    tolerance: float = 1e-3
    limits: dict = field(default_factory=dict)
    peers: bool = False
    share: dict = field(default_factory=dict)
    rehearsal: Callable[[], dict] | None = None

    @property
    def id(self):
        return f"{self.stem}: {self.name}"


def images(*shape):
    """Inputs between 0 and 1, channels-last where they are images."""
    return _laid_out(torch.rand(shape, generator=torch.Generator().manual_seed(1)))


def weights(*shape, scale=None):
    """Normal weights, by default of standard deviation 1 / sqrt(inputs)."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return _laid_out(w * (w[0].numel() ** -0.5 if scale is None else scale))


def _laid_out(tensor):
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def forward(x, w):
    return (lambda: F.conv2d(x, w)) if x.dim() == 4 else (lambda: x @ w.T)


def forward_and_weight_gradient(x, w):
    if x.dim() == 2:
        return lambda: (x @ w.T).T @ x
    return lambda: torch.nn.grad.conv2d_weight(x, w.shape, F.conv2d(x, w))


def flat(result):
    """A contestant's result as a tensor [K, N] (or as it is, where it has no kernel), a copy in plain order."""
    tensor = torch.as_tensor(result)
    return tensor.contiguous().flatten(1).clone() if tensor.dim() == 4 else tensor.clone()


@dataclass
class Inputs:
    """The same inputs for everybody: x, w for hebbkern and the floor, plain ones for eager, float64 ones for NumPy."""

    x: torch.Tensor
    w: torch.Tensor

    def __post_init__(self):
        self.plain, self.W = self.x.contiguous(), flat(self.w)
        self.x64, self.W64 = self.plain.double().numpy(), self.W.double().numpy()

    def X(self):
        """The eager formulation's patches [P, N]."""
        return baselines.eager_patches(self.plain, self.w.shape[2:])

    def X64(self):
        """The NumPy formulation's patches [P, N]."""
        return baselines.numpy_patches(self.x64, self.w.shape[2:])

    def contest(self, hebbkern, numpy, eager, floor=forward, result=flat):
        """The contestants of a case that returns its result."""
        return {
            "hebbkern": (hebbkern, result),
            "numpy": (numpy, result),
            "eager": (eager, result),
            "floor": (floor(self.x, self.w), result),
        }


def unscreened(run):
    """run with hebbkern's screening off."""

    def plain():
        with hk.screening(False):
            return run()

    return plain


def shapes(x_shape, w_shape):
    """As in 1024 x 784 x 2000, or 64x3x32x32 to 96 (5x5)."""
    if len(x_shape) == 2:
        return f"{x_shape[0]} x {x_shape[1]} x {w_shape[0]}"
    return f"{'x'.join(map(str, x_shape))} to {w_shape[0]} ({w_shape[2]}x{w_shape[3]})"
