"""hebbkern.reference as an oracle: what each operator must return, and by how much rounding may move it.

A sum of n products is off by at most λ √n u Σ|a||b| in any order, u being half a unit in the last place, with a
probability that λ = 4 brings close enough to one (Higham and Mary 2019, theorem 3.1). ``magnitude`` extends this to
patches that are centred or standardised first. Each
``check_*`` function recomputes an operator's result from its own arguments in float64 and compares within that bound.
"""

from importlib import import_module

import numpy as np
import torch

from hebbkern import backends, reference

SLACK = 32  # roundings besides the sum itself: conversions, powers, divisions
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SMALLEST = {torch.float32: 2.0**-149, torch.float64: 2.0**-1074, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}


def roundings(n):
    """How many u a sum of n products may be off by."""
    return 4 * np.sqrt(n) + SLACK


near_ties = {}  # operator -> [winners compared, winners left out because rounding may decide them]


def result_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact(tensor):
    """The tensor's numbers in float64, or as they are for integers and masks."""
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def unit(tensor):
    return UNIT[result_dtype(tensor.dtype)]


def magnitude(x, kernel, patches="raw", scaling=True, **where):
    """[P, N]: an entry of the transformed patch is off by at most roundings(N) u times this.

    Without ``scaling`` the error in a standardised patch's length is left out.
    """
    X = np.abs(reference.unfold(x, kernel, **where))
    if patches == "raw":
        return X
    spread = X + X.mean(axis=1, keepdims=True)
    if patches == "centred":
        return spread
    length = np.linalg.norm(reference.unfold(x, kernel, "centred", **where), axis=1, keepdims=True)
    whole = np.linalg.norm(X, axis=1, keepdims=True)
    flat = length <= reference.FLAT * whole
    length = np.where(flat, 1, length)  # which may be found as a difference of squares
    return np.where(flat, 0, spread / length * (1 + scaling * (whole / length) ** 2))


def close(got, want, bound, dtype):
    """Same shape, dtype, and every number within its bound; a result that is no number always fails."""
    assert got.dtype == dtype and tuple(got.shape) == np.shape(want) and got.is_contiguous()
    got = exact(got)
    with np.errstate(invalid="ignore"):  # equal infinities
        off = np.where(got == want, 0, np.abs(got - want))
    wrong = ~(off <= bound)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size}, off by {off[wrong].max()}"


def left_out(op, near, unit):
    """Which winners rounding may decide: ``near(scale)`` tells for bounds scaled by that.

    Keeps the tally, and fails if they are so many that comparing means little. Those that are equal within float64's
    own rounding (rows alike, few inputs) are left out as well, but true ties are no failure.
    """
    tied, near = near(UNIT[torch.float64] / unit), near(1)
    compared, left = near_ties.get(op, (0, 0))
    near_ties[op] = [compared + near.size, left + int(near.sum())]
    assert (near & ~tied).sum() <= 5 + 0.05 * near.size
    return near


def response_bound(x, weight, p=2.0, cosine=False, patches="raw", **where):
    """[P, K]: by how much a response may be off."""
    X, W = exact(x), exact(weight).reshape(len(weight), -1)
    M = magnitude(X, weight.shape[2:], patches, **where)
    if cosine:
        whole = np.linalg.norm(reference.unfold(X, weight.shape[2:], **where), axis=1, keepdims=True)
        M = (
            M / np.where(whole > 0, whole, 1)
            if patches == "raw"
            else magnitude(X, weight.shape[2:], "standardised", **where)
        )
        M[(M == 0) & (whole > 0)] = 2 * (patches == "centred") / unit(x)  # 0/0: a flat patch may point anywhere
        norms = np.linalg.norm(W, axis=1, keepdims=True)
        W = 2 * W / np.where(norms > 0, norms, 1)
    bound = roundings(W.shape[1]) * unit(x) * (M @ np.abs(W).T ** (p - 1))
    return bound + SMALLEST[result_dtype(x.dtype)]


def check_compete(got, x, weight, k=1, p=2.0, cosine=False, eligible=None, **geometry):
    winners, responses = got
    R = reference.responses(exact(x), exact(weight), p, cosine, **geometry)
    bound = response_bound(x, weight, p, cosine, **geometry)
    want, best = reference.compete(exact(x), exact(weight), k, p, cosine, exact(eligible), **geometry)
    assert winners.dtype == torch.int32 and tuple(winners.shape) == want.shape and winners.is_contiguous()
    winners = exact(winners)
    named = np.clip(winners, 0, None)
    assert ((winners == -1) == (want == -1)).all() and (winners < len(weight)).all()
    if eligible is not None:
        assert exact(eligible)[named[winners >= 0]].all()
    ranked = np.sort(named + np.where(winners < 0, -1 - np.arange(k), 0), axis=1)
    assert (np.diff(ranked, axis=1) != 0).all(), "a neuron wins twice"
    # The neuron named at a rank answers as strongly as the one that belongs there, up to rounding of both.
    off = np.take_along_axis(bound, named, 1)
    value = np.where(winners < 0, 0, np.take_along_axis(R, named, 1))
    close(responses, value, np.where(winners < 0, 0, off), result_dtype(x.dtype))
    theirs = np.take_along_axis(bound, np.clip(want, 0, None), 1)
    assert (np.abs(value - best) <= off + theirs)[want >= 0].all()
    rivals = R if eligible is None else np.where(exact(eligible), R, np.inf)

    def near(scale):
        """[P, k]: another neuron's response lies so close to the winner's that rounding may swap them."""
        ranks = range(k)
        reach = [np.abs(rivals - best[:, r, None]) <= scale * (bound + theirs[:, r, None]) for r in ranks]
        return np.array([reach[r].sum(axis=1) > 1 for r in ranks]).T.reshape(want.shape) & (want >= 0)

    near = left_out("compete", near, unit(x))
    assert (winners == want)[~near].all()


def check_nearest_patch(got, x, weight, eligible=None, **geometry):
    nearest, distance = got
    D = reference.distances(exact(x), exact(weight), **geometry)
    want, smallest = reference.nearest_patch(exact(x), exact(weight), exact(eligible), **geometry)
    assert nearest.dtype == torch.int32 and tuple(nearest.shape) == want.shape
    nearest, found = exact(nearest), want >= 0
    assert ((nearest == -1) == ~found).all()
    D, bound, rows = D[found], distance_bound(x, weight, **geometry)[found], np.arange(found.sum())
    value, off = smallest.copy(), np.zeros(len(want))
    value[found], off[found] = D[rows, nearest[found]], bound[rows, nearest[found]]
    close(distance, value, off, result_dtype(x.dtype))
    gaps, reach = D - smallest[found, None], bound + bound[rows, want[found], None]
    # The patch named is as near as the one that belongs there, up to rounding of both.
    assert (gaps <= reach)[rows, nearest[found]].all()
    gaps[rows, want[found]] = np.inf
    near = left_out("nearest_patch", lambda scale: (gaps <= reach * scale).any(axis=1), unit(x))
    assert (nearest == want)[found][~near].all()


def distance_bound(x, weight, patches="raw", **where):
    """[K, P]: by how much a distance may be off."""
    X, kernel, W = exact(x), weight.shape[2:], np.abs(exact(weight)).reshape(len(weight), -1)
    M, S = (magnitude(X, kernel, patches, scaling, **where) for scaling in (True, False))
    length = np.abs(reference.unfold(X, kernel, patches, **where)).sum(axis=1)
    length = np.where(length > 0, length, 1)
    D = reference.distances(X, exact(weight), patches=patches, **where)
    products = np.array([((M + w) * (S + w)).sum(axis=1) for w in W]) / length
    return roundings(W.shape[1]) * unit(x) * (products + np.where(np.isinf(D), 0, D) * M.sum(axis=1) / length)


def check_accumulate(
    got, x, targets, coefficients, neurons, kernel=(), responses=None, frozen=None, patches="raw", **where
):
    arguments = exact(targets), exact(coefficients), neurons, kernel, exact(responses), exact(frozen)
    want = reference.accumulate(exact(x), *arguments, patches=patches, **where)
    c, s = (None if tensor is None else np.abs(exact(tensor)) for tensor in (coefficients, responses))
    sizes = exact(targets), c, neurons, (), s, exact(frozen)
    M = magnitude(exact(x), kernel, patches, **where)
    total, decay, count = reference.accumulate(M, *sizes)
    u, dtype = unit(x), result_dtype(x.dtype)
    close(got[0], want[0], (roundings(M.shape[1] + count)[:, None] * u * total).reshape(want[0].shape), dtype)
    close(got[1], want[1], roundings(count) * u * decay, dtype)
    close(got[2], want[2], 0, dtype)


def check_dense_update(
    got,
    x,
    weight,
    activation="relu",
    decay="triangular",
    temperature=1.0,
    frozen=None,
    patches="raw",
    **where,
):
    geometry = {"patches": patches, **where}
    want, count = reference.dense(exact(x), exact(weight), activation, decay, temperature, exact(frozen), **geometry)
    X, W = reference.unfold(exact(x), weight.shape[2:], **geometry), exact(weight).reshape(len(weight), -1)
    U, M = X @ W.T, magnitude(exact(x), weight.shape[2:], patches, **where)
    u, off = unit(x), response_bound(x, weight, **geometry)
    if activation == "softmax":
        Y, off_Y = soft_bounds(U, off, temperature, u)
    else:
        Y = np.abs({"linear": U, "relu": np.maximum(U, 0), "tanh": np.tanh(U)}[activation])
        off_Y = off + SLACK * u * Y
    if rounds_responses(x, patches):
        off_Y = off_Y + UNIT[torch.bfloat16] * (Y + off_Y)
    most, terms = Y + off_Y, roundings(sum(W.shape) + len(X)) * u
    bound = off_Y.T @ np.abs(X) + terms * (most.T @ M)
    if decay != "none":
        factor, widest = (np.abs(U), np.abs(U) + off) if activation == "softmax" else (Y, most)
        if decay == "activity":
            factor = widest = np.ones_like(Y)
        part = np.tril if decay == "triangular" else lambda C: np.diag(np.diag(C))
        slip, whole = (part(C) @ np.abs(W) for C in (most.T @ widest - Y.T @ factor, most.T @ widest))
        bound = bound + slip + terms * whole
        if rounds_responses(x, patches):  # with few patches X less what was explained, and YᵀY, are rounded too
            bound = bound + UNIT[torch.bfloat16] * (most.T @ M * (decay == "triangular") + 2 * whole)
    close(got[0], want, bound.reshape(want.shape), result_dtype(x.dtype))
    close(got[1], count, 0, result_dtype(x.dtype))
    if frozen is not None:
        assert not got[0][frozen].any()


def rounds_responses(x, patches):
    """Whether Y is rounded to bfloat16 before it is multiplied, as the CPU's kernels do where that is faster."""
    if x.dtype != torch.bfloat16 or patches != "raw" or x.device.type != "cpu":
        return False
    compiled = backends.current() in ("auto", "cpu") and backends.available()["cpu"] is None
    return compiled and bool(import_module("hebbkern._cpu").pair_unit)


def soft_bounds(U, off, temperature, u):
    """Shares and their error; where rounding may choose another winner, a sign may flip."""
    Z = np.exp((U - U.max(axis=1, keepdims=True)) / temperature)
    Y = Z / Z.sum(axis=1, keepdims=True)
    most = off.max(axis=1, keepdims=True)
    off_Y = Y * np.expm1(np.minimum(2 * most / temperature, 9)) + SLACK * u
    if U.shape[1] > 1 and len(U):
        best, second = -np.sort(-U, axis=1)[:, :2].T
        near = left_out("dense_update, softmax", lambda scale: best - second <= 2 * most[:, 0] * scale, u)
        off_Y[near] += 2 * Y[near]
    return Y, off_Y


def check_apply(got, weight, sum, decay=None, denominator=None, lr=1.0, normalise="none", rate_power=0.0, frozen=None):
    """``got`` is the weight after the step, ``weight`` a copy from before it."""
    before, total, decay, denominator, frozen = map(exact, (weight, sum, decay, denominator, frozen))
    want = reference.apply(before, total, decay, denominator, lr, normalise, rate_power, frozen)
    W, u = np.abs(before).reshape(len(before), -1), UNIT[result_dtype(weight.dtype)]
    sizes = np.abs(total).reshape(W.shape), None if decay is None else -np.abs(decay)
    size = reference.apply(W, *sizes, None if denominator is None else np.abs(denominator), 1.0, frozen=frozen) - W
    off = SLACK * u * size
    if normalise == "global_max":
        step = reference.apply(before, total, decay, denominator, 1.0, frozen=frozen) - before
        largest = max(np.abs(step).max(), 1e-30)
        size, off = size / largest, (off + size * off.max() / largest) / largest
    rate, spread = rate_bounds(np.linalg.norm(W, axis=1), roundings(W.shape[1]) * u, rate_power)
    bound = np.abs(lr) * (off * rate + size * spread) + SLACK * u * (W + np.abs(lr) * size * rate)
    if normalise in ("row_max", "row_l2"):
        plain = reference.apply(before, total, decay, denominator, lr, "none", rate_power, frozen).reshape(W.shape)
        length = np.linalg.norm(plain, axis=1, ord=2 if normalise == "row_l2" else np.inf, keepdims=True)
        length[length == 0] = 1
        slip = np.linalg.norm(bound, axis=1, keepdims=True) + roundings(W.shape[1]) * u * length
        bound = bound / length + np.abs(plain) / length * slip / length
    bound = (bound + SMALLEST[weight.dtype]).reshape(want.shape) + UNIT[weight.dtype] * np.abs(want)
    assert got.dtype == weight.dtype and got.shape == weight.shape
    wrong = ~(np.abs(exact(got) - want) <= bound)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size}, off by {np.abs(exact(got) - want)[wrong].max()}"


def rate_bounds(norm, relative, rate_power):
    """The largest rate | norm - 1 | ^ rate_power within rounding of the norm, and by how much it may vary; [K, 1]."""
    from_one = np.abs(norm - 1)[:, None] + norm[:, None] * relative * np.array([-1, 0, 1])
    rates = np.clip(from_one, 0, None) ** rate_power
    return rates.max(axis=1, keepdims=True), np.ptp(rates, axis=1)[:, None]
