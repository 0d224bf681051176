"""The cases of the benchmark, the one place for them: what is computed, by whom, on which shapes, within which limits.

A case has four contestants. "hebbkern", "numpy" and "eager" (baselines.py) compute the same thing; "floor" is the bare
forward pass, a matmul or channels-last convolution, for the dense rules with its weight gradient: what the cheapest
network that looks at the same inputs would take.
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
    hebbkern must be at least so many times as fast as "numpy", and take at most so many times as long as the "floor".
    """

    stem: str
    name: str
    build: Callable[[], dict]
    floor: str
    tolerance: float = 1e-3
    limits: dict = field(default_factory=dict)

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


def rule_case(rule, formula, x_shape, w_shape, *, dense=False, lr=0.02, scale=None, tolerance=1e-3, limits=None):
    """One learning step in place. All contestants start from the same weights; the result is how far they moved."""
    floor = forward_and_weight_gradient if dense else forward

    def build():
        i = Inputs(images(*x_shape), weights(*w_shape, scale=scale))
        start, labels = i.W.clone(), torch.arange(x_shape[0]) % w_shape[0]
        taught = formula == "teacher"
        ours, plain, wide = ({"labels": y} if taught else {} for y in (labels, labels, labels.numpy()))
        bare = floor(i.x, i.w.clone(memory_format=torch.preserve_format))
        numpy, eager = baselines.NUMPY[formula], baselines.EAGER[formula]
        return {
            "hebbkern": (lambda: rule.step_(i.w, i.x, lr=lr, **ours), lambda _: flat(i.w) - start),
            "numpy": (lambda: numpy(i.W64, i.X64(), lr, **wide), lambda _: torch.from_numpy(i.W64) - start),
            "eager": (lambda: eager(i.W, i.X(), lr, **plain), lambda _: i.W - start),
            "floor": (bare, None),
        }

    name = f"{type(rule).__name__} step, {_shapes(x_shape, w_shape)}"
    named = "forward + weight gradient" if dense else "forward"
    return Case("rules", name, build, named, tolerance, limits or {})


def compete_case(x_shape, w_shape, k):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        return i.contest(
            lambda: hk.ops.compete(i.x, i.w, k),
            lambda: baselines.numpy_compete(i.X64(), i.W64, k),
            lambda: baselines.eager_compete(i.X(), i.W, k),
            result=lambda result: flat(result[1] if isinstance(result, tuple) else result),
        )

    return Case("compete", f"k = {k}, {_shapes(x_shape, w_shape)}", build, "forward")


def match_case(x_shape, w_shape):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        return i.contest(
            lambda: hk.ops.match(i.x, i.w),
            lambda: baselines.numpy_match(i.X64(), i.W64),
            lambda: baselines.eager_match(i.X(), i.W),
            result=lambda result: flat(result[1] if isinstance(result, tuple) else result),
        )

    return Case("match", _shapes(x_shape, w_shape), build, "forward")


def accumulate_case(x_shape, w_shape, k):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        taught, coefficients = hk.ops.compete(i.x, i.w, k)[0], torch.linspace(1, -0.4, k)
        wide, how_much = taught.long(), coefficients.double().numpy()
        who, K, kernel = wide.numpy(), w_shape[0], w_shape[2:]
        return i.contest(
            lambda: hk.ops.accumulate(i.x, taught, coefficients, neurons=K, kernel=kernel),
            lambda: baselines.numpy_accumulate(i.X64(), who, how_much, K),
            lambda: baselines.eager_accumulate(i.X(), wide, coefficients, K),
            result=lambda result: flat(result[0] if isinstance(result, tuple) else result),
        )

    return Case("accumulate", f"{k} taught a patch, {_shapes(x_shape, w_shape)}", build, "forward")


def sanger_case(x_shape, w_shape):
    def build():
        i = Inputs(images(*x_shape), weights(*w_shape))
        return i.contest(
            lambda: hk.ops.sanger(i.x, i.w),
            lambda: baselines.numpy_sanger_sum(i.W64, i.X64()),
            lambda: baselines.eager_sanger_sum(i.W, i.X()),
            forward_and_weight_gradient,
            result=lambda result: flat(result[0] if isinstance(result, tuple) else result),
        )

    return Case("sanger", _shapes(x_shape, w_shape), build, "forward + weight gradient")


def apply_case(neurons, inputs, lr=0.02):
    def build():
        i = Inputs(weights(neurons, inputs), weights(neurons, inputs, scale=1.0))  # x is the update
        decay = torch.linspace(0, 1, neurons)
        decay64, start, idle = decay.double().numpy(), i.W.clone(), i.W.clone()

        def plain(W, sum, decay):
            step = sum - decay[:, None] * W
            W += lr * step / abs(step).max()

        return {
            "hebbkern": (
                lambda: hk.ops.apply_(i.w, i.x, decay=decay, lr=lr, normalise="global_max"),
                lambda _: i.w - start,
            ),
            "numpy": (lambda: plain(i.W64, i.x64, decay64), lambda _: torch.from_numpy(i.W64) - start),
            "eager": (lambda: plain(i.W, i.plain, decay), lambda _: i.W - start),
            "floor": (lambda: idle.add_(i.x, alpha=lr), None),
        }

    return Case("apply", f"global maximum, {neurons} x {inputs}", build, "weight.add_(sum)")


def kwinners_case(shape, k):
    def build():
        y = weights(*shape, scale=1.0)
        i = Inputs(y, y)
        plain, y64 = y.contiguous(), y.double().contiguous().numpy()
        return i.contest(
            lambda: hk.ops.kwinners(y, k, 1),
            lambda: baselines.numpy_kwinners(y64, k),
            lambda: baselines.eager_kwinners(plain, k),
            lambda y, _: y.relu,
        )

    return Case("kwinners", f"k = {k} of {'x'.join(map(str, shape))}", build, "relu")


def _shapes(x_shape, w_shape):
    if len(x_shape) == 2:
        return f"{x_shape[0]} x {x_shape[1]} x {w_shape[0]}"
    return f"{'x'.join(map(str, x_shape))} to {w_shape[0]} ({w_shape[2]}x{w_shape[3]})"


MNIST, SMALL, CIFAR = ((1024, 784), (2000, 784)), ((100, 784), (100, 784)), ((64, 3, 32, 32), (96, 3, 5, 5))
HPCA = (
    CIFAR,
    ((64, 96, 14, 14), (128, 96, 3, 3)),
    ((64, 128, 12, 12), (192, 128, 3, 3)),
    ((64, 192, 5, 5), (256, 192, 3, 3)),
)
WIDE = (64, 2304), (4096, 2304)  # fewer patches than neurons
KROTOV = {"scale": 1.0, "tolerance": 5e-2}  # room for winners that float32 ranks otherwise than float64
DENSE = {"dense": True, "lr": 1e-4}  # larger steps leave the stable range within the repetitions

CASES = (
    rule_case(hk.KrotovHopfield(), "krotov_hopfield", *MNIST, **KROTOV, limits={"numpy": 10, "floor": 1.4}),
    rule_case(hk.KrotovHopfield(), "krotov_hopfield", *SMALL, **KROTOV, limits={"numpy": 8, "floor": 3.0}),
    rule_case(hk.WTA(), "wta", *CIFAR, tolerance=5e-2, limits={"floor": 1.6}),
    *(rule_case(hk.Sanger(), "sanger", *shapes, **DENSE, limits={"floor": 1.4}) for shapes in HPCA),
    rule_case(hk.WTA(), "wta", *MNIST, tolerance=5e-2),
    rule_case(hk.Sanger(), "sanger", *MNIST, **DENSE),
    rule_case(hk.Sanger(), "sanger", *WIDE, **DENSE),
    rule_case(hk.Oja(), "oja", *MNIST, **DENSE),
    rule_case(hk.Hebb(), "hebb", *MNIST, **DENSE),
    rule_case(hk.SoftWTA(), "soft_wta", *MNIST, dense=True, tolerance=1e-2),
    rule_case(hk.Teacher(), "teacher", (1024, 784), (10, 784)),
    compete_case(*MNIST, k=2),
    compete_case(*CIFAR, k=1),
    match_case(*MNIST),
    accumulate_case(*MNIST, k=2),
    accumulate_case(*CIFAR, k=1),
    sanger_case(*HPCA[1]),
    sanger_case(*WIDE),
    apply_case(2000, 784),
    kwinners_case((1024, 2000), k=50),
    kwinners_case((64, 96, 14, 14), k=5),
)
