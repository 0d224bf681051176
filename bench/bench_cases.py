"""The cases of `hebbkern bench` under pytest-benchmark, for its statistics and comparisons.

pytest bench                                all cases
pytest bench -k "compete and hebbkern"      hebbkern's compete only
"""

import pytest
import torch

from hebbkern.benchmark import CASES, timing

IMPLEMENTATIONS = ("hebbkern", "numpy", "eager", "forward")
WHOLE = [case for case in CASES if not case.share]  # cases in which all implementations do the whole work


@pytest.fixture(scope="module")
def checked():
    """Builds a case once, and compares its results before anything is timed."""
    built = {}

    def build(case):
        if case.id not in built:
            built.clear()
            with torch.no_grad():
                built[case.id] = timing.checked(case)
        return built[case.id]

    return build


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.id)
def bench_case(benchmark, checked, case, name):
    implementations = checked(case)
    if name not in implementations:
        pytest.skip(f"{case.id} has no implementation in {name}")
    benchmark.group = f"{case.id} (bare forward pass: {case.forward_pass})"
    benchmark(implementations[name].run)
