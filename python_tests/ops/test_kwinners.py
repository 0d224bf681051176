"""kwinners: exact, for any k and any dimension."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cases
import hebbkern as hk
import oracle

SHAPES = [(1,), (63,), (100, 257), (1, 1), (3, 63, 5), (2, 100, 4, 3), (0, 9), (5, 1, 2, 3, 2)]


def check(y, k, dim):
    got = hk.ops.kwinners(y, k, dim)
    assert got.dtype == y.dtype and got.shape == y.shape and got.is_contiguous()
    assert (oracle.exact(got) == hk.reference.kwinners(oracle.exact(y), k, dim)).all()


@pytest.mark.slow(30, on="triton")
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dim(backend, shape, dtype):
    for dim in range(-len(shape), len(shape)):
        size = shape[dim]
        for k in {1, size // 3 or 1, size} if size else ():
            check(cases.random(shape, dtype, backend.device), k, dim)
            check(cases.integers(shape, -2, 2, dtype, backend.device), k, dim)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(63, 100), (2, 100, 4, 3)], ids=str)
def test_layouts(backend, shape, layout):
    for dtype in cases.DTYPES:
        y = cases.laid_out(cases.integers(shape, -9, 9, dtype, backend.device), layout)
        for dim in range(len(shape)):
            check(y, 2, dim)


@given(st.data())
def test_drawn_shapes(backend, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    dtype, seed = data.draw(st.sampled_from(cases.DTYPES)), data.draw(st.integers(0, 2**20))
    y = cases.integers(shape, -data.draw(st.integers(0, 99)), data.draw(st.integers(0, 99)), dtype, seed=seed)
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    check(cases.laid_out(y, data.draw(st.sampled_from(cases.LAYOUTS))), data.draw(st.integers(1, shape[dim])), dim)


def test_more_than_64_winners_of_many(backend):
    for k in (65, 500, 1999, 2000):
        check(cases.random((4, 2000), device=backend.device), k, 1)
        check(cases.integers((4, 2000), 0, 3, device=backend.device), k, 1)


def test_dim_is_the_last_by_default(backend):
    y = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 5.0]])
    assert hk.ops.kwinners(y, 1).tolist() == [[3, 0, 0], [0, 5, 0]]
    assert hk.ops.kwinners(y, 1, dim=0).tolist() == [[3, 0, 0], [0, 5, 5]]


def test_zeros_of_either_sign_tie(backend):
    """The lower index is kept with its sign; nothing else is left to see."""
    got = hk.ops.kwinners(torch.tensor([[-0.0, 0.0, -1.0, -0.0]]), 2)
    assert got.tolist() == [[0, 0, 0, 0]] and got.signbit().tolist() == [[True, False, False, False]]
