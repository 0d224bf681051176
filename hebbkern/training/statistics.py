"""What handlers tell of a layer: the lengths of its neurons, who wins, and how its activations are spread."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hebbkern import ops
from hebbkern.rules import WTA, KrotovHopfield

QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}


def lengths(layer: nn.Module) -> Tensor:
    """[K] float64 on the CPU: the norm of each neuron's weights, of the p of Krotov and Hopfield's rule, else p = 2."""
    p = layer.rule.p if isinstance(layer.rule, KrotovHopfield) else 2.0
    return torch.linalg.vector_norm(layer.weight.detach().cpu().double().flatten(1), p, dim=1)


def wins(layer: nn.Module, x: Tensor) -> Tensor:
    """[K] int64: how many patches of x each neuron wins under the similarity and on the patches of its rule.

    With WTA of k winners a patch counts for all k. For rules without a contest (dense ones, Supervised) the winner is the
    neuron of the largest w·x.

    Args:
        layer: a Hebbian layer. x: its input, a batch.
    """
    rule, weight = layer.rule, layer.weight.detach()
    how = {"p": rule.p} if isinstance(rule, KrotovHopfield) else {}
    k = 1
    if isinstance(rule, WTA):
        how, k = {"cosine": rule.similarity == "cosine"}, rule.k
    rows, _ = layer._samples(x.to(weight.dtype), None)
    rows, geometry = layer._patches(rows)
    winners, _ = ops.compete(rows, weight, k, patches=rule.patches, **how, **geometry)
    return torch.bincount(winners.flatten().long(), minlength=len(weight))


def answers(layer: nn.Module, output: Tensor) -> Tensor:
    """[P, K]: the output of a layer on a batch, a row a patch."""
    if isinstance(layer, nn.Conv2d):
        output = output.movedim(1, -1)
    return output.reshape(-1, output.shape[-1])


def activity(y: Tensor) -> dict[str, float]:
    """How activations [P, K] are spread over all patches and neurons, and how sparse they are.

    Returns:
        "mean"; "q05", "q25", "q50", "q75", "q95" (quantiles); "inactive", the share of activations at most 0; "silent",
        the share of neurons never above 0; and "sparseness", from 0 (all neurons answer alike) to 1 (one alone does):
        (1 − (Σ r / K)² / (Σ r² / K)) / (1 − 1/K) with r = max(y, 0) over the neurons (Vinje and Gallant, Science
        2000), the mean over the patches to which some neuron answers (0 where none does).
    """
    y = y.detach().cpu().double()
    active, rates, neurons = y > 0, y.relu(), y.shape[1]
    told = {"mean": y.mean().item(), "inactive": 1 - active.double().mean().item()}
    told["silent"] = 1 - active.any(0).double().mean().item()
    told |= zip(QUANTILES, np.quantile(y.numpy(), list(QUANTILES.values())).tolist(), strict=True)
    rates = rates[active.any(1)]
    rates = rates / rates.amax(1, keepdim=True)  # so that no square is too small for a number
    alike = rates.mean(1).square() / rates.square().mean(1)
    told["sparseness"] = (1 - alike.mean().item()) / (1 - 1 / neurons) if neurons > 1 and len(rates) else 0.0
    return told
