"""The same bits: in two runs, in two processes, whatever memory held before, and on any number of threads."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

import calls
import cases
import hebbkern as hk

LAYERS = [
    cases.Layer((257, 100), (63, 100)),
    cases.Layer((20, 300), (700, 300)),
    cases.Layer((2000, 33), (100, 33)),
    cases.Layer((1300, 90), (101, 90)),
    cases.Layer((6, 3, 20, 19), (40, 3, 5, 5), {"padding": 2}),
    cases.Layer((3, 16, 12, 12), (65, 16, 3, 3), {"stride": 2, "dilation": 2, "padding": 1}),
]


def patches_of(name, layer, dtype):
    """All kinds of patches; on interpreted and emulated kernels one, another for each layer and dtype."""
    if name in ("cpu", "eager"):
        return cases.PATCHES
    return [cases.PATCHES[(LAYERS.index(layer) + cases.DTYPES.index(dtype)) % len(cases.PATCHES)]]


def everything(name, layer, dtype, device):
    """The results of all operators with all their settings, where sums are long enough to be split."""
    results = []
    for patches in patches_of(name, layer, dtype):
        x, weight = cases.tensors(layer, dtype, device)
        options = {"patches": patches, **layer.geometry}
        for response in ({}, {"p": 3.0}, {"cosine": True}):
            winners, responses = hk.ops.compete(x, weight, k=4, **response, **options)
            results += [winners, responses]
        kinds = {"neurons": layer.neurons, "kernel": layer.kernel, **options}
        total, decay, count = hk.ops.accumulate(x, winners % 3, responses, responses=responses, **kinds)
        results += [total, decay, count, *hk.ops.nearest_patch(x, weight, **options)]
        for activation, how in (("relu", "triangular"), ("linear", "diagonal"), ("softmax", "diagonal")):
            results += hk.ops.dense_update(x, weight, activation=activation, decay=how, **options)
        moved = weight.clone()
        hk.ops.dense_step_(moved, x, lr=1e-3, **options)
        results.append(moved)
        for normalise in ("none", "row_max", "row_l2", "global_max"):
            moved = weight.clone()
            hk.ops.apply_(moved, total, decay=decay, denominator=count, lr=0.1, normalise=normalise, rate_power=0.5)
            results.append(moved)
            learnt = weight.clone()
            hk.ops.winner_step_(learnt, x, lr=0.1, by_response=True, average=True, normalise=normalise, **options)
            results.append(learnt)
    return [*results, hk.ops.kwinners(x, 3, 1)]


@pytest.mark.slow(19, on="cuda")
@pytest.mark.slow(34, on="triton")
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_runs_and_threads(backend, threads, layer, dtype):
    runs = []
    for count in (*backend.threads, 1) if backend.any_threads else (2, 2):
        threads(count)
        runs.append(everything(backend.choice, layer, dtype, backend.device))
    for other in runs[1:]:
        assert calls.same_bits(runs[0], other)


def digest(name, device):
    """Of all results on this backend; run in a process of its own."""
    with hk.backend(name):
        torch.set_num_threads(1)
        layers = [layer for layer in LAYERS if name != "triton" or cases.products(layer) < 2e6]
        results = [result for layer in layers for result in everything(name, layer, torch.float32, device)]
    return hashlib.sha256(b"".join(map(calls.raw, results))).hexdigest()


@pytest.mark.slow(14)
def test_processes_and_what_memory_held(backend):
    """malloc fills what it hands out, so scratch memory that is read before it is written shows."""
    program = f"import test_determinism; print(test_determinism.digest({backend.choice!r}, {backend.device!r}))"
    folder = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, "MALLOC_PERTURB_": fill},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for fill in ("1", "170")
    }
    assert len(digests) == 1 and "" not in digests
