"""What is asked of the GPU's kernels: the steps that are timed and predicted, and variants that reach every kernel.

``STEPS`` are cases of cases.py, by the same names and on the same shapes. ``VARIANTS`` are there to be compiled only:
with ``STEPS`` they reach every kernel of hebbkern.triton in every default configuration.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import hebbkern as hk
from hebbkern.benchmark import baselines
from hebbkern.benchmark.cases import CIFAR, COLOUR, HPCA, MNIST, SMALL, WIDE
from hebbkern.benchmark.contest import forward, forward_and_weight_gradient, shapes

HALF = {"dtype": torch.bfloat16}
TF32 = {"precision": "high"}


@dataclass(frozen=True)
class Workload:
    """``run(x, w, **extra)`` is one step or operator call; ``extra(x, w)`` makes what else it takes, once."""

    name: str
    x: tuple
    w: tuple
    run: Callable
    formula: str | None = None  # of peers.py; None: an operator
    dense: bool = False  # teaches every neuron: its floor is the forward pass with the weight gradient
    dtype: torch.dtype = torch.float32
    precision: str = "highest"  # of torch.set_float32_matmul_precision
    extra: Callable = field(default=lambda x, w: {})
    floor: Callable | None = None  # (x, w) -> what it is measured against; None: the bare forward pass

    @property
    def id(self):
        """Its name, with dtype and precision where these are not the usual ones."""
        dtype = "" if self.dtype == torch.float32 else f", {str(self.dtype).removeprefix('torch.')}"
        return self.name + dtype + (", tf32" if self.precision != "highest" else "")


def floor(workload):
    """(x, w) -> the function whose time is the measure of ``workload``."""
    return workload.floor or (forward_and_weight_gradient if workload.dense else forward)


@contextlib.contextmanager
def with_precision(precision):
    """Within, float32 products of matrices and convolutions alike are exact ("highest") or may take tf32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=precision != "highest"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


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

    return Workload(
        f"rules: {type(rule).__name__} step, {shapes(x, w)}", x, w, run, formula, dense, extra=labels, **settings
    )


def hebbcl_step(x, w):
    """The freezing test and the step; the threshold is one that no neuron is nearer than."""
    rule = hk.WTA(k=1, similarity="dot", normalise="row_max")

    def run(x, w):
        _, distance = hk.ops.match(x, w)
        rule.step_(w, x, lr=0.02, frozen=distance < 0)

    return Workload(f"rules: HebbCL step with freezing, {shapes(x, w)}", x, w, run)


def compete(x, w, k, **settings):
    return Workload(f"compete: k = {k}, {shapes(x, w)}", x, w, lambda x, w: hk.ops.compete(x, w, k), **settings)


def match(x, w, **settings):
    return Workload(f"match: {shapes(x, w)}", x, w, lambda x, w: hk.ops.match(x, w), **settings)


def accumulate(x, w, k):
    def taught(x, w):
        patches = (
            x.shape[0] if x.dim() == 2 else x.shape[0] * (x.shape[2] - w.shape[2] + 1) * (x.shape[3] - w.shape[3] + 1)
        )
        who = torch.arange(patches * k, device=x.device, dtype=torch.int32).reshape(patches, k) * 7 % w.shape[0]
        return {"taught": who, "coefficients": torch.linspace(1, -0.4, k, device=x.device)}

    def run(x, w, taught, coefficients):
        return hk.ops.accumulate(x, taught, coefficients, neurons=w.shape[0], kernel=w.shape[2:])

    return Workload(f"accumulate: {k} taught a patch, {shapes(x, w)}", x, w, run, extra=taught)


def sanger(x, w, **settings):
    return Workload(f"sanger: {shapes(x, w)}", x, w, lambda x, w: hk.ops.sanger(x, w), dense=True, **settings)


def kwinners(x, k, **settings):
    name = f"kwinners: k = {k} of {'x'.join(map(str, x))}"
    settings["floor"] = lambda x, w: lambda: baselines.eager_kwinners(x, k)
    return Workload(name, x, (1,), lambda x, w: hk.ops.kwinners(x, k, 1), **settings)


STEPS = (
    *(step(hk.KrotovHopfield(), "krotov_hopfield", *layer) for layer in (MNIST, COLOUR, SMALL)),
    step(hk.KrotovHopfield(), "krotov_hopfield", *MNIST, **HALF),
    step(hk.KrotovHopfield(), "krotov_hopfield", *MNIST, **TF32),
    step(hk.WTA(), "wta", *MNIST),
    *(step(hk.WTA(), "wta", *layer) for layer in HPCA),
    step(hk.WTA(), "wta", *HPCA[1], **HALF),
    step(hk.WTA(), "wta", *HPCA[1], **TF32),
    step(hk.Teacher(), "teacher", (1024, 784), (10, 784)),
    *(step(hk.Sanger(), "sanger", *layer, lr=1e-4, dense=True) for layer in (*HPCA, WIDE, MNIST)),
    step(hk.Sanger(), "sanger", *HPCA[1], lr=1e-4, dense=True, **TF32),
    step(hk.Oja(), "oja", *MNIST, lr=1e-4, dense=True),
    step(hk.SoftWTA(), "soft_wta", *CIFAR, dense=True),
    hebbcl_step((100, 784), (500, 784)),
    compete(*MNIST, 2),
    match(*MNIST),
    accumulate(*MNIST, 2),
    kwinners((10_000, 500), 50),
    kwinners((64, 96, 14, 14), 5),
)

VARIANTS = ()
