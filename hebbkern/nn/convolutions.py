"""HebbianConv1d, HebbianConv2d and HebbianConv3d: torch's convolutions with a local learning rule.

The rules know patches of two axes. A convolution over one axis is one over images of height 1. One over three axes
learns slice by slice: the patches of an output depth are patches of an image that has C·kd channels, those of the kd
depths that its kernel covers.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.checks import fail, shape_name
from hebbkern.nn.layers import HebbianLayer, check_rule
from hebbkern.rules import Rule

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
SizeT = TypeVar("SizeT", tuple[int], tuple[int, int], tuple[int, int, int])  # a number for each axis
AXES = ("depth", "height", "width")


class HebbianConvolution(HebbianLayer, Generic[SizeT]):
    """What the convolutions share: a batch of padded inputs, and a geometry of two axes."""

    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | SizeT,
        stride: int | SizeT = 1,
        padding: int | SizeT | str = 0,
        dilation: int | SizeT = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: Rule,
    ) -> None:
        check_rule(type(self).__name__, rule)
        settings: Any = (stride, padding, dilation, groups, bias, padding_mode, device, dtype)
        super().__init__(in_channels, out_channels, kernel_size, *settings)  # of the torch layer
        self._init_hebbian(rule, out_channels)

    def _rule_input(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        x, padding = self._padded(self._batch(x))
        geometry = {"stride": self.stride, "padding": padding, "dilation": self.dilation, "groups": self.groups}
        return x, labels, geometry

    def _batch(self, x: Tensor) -> Tensor:
        """x with a batch axis. Raises ValueError if it has other axes or channels than inputs of the layer."""
        axes = len(self.kernel_size)
        if x.dim() not in (axes + 1, axes + 2) or x.shape[-axes - 1] != self.in_channels:
            wanted = f"{self.in_channels} channels, {', '.join(AXES[-axes:])}"
            fail(f"{type(self).__name__}.learn", "x", f"be [batch, {wanted}] or [{wanted}]", shape_name(x))
        return x if x.dim() == axes + 2 else x.unsqueeze(0)

    def _padded(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """x, padded if the rules have no such padding, and the zeros that they add on both sides of each axis."""
        if not isinstance(self.padding, str) and self.padding_mode == "zeros":
            return x, self.padding
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0,) * len(self.kernel_size)


class HebbianConv1d(HebbianConvolution[tuple[int]], nn.Conv1d):
    """A `torch.nn.Conv1d` that learns by a local rule: inside `hebbkern.learning`, or by its method `learn`.

    Each filter is a neuron, each receptive field of the batch a patch; the rules see images of height 1. Groups, bias,
    gradients, rule and frozen are as for `HebbianConv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for `torch.nn.Conv1d`, but bias is False by default.
        rule: a learning rule, e.g. `hebbkern.WTA()`.

    Raises:
        ValueError: rule is not a hebbkern rule.
    """

    plain = nn.Conv1d

    def _rule_weight(self, weight: Tensor) -> Tensor:
        return weight.unsqueeze(2)

    def _rule_input(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        x, labels, geometry = super()._rule_input(x, labels)
        for name, of_height in {"stride": 1, "padding": 0, "dilation": 1}.items():
            geometry[name] = (of_height, *geometry[name])
        return x.unsqueeze(2), labels, geometry


class HebbianConv2d(HebbianConvolution[tuple[int, int]], nn.Conv2d):
    """A `torch.nn.Conv2d` that learns by a local rule: inside `hebbkern.learning`, or by its method `learn`.

    Each filter is a neuron, each receptive field of the batch a patch. With groups, the neurons of a group see and
    compete for the patches of its channels, or are ordered among themselves, as if each group were a layer of its own;
    a rule of k winners needs k neurons in a group. Gradients, bias, rule and frozen are as for `HebbianLinear`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for `torch.nn.Conv2d`, but bias is False by default.
        rule: a learning rule, e.g. `hebbkern.WTA()`.

    Raises:
        ValueError: rule is not a hebbkern rule.
    """

    plain = nn.Conv2d


class HebbianConv3d(HebbianConvolution[tuple[int, int, int]], nn.Conv3d):
    """A `torch.nn.Conv3d` that learns by a local rule: inside `hebbkern.learning`, or by its method `learn`.

    Each filter is a neuron, each receptive field of the batch a patch. A step copies the input once for each of the kd
    depths of the kernel (divided by the stride along the depth), as images of C·kd channels, one for each output depth;
    nothing is copied for the other two axes. A weight in channels_last_3d is copied too. Groups, bias, gradients, rule
    and frozen are as for `HebbianConv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for `torch.nn.Conv3d`, but bias is False by default.
        rule: a learning rule, e.g. `hebbkern.WTA()`.

    Raises:
        ValueError: rule is not a hebbkern rule.
    """

    plain = nn.Conv3d

    def _rule_weight(self, weight: Tensor) -> Tensor:
        return weight.flatten(1, 2)

    def _is_viewed(self, weight: Tensor) -> bool:
        channels, depth = weight.shape[1:3]
        return channels == 1 or depth == 1 or weight.stride(1) == depth * weight.stride(2)

    def _rule_input(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        labels = labels if self.rule.uses_labels else None
        if labels is not None:
            self.rule.check_labels(self._batch(x), labels)
        x, labels, geometry = super()._rule_input(x, labels)
        (stride, *strides), (padding, *paddings), (dilation, *dilations) = (
            geometry[name] for name in ("stride", "padding", "dilation")
        )
        x = F.pad(x, (0, 0, 0, 0, padding, padding)) if padding else x
        span = dilation * (self.kernel_size[0] - 1) + 1
        if span > x.shape[2]:
            got = f"a kernel that spans {span}"
            fail(f"{type(self).__name__}.learn", "weight", f"fit into the padded depth {x.shape[2]}", got)
        x = x.unfold(2, span, stride)[..., ::dilation].permute(0, 2, 1, 5, 3, 4)  # [B, Do, C, kd, H, W]
        if labels is not None:
            labels = labels.repeat_interleave(x.shape[1])
        x = x.flatten(2, 3).flatten(0, 1)
        return x, labels, geometry | {"stride": strides, "padding": paddings, "dilation": dilations}
