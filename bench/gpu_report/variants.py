"""Workloads that are only compiled: with workloads.STEPS they reach every kernel in every default configuration.

A configuration is what the launchers choose: tiles by dtype, shape and k, the order of the dense rules by
the shapes, another path for long rows and many winners. Optional arguments are given once for each kernel.
"""

import torch

import hebbkern as hk
from hebbkern.benchmark.case import shapes
from hebbkern.benchmark.cases import CIFAR, HPCA, MNIST, WIDE

from .workloads import Workload

BF16, FP16, FP64 = ({"dtype": dtype} for dtype in (torch.bfloat16, torch.float16, torch.float64))
TF32 = {"precision": "high"}
PADDED = {"padding": 2, "stride": 2}
SMALL = ((1000, 50), (40, 50))  # fits on chip
FEW = ((100, 784), (500, 784))
DEPTHWISE = ((64, 128, 28, 28), (128, 1, 3, 3))
TWO_EACH = ((32, 64, 28, 28), (128, 1, 3, 3))
GROUPS = {"groups": 64, "padding": 1}


def variant(what, layer, run, masked=False, **settings):
    """``run(x, w)``; with ``masked`` it takes a bool mask [K] as well."""

    def extra(x, w):
        return {"mask": torch.zeros(w.shape[0], dtype=torch.bool, device=x.device)} if masked else {}

    return Workload(f"{what}, {shapes(*layer)}", *layer, run, eager=None, extra=extra, **settings)


def stepped(rule, layer, masked=False, geometry=None, labelled=False, **settings):
    """A step of ``rule``."""

    def run(x, w, mask=None):
        labels = torch.arange(x.shape[0], device=x.device) if labelled else None
        rule.step_(w, x, lr=0.1, labels=labels, frozen=mask, **(geometry or {}))

    return variant(f"{rule}", layer, run, masked, **settings)


def competed(layer, k, masked=False, geometry=None, **settings):
    def run(x, w, mask=None):
        return hk.ops.compete(x, w, k, eligible=mask, **(geometry or {}))

    return variant(f"compete k={k} {geometry or ''}", layer, run, masked, **settings)


def matched(layer, masked=False, geometry=None, **settings):
    def run(x, w, mask=None):
        return hk.ops.nearest_patch(x, w, eligible=mask, **(geometry or {}))

    return variant(f"nearest_patch {geometry or ''}", layer, run, masked, **settings)


def accumulated(layer, patches, count, masked=False, geometry=None, **settings):
    """``count`` patches have two targets each, which decay by their responses."""

    def run(x, w, mask=None):
        targets = torch.arange(2 * count, device=x.device).reshape(count, 2) % w.shape[0]
        responses = torch.ones((count, 2), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        options = {"responses": responses, "patches": patches, "frozen": mask, **(geometry or {})}
        return hk.ops.accumulate(x, targets, responses, neurons=w.shape[0], kernel=w.shape[2:], **options)

    return variant(f"accumulate {patches}", layer, run, masked, **settings)


def applied(layer, normalise, rate_power=0.0, masked=False, **settings):
    def run(x, w, mask=None):
        wide = torch.promote_types(w.dtype, torch.float32)
        sums, rows = w.new_ones(w.shape, dtype=wide), w.new_ones(w.shape[0], dtype=wide)
        options = {"normalise": normalise, "rate_power": rate_power, "frozen": mask}
        hk.ops.apply_(w, sums, decay=rows, denominator=rows, lr=0.1, **options)

    return variant(f"apply_ {normalise} {rate_power:g}", layer, run, masked, **settings)


def sparsened(shape, **settings):
    def run(y, w):
        return hk.ops.kwinners(y, 5, 1)

    return variant("kwinners", (shape, (1,) * len(shape)), run, **settings)


VARIANTS = (
    competed(MNIST, 2, **FP64),
    competed(MNIST, 20, **FP64),
    competed(MNIST, 2, True, {"patches": "centred"}, **FP16),
    competed(MNIST, 20, True, {"patches": "standardised"}),
    competed(MNIST, 20, **BF16),
    competed(MNIST, 20, **TF32),
    competed(MNIST, 5, True, {"cosine": True, "patches": "centred"}),
    competed(HPCA[1], 1, True, {"patches": "standardised", **PADDED}),
    competed(CIFAR, 3, True, {"cosine": True, "patches": "centred", **PADDED}, **BF16),
    competed(DEPTHWISE, 1, True, {"groups": 128, "padding": 1}),
    stepped(hk.KrotovHopfield(p=3.0, patches="centred"), CIFAR, True, PADDED),
    stepped(hk.WTA(k=2, coefficient="response", normalise="row_l2", patches="standardised"), CIFAR, True, PADDED),
    stepped(hk.WTA(similarity="dot", normalise="row_max"), MNIST, **BF16),
    stepped(hk.WTA(similarity="dot"), MNIST, **FP64),
    matched(HPCA[1], True, {"patches": "centred", **PADDED}, **BF16),
    matched(MNIST, True, {"patches": "standardised"}, **TF32),
    matched(MNIST, **BF16),
    matched(MNIST, **TF32),
    matched(FEW, **FP64),
    accumulated(CIFAR, "standardised", 64 * 28 * 28, True, **BF16),
    accumulated(MNIST, "centred", 1024, **FP64),
    competed(TWO_EACH, 2, True, {"cosine": True, "patches": "centred", **GROUPS}),
    stepped(hk.WTA(patches="standardised"), TWO_EACH, True, GROUPS),
    stepped(hk.WTA(), TWO_EACH, False, GROUPS, **BF16),
    stepped(hk.Supervised(), TWO_EACH, True, GROUPS, labelled=True),
    stepped(hk.Sanger(patches="standardised"), TWO_EACH, True, GROUPS),
    matched(TWO_EACH, True, {"patches": "standardised", **GROUPS}),
    matched(TWO_EACH, False, GROUPS, **BF16),
    accumulated(TWO_EACH, "standardised", 64 * 32 * 28 * 28, True, GROUPS),
    applied(MNIST, "global_max", masked=True, **BF16),
    applied(MNIST, "row_l2", 0.5, **FP64),
    applied(HPCA[1], "row_max", **BF16),
    stepped(hk.Sanger(patches="standardised"), SMALL, True),
    stepped(hk.Sanger(), SMALL, **BF16),
    stepped(hk.Sanger(), SMALL, **TF32),
    stepped(hk.Oja("tanh"), SMALL, **FP64),
    stepped(hk.SoftWTA(patches="centred"), SMALL, True),
    stepped(hk.Sanger(patches="standardised"), WIDE, True, **TF32),
    stepped(hk.Sanger("tanh"), WIDE, **FP64),
    stepped(hk.Sanger("linear", patches="centred"), WIDE, **BF16),
    stepped(hk.Sanger(patches="standardised"), CIFAR, True, PADDED, **BF16),
    stepped(hk.Oja("tanh", patches="standardised"), HPCA[1], True, PADDED, **FP64),
    stepped(hk.Hebb(), MNIST, **BF16),
    stepped(hk.SoftWTA(), MNIST, **FP64),
    sparsened((1000, 500), **BF16),
    sparsened((64, 96, 14, 14), **FP64),
    sparsened((64, 20_000)),
    sparsened((64, 20_000), **BF16),
    sparsened((64, 20_000), **FP64),
)
