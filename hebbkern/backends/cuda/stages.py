"""The stages of the dense rules by the kernels compiled for GPUs, which hebbkern.backends.dense composes.

Each stage is an internal operator that csrc/cuda implements. A result of size 0 stands for one that was not requested.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hebbkern.backends import dense

LIBRARY = torch.library.Library("hebbkern", "FRAGMENT")


def _stage(schema: str) -> Callable[..., Any]:
    """Define an operator that only this module calls, to reach compiled kernels; nothing traces it. Returns it."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return getattr(torch.ops.hebbkern, name).default


_readable = _stage("_readable(Tensor tensor) -> bool")
_raise_if_skipped = _stage("_raise_if_skipped(Tensor weight) -> ()")
_moments = _stage(
    "_moments(Tensor x, int[] stride, int[] padding, int[] dilation, Tensor weight, str op, str patches) "
    "-> (Tensor offset, Tensor scale, Tensor total)"
)
_activate = _stage(
    "_activate(Tensor(a!) u, int[] layout, int images, Tensor? offset, Tensor? scale, Tensor? total, str activation, "
    "float temperature, Tensor(b!)? scaled, bool diagonal, bool shift) -> (Tensor diagonal, Tensor shift)"
)
_finish = _stage(
    "_finish(Tensor gradient, Tensor? gram, Tensor? diagonal, Tensor? shift, Tensor weight, Tensor? frozen, float? lr, "
    "int patches) -> (Tensor out, Tensor sound)"
)
_residual = _stage(
    "_residual(Tensor x, int[] stride, int[] padding, int[] dilation, Tensor y, int[] layout, Tensor? offset, "
    "Tensor? scale, Tensor weight, Tensor? frozen, float? lr) -> (Tensor out, Tensor sound)"
)
_on_chip = _stage(
    "_on_chip(Tensor x, int[] stride, int[] padding, int[] dilation, Tensor weight, str op, str activation, str decay, "
    "float temperature, str patches, Tensor? frozen, float? lr) -> (Tensor out, Tensor sound)"
)
_commit = _stage("_commit(str op, Tensor(a!) weight, Tensor moved, Tensor sound, Tensor? frozen) -> ()")


def readable(tensor: Tensor) -> bool:
    """Whether its values can be read without a wait: under emulation, unless launches are only recorded."""
    return tensor.device.type == "cpu" and _readable(tensor)


def patch_view(x: Tensor, kernel: Sequence[int], *geometry: Sequence[int]) -> tuple:
    """x and its geometry, as the internal operators take them."""
    return x, *geometry


def moments(task: dense.Task) -> dense.Moments:
    """Offset and scale of the patches, and the sum of the weights of each neuron."""
    return dense.Moments(*map(_requested, _moments(*task.view, _shaped(task), task.op, task.patches)))


def activate(task: dense.Task, moments: dense.Moments, u: Tensor, sums: bool) -> tuple:
    """Write Y over U. Returns Y times the scale of each patch, and with ``sums`` the column sums that are needed."""
    layout, images = dense.strided(u)
    scaled = torch.empty_like(u) if sums and task.patches == "standardised" else None
    wanted = sums and task.decay == "diagonal", sums and moments.offset is not None
    columns = _activate(u, layout, images, *moments, task.activation, task.temperature, scaled, *wanted)
    diagonal, shift = map(_requested, columns)
    if sums and task.decay == "activity":
        with dense.exact_products(u):
            diagonal = u.sum([axis for axis in range(u.dim()) if axis != 1])
    return u if scaled is None else scaled, diagonal, shift


def on_chip(task: dense.Task) -> dense.Outputs:
    """The whole rule, where all weights fit on chip."""
    rule = task.op, task.activation, task.decay, task.temperature, task.patches
    return _outputs(task, _on_chip(*task.view, _shaped(task), *rule, task.frozen, task.lr))


def residual(task: dense.Task, responses: dense.Responses) -> dense.Outputs:
    """Sanger's sum by the residual, with fewer patches than neurons."""
    layout, _ = dense.strided(responses.y)
    scales = responses.moments.offset, responses.moments.scale
    return _outputs(task, _residual(*task.view, responses.y, layout, *scales, _shaped(task), task.frozen, task.lr))


def finish(task: dense.Task, *products: Tensor | None) -> dense.Outputs:
    """The sum, or the weights after the step, from gradient, gram, diagonal and shift."""
    return _outputs(task, _finish(*products, task.flat, task.frozen, task.lr, task.count))


def _shaped(task: dense.Task) -> Tensor:
    """The weights, contiguous, in the shape of the layer's."""
    return task.flat.view(task.weight.shape)


def _requested(result: Tensor) -> Tensor | None:
    return result if result.numel() else None


def _outputs(task: dense.Task, results: tuple[Tensor, Tensor]) -> dense.Outputs:
    out, sound = results
    return dense.Outputs(sums=out) if task.lr is None else dense.Outputs(moved=out, sound=sound)


STAGES = dense.Stages(
    readable, _raise_if_skipped, patch_view, moments, activate, on_chip, residual, finish, commit=_commit
)


def dense_update(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator ``dense_update`` on the compiled kernels."""
    return dense.dense_update(STAGES, *arguments)


def dense_step_(*arguments: Any) -> None:
    """The operator ``dense_step_`` on the compiled kernels."""
    dense.dense_step_(STAGES, *arguments)
