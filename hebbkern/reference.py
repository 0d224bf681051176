"""The rules in plain NumPy, to be read beside the papers: the specification, the tests' oracle, the bench's baseline.

First one function a rule, each returning the new weight; below them the stages they are made of, with the argument
names of hebbkern.ops. Everything is float64 inside; patches are the rows of X [P, N], neurons the rows of W [K, N].
x is [B, N] with weight [K, N], or [B, C, H, W] with [K, C, kh, kw]. ``**geometry`` is patches, stride, padding,
dilation of ``unfold``. ``frozen`` (bool [K]) marks the neurons that compete but do not learn.
"""

import numpy as np

FLAT = 1e-6  # a patch whose centred norm is at most this part of its norm counts as constant


def krotov_hopfield(weight, x, lr, p=2.0, k=2, delta=0.4, frozen=None, **geometry):
    """Krotov and Hopfield 2019, as in their notebook: rank 1 learns, rank k unlearns by delta; k is at least 2."""
    if k < 2:
        raise ValueError(f"krotov_hopfield: k must be at least 2, got {k}")
    winners, responses = compete(x, weight, k, p, **geometry)
    taught, responses = winners[:, [0, k - 1]], responses[:, [0, k - 1]]
    sum, decay, _ = _accumulate_for(weight, x, taught, [1.0, -delta], responses, frozen, geometry)
    return apply(weight, sum, decay, lr=lr, normalise="global_max", frozen=frozen)


def wta(
    weight,
    x,
    lr,
    k=1,
    similarity="cosine",
    coefficient="one",
    average=True,
    normalise="none",
    frozen=None,
    **geometry,
):
    """HWTA (k = 1, cosine) and k-WTA: the k winners move towards the patch, by 1 or by their positive response."""
    winners, responses = compete(x, weight, k, cosine=similarity == "cosine", **geometry)
    coefficients = np.maximum(responses, 0) if coefficient == "response" else np.ones(k)
    sum, decay, _ = _accumulate_for(weight, x, winners, coefficients, None, frozen, geometry)
    return apply(weight, sum, decay, decay if average else None, lr=lr, normalise=normalise, frozen=frozen)


def teacher(weight, x, labels, lr, average=True, frozen=None, **geometry):
    """Supervised HebbCL, SHC, the DHP trace: neuron labels[b] moves towards the patches of sample b; -1 is nobody."""
    positions = len(unfold(x, np.shape(weight)[2:], **geometry)) // max(len(x), 1)
    taught = np.repeat(np.asarray(labels), positions)[:, None]
    sum, decay, count = _accumulate_for(weight, x, taught, [1.0], None, frozen, geometry)
    return apply(weight, sum, decay, count if average else None, lr=lr, frozen=frozen)


def sanger(weight, x, lr, activation="relu", frozen=None, **geometry):
    """Sanger 1989, eq. 3; with relu HPCA. Neuron j sees the patch less what neurons 0 to j have explained of it."""
    sum, count = dense(x, weight, activation, "triangular", frozen=frozen, **geometry)
    return apply(weight, sum, denominator=count, lr=lr, frozen=frozen)


def oja(weight, x, lr, activation="linear", frozen=None, **geometry):
    """Oja 1982: every neuron alone, y (x - y w)."""
    sum, count = dense(x, weight, activation, "diagonal", frozen=frozen, **geometry)
    return apply(weight, sum, denominator=count, lr=lr, frozen=frozen)


def hebb(weight, x, lr, activation="linear", frozen=None, **geometry):
    """Hebb: y x, without decay."""
    sum, count = dense(x, weight, activation, "none", frozen=frozen, **geometry)
    return apply(weight, sum, denominator=count, lr=lr, frozen=frozen)


def soft_wta(weight, x, lr, temperature=1.0, rate_power=0.5, normalise="none", frozen=None, **geometry):
    """SoftHebb (Journé et al. 2023): the softmax share of the winner is Hebbian, that of all others anti-Hebbian."""
    sum, count = dense(x, weight, "softmax", "diagonal", temperature, frozen=frozen, **geometry)
    return apply(weight, sum, None, count, lr, normalise, rate_power, frozen)


def hebbcl(
    weight, settled, x, lr, threshold, similarity="dot", average=True, normalise="row_max", freeze=True, **geometry
):
    """HebbCL, algorithm 1, one minibatch: (weight, settled). As many rows are to be added as settled has gained."""
    frozen = np.asarray(settled) & freeze
    rule = {"similarity": similarity, "average": average, "frozen": frozen}
    if normalise == "matrix_max":
        weight = wta(weight, x, lr, **rule, **geometry)
        weight = np.where(frozen[:, None], weight, weight / np.abs(weight[~frozen]).max(initial=1e-300))
    else:
        weight = wta(weight, x, lr, normalise=normalise, **rule, **geometry)
    _, distance = nearest_patch(x, weight, ~np.asarray(settled), **geometry)
    return weight, settled | (distance < threshold)


def unfold(x, kernel=(), patches="raw", stride=1, padding=0, dilation=1):
    """X [P, N]: what a neuron sees, sample by sample or (image, row, column) by (image, row, column)."""
    X = np.asarray(x, dtype=np.float64)
    if len(kernel):
        (top, left), (down, across), (sparse_y, sparse_x) = (np.broadcast_to(v, 2) for v in (padding, stride, dilation))
        span = sparse_y * (kernel[0] - 1) + 1, sparse_x * (kernel[1] - 1) + 1
        padded = np.pad(X, ((0, 0), (0, 0), (top, top), (left, left)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
        windows = windows[:, :, ::down, ::across, ::sparse_y, ::sparse_x]  # [B, C, Ho, Wo, kh, kw]
        width = X.shape[1] * kernel[0] * kernel[1]
        X = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, width)
    if patches == "raw":
        return X
    centred = X - X.mean(axis=1, keepdims=True)
    if patches == "centred":
        return centred
    length, whole = np.linalg.norm(centred, axis=1), np.linalg.norm(X, axis=1)
    flat = length <= FLAT * whole
    return np.where(flat[:, None], 0.0, centred / np.where(flat, 1.0, length)[:, None])


def compete(x, weight, k=1, p=2.0, cosine=False, mask=None, **geometry):
    """Per patch the k neurons that respond most, in falling order, equal ones by index; -1 where too few may win."""
    R = responses(x, weight, p, cosine, **geometry)
    may_win = np.ones(R.shape[1], bool) if mask is None else np.asarray(mask)
    winners = np.argsort(np.where(may_win, -R, np.inf), axis=1, kind="stable")[:, :k]
    nobody = ~may_win[winners]
    return np.where(nobody, -1, winners).astype(np.int32), np.where(nobody, 0.0, np.take_along_axis(R, winners, 1))


def responses(x, weight, p=2.0, cosine=False, **geometry):
    """[P, K]: sum_i sign(w_ji) |w_ji|^(p-1) x_i, or the cosine of patch and weight (0 where either is zero)."""
    X, W = unfold(x, np.shape(weight)[2:], **geometry), _rows(weight)
    if not cosine:
        return X @ (np.sign(W) * np.abs(W) ** (p - 1)).T
    norms = np.linalg.norm(X, axis=1)[:, None] * np.linalg.norm(W, axis=1)
    return np.where(norms > 0, X @ W.T / np.where(norms > 0, norms, 1.0), 0.0)


def nearest_patch(x, weight, mask=None, **geometry):
    """HebbCL: per neuron the patch of smallest |w - x|^2 / |x|_1 and that distance; -1 and inf where there is none."""
    D = distances(x, weight, **geometry)
    if mask is not None:
        D[~np.asarray(mask)] = np.inf
    D = np.concatenate([D, np.full((len(D), 1), np.inf)], axis=1)
    nearest, distance = D.argmin(axis=1), D.min(axis=1)
    return np.where(np.isinf(distance), -1, nearest).astype(np.int32), distance


def distances(x, weight, **geometry):
    """[K, P]: |w - x|^2 / |x|_1, infinite for patches of zeros."""
    X, W = unfold(x, np.shape(weight)[2:], **geometry), _rows(weight)
    squared = np.array([((X - w) ** 2).sum(axis=1) for w in W])
    length = np.abs(X).sum(axis=1)
    return np.where(length > 0, squared / np.where(length > 0, length, 1.0), np.inf)


def accumulate(x, taught, coefficients, neurons, kernel=(), responses=None, frozen=None, **geometry):
    """sum, decay and count per neuron over the entries (p, r) that teach it, see hebbkern.ops.accumulate."""
    X, taught = unfold(x, kernel, **geometry), np.asarray(taught)
    c = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), taught.shape)
    s = np.ones(taught.shape) if responses is None else np.asarray(responses, dtype=np.float64)
    sum, decay, count = np.zeros((neurons, X.shape[1])), np.zeros(neurons), np.zeros(neurons)
    for j in range(neurons):
        if frozen is not None and frozen[j]:
            continue
        p, r = np.nonzero((taught == j) & (c != 0))
        sum[j], decay[j], count[j] = c[p, r] @ X[p], c[p, r] @ s[p, r], len(p)
    return sum.reshape(neurons, np.shape(x)[1], *kernel), decay, count


def dense(x, weight, activation="relu", decay="triangular", temperature=1.0, frozen=None, **geometry):
    """The summed update of Sanger, Oja, Hebb and soft-WTA, and [P], the number of patches."""
    X, W = unfold(x, np.shape(weight)[2:], **geometry), _rows(weight)
    U = X @ W.T
    if activation == "softmax":
        Z = np.exp((U - U.max(axis=1, keepdims=True)) / temperature)
        Y = -Z / Z.sum(axis=1, keepdims=True)
        first = np.arange(len(U)), U.argmax(axis=1)
        Y[first] = -Y[first]
    else:
        Y = {"linear": U, "relu": np.maximum(U, 0), "tanh": np.tanh(U)}[activation]
    sum = Y.T @ X
    if decay == "triangular":
        sum -= np.tril(Y.T @ Y) @ W
    elif decay == "diagonal":
        sum -= (Y * (U if activation == "softmax" else Y)).sum(axis=0)[:, None] * W
    if frozen is not None:
        sum[np.asarray(frozen)] = 0
    return sum.reshape(np.shape(weight)), np.array([float(len(X))])


def apply(
    weight,
    sum,
    decay=None,
    denominator=None,
    lr=1.0,
    normalise="none",
    rate_power=0.0,
    frozen=None,
):
    """The new weight: w + lr rho (sum - decay w) / denominator, then rows renormalised; see hebbkern.ops.apply_."""
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


def kwinners(y, k, dim=-1):
    """y with all but the k highest along dim set to zero; equal entries go to the lower index."""
    y = np.asarray(y, dtype=np.float64)
    kept = np.zeros(y.shape, bool)
    np.put_along_axis(kept, np.argsort(-y, axis=dim, kind="stable").take(range(k), axis=dim), True, axis=dim)
    return np.where(kept, y, 0.0)


def _rows(weight):
    """W [K, N]"""
    W = np.asarray(weight, dtype=np.float64)
    return W.reshape(len(W), -1)


def _accumulate_for(weight, x, taught, coefficients, responses, frozen, geometry):
    neurons, kernel = len(weight), np.shape(weight)[2:]
    return accumulate(x, taught, coefficients, neurons, kernel, responses, frozen, **geometry)
