"""HebbianLinear and HebbianConv2d: torch's own layers with a local learning rule."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebbkern.checks import result_dtype
from hebbkern.nn.learning import check_dtype, check_into, check_linear, check_rate
from hebbkern.nn.state import Hebbian, state_of_pass
from hebbkern.nn.weights import LOW, check_own_weight, step_rounded_, warn_if_steps_vanish
from hebbkern.rules import Rule
from hebbkern.update import Update

# The rate of the step from which a gradient is computed: a power of two, large, so that what is added to the weight is
# not rounded as coarsely as the weight.
GRADIENT_LR = 2.0**24
GRADIENT_LR_TENSOR = torch.tensor(GRADIENT_LR, dtype=torch.float64, device="cpu")  # for compiled models


class HebbianLayer(Hebbian):
    """What HebbianLinear and HebbianConv2d share: rule, frozen neurons, and the step before the forward pass."""

    def _init_hebbian(self, rule: Rule, required_grad: bool = True) -> None:
        """Adds what a torch layer lacks whose class has just become a Hebbian one; `required_grad` is for `revert`."""
        check_rule(type(self).__name__, rule)
        self.rule = rule
        self._weight_required_grad = required_grad
        self.weight.requires_grad_(False)
        self.weight.grad = None  # otherwise an optimizer would step along a gradient from before
        frozen = torch.zeros(self.weight.shape[0], dtype=torch.bool, device=self.weight.device)
        self.register_buffer("frozen", frozen)

    def _remove_hebbian(self) -> None:
        """Removes what `_init_hebbian` added, before the class becomes torch's again."""
        self.weight.requires_grad_(self._weight_required_grad)
        self.weight.grad = None
        del self.rule, self.frozen, self._weight_required_grad

    def forward(self, input: Tensor) -> Tensor:
        """The output of the torch layer, after a step of the rule inside `hebbkern.learning`.

        Args:
            input: as for the torch layer.

        Returns:
            As the torch layer.

        Raises:
            ValueError: the layer learns and the input does not fit it; the weight is unchanged.
            RuntimeError: the layer learns and its weight was replaced (functional_call), the input is one of
                torch.func's, or torch.utils.checkpoint recomputes a pass after another one; the weight is unchanged.
        """
        state = state_of_pass(self, input)
        if state is not None:
            self._check_dtype(input)
            lr: Any = state.lr_tensor if torch.compiler.is_compiling() else state.lr
            self.learn(
                input,
                lr=lr,
                labels=state.labels,
                into=state.into,
                group=state.group,
                dtype=state.dtype,
                generator=state.generator,
            )
            if state.after_learning is not None:
                state.after_learning(self)
        return super().forward(input)

    def learn(
        self,
        x: Tensor,
        *,
        lr: float | None = None,
        labels: Tensor | None = None,
        into: str = "weight",
        group: Any = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Takes one step of the rule on a batch of inputs. Autograd records nothing.

        x is cast to the weight's dtype, or to `dtype`, and autocast is off during the step. Deterministic, as the rules
        are.

        Args:
            x: an input of the layer: [B, ..., N] or [N], or images [B, C, H, W] or [C, H, W].
            lr: learning rate, finite. Required, except with into="grad", where the default is 1.0.
            labels: [B] integers, for Supervised. Where a linear layer gets x [B, ..., N], labels are [B], one for all
                positions of a sample, or [B, ...], one for each position.
            into: "weight", or "grad": the weight stays and −lr·Δ is added to weight.grad, see `hebbkern.learning`.
            group: a torch.distributed group over which the update is summed before it is applied. Every process must
                call this method, one without samples with an empty x.
            dtype: of the products, see `hebbkern.learning`; None for the weight's dtype.
            generator: of the stochastic rounding of a float16 or bfloat16 weight, see `hebbkern.learning`.

        Raises:
            ValueError: an argument has a wrong shape, dtype or value, x has a NaN or an infinity, or the weight is
                computed from other tensors (weight_norm, pruning, parametrizations). The weight is unchanged.
        """
        if type(self._parameters.get("weight")) is not nn.Parameter and not torch.compiler.is_compiling():
            check_own_weight(f"{type(self).__name__}.learn", "layer", self)
        rate = self._default_lr(into, lr) if lr is None or into != "weight" else lr
        x, labels = self._samples(x.detach(), labels)
        if dtype is not None:
            check_dtype(f"{type(self).__name__}.learn", dtype)
        dtype = self.weight.dtype if dtype is None else dtype
        if x.dtype != dtype and x.is_floating_point():
            x = x.to(dtype)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                self._step(x, rate, labels, into, group, dtype, generator)
        else:
            self._step(x, rate, labels, into, group, dtype, generator)

    def _default_lr(self, into: str, lr: Any) -> Any:
        """lr, or 1.0 where it is None and into="grad"; both are checked."""
        where = f"{type(self).__name__}.learn"
        check_into(where, into)
        if into == "grad":
            check_linear(where, self.rule)
            lr = 1.0 if lr is None else lr
        return (
            lr if isinstance(lr, Tensor) else check_rate(where, lr)
        )  # `learning` has checked that of a compiled model

    def _step(
        self,
        x: Tensor,
        lr: float,
        labels: Tensor | None,
        into: str,
        group: Any,
        dtype: torch.dtype,
        generator: torch.Generator | None,
    ) -> None:
        weight = self.weight
        x, geometry = self._patches(x)
        options = {"labels": labels, "frozen": self.frozen, **geometry}
        low = into == "weight" and weight.dtype in LOW
        rounds = generator if low else None
        if low and rounds is None and not torch.compiler.is_compiling():
            warn_if_steps_vanish(self, weight, lambda wide: self.rule.step_(wide, x.float(), lr=lr, **options))
        if into == "weight" and group is None and rounds is None:
            self.rule.step_(weight, x, lr=lr, dtype=None if dtype == weight.dtype else dtype, **options)
            return
        update = self.rule.update(weight.to(dtype), x, **options).to(result_dtype(weight.dtype))
        if group is not None:
            update = update.all_reduce(group)
        apply_ = partial(self.rule.apply_, update=update, lr=lr, frozen=self.frozen)
        if into == "grad":
            self._add_gradient(update, lr)
        elif rounds is not None:
            step_rounded_(f"{type(self).__name__}.learn", weight, apply_, rounds)
        else:
            apply_(weight)

    def _add_gradient(self, update: Update, lr: float) -> None:
        """weight.grad −= lr · the step of the rule at lr = 1."""
        weight = self.weight.detach()
        before = weight if weight.dtype == torch.float64 else weight.float()
        after = before.clone(memory_format=torch.contiguous_format)
        rate = GRADIENT_LR_TENSOR if torch.compiler.is_compiling() else GRADIENT_LR
        self.rule.apply_(after, update, lr=rate, frozen=self.frozen)
        gradient = after.sub_(before).mul_(-lr / GRADIENT_LR).to(weight.dtype)
        if self.weight.grad is None:
            self.weight.grad = gradient
        else:
            self.weight.grad += gradient

    def _samples(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x with a batch dimension, and a label for each of its samples."""
        raise NotImplementedError

    def _patches(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """x as the rule takes it, and the geometry of the layer."""
        raise NotImplementedError

    def _check_dtype(self, input: Tensor) -> None:
        """Raises ValueError for an input that the forward pass would refuse after the weight has changed."""
        if input.dtype != self.weight.dtype and not torch.is_autocast_enabled(input.device.type):
            wanted, got = (str(tensor.dtype).removeprefix("torch.") for tensor in (self.weight, input))
            raise ValueError(f"hebbkern.{type(self).__name__}: input must have the weight's dtype {wanted}, got {got}")

    def reset_parameters(self) -> None:
        """Draws weight and bias anew, as the torch layer does, and sets frozen to False."""
        super().reset_parameters()  # type: ignore[misc]  (of the torch layer)
        if "frozen" in self._buffers:  # not yet when the torch layer is constructed
            self.frozen.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A checkpoint of the plain torch layer lacks `frozen`: no neuron is frozen then."""
        weight = state_dict.get(prefix + "weight")
        if weight is not None and prefix + "frozen" not in state_dict:
            state_dict[prefix + "frozen"] = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"


class HebbianLinear(HebbianLayer, nn.Linear):
    """A `torch.nn.Linear` that learns by a local rule: inside `hebbkern.learning`, or by its method `learn`.

    Only the rule changes the weight, which has requires_grad=False so that optimizers skip it; gradients still pass
    through the layer to its input. A bias is an ordinary parameter, which no rule changes.

    Args:
        in_features, out_features, bias, device, dtype: as for `torch.nn.Linear`, but bias is False by default.
        rule: a learning rule, e.g. `hebbkern.KrotovHopfield()` (for which weights should start from N(0, 1)).

    Attributes:
        rule: the learning rule, which can be replaced at any time.
        frozen: bool [out_features], a buffer in the state dict: True for a neuron that competes but does not learn.

    Raises:
        ValueError: rule is not a hebbkern rule.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: Rule,
    ) -> None:
        check_rule("HebbianLinear", rule)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._init_hebbian(rule)

    def _samples(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as [B, N], and a label for each of its rows."""
        if x.dim() == 2:
            return x, labels
        rows = x.reshape(-1, x.shape[-1])
        if isinstance(labels, Tensor) and x.dim() > 0:
            if labels.shape == x.shape[:-1]:
                labels = labels.reshape(-1)
            elif labels.shape == x.shape[:1]:
                labels = labels.repeat_interleave(x.shape[1:-1].numel())
        return rows, labels

    def _patches(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return x, {}


class HebbianConv2d(HebbianLayer, nn.Conv2d):
    """A `torch.nn.Conv2d` that learns by a local rule: inside `hebbkern.learning`, or by its method `learn`.

    Each filter is a neuron, each receptive field of the batch a patch. Gradients, bias, rule and frozen are as for
    `HebbianLinear`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            for `torch.nn.Conv2d`, but bias is False by default and groups must be 1.
        rule: a learning rule, e.g. `hebbkern.WTA()`.

    Raises:
        ValueError: rule is not a hebbkern rule, or groups is not 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: Rule,
    ) -> None:
        check_rule("HebbianConv2d", rule)
        if groups != 1:
            raise ValueError(f"hebbkern.HebbianConv2d: groups must be 1, got {groups}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._init_hebbian(rule)

    def _samples(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x if x.dim() == 4 else x.unsqueeze(0), labels

    def _patches(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """x, padded if the rule has no such padding, and the geometry that the rule applies."""
        padding = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), 0
        return x, {"stride": self.stride, "padding": padding, "dilation": self.dilation}


def check_rule(where: str, rule: object) -> None:
    """Raises ValueError unless rule is a hebbkern rule."""
    if not isinstance(rule, Rule):
        raise ValueError(f"hebbkern.{where}: rule must be a hebbkern rule such as hebbkern.WTA(), got {rule!r}")
