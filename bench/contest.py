"""The cases of hebbkern.benchmark as parameters of pytest."""

import pytest

from hebbkern.benchmark.cases import CASES

WHO = ("hebbkern", "numpy", "eager", "floor")


def contestants(stem):
    """Every usual contestant of every case of this stem, where all do the whole work."""
    cases = [case for case in CASES if case.stem == stem and not case.share]
    return [pytest.param(case, who, id=f"{case.name}, {who}") for case in cases for who in WHO]
