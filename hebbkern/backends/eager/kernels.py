"""The operators in plain torch: the fallback where nothing is compiled, on any device, and a second oracle.

Written to be read: the matrices X [G, P, N] of all patches are built whole, so memory grows with patches x inputs; G is
the number of groups, P that of the patches of one, and the weights are W [G, K, N]. Two runs on one device with one
number of threads give the same bits; ties go to the lower index; half types are computed in float32. Each kernel takes
the arguments of its operator's schema (hebbkern/ops), whose check has passed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hebbkern import checks
from hebbkern.specifications import WinnerSpecification, targets_of_labels

KERNELS: dict[str, Callable] = {}  # operator name -> kernel


def _kernel(function: Callable) -> Callable:
    """The kernel of the operator of this name: without gradients, and with torch.autocast switched off."""

    @functools.wraps(function)
    def run(first: Tensor, *others: Any) -> Any:
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            return function(first, *others)

    KERNELS[function.__name__] = run
    return run


def patch_matrix(
    op: str,
    x: Tensor,
    kernel: tuple[int, ...],
    patches: str,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    """X [G, P, N] in the result dtype, centred or standardised; blank patches are zeros."""
    x = x.to(checks.result_dtype(x.dtype))
    if x.dim() == 4:
        width = x.shape[1] // groups * kernel[0] * kernel[1]
        x = F.unfold(x, kernel, dilation, padding, stride).unflatten(1, (groups, width))
        x = x.permute(1, 0, 3, 2).flatten(1, 2)
    else:
        x = x[None]
    if patches == "raw":
        return x
    centred = x - x.mean(-1, keepdim=True, dtype=wide(x)).to(x.dtype)
    length, whole = norms(centred.to(wide(x))), norms(x.to(wide(x)))
    flat = (length <= checks.FLAT * whole) & whole.isfinite()  # an infinite norm is not known well enough
    centred = centred.masked_fill(flat, 0)
    if patches == "centred":
        return centred
    length = length.masked_fill(flat, 1).to(x.dtype)
    checks.finite_norms(op, length)
    return centred / length


def is_blank(X: Tensor) -> Tensor:
    """bool [G, P]: no neuron wins such a patch or learns from it."""
    return (X == 0).all(-1)


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which sums neither cancel nor overflow as soon as in ``tensor``'s."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def norms(X: Tensor) -> Tensor:
    """The length of each row, [G, P, 1], where no square overflows or vanishes."""
    largest = largest_of(X)
    return (X / largest).norm(dim=-1, keepdim=True) * largest


def units(W: Tensor) -> Tensor:
    """The rows divided by their lengths, which need not be finite; rows of zeros stay."""
    W = W / largest_of(W)
    length = W.norm(dim=-1, keepdim=True)
    return W / length.masked_fill(length == 0, 1)


def largest_of(X: Tensor) -> Tensor:
    """The largest size of an entry in each row, [..., 1]; 1 for rows of zeros."""
    largest = X.abs().amax(-1, keepdim=True)
    return largest.masked_fill(largest == 0, 1)


def layer_matrices(op: str, x: Tensor, weight: Tensor, *geometry: Any) -> tuple[Tensor, Tensor]:
    """X [G, P, N] and W [G, K, N], both in the result dtype."""
    X = patch_matrix(op, x, weight.shape[2:], *geometry)
    return X, weight.to(checks.result_dtype(weight.dtype)).flatten(1).unflatten(0, (len(X), -1))


def by_group(mask: Tensor | None, groups: int) -> Tensor | None:
    """[G, 1, K]: a mask of all neurons."""
    return None if mask is None else mask.reshape(groups, 1, -1)


@_kernel
def compete(x: Tensor, weight: Tensor, k: int, p: float, cosine: bool, *where: Any) -> tuple[Tensor, Tensor]:
    *geometry, eligible = where
    checks.finite("compete", x=x, weight=weight)
    X, W = layer_matrices("compete", x, weight, *geometry)
    winners, responses = winners_of("compete", X, W, k, p, cosine, eligible)
    return winners.flatten(0, 1), responses.flatten(0, 1)


def winners_of(
    op: str, X: Tensor, W: Tensor, k: int, p: float, cosine: bool, eligible: Tensor | None = None, scaled: bool = True
) -> tuple[Tensor, Tensor]:
    """The k winners [G, P, k] of each patch, named among all neurons, and their responses, highest first.

    Cosines are divided by |x| if `scaled`.
    """
    groups, neurons = W.shape[:2]
    eligible = by_group(eligible, groups)
    if p != 2:
        W = W.sign() * W.abs() ** (p - 1)
        powers = W if eligible is None else W.masked_fill(~eligible.mT, 0)
        checks.no_overflow(op, "weight and p must give finite powers", powers)
    blank = is_blank(X)[..., None]
    if cosine:
        if scaled:
            x_norms = norms(X)
            x_norms = x_norms.masked_fill(x_norms == 0, 1)
            checks.finite_norms(op, x_norms)
            X = X / x_norms
        W = units(W)
    responses = products(X, W)
    checks.no_overflow(op, checks.RESPONSES, responses if eligible is None else responses.masked_fill(~eligible, 0))
    if eligible is not None:
        responses = responses.masked_fill(~eligible, -torch.inf)
    # A stable sort, because topk leaves the order of equal responses open.
    responses, winners = (ranked[..., :k] for ranked in responses.sort(dim=-1, descending=True, stable=True))
    winners = winners + neurons * torch.arange(groups, device=X.device)[:, None, None]
    no_winner = blank
    if eligible is not None:
        no_winner = blank | (torch.arange(k, device=X.device) >= eligible.sum(-1, keepdim=True))
    return winners.masked_fill(no_winner, -1).int(), responses.masked_fill(no_winner, 0)


def products(X: Tensor, W: Tensor) -> Tensor:
    """X Wᵀ [G, P, K]. Padded to a multiple of 16 neurons: some BLAS sum left-over columns in another order."""
    neurons = W.shape[1]
    return (X @ F.pad(W, (0, 0, 0, -neurons % 16)).mT)[..., :neurons]


@_kernel
def nearest_patch(x: Tensor, weight: Tensor, *where: Any) -> tuple[Tensor, Tensor]:
    *geometry, eligible = where
    checks.finite("nearest_patch", x=x, weight=weight)
    X, W = layer_matrices("nearest_patch", x, weight, *geometry)
    dtype, (groups, neurons, _), count = W.dtype, W.shape, X.shape[1]
    # |w|² - 2 w.x + |x|² cancels where w is close to x: in double precision the rest is still good.
    X, W = X.to(wide(X)), W.to(wide(W))
    x_squares, w_squares, length = X.square().sum(-1), W.square().sum(-1), X.abs().sum(-1)
    squared = (w_squares[..., None] - 2 * W @ X.mT + x_squares[:, None]).clamp(min=0)
    distances = torch.where(length[:, None] > 0, squared / length[:, None], torch.inf)
    distances = F.pad(distances, (0, 1), value=torch.inf)  # so that min has an entry
    distance, nearest = distances.min(dim=-1)
    nearest = nearest + count * torch.arange(groups, device=x.device)[:, None]
    looked_for = torch.ones_like(distance, dtype=torch.bool) if eligible is None else eligible.view(groups, neurons)
    none = ~looked_for | (length == 0).all(-1, keepdim=True)
    results = x_squares, w_squares[looked_for], 1 / length[length > 0], distance[~none]
    checks.no_overflow("nearest_patch", checks.RESPONSES, *(part.to(dtype) for part in results))
    return nearest.masked_fill(none, -1).int().flatten(), distance.masked_fill(none, torch.inf).to(dtype).flatten()


@_kernel
def accumulate(
    x: Tensor, targets: Tensor, coefficients: Tensor, responses: Tensor | None, neurons: int, *where: Any
) -> tuple[Tensor, Tensor, Tensor]:
    kernel, *geometry, frozen = where
    checks.finite("accumulate", x=x, coefficients=coefficients, responses=responses)
    groups = geometry[-1]
    checks.named_range("accumulate", "targets", targets, neurons, groups)
    X = patch_matrix("accumulate", x, kernel, *geometry)
    total, decay, count = sums_of(X, targets, coefficients, responses, neurons, frozen)
    return total.reshape(neurons, x.shape[1] // groups, *kernel), decay, count


def sums_of(
    X: Tensor, targets: Tensor, coefficients: Tensor, responses: Tensor | None, neurons: int, frozen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per neuron: the sum of coefficient * patch [K, N], its decay and the number of entries.

    targets and responses are [G, P, R], or [G · P, R]; coefficients likewise, or [R].
    """
    groups, shape = len(X), (*X.shape[:2], targets.shape[-1])
    coefficients = coefficients.expand(targets.shape)
    decays = (coefficients if responses is None else coefficients * responses).reshape(shape)
    coefficients = coefficients.reshape(shape)
    targets = targets.reshape(shape).masked_fill(is_blank(X)[..., None], -1)
    learners = torch.arange(neurons, device=X.device).view(groups, -1, 1)
    share = X.new_zeros(groups, learners.shape[1], X.shape[1])  # by how much each patch teaches each neuron
    decay, count = X.new_zeros(learners.shape[:2]), X.new_zeros(learners.shape[:2])
    for rank in range(targets.shape[-1]):
        target, coefficient, factor = (part[:, None, :, rank] for part in (targets, coefficients, decays))
        entry = (target == learners) & (coefficient != 0)
        if frozen is not None:
            entry &= ~frozen.view(learners.shape)
        share += torch.where(entry, coefficient, 0)
        decay += torch.where(entry, factor, 0).sum(-1)
        count += entry.sum(-1)
    return (share @ X).flatten(0, 1), decay.flatten(), count.flatten()


@_kernel
def dense_update(x: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return dense_sums("dense_update", x, weight, *settings)


def dense_sums(
    op: str, x: Tensor, weight: Tensor, activation: str, decay: str, temperature: float, *where: Any
) -> tuple[Tensor, Tensor]:
    """The sum [K, ...] and the number of patches."""
    *geometry, frozen = where
    checks.finite(op, x=x, weight=weight)
    X, W = layer_matrices(op, x, weight, *geometry)
    U = X @ W.mT
    checks.no_overflow(op, checks.RESPONSES, U)
    if activation == "softmax":
        Y = ((U - U.amax(-1, keepdim=True)) / temperature).softmax(dim=-1)
        winner = torch.zeros_like(U, dtype=torch.bool).scatter_(-1, U.argmax(-1, keepdim=True), True)
        Y = torch.where(winner, Y, -Y)
    else:
        Y = {"linear": lambda u: u, "relu": torch.relu, "tanh": torch.tanh}[activation](U)
    total = Y.mT @ X
    if decay == "triangular":
        total = total - (Y.mT @ Y).tril() @ W
    elif decay == "diagonal":
        total = total - (Y * (U if activation == "softmax" else Y)).sum(1)[..., None] * W
    elif decay == "activity":
        total = total - Y.sum(1)[..., None] * W
    total = total.flatten(0, 1)
    if frozen is not None:
        total = total.masked_fill(frozen[:, None], 0)
    checks.no_overflow(op, checks.SUMS, total)
    return total.reshape(weight.shape).contiguous(), X.new_full((1,), X.shape[1])


@_kernel
def apply_(
    weight: Tensor, sum: Tensor, decay: Tensor | None, denominator: Tensor | None, lr: float, *settings: Any
) -> None:
    checks.no_overlap("apply_", weight, sum=sum, decay=decay, denominator=denominator)
    checks.finite("apply_", weight=weight, sum=sum, decay=decay, denominator=denominator)
    take("apply_", weight, sum, decay, denominator, lr, *settings)


def take(
    op: str,
    weight: Tensor,
    sum: Tensor,
    decay: Tensor | None,
    denominator: Tensor | None,
    lr: float,
    normalise: str,
    rate_power: float,
    frozen: Tensor | None,
) -> None:
    """The step itself, weights as before on an overflow."""
    W, delta = weight.flatten(1).to(sum.dtype), sum.flatten(1)
    if decay is not None:
        delta = delta - decay[:, None] * W
    if denominator is not None:
        delta = torch.where(denominator[:, None] == 0, 0, delta / denominator[:, None])
    if frozen is not None:
        delta = delta.masked_fill(frozen[:, None], 0)
    if normalise == "global_max":
        delta = delta / delta.abs().max().clamp(min=1e-30)
    rate = lr if rate_power == 0 else lr * ((norms(W.to(wide(W))) - 1).abs() ** rate_power).to(W.dtype)
    step = torch.where(delta == 0, 0, rate * delta)  # whatever the rate
    moved = W + step
    if normalise in ("row_max", "row_l2"):
        largest = moved.abs().amax(1, keepdim=True)
        share = moved / largest.masked_fill(largest == 0, 1)  # so that no square overflows and no divisor is denormal
        length = share.norm(dim=1, keepdim=True) if normalise == "row_l2" else 1
        moved = torch.where(largest == 0, moved, share / length)
    moves = (step != 0).any(dim=1, keepdim=True)
    result = torch.where(moves, moved.to(weight.dtype), weight.flatten(1)).reshape(weight.shape)
    if not result.isfinite().all():
        checks.fail(op, "weight", "stay finite", "a step that overflows it")
    weight.copy_(result)


@_kernel
def dense_step_(weight: Tensor, x: Tensor, activation: str, decay: str, lr: float, *geometry: Any) -> None:
    total, count = dense_sums("dense_step_", x, weight, activation, decay, 1.0, *geometry)
    apply_(weight, total, None, count, lr, "none", 0.0, geometry[-1])


@_kernel
def winner_step_(weight: Tensor, x: Tensor, labels: Tensor | None, *settings: Any) -> None:
    rule, (lr, *geometry, frozen) = WinnerSpecification.of(settings)
    op, neurons = "winner_step_", weight.shape[0]
    checks.finite(op, x=x, weight=weight)
    X, W = layer_matrices(op, x, weight, *geometry)
    coefficients = X.new_tensor(rule.coefficients)
    if labels is None:
        scaled = rule.by_response or rule.decay_by_response
        targets, responses = winners_of(op, X, W, rule.k, rule.p, rule.cosine, scaled=scaled)
        coefficients = responses.clamp(min=0) * coefficients if rule.by_response else coefficients
    else:
        checks.named_range(op, "labels", labels, neurons)
        labels = labels.repeat_interleave(X.shape[1] // max(x.shape[0], 1))
        targets, responses = targets_of_labels(labels, len(W), neurons)[..., None], None
    decays = responses if rule.decay_by_response else None
    total, decay, _ = sums_of(X, targets, coefficients, decays, neurons, frozen)
    checks.no_overflow(op, checks.SUMS, total, decay)
    take(op, weight, total, decay, decay if rule.average else None, lr, rule.normalise, 0.0, frozen)


@_kernel
def kwinners(y: Tensor, k: int, dim: int) -> Tensor:
    checks.finite("kwinners", y=y)
    # A stable sort, because topk leaves the order of equal entries open.
    highest = y.sort(dim=dim, descending=True, stable=True).indices.narrow(dim, 0, k)
    kept = torch.zeros(y.shape, dtype=torch.bool, device=y.device).scatter_(dim, highest, True)
    return torch.where(kept, y, 0).contiguous()
