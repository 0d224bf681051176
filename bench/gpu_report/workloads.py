"""The steps and operator calls that are timed on a GPU (timing.py) and predicted without one (roofline.py).

They have the names and shapes of the cases of hebbkern.benchmark.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import hebbkern as hk
from hebbkern.benchmark import baselines, peers
from hebbkern.benchmark.case import forward, forward_and_weight_gradient, shapes
from hebbkern.benchmark.cases import CIFAR, COLOUR, HPCA, MNIST, SMALL, WIDE
from hebbkern.benchmark.steps import formula


@dataclass(frozen=True)
class Workload:
    """``run(x, w, **extra)`` is one step or operator call; ``extra(x, w)`` makes its further arguments, once."""

    name: str
    x: tuple
    w: tuple
    run: Callable
    eager: Callable  # (x, w, **extra) -> the same in plain torch, a function of nothing
    dense: bool = False  # every neuron learns from every patch: the forward pass includes the weight gradient
    dtype: torch.dtype = torch.float32
    precision: str = "highest"  # of torch.set_float32_matmul_precision
    extra: Callable = field(default=lambda x, w: {})
    forward: Callable | None = None  # (x, w) -> the function that stands for the bare forward pass
    screened: bool = False  # whether hebbkern.screening("always") is set
    tolerance: float = 1e-3  # how far the result may be from the CPU's, in parts of the norm of the latter

    @property
    def id(self):
        """The name, with dtype and precision where they are not the defaults."""
        dtype = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        tf32 = ", tf32" if self.precision != "highest" else ""
        return self.name + dtype + tf32 + (", screened" if self.screened else "")


def bare_forward(workload):
    """(x, w) -> the bare forward pass of ``workload``, a function without arguments."""
    return workload.forward or (forward_and_weight_gradient if workload.dense else forward)


@contextlib.contextmanager
def settings_of(workload):
    """Sets the precision of matrix products and convolutions and the screening of competitions of ``workload``."""
    precision = workload.precision
    conv = torch.backends.cudnn.conv
    before = torch.get_float32_matmul_precision(), conv.fp32_precision
    try:
        torch.set_float32_matmul_precision(precision)
        conv.fp32_precision = "ieee" if precision == "highest" else "tf32"
        with hk.screening("always" if workload.screened else "auto"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        conv.fp32_precision = before[1]


def empty(shape, dtype, device):
    """An empty tensor, channels-last where it holds images or filters."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    return tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def step(rule, x, w, *, lr=0.02, dense=False, **settings):
    """One learning step of ``rule`` in place, with the name of its case."""

    def labels(x, w):
        return {"labels": torch.arange(x.shape[0], device=x.device) % w.shape[0]} if name == "supervised" else {}

    def run(x, w, **extra):
        rule.step_(w, x, lr=lr, **extra)

    name, title = formula(rule), f"rules: {type(rule).__name__} step, {shapes(x, w)}"
    return Workload(title, x, w, run, eager_step(name, lr), dense, extra=labels, **settings)


def eager_step(name, *arguments):
    """(x, w, **labels) -> the step as peers.py writes it in plain torch, a function without arguments."""

    def eager(x, w, **labels):
        lay_out, step = peers.formulated(name, "eager", tuple(w.shape[2:]))
        plain, weight = x.contiguous(), lay_out(w)
        return lambda: step(weight, plain, *arguments, **labels)

    return eager


def hebbcl_step(x, w):
    """The freezing test and the step, with a threshold at which no neuron is frozen."""
    rule = hk.WTA(k=1, similarity="dot", normalise="row_max")

    def run(x, w):
        _, distance = hk.ops.nearest_patch(x, w)
        rule.step_(w, x, lr=0.02, frozen=distance < 0)

    name = f"rules: HebbCL step with freezing, {shapes(x, w)}"
    return Workload(name, x, w, run, eager_step("hebbcl", 0.02, 0.0), tolerance=5e-2)


def operator(name, x, w, run, eager, **settings):
    """One call of an operator; ``eager(X, W, **extra)`` takes patches [P, N] and weights [K, N]."""

    def plain(x, w, **extra):
        X, W = baselines.eager_patches(x.contiguous(), tuple(w.shape[2:])), w.contiguous().flatten(1)
        return lambda: eager(X, W, **extra)

    return Workload(name, x, w, run, plain, **settings)


def compete(x, w, k, **settings):
    def run(x, w):
        return hk.ops.compete(x, w, k)[1]

    name = f"compete: k = {k}, {shapes(x, w)}"
    return operator(name, x, w, run, lambda X, W: baselines.eager_compete(X, W, k), **settings)


def nearest_patch(x, w, **settings):
    def run(x, w):
        return hk.ops.nearest_patch(x, w)[1]

    return operator(f"nearest_patch: {shapes(x, w)}", x, w, run, baselines.eager_nearest_patch, **settings)


def accumulate(x, w, k, **settings):
    def extra(x, w):
        patches = len(x) if x.dim() == 2 else len(x) * (x.shape[2] - w.shape[2] + 1) * (x.shape[3] - w.shape[3] + 1)
        targets = torch.arange(patches * k, device=x.device, dtype=torch.int32).reshape(patches, k) * 7 % len(w)
        return {"targets": targets, "coefficients": torch.linspace(1, -0.4, k, device=x.device)}

    def run(x, w, targets, coefficients):
        return hk.ops.accumulate(x, targets, coefficients, neurons=len(w), kernel=w.shape[2:])[0]

    def eager(X, W, targets, coefficients):
        return baselines.eager_accumulate(X, targets.long(), coefficients, len(W))

    name = f"accumulate: {k} targets a patch, {shapes(x, w)}"
    return operator(name, x, w, run, eager, extra=extra, **settings)


def dense_update(x, w, **settings):
    def run(x, w):
        return hk.ops.dense_update(x, w)[0]

    return operator(f"dense_update: {shapes(x, w)}", x, w, run, baselines.eager_dense_update, dense=True, **settings)


def kwinners(y, k, **settings):
    def eager(y, _):
        return lambda: baselines.eager_kwinners(y, k)

    name = f"kwinners: k = {k} of {'x'.join(map(str, y))}"
    return Workload(name, y, (1,), lambda y, _: hk.ops.kwinners(y, k, 1), eager, forward=eager, **settings)


NEAR = {"tolerance": 5e-2}  # room for winners that rounding ranks otherwise
HALF = {"dtype": torch.bfloat16, "tolerance": 0.2}
TF32 = {"precision": "high"}
SLOW = {"dense": True, "lr": 1e-4}  # larger steps leave the stable range within the repetitions

STEPS = (
    *(step(hk.KrotovHopfield(), *layer, **NEAR) for layer in (MNIST, COLOUR, SMALL)),
    step(hk.KrotovHopfield(), *MNIST, **HALF),
    *(step(hk.KrotovHopfield(), *layer, screened=True, **NEAR) for layer in (MNIST, COLOUR)),
    step(hk.KrotovHopfield(), *MNIST, **TF32, **NEAR),
    *(step(hk.WTA(), *layer, **NEAR) for layer in (MNIST, *HPCA)),
    step(hk.WTA(), *HPCA[1], **HALF),
    step(hk.WTA(), *HPCA[1], **TF32, **NEAR),
    step(hk.Supervised(), (1024, 784), (10, 784)),
    *(step(hk.Sanger(), *layer, **SLOW) for layer in (*HPCA, WIDE, MNIST)),
    step(hk.Sanger(), *HPCA[1], **SLOW, **TF32),
    step(hk.Oja(), *MNIST, **SLOW),
    step(hk.SoftWTA(), *CIFAR, dense=True, tolerance=1e-2),
    hebbcl_step((100, 784), (500, 784)),
    compete(*MNIST, 2),
    compete(*MNIST, 2, screened=True),
    compete(*CIFAR, 1),
    nearest_patch(*MNIST),
    accumulate(*MNIST, 2),
    dense_update(*HPCA[1]),
    kwinners((10_000, 500), 50),
    kwinners((64, 96, 14, 14), 5),
)
