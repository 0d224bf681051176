"""DHPLinear: a linear readout with slow weights and a Hebbian trace, the running mean of the inputs of each class.

    head = hk.nn.DHPLinear(400, 10)
    loss = F.cross_entropy(head(h, labels), labels)      # updates the trace; gradients reach θ, α, η and h

The trace is updated by the sparse accumulate of the winner rules, with the label of a sample as its winner. In contrast
to `hebbkern.Supervised` its rate η and its weight α are learned by backpropagation, so that the update is part of the
autograd graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hebbkern import checks, ops

ALPHA = 0.01  # α starts from U(0, 0.01)


class DHPLinear(nn.Module):
    """The softmax layer of Differentiable Hebbian Consolidation (equations 2, 3, listing 1): z = h (θ + α∘Hebb)ᵀ.

    In training mode a forward pass with labels first updates the trace. For each class c among the labels,
    Hebb_c ← (1 − η) Hebb_c + η · (mean of h over the samples of c); the rows of other classes keep their bits. The
    output is computed with the updated trace, and backward reaches θ, α, η and h through this update, but not through
    earlier ones. In evaluation mode, or without labels, the trace stays and the layer is linear.

    For several heads use several layers and pass each the labels of its own samples, with −1 for all others: a sample
    of label −1 does not change the trace. Under autocast the product has low precision, while trace, α and η keep the
    dtype of the parameters; a layer converted to bfloat16 as a whole would round away steps as small as η. The trace is
    deterministic for any number of threads, as `hebbkern.ops.accumulate` is; the products are torch's own.

    Args:
        in_features: N, the units of the last hidden layer.
        out_features: K, the classes of this head.
        bias: as for `torch.nn.Linear`, but False by default, as in the listing.
        device, dtype: as for `torch.nn.Linear`.
        eta: initial value of η, finite (0.001 in the paper).
        per_connection: one η for each connection, as for the paper's Vision Datasets Mixture (from 0.0001).

    Attributes:
        weight: θ [K, N], the slow weights, initialised as those of `torch.nn.Linear`.
        alpha: α [K, N], a parameter, initialised from U(0, 0.01).
        eta: η, a parameter [] or [K, N]; it is not clamped to (0, 1).
        trace: Hebb [K, N], a buffer, initially 0.

    Raises:
        ValueError: a dimension is below 1, or eta is not finite.
    """

    trace: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        eta: float = 0.001,
        per_connection: bool = False,
    ) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "out_features": out_features}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"hebbkern.DHPLinear: {name} must be a whole number of at least 1, got {value!r}")
        if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not math.isfinite(eta):
            raise ValueError(f"hebbkern.DHPLinear: eta must be a finite number, got {eta!r}")
        shape, options = (out_features, in_features), {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.initial_eta = in_features, out_features, float(eta)
        self.weight = nn.Parameter(torch.empty(shape, **options))
        self.alpha = nn.Parameter(torch.empty(shape, **options))
        self.eta = nn.Parameter(torch.empty(shape if per_connection else (), **options))
        self.bias = nn.Parameter(torch.empty(out_features, **options)) if bias else None
        self.register_buffer("trace", torch.empty(shape, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws θ and α anew and sets η to its initial value and the trace to 0."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.alpha, 0.0, ALPHA)
        nn.init.constant_(self.eta, self.initial_eta)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.zeros_(self.trace)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        """The logits z [..., K] of h [..., N]; in training mode with labels, after an update of the trace.

        On a GPU values are not checked, as that would wait for the device: what is not finite shows in z, and the
        entries of the trace that it would reach keep their values. The same happens on every device where a sum
        overflows or η is not finite.

        Args:
            h: activations of the last hidden layer, of the parameters' dtype, or any floating dtype under autocast.
            labels: [...] integers from 0 to K − 1, or −1 for a sample without a class; ignored in evaluation mode.

        Returns:
            z, of h's dtype, or of autocast's.

        Raises:
            ValueError: a shape, dtype or device does not fit, a label is out of range, or h has a NaN or an infinity.
                The trace is unchanged.
        """
        checks.check_tensor("DHPLinear", "h", h)
        if labels is None or not self.training:
            # A later forward pass may update the trace before the backward pass of this one: autograd needs a copy.
            trace = snapshot(self.trace) if self.alpha.requires_grad and torch.is_grad_enabled() else self.trace
            return F.linear(h, self.weight + self.alpha * trace, self.bias)
        self._check(h, labels)
        before = snapshot(self.trace) if torch.compiler.is_compiling() else self.trace
        z, trace = HebbianTrace.apply(h, labels, before, self.eta, self.weight, self.alpha, self.bias)
        with torch.no_grad():
            self.trace.copy_(trace)
        return z

    def _check(self, h: Tensor, labels: Tensor) -> None:
        """Raises ValueError for shapes, dtypes and devices that do not fit; the operator checks the values."""
        op, dtype, device = "DHPLinear", self.weight.dtype, self.weight.device
        if h.dim() < 1 or h.shape[-1] != self.in_features:
            checks.fail(op, "h", f"be [..., {self.in_features}]", checks.shape_name(h))
        low = h.dtype in checks.FLOATS and torch.float64 not in (h.dtype, dtype)
        if h.dtype != dtype and not (low and torch.is_autocast_enabled(device.type)):
            checks.fail(op, "h", f"have the weight's dtype {checks.dtype_name(dtype)}", checks.dtype_name(h.dtype))
        if (
            not isinstance(labels, Tensor)
            or labels.shape != h.shape[:-1]
            or labels.dtype not in (torch.int64, torch.int32)
        ):
            got = checks.full_name(labels) if isinstance(labels, Tensor) else type(labels).__name__
            checks.fail(op, "labels", f"be int64 or int32 of shape {list(h.shape[:-1])}, one for each row of h", got)
        checks.device(op, "h", h, "the layer", self.weight)
        checks.device(op, "labels", labels, "h", h)

    def extra_repr(self) -> str:
        eta = "one per connection" if self.eta.dim() else "one"
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, eta: {eta}"


@torch.library.custom_op("hebbkern::snapshot", mutates_args=())
def _snapshot(trace: Tensor) -> Tensor:
    """A copy by an operator: a compiled backward pass would recompute a plain copy, from a trace that has changed."""
    return trace.clone()


_snapshot.register_fake(torch.empty_like)


def snapshot(trace: Tensor) -> Tensor:
    """A copy of the trace that later updates do not change."""
    differentiated = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return _snapshot(trace) if differentiated else trace.clone()


class HebbianTrace(torch.autograd.Function):
    """(h [..., N], labels [...], trace [K, N], η, θ, α, bias) -> z [..., K] and the updated trace [K, N].

    One node of the autograd graph: on small layers each node costs more than its arithmetic. The gradient of the trace
    is α∘(the gradient of θ + α∘Hebb); a sample receives the row of its class, divided by the size of the class.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        labels: Tensor,
        trace: Tensor,
        eta: Tensor,
        weight: Tensor,
        alpha: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ones = h.new_ones(1, dtype=checks.result_dtype(h.dtype))
        targets = labels.reshape(-1, 1)
        total, _, _ = ops.accumulate(h.reshape(-1, h.shape[-1]), targets, ones, neurons=len(trace))
        # Not accumulate's, which leaves out samples of zeros: here they belong to the mean, which has a gradient.
        count = (targets == torch.arange(len(trace), device=h.device)).sum(0)[:, None].to(total.dtype)
        present = count > 0
        step = torch.where(present, (total / count).to(trace.dtype), trace) - trace
        updated = torch.addcmul(trace, step, eta)
        effective = torch.addcmul(weight, alpha, updated)
        z = F.linear(h, effective, bias)
        # An overflow, or on a GPU a NaN or infinity in h, shows in z but is not stored in the trace.
        kept = torch.where((updated.abs() < math.inf) & present, updated, trace)
        ctx.save_for_backward(h, labels, step, updated, count, eta, effective, alpha)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(kept)
        return z, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad_z is None:
            return (None,) * 7
        h, labels, step, updated, count, eta, effective, alpha = ctx.saved_tensors
        needs, shape = ctx.needs_input_grad, h.shape
        h, grad_z, labels = h.reshape(-1, shape[-1]), grad_z.reshape(-1, grad_z.shape[-1]), labels.reshape(-1)
        grad_h = grad_eta = grad_alpha = grad_bias = None
        grad_effective = (grad_z.t() @ h.to(grad_z.dtype)).to(effective.dtype)
        grad_trace = grad_effective * alpha
        if needs[0]:
            shares = F.pad(grad_trace * (eta / count), (0, 0, 0, 1))  # the row of zeros at the end is for label -1
            grad_h = shares.index_select(0, labels.remainder(len(shares))).to(grad_z.dtype)
            grad_h = grad_h.addmm_(grad_z, effective.to(grad_z.dtype)).to(h.dtype).reshape(shape)
        if needs[3]:
            grad_eta = (grad_trace * step).sum_to_size(eta.shape)
        if needs[5]:
            grad_alpha = grad_effective * updated
        if needs[6]:
            grad_bias = grad_z.sum(0).to(effective.dtype)
        return grad_h, None, None, grad_eta, grad_effective if needs[4] else None, grad_alpha, grad_bias
