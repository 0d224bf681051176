"""Checks of arguments and settings: shapes, dtypes, devices and names first, values at the end.

The checks of the operators (hebbkern/ops) call the first kind, the kernels in Python the second; the compiled kernels
raise the same sentences (csrc/common/checks.h). Every failure is a ValueError that names the argument, what it must be
and what came, before anything is written.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PATCHES = ("raw", "centred", "standardised")
ACTIVATIONS = ("linear", "relu", "tanh", "softmax")
DECAYS = ("triangular", "diagonal", "activity", "none")
NORMALISATIONS = ("none", "row_max", "row_l2", "global_max")
MOST_WINNERS = 64
FLAT = 1e-6  # a patch whose centred norm is at most this part of its norm counts as constant
MOST_CLASSES = 1000  # that labels may name, or as many as there are samples: memory grows with the highest label
LARGEST_EXTENT = 2**31 - 1  # extents below it multiply without overflow
RESPONSES = "x and weight must give finite responses"
SUMS = "x and weight must give finite sums"


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fail(op: str, argument: str, want: str, got: object) -> NoReturn:
    raise ValueError(f"hebbkern.{op}: {argument} must {want}, got {got}")


def check_tensor(op: str, argument: str, value: object) -> None:
    """Raises ValueError unless value is a tensor, or stands for one as those of torch.fx do."""
    if not isinstance(value, Tensor) and not hasattr(type(value), "__torch_function__"):
        fail(op, argument, "be a tensor", "None" if value is None else type(value).__name__)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_name(tensor: Tensor) -> str:
    return f"shape {list(tensor.shape)}"


def full_name(tensor: Tensor) -> str:
    return f"{dtype_name(tensor.dtype)} of {shape_name(tensor)}"


def is_finite(number: float) -> bool:
    return -math.inf < number < math.inf


def rate(op: str, lr: float) -> None:
    if not is_finite(lr):
        fail(op, "lr", "be finite", f"{lr:g}")


def choice(op: str, argument: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        quoted = [f'"{name}"' for name in names]
        fail(op, argument, f"be {', '.join(quoted[:-1])} or {quoted[-1]}", f'"{value}"')


def floating(op: str, argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        fail(op, argument, "be float32, float64, bfloat16 or float16", dtype_name(tensor.dtype))


def inputs(op: str, x: Tensor) -> None:
    if x.dim() not in (2, 4):
        fail(op, "x", "be [batch, inputs] or [batch, channels, height, width]", shape_name(x))
    floating(op, "x", x)
    if 0 in x.shape[1:2]:
        fail(op, "x", "have at least one input", shape_name(x))


def device(op: str, argument: str, tensor: Tensor, owner: str, other: Tensor) -> None:
    if tensor.device != other.device:
        fail(op, argument, f"be on {owner}'s device {other.device}", tensor.device)


def weights(op: str, x: Tensor, weight: Tensor, groups: int) -> None:
    """x and weight belong together; ``inputs(op, x)`` holds."""
    if weight.dim() != x.dim():
        axes = "[neurons, inputs]" if x.dim() == 2 else "[neurons, channels, height, width]"
        fail(op, "weight", f"be {axes} like x's {x.dim()} dimensions", shape_name(weight))
    if weight.dtype != x.dtype:
        fail(op, "weight", f"have x's dtype {dtype_name(x.dtype)}", dtype_name(weight.dtype))
    device(op, "weight", weight, "x", x)
    if 0 in weight.shape:
        fail(op, "weight", "have at least one neuron and one input", shape_name(weight))
    grouping(op, x, weight.shape[0], groups)
    if weight.shape[1] * groups != x.shape[1]:
        kind = "inputs" if x.dim() == 2 else "channels" if groups == 1 else f"channels / {groups} groups"
        fail(op, "weight", f"have x's {x.shape[1]} {kind}", weight.shape[1])


def grouping(op: str, x: Tensor, neurons: int, groups: int) -> None:
    """Channels and neurons divide into groups; ``inputs(op, x)`` holds."""
    if groups == 1:
        return
    if x.dim() == 2:
        fail(op, "groups", "be 1 for a linear layer", groups)
    if groups < 1 or x.shape[1] % groups or neurons % groups:
        fail(op, "groups", f"divide x's {x.shape[1]} channels and the {neurons} neurons", groups)


def geometry(
    op: str,
    x: Tensor,
    argument: str,
    kernel: Sequence[int],
    patches: str,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> int:
    """Number of patches of x under a kernel that fits it: [] or [kh, kw], given by ``argument``."""
    choice(op, "patches", patches, PATCHES)
    for name, extents, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(extents) != 2 or min(extents) < least:
            fail(op, name, f"be two numbers of at least {least}", list(extents))
        if max(extents) > LARGEST_EXTENT:
            fail(op, name, f"be two numbers of at most {LARGEST_EXTENT}", list(extents))
    if x.dim() == 2:
        if (*stride, *padding, *dilation) != (1, 1, 0, 0, 1, 1):
            given = f"{list(stride)}, {list(padding)}, {list(dilation)}"
            fail(op, "stride, padding and dilation", "be 1, 0 and 1 for a linear layer", given)
        return x.shape[0]
    padded = [x.shape[2 + axis] + 2 * padding[axis] for axis in (0, 1)]
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    if span[0] > padded[0] or span[1] > padded[1]:
        want = f"fit into the padded image {padded[0]}x{padded[1]}"
        fail(op, argument, want, f"a kernel that spans {span[0]}x{span[1]}")
    rows, columns = ((padded[axis] - span[axis]) // stride[axis] + 1 for axis in (0, 1))
    return groups * x.shape[0] * rows * columns


def layer(
    op: str, x: Tensor, weight: Tensor, patches: str, stride: Any, padding: Any, dilation: Any, groups: int
) -> int:
    """Everything that the operators of x and weight share; the number of patches."""
    inputs(op, x)
    weights(op, x, weight, groups)
    return geometry(op, x, "weight", weight.shape[2:], patches, stride, padding, dilation, groups)


def neuron_mask(op: str, argument: str, mask: Tensor | None, neurons: int, like: Tensor) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.dim() != 1 or mask.shape[0] != neurons or mask.device != like.device:
        want = f"be bool of shape [{neurons}] on {like.device}"
        fail(op, argument, want, f"{full_name(mask)} on {mask.device}")


def typed(
    op: str,
    argument: str,
    tensor: Tensor | None,
    dtype: torch.dtype,
    shapes: Sequence[Sequence[int]],
    owner: str,
    like: Tensor,
) -> None:
    """An optional tensor of exactly this dtype, one of these shapes and ``like``'s device."""
    if tensor is None:
        return
    if tensor.dtype != dtype or all(list(tensor.shape) != list(shape) for shape in shapes):
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        fail(op, argument, f"be {dtype_name(dtype)} of shape {wanted}", full_name(tensor))
    device(op, argument, tensor, owner, like)


def finite(op: str, **tensors: Tensor | None) -> None:
    """Values: no NaN, no infinity. Reads the tensors, so no fake kernel calls it."""
    for argument, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            fail(op, argument, "be finite", "a NaN or an infinity")


def no_overlap(op: str, weight: Tensor, **tensors: Tensor | None) -> None:
    """Memory: no tensor without gaps shares it with the weight, unless it is the same view."""
    for argument, tensor in tensors.items():
        if tensor is None or not _overlap(tensor, weight):
            continue
        views = {(one.data_ptr(), one.dtype, one.shape, one.stride()) for one in (tensor, weight)}
        if len(views) > 1:
            fail(op, argument, "not share memory with weight", "one that overlaps it")


def _overlap(*tensors: Tensor) -> bool:
    """Whether two tensors without gaps have an address in common."""
    ranges = []
    for one in tensors:
        entries = 1 + sum(stride * (size - 1) for stride, size in zip(one.stride(), one.shape, strict=True))
        if entries != one.numel():
            return False
        ranges.append((one.data_ptr(), one.data_ptr() + entries * one.element_size()))
    (first, end), (other, other_end) = ranges
    return first < other_end and other < end


def none_skipped(number: int, device: torch.device) -> None:
    """Raise RuntimeError if `number` steps were skipped on `device`, whose kernels count those that are not finite."""
    if number:
        steps = "1 step was" if number == 1 else f"{number} steps were"
        raise RuntimeError(
            f"hebbkern: {steps} skipped on {device}, the weights left as before: a NaN or an infinity was in the "
            "inputs, or a weight would have overflowed"
        )


def no_overflow(op: str, sentence: str, *results: Tensor) -> None:
    """Values: results computed from finite numbers are finite."""
    for result in results:
        if not result.isfinite().all():
            raise ValueError(f"hebbkern.{op}: {sentence}, got an overflow of {dtype_name(result.dtype)}")


def finite_norms(op: str, norms: Tensor) -> None:
    """Values: patches can be divided by their norms."""
    if not (norms.isfinite() & (1 / norms).isfinite()).all():
        got = f"one beyond {dtype_name(norms.dtype)}"
        fail(op, "x", "have patches whose norm and its inverse are finite", got)


def named_range(op: str, argument: str, named: Tensor, neurons: int, groups: int = 1) -> None:
    """Values: every entry is a neuron, or -1 for none; with groups a neuron of the row's group."""
    each = neurons // groups
    for group, rows in enumerate(named.chunk(groups) if len(named) else ()):
        outside = rows[(rows != -1) & ((rows < group * each) | (rows >= (group + 1) * each))]
        if outside.numel():
            of_group = "" if groups == 1 else f" in patches of group {group}"
            want = f"name neurons {group * each} to {(group + 1) * each - 1}, or -1 for no neuron{of_group}"
            fail(op, argument, want, int(outside[0]))


def wanted_of_file(path: str) -> str | None:
    """What a path must be to be written as a file, "a file" or "in a folder that exists"; None if it is both."""
    if Path(path).is_dir():
        return "a file"
    return None if Path(path).parent.is_dir() else "in a folder that exists"


class Settings:
    """Base of dataclasses whose fields are checked: ValueError `hebbkern.<class>: <field> must be ..., got ...`."""

    def _one_of(self, name: str, wanted: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in wanted:
            names = ", ".join(f'"{option}"' for option in wanted[:-1])
            self._refuse(name, f'{names} or "{wanted[-1]}"', f'"{value}"' if isinstance(value, str) else value)

    def _whole(self, name: str, least: int, most: int = 2**63 - 1) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            self._refuse(name, "a whole number", value)
        if value < least:
            self._refuse(name, f"at least {least}", value)
        if int(value) > most:
            self._refuse(name, f"at most {most}", value)
        object.__setattr__(self, name, int(value))  # NumPy's integers are no int to torch

    def _number(self, name: str, wanted: str, test: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not test(float(value)):
            self._refuse(name, f"a finite number{wanted}", value)
        object.__setattr__(self, name, value if isinstance(value, int) else float(value))

    def _boolean(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            self._refuse(name, "True or False", getattr(self, name))

    def _refuse(self, name: str, wanted: str, got: object) -> NoReturn:
        raise ValueError(f"hebbkern.{type(self).__name__}: {name} must be {wanted}, got {got}")
