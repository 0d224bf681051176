"""What hebbkern is measured against in NumPy: each learning step as Krotov and Hopfield's notebook would write it.

All responses in float64, a sort or argmax, a matrix of who learns what, dense products; vectorised, on all threads. W
[K, N] is written in place; X [P, N] are the patches. Below them the operators, in NumPy and in eager float32 torch, as
scripts of the field write them; the learning steps in torch are in peers.py.
"""

import numpy as np
import torch
import torch.nn.functional as F


def numpy_patches(x, kernel, padding=0):
    """X [P, N] of images [B, C, H, W], or x itself."""
    if not kernel:
        return x
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))  # [B, C, Ho, Wo, kh, kw]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * kernel[0] * kernel[1])


def eager_patches(x, kernel, padding=0):
    """X [P, N] of images [B, C, H, W], or x itself."""
    if not kernel:
        return x
    return F.unfold(x, kernel, padding=padding).transpose(1, 2).flatten(0, 1)


def numpy_krotov_hopfield(W, X, lr, p=2.0, k=2, delta=0.4):
    S = (np.sign(W) * np.abs(W) ** (p - 1)) @ X.T  # [K, P], as in the notebook
    ranking, all_patches = np.argsort(S, axis=0), np.arange(len(X))
    G = np.zeros_like(S)
    G[ranking[-1], all_patches] = 1
    G[ranking[-k], all_patches] = -delta
    step = G @ X - (G * S).sum(axis=1)[:, None] * W
    W += lr * step / max(np.abs(step).max(), 1e-30)


def numpy_wta(W, X, lr):
    """HWTA. The length of the patch is left out of the cosine: it cannot change the winner."""
    winners = (X @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T).argmax(axis=1)
    G = np.zeros((len(X), len(W)))
    G[np.arange(len(X)), winners] = 1
    _towards_the_mean(W, X, G, lr)


def numpy_teacher(W, X, lr, labels):
    G = np.zeros((len(X), len(W)))
    G[np.arange(len(X)), labels] = 1
    _towards_the_mean(W, X, G, lr)


def _towards_the_mean(W, X, G, lr):
    count = G.sum(axis=0)[:, None]
    W += lr * (G.T @ X - count * W) / np.maximum(count, 1)


def numpy_hebbcl(W, X, lr, threshold):
    """Neurons nearer than threshold to a sample win but do not learn; rows that moved are divided by their maximum."""
    frozen = numpy_match(X, W) < threshold
    G = np.zeros((len(X), len(W)))
    G[np.arange(len(X)), (X @ W.T).argmax(axis=1)] = 1
    G[:, frozen] = 0
    _towards_the_mean(W, X, G, lr)
    moved = G.any(axis=0)
    W[moved] /= np.abs(W[moved]).max(axis=1, keepdims=True)


def numpy_sanger_sum(W, X):
    """HPCA: Sanger's rule on ReLU outputs."""
    Y = np.maximum(X @ W.T, 0)
    return Y.T @ X - np.tril(Y.T @ Y) @ W


def eager_sanger_sum(W, X):
    Y = (X @ W.T).relu()
    return Y.T @ X - (Y.T @ Y).tril() @ W


def numpy_sanger(W, X, lr):
    W += lr / len(X) * numpy_sanger_sum(W, X)


def numpy_oja(W, X, lr):
    Y = X @ W.T
    W += lr / len(X) * (Y.T @ X - (Y**2).sum(axis=0)[:, None] * W)


def numpy_hebb(W, X, lr):
    W += lr / len(X) * ((X @ W.T).T @ X)


def numpy_soft_wta(W, X, lr):
    U = X @ W.T
    R = np.exp(U - U.max(axis=1, keepdims=True))
    R /= -R.sum(axis=1, keepdims=True)
    R[np.arange(len(X)), U.argmax(axis=1)] *= -1
    step = R.T @ X - (R * U).sum(axis=0)[:, None] * W
    W += lr / len(X) * np.sqrt(np.abs(np.linalg.norm(W, axis=1) - 1))[:, None] * step


RULES = (
    numpy_krotov_hopfield,
    numpy_wta,
    numpy_teacher,
    numpy_hebbcl,
    numpy_sanger,
    numpy_oja,
    numpy_hebb,
    numpy_soft_wta,
)
NUMPY = {rule.__name__.removeprefix("numpy_"): rule for rule in RULES}


def numpy_compete(X, W, k):
    """The responses of the k winners, in falling order."""
    S = X @ W.T
    highest = np.partition(S, -k, axis=1)[:, -k:]
    return np.sort(highest, axis=1)[:, ::-1].copy()


def eager_compete(X, W, k):
    return (X @ W.T).topk(k, dim=1).values


def numpy_match(X, W):
    """Each neuron's smallest |w - x|² / |x|₁."""
    squared = (W**2).sum(axis=1)[:, None] - 2 * W @ X.T + (X**2).sum(axis=1)
    return (squared / np.abs(X).sum(axis=1)).min(axis=1)


def eager_nearest_patch(X, W):
    return (torch.cdist(W, X).square() / X.abs().sum(1)).min(1).values


def numpy_accumulate(X, taught, coefficients, neurons):
    """The sum of coefficient times patch, per neuron."""
    G = np.zeros((len(X), neurons))
    G[np.arange(len(X))[:, None], taught] = coefficients
    return G.T @ X


def eager_accumulate(X, taught, coefficients, neurons):
    G = X.new_zeros(len(X), neurons).scatter_(1, taught, coefficients.expand(taught.shape))
    return G.T @ X


def numpy_kwinners(Y, k):
    """Y with all but the k highest of each row set to zero."""
    highest = np.argpartition(Y, -k, axis=1)[:, -k:]
    kept = np.zeros_like(Y)
    np.put_along_axis(kept, highest, np.take_along_axis(Y, highest, axis=1), axis=1)
    return kept


def eager_kwinners(Y, k):
    values, highest = Y.topk(k, dim=1)
    return torch.zeros_like(Y).scatter_(1, highest, values)
