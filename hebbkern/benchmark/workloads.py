"""The steps that are asked of a GPU, timed there (gpu.py) and predicted anywhere (roofline.py).

They are cases of cases.py, by the same names and on the same shapes.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import hebbkern as hk
from hebbkern.benchmark import baselines, peers
from hebbkern.benchmark.cases import CIFAR, COLOUR, HPCA, MNIST, SMALL, WIDE
from hebbkern.benchmark.contest import forward, forward_and_weight_gradient, shapes


@dataclass(frozen=True)
class Workload:
    """``run(x, w, **extra)`` is one step or operator call; ``extra(x, w)`` makes what else it takes, once."""

    name: str
    x: tuple
    w: tuple
    run: Callable
    eager: Callable  # (x, w, **extra) -> the same in plain torch, a function of nothing
    dense: bool = False  # teaches every neuron: its floor is the forward pass with the weight gradient
    dtype: torch.dtype = torch.float32
    precision: str = "highest"  # of torch.set_float32_matmul_precision
    extra: Callable = field(default=lambda x, w: {})
    floor: Callable | None = None  # (x, w) -> a function of nothing, the measure; None: the bare forward pass
    screened: bool = False  # whether hebbkern.screening asks for it
    tolerance: float = 1e-3  # how far from the CPU's result it may be, of its norm

    @property
    def id(self):
        """Its name, with dtype and precision where these are not the usual ones."""
        dtype = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        tf32 = ", tf32" if self.precision != "highest" else ""
        return self.name + dtype + tf32 + (", screened" if self.screened else "")


def floor(workload):
    """(x, w) -> the function whose time is the measure of ``workload``."""
    return workload.floor or (forward_and_weight_gradient if workload.dense else forward)


@contextlib.contextmanager
def settings_of(workload):
    """Within, products of matrices and convolutions alike have its precision, and competitions its screening."""
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


def laid_out(shape, dtype, device):
    """An empty tensor, channels-last where it holds images or filters."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    return tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor


def step(rule, formula, x, w, *, lr=0.02, dense=False, options=None, **settings):
    """One learning step of ``rule`` in place, named as rule_case names it; ``options`` of step_."""
    options = options or {}

    def labels(x, w):
        return {"labels": torch.arange(x.shape[0], device=x.device) % w.shape[0]} if formula == "teacher" else {}

    def run(x, w, **extra):
        rule.step_(w, x, lr=lr, **options, **extra)

    name = f"rules: {type(rule).__name__} step, {shapes(x, w)}"
    return Workload(name, x, w, run, eager_step(formula, lr), dense, extra=labels, **settings)


def eager_step(formula, *arguments):
    """(x, w, **labels) -> the function that takes the step as peers.py formulates it in plain torch."""

    def eager(x, w, **labels):
        lay_out, taken = peers.formulated(formula, "eager", tuple(w.shape[2:]))
        plain, moved = x.contiguous(), lay_out(w)
        return lambda: taken(moved, plain, *arguments, **labels)

    return eager


def hebbcl_step(x, w):
    """The freezing test and the step; the threshold is one that no neuron is nearer than."""
    rule = hk.WTA(k=1, similarity="dot", normalise="row_max")

    def run(x, w):
        _, distance = hk.ops.nearest_patch(x, w)
        rule.step_(w, x, lr=0.02, frozen=distance < 0)

    name = f"rules: HebbCL step with freezing, {shapes(x, w)}"
    return Workload(name, x, w, run, eager_step("hebbcl", 0.02, 0.0), tolerance=5e-2)


def operator(name, x, w, run, eager, **settings):
    """One call of an operator; ``eager(X, W, **extra)`` sees patches [P, N] and weights [K, N]."""

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
    def taught(x, w):
        patches = len(x) if x.dim() == 2 else len(x) * (x.shape[2] - w.shape[2] + 1) * (x.shape[3] - w.shape[3] + 1)
        who = torch.arange(patches * k, device=x.device, dtype=torch.int32).reshape(patches, k) * 7 % len(w)
        return {"taught": who, "coefficients": torch.linspace(1, -0.4, k, device=x.device)}

    def run(x, w, taught, coefficients):
        return hk.ops.accumulate(x, taught, coefficients, neurons=len(w), kernel=w.shape[2:])[0]

    def eager(X, W, taught, coefficients):
        return baselines.eager_accumulate(X, taught.long(), coefficients, len(W))

    name = f"accumulate: {k} taught a patch, {shapes(x, w)}"
    return operator(name, x, w, run, eager, extra=taught, **settings)


def dense_update(x, w, **settings):
    def run(x, w):
        return hk.ops.dense_update(x, w)[0]

    def eager(X, W):
        return baselines.eager_sanger_sum(W, X)

    return operator(f"dense_update: {shapes(x, w)}", x, w, run, eager, dense=True, **settings)


def kwinners(y, k, **settings):
    def eager(y, _):
        return lambda: baselines.eager_kwinners(y, k)

    name = f"kwinners: k = {k} of {'x'.join(map(str, y))}"
    return Workload(name, y, (1,), lambda y, _: hk.ops.kwinners(y, k, 1), eager, floor=eager, **settings)


NEAR = {"tolerance": 5e-2}  # room for winners that rounding ranks otherwise
HALF = {"dtype": torch.bfloat16, "tolerance": 0.2}
TF32 = {"precision": "high"}
SLOW = {"dense": True, "lr": 1e-4}  # larger steps leave the stable range within the repetitions

STEPS = (
    *(step(hk.KrotovHopfield(), "krotov_hopfield", *layer, **NEAR) for layer in (MNIST, COLOUR, SMALL)),
    step(hk.KrotovHopfield(), "krotov_hopfield", *MNIST, **HALF),
    *(step(hk.KrotovHopfield(), "krotov_hopfield", *layer, screened=True, **NEAR) for layer in (MNIST, COLOUR)),
    step(hk.KrotovHopfield(), "krotov_hopfield", *MNIST, **TF32, **NEAR),
    *(step(hk.WTA(), "wta", *layer, **NEAR) for layer in (MNIST, *HPCA)),
    step(hk.WTA(), "wta", *HPCA[1], **HALF),
    step(hk.WTA(), "wta", *HPCA[1], **TF32, **NEAR),
    step(hk.Supervised(), "teacher", (1024, 784), (10, 784)),
    *(step(hk.Sanger(), "sanger", *layer, **SLOW) for layer in (*HPCA, WIDE, MNIST)),
    step(hk.Sanger(), "sanger", *HPCA[1], **SLOW, **TF32),
    step(hk.Oja(), "oja", *MNIST, **SLOW),
    step(hk.SoftWTA(), "soft_wta", *CIFAR, dense=True, tolerance=1e-2),
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
