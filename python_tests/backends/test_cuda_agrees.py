"""The CUDA kernels give what the CPU's give: the same winners, sums within 1e-5 of their norm in float32."""

import pytest
import torch

import calls
import cases
import cuda_host
import hebbkern as hk
from hebbkern import backends

LARGER = cases.Layer((150, 130), (70, 130)), cases.Layer((3, 5, 12, 11), (40, 5, 3, 3), {"padding": (1, 1)})


def test_they_are_tested_here():
    """Where they could be, they are: nothing else fails if all tests of theirs are skipped."""
    if torch.cuda.is_available() or not cuda_host.compiler():
        pytest.skip("a GPU is here, or no g++")
    assert cuda_host.built(), (
        "csrc/cuda was not compiled for the CPU since it changed: python python_tests/helpers/cuda_host.py"
    )
    assert backends.available()["cuda"] is None


@pytest.mark.skipif(bool(backends.available()["cuda"]), reason=str(backends.available()["cuda"]))
@pytest.mark.skipif(bool(backends.available()["cpu"]), reason="the CPU's kernels were not built")
@pytest.mark.parametrize("layer", [calls.LINEAR, calls.CONVOLUTION, *LARGER], ids=str)
@pytest.mark.parametrize("operator", calls.OPERATORS)
def test_results(operator, layer):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results_of = {}
    for name, where in (("cpu", "cpu"), ("cuda", device)):
        arguments = calls.call(operator, layer)
        arguments = {key: a.to(where) if isinstance(a, torch.Tensor) else a for key, a in arguments.items()}
        with hk.backend(name):
            results = [result.cpu() for result in calls.run(operator, arguments)]
        if operator in calls.IN_PLACE:  # how far the weights have moved
            results = [results[0] - arguments["weight"].cpu()]
        results_of[name] = results
    for ours, cpus in zip(results_of["cuda"], results_of["cpu"], strict=True):
        if cpus.dtype == torch.int32:
            assert torch.equal(ours, cpus)
        else:
            finite = cpus.isfinite()
            assert torch.equal(finite, ours.isfinite())
            ours, cpus = ours[finite].double(), cpus[finite].double()
            # What moved is a difference of weights, which are themselves rounded.
            rounded = 2**-23 * arguments["weight"].cpu().double().norm() if operator in calls.IN_PLACE else 0
            assert (ours - cpus).norm() <= 1e-5 * cpus.norm() + rounded
