"""What hebbkern is measured against: each learning step as it is usually written, twice.

NUMPY holds the float64 formulation of Krotov and Hopfield's notebook, carried over to the other rules: all responses, a
sort or argmax, a matrix of who learns what, dense products. EAGER holds the float32 torch scripts of the field: unfold,
topk or one-hot, matmul. Both are vectorised, use all threads, and write W [K, N] in place; X [P, N] are the patches.
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


def eager_krotov_hopfield(W, X, lr, p=2.0, k=2, delta=0.4):
    S = X @ (W.sign() * W.abs() ** (p - 1)).T
    ranking = S.topk(k, dim=1).indices
    G = torch.zeros_like(S).scatter_(1, ranking[:, :1], 1).scatter_(1, ranking[:, -1:], -delta)
    step = G.T @ X - (G * S).sum(0)[:, None] * W
    W += lr * step / step.abs().max().clamp(min=1e-30)


def numpy_wta(W, X, lr):
    """HWTA. The length of the patch is left out of the cosine: it cannot change the winner."""
    winners = (X @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T).argmax(axis=1)
    G = np.zeros((len(X), len(W)))
    G[np.arange(len(X)), winners] = 1
    _towards_the_mean(W, G.T @ X, G.sum(axis=0)[:, None], lr, np.maximum)


def eager_wta(W, X, lr):
    winners = (X @ F.normalize(W).T).argmax(1)
    G = F.one_hot(winners, len(W)).to(X.dtype)
    _towards_the_mean(W, G.T @ X, G.sum(0)[:, None], lr, torch.clamp_min)


def numpy_teacher(W, X, lr, labels):
    G = np.zeros((len(X), len(W)))
    G[np.arange(len(X)), labels] = 1
    _towards_the_mean(W, G.T @ X, G.sum(axis=0)[:, None], lr, np.maximum)


def eager_teacher(W, X, lr, labels):
    G = F.one_hot(labels, len(W)).to(X.dtype)
    _towards_the_mean(W, G.T @ X, G.sum(0)[:, None], lr, torch.clamp_min)


def _towards_the_mean(W, sum, count, lr, at_least):
    W += lr * (sum - count * W) / at_least(count, 1)


def numpy_sanger_sum(W, X):
    """HPCA: Sanger's rule on ReLU outputs."""
    Y = np.maximum(X @ W.T, 0)
    return Y.T @ X - np.tril(Y.T @ Y) @ W


def eager_sanger_sum(W, X):
    Y = (X @ W.T).relu()
    return Y.T @ X - (Y.T @ Y).tril() @ W


def numpy_sanger(W, X, lr):
    W += lr / len(X) * numpy_sanger_sum(W, X)


def eager_sanger(W, X, lr):
    W += lr / len(X) * eager_sanger_sum(W, X)


def numpy_oja(W, X, lr):
    Y = X @ W.T
    W += lr / len(X) * (Y.T @ X - (Y**2).sum(axis=0)[:, None] * W)


def eager_oja(W, X, lr):
    Y = X @ W.T
    W += lr / len(X) * (Y.T @ X - Y.square().sum(0)[:, None] * W)


def numpy_hebb(W, X, lr):
    W += lr / len(X) * ((X @ W.T).T @ X)


def eager_hebb(W, X, lr):
    W += lr / len(X) * ((X @ W.T).T @ X)


def numpy_soft_wta(W, X, lr):
    U = X @ W.T
    R = np.exp(U - U.max(axis=1, keepdims=True))
    R /= -R.sum(axis=1, keepdims=True)
    R[np.arange(len(X)), U.argmax(axis=1)] *= -1
    step = R.T @ X - (R * U).sum(axis=0)[:, None] * W
    W += lr / len(X) * np.sqrt(np.abs(np.linalg.norm(W, axis=1) - 1))[:, None] * step


def eager_soft_wta(W, X, lr):
    U = X @ W.T
    R = -U.softmax(1)
    R[torch.arange(len(X)), U.argmax(1)] *= -1
    step = R.T @ X - (R * U).sum(0)[:, None] * W
    W += lr / len(X) * (W.norm(dim=1) - 1).abs().sqrt()[:, None] * step


RULES = ("krotov_hopfield", "wta", "teacher", "sanger", "oja", "hebb", "soft_wta")
NUMPY = {name: globals()[f"numpy_{name}"] for name in RULES}
EAGER = {name: globals()[f"eager_{name}"] for name in RULES}


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


def eager_match(X, W):
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
