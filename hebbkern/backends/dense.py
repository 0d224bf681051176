"""The dense rules on a GPU, composed of ATen's matrix products and the stages of a backend.

``dense_update`` and ``dense_step_`` run the operators of these names by the ``Stages`` of a backend (backends/triton,
backends/cuda). Shapes and the decay alone choose one of three algorithms:

    on chip   all weights fit on chip: no responses in memory
    residual  triangular decay, fewer patches than neurons: R = X - Y W of the neurons so far, block after block
    general   ATen computes U = X Wᵀ, YᵀX and YᵀY; the backend's kernels turn U into Y and the products into the sum

U and Y are [images, K, patches of an image] behind three strides; a linear layer is one image whose patches are the
samples. A layer of groups takes the general algorithm. To the stages each group of an image is an image of its own, and
all share the weights' totals and sums, so only scales are left to them: with x̃ = scale · x C and C = 1 - 1/N, U is
scale · X (W C)ᵀ and the sum (scale · Y)ᵀX C.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern import checks

# Neurons, and inputs, that fit on chip: weights, G and C of 64 x 64 are 48 numbers for each of 256 threads.
LARGEST = 64
COLUMNS, CHUNK = 16, 64  # inputs and patches of a residual on chip
BLOCK = 16  # neurons that a residual handles at once
UNFOLDED = 2**25  # entries of patches of images that are written out at a time, 128 MiB in float32
# Inputs of a patch up to which patches are written out. With 75 that took 100 µs on an H100 and cuDNN's deterministic
# weight gradient 254 (64x3x32x32 to 96), with 864 126 and 66, with 1152 177 and 63, with 1728 108 and 65.
WRITTEN_OUT = 256
STEP = 1.5e-6  # seconds for one block of neurons, which waits for the block before: an estimate for an H100
RATE = 25e12  # float32 multiply-adds a second that large products reach there, likewise
PROCESSORS = 132  # its multiprocessors


class Task(NamedTuple):
    """One call of a dense rule."""

    op: str
    x: Tensor
    weight: Tensor
    flat: Tensor  # the weights as [K, N], contiguous
    view: Any  # the patches as the backend's kernels take them, from Stages.patch_view
    count: int  # of the patches of a group
    activation: str
    decay: str
    temperature: float
    patches: str
    geometry: tuple  # stride, padding, dilation, groups
    frozen: Tensor | None
    lr: float | None  # None: the sum is the result, not the weights after the step

    @property
    def dtype(self) -> torch.dtype:
        return checks.result_dtype(self.x.dtype)

    @property
    def groups(self) -> int:
        return self.geometry[-1]

    @property
    def scales_rows(self) -> bool:
        """Whether the decay is diag(d) W."""
        return self.decay in ("diagonal", "activity")


class Moments(NamedTuple):
    """x̃ = (x - offset) · scale. None: every offset is 0, every scale is 1, the total is not needed."""

    offset: Tensor | None  # [P]
    scale: Tensor | None  # [P]
    total: Tensor | None  # [K], Σ w


class Responses(NamedTuple):
    """Y, with softmax R, and what the sum needs of it; None where it needs nothing."""

    moments: Any  # with at least the fields of Moments
    y: Tensor  # shaped like the output of the layer
    scaled: Tensor  # Y times the scale of each patch
    diagonal: Tensor | None  # [K], d of the decay diag(d) W: Σ y², with softmax Σ r u; Σ y for "activity"
    shift: Tensor | None  # [K], Σ y · scale · offset


class Outputs(NamedTuple):
    """The sum [K, N], or the weights after the step and, for each block of threads, whether they are finite."""

    sums: Tensor | None = None
    moved: Tensor | None = None
    sound: Tensor | None = None


@dataclass(frozen=True)
class Stages:
    """The functions by which a backend takes part in the dense rules."""

    readable: Callable[[Tensor], bool]  # whether reading values of a tensor needs no wait for a device
    raise_if_skipped: Callable[[Tensor], None]  # of earlier steps on the device of the weight
    patch_view: Callable[..., Any]  # (x, kernel, stride, padding, dilation) -> Task.view
    moments: Callable[[Task], Any]  # a result with at least the fields of Moments
    activate: Callable[..., tuple]  # (task, moments, u, sums): writes Y over U; scaled, diagonal, shift of Responses
    on_chip: Callable[[Task], Any]  # Outputs, as the two below
    residual: Callable[[Task, Responses], Any]
    finish: Callable[..., Any]  # (task, gradient, gram, diagonal, shift)
    commit: Callable[..., None]  # (op, weight, moved, sound, frozen): writes a step that is finite, or counts it


@contextlib.contextmanager
def exact_products(x: Tensor) -> Iterator[None]:
    """A context in which ATen multiplies and adds in full float32, with the same bits every time.

    The settings are those of the process, so they are set only while products are enqueued. cuDNN takes tf32 by
    default, cuBLAS where set_float32_matmul_precision allows it; one of its three products is not float32. On the CPU
    ATen's bits depend on the number of threads, on which the results of GPU kernels must not depend.
    """
    cudnn: Any = torch.backends.cudnn
    # Each of these settings, and autocast, takes microseconds to change: change what differs.
    products = torch.backends.cuda.matmul, cudnn.conv
    inexact = [(setting, old) for setting in products if (old := setting.fp32_precision) != "ieee"]
    flags, threads = (cudnn.benchmark, cudnn.deterministic), torch.get_num_threads()
    casting = torch.is_autocast_enabled(x.device.type)
    try:
        # Not cudnn.flags(): it raises where fp32_precision was set.
        for setting, _ in inexact:
            setting.fp32_precision = "ieee"
        cudnn.benchmark, cudnn.deterministic = False, True
        if x.device.type == "cpu" and threads > 1:
            torch.set_num_threads(1)
        with torch.autocast(x.device.type, enabled=False) if casting else contextlib.nullcontext():
            yield
    finally:
        for setting, old in inexact:
            setting.fp32_precision = old
        cudnn.benchmark, cudnn.deterministic = flags
        if x.device.type == "cpu" and threads > 1:
            torch.set_num_threads(threads)


def rows_of(y: Tensor) -> Tensor:
    """The output of a layer as [P, K]: a view of a linear layer's, or where channels lie last, else a copy."""
    return y if y.dim() == 2 else y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def unfolded(x: Tensor, kernel: Sequence[int], stride: tuple, padding: tuple, dilation: tuple) -> Tensor:
    """The patches of images, a view [B, Ho, Wo, C, kh, kw] of the padded images."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    down, right = ((x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    image, channel, *line = x.stride()
    steps = [line[i] * stride[i] for i in (0, 1)], [line[i] * dilation[i] for i in (0, 1)]
    return x.as_strided((len(x), down, right, x.shape[1], *kernel), (image, *steps[0], channel, *steps[1]))


def by_convolution(weight: Tensor, groups: int) -> bool:
    """Whether ATen's convolution multiplies responses with patches; else patches are written out for a matrix product.

    cuDNN's error was at most 1e-6 of the norm for kernels of 3x3, but 7e-5 for 8x3x32x32 to 96 by 5x5. Groups of
    one channel take ATen's kernels of depthwise convolutions.
    """
    if weight.dim() == 2:
        return False
    return (groups > 1 and weight.shape[1] == 1) or (weight[0].numel() > WRITTEN_OUT and max(weight.shape[2:]) <= 3)


def of_groups(a: Tensor, b: Tensor, groups: int) -> Tensor:
    """aᵀb [K, N] of rows a [P, K] and b [P, groups · N], each group of a's columns with that of b's."""
    a, b = (rows.unflatten(1, (groups, -1)).transpose(0, 1) for rows in (a, b))
    return (a.mT @ b).flatten(0, 1)


def gradient(
    y: Tensor, x: Tensor, kernel: Sequence[int], stride: tuple, padding: tuple, dilation: tuple, groups: int = 1
) -> Tensor:
    """YᵀX [K, N] by ATen, within ``exact_products``.

    Args:
        y: the output of the layer for ``by_convolution``, else its rows [P, K].
        x: the input of the layer, in the result dtype.
        kernel, stride, padding, dilation, groups: of the layer; not read where x is [P, N].
    """
    if x.dim() == 2:
        return y.T @ x
    if y.dim() == 4:
        shaped = x.new_empty((y.shape[1], x.shape[1] // groups, *kernel))
        settings = stride, padding, dilation, False, (0, 0), groups, (False, True, False)
        return torch.ops.aten.convolution_backward(y, x, shaped, None, *settings)[1].flatten(1)
    windows = unfolded(x, kernel, stride, padding, dilation)
    images, each = max(1, UNFOLDED // windows[0].numel()), windows.shape[1] * windows.shape[2]
    total = x.new_empty(0)
    for number, (part, rows) in enumerate(zip(windows.split(images), y.split(images * each), strict=True)):
        patches = part.reshape(len(rows), -1)
        if groups > 1:
            total = total.add_(of_groups(rows, patches, groups)) if number else of_groups(rows, patches, groups)
        else:
            total = total.addmm_(rows.T, patches) if number else rows.T @ patches
    return total


def strided(u: Tensor) -> tuple[tuple[int, ...], int]:
    """(patches of an image, strides of images, neurons and patches) of U, and the number of images."""
    u = u[None].transpose(1, 2) if u.dim() == 2 else u.flatten(2)
    return (u.shape[2], *u.stride()), u.shape[0]


def respond(stages: Stages, task: Task, x: Tensor, sums: bool = True) -> Responses:
    """Y of all patches of x, the input in the result dtype, and with ``sums`` what the products need of it."""
    weight, moments, grouped = task.weight.to(task.dtype), stages.moments(task), task.groups > 1
    with exact_products(x):
        if grouped:
            weight = weight if moments.offset is None else weight - weight.mean((1, 2, 3), keepdim=True)
            moments, task = Moments(None, moments.scale, None), task._replace(decay="none")
        u = x @ weight.T if x.dim() == 2 else F.conv2d(x, weight, None, *task.geometry)
    if task.activation == "linear" and moments.scale is None and not (sums and task.scales_rows):
        return Responses(moments, u, u, None, None)
    u = u.contiguous() if grouped else u
    own = u.view(-1, len(weight) // task.groups, *u.shape[2:]) if grouped else u
    scaled, *columns = stages.activate(task, moments, own, sums)
    return Responses(moments, u, u if scaled is own else scaled.view(u.shape), *columns)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def residual_is_cheaper(P: int, K: int, N: int) -> bool:
    """Whether the residual should take less time than YᵀX, C = YᵀY and tril(C) W, the responses being the same.

    Those three are P K N + P K² + K² N / 2 multiply-adds for all processors. The residual's column tiles of N share
    about 2 P K N, if there are as many as processors, and each has a chain of blocks for every chunk of patches.
    """
    chain = cdiv(P, CHUNK) * cdiv(K, BLOCK) * STEP
    busy = min(cdiv(N, COLUMNS) / PROCESSORS, 1)
    return P < K and max(chain, 2 * P * K * N / (busy * RATE)) < (P * K * N + P * K * K + K * K * N / 2) / RATE


def algorithm(P: int, K: int, N: int, decay: str) -> str:
    """Which of the three algorithms P patches, K neurons and N inputs take."""
    if max(K, N) <= LARGEST:
        return "on chip"
    return "residual" if decay == "triangular" and residual_is_cheaper(P, K, N) else "general"


def outputs_of(stages: Stages, task: Task) -> Any:
    """The ``Outputs`` of at least one patch."""
    K, N = task.flat.shape
    chosen = "general" if task.groups > 1 else algorithm(task.count, K, N, task.decay)
    if chosen == "on chip":
        return stages.on_chip(task)
    x = task.x.to(task.dtype)
    responses = respond(stages, task, x, sums=chosen == "general")
    if stages.readable(x):
        checks.no_overflow(task.op, checks.RESPONSES, responses.y)
    return stages.residual(task, responses) if chosen == "residual" else general(stages, task, x, responses)


def general(stages: Stages, task: Task, x: Tensor, responses: Responses) -> Any:
    """The ``Outputs`` by ATen's products."""
    gram, diagonal, groups = None, responses.diagonal, task.groups
    with exact_products(x):
        scaled = responses.scaled if by_convolution(task.weight, groups) else rows_of(responses.scaled)
        product = gradient(scaled, x, task.weight.shape[2:], *task.geometry).contiguous()
        if task.decay == "triangular":
            rows = scaled if scaled.dim() == 2 and responses.scaled is responses.y else rows_of(responses.y)
            gram = rows.T @ rows if groups == 1 else of_groups(rows, rows, groups)
        if groups > 1:
            product, gram, diagonal = less_of_groups(task, product, gram, responses.y)
    return stages.finish(task, product, gram, diagonal, responses.shift)


def less_of_groups(task: Task, product: Tensor, gram: Tensor | None, y: Tensor) -> tuple[Tensor, None, Tensor | None]:
    """What Stages.finish takes of a layer of groups: YᵀX C, less tril(YᵀY) W of each group, no gram, and d.

    product: YᵀX [K, N]; gram: YᵀY of each group [K, K / groups], or None.
    """
    weight, axes = task.flat.to(task.dtype), (0, 2, 3)
    if task.patches != "raw":
        product = product - product.mean(1, keepdim=True)
    if gram is not None:
        of_each, gram, rows = (part.unflatten(0, (task.groups, -1)) for part in (product, gram, weight))
        product = torch.baddbmm(of_each, gram.tril(), rows, alpha=-1).flatten(0, 1)
    if not task.scales_rows:
        return product, None, None
    if task.activation == "softmax":  # Σ r u = w · Σ r x̃
        return product, None, (product * weight).sum(1)
    return product, None, (y.sum(axes) if task.decay == "activity" else y.square().sum(axes))


def raise_on_overflow(stages: Stages, task: Task, sums: Tensor) -> None:
    """Raise ValueError, as backend eager does, if ``sums`` is not finite."""
    if not sums.isfinite().all():
        responses = respond(stages, task, task.x.to(task.dtype), sums=False)
        checks.no_overflow(task.op, checks.RESPONSES, responses.y)
        checks.no_overflow(task.op, checks.SUMS, sums)


def begin(
    stages: Stages, op: str, x: Tensor, weight: Tensor, count: int, rule: tuple[str, str, float, str],
    geometry: tuple, frozen: Tensor | None, lr: float | None = None,
) -> Task:  # fmt: skip
    """The ``Task`` of checked arguments; rule: activation, decay, temperature, patches."""
    flat, groups = weight.reshape(weight.shape[0], -1).contiguous(), geometry[-1]
    x = x if groups == 1 else x.contiguous()
    images = x if groups == 1 else x.view(-1, weight.shape[1], *x.shape[2:])
    view = stages.patch_view(images, weight.shape[2:], *geometry[:-1])
    frozen = None if frozen is None else frozen.contiguous()
    return Task(op, x, weight, flat, view, count, *rule, geometry, frozen, lr)


def patches_of_a_neuron(op: str, x: Tensor, weight: Tensor, patches: str, *geometry: Any) -> int:
    return checks.geometry(op, x, "weight", weight.shape[2:], patches, *geometry) // geometry[-1]


@torch.no_grad()
def dense_update(stages: Stages, x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator ``dense_update``; arguments: the rest of its schema."""
    op = "dense_update"
    if stages.readable(x):
        checks.finite(op, x=x, weight=weight)
    activation, decay, temperature, patches, *geometry, frozen = arguments
    dtype, count = checks.result_dtype(x.dtype), patches_of_a_neuron(op, x, weight, patches, *geometry)
    if count == 0:
        return x.new_zeros(weight.shape, dtype=dtype), x.new_zeros(1, dtype=dtype)
    rule = activation, decay, temperature, patches
    task = begin(stages, op, x, weight, count, rule, tuple(geometry), frozen)
    total = outputs_of(stages, task).sums
    if stages.readable(x):
        raise_on_overflow(stages, task, total)
    return total.reshape(weight.shape), x.new_full((1,), count, dtype=dtype)


@torch.no_grad()
def dense_step_(stages: Stages, weight: Tensor, x: Tensor, *arguments: Any) -> None:
    """The operator ``dense_step_``; arguments: the rest of its schema.

    The last kernel of dense_update computes the weights after the step; one more launch writes them if all are finite.
    """
    op = "dense_step_"
    stages.raise_if_skipped(weight)
    if stages.readable(x):
        checks.finite(op, x=x, weight=weight)
    activation, decay, lr, patches, *geometry, frozen = arguments
    count = patches_of_a_neuron(op, x, weight, patches, *geometry)
    if count == 0:
        return
    rule = activation, decay, 1.0, patches
    task = begin(stages, op, x, weight, count, rule, tuple(geometry), frozen, lr)
    outputs = outputs_of(stages, task)
    if stages.readable(x) and not outputs.moved.isfinite().all():
        raise_on_overflow(stages, task, outputs_of(stages, task._replace(lr=None)).sums)
    stages.commit(op, weight, outputs.moved, outputs.sound, task.frozen)
