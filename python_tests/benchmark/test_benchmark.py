"""`hebbkern bench`: nobody is timed who computes something else, and the table says what was measured."""

import json

import pytest
import torch

from hebbkern import benchmark
from hebbkern.benchmark import report, timing
from hebbkern.benchmark.cases import CASES
from hebbkern.benchmark.contest import Case
from hebbkern.benchmark.operators import compete_case, kwinners_case


def doubled(factor):
    """A case whose contestants all return [2.0], but hebbkern, which returns 2 * factor."""

    def build():
        two = torch.full((1,), 2.0)
        runs = {"hebbkern": lambda: two * factor, "numpy": two.numpy, "eager": two.clone, "floor": two.clone}
        return {name: (run, torch.as_tensor) for name, run in runs.items()}

    return Case("compete", "two", build, "a copy", limits={"numpy": 1e-9, "floor": 1e9})


def test_a_wrong_result_is_not_timed():
    with pytest.raises(AssertionError, match=r"compete: two: hebbkern differs from NumPy by 1.0e-02 of its norm"):
        timing.measure(doubled(1.01), rounds=1)


@pytest.mark.parametrize(
    "case", [compete_case((16, 30), (20, 30), 3), kwinners_case((4, 6, 5, 5), 2)], ids=lambda case: case.id
)
def test_a_row_holds_every_ratio(case):
    row = timing.measure(case, rounds=2)
    seconds, ratios = row["seconds"], row["ratios"]
    assert ratios["numpy"] == seconds["numpy"] / seconds["hebbkern"]
    assert ratios["floor"] == seconds["hebbkern"] / seconds["floor"]


@pytest.mark.parametrize(
    "stem", ["compete", "nearest_patch", "accumulate", "dense_update", "apply", "kwinners", "rules"]
)
def test_every_stem_has_cases(stem):
    assert [case for case in CASES if case.stem == stem]


def test_case_names_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)


def test_command_writes_the_table_and_says_which_limit_fails(monkeypatch, tmp_path, capsys):
    missed = Case("compete", "slow", doubled(1.0).build, "a copy", limits={"numpy": 1e9})
    monkeypatch.setattr(benchmark, "CASES", (doubled(1.0), missed))
    for name in ("memory", "overhead", "scaling", "determinism"):
        monkeypatch.setattr(benchmark.properties, name, lambda *_: [])
    page, (start, end) = tmp_path / "README.md", report.marks()
    page.write_text(f"before\n{start}\nstale\n{end}\nafter\n")
    files = ["--json", str(tmp_path / "bench.json"), "--markdown", str(page)]
    assert benchmark.main(["--rounds", "1", "--strict", *files]) == 1
    assert benchmark.main(["--rounds", "1", "--strict", "--only", "two"]) == 0
    printed = capsys.readouterr().out
    assert "floor ≤ 1e+09 holds" in printed and "NumPy ≥ 1e+09 FAILS" in printed
    assert page.read_text().startswith("before\n") and page.read_text().endswith("after\n")
    assert "stale" not in page.read_text() and "| compete: two |" in page.read_text()
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 2


def test_a_page_without_a_place_for_the_table_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        report.put_between_marks("nothing here", "table")
