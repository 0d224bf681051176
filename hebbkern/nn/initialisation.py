"""Neurons that start, or start anew, on samples: init_from_samples_, and the restart that ReviveDead uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hebbkern import checks
from hebbkern.nn.patches import CONVOLUTIONS, as_patches, drawn_patches, unit_rows, without_blank
from hebbkern.rules import KrotovHopfield

CANDIDATES = 4096  # patches of a group among which rows are chosen, at least


@torch.inference_mode(False)
@torch.no_grad()
def init_from_samples_(layer: nn.Module, x: Tensor, *, seed: int = 0) -> nn.Module:
    """Sets the neurons of a layer to patches of x that differ in direction, in place, so that each begins near data.

        hk.nn.init_from_samples_(model[0], images)
        hk.nn.init_from_samples_(model[2], model[:2](images))  # the inputs that the layer gets

    As k-means++ does (Arthur and Vassilvitskii 2007), by directions: the first patch is drawn uniformly, each further
    one with a probability proportional to 1 − cos, the cosine being that to the nearest patch chosen so far. Patches
    are centred or standardised where the rule's are; blank ones are never chosen. All neurons get the same length: 1 in
    the norm of Krotov and Hopfield's rule, otherwise the mean length of the patches (or of the frozen neurons, which
    stay as they are and count as chosen). Of an x with more than 4096 patches (or twice as many as neurons) so many are
    drawn first. The same seed gives the same weights.

    Args:
        layer: a torch.nn.Linear or a convolution, Hebbian or not. A bias stays.
        x: inputs of the layer, of the weight's dtype or another floating one, finite: [..., N], or [B, C, ...].
        seed: of the draws.

    Returns:
        layer.

    Raises:
        ValueError: layer is another module, x does not fit it or is not finite, or all of its patches are blank. The
            weight is unchanged.
    """
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        checks.fail("nn.init_from_samples_", "layer", "be a linear layer or a convolution", type(layer).__name__)
    checks.check_tensor("nn.init_from_samples_", "x", x)
    checks.floating("nn.init_from_samples_", "x", x)
    if is_lazy(layer.weight):
        wanted = "have a size, which the first forward pass gives it"
        checks.fail("nn.init_from_samples_", "layer", wanted, f"an uninitialized {type(layer).__name__}")
    linear = isinstance(layer, nn.Linear)
    axis, inputs = (-1, layer.in_features) if linear else (1 - layer.weight.dim(), layer.in_channels)
    if x.dim() < -axis or x.shape[axis] != inputs:
        checks.fail("nn.init_from_samples_", "x", f"have the layer's {inputs} inputs or channels", checks.shape_name(x))
    checks.finite("nn.init_from_samples_", x=x)
    frozen = getattr(layer, "frozen", torch.zeros(len(layer.weight), dtype=torch.bool, device=layer.weight.device))
    if not restart_(layer, ~frozen, x, torch.Generator("cpu").manual_seed(seed)):
        checks.fail("nn.init_from_samples_", "x", "have a patch that is not blank for each group", "none")
    return layer


@torch.inference_mode(False)
@torch.no_grad()
def restart_(layer: Any, rows: Tensor, x: Tensor, generator: torch.Generator) -> bool:
    """Sets rows of a layer's weight to patches of x that the other rows represent badly; see `init_from_samples_`.

    Args:
        layer: a linear layer or a convolution.
        rows: bool [K], the neurons that start anew.
        x: inputs of the layer.
        generator: of the CPU.

    Returns:
        False if all patches of a group were blank: its weights are unchanged, as are all others.
    """
    rule, weight = getattr(layer, "rule", None), layer.weight
    kind = getattr(rule, "patches", "raw")
    groups = drawn_patches(layer, x.detach().to(weight.dtype), max(CANDIDATES, 2 * len(weight)), generator)
    changed = weight.detach().flatten(1).clone()
    for patches, own, restarted in zip(groups, changed.chunk(len(groups)), rows.chunk(len(groups)), strict=True):
        patches = as_patches(without_blank(patches, kind), kind).to(checks.result_dtype(weight.dtype))
        if len(patches) == 0:
            return False
        others = own[~restarted].to(patches.dtype)
        directions = unit_rows(patches)
        chosen = directions[_spread(directions, unit_rows(others), int(restarted.sum()), generator)]
        if len(others):
            chosen *= torch.linalg.vector_norm(others, dim=1).mean()
        elif isinstance(rule, KrotovHopfield):
            chosen /= torch.linalg.vector_norm(chosen, rule.p, dim=1, keepdim=True)
        else:
            chosen *= torch.linalg.vector_norm(patches, dim=1).mean()
        own[restarted] = chosen.to(own.dtype)
    weight.copy_(changed.view_as(weight))
    return True


def _spread(directions: Tensor, chosen: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count] indices of unit rows [M, N], each drawn in proportion to 1 − cos to the nearest row chosen before it.

    `chosen` [L, N] are unit rows from the start; without any, and where all distances are 0, a draw is uniform.
    """
    distances, indices = torch.ones_like(directions[:, 0]), []
    if len(chosen):
        distances = 1 - (directions @ chosen.T).amax(1)
    for _ in range(count):
        sums = distances.clamp(min=0).double().cumsum(0)
        sums = sums if sums[-1] > 0 else torch.ones_like(sums).cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu").to(sums.device) * sums[-1]
        indices.append(torch.searchsorted(sums, drawn, right=True).clamp(max=len(sums) - 1))
        distances = torch.minimum(distances, 1 - directions @ directions[indices[-1]][0])
    return torch.cat(indices) if indices else torch.zeros(0, dtype=torch.int64, device=directions.device)
