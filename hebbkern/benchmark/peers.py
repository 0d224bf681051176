"""The rules in float32 torch as their users write them: five formulations of the sums, each rule once on top of them.

    eager      patches [P, N] and a matrix of coefficients (one-hot for winners) in a matmul: PyTorch-Hebbian
    reorder    patches [B, N, L] as unfold returns them, x and w summed apart, the batch inside the matmul: FastHebb
    broadcast  x[:, None, :] - w, patches x neurons x inputs, weighted and summed: HebbianPCA
    swap       the map of coefficients is the filter of a convolution over the transposed batch, with stride and
               dilation swapped: SoftHebb, BioPyTorch
    gradient   the sum is the weight gradient of the layer's convolution, as torch computes it

All are written from the formulas of the papers. A linear layer has `eager` (where FastHebb's order is the same) and
`broadcast` only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from hebbkern.benchmark.baselines import eager_nearest_patch

Pair = int | tuple[int, int]


class Eager:
    """What every formulation offers. In all of them axis 1 of the responses runs over the neurons."""

    def __init__(self, kernel: Sequence[int] = (), stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1):
        self.kernel = tuple(kernel)
        self.geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}

    def lay_out(self, w: Tensor) -> Tensor:
        """A copy of the weights in the shape that this formulation works on."""
        return w.flatten(1).clone(memory_format=torch.contiguous_format)

    def prepare(self, x: Tensor) -> Tensor:
        """The inputs as `respond` and the sums take them; computed once a step."""
        return F.unfold(x, self.kernel, **self.geometry).transpose(1, 2).flatten(0, 1) if self.kernel else x

    def respond(self, inputs: Tensor, w: Tensor) -> Tensor:
        return inputs @ w.T

    def sum(self, inputs: Tensor, g: Tensor, w: Tensor) -> Tensor:
        """Σ g x over the patches, in the shape of w."""
        return g.T @ inputs

    def decayed_sum(self, inputs: Tensor, g: Tensor, w: Tensor, decay: Tensor | float) -> Tensor:
        """Σ g (x - decay w); decay is a number or has the shape of g."""
        return self.sum(inputs, g, w) - per_neuron(sum_over_patches(g * decay), w) * w

    def residual_sum(self, inputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Σ y_j (x - Σ_{i ≤ j} y_i w_i)"""
        rows = y.transpose(0, 1).flatten(1)
        return self.sum(inputs, y, w) - ((rows @ rows.T).tril() @ w.flatten(1)).view_as(w)


class Reorder(Eager):
    def prepare(self, x: Tensor) -> Tensor:
        return F.unfold(x, self.kernel, **self.geometry)

    def respond(self, inputs: Tensor, w: Tensor) -> Tensor:
        return w @ inputs

    def sum(self, inputs: Tensor, g: Tensor, w: Tensor) -> Tensor:
        return torch.addbmm(torch.zeros_like(w), g, inputs.transpose(1, 2))


class Broadcast(Eager):
    """The whole tensor would take tens of GB. Chunks of patches stay in the cache, which is also faster."""

    CHUNK = 8 << 20  # bytes; the fastest of 1, 8 and 64 MiB

    def __init__(self, *geometry: Any, compiled: bool = False, **named: Any):
        super().__init__(*geometry, **named)
        # The chunk is compiled, not the loop, which the compiler would unroll.
        self.decayed = torch.compile(_decayed, dynamic=False) if compiled else _decayed
        self.residual = torch.compile(_residual, dynamic=False) if compiled else _residual

    def chunks(self, w: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        size = 1 << max(0, (self.CHUNK // (w.numel() * w.element_size())).bit_length() - 1)  # divides most numbers
        return zip(*(tensor.split(size) for tensor in tensors), strict=True)

    def decayed_sum(self, inputs: Tensor, g: Tensor, w: Tensor, decay: Tensor | float) -> Tensor:
        decay = decay if isinstance(decay, Tensor) else torch.full_like(g, decay)
        return _add(self.decayed(x, r, d, w) for x, r, d in self.chunks(w, inputs, g, decay))

    def residual_sum(self, inputs: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return _add(self.residual(x, r, w) for x, r in self.chunks(w, inputs, y))


def _add(sums: Iterator[Tensor]) -> Tensor:
    return torch.as_tensor(sum(sums))


def _decayed(x: Tensor, g: Tensor, decay: Tensor, w: Tensor) -> Tensor:
    return (g[:, :, None] * (x[:, None, :] - decay[:, :, None] * w)).sum(0)


def _residual(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    explained = (y[:, :, None] * w).cumsum(1)
    return (y[:, :, None] * (x[:, None, :] - explained)).sum(0)


class Gradient(Eager):
    def lay_out(self, w: Tensor) -> Tensor:
        return w.clone(memory_format=torch.channels_last)

    def prepare(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def respond(self, inputs: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(inputs, w, **self.geometry)

    def sum(self, inputs: Tensor, g: Tensor, w: Tensor) -> Tensor:
        return conv2d_weight(inputs, w.shape, g, **self.geometry)


class Swap(Gradient):
    def sum(self, inputs: Tensor, g: Tensor, w: Tensor) -> Tensor:
        swapped = {"stride": self.geometry["dilation"], "dilation": self.geometry["stride"]}
        batch, filters = (t.transpose(0, 1).contiguous(memory_format=torch.channels_last) for t in (inputs, g))
        full = F.conv2d(batch, filters, padding=self.geometry["padding"], **swapped)
        return full[:, :, : w.shape[2], : w.shape[3]].transpose(0, 1)


def sum_over_patches(total: Tensor) -> Tensor:
    """[K] of [P, K], [B, K, L] or [B, K, Ho, Wo]"""
    return total.sum([axis for axis in range(total.dim()) if axis != 1])


def per_neuron(values: Tensor, w: Tensor) -> Tensor:
    """values [K] in a shape that broadcasts over w."""
    return values.view(-1, *[1] * (w.dim() - 1))


def one_hot(responses: Tensor) -> Tensor:
    return torch.zeros_like(responses).scatter_(1, responses.argmax(1, keepdim=True), 1)


def count_patches(responses: Tensor) -> int:
    return responses.numel() // responses.shape[1]


def krotov_hopfield(
    form: Eager, w: Tensor, x: Tensor, lr: float, p: float = 2.0, k: int = 2, delta: float = 0.4
) -> None:
    inputs = form.prepare(x)
    s = form.respond(inputs, w.sign() * w.abs() ** (p - 1))
    ranking = s.topk(k, dim=1).indices
    g = torch.zeros_like(s).scatter_(1, ranking[:, :1], 1).scatter_(1, ranking[:, -1:], -delta)
    step = form.decayed_sum(inputs, g, w, s)
    w += lr * step / step.abs().max().clamp(min=1e-30)


def wta(form: Eager, w: Tensor, x: Tensor, lr: float) -> None:
    """HWTA. The cosine is not divided by the norm of the patch, which cannot change the winner."""
    inputs = form.prepare(x)
    g = one_hot(form.respond(inputs, w / per_neuron(w.flatten(1).norm(dim=1), w)))
    w += lr * form.decayed_sum(inputs, g, w, 1) / per_neuron(sum_over_patches(g).clamp(min=1), w)


def supervised(form: Eager, w: Tensor, x: Tensor, lr: float, labels: Tensor) -> None:
    g = x.new_zeros(len(x), len(w)).scatter_(1, labels[:, None], 1)
    w += lr * form.decayed_sum(form.prepare(x), g, w, 1) / per_neuron(sum_over_patches(g).clamp(min=1), w)


def hebbcl(form: Eager, w: Tensor, x: Tensor, lr: float, threshold: float) -> None:
    """Neurons nearer than threshold to a sample win but do not learn; rows that moved are divided by their maximum."""
    frozen = eager_nearest_patch(x, w) < threshold
    g = one_hot(form.respond(x, w)).masked_fill_(frozen, 0)
    count = sum_over_patches(g)[:, None]
    new = w + lr * form.decayed_sum(x, g, w, 1) / count.clamp(min=1)
    w.copy_(torch.where(count > 0, new / new.abs().amax(1, keepdim=True), w))


def sanger(form: Eager, w: Tensor, x: Tensor, lr: float) -> None:
    """HPCA: Sanger's rule on ReLU outputs."""
    inputs = form.prepare(x)
    y = form.respond(inputs, w).relu()
    w += lr / count_patches(y) * form.residual_sum(inputs, y, w)


def oja(form: Eager, w: Tensor, x: Tensor, lr: float) -> None:
    inputs = form.prepare(x)
    y = form.respond(inputs, w)
    w += lr / count_patches(y) * form.decayed_sum(inputs, y, w, y)


def hebb(form: Eager, w: Tensor, x: Tensor, lr: float) -> None:
    inputs = form.prepare(x)
    y = form.respond(inputs, w)
    w += lr / count_patches(y) * form.sum(inputs, y, w)


def soft_wta(form: Eager, w: Tensor, x: Tensor, lr: float) -> None:
    inputs = form.prepare(x)
    u = form.respond(inputs, w)
    winner = u.argmax(1, keepdim=True)
    share = -u.softmax(1)
    r = share.scatter(1, winner, -share.gather(1, winner))
    rate = (w.flatten(1).norm(dim=1) - 1).abs().sqrt()
    w += lr / count_patches(u) * per_neuron(rate, w) * form.decayed_sum(inputs, r, w, u)


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step for step in (krotov_hopfield, wta, supervised, hebbcl, sanger, oja, hebb, soft_wta)
}
LINEAR: dict[str, type[Eager]] = {"eager": Eager, "broadcast": Broadcast}
CONVOLUTION = {"eager": Eager, "reorder": Reorder, "broadcast": Broadcast, "swap": Swap, "gradient": Gradient}


def formulations(kernel: Sequence[int]) -> dict[str, type[Eager]]:
    """{name: class} of the formulations of a layer; its kernel is empty where the layer is linear."""
    return CONVOLUTION if kernel else LINEAR


def formulated(
    formula: str, name: str, kernel: Sequence[int] = (), compiled: bool = False
) -> tuple[Callable[[Tensor], Tensor], Callable[..., None]]:
    """``lay_out(w)`` and ``step(w, x, lr)``, which updates the weights that were laid out in place."""
    step, formulation = STEPS[formula], formulations(kernel)[name]
    if issubclass(formulation, Broadcast):
        form = formulation(kernel, compiled=compiled)
    else:
        form, step = formulation(kernel), torch.compile(step, dynamic=False) if compiled else step

    def run(*inputs: Any, **labels: Any) -> None:
        step(form, *inputs, **labels)

    return form.lay_out, run
