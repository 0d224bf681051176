"""The NumPy and eager torch baselines, written as the notebooks and scripts of the field write them.

First the learning steps in NumPy, as in Krotov and Hopfield's notebook: all responses in float64, a sort or argmax, a
matrix of coefficients [P, K], dense products. They write the weights W [K, N] in place; X [P, N] are the patches. The
operators follow, in NumPy and in eager float32 torch. The learning steps in torch are in peers.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


def numpy_patches(x: Array, kernel: Sequence[int]) -> Array:
    """The patches [P, N] of images [B, C, H, W]; x itself where the kernel is empty."""
    if not kernel:
        return x
    windows = np.lib.stride_tricks.sliding_window_view(x, tuple(kernel), axis=(2, 3))  # [B, C, Ho, Wo, kh, kw]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * kernel[0] * kernel[1])


def eager_patches(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """The patches [P, N] of images [B, C, H, W]; x itself where the kernel is empty."""
    return F.unfold(x, tuple(kernel)).transpose(1, 2).flatten(0, 1) if kernel else x


def numpy_krotov_hopfield(W: Array, X: Array, lr: float, p: float = 2.0, k: int = 2, delta: float = 0.4) -> None:
    S = (np.sign(W) * np.abs(W) ** (p - 1)) @ X.T  # [K, P], as in the notebook
    ranking, all_patches = np.argsort(S, axis=0), np.arange(len(X))
    G = np.zeros_like(S)
    G[ranking[-1], all_patches] = 1
    G[ranking[-k], all_patches] = -delta
    step = G @ X - (G * S).sum(axis=1)[:, None] * W
    W += lr * step / max(np.abs(step).max(), 1e-30)


def numpy_wta(W: Array, X: Array, lr: float) -> None:
    """HWTA. The cosine is not divided by the norm of the patch, which cannot change the winner."""
    winners = (X @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T).argmax(axis=1)
    _move_to_mean(W, X, _one_hot(winners, len(W)), lr)


def numpy_supervised(W: Array, X: Array, lr: float, labels: Array) -> None:
    _move_to_mean(W, X, _one_hot(labels, len(W)), lr)


def numpy_hebbcl(W: Array, X: Array, lr: float, threshold: float) -> None:
    """Neurons nearer than threshold to a sample win but do not learn; rows that moved are divided by their maximum."""
    frozen = numpy_nearest_patch(X, W) < threshold
    G = _one_hot((X @ W.T).argmax(axis=1), len(W))
    G[:, frozen] = 0
    _move_to_mean(W, X, G, lr)
    moved = G.any(axis=0)
    W[moved] /= np.abs(W[moved]).max(axis=1, keepdims=True)


def _one_hot(winners: Array, neurons: int) -> Array:
    G = np.zeros((len(winners), neurons))
    G[np.arange(len(winners)), winners] = 1
    return G


def _move_to_mean(W: Array, X: Array, G: Array, lr: float) -> None:
    """Moves every neuron towards the mean of its patches."""
    count = G.sum(axis=0)[:, None]
    W += lr * (G.T @ X - count * W) / np.maximum(count, 1)


def numpy_sanger(W: Array, X: Array, lr: float) -> None:
    W += lr / len(X) * numpy_dense_update(X, W)


def numpy_oja(W: Array, X: Array, lr: float) -> None:
    Y = X @ W.T
    W += lr / len(X) * (Y.T @ X - (Y**2).sum(axis=0)[:, None] * W)


def numpy_hebb(W: Array, X: Array, lr: float) -> None:
    W += lr / len(X) * ((X @ W.T).T @ X)


def numpy_soft_wta(W: Array, X: Array, lr: float) -> None:
    U = X @ W.T
    R = np.exp(U - U.max(axis=1, keepdims=True))
    R /= -R.sum(axis=1, keepdims=True)
    R[np.arange(len(X)), U.argmax(axis=1)] *= -1
    step = R.T @ X - (R * U).sum(axis=0)[:, None] * W
    W += lr / len(X) * np.sqrt(np.abs(np.linalg.norm(W, axis=1) - 1))[:, None] * step


def numpy_dense_update(X: Array, W: Array) -> Array:
    """The sum of HPCA, which is Sanger's rule on ReLU outputs."""
    Y = np.maximum(X @ W.T, 0)
    return Y.T @ X - np.tril(Y.T @ Y) @ W


def eager_dense_update(X: Tensor, W: Tensor) -> Tensor:
    Y = (X @ W.T).relu()
    return Y.T @ X - (Y.T @ Y).tril() @ W


def numpy_compete(X: Array, W: Array, k: int) -> Array:
    """The responses of the k winners, in falling order."""
    highest = np.partition(X @ W.T, -k, axis=1)[:, -k:]
    return np.sort(highest, axis=1)[:, ::-1].copy()


def eager_compete(X: Tensor, W: Tensor, k: int) -> Tensor:
    return (X @ W.T).topk(k, dim=1).values


def numpy_nearest_patch(X: Array, W: Array) -> Array:
    """The smallest |w - x|² / |x|₁ of each neuron."""
    squared = (W**2).sum(axis=1)[:, None] - 2 * W @ X.T + (X**2).sum(axis=1)
    return (squared / np.abs(X).sum(axis=1)).min(axis=1)


def eager_nearest_patch(X: Tensor, W: Tensor) -> Tensor:
    return (torch.cdist(W, X).square() / X.abs().sum(1)).min(1).values


def numpy_accumulate(X: Array, targets: Array, coefficients: Array, neurons: int) -> Array:
    """The sum of coefficient times patch of each neuron."""
    G = np.zeros((len(X), neurons))
    G[np.arange(len(X))[:, None], targets] = coefficients
    return G.T @ X


def eager_accumulate(X: Tensor, targets: Tensor, coefficients: Tensor, neurons: int) -> Tensor:
    G = X.new_zeros(len(X), neurons).scatter_(1, targets, coefficients.expand(targets.shape))
    return G.T @ X


def numpy_kwinners(Y: Array, k: int) -> Array:
    """Y with all but the k highest entries of each row set to zero."""
    highest = np.argpartition(Y, -k, axis=1)[:, -k:]
    kept = np.zeros_like(Y)
    np.put_along_axis(kept, highest, np.take_along_axis(Y, highest, axis=1), axis=1)
    return kept


def eager_kwinners(Y: Tensor, k: int) -> Tensor:
    values, highest = Y.topk(k, dim=1)
    return torch.zeros_like(Y).scatter_(1, highest, values)
