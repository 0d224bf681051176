"""The cases of hebbkern.benchmark as parameters of pytest."""

import pytest

from hebbkern.benchmark.cases import CASES

WHO = ("hebbkern", "numpy", "eager", "floor")


def contestants(stem):
    """Every contestant of every case of this stem."""
    cases = [case for case in CASES if case.stem == stem]
    return [pytest.param(case, who, id=f"{case.name}, {who}") for case in cases for who in WHO]
