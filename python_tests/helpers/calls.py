"""One good call of every operator, linear and convolutional, for the tests that are the same for all of them."""

import contextlib

import numpy as np
import pytest
import torch

import cases
import hebbkern as hk
import oracle

OPERATORS = [
    "compete",
    "nearest_patch",
    "accumulate",
    "dense_update",
    "apply_",
    "kwinners",
    "dense_step_",
    "winner_step_",
]
IN_PLACE = ("apply_", "dense_step_", "winner_step_")  # on weight
LINEAR = cases.Layer((64, 20), (10, 20))
CONVOLUTION = cases.Layer((2, 3, 9, 8), (10, 3, 4, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)})
GROUPED = cases.Layer((2, 6, 9, 8), (10, 3, 4, 3), {"groups": 2, **CONVOLUTION.geometry})


def call(name, layer=LINEAR, dtype=torch.float32, device=None, seed=0):
    """Keyword arguments of hebbkern.ops.<name>, every optional tensor given."""
    device = cases.here(device)
    x, weight = cases.tensors(layer, dtype, device, seed)
    wide, neurons = oracle.result_dtype(dtype), layer.neurons
    mask = cases.some(neurons, device, seed)
    count = len(hk.reference.unfold(np.zeros(layer.x), layer.kernel, **layer.geometry))
    if name == "compete":
        return {"x": x, "weight": weight, "k": 2, "eligible": mask, "patches": "centred", **layer.geometry}
    if name == "nearest_patch":
        return {"x": x, "weight": weight, "eligible": mask, "patches": "centred", **layer.geometry}
    if name == "dense_update":
        return {"x": x, "weight": weight, "frozen": mask, "patches": "centred", **layer.geometry}
    if name == "apply_":
        rows = {"decay": cases.random(neurons, wide, device, seed)}
        rows["denominator"] = torch.ones(neurons, dtype=wide, device=device)
        total = cases.random(layer.weight, wide, device, seed + 1)
        return {"weight": weight, "sum": total, **rows, "lr": 0.1, "normalise": "row_l2", "frozen": mask}
    if name == "dense_step_":
        return {"weight": weight, "x": x, "lr": 0.1, "frozen": mask, "patches": "centred", **layer.geometry}
    if name == "kwinners":
        return {"y": x, "k": 3, "dim": 1}
    if name == "winner_step_":
        how = {"k": 2, "coefficients": (1.0, -0.4), "decay_by_response": True, "normalise": "global_max"}
        return {"weight": weight, "x": x, "lr": 0.1, **how, "frozen": mask, "patches": "centred", **layer.geometry}
    responses = cases.random((count, 2), wide, device, seed)
    groups = layer.geometry.get("groups", 1)
    each = neurons // groups
    targets = torch.arange(2 * count, device=device, dtype=torch.int32).reshape(groups, -1, 2) * 7 % (each + 1) - 1
    first = torch.arange(groups, device=device, dtype=torch.int32)[:, None, None] * each
    targets = torch.where(targets < 0, -1, targets + first).reshape(count, 2)
    entries = {"x": x, "targets": targets, "coefficients": responses * 2, "responses": responses}
    return {
        **entries,
        "neurons": neurons,
        "kernel": layer.kernel,
        "frozen": mask,
        "patches": "centred",
        **layer.geometry,
    }


def run(name, arguments):
    """The results of a call, as a list; of those in place the weight, moved in a copy."""
    if name in IN_PLACE:
        arguments = {**arguments, "weight": arguments["weight"].detach().clone()}
    results = getattr(hk.ops, name)(**arguments)
    results = arguments["weight"] if name in IN_PLACE else results
    return list(results) if isinstance(results, tuple) else [results]


@contextlib.contextmanager
def refused(device, match=None, step=True):
    """Within, a call must be refused for a number in its arguments, with a sentence that matches.

    On a GPU nobody waits to look at numbers: a ``step`` must have been skipped when it is waited for, and an operator
    that takes none must only not fail.
    """
    if torch.device(device).type == "cpu":
        with pytest.raises(ValueError, match=match):
            yield
        return
    yield
    with pytest.raises(RuntimeError, match="skipped on cuda") if step else contextlib.nullcontext():
        hk.synchronize()


def same_bits(first, second):
    """NaN equals NaN here, and -0.0 is not 0.0."""
    pairs = zip(first, second, strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b) for a, b in pairs)


def raw(tensor):
    return (
        tensor.detach().cpu().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy().tobytes()
    )
