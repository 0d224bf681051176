"""DHPLinear: a readout with slow weights, and beside them a Hebbian trace of the class means it has seen.

    head = hk.nn.DHPLinear(400, 10)
    loss = F.cross_entropy(head(h, labels), labels)      # the trace moves, and gradients reach what weighs it

The trace is the sparse accumulate of every winner rule, with each sample's label for its winner; only that its rate η
and its weight α are learnt by gradients asks for more than `hebbkern.Supervised`: the step of a forward pass is in its
graph.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hebbkern import ops
from hebbkern.ops import checks

ALPHA = 0.01  # α starts from U(0, 0.01)


class DHPLinear(nn.Module):
    """The softmax layer of Differentiable Hebbian Consolidation (equations 2, 3, listing 1): z = h (θ + α∘Hebb)ᵀ.

    A forward pass with labels, in training mode, first moves the trace: for each class c among the labels,
    Hebb_c ← (1 − η) Hebb_c + η · (mean of h over the samples of c); classes that are not there keep theirs to the bit.
    The answer is given with the trace moved, and backward reaches θ, α, η and h through this step too, but not through
    those before it. In evaluation mode, or without labels, the trace stays and the layer is a linear one.

    Several heads are several layers, each given the labels of its own samples; label −1 teaches nobody, so that a head
    may also be given a batch of which only some samples are its own. Under autocast the product is of low precision,
    while trace, α and η keep the parameters' dtype; a layer turned to bfloat16 as a whole would round away steps as
    small as η. Deterministic, as `hebbkern.ops.accumulate` is, for any number of threads, except for the products,
    which are torch's own.

    Args:
        in_features: N, units of the last hidden layer. out_features: K, classes of this head.
        bias: as for `torch.nn.Linear`, but False by default, as in the listing.
        device, dtype: as for `torch.nn.Linear`.
        eta: where η starts, finite (0.001 in the paper).
        per_connection: one η for each connection, as in the paper's Vision Datasets Mixture (from 0.0001).

    Attributes:
        weight: θ [K, N], the slow weights, started as `torch.nn.Linear`'s. alpha: α [K, N], from U(0, 0.01).
        eta: η, [] or [K, N]; nothing holds it within (0, 1). All three are parameters.
        trace: Hebb [K, N], a buffer, 0 at first.

    Raises ValueError for a dimension below 1 or an eta that is not finite.
    """

    def __init__(
        self, in_features, out_features, bias=False, device=None, dtype=None, *, eta=0.001, per_connection=False
    ):
        super().__init__()
        for name, value in {"in_features": in_features, "out_features": out_features}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"hebbkern.DHPLinear: {name} must be a whole number of at least 1, got {value!r}")
        if isinstance(eta, bool) or not isinstance(eta, (int, float)) or not math.isfinite(eta):
            raise ValueError(f"hebbkern.DHPLinear: eta must be a finite number, got {eta!r}")
        shape, options = (out_features, in_features), {"device": device, "dtype": dtype}
        self.in_features, self.out_features, self.start = in_features, out_features, float(eta)
        self.weight = nn.Parameter(torch.empty(shape, **options))
        self.alpha = nn.Parameter(torch.empty(shape, **options))
        self.eta = nn.Parameter(torch.empty(shape if per_connection else (), **options))
        self.bias = nn.Parameter(torch.empty(out_features, **options)) if bias else None
        self.register_buffer("trace", torch.empty(shape, **options))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws θ and α anew, sets η to where it starts and the trace to 0."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.alpha, 0.0, ALPHA)
        nn.init.constant_(self.eta, self.start)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.zeros_(self.trace)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [..., K] for h [..., N].

        Args:
            h: activations of the last hidden layer, of the parameters' dtype, or any floating dtype under autocast.
            labels: [...] integers from 0 to K − 1, or −1 for a sample of no class; not looked at in evaluation mode.

        Raises ValueError on shapes, dtypes and devices that do not fit, ValueError or RuntimeError on a label that does
        not exist and on a NaN or an infinity in h; the trace is as before. On a GPU nobody waits to look at numbers:
        what is not finite shows in z, and entries of the trace that it would reach stay as before, as they do where a
        sum overflows or η is not finite.
        """
        if labels is None or not self.training:
            # A forward pass with labels may move the trace before this one's backward: autograd keeps a copy.
            trace = as_it_is(self.trace) if self.alpha.requires_grad and torch.is_grad_enabled() else self.trace
            return F.linear(h, self.weight + self.alpha * trace, self.bias)
        self._check(h, labels)
        before = as_it_is(self.trace) if torch.compiler.is_compiling() else self.trace
        z, trace = Taught.apply(h, labels, before, self.eta, self.weight, self.alpha, self.bias)
        with torch.no_grad():
            self.trace.copy_(trace)
        return z

    def _check(self, h: Tensor, labels: Tensor) -> None:
        """Shapes, dtypes and devices; the values are the operator's to look at."""
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


@torch.library.custom_op("hebbkern::as_it_is", mutates_args=())
def snapshot(trace: Tensor) -> Tensor:
    """A copy. A compiled backward computes pointwise results anew, from a trace that has moved since; not this one."""
    return trace.clone()


snapshot.register_fake(torch.empty_like)


def as_it_is(trace: Tensor) -> Tensor:
    """A copy of the trace that stays when the trace moves."""
    differentiated = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return snapshot(trace) if differentiated else trace.clone()


class Taught(torch.autograd.Function):
    """(h [..., N], labels [...], trace [K, N], η, θ, α, bias) -> z [..., K] and the trace, after this batch.

    All of it is one node of the graph: on small layers each node costs more than its arithmetic. The gradient to the
    trace is α∘(that to θ + α∘Hebb); of it each sample takes its class's row, divided as its class is.
    """

    @staticmethod
    def forward(ctx, h, labels, trace, eta, weight, alpha, bias):
        ones = h.new_ones(1, dtype=checks.result_dtype(h.dtype))
        total, _, count = ops.accumulate(h.reshape(-1, h.shape[-1]), labels.reshape(-1, 1), ones, neurons=len(trace))
        count = count[:, None]
        there = count > 0
        step = torch.where(there, (total / count).to(trace.dtype), trace) - trace
        moved = torch.addcmul(trace, step, eta)
        effective = torch.addcmul(weight, alpha, moved)
        z = F.linear(h, effective, bias)
        # What overflows, or is not finite where kernels cannot raise, shows in z and never stays in the trace.
        kept = torch.where((moved.abs() < math.inf) & there, moved, trace)
        ctx.save_for_backward(h, labels, step, moved, count, eta, effective, alpha)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(kept)
        return z, kept

    @staticmethod
    @once_differentiable
    def backward(ctx, to_z: Tensor, _):
        if to_z is None:  # nobody asked
            return (None,) * 7
        h, labels, step, moved, count, eta, effective, alpha = ctx.saved_tensors
        needs, shape = ctx.needs_input_grad, h.shape
        h, to_z, labels = h.reshape(-1, shape[-1]), to_z.reshape(-1, to_z.shape[-1]), labels.reshape(-1)
        to_h = to_eta = to_alpha = to_bias = None
        to_effective = (to_z.t() @ h.to(to_z.dtype)).to(effective.dtype)
        to_trace = to_effective * alpha
        if needs[0]:
            shares = F.pad(to_trace * (eta / count), (0, 0, 0, 1))  # a row of 0 at the end, where label -1 points
            to_h = shares.index_select(0, labels.remainder(len(shares))).to(to_z.dtype)
            to_h = to_h.addmm_(to_z, effective.to(to_z.dtype)).to(h.dtype).reshape(shape)
        if needs[3]:
            to_eta = (to_trace * step).sum_to_size(eta.shape)
        if needs[5]:
            to_alpha = to_effective * moved
        if needs[6]:
            to_bias = to_z.sum(0).to(effective.dtype)
        return to_h, None, None, to_eta, to_effective if needs[4] else None, to_alpha, to_bias
