"""hebbkern.reference against the papers' formulas, written out as loops over patches, and what they converge to."""

import numpy as np
import pytest

from hebbkern import reference

RNG = np.random.default_rng(7)
LR = 0.1


def linear(patches=23, inputs=6, neurons=5):
    return RNG.normal(size=(neurons, inputs)), RNG.normal(size=(patches, inputs))


def krotov_notebook(synapses, inputs, eps, p, k, delta, prec=1e-30):
    """The published notebook's inner loop, whose patches are columns."""
    v, hidden, batch = inputs.T, len(synapses), len(inputs)
    tot_input = (np.sign(synapses) * np.abs(synapses) ** (p - 1)) @ v
    order = np.argsort(tot_input, axis=0)
    yl = np.zeros((hidden, batch))
    yl[order[hidden - 1, :], np.arange(batch)] = 1.0
    yl[order[hidden - k, :], np.arange(batch)] = -delta
    xx = np.sum(yl * tot_input, axis=1)
    ds = yl @ v.T - xx[:, None] * synapses
    return synapses + eps * ds / max(np.abs(ds).max(), prec)


@pytest.mark.parametrize(("p", "k", "delta"), [(2.0, 2, 0.4), (3.0, 4, 0.3), (4.5, 3, 0.0), (1.5, 2, 1.0)])
def test_krotov_hopfield_is_the_notebook(p, k, delta):
    weight, x = linear()
    want = krotov_notebook(weight, x, LR, p, k, delta)
    assert np.allclose(reference.krotov_hopfield(weight, x, LR, p, k, delta), want, rtol=1e-12)


def test_krotov_hopfield_needs_a_rival():
    with pytest.raises(ValueError, match="k must be at least 2, got 1"):
        reference.krotov_hopfield(*linear(), LR, k=1)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("coefficient", ["one", "response"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("k", [1, 3])
def test_wta_moves_the_winners_to_their_patches(k, similarity, coefficient, average):
    weight, x = linear()
    moved, shares = np.zeros_like(weight), np.zeros(len(weight))
    for patch in x:
        score = [w @ patch for w in weight]
        if similarity == "cosine":
            score = [s / (np.linalg.norm(w) * np.linalg.norm(patch)) for s, w in zip(score, weight, strict=True)]
        for j in sorted(range(len(weight)), key=lambda j: -score[j])[:k]:
            r = 1.0 if coefficient == "one" else max(score[j], 0.0)
            moved[j] += r * (patch - weight[j])
            shares[j] += r
    for j in range(len(weight)):
        if average and shares[j]:
            moved[j] /= shares[j]
    got = reference.wta(weight, x, LR, k, similarity, coefficient, average)
    assert np.allclose(got, weight + LR * moved, rtol=1e-12)


def test_supervised_moves_the_class_to_its_samples():
    weight, x = linear()
    labels = np.arange(len(x)) % 5 - 1  # some samples have no class, and no sample teaches neuron 4
    want = weight.copy()
    for j in range(4):
        want[j] += LR * np.mean([patch - weight[j] for patch in x[labels == j]], axis=0)
    assert np.allclose(reference.supervised(weight, x, labels, LR), want, rtol=1e-12)
    summed = reference.supervised(weight, x, labels, LR, average=False)
    assert np.allclose(summed[2], weight[2] + LR * (x[labels == 2] - weight[2]).sum(axis=0), rtol=1e-12)


ACTIVATIONS = {"linear": lambda u: u, "relu": lambda u: max(u, 0.0), "tanh": np.tanh}


@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_decay_by_activity_moves_each_neuron_towards_the_patches(activation):
    weight, x = linear()
    want = np.zeros_like(weight)
    for patch in x:
        for j, w in enumerate(weight):
            want[j] += ACTIVATIONS[activation](w @ patch) * (patch - w)
    got, count = reference.dense(x, weight, activation, "activity")
    assert np.allclose(got, want, rtol=1e-12) and count == len(x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_rules_neuron_by_neuron(activation):
    """Sanger: Δw_j = y_j (x - Σ_{i ≤ j} y_i w_i); Oja: y_j (x - y_j w_j); Hebb: y_j x; all averaged over patches."""
    weight, x = linear()
    sanger, oja, hebb = (weight.copy() for _ in range(3))
    for patch in x:
        y = [ACTIVATIONS[activation](w @ patch) for w in weight]
        explained = np.zeros_like(patch)
        for j, w in enumerate(weight):
            explained = explained + y[j] * w
            sanger[j] += LR / len(x) * y[j] * (patch - explained)
            oja[j] += LR / len(x) * y[j] * (patch - y[j] * w)
            hebb[j] += LR / len(x) * y[j] * patch
    for rule, want in ((reference.sanger, sanger), (reference.oja, oja), (reference.hebb, hebb)):
        assert np.allclose(rule(weight, x, LR, activation), want, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_soft_wta_neuron_by_neuron(temperature):
    """SoftHebb: Δw_j = ±softmax_j (x - u_j w_j), + for the winner alone, by a rate of | |w_j| - 1 |^0.5."""
    weight, x = linear()
    want = weight.copy()
    for patch in x:
        u = weight @ patch
        share = np.exp(u / temperature) / np.exp(u / temperature).sum()
        for j, w in enumerate(weight):
            sign = 1 if u[j] == u.max() else -1
            rate = LR * abs(np.sqrt(w @ w) - 1) ** 0.5
            want[j] += rate / len(x) * sign * share[j] * (patch - u[j] * w)
    assert np.allclose(reference.soft_wta(weight, x, LR, temperature), want, rtol=1e-12)


def test_soft_wta_by_the_largest_entry():
    """By hand: u = 2 ln 3 and ln 3, shares 3/4 and 1/4, the second anti-Hebbian; the largest |Δ| is the first's."""
    log = np.log(3)
    weight, x = np.array([[2.0, 0.0], [1.0, 3.0]]), np.array([[log, 0.0]])
    delta = np.array([[3 / 4 * (log - 4 * log), 0.0], [-1 / 4 * (log - log), -1 / 4 * (0 - 3 * log)]])
    rates = np.array([[1.0], [np.sqrt(10) - 1]])
    got = reference.soft_wta(weight, x, LR, rate_power=1.0, normalise="global_max")
    assert np.allclose(got, weight + LR * rates * delta / (9 / 4 * log), rtol=1e-12)
    assert np.isclose(got[0, 0], 2 - LR)


def patches_by_loops(x, kernel, stride, padding, dilation):
    batch, channels, height, width = x.shape
    found = []
    rows, columns = (
        (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, size in enumerate((height, width))
    )
    for b in range(batch):
        for oy in range(rows):
            for ox in range(columns):
                patch = []
                for c in range(channels):
                    for ky in range(kernel[0]):
                        for kx in range(kernel[1]):
                            row = oy * stride[0] + ky * dilation[0] - padding[0]
                            column = ox * stride[1] + kx * dilation[1] - padding[1]
                            inside = 0 <= row < height and 0 <= column < width
                            patch.append(x[b, c, row, column] if inside else 0.0)
                found.append(patch)
    return np.array(found)


GEOMETRIES = [
    {"kernel": (3, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
    {"kernel": (2, 3), "stride": (2, 3), "padding": (1, 2), "dilation": (1, 1)},
    {"kernel": (3, 2), "stride": (1, 2), "padding": (3, 1), "dilation": (2, 3)},
    {"kernel": (1, 1), "stride": (3, 2), "padding": (0, 0), "dilation": (5, 1)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_unfold_entry_by_entry(geometry):
    x = RNG.normal(size=(2, 3, 6, 7))
    rows = patches_by_loops(x, **geometry)
    assert np.array_equal(reference.unfold(x, **geometry), rows)
    for patches in ("centred", "standardised"):
        want = rows - rows.mean(axis=1, keepdims=True)
        if patches == "standardised":
            for row in want:
                length = np.sqrt((row**2).sum())
                row /= length if length > 1e-9 else 1
        assert np.allclose(reference.unfold(x, patches=patches, **geometry), want, atol=1e-15)


def test_flat_patches():
    x = np.array([[0.1] * 75, [0.0] * 75, [1.0] + [0.0] * 74])
    rows = reference.unfold(x, patches="standardised")
    assert not rows[:2].any() and np.isclose(np.linalg.norm(rows[2]), 1)


@pytest.mark.parametrize("rule", ["krotov_hopfield", "wta", "supervised", "sanger", "oja", "hebb", "soft_wta"])
@pytest.mark.parametrize("patches", ["raw", "centred", "standardised"])
def test_images_learn_as_their_patches_do(rule, patches):
    """A convolution's step is the linear step on its patches: one geometry, the same rule."""
    geometry = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}
    x, weight = RNG.normal(size=(3, 2, 7, 6)), RNG.normal(size=(5, 2, 3, 2))
    rows = patches_by_loops(x, (3, 2), **geometry)
    given, of_rows = {}, {}
    if rule == "supervised":
        given["labels"] = np.array([3, 0, 3])
        of_rows["labels"] = np.repeat(given["labels"], len(rows) // 3)
    step = getattr(reference, rule)
    got = step(weight, x, lr=LR, patches=patches, **given, **geometry)
    want = step(weight.reshape(5, 12), rows, lr=LR, patches=patches, **of_rows)
    assert got.shape == weight.shape and np.allclose(got.reshape(5, 12), want, rtol=1e-12)


@pytest.mark.parametrize("rule", ["krotov_hopfield", "wta", "sanger", "oja", "hebb", "soft_wta"])
def test_frozen_neurons_compete_but_do_not_move(rule):
    weight, x = linear()
    frozen = np.array([True, False, False, True, False])
    plain, got = (getattr(reference, rule)(weight, x, lr=LR, frozen=mask) for mask in (None, frozen))
    assert np.array_equal(got[frozen], weight[frozen])
    free, moved = (after[~frozen] - weight[~frozen] for after in (plain, got))
    ratio = moved[free != 0] / free[free != 0]
    assert np.allclose(ratio, ratio[0]) and (rule == "krotov_hopfield" or np.isclose(ratio[0], 1))


def test_nearest_patch_pair_by_pair():
    weight, x = linear()
    nearest, distance = reference.nearest_patch(x, weight)
    for j, w in enumerate(weight):
        every = [sum((w - patch) ** 2) / sum(abs(patch)) for patch in x]
        assert nearest[j] == np.argmin(every) and np.isclose(distance[j], min(every))


def test_p_norm_response_entry_by_entry():
    weight, x = linear()
    for p in (1.0, 2.0, 3.0, 4.5):
        got = reference.responses(x, weight, p)
        want = sum(np.sign(weight[3, i]) * abs(weight[3, i]) ** (p - 1) * x[7, i] for i in range(6))
        assert np.isclose(got[7, 3], want)


def test_kwinners_entry_by_entry():
    y = np.array([[3.0, 1.0, 3.0, 2.0], [0.0, -1.0, 0.0, -2.0]])
    assert reference.kwinners(y, 1).tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]
    assert reference.kwinners(y, 3).tolist() == [[3, 0, 3, 2], [0, -1, 0, 0]]
    assert reference.kwinners(y, 1, dim=0).tolist() == [[3, 1, 3, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize("normalise", ["row_max", "row_l2"])
def test_rows_that_moved_are_normalised(normalise):
    weight, x = linear()
    got = reference.wta(weight, x[:2], LR, normalise=normalise)
    moved = (got != weight).any(axis=1)
    assert 1 <= moved.sum() <= 2
    assert np.allclose(np.linalg.norm(got[moved], axis=1, ord=2 if normalise == "row_l2" else np.inf), 1)


def known_covariance(samples=4000):
    """Exactly decorrelated samples of standard deviations 4, 3, 2, 1, 0.5 along the columns of a random basis."""
    basis, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    white, _ = np.linalg.qr(RNG.normal(size=(samples, 5)))
    return basis, np.sqrt(samples) * white * [4, 3, 2, 1, 0.5] @ basis.T


def test_sanger_finds_the_principal_directions_in_order():
    basis, x = known_covariance()
    weight = RNG.normal(size=(3, 5)) * 0.1
    for _ in range(2000):
        weight = reference.sanger(weight, x, 0.01, activation="linear")
    assert np.allclose(np.abs(weight @ basis), np.eye(3, 5), atol=1e-3)


def test_oja_finds_the_first_principal_direction_of_length_one():
    basis, x = known_covariance()
    weight = RNG.normal(size=(3, 5)) * 0.1
    for _ in range(1000):
        weight = reference.oja(weight, x, 0.01)
    assert np.allclose(np.abs(weight @ basis), [[1, 0, 0, 0, 0]] * 3, atol=1e-3)


def test_wta_finds_the_means_of_clusters():
    centres = 5 * np.eye(4)
    x = np.repeat(centres, 50, axis=0) + RNG.normal(size=(200, 4)) * 0.1
    weight = centres + RNG.normal(size=(4, 4)) * 0.5
    for _ in range(100):
        weight = reference.wta(weight, x, 0.3)
    assert np.allclose(weight, x.reshape(4, 50, 4).mean(axis=1))


def test_krotov_hopfield_without_rival_has_rows_of_length_one():
    """With delta = 0 the fixed points have Σ |w|^p = 1 (Krotov and Hopfield 2019, eq. 5)."""
    for p in (2.0, 3.0):
        x, weight = RNG.normal(size=(200, 6)) + 1, RNG.normal(size=(1, 6))
        weight = np.concatenate([weight, -weight])
        for step in range(3000):
            weight = reference.krotov_hopfield(weight, x, 0.05 * (1 - step / 3000), p=p, delta=0.0)
        won = np.unique(reference.compete(x, weight, 1, p)[0])
        assert np.allclose((np.abs(weight[won]) ** p).sum(axis=1), 1, atol=0.02)


@pytest.mark.parametrize("average", ["count", "one"])
def test_splitting_the_batch_changes_nothing(average):
    """Sums and denominators add up; only then the step is taken."""
    weight, x = linear()
    sums = [reference.accumulate(part, *winning(part, weight), len(weight)) for part in (x, x[:9], x[9:])]
    whole, added = sums[0], [a + b for a, b in zip(*sums[1:], strict=True)]
    for one, other in zip(whole, added, strict=True):
        assert np.allclose(one, other)
    denominators = [s[2] if average == "count" else np.array([len(x)]) for s in (whole, added)]
    steps = [reference.apply(weight, s[0], s[1], d, LR) for s, d in zip((whole, added), denominators, strict=True)]
    assert np.allclose(*steps, rtol=1e-12)
    dense = [reference.dense(part, weight) for part in (x, x[:9], x[9:])]
    assert np.allclose(dense[0][0], dense[1][0] + dense[2][0]) and dense[0][1] == dense[1][1] + dense[2][1]


def winning(x, weight):
    return reference.compete(x, weight, 2)[0], [1.0, -0.4]


def test_an_empty_batch_teaches_nothing():
    weight, x = linear(patches=0)
    for rule in (reference.krotov_hopfield, reference.wta, reference.sanger, reference.oja, reference.soft_wta):
        assert np.array_equal(rule(weight, x, LR), weight)
    assert np.array_equal(reference.supervised(weight, x, np.zeros(0, int), LR), weight)
