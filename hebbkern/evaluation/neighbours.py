"""knn: how well the nearest neighbours in feature space tell the class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int = 10,
    *,
    similarity: str = "euclidean",
    chunk: int = 1024,
) -> float:
    """Accuracy in [0, 1] of the majority among the k nearest training samples; ties go to the lower class.

    Args:
        train, test: [n, inputs] floats. train_labels, test_labels: int64 [n], at least 0.
        k: neighbours, 1 to the number of training samples.
        similarity: "euclidean" or "cosine".
        chunk: test samples at a time; memory is about chunk · training samples · 4 bytes.

    Distances are float32, of features less the training mean (which changes no distance and saves digits); two
    neighbours that are equally far to rounding may change places. Deterministic on the same number of threads.

    Raises:
        ValueError: k, similarity or the shapes.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"hebbkern.evaluation: k must be 1 to the {len(train)} training samples, got {k}")
    if similarity not in ("euclidean", "cosine"):
        raise ValueError(f'hebbkern.evaluation: similarity must be "euclidean" or "cosine", got {similarity!r}')
    for what, x, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if labels.shape != x.shape[:1] or len(x) == 0:
            raise ValueError(f"hebbkern.evaluation: {what}_labels must be one a sample ({len(x)}), got {len(labels)}")
    train, test = train.float(), test.float()
    mean = train.mean(0)
    train, test = (train - mean, test - mean) if similarity == "euclidean" else (F.normalize(train), F.normalize(test))
    squares = train.square().sum(1) / 2 if similarity == "euclidean" else torch.zeros_like(train[:, 0])
    right = 0
    for x, labels in zip(test.split(chunk), test_labels.split(chunk), strict=True):
        nearest = torch.addmm(squares, x, train.T, alpha=-1).topk(k, largest=False).indices
        votes = F.one_hot(train_labels[nearest].long(), int(train_labels.max()) + 1).sum(1)
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test)
