"""bench/gpu.py without a GPU: what it prints, how it times (by a clock that the tests set), and what it compares."""

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hebbkern as hk
from gpu_report import timing, variants, workloads
from hebbkern import backends
from hebbkern.benchmark import CASES

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)


@pytest.fixture
def script(monkeypatch):
    """bench/gpu.py as a module; what it does to the environment is undone."""
    for name in ("TRITON_INTERPRET", "HEBBKERN_BACKEND", "HEBBKERN_CUDA_HOST"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """Time passes only in calls of ``work``; an event may be read after ``synchronize`` alone, as on a GPU."""

    def __init__(self):
        self.now = self.known = 0.0
        self.calls = []

    def work(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += seconds(len(self.calls)) if callable(seconds) else seconds

        return run

    def event(self):
        return Event(self)

    def synchronize(self):
        self.known = self.now


class Ticking(Clock):
    """A millisecond passes from event to event, whatever happens in between."""

    def event(self):
        self.now += 1e-3
        return Event(self, self.now)


class Event:
    def __init__(self, clock, at=None):
        self.clock, self.at = clock, at

    def record(self):
        self.at = self.clock.now if self.at is None else self.at

    def elapsed_time(self, end):
        assert end.at <= self.clock.known, "an event was read before it was waited for"
        return (end.at - self.at) * 1e3


def test_medians_are_seconds_a_call():
    clock = Clock()
    seconds = timing.race({"a": [clock.work("a", 1e-3)], "b": [clock.work("b", 5e-5)]}, 5, clock)
    assert seconds == pytest.approx({"a": 1e-3, "b": 5e-5})


def test_a_slow_sample_does_not_move_the_median():
    clock = Clock()
    seconds = timing.race({"a": [clock.work("a", lambda call: 1.0 if call == 30 else 1e-3)]}, 15, clock, sample=1e-3)
    assert seconds["a"] == pytest.approx(1e-3)


def test_short_calls_are_repeated_and_copies_take_turns():
    clock = Clock()
    runs = [clock.work(name, 1e-3) for name in "xyz"]
    timing.race({"a": runs}, 4, clock, sample=6e-3)
    assert all(clock.calls[i : i + 3] == ["x", "y", "z"] for i in range(0, len(clock.calls) - 2, 3))
    assert len(clock.calls) == timing.WARM * 3 + 8 + 4 * 6


def test_the_order_alternates():
    clock = Clock()
    timing.race({name: [clock.work(name, 1.0)] for name in "ab"}, 4, clock, sample=1.0)
    assert clock.calls[-8:] == list("abbaabba")


@pytest.mark.parametrize(("l2", "copies"), [(0, 2), (50 << 20, 13), (1 << 40, timing.MOST)])
def test_copies_of_the_inputs_exceed_the_cache(l2, copies):
    step = next(step for step in workloads.STEPS if step.id == "rules: KrotovHopfield step, 1024 x 784 x 2000")
    size = 4 * (1024 + 2000) * 784
    assert timing.copies(step, l2) == copies and (copies == timing.MOST or copies * size > 2 * l2)


def test_steps_are_cases_of_the_benchmark_and_their_names_are_unique():
    assert {step.name for step in workloads.STEPS} <= {case.id for case in CASES}
    named = [workload.id for workload in (*workloads.STEPS, *variants.VARIANTS)]
    assert len(set(named)) == len(named)


SMALL = [
    workloads.step(hk.WTA(), (12, 20), (10, 20)),
    workloads.step(hk.Supervised(), (12, 20), (10, 20)),
    workloads.step(hk.Sanger(), (2, 3, 6, 6), (5, 3, 3, 3), lr=1e-4, dense=True),
    workloads.hebbcl_step((12, 20), (10, 20)),
    workloads.compete((2, 3, 6, 6), (5, 3, 3, 3), 2),
    workloads.nearest_patch((12, 20), (10, 20)),
    workloads.accumulate((2, 3, 6, 6), (5, 3, 3, 3), 1),
    workloads.kwinners((2, 9, 3, 3), 4),
]


@pytest.mark.slow(12)
@pytest.mark.skipif(bool(backends.available()["triton"]), reason="the Triton backend cannot run")
@pytest.mark.parametrize("step", SMALL, ids=lambda step: step.id)
def test_a_row_compares_with_the_cpu_and_holds_every_ratio(step):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    row = timing.measure(step, 1, device=device, clock=Ticking(), l2=0, sample=0)
    assert row["difference"] <= step.tolerance and row["to_forward"].keys() == {"eager", *timing.available_kinds()}
    assert row["case"] in timing.text([row])


def test_a_wrong_result_is_not_timed():
    def wrong(x, w):
        w += 1 + (hk.backends.current() == "triton")

    step = replace(SMALL[0], run=wrong)
    with pytest.raises(
        AssertionError, match=r"WTA step, 12 x 20 x 10: triton differs from the CPU by 1.0e\+00 of its norm"
    ):
        timing.measure(step, 1, device="cpu", clock=Clock(), l2=0)


def test_a_faster_implementation_is_named():
    rows = [
        {"case": "good", "seconds": {"cuda": 1.05, "triton": 1.0, "eager": 2.0, "forward": 0.1}},
        {"case": "bad", "seconds": {"cuda": 2.0, "triton": 2.1, "eager": 1.0, "forward": 0.1}},
        {"case": "not built", "seconds": {"triton": 3.0, "eager": 2.0}},
        {"case": "failed", "failed": "why"},
    ]
    assert timing.faster(rows) == [
        "- eager is 2.00 times as fast as cuda: bad.",
        "- eager is 1.50 times as fast as triton: not built.",
    ]


def test_each_implementation_runs_on_its_own_backend():
    names = []
    runs = {name: [lambda: names.append(backends.current())] for name in ("eager", "forward")}
    timing.race(runs, 1, Ticking(), 0, timing._on_backend)
    assert set(names) == {"auto", "eager"} and names[:3] == ["eager"] * 3


def test_without_a_gpu_it_says_so_and_exits_cleanly(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(["--json", str(tmp_path / "gpu.json")]) == 0
    assert capsys.readouterr().out == "There is no GPU here: nothing is tested or timed.\n"
    assert not (tmp_path / "gpu.json").exists()


def test_a_step_that_fails_is_a_row_that_says_why_and_the_exit_status(script, monkeypatch, tmp_path, capsys):
    def measure(step, rounds, l2):
        if "Supervised" in step.id:
            raise AssertionError("differs from the CPU")
        seconds = {"cuda": 1e-3, "eager": 4e-3, "forward": 2e-3}
        return {"case": step.id, "seconds": seconds, "to_forward": {"cuda": 0.5, "eager": 2.0}, "difference": 1e-7}

    monkeypatch.setattr(script.timing, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script, "about", lambda: {"gpu": "a GPU", "l2": 1, "torch": "2", "version": "0"})
    options = ["--skip-tests", "--json", str(tmp_path / "gpu.json")]
    assert script.main([*options, "--only", "rules"]) == 1
    printed = capsys.readouterr().out
    assert "AssertionError: differs from the CPU" in printed and "0.50" in printed
    assert script.main([*options, "--only", "kwinners"]) == 0
    monkeypatch.setattr(script, "suite", lambda: {"passed": False, "summary": "1 failed"})
    assert script.main(["--json", str(tmp_path / "gpu.json"), "--only", "kwinners"]) == 1


def test_the_table_of_an_earlier_run_is_put_into_a_page(script, tmp_path):
    seconds = {"forward": 2e-5, "cuda": 1e-5}
    timed = {"case": "a step", "seconds": seconds, "to_forward": {"cuda": 0.5}, "difference": 1e-7}
    rows = [timed, {"case": "another", "failed": "CompilationError: at 7:46:"}]
    found = {"gpu": "a GPU", "torch": "2.11", "triton": "3.6", "command": "python bench/gpu.py", "rows": rows}
    results, page = tmp_path / "gpu.json", tmp_path / "page.md"
    results.write_text(json.dumps(found))
    page.write_text("before\n<!-- hebbkern bench: make gpu -->\nold\n<!-- end of hebbkern bench: make gpu -->\nafter\n")
    assert script.main(["--json", str(results), "--markdown", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and "old" not in lines
    assert "| a step | 20 µs | 0.50 |  |  | 1.0e-07 |" in lines
    assert "- Not timed: another (CompilationError: at 7:46)." in lines
