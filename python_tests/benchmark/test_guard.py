"""bench/guard.py: a slower step fails in plain words, a noisy one does not, another machine is not compared."""

import json
import time

import pytest
import torch

import guard
import hebbkern as hk
from hebbkern import benchmark
from hebbkern.benchmark import CASES
from hebbkern.benchmark.case import Case, Implementation
from hebbkern.benchmark.steps import rule_case

pytestmark = pytest.mark.serial


def spin(seconds):
    """Busy for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def sleeper(factor):
    """A case in which hebbkern takes factor times as long as the forward pass."""

    def build():
        runs = {"hebbkern": lambda: spin(factor * 1e-3), "forward": lambda: spin(1e-3)}
        return {name: Implementation(run) for name, run in runs.items()}

    return Case("rules", "spin", build, "forward")


def committed(ratio, **changes):
    return {**benchmark.about(), "ratios": {"rules: spin": ratio}, **changes}


@pytest.fixture
def lines():
    return []


def test_an_equal_step_passes(lines):
    assert guard.guard([sleeper(2)], committed(2.0), lines.append) == 0
    assert lines[0].startswith("ok      rules: spin: 2.") and lines[-1].startswith(
        "No step is slower than committed (1"
    )


def test_a_slowed_step_fails_and_is_named(lines):
    assert guard.guard([sleeper(4)], committed(2.0), lines.append) == 1
    assert lines[0].startswith("SLOWER  rules: spin: ") and "committed 2.00: " in lines[0] and "% slower" in lines[0]
    assert lines[-1].startswith("1 of 1 steps have become slower")


def test_one_noisy_attempt_is_repeated():
    attempts = iter([9.0, 9.0, 2.1])
    fails, sentence = guard.verdict("step", lambda: next(attempts), 2.0)
    assert not fails and sentence == "ok      step: 2.10 forward passes, committed 2.00"
    assert guard.verdict("step", lambda: 3.0, 2.0) == (
        True,
        "SLOWER  step: 3.00 forward passes at best of 4 attempts, committed 2.00: 50 % slower",
    )


@pytest.mark.parametrize(("key", "value"), [("machine", "another"), ("kernels", "avx3"), ("instructions", [])])
def test_another_machine_is_not_compared(key, value, lines):
    case = Case("rules", "spin", lambda: pytest.fail("measured"), "forward")
    assert guard.guard([case], committed(2.0, **{key: value}), lines.append) == 0
    assert len(lines) == 1 and f"committed {value}" in lines[0] and "passes" in lines[0]


def test_kernels_of_bfloat16_alone_do_not_make_another_machine():
    """float32 is what is timed: its kernels are the same with and without AVX-512 BF16."""
    assert benchmark.about()["kernels"] in ("baseline", "avx2", "avx512")


def test_another_torch_is_noted(lines):
    assert guard.guard([sleeper(1)], committed(9.0, torch="1.0"), lines.append) == 0
    assert "committed 1.0; the forward pass may take another time" in lines[0]


def test_a_new_case_asks_for_update_and_update_writes_it(lines, tmp_path):
    assert guard.guard([sleeper(1)], committed(1.0) | {"ratios": {}}, lines.append) == 0
    assert "no committed ratio" in lines[0]
    guard.update([sleeper(3)], tmp_path / "ratios.json", lines.append)
    found = json.loads((tmp_path / "ratios.json").read_text())
    assert found["ratios"]["rules: spin"] == pytest.approx(3, rel=0.3)
    assert guard.guard([sleeper(3)], found, lines.append) == 0


def test_what_is_guarded_exists_and_is_committed():
    assert set(guard.GUARDED) <= {case.id for case in CASES}
    assert set(json.loads(guard.COMMITTED.read_text())["ratios"]) == set(guard.GUARDED)


def test_the_real_steps_can_be_measured():
    case = rule_case(hk.WTA(), (20, 9), (8, 9))
    with torch.no_grad():
        assert guard.measured(case)() > 0
