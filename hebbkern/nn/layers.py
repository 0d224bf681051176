"""HebbianLinear, HebbianConv2d and KWinners: torch's own layers, with a rule by which they learn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern import ops
from hebbkern.nn.learning import Hebbian, check_dtype, check_into, check_linear, check_rate
from hebbkern.ops.checks import result_dtype
from hebbkern.rules import Rule
from hebbkern.update import Update

LONG = 2.0**24


class _HebbianLayer(Hebbian):
    """What both layers share: the rule, the frozen neurons, and learning before answering."""

    def _init_hebbian(self, rule: Rule) -> None:
        """Turns a torch layer whose class was just set to a Hebbian one into a working Hebbian layer."""
        check_rule(type(self).__name__, rule)
        self.rule = rule
        self.weight.requires_grad_(False)
        self.weight.grad = None  # an optimiser would step along a gradient that stayed behind
        frozen = torch.zeros(self.weight.shape[0], dtype=torch.bool, device=self.weight.device)
        self.register_buffer("frozen", frozen)

    def forward(self, input: Tensor) -> Tensor:
        lesson = self.lesson
        if lesson is not None:
            self._check_dtype(input)
            lr = lesson.lr_tensor if torch.compiler.is_compiling() else lesson.lr
            self.learn(input, lr, lesson.labels, into=lesson.into, group=lesson.group, dtype=lesson.dtype)
            if lesson.then is not None:
                lesson.then(self)
        return super().forward(input)

    def learn(
        self,
        x: Tensor,
        lr: float | None = None,
        labels: Tensor | None = None,
        *,
        into: str = "weight",
        group=None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """One step of the rule on the batch x, the layer's input. Nothing is recorded for autograd.

        x is cast to the weight's dtype, or to `dtype`, and autocast is off while learning. Deterministic, as the rules
        are.

        Args:
            x: what the layer answers: [B, ..., N] or [N], or images [B, C, H, W] or [C, H, W].
            lr: learning rate, finite; may only be left out with into="grad", where it is 1.0.
            labels: [B] integers, for Supervised; where a linear layer sees x [B, ..., N], a label a sample, which teaches
                all of it, or labels [B, ...], one a position.
            into: "weight", or "grad": the weight stays and −lr·Δ is added to weight.grad, see `hebbkern.learning`.
            group: a torch.distributed group over which the update is summed before it is applied; every process must
                call, one without samples with an empty x.
            dtype: of the products, None = the weight's: the update is that of weight and x rounded to it, and is
                applied to the weight as it is, see `hebbkern.learning`.

        Raises ValueError or RuntimeError on wrong shapes and on a NaN, weights as before.
        """
        if lr is None or into != "weight":
            lr = self._rate_into(into, lr)
        x, labels = self._samples(x.detach(), labels)
        if dtype is not None:
            check_dtype(f"{type(self).__name__}.learn", dtype)
        wanted = self.weight.dtype if dtype is None else dtype
        if x.dtype != wanted and x.is_floating_point():
            x = x.to(wanted)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                self._step(x, lr, labels, into, group, wanted)
        else:
            self._step(x, lr, labels, into, group, wanted)

    def _rate_into(self, into: str, lr) -> float:
        """The rate of a step that is not the ordinary one, checked."""
        where = f"{type(self).__name__}.learn"
        check_into(where, into)
        if into == "grad":
            check_linear(where, self.rule)
            lr = 1.0 if lr is None else lr
        if not isinstance(lr, Tensor):  # a compiled model's, checked by `learning`
            check_rate(where, lr)
        return lr

    def _step(self, x: Tensor, lr: float, labels: Tensor | None, into: str, group, dtype: torch.dtype) -> None:
        x, geometry = self._patches(x)
        options = {"labels": labels, "frozen": self.frozen, **geometry}
        if into == "weight" and group is None:
            own = {} if dtype == self.weight.dtype else {"dtype": dtype}
            self.rule.step_(self.weight, x, lr=lr, **options, **own)
            return
        update = self.rule.update(self.weight.to(dtype), x, **options).to(result_dtype(self.weight.dtype))
        if group is not None:
            update = update.all_reduce(group)
        if into == "weight":
            self.rule.apply_(self.weight, update, lr=lr, frozen=self.frozen)
        else:
            self._add_gradient(update, lr)

    def _add_gradient(self, update: Update, lr: float) -> None:
        """weight.grad −= lr · the step that the rule would take at lr = 1."""
        weight = self.weight.detach()
        before = weight if weight.dtype == torch.float64 else weight.float()
        after = before.clone(memory_format=torch.contiguous_format)
        # A long step, by a power of two, so that what is added to the weight is not rounded as coarsely as the weight.
        self.rule.apply_(after, update, lr=LONG, frozen=self.frozen)
        gradient = after.sub_(before).mul_(-lr / LONG).to(weight.dtype)
        if self.weight.grad is None:
            self.weight.grad = gradient
        else:
            self.weight.grad += gradient

    def _check_dtype(self, input: Tensor) -> None:
        """Refuses what the forward pass would refuse after the weights have moved."""
        if input.dtype != self.weight.dtype and not torch.is_autocast_enabled(input.device.type):
            wanted, got = (str(tensor.dtype).removeprefix("torch.") for tensor in (self.weight, input))
            raise ValueError(f"hebbkern.{type(self).__name__}: input must have the weight's dtype {wanted}, got {got}")

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, *rest) -> None:
        """A checkpoint of the plain torch layer has no `frozen`: it leaves the mask as it is."""
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *rest)
        if prefix + "frozen" in missing_keys and prefix + "weight" in state_dict:
            missing_keys.remove(prefix + "frozen")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"


class HebbianLinear(_HebbianLayer, nn.Linear):
    """A `torch.nn.Linear` that learns by a local rule: inside `hebbkern.learning`, or when `learn` is called.

    The weight belongs to the rule and has requires_grad=False, so that optimisers leave it alone; gradients still flow
    through to the input. A bias is an ordinary parameter, which no rule moves.

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`, but bias is False by default.
        rule: how it learns, e.g. `hebbkern.KrotovHopfield()` (for which weights should start from N(0, 1)).

    Attributes:
        rule: may be replaced at any time.
        frozen: bool [out_features], a buffer in the state dict; True = this neuron competes but does not learn.
    """

    def __init__(self, in_features, out_features, bias=False, device=None, dtype=None, *, rule: Rule):
        check_rule("HebbianLinear", rule)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._init_hebbian(rule)

    def _samples(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as [P, N], and a label for each of its rows."""
        if x.dim() == 2:
            return x, labels
        rows = x.reshape(-1, x.shape[-1])
        if isinstance(labels, Tensor) and x.dim() > 0:
            if labels.shape == x.shape[:-1]:
                labels = labels.reshape(-1)
            elif labels.shape == x.shape[:1]:
                labels = labels.repeat_interleave(x.shape[1:-1].numel())
        return rows, labels

    def _patches(self, x: Tensor) -> tuple[Tensor, dict]:
        return x, {}


class HebbianConv2d(_HebbianLayer, nn.Conv2d):
    """A `torch.nn.Conv2d` that learns by a local rule: inside `hebbkern.learning`, or when `learn` is called.

    Each filter is a neuron, each receptive field of the batch a patch. Gradients, bias, rule and frozen are as for
    `HebbianLinear`.

    Args:
        in_channels ... padding_mode, device, dtype: as for `torch.nn.Conv2d`, but bias is False by default; groups
            must be 1.
        rule: how it learns, e.g. `hebbkern.WTA()`.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=False,
        padding_mode="zeros",
        device=None,
        dtype=None,
        *,
        rule: Rule,
    ):
        check_rule("HebbianConv2d", rule)
        if groups != 1:
            raise ValueError(f"hebbkern.HebbianConv2d: groups must be 1, got {groups}")
        geometry = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, *geometry, device=device, dtype=dtype)
        self._init_hebbian(rule)

    def _samples(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x if x.dim() == 4 else x.unsqueeze(0), labels

    def _patches(self, x: Tensor) -> tuple[Tensor, dict]:
        """x as the rule takes it, padded where the rule cannot, and the rest of the geometry."""
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), 0
        return x, {"stride": self.stride, "padding": padding, "dilation": self.dilation}


class KWinners(nn.Module):
    """Keeps the k highest entries along `dim` and sets the others to zero, ties to the lower index.

    The representation of HebbCL (equation 1). The gradient reaches the winners (one of exactly zero passes none).
    Deterministic. Raises ValueError when k exceeds the size of the dimension.

    Args:
        k: how many entries stay, at least 1.
        dim: along which they compete; 1 = over neurons or channels.
    """

    def __init__(self, k: int, dim: int = 1):
        super().__init__()
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"hebbkern.KWinners: k must be a whole number of at least 1, got {k}")
        self.k, self.dim = k, dim

    def forward(self, y: Tensor) -> Tensor:
        kept = ops.kwinners(y.detach(), self.k, self.dim)
        return torch.where(kept != 0, y, 0) if y.requires_grad else kept

    def extra_repr(self) -> str:
        return f"k={self.k}, dim={self.dim}"


def check_rule(name: str, rule) -> None:
    if not isinstance(rule, Rule):
        raise ValueError(f"hebbkern.{name}: rule must be a hebbkern rule such as hebbkern.WTA(), got {rule!r}")
