"""Centred, standardised and whitened images: moments and covariances from their formulas, and what is refused."""

import numpy as np
import pytest
import torch

from hebbkern import datasets
from hebbkern.datasets import preprocessing


def images(count=400, shape=(3, 2, 4), seed=0):
    """Correlated pixels in [0, 1], channels of different mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    inputs = int(np.prod(shape))
    mixed = torch.randn(count, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    return (0.5 + 0.02 * mixed).clamp(0, 1).view(count, *shape) * torch.tensor([1.0, 0.5, 0.2])[: shape[0], None, None]


@pytest.fixture(params=[2048, 7], ids=["one-chunk", "chunks-of-7"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(preprocessing, "CHUNK", request.param)


def test_centred_images_have_no_mean_image(chunk):
    x, other = images(), images(50, seed=1)
    fitted = datasets.centre(x)
    torch.testing.assert_close(fitted(x).mean(0), torch.zeros(3, 2, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(fitted(other), other - x.mean(0))


def test_standardised_channels_have_mean_0_and_deviation_1(chunk):
    x, other = images(), images(50, seed=1)
    fitted = datasets.standardise(x)
    dims = (0, 2, 3)
    torch.testing.assert_close(fitted(x).mean(dims), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted(x).std(dims, correction=0), torch.ones(3))
    want = (other - x.mean(dims, keepdim=True)) / x.std(dims, correction=0, keepdim=True)
    torch.testing.assert_close(fitted(other), want)


def test_flat_inputs_are_standardised_each_and_constant_ones_only_centred():
    x = images().flatten(1)
    x[:, 5] = 0.3
    y = datasets.standardise(x)(x)
    want = torch.ones(24).index_fill(0, torch.tensor(5), 0)
    torch.testing.assert_close(y.std(0, correction=0), want, atol=1e-6, rtol=1e-5)
    assert y[:, 5].abs().max() < 1e-6
    x[:, 5] += torch.arange(400) % 2  # in other images it may vary: it is not divided by nearly nothing
    assert datasets.standardise(images().flatten(1).index_fill(1, torch.tensor(5), 0.3))(x)[:, 5].abs().max() < 1.01


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_whitened_covariance_is_the_identity_up_to_epsilon(epsilon, chunk):
    """Variances λ become λ / (λ + ε) along the same axes."""
    x = images()
    y = datasets.zca(x, epsilon=epsilon)(x).flatten(1).double()
    flat = x.flatten(1).double()
    variance, axes = np.linalg.eigh(np.cov(flat.numpy().T, bias=True))
    want = axes @ np.diag(variance / (variance + epsilon)) @ axes.T
    got = np.cov(y.numpy().T, bias=True)
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert abs(y.mean()) < 1e-4
    np.testing.assert_allclose(got, np.eye(24), atol=epsilon / variance[0] + 2e-4)


def test_zca_turns_nothing():
    """Of all whitenings it is the symmetric one: a matrix equal to its transpose, with positive eigenvalues."""
    x = images()
    matrix = datasets.zca(x).matrix
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix.double()).min() > 0
    assert datasets.zca(x)(x).shape == x.shape


def test_the_fit_leaves_the_images_alone():
    x = images()
    before = x.clone()
    for fit in (datasets.centre, datasets.standardise, datasets.zca):
        fit(x)(x)
    assert torch.equal(x, before)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(datasets.zca(x)(channels_last), datasets.zca(x)(x), atol=1e-5, rtol=1e-5)


CONSTANT = torch.full((30, 1, 2, 2), 0.7)
WRONG = [
    ("standardise", CONSTANT, "training images must vary to be standardised, got constant ones"),
    ("zca", CONSTANT, "training images must vary to be whitened, got constant ones"),
    ("zca", images(24), r"training images must be more than their inputs \(24\) for zca, got 24"),
    *(
        (kind, torch.full((30, 4), float("nan")), "training images must be finite, got a NaN or an infinity")
        for kind in ("centre", "standardise", "zca")
    ),
    *(
        (kind, torch.zeros(30, 4, dtype=torch.uint8), "training images must be floats, at least one, got 30 of uint8")
        for kind in ("centre", "standardise", "zca")
    ),
    ("centre", torch.zeros(0, 4), "at least one, got 0 of float32"),
]


@pytest.mark.parametrize(("kind", "x", "message"), WRONG, ids=[f"{case[0]}-{case[2][:40]}" for case in WRONG])
def test_what_cannot_be_fitted_is_refused(kind, x, message):
    with pytest.raises(ValueError, match=f"hebbkern.datasets: .*{message}"):
        getattr(datasets, kind)(x)


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got 0"):
        datasets.zca(images(), epsilon=0)
    with pytest.raises(ValueError, match=r"x must have the shape that was fitted, \[3, 2, 4\], got \[3, 4, 2\]"):
        datasets.centre(images())(images(shape=(3, 4, 2)))
    with pytest.raises(ValueError, match='preprocess must be "none", "centre", "standardise" or "zca", got "white"'):
        datasets.load("gone.npz", preprocess="white")


@pytest.mark.parametrize("preprocess", datasets.PREPROCESS)
def test_load_fits_on_the_training_set_alone(preprocess, tmp_path):
    x, other = images(60, (1, 2, 3)), images(20, (1, 2, 3), seed=1)
    arrays = {"x_train": x[:, 0].numpy(), "x_test": other[:, 0].numpy()}
    np.savez(tmp_path / "a.npz", y_train=np.arange(60) % 2, y_test=np.arange(20) % 2, **arrays)
    data = datasets.load(str(tmp_path / "a.npz"), preprocess=preprocess, epsilon=1e-3)
    options = {"epsilon": 1e-3} if preprocess == "zca" else {}
    fitted = getattr(datasets, preprocess)(x, **options) if preprocess != "none" else (lambda images: images)
    torch.testing.assert_close(data.x_train, fitted(x))
    torch.testing.assert_close(data.x_test, fitted(other))
