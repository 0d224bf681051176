"""What a learnt layer says about its inputs, for a readout."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rectified_power(x: Tensor, weight: Tensor, power: float) -> Tensor:
    """[n, K]: ReLU(cos(x, w_j))^power, the rectified polynomial unit (RePU) on normalised inputs and neurons.

    Krotov and Hopfield 2019 and PyTorch-Hebbian (supplement, section 2.1) take this power of w·x; the cosine keeps the
    scale of an input, and of a neuron that has not settled, out of the features.

    Args:
        x: [n, N]. weight: [K, N]. power: at least 1; the higher, the fewer neurons count.
    """
    return (F.normalize(x) @ F.normalize(weight).T).relu_().pow_(power)
