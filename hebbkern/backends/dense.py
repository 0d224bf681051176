"""dense: the dense rules on a GPU, composed of ATen's bulk products and the stages of a backend.

Shapes alone choose one of three ways:

    on chip   all weights fit on chip: no responses in memory
    residual  triangular decay, fewer patches than neurons: R = X - Y W of the neurons so far, block after block
    general   ATen's layer and its products YᵀX and YᵀY; own kernels turn U into Y and the products into the sum

A backend is a module (hebbkern.backends.triton.dense_update, hebbkern.backends.cuda) with these functions:

    readable(tensor)                      whether values can be looked at without waiting for a device
    look(weight)                          raises if earlier steps on that device are known to have been skipped
    place(x, kernel, *geometry)           what its kernels are told of the patches, kept as task.where
    moments(task)                         of the patches, with at least a ``Moments``' fields
    activate(task, moments, u, sums)      U becomes Y in its place -> taught, diagonal, shift of ``Responses``
    on_chip(task), residual(task, found), finish(task, gradient, gram, diagonal, shift) -> ``Outputs``
    commit(op, weight, moved, sound, frozen)    writes a step that is sound everywhere, or counts it as skipped

U is [images, K, patches of an image] behind three strides; a linear layer is one image whose patches are the samples.
"""

import contextlib
from typing import NamedTuple

import torch
import torch.nn.functional as F

from hebbkern import checks

LARGEST = (
    64  # neurons, and inputs, that fit on chip: weights, G and C of 64 x 64 are 48 numbers for each of 256 threads
)
COLUMNS, CHUNK = 16, 64  # inputs and patches of a residual on chip
BLOCK = 16  # neurons that pass by a residual at once
UNFOLDED = 2**25  # entries of patches of images that are written out at a time, 128 MiB in float32
# Inputs of a patch up to which patches are written out. With 75 that took 100 µs on an H100 and cuDNN's deterministic
# weight gradient 254 (64x3x32x32 to 96), with 864 126 and 66, with 1152 177 and 63, with 1728 108 and 65.
WRITTEN_OUT = 256
STEP = 1.5e-6  # seconds for a block of neurons to pass by, each waiting for the one before: an estimate for an H100
RATE = 25e12  # float32 multiply-adds a second that large products reach there, likewise
PROCESSORS = 132  # its multiprocessors


class Task(NamedTuple):
    """One call of a dense rule."""

    op: str
    x: torch.Tensor
    weight: torch.Tensor
    flat: torch.Tensor  # the weights as [K, N], contiguous
    where: object  # the patches, as the backend's kernels are told of them
    count: int  # of patches
    activation: str
    decay: str
    temperature: float
    patches: str
    geometry: tuple  # stride, padding, dilation
    frozen: torch.Tensor | None
    lr: float | None  # None: the sum is wanted, not the weights after the step

    @property
    def dtype(self):
        return checks.result_dtype(self.x.dtype)


class Moments(NamedTuple):
    """x̃ = (x - offset) · scale; None where a number is the same everywhere: offset 0, scale 1, total not asked for."""

    offset: torch.Tensor | None  # [P]
    scale: torch.Tensor | None  # [P]
    total: torch.Tensor | None  # [K], Σ w


class Responses(NamedTuple):
    """Y, or what a competition made of it; None where nobody needs it."""

    moments: Moments
    y: torch.Tensor  # shaped like the output of the layer
    taught: torch.Tensor  # Y · scale of each patch
    diagonal: torch.Tensor | None  # [K], Σ y², of softmax Σ r u
    shift: torch.Tensor | None  # [K], Σ y · scale · offset


class Outputs(NamedTuple):
    """The sum [K, N], or the weights after the step and, a block of threads, whether they are finite."""

    sums: torch.Tensor | None = None
    moved: torch.Tensor | None = None
    sound: torch.Tensor | None = None


@contextlib.contextmanager
def exact_products(x):
    """ATen's products in float32 proper, and its sums, with the same bits every time.

    Its settings hold for the process, so they are set only while products are enqueued. cuDNN takes tf32 unless told
    otherwise, cuBLAS where set_float32_matmul_precision allows it; one of its three products is not float32. On the CPU
    ATen's bits change with the number of threads, on which what GPUs' kernels give there is not to depend.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # To set one takes microseconds, as does autocast, of which a step has few.
    inexact = [(place, way) for place in (matmul, cudnn.conv) if (way := place.fp32_precision) != "ieee"]
    algorithm, threads = (cudnn.benchmark, cudnn.deterministic), torch.get_num_threads()
    casting = torch.is_autocast_enabled(x.device.type)
    try:
        # Not cudnn.flags(): it raises where somebody has set fp32_precision.
        for place, _ in inexact:
            place.fp32_precision = "ieee"
        cudnn.benchmark, cudnn.deterministic = False, True
        if x.device.type == "cpu" and threads > 1:
            torch.set_num_threads(1)
        with torch.autocast(x.device.type, enabled=False) if casting else contextlib.nullcontext():
            yield
    finally:
        for place, way in inexact:
            place.fp32_precision = way
        cudnn.benchmark, cudnn.deterministic = algorithm
        if x.device.type == "cpu" and threads > 1:
            torch.set_num_threads(threads)


def rows_of(y):
    """[P, K] of y as the layer gave it: a view where channels lie last, or of a linear layer, else a copy."""
    return y if y.dim() == 2 else y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])


def unfolded(x, kernel, stride, padding, dilation):
    """[B, Ho, Wo, C, kh, kw], the patches of images, whose memory they share."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    down, right = ((x.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    image, channel, *line = x.stride()
    steps = [line[i] * stride[i] for i in (0, 1)], [line[i] * dilation[i] for i in (0, 1)]
    return x.as_strided((len(x), down, right, x.shape[1], *kernel), (image, *steps[0], channel, *steps[1]))


def by_convolution(inputs, kernel):
    """Whether ATen's convolution multiplies responses with patches, or these are written out for a matrix product.

    cuDNN's error was at most 1e-6 of the norm for kernels of 3x3, but 7e-5 for 8x3x32x32 to 96 by 5x5.
    """
    return inputs > WRITTEN_OUT and max(kernel) <= 3


def gradient(y, x, kernel, stride, padding, dilation):
    """YᵀX [K, N] by ATen, x the layer's input; ``exact_products`` holds.

    y as the layer gave it for ``by_convolution``, else as rows [P, K], and so many images' patches at a time.
    """
    if x.dim() == 2:
        return y.T @ x
    if y.dim() == 4:
        shaped = x.new_empty((y.shape[1], x.shape[1], *kernel))
        settings = stride, padding, dilation, False, (0, 0), 1, (False, True, False)
        return torch.ops.aten.convolution_backward(y, x, shaped, None, *settings)[1].flatten(1)
    windows = unfolded(x, kernel, stride, padding, dilation)
    images, each = max(1, UNFOLDED // windows[0].numel()), windows.shape[1] * windows.shape[2]
    total = None
    for part, taught in zip(windows.split(images), y.split(images * each), strict=True):
        seen = part.reshape(len(taught), -1)
        total = taught.T @ seen if total is None else total.addmm_(taught.T, seen)
    return total


def raw_responses(task, x, kernels):
    """U of the patches as they are, by ATen; x and kernels in the result dtype."""
    if x.dim() == 2:
        return x @ kernels.T
    return F.conv2d(x, kernels, None, *task.geometry)


def strided(u):
    """(patches of an image, strides of images, neurons and patches) of U, and how many images."""
    u = u[None].transpose(1, 2) if u.dim() == 2 else u.flatten(2)
    return (u.shape[2], *u.stride()), u.shape[0]


def respond(stages, task, x, sums=True):
    """Y of all patches of x, the input in the result dtype, and with ``sums`` what the gradient needs of it."""
    kernels, found = task.weight.to(task.dtype), stages.moments(task)
    with exact_products(x):
        u = raw_responses(task, x, kernels)
    if task.activation == "linear" and found.offset is None and not (sums and task.decay == "diagonal"):
        return Responses(found, u, u, None, None)
    return Responses(found, u, *stages.activate(task, found, u, sums))


def cdiv(a, b):
    return -(-a // b)


def residual_is_cheaper(P, K, N):
    """Whether it should take less time than YᵀX, C = YᵀY and tril(C) W, the responses being the same.

    Those three are P K N + P K² + K² N / 2 multiply-adds for all processors. Here the column tiles of N share about
    2 P K N among them, if they are as many as processors, and each has a chain of blocks for every chunk of patches.
    """
    chain = cdiv(P, CHUNK) * cdiv(K, BLOCK) * STEP
    busy = min(cdiv(N, COLUMNS) / PROCESSORS, 1)
    return P < K and max(chain, 2 * P * K * N / (busy * RATE)) < (P * K * N + P * K * K + K * K * N / 2) / RATE


def way(P, K, N, decay):
    """Which of the three."""
    if max(K, N) <= LARGEST:
        return "on chip"
    return "residual" if decay == "triangular" and residual_is_cheaper(P, K, N) else "general"


def outputs_of(stages, task):
    """The ``Outputs`` of at least one patch."""
    chosen = way(task.count, *task.flat.shape, task.decay)
    if chosen == "on chip":
        return stages.on_chip(task)
    x = task.x.to(task.dtype)
    found = respond(stages, task, x, sums=chosen == "general")
    if stages.readable(x):
        checks.no_overflow(task.op, checks.RESPONSES, found.y)
    return stages.residual(task, found) if chosen == "residual" else general(stages, task, x, found)


def general(stages, task, x, found):
    """The ``Outputs`` by ATen's products."""
    gram = None
    with exact_products(x):
        kernel = task.weight.shape[2:]
        taught = found.taught
        if not (kernel and by_convolution(task.flat.shape[1], kernel)):
            taught = rows_of(taught)
        product = gradient(taught, x, kernel, *task.geometry).contiguous()
        if task.decay == "triangular":
            rows = taught if taught.dim() == 2 and found.taught is found.y else rows_of(found.y)
            gram = rows.T @ rows
    return stages.finish(task, product, gram, found.diagonal, found.shift)


def refuse_overflow(stages, task, result):
    """Raise eager's sentence if ``result`` is not finite."""
    if not result.isfinite().all():
        found = respond(stages, task, task.x.to(task.dtype), sums=False)
        checks.no_overflow(task.op, checks.RESPONSES, found.y)
        checks.no_overflow(task.op, checks.SUMS, result)


def begin(stages, op, x, weight, count, activation, decay, temperature, patches, *where, lr=None):
    """The ``Task`` of arguments that were checked; where: stride, padding, dilation, frozen."""
    *geometry, frozen = where
    flat = weight.reshape(weight.shape[0], -1).contiguous()
    at = stages.place(x, weight.shape[2:], *geometry)
    frozen = None if frozen is None else frozen.contiguous()
    rule = activation, decay, temperature, patches, tuple(geometry)
    return Task(op, x, weight, flat, at, count, *rule, frozen, lr)


@torch.no_grad()
def dense_update(stages, x, weight, activation, decay, temperature, patches, *where):
    """The operator of that name; where: stride, padding, dilation, frozen."""
    rule = activation, decay, temperature, patches, *where
    count = checks.layer("dense_update", x, weight, patches, *where[:-1])
    if stages.readable(x):
        checks.finite("dense_update", x=x, weight=weight)
    dtype = checks.result_dtype(x.dtype)
    if count == 0:
        return x.new_zeros(weight.shape, dtype=dtype), x.new_zeros(1, dtype=dtype)
    task = begin(stages, "dense_update", x, weight, count, *rule)
    total = outputs_of(stages, task).sums
    if stages.readable(x):
        refuse_overflow(stages, task, total)
    return total.reshape(weight.shape), x.new_full((1,), count, dtype=dtype)


@torch.no_grad()
def dense_step_(stages, weight, x, activation, decay, lr, patches, *where):
    """The operator of that name: dense_update's last kernel takes the step, and one launch more writes it if it is sound."""
    op = "dense_step_"
    count = checks.layer(op, x, weight, patches, *where[:-1])
    stages.look(weight)
    if stages.readable(x):
        checks.finite(op, x=x, weight=weight)
    if count == 0:
        return
    task = begin(stages, op, x, weight, count, activation, decay, 1.0, patches, *where, lr=lr)
    outputs = outputs_of(stages, task)
    if stages.readable(x) and not outputs.moved.isfinite().all():
        sums = outputs_of(stages, task._replace(lr=None)).sums
        refuse_overflow(stages, task, sums)  # says so if the sum is to blame
    stages.commit(op, weight, outputs.moved, outputs.sound, task.frozen)
