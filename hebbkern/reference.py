"""The learning rules in plain NumPy: the specification, the oracle of the tests and a baseline of the benchmark.

The first functions are one learning rule each; they return the new weight. The functions below them are the stages of
a step, with the argument names of `hebbkern.ops`. Every function converts its arguments to float64 and writes to none.

In the code ``X`` [P, N] holds the patches as rows and ``W`` [K, N] the neurons as rows. ``x`` is [B, N] with weight
[K, N], or [B, C, H, W] with weight [K, C / groups, kh, kw]. ``geometry`` stands for the keyword arguments patches,
stride, padding, dilation and groups of `unfold`: with groups, the neurons of each group see and compete for the patches
of their own channels, as if each group were a layer of its own. ``frozen`` (bool [K]) is True for neurons that compete
but do not learn.
"""

from typing import Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hebbkern.checks import FLAT

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]
Pair = int | tuple[int, int]
Patches = Literal["raw", "centred", "standardised"]
Similarity = Literal["cosine", "dot"]
Activation = Literal["linear", "relu", "tanh", "softmax"]
Decay = Literal["triangular", "diagonal", "activity", "none"]
Normalise = Literal["none", "global_max", "row_max", "row_l2"]


class Geometry(TypedDict, total=False):
    """The keyword arguments of `unfold` that say how patches are cut from x."""

    patches: Patches
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


def krotov_hopfield(
    weight: ArrayLike,
    x: ArrayLike,
    lr: float,
    p: float = 2.0,
    k: int = 2,
    delta: float = 0.4,
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one step of Krotov and Hopfield 2019: rank 1 learns, rank k (at least 2) by -delta."""
    if k < 2:
        raise ValueError(f"krotov_hopfield: k must be at least 2, got {k}")
    winners, responses = compete(x, weight, k, p, **geometry)
    targets, responses = winners[:, [0, k - 1]], responses[:, [0, k - 1]]
    sum, decay, _ = _accumulate_for(weight, x, targets, [1.0, -delta], responses, frozen, geometry)
    return apply(weight, sum, decay, lr=lr, normalise="global_max", frozen=frozen)


def wta(
    weight: ArrayLike,
    x: ArrayLike,
    lr: float,
    k: int = 1,
    similarity: Similarity = "cosine",
    coefficient: Literal["one", "response"] = "one",
    average: bool = True,
    normalise: Normalise = "none",
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one step of winner takes all: the k winners of a patch move towards it.

    HWTA is k = 1 with cosine similarity. The coefficient of a winner is 1, or its response where that is positive.
    """
    winners, responses = compete(x, weight, k, cosine=similarity == "cosine", **geometry)
    coefficients = np.maximum(responses, 0) if coefficient == "response" else np.ones(k)
    sum, decay, _ = _accumulate_for(weight, x, winners, coefficients, None, frozen, geometry)
    return apply(weight, sum, decay, decay if average else None, lr=lr, normalise=normalise, frozen=frozen)


def supervised(
    weight: ArrayLike,
    x: ArrayLike,
    labels: ArrayLike,
    lr: float,
    average: bool = True,
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one supervised step: neuron labels[b] moves towards the patches of sample b, -1 to none.

    This is the step of supervised HebbCL, of SHC and, where no sample is blank, of the DHP trace.
    """
    groups = geometry.get("groups", 1)
    positions = len(unfold(x, np.shape(weight)[2:], **geometry)) // groups // max(np.shape(x)[0], 1)
    targets = np.tile(np.repeat(np.asarray(labels), positions), (groups, 1))  # [G, B·Ho·Wo]
    other = targets // (len(np.asarray(weight)) // groups) != np.arange(groups)[:, None]
    targets = np.where(other, -1, targets).reshape(-1, 1)
    sum, decay, count = _accumulate_for(weight, x, targets, [1.0], None, frozen, geometry)
    return apply(weight, sum, decay, count if average else None, lr=lr, frozen=frozen)


def sanger(
    weight: ArrayLike,
    x: ArrayLike,
    lr: float,
    activation: Activation = "relu",
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one step of Sanger's rule (Sanger 1989, equation 3); with relu it is HPCA.

    Neuron j learns from the patch minus its reconstruction by the neurons 0 to j.
    """
    sum, count = dense(x, weight, activation, "triangular", frozen=frozen, **geometry)
    return apply(weight, sum, denominator=count, lr=lr, frozen=frozen)


def oja(
    weight: ArrayLike,
    x: ArrayLike,
    lr: float,
    activation: Activation = "linear",
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one step of Oja's rule (Oja 1982): each neuron by itself, y (x - y w)."""
    sum, count = dense(x, weight, activation, "diagonal", frozen=frozen, **geometry)
    return apply(weight, sum, denominator=count, lr=lr, frozen=frozen)


def hebb(
    weight: ArrayLike,
    x: ArrayLike,
    lr: float,
    activation: Activation = "linear",
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one step of the plain Hebbian rule: y x, without decay."""
    sum, count = dense(x, weight, activation, "none", frozen=frozen, **geometry)
    return apply(weight, sum, denominator=count, lr=lr, frozen=frozen)


def soft_wta(
    weight: ArrayLike,
    x: ArrayLike,
    lr: float,
    temperature: float = 1.0,
    rate_power: float = 0.5,
    normalise: Normalise = "none",
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> Floats:
    """Returns the weight after one step of SoftHebb (Journé et al. 2023).

    Each neuron learns in proportion to its share of a softmax: the winner towards the patch, all others away from it.
    """
    sum, count = dense(x, weight, "softmax", "diagonal", temperature, frozen=frozen, **geometry)
    return apply(weight, sum, None, count, lr, normalise, rate_power, frozen)


def hebbcl(
    weight: ArrayLike,
    converged: ArrayLike,
    x: ArrayLike,
    lr: float,
    threshold: float,
    similarity: Similarity = "dot",
    average: bool = True,
    normalise: Normalise | Literal["matrix_max"] = "row_max",
    freeze: bool = True,
    **geometry: Unpack[Geometry],
) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns weight and converged after one minibatch of HebbCL, algorithm 1.

    A neuron has converged once its distance to a patch is below the threshold. With freeze=True it then stops learning.
    The caller adds one neuron for each neuron that has newly converged.
    """
    converged = np.asarray(converged)
    frozen = converged & freeze
    rows = "none" if normalise == "matrix_max" else normalise
    weight = wta(weight, x, lr, similarity=similarity, average=average, normalise=rows, frozen=frozen, **geometry)
    if normalise == "matrix_max":
        weight = np.where(frozen[:, None], weight, weight / np.abs(weight[~frozen]).max(initial=1e-300))
    _, distance = nearest_patch(x, weight, ~converged, **geometry)
    return weight, converged | (distance < threshold)


def unfold(
    x: ArrayLike,
    kernel: tuple[int, ...] = (),
    patches: Patches = "raw",
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Floats:
    """Returns the patches X [P, N], ordered by group, then sample, then row, then column.

    Args:
        x: [B, N] or [B, C, H, W].
        kernel: (kh, kw) of a convolution, or () for a linear layer, whose patches are the samples.
        patches: "raw", "centred" (minus the mean of the patch; a constant patch becomes 0) or "standardised" (then
            divided by the norm).
        stride, padding, dilation: of the convolution, a number or a pair.
        groups: G, of the convolution: N is C / G · kh · kw.
    """
    X = np.asarray(x, dtype=np.float64)
    if len(kernel):
        (top, left), (down, across), (sparse_y, sparse_x) = (np.broadcast_to(v, 2) for v in (padding, stride, dilation))
        span = sparse_y * (kernel[0] - 1) + 1, sparse_x * (kernel[1] - 1) + 1
        padded = np.pad(X, ((0, 0), (0, 0), (top, top), (left, left)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
        windows = windows[:, :, ::down, ::across, ::sparse_y, ::sparse_x]  # [B, C, Ho, Wo, kh, kw]
        width = X.shape[1] // groups * kernel[0] * kernel[1]
        B, _, Ho, Wo = windows.shape[:4]
        X = windows.transpose(0, 2, 3, 1, 4, 5).reshape(B * Ho * Wo, groups, width)
        X = X.transpose(1, 0, 2).reshape(-1, width)
    if patches == "raw":
        return X
    centred = X - X.mean(axis=1, keepdims=True)
    norm, whole_norm = np.linalg.norm(centred, axis=1), np.linalg.norm(X, axis=1)
    flat = norm <= FLAT * whole_norm
    divisor = np.where(flat | (patches == "centred"), 1.0, norm)
    return np.where(flat[:, None], 0.0, centred / divisor[:, None])


def compete(
    x: ArrayLike,
    weight: ArrayLike,
    k: int = 1,
    p: float = 2.0,
    cosine: bool = False,
    eligible: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> tuple[Indices, Floats]:
    """Returns the k neurons with the highest responses to each patch, winners [P, k], and their responses [P, k].

    Responses fall from left to right; equal responses are ordered by index. ``eligible`` (bool [K]) is True for neurons
    that may win; where fewer than k may, the remaining winners are -1 and their responses 0. No neuron wins a blank
    patch, whose entries in `unfold` are all 0.
    """
    R, groups = responses(x, weight, p, cosine, **geometry), geometry.get("groups", 1)
    may_win = np.ones((groups, R.shape[1]), bool) if eligible is None else np.reshape(eligible, (groups, -1))
    may_win = np.repeat(may_win, len(R) // groups, axis=0)  # [P, K / G]
    winners = np.argsort(np.where(may_win, -R, np.inf), axis=1, kind="stable")[:, :k]
    blank = ~unfold(x, np.shape(weight)[2:], **geometry).any(axis=1, keepdims=True)
    empty = ~np.take_along_axis(may_win, winners, 1) | blank
    first = np.repeat(np.arange(groups) * R.shape[1], len(R) // groups)[:, None]  # neuron of each patch's group
    return np.where(empty, -1, winners + first).astype(np.int32), np.where(
        empty, 0.0, np.take_along_axis(R, winners, 1)
    )


def responses(
    x: ArrayLike, weight: ArrayLike, p: float = 2.0, cosine: bool = False, **geometry: Unpack[Geometry]
) -> Floats:
    """Returns the response of each neuron of a patch's group to the patch, [P, K / groups].

    It is sum_i sign(w_ji) |w_ji|^(p-1) x_i, or with cosine=True the cosine of patch and weight (0 where either is 0).
    """
    X, W = _by_group(x, weight, geometry)
    if not cosine:
        W = np.sign(W) * np.abs(W) ** (p - 1)
    R = X @ W.transpose(0, 2, 1)
    if cosine:
        norms = np.linalg.norm(X, axis=2)[:, :, None] * np.linalg.norm(W, axis=2)[:, None]
        R = np.where(norms > 0, R / np.where(norms > 0, norms, 1.0), 0.0)
    return R.reshape(-1, W.shape[1])


def nearest_patch(
    x: ArrayLike, weight: ArrayLike, eligible: ArrayLike | None = None, **geometry: Unpack[Geometry]
) -> tuple[Indices, Floats]:
    """Returns the nearest patch of each neuron, nearest [K], and its distance [K]; see `distances`.

    A neuron with eligible = False (bool [K]), and every neuron where no patch differs from 0, gets -1 and infinity.
    """
    D, groups = distances(x, weight, **geometry), geometry.get("groups", 1)
    if eligible is not None:
        D[~np.asarray(eligible)] = np.inf
    first = np.repeat(np.arange(groups) * D.shape[1], len(D) // groups)  # patch of each neuron's group
    D = np.concatenate([D, np.full((len(D), 1), np.inf)], axis=1)
    nearest, distance = first + D.argmin(axis=1), D.min(axis=1)
    return np.where(np.isinf(distance), -1, nearest).astype(np.int32), distance


def distances(x: ArrayLike, weight: ArrayLike, **geometry: Unpack[Geometry]) -> Floats:
    """Returns the distance |w - x|^2 / |x|_1 of each neuron to each patch of its group, [K, P / groups].

    It is infinite for patches of zeros.
    """
    X, W = _by_group(x, weight, geometry)
    squared = np.array([((X[g] - w) ** 2).sum(axis=1) for g in range(len(W)) for w in W[g]])
    length = np.repeat(np.abs(X).sum(axis=2), W.shape[1], axis=0)
    return np.where(length > 0, squared / np.where(length > 0, length, 1.0), np.inf)


def accumulate(
    x: ArrayLike,
    targets: ArrayLike,
    coefficients: ArrayLike,
    neurons: int,
    kernel: tuple[int, ...] = (),
    responses: ArrayLike | None = None,
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> tuple[Floats, Floats, Floats]:
    """Returns sum, decay [K] and count [K] of each neuron over the entries of targets [P, R] that name it.

    sum is [K, N] or [K, C / groups, kh, kw]. Entries with coefficient 0 do not count, nor do those of a blank patch,
    whose entries in `unfold` are all 0. See `hebbkern.ops.accumulate`.
    """
    X, targets = unfold(x, kernel, **geometry), np.asarray(targets)
    c = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), targets.shape)
    s = np.ones(targets.shape) if responses is None else np.asarray(responses, dtype=np.float64)
    skipped = np.zeros(neurons, bool) if frozen is None else np.asarray(frozen)
    sum, decay, count = np.zeros((neurons, X.shape[1])), np.zeros(neurons), np.zeros(neurons)
    for j in np.flatnonzero(~skipped):
        p, r = np.nonzero((targets == j) & (c != 0) & X.any(axis=1, keepdims=True))
        sum[j], decay[j], count[j] = c[p, r] @ X[p], c[p, r] @ s[p, r], len(p)
    return sum.reshape(neurons, np.shape(x)[1] // geometry.get("groups", 1), *kernel), decay, count


def dense(
    x: ArrayLike,
    weight: ArrayLike,
    activation: Activation = "relu",
    decay: Decay = "triangular",
    temperature: float = 1.0,
    frozen: ArrayLike | None = None,
    **geometry: Unpack[Geometry],
) -> tuple[Floats, Floats]:
    """Returns the summed update of a dense rule, shaped as weight, and the number of patches that a neuron sees [1].

    With u = w·x and y = f(u), the update of neuron j is the sum over the patches of

        "triangular"   y_j (x - sum_{i <= j} y_i w_i)    Sanger
        "diagonal"     y_j (x - y_j w_j)                 Oja; with softmax y_j (x - u_j w_j), SoftHebb
        "activity"     y_j (x - w_j)                     instar (Grossberg 1976)
        "none"         y_j x                             Hebb

    softmax and the sum over i are taken over the neurons of a group; softmax flips its sign for all but the winner.
    """
    groups = _by_group(x, weight, geometry)
    sum = np.concatenate([_dense(X, W, activation, decay, temperature) for X, W in zip(*groups, strict=True)])
    if frozen is not None:
        sum[np.asarray(frozen)] = 0
    return sum.reshape(np.shape(weight)), np.array([float(groups[0].shape[1])])


def _dense(X: Floats, W: Floats, activation: Activation, decay: Decay, temperature: float) -> Floats:
    """The sum [K, N] of one group."""
    U = X @ W.T
    if activation == "softmax":
        Z = np.exp((U - U.max(axis=1, keepdims=True)) / temperature)
        Y = -Z / Z.sum(axis=1, keepdims=True)
        winner = np.arange(len(U)), U.argmax(axis=1)
        Y[winner] = -Y[winner]
    else:
        Y = {"linear": U, "relu": np.maximum(U, 0), "tanh": np.tanh(U)}[activation]
    sum = Y.T @ X
    if decay == "triangular":
        sum -= np.tril(Y.T @ Y) @ W
    elif decay == "diagonal":
        sum -= (Y * (U if activation == "softmax" else Y)).sum(axis=0)[:, None] * W
    elif decay == "activity":
        sum -= Y.sum(axis=0)[:, None] * W
    return sum


def apply(
    weight: ArrayLike,
    sum: ArrayLike,
    decay: ArrayLike | None = None,
    denominator: ArrayLike | None = None,
    lr: float = 1.0,
    normalise: Normalise = "none",
    rate_power: float = 0.0,
    frozen: ArrayLike | None = None,
) -> Floats:
    """Returns the new weight: w + lr · rate · (sum - decay w) / denominator, with rows then normalised.

    The rate of a neuron is | |w|_2 - 1 |^rate_power. "global_max" divides the update by its largest absolute entry;
    "row_max" and "row_l2" divide each row that moved by its largest absolute entry or norm. See `hebbkern.ops.apply_`.
    """
    W = _rows(weight)
    delta = np.array(sum, dtype=np.float64).reshape(W.shape)
    if decay is not None:
        delta -= np.asarray(decay)[:, None] * W
    if denominator is not None:
        n = np.broadcast_to(np.asarray(denominator, dtype=np.float64), len(W))[:, None]
        delta = np.where(n == 0, 0.0, delta / np.where(n == 0, 1.0, n))
    if frozen is not None:
        delta[np.asarray(frozen)] = 0
    if normalise == "global_max":
        delta = delta / max(np.abs(delta).max(), 1e-30)
    rate = np.abs(np.linalg.norm(W, axis=1) - 1) ** rate_power
    step = lr * rate[:, None] * delta
    result = W + step
    if normalise in ("row_max", "row_l2"):
        size = np.linalg.norm(result, axis=1, ord=np.inf if normalise == "row_max" else 2)
        size[(size == 0) | ~step.any(axis=1)] = 1
        result = result / size[:, None]
    return result.reshape(np.shape(weight))


def kwinners(y: ArrayLike, k: int, dim: int = -1) -> Floats:
    """Returns y with all but the k highest entries along dim set to 0; of equal entries the lower index is kept."""
    y = np.asarray(y, dtype=np.float64)
    kept = np.zeros(y.shape, bool)
    np.put_along_axis(kept, np.argsort(-y, axis=dim, kind="stable").take(range(k), axis=dim), True, axis=dim)
    return np.where(kept, y, 0.0)


def _rows(weight: ArrayLike) -> Floats:
    """W [K, N]."""
    W = np.asarray(weight, dtype=np.float64)
    return W.reshape(len(W), -1)


def _by_group(x: ArrayLike, weight: ArrayLike, geometry: Geometry) -> tuple[Floats, Floats]:
    """X [groups, P, N] and W [groups, K, N], the patches and the neurons of each group."""
    X, W, groups = unfold(x, np.shape(weight)[2:], **geometry), _rows(weight), geometry.get("groups", 1)
    X, W = (rows.reshape(groups, len(rows) // groups, W.shape[1]) for rows in (X, W))
    return X, W


def _accumulate_for(weight, x, targets, coefficients, responses, frozen, geometry):
    """`accumulate` with the number of neurons and the kernel of weight."""
    neurons, kernel = np.shape(weight)[0], np.shape(weight)[2:]
    return accumulate(x, targets, coefficients, neurons, kernel, responses, frozen, **geometry)
