"""The stages of the dense rules by the kernels compiled for GPUs, which hebbkern.backends.dense composes.

Each is an internal operator that csrc/cuda implements where it is built; results of size 0 are those not asked for.
"""

import sys

import torch

from hebbkern.backends import dense
from hebbkern.ops import library

_readable = library.stage("_readable(Tensor tensor) -> bool")
_raise_if_skipped = library.stage("_raise_if_skipped(Tensor weight) -> ()")
_moments = library.stage(
    "_moments(Tensor x, int[] stride, int[] padding, int[] dilation, Tensor weight, str op, str patches) "
    "-> (Tensor offset, Tensor scale, Tensor total)"
)
_activate = library.stage(
    "_activate(Tensor(a!) u, int[] layout, int images, Tensor? offset, Tensor? scale, Tensor? total, str activation, "
    "float temperature, Tensor(b!)? taught, bool diagonal, bool shift) -> (Tensor diagonal, Tensor shift)"
)
_finish = library.stage(
    "_finish(Tensor gradient, Tensor? gram, Tensor? diagonal, Tensor? shift, Tensor weight, Tensor? frozen, float? lr, "
    "int patches) -> (Tensor out, Tensor sound)"
)
_residual = library.stage(
    "_residual(Tensor x, int[] stride, int[] padding, int[] dilation, Tensor y, int[] layout, Tensor? offset, "
    "Tensor? scale, Tensor weight, Tensor? frozen, float? lr) -> (Tensor out, Tensor sound)"
)
_on_chip = library.stage(
    "_on_chip(Tensor x, int[] stride, int[] padding, int[] dilation, Tensor weight, str op, str activation, str decay, "
    "float temperature, str patches, Tensor? frozen, float? lr) -> (Tensor out, Tensor sound)"
)
_commit = library.stage("_commit(str op, Tensor(a!) weight, Tensor moved, Tensor sound, Tensor? frozen) -> ()")


def readable(tensor):
    """Whether its values can be looked at: under emulation, unless launches are only noted down."""
    return tensor.device.type == "cpu" and _readable(tensor)


look, commit = _raise_if_skipped, _commit


def place(x, kernel, *geometry):
    """x and its geometry, as the operators take them."""
    return x, *geometry


def moments(task):
    """Offset and scale of the patches, and the neurons' sums of weights."""
    found = _moments(*task.where, _shaped(task), task.op, task.patches)
    return dense.Moments(*map(_asked, found))


def activate(task, moments, u, sums):
    """Y in place of U; Y scaled, and its column sums where they are asked for."""
    layout, images = dense.strided(u)
    taught = torch.empty_like(u) if sums and moments.scale is not None else None
    asked = sums and task.decay == "diagonal", sums and moments.offset is not None
    columns = _activate(u, layout, images, *moments, task.activation, task.temperature, taught, *asked)
    return u if taught is None else taught, *map(_asked, columns)


def on_chip(task):
    """The whole rule, where all weights fit on chip."""
    rule = task.op, task.activation, task.decay, task.temperature, task.patches
    return _outputs(task, _on_chip(*task.where, _shaped(task), *rule, task.frozen, task.lr))


def residual(task, found):
    """Sanger's sum by the residual, with fewer patches than neurons."""
    layout, _ = dense.strided(found.y)
    scales = found.moments.offset, found.moments.scale
    return _outputs(task, _residual(*task.where, found.y, layout, *scales, _shaped(task), task.frozen, task.lr))


def finish(task, *products):
    """The sum, or the weights after the step, from the products G, C or d, and what centring takes off."""
    return _outputs(task, _finish(*products, task.flat, task.frozen, task.lr, task.count))


def _shaped(task):
    """The weights, contiguous, as the layer has them."""
    return task.flat.view(task.weight.shape)


def _asked(result):
    return result if result.numel() else None


def _outputs(task, found):
    out, sound = found
    return dense.Outputs(sums=out) if task.lr is None else dense.Outputs(moved=out, sound=sound)


def dense_update(*arguments):
    """The operator of that name."""
    return dense.dense_update(sys.modules[__name__], *arguments)


def dense_step_(*arguments):
    """The operator of that name."""
    dense.dense_step_(sys.modules[__name__], *arguments)
