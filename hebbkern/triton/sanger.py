"""sanger: the dense rules, in one of three ways that the shapes alone choose.

on chip   all weights fit on chip: no responses in memory
residual  triangular decay, fewer patches than neurons: R = X - Y W of the neurons so far, block after block
general   ATen's layer, weight gradient and Gram matrix; own kernels turn U into Y and the products into the sum
"""

import torch

from hebbkern.ops import checks
from hebbkern.ops.sanger import check
from hebbkern.triton import on_chip, residual, responses
from hebbkern.triton.finish import finish
from hebbkern.triton.launch import readable


def way(P, K, N, decay):
    """Which of the three."""
    if on_chip.fits(K, N):
        return "on chip"
    return "residual" if decay == "triangular" and residual.is_cheaper(P, K, N) else "general"


def outputs_of(task):
    """The ``Outputs`` of at least one patch."""
    P, (K, N) = task.where.patches, task.flat.shape
    chosen = way(P, K, N, task.decay)
    if chosen == "on chip":
        return on_chip.on_chip(task)
    x = task.x.to(task.dtype)
    found = responses.respond(task, x, sums=chosen == "general")
    if readable(x):
        checks.no_overflow(task.op, checks.RESPONSES, found.y)
    return residual.residual(task, found) if chosen == "residual" else general(task, x, found)


def general(task, x, found):
    """The ``Outputs`` by ATen's products."""
    gram = None
    with responses.exact_products(x):
        gradient = responses.gradient(found.taught, x, task.weight.shape[2:], *task.geometry).contiguous()
        if task.decay == "triangular":
            kernel = () if x.dim() == 2 else (1, 1)  # YᵀY is the weight gradient of a 1x1 layer from Y to Y
            gram = responses.gradient(found.y, found.y, kernel).contiguous()
    return finish(task, gradient, gram, found.diagonal, found.shift)


def refuse_overflow(task, result):
    """Raise eager's sentence if ``result`` is not finite."""
    if not result.isfinite().all():
        found = responses.respond(task, task.x.to(task.dtype), sums=False)
        checks.no_overflow(task.op, checks.RESPONSES, found.y)
        checks.no_overflow(task.op, checks.SUMS, result)


@torch.no_grad()
def sanger(x, weight, activation, decay, temperature, patches, stride, padding, dilation, frozen):
    """The operator of that name."""
    rule = activation, decay, temperature, patches, stride, padding, dilation, frozen
    count = check(x, weight, *rule)
    if readable(x):
        checks.finite("sanger", x=x, weight=weight)
    dtype = checks.result_dtype(x.dtype)
    if count == 0:
        return x.new_zeros(weight.shape, dtype=dtype), x.new_zeros(1, dtype=dtype)
    task = responses.task("sanger", x, weight, *rule)
    total = outputs_of(task).sums
    if readable(x):
        refuse_overflow(task, total)
    return total.reshape(weight.shape), x.new_full((1,), count, dtype=dtype)
