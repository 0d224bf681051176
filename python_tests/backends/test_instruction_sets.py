"""The kernels that this processor would not choose: the operator suite again, under narrower instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hebbkern as hk

OPS = Path(__file__).parents[1] / "ops"
STAGES = ["compete", "nearest_patch", "accumulate", "dense_update", "apply", "kwinners", "dense_step"]


@pytest.mark.slow(55)
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_the_suite_holds_on_narrower_vectors(isa, pytestconfig):
    if reason := hk.backends.available()["cpu"]:
        pytest.skip(f"no compiled CPU kernels: {reason}")
    environment = os.environ | {"HEBBKERN_CPU": isa}
    chosen = "import torch, hebbkern; from hebbkern import _cpu; print(_cpu.isa)"
    said = subprocess.run([sys.executable, "-c", chosen], env=environment, capture_output=True, text=True, check=True)
    if said.stdout.strip() != isa:
        pytest.skip(f"this processor has no {isa}, it runs {said.stdout.strip()}")
    # Not the shapes that hypothesis draws: the fixed ones cover every tail, and two runs of all would take minutes.
    options = ["-q", "-k", "cpu and not drawn", "-p", "no:cacheprovider"]
    options += [f"--seed={pytestconfig.option.seed}", *["--all"] * pytestconfig.option.all]
    files = [str(OPS / f"test_{stage}.py") for stage in STAGES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=environment,
        cwd=OPS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
