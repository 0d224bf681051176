"""Numbers that are finite but extreme: a finite result, or an error that names the argument, and no weight moved."""

import itertools

import pytest
import torch

import calls
import cases
import hebbkern as hk

SIZES = (1e-42, 1e-20, 1e20, 3e38)
CALLS = {
    "compete": ("compete", {"k": 2}),
    "compete, cosine": ("compete", {"k": 2, "cosine": True}),
    "nearest_patch": ("nearest_patch", {}),
    "dense_update, softmax": ("dense_update", {"activation": "softmax", "decay": "diagonal"}),
    "dense_update, relu": ("dense_update", {"activation": "relu"}),
}
NAMES = ("x ", "weight ", "x and weight ", "sum ", "decay ")


def filled(shape, size, pattern, seed):
    """All of one size: the same number everywhere, or with the signs of normal numbers."""
    number = torch.full(shape, size)
    return number if pattern == "constant" else number * cases.random(shape, seed=seed).sign()


def named(error, operator):
    said = str(error)
    if "skipped on cuda" in said:  # by whoever waited
        return operator in calls.IN_PLACE
    return any(said.startswith(f"hebbkern.{operator}: {name}") for name in NAMES)


@pytest.mark.parametrize("pattern", ["constant", "signs"])
@pytest.mark.parametrize("patches", cases.PATCHES)
@pytest.mark.parametrize("layer", [calls.LINEAR, calls.CONVOLUTION], ids=["linear", "convolution"])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_finite_or_refused(backend, name, layer, patches, pattern):
    operator, options = CALLS[name]
    for x_size, w_size in itertools.product(SIZES, SIZES):
        x, weight = filled(layer.x, x_size, pattern, 0), filled(layer.weight, w_size, pattern, 1)
        before = calls.raw(x), calls.raw(weight)
        try:
            found = getattr(hk.ops, operator)(x, weight, patches=patches, **options, **layer.geometry)
            hk.synchronize()
        except (ValueError, RuntimeError) as error:
            assert named(error, operator), (x_size, w_size, error)
        else:
            nobody = found[0] == -1 if operator == "nearest_patch" else torch.zeros(1, dtype=torch.bool)
            numbers = (
                found[1].masked_fill(nobody, 0)
                if operator == "nearest_patch"
                else torch.cat([t.ravel() for t in found])
            )
            assert x.is_cuda or numbers.isfinite().all(), (x_size, w_size)  # on a GPU nobody looks at them
        assert before == (calls.raw(x), calls.raw(weight))


@pytest.mark.slow(9, on="triton")
@pytest.mark.parametrize("normalise", ["none", "row_l2", "row_max", "global_max"])
@pytest.mark.parametrize("pattern", ["constant", "signs"])
def test_steps_are_finite_or_refused(backend, pattern, normalise):
    shape = (9, 37)
    for w_size, sum_size, decay in itertools.product(SIZES, SIZES, (None, 1e-42, 3e38)):
        weight, total = filled(shape, w_size, pattern, 0), filled(shape, sum_size, pattern, 1)
        before = calls.raw(weight)
        try:
            decays = None if decay is None else torch.full(shape[:1], decay)
            hk.ops.apply_(weight, total, decay=decays, lr=0.5, normalise=normalise)
            hk.synchronize()
        except (ValueError, RuntimeError) as error:
            assert named(error, "apply_") and calls.raw(weight) == before, (w_size, sum_size, decay, error)
        else:
            assert weight.isfinite().all(), (w_size, sum_size, decay)
            lengths = {"row_l2": weight.double().norm(dim=1), "row_max": weight.double().abs().amax(1)}
            if normalise in lengths and calls.raw(weight) != before:
                torch.testing.assert_close(lengths[normalise], torch.ones(9, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("how", [{"cosine": True}, {"patches": "standardised"}], ids=str)
def test_norms_that_overflow_are_no_norms_of_zeros(backend, how):
    """Patches of norm 6e38: refused, not taken for empty ones."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], device=backend.device)
    weight = torch.tensor([[-1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]], device=backend.device)
    if backend.device != "cpu":
        pytest.skip("values are not looked at on a GPU")
    with pytest.raises(ValueError, match="norm and its inverse are finite"):
        hk.ops.compete(3e38 * signs[None], weight, 2, **how)
