"""pytest bench: the cases of `hebbkern bench` under pytest-benchmark, for its statistics and comparisons."""

import pytest
import torch

from hebbkern.benchmark import timing


@pytest.fixture(scope="module")
def checked():
    """Builds a case once, and lets nobody be timed before hebbkern and eager torch have agreed with NumPy."""
    built = {}

    def build(case):
        if case.id not in built:
            built.clear()
            with torch.no_grad():
                built[case.id] = timing.checked(case)
        return built[case.id]

    return build


@pytest.fixture(autouse=True)
def group_by_case(benchmark, case):
    benchmark.group = f"{case.id} (floor: {case.floor})"
