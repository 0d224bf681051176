"""HebbianLinear, and what all Hebbian layers share: torch's own layers with a local learning rule."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from hebbkern.checks import check_tensor, fail, result_dtype
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
    """What the Hebbian layers share: rule, frozen neurons, and the step before the forward pass.

    Class attributes:
        plain: the class of the layer without a rule, which `hebbkern.nn.revert` gives back.
    """

    plain: ClassVar[type[nn.Module]]

    def _init_hebbian(self, rule: Rule, neurons: int, required_grad: bool = True) -> None:
        """Adds what a torch layer lacks whose class has just become a Hebbian one; `required_grad` is for `revert`.

        The weight of a lazy layer has no size yet, so that methods of tensors cannot be called on it.
        """
        check_rule(type(self).__name__, rule)
        self.rule = rule
        self._weight_required_grad = required_grad
        self.weight.requires_grad = False
        self.weight.grad = None  # otherwise an optimizer would step along a gradient from before
        self.register_buffer("frozen", torch.zeros(neurons, dtype=torch.bool, device=self.weight.device))

    def _remove_hebbian(self) -> None:
        """Removes what `_init_hebbian` added, before the class becomes the plain one again."""
        self.weight.requires_grad = self._weight_required_grad
        self.weight.grad = None
        del self.rule, self.frozen, self._weight_required_grad

    def forward(self, input: Tensor) -> Tensor:
        """The output of the torch layer, after a step of the rule inside `hebbkern.learning`.

        Args:
            input: as for the torch layer.

        Returns:
            As the torch layer.

        Raises:
            ValueError: the input is no tensor, or the layer learns and it does not fit; the weight is unchanged.
            RuntimeError: the layer learns and its weight was replaced (functional_call), the input is one of
                torch.func's, or torch.utils.checkpoint recomputes a pass after another one; the weight is unchanged.
        """
        check_tensor(type(self).__name__, "input", input)
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
            x: an input of the layer, of one sample or of a batch.
            lr: learning rate, finite. Required, except with into="grad", where the default is 1.0.
            labels: [B] integers, for Supervised. Where a linear layer gets x [B, ..., N], labels are [B], one for all
                positions of a sample, or [B, ...], one for each position.
            into: "weight", or "grad": the weight stays and −lr·Δ is added to weight.grad, see `hebbkern.learning`.
            group: a torch.distributed group over which the update is summed before it is applied. Every process must
                call this method, one without samples with an empty x.
            dtype: of the products, see `hebbkern.learning`; None for the weight's dtype.
            generator: of the stochastic rounding of a float16 or bfloat16 weight, see `hebbkern.learning`.

        Raises:
            ValueError: an argument has a wrong type, shape, dtype or value, x has a NaN or an infinity, or the weight
                is computed from other tensors (weight_norm, pruning, parametrizations) or has no size yet (lazy
                layers). The weight is unchanged.
        """
        where = f"{type(self).__name__}.learn"
        if type(self._parameters.get("weight")) is not nn.Parameter and not torch.compiler.is_compiling():
            check_own_weight(where, "layer", self)
            if is_lazy(self.weight):
                fail(where, "weight", "have a size, which the first forward pass gives it", "an uninitialized one")
        rate = self._default_lr(into, lr) if lr is None or into != "weight" else lr
        check_tensor(where, "x", x)
        x = x.detach()
        if dtype is not None:
            check_dtype(where, dtype)
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
        if labels is None and self.rule.uses_labels:
            fail(f"{type(self).__name__}.learn", "labels", f"be given for {type(self.rule).__name__}", "None")
        seen, (x, labels, geometry) = self._rule_weight(weight), self._rule_input(x, labels)
        options = {"labels": labels, "frozen": self.frozen, **geometry}
        low = into == "weight" and weight.dtype in LOW
        rounds = generator if low else None
        if low and rounds is None and not torch.compiler.is_compiling():
            warn_if_steps_vanish(self, seen, lambda wide: self.rule.step_(wide, x.float(), lr=lr, **options))
        if into == "weight" and group is None and rounds is None:
            self.rule.step_(seen, x, lr=lr, dtype=None if dtype == weight.dtype else dtype, **options)
        else:
            update = self.rule.update(seen.to(dtype), x, **options).to(result_dtype(weight.dtype))
            if group is not None:
                update = update.all_reduce(group)
            apply_ = partial(self.rule.apply_, update=update, lr=lr, frozen=self.frozen)
            if into == "grad":
                self._add_gradient(seen.detach(), update, lr)
            elif rounds is not None:
                step_rounded_(f"{type(self).__name__}.learn", seen, apply_, rounds)
            else:
                apply_(seen)
        if into == "weight" and not self._is_viewed(weight):
            weight.detach().copy_(seen.view_as(weight))

    def _add_gradient(self, weight: Tensor, update: Update, lr: float) -> None:
        """weight.grad −= lr · the step of the rule at lr = 1; `weight` is as the rule sees it."""
        before = weight if weight.dtype == torch.float64 else weight.float()
        after = before.clone(memory_format=torch.contiguous_format)
        rate = GRADIENT_LR_TENSOR if torch.compiler.is_compiling() else GRADIENT_LR
        self.rule.apply_(after, update, lr=rate, frozen=self.frozen)
        gradient = after.sub_(before).mul_(-lr / GRADIENT_LR).to(weight.dtype).view_as(self.weight)
        if self.weight.grad is None:
            self.weight.grad = gradient
        else:
            self.weight.grad += gradient

    def _rule_weight(self, weight: Tensor) -> Tensor:
        """A weight of the layer as the rules take it, [K, N] or [K, C / groups, kh, kw]; a view if `_is_viewed`."""
        return weight

    def _is_viewed(self, weight: Tensor) -> bool:
        """Whether what `_rule_weight` gives shares the memory of `weight`, so that a step on it reaches the weight."""
        return True

    def _rule_input(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """x as the rules take it, [B, N] or [B, C, H, W], a label for each of its samples, and the geometry."""
        raise NotImplementedError

    def _check_dtype(self, input: Tensor) -> None:
        """Raises ValueError for an input that the forward pass would refuse after the weight has changed."""
        if input.dtype != self.weight.dtype and not torch.is_autocast_enabled(input.device.type):
            wanted, got = (str(tensor.dtype).removeprefix("torch.") for tensor in (self.weight, input))
            raise ValueError(f"hebbkern.{type(self).__name__}: input must have the weight's dtype {wanted}, got {got}")

    def reset_parameters(self) -> None:
        """Draws weight and bias anew, as the torch layer does, and sets frozen to False."""
        super().reset_parameters()  # type: ignore[misc]  (of the torch layer)
        # Not yet there when the torch layer is constructed; a lazy layer is reset when it gets its size.
        if "frozen" in self._buffers and not isinstance(self, LazyModuleMixin):
            self.frozen.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A checkpoint of the plain torch layer lacks `frozen`: no neuron is frozen then."""
        weight = state_dict.get(prefix + "weight")
        if weight is not None and prefix + "frozen" not in state_dict:
            state_dict[prefix + "frozen"] = torch.zeros_like(self.frozen, device=weight.device)
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

    plain = nn.Linear

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
        self._init_hebbian(rule, out_features)

    def _rule_input(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        if x.dim() in (0, 2):  # a number is for the rule to refuse
            return x, labels, {}
        rows = x.reshape(-1, x.shape[-1])
        if isinstance(labels, Tensor):
            if labels.shape == x.shape[:-1]:
                labels = labels.reshape(-1)
            elif labels.shape == x.shape[:1]:
                labels = labels.repeat_interleave(x.shape[1:-1].numel())
        return rows, labels, {}


def check_rule(where: str, rule: object) -> None:
    """Raises ValueError unless rule is a hebbkern rule."""
    if not isinstance(rule, Rule):
        raise ValueError(f"hebbkern.{where}: rule must be a hebbkern rule such as hebbkern.WTA(), got {rule!r}")
